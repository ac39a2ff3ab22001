// SPDX-License-Identifier: MIT
// Streams, events and launches: order, time, errors that leave the context usable, atomics among all processors.
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "conformance/api_environment.hpp"

namespace {

using namespace api_test;  // NOLINT(google-build-using-namespace)

using ApiStreams = ApiTest;
API_SUITE(ApiStreams);

TEST_P(ApiStreams, work_of_a_stream_runs_in_order) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), 4096);
  const hmmrt::stream s(context());
  for (int i = 0; i < 20; ++i) s.launch("add", b.size(), AddOne{b.gpu()});
  std::atomic<std::uint32_t> called{0};
  s.host_function([](void* c) { static_cast<std::atomic<std::uint32_t>*>(c)->store(1); }, &called);
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  EXPECT_EQ(called, 1u);
  EXPECT_TRUE(s.done());
  for (const std::uint32_t v : b) ASSERT_EQ(v, 21u);
}

TEST_P(ApiStreams, events_order_streams_of_different_devices) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), k_block / 4);
  const hmmrt::stream first(context(), 0), second(context(), last_device());
  const hmmrt::event filled(context());
  EXPECT_TRUE(filled.done());  // never recorded
  for (std::uint32_t round = 0; round < 5; ++round) {
    first.launch("fill", b.size(), Fill{b.gpu(), round});
    first.record(filled);
    second.wait(filled);
    second.launch("add", b.size(), AddOne{b.gpu()});
    second.synchronize();
    for (std::size_t i = 0; i < b.size(); i += 97) ASSERT_EQ(b[i], round + i + 1);
  }
}

TEST_P(ApiStreams, events_measure_time_and_say_when_they_are_not_ready) {
  std::atomic<bool> go{false};
  const hmmrt::stream s(context());
  const hmmrt::event a(context()), b(context());
  float ms = -1;
  EXPECT_API_ERROR(hmmrt_event_elapsed(a.get(), b.get(), &ms), HMMRT_ERROR_INVALID_VALUE, "never recorded");
  s.record(a);
  s.host_function(
      [](void* p) {
        while (!static_cast<std::atomic<bool>*>(p)->load()) std::this_thread::yield();
      },
      &go);
  s.record(b);
  a.synchronize();
  EXPECT_EQ(hmmrt_event_query(b.get()), HMMRT_ERROR_NOT_READY);
  EXPECT_EQ(hmmrt_stream_query(s.get()), HMMRT_ERROR_NOT_READY);
  EXPECT_API_ERROR(hmmrt_event_elapsed(a.get(), b.get(), &ms), HMMRT_ERROR_NOT_READY, "stop");
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(2)) {
  }
  go = true;
  b.synchronize();
  EXPECT_GE(b.milliseconds_since(a), 2.0f);
  EXPECT_LT(b.milliseconds_since(a), 10'000.0f);
  EXPECT_LE(a.milliseconds_since(b), 0.0f);
}

TEST_P(ApiStreams, a_failed_launch_is_reported_once_and_the_context_stays_usable) {
  NEEDS_FAULTS("nobody sees a wrong address");
  hmmrt::managed_buffer<std::uint32_t> b(context(), 1024);
  const hmmrt::stream s(context(), last_device());
  const Mapping foreign(k_page);
  if (any_pointer()) {
    ASSERT_EQ(mprotect(foreign.get(), k_page, PROT_NONE), 0);
  }
  s.launch("stray", 64, Fill{hmmrt::gptr<std::uint32_t>(foreign.words()), 1});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ILLEGAL_ADDRESS, "stray");
  EXPECT_NE(std::string(hmmrt_last_error_detail()).find("write of 0x"), std::string::npos) << hmmrt_last_error_detail();
  EXPECT_EQ(hmmrt_stream_synchronize(s.get()), HMMRT_SUCCESS);
  ASSERT_EQ(mprotect(foreign.get(), k_page, PROT_READ), 0);
  EXPECT_EQ(foreign.words()[0], 0u);
  s.launch("fill", b.size(), Fill{b.gpu(), 9});
  s.synchronize();
  EXPECT_EQ(b[1023], 9u + 1023);
}

TEST_P(ApiStreams, context_synchronize_reports_launch_errors_of_every_stream) {
  NEEDS_FAULTS("nobody sees a wrong address");
  const hmmrt::stream one(context()), two(context(), last_device());
  two.launch("null", 1, Fill{hmmrt::gptr<std::uint32_t>(nullptr), 1});
  EXPECT_EQ(hmmrt_context_synchronize(handle()), HMMRT_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(hmmrt_context_synchronize(handle()), HMMRT_SUCCESS);
}

TEST_P(ApiStreams, free_waits_for_launches) {
  for (int i = 0; i < 20; ++i) {
    const hmmrt::stream s(context());
    auto* p = static_cast<std::uint32_t*>(context().allocate(k_block));
    s.launch("fill", k_block / 4, Fill{hmmrt::gptr<std::uint32_t>(p), 1});
    context().free(p);
    s.synchronize();  // the kernel succeeded
  }
}

TEST_P(ApiStreams, an_error_survives_a_free_that_waited_for_it) {
  NEEDS_FAULTS("nobody sees a wrong address");
  const hmmrt::stream s(context());
  auto* p = context().allocate(k_page);
  s.launch("null", 1, Fill{hmmrt::gptr<std::uint32_t>(nullptr), 1});
  context().free(p);
  EXPECT_EQ(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ILLEGAL_ADDRESS);
}

std::atomic<int> from_kernel, from_host;
struct Call {
  hmmrt_context_t c;
  HMMRT_KERNEL void operator()(const hmmrt::item&) const {
#ifndef COMPILING_FOR_GPU
    from_kernel = hmmrt_context_synchronize(c);
#endif
  }
};

TEST_P(ApiStreams, calls_from_kernels_and_host_functions_are_refused) {
  NEEDS_FAULTS("a kernel has no library to call");
  const hmmrt::stream s(context());
  s.launch("call", 1, Call{handle()});
  s.host_function([](void* c) { from_host = hmmrt_context_synchronize(static_cast<hmmrt_context_t>(c)); }, handle());
  s.synchronize();
  EXPECT_EQ(from_kernel, HMMRT_ERROR_IN_KERNEL);
  EXPECT_EQ(from_host, HMMRT_ERROR_IN_KERNEL);
}

class ApiAtomics : public ApiTest {};
API_SUITE(ApiAtomics);

TEST_P(ApiAtomics, the_cpu_and_all_devices_lose_no_increment) {
  for (const char* system_atomics : {"on", "off"}) {
    open({{"system_atomics", system_atomics}});
    hmmrt::managed_buffer<std::uint64_t> counter(context(), 1);
    constexpr std::uint32_t k_items = 256, k_times = 50, k_cpu_times = 20'000;
    std::vector<hmmrt::stream> streams;
    for (unsigned d = 0; d <= last_device(); ++d) streams.emplace_back(context(), d);
    for (const auto& s : streams) s.launch("count", k_items, Count{counter.gpu(), k_times});
    for (std::uint32_t i = 0; i < k_cpu_times; ++i) __atomic_fetch_add(counter.data(), 1, __ATOMIC_RELAXED);
    for (const auto& s : streams) s.synchronize();
    EXPECT_EQ(counter[0], std::uint64_t{k_items} * k_times * streams.size() + k_cpu_times) << system_atomics;
  }
}

}  // namespace
