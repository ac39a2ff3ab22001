// SPDX-License-Identifier: MIT
// Bad input: each gets its own result code and a sentence that names the value; nothing is lost, leaked or hung.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "conformance/api_environment.hpp"

namespace {

using namespace api_test;  // NOLINT(google-build-using-namespace)

class ApiBadInput : public ApiTest {
 protected:
  void* p_ = nullptr;
};
INSTANTIATE_TEST_SUITE_P(each, ApiBadInput, ::testing::ValuesIn(api_test::environments({2})),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST_P(ApiBadInput, null_pointers) {
  std::uint32_t n = 0;
  EXPECT_API_ERROR(hmmrt_context_create(nullptr, nullptr), HMMRT_ERROR_INVALID_VALUE, "context is null");
  EXPECT_API_ERROR(hmmrt_alloc(handle(), 1, nullptr), HMMRT_ERROR_INVALID_VALUE, "ptr is null");
  EXPECT_EQ(hmmrt_free(handle(), nullptr), HMMRT_SUCCESS);
  EXPECT_API_ERROR(hmmrt_register(handle(), nullptr, k_page), HMMRT_ERROR_INVALID_VALUE, "ptr is null");
  EXPECT_API_ERROR(hmmrt_unregister(handle(), nullptr), HMMRT_ERROR_INVALID_VALUE, "ptr is null");
  EXPECT_API_ERROR(hmmrt_prefetch(handle(), nullptr, 1, 0, nullptr), HMMRT_ERROR_INVALID_VALUE, "ptr is null");
  EXPECT_API_ERROR(hmmrt_device_count(handle(), nullptr), HMMRT_ERROR_INVALID_VALUE, "count is null");
  EXPECT_API_ERROR(hmmrt_device_count(nullptr, &n), HMMRT_ERROR_INVALID_HANDLE, "context handle is null");
  EXPECT_API_ERROR(hmmrt_stats_context(handle(), nullptr), HMMRT_ERROR_INVALID_VALUE, "stats is null");
  EXPECT_API_ERROR(hmmrt_stream_create(handle(), 0, nullptr), HMMRT_ERROR_INVALID_VALUE, "stream is null");
  const hmmrt::stream s(context());
  EXPECT_API_ERROR(hmmrt_launch(s.get(), nullptr, {1, 1, 1}), HMMRT_ERROR_INVALID_VALUE, "kernel is null");
  EXPECT_API_ERROR(hmmrt_stream_host_function(s.get(), nullptr, nullptr), HMMRT_ERROR_INVALID_VALUE, "fn is null");
}

TEST_P(ApiBadInput, zero_and_overflowing_sizes) {
  const hmmrt::managed_buffer<char> b(context(), k_page);
  EXPECT_API_ERROR(hmmrt_alloc(handle(), 0, &p_), HMMRT_ERROR_INVALID_VALUE, "bytes is 0");
  EXPECT_API_ERROR(hmmrt_alloc(handle(), SIZE_MAX, &p_), HMMRT_ERROR_INVALID_VALUE, std::to_string(SIZE_MAX));
  EXPECT_API_ERROR(hmmrt_alloc(handle(), SIZE_MAX / 4, &p_), HMMRT_ERROR_OUT_OF_MEMORY, std::to_string(SIZE_MAX / 4));
  EXPECT_EQ(p_, nullptr);
  EXPECT_API_ERROR(hmmrt_prefetch(handle(), b.data(), 0, 0, nullptr), HMMRT_ERROR_INVALID_VALUE, "bytes is 0");
  EXPECT_API_ERROR(hmmrt_prefetch(handle(), b.data(), SIZE_MAX, 0, nullptr), HMMRT_ERROR_INVALID_VALUE, "overflow");
  EXPECT_API_ERROR(hmmrt_prefetch(handle(), b.data(), k_page + 1, 0, nullptr), HMMRT_ERROR_NOT_MANAGED, "past");
  EXPECT_API_ERROR(hmmrt_register(handle(), reinterpret_cast<void*>(k_page), SIZE_MAX - k_page + 1),
                   HMMRT_ERROR_INVALID_VALUE, "address space");
}

TEST_P(ApiBadInput, misaligned_registration) {
  const Mapping m(4 * k_page);
  EXPECT_API_ERROR(hmmrt_register(handle(), m.get() + 1, k_page), HMMRT_ERROR_MISALIGNED, hex(m.get() + 1));
  EXPECT_API_ERROR(hmmrt_register(handle(), m.get(), 100), HMMRT_ERROR_MISALIGNED, "100");
}

TEST_P(ApiBadInput, memory_that_cannot_be_registered) {
  Mapping hole(4 * k_page);
  ASSERT_EQ(hole.unmap(k_page, k_page), 0);
  EXPECT_API_ERROR(hmmrt_register(handle(), hole.get(), 4 * k_page), HMMRT_ERROR_NOT_MANAGED, "nothing is mapped");
  void* shared = mmap(nullptr, k_page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  EXPECT_API_ERROR(hmmrt_register(handle(), shared, k_page), HMMRT_ERROR_NOT_ANONYMOUS, hex(shared));
  munmap(shared, k_page);
  const Mapping m(4 * k_page);
  context().register_memory(m.get(), 2 * k_page);
  EXPECT_API_ERROR(hmmrt_register(handle(), m.get() + k_page, 2 * k_page), HMMRT_ERROR_ALREADY_MANAGED,
                   hex(m.get() + k_page));
  EXPECT_API_ERROR(hmmrt_unregister(handle(), m.get() + k_page), HMMRT_ERROR_INVALID_VALUE, hex(m.get()));
  EXPECT_API_ERROR(hmmrt_free(handle(), m.get()), HMMRT_ERROR_INVALID_VALUE, "hmmrt_unregister");
  context().unregister_memory(m.get());
  EXPECT_API_ERROR(hmmrt_unregister(handle(), m.get()), HMMRT_ERROR_NOT_MANAGED, hex(m.get()));
  const hmmrt::managed_buffer<char> b(context(), k_page);
  EXPECT_API_ERROR(hmmrt_register(handle(), const_cast<char*>(b.data()), k_page), HMMRT_ERROR_ALREADY_MANAGED,
                   hex(b.data()));
  EXPECT_API_ERROR(hmmrt_unregister(handle(), const_cast<char*>(b.data())), HMMRT_ERROR_INVALID_VALUE, "hmmrt_free");
}

TEST_P(ApiBadInput, foreign_pointers_and_double_free) {
  int local = 0;
  EXPECT_API_ERROR(hmmrt_free(handle(), &local), HMMRT_ERROR_NOT_MANAGED, hex(&local));
  for (const std::size_t bytes : {std::size_t{64}, k_page, 2 * k_block}) {
    char* p = static_cast<char*>(context().allocate(bytes));
    EXPECT_API_ERROR(hmmrt_free(handle(), p + 16), HMMRT_ERROR_INVALID_VALUE, hex(p));
    context().free(p);
    EXPECT_API_ERROR(hmmrt_free(handle(), p), HMMRT_ERROR_NOT_MANAGED, hex(p));
  }
  // Nobody may throw away what was not given to the library, even where any pointer can be used.
  EXPECT_API_ERROR(hmmrt_discard(handle(), &local, 4, nullptr), HMMRT_ERROR_NOT_MANAGED, hex(&local));
  if (any_pointer()) {
    EXPECT_EQ(hmmrt_advise(handle(), &local, 4, HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0), HMMRT_SUCCESS);
    EXPECT_EQ(hmmrt_pin(handle(), &local, 4), HMMRT_SUCCESS);
    EXPECT_EQ(hmmrt_unpin(handle(), &local, 4), HMMRT_SUCCESS);
    EXPECT_API_ERROR(hmmrt_pin(handle(), reinterpret_cast<void*>(k_page), 4), HMMRT_ERROR_NOT_MANAGED, "0x1000");
  } else {
    EXPECT_API_ERROR(hmmrt_advise(handle(), &local, 4, HMMRT_ADVISE_SET_READ_MOSTLY, 0), HMMRT_ERROR_NOT_MANAGED,
                     hex(&local));
    EXPECT_API_ERROR(hmmrt_pin(handle(), &local, 4), HMMRT_ERROR_NOT_MANAGED, hex(&local));
  }
  hmmrt_stats_t stats = hmmrt::empty_stats();
  EXPECT_API_ERROR(hmmrt_stats_range(handle(), &local, &stats), HMMRT_ERROR_NOT_MANAGED, hex(&local));
}

TEST_P(ApiBadInput, two_threads_freeing_one_pointer) {
  for (int i = 0; i < 50; ++i) {
    void* p = context().allocate(i % 2 == 0 ? 100 : k_block);
    std::atomic<int> good{0};
    std::thread other([&] { good += hmmrt_free(handle(), p) == HMMRT_SUCCESS ? 1 : 0; });
    good += hmmrt_free(handle(), p) == HMMRT_SUCCESS ? 1 : 0;
    other.join();
    EXPECT_EQ(good, 1);
  }
}

TEST_P(ApiBadInput, free_and_unregister_during_a_launch_wait) {
  const Mapping m(k_block);
  context().register_memory(m.get(), k_block);
  const hmmrt::stream s(context());
  s.launch("add", k_block / 4, AddOne{hmmrt::gptr<std::uint32_t>(m.words())});
  EXPECT_EQ(hmmrt_unregister(handle(), m.get()), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  s.synchronize();
  EXPECT_EQ(m.words()[k_block / 4 - 1], 1u);
}

TEST_P(ApiBadInput, devices_and_locations_that_do_not_exist) {
  const hmmrt::managed_buffer<char> b(context(), k_page);
  hmmrt_stream_t s = nullptr;
  EXPECT_API_ERROR(hmmrt_stream_create(handle(), 7, &s), HMMRT_ERROR_INVALID_DEVICE, "7");
  for (const hmmrt_location_t bad : {-2, -100, 2, 12345}) {
    EXPECT_API_ERROR(hmmrt_prefetch(handle(), b.data(), 1, bad, nullptr), HMMRT_ERROR_INVALID_DEVICE,
                     std::to_string(bad));
    EXPECT_API_ERROR(hmmrt_advise(handle(), b.data(), 1, HMMRT_ADVISE_SET_PREFERRED_LOCATION, bad),
                     HMMRT_ERROR_INVALID_DEVICE, std::to_string(bad));
  }
  hmmrt_device_info_t info{};
  info.size = sizeof info;
  EXPECT_API_ERROR(hmmrt_device_get_info(handle(), 2, &info), HMMRT_ERROR_INVALID_DEVICE, "2");
  hmmrt_stats_t stats = hmmrt::empty_stats();
  EXPECT_API_ERROR(hmmrt_stats_device(handle(), 9, &stats), HMMRT_ERROR_INVALID_DEVICE, "9");
}

TEST_P(ApiBadInput, stale_and_foreign_handles) {
  hmmrt_stream_t s = nullptr;
  hmmrt::check(hmmrt_stream_create(handle(), 0, &s));
  hmmrt::check(hmmrt_stream_destroy(s));
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s), HMMRT_ERROR_INVALID_HANDLE, "destroyed");
  EXPECT_API_ERROR(hmmrt_stream_destroy(s), HMMRT_ERROR_INVALID_HANDLE, "destroyed");
  int local = 0;
  EXPECT_API_ERROR(hmmrt_stream_query(reinterpret_cast<hmmrt_stream_t>(&local)), HMMRT_ERROR_INVALID_HANDLE,
                   hex(&local));
  const hmmrt::event e(context());
  EXPECT_API_ERROR(hmmrt_stream_query(reinterpret_cast<hmmrt_stream_t>(e.get())), HMMRT_ERROR_INVALID_HANDLE,
                   "event handle");
  hmmrt::context other;
  const hmmrt::stream theirs(other);
  EXPECT_API_ERROR(hmmrt_event_record(e.get(), theirs.get()), HMMRT_ERROR_INVALID_HANDLE, "different contexts");
  const hmmrt::managed_buffer<char> b(context(), k_page);
  EXPECT_API_ERROR(hmmrt_prefetch(handle(), b.data(), 1, 0, theirs.get()), HMMRT_ERROR_INVALID_HANDLE,
                   "another context");
  EXPECT_API_ERROR(hmmrt_free(other.get(), const_cast<char*>(b.data())), HMMRT_ERROR_NOT_MANAGED, hex(b.data()));
}

TEST_P(ApiBadInput, a_destroyed_context_and_all_that_was_its) {
  hmmrt_context_t c = nullptr;
  hmmrt_stream_t s = nullptr;
  hmmrt_event_t e = nullptr;
  hmmrt::check(hmmrt_context_create(nullptr, &c));
  hmmrt::check(hmmrt_stream_create(c, 0, &s));
  hmmrt::check(hmmrt_event_create(c, &e));
  hmmrt::check(hmmrt_context_destroy(c));
  EXPECT_API_ERROR(hmmrt_context_destroy(c), HMMRT_ERROR_INVALID_HANDLE, "destroyed");
  EXPECT_API_ERROR(hmmrt_alloc(c, 1, &p_), HMMRT_ERROR_INVALID_HANDLE, "destroyed");
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s), HMMRT_ERROR_INVALID_HANDLE, "destroyed");
  EXPECT_API_ERROR(hmmrt_event_query(e), HMMRT_ERROR_INVALID_HANDLE, "destroyed");
}

TEST_P(ApiBadInput, destroying_a_context_that_others_use) {
  for (int i = 0; i < 5; ++i) {
    hmmrt_context_t c = nullptr;
    hmmrt::check(hmmrt_context_create(nullptr, &c));
    std::atomic<bool> started{false};
    std::thread user([&] {
      for (;;) {
        void* p = nullptr;
        const hmmrt_result_t r = hmmrt_alloc(c, 100, &p);
        started = true;
        if (r != HMMRT_SUCCESS) {
          EXPECT_EQ(r, HMMRT_ERROR_INVALID_HANDLE);
          return;
        }
      }
    });
    while (!started) std::this_thread::yield();
    EXPECT_EQ(hmmrt_context_destroy(c), HMMRT_SUCCESS);
    user.join();
  }
}

TEST_P(ApiBadInput, destroying_a_context_while_others_launch_on_its_stream) {
  for (int i = 0; i < 5; ++i) {
    hmmrt_context_t c = nullptr;
    hmmrt_stream_t s = nullptr;
    hmmrt::check(hmmrt_context_create(nullptr, &c));
    hmmrt::check(hmmrt_stream_create(c, 0, &s));
    hmmrt::check(hmmrt_alloc(c, k_block, &p_));
    std::atomic<int> started{0};
    const auto use = [&](const auto& call) {
      hmmrt_result_t r = HMMRT_SUCCESS;
      while (r == HMMRT_SUCCESS) {
        r = call();
        ++started;
      }
      EXPECT_API_ERROR(r, HMMRT_ERROR_INVALID_HANDLE, "destroyed");
    };
    std::thread launcher([&] {
      use([&] { return hmmrt::launch(s, "add", {1024, 1, 1}, AddOne{static_cast<std::uint32_t*>(p_)}); });
    });
    std::thread waiter([&] { use([&] { return hmmrt_stream_synchronize(s); }); });
    while (started < 10) std::this_thread::yield();
    EXPECT_EQ(hmmrt_context_destroy(c), HMMRT_SUCCESS);
    launcher.join();
    waiter.join();
  }
}

TEST_P(ApiBadInput, memory_of_another_context) {
  if (any_pointer()) GTEST_SKIP() << "contexts may share memory that nobody has to register";
  const hmmrt::context other(options_of(GetParam()));
  const Mapping m(4 * k_page);
  context().register_memory(m.get(), 2 * k_page);
  EXPECT_API_ERROR(hmmrt_register(other.get(), m.get() + k_page, 2 * k_page), HMMRT_ERROR_ALREADY_MANAGED,
                   hex(handle()));
  const hmmrt::managed_buffer<char> b(context(), k_page);
  EXPECT_API_ERROR(hmmrt_register(other.get(), const_cast<char*>(b.data()), k_page), HMMRT_ERROR_ALREADY_MANAGED,
                   "another context");
  context().unregister_memory(m.get());
  EXPECT_EQ(hmmrt_register(other.get(), m.get(), 2 * k_page), HMMRT_SUCCESS) << hmmrt_last_error_detail();
}

struct Throw {
  HMMRT_KERNEL void operator()(const hmmrt::item&) const {
#ifndef COMPILING_FOR_GPU
    throw std::runtime_error("mine");
#endif
  }
};

TEST_P(ApiBadInput, exceptions_out_of_kernels_and_host_functions) {
  NEEDS_FAULTS("a kernel cannot throw");
  const hmmrt::stream s(context());
  s.launch("thrower", 100, Throw{});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_EXCEPTION,
                   "kernel 'thrower': the kernel threw an exception: mine");
  s.host_function([](void*) { throw std::runtime_error("mine too"); }, nullptr);
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_EXCEPTION, "mine too");
  s.host_function([](void*) { throw 1; }, nullptr);
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_EXCEPTION, "host function");
  s.synchronize();
}

struct Read {
  hmmrt::gptr<std::uint32_t> p, out;
  HMMRT_KERNEL void operator()(const hmmrt::item&) const { *out = p[std::ptrdiff_t{1} << 40].load(); }
};

TEST_P(ApiBadInput, a_kernel_that_reads_out_of_bounds) {
  NEEDS_FAULTS("nobody sees a wrong address");
  hmmrt::managed_buffer<std::uint32_t> b(context(), k_block / 4);
  const hmmrt::stream s(context());
  s.launch("far_read", 1, Read{b.gpu(), b.gpu()});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ILLEGAL_ADDRESS, "kernel 'far_read': read of 0x");
  s.launch("add", 1, AddOne{b.gpu()});
  s.synchronize();
  EXPECT_EQ(b[0], 1u);
}

TEST_P(ApiBadInput, a_full_device_where_everything_is_pinned_and_nothing_can_be_remote) {
  NOT_DRIVEN("what is pinned is used where it is, whatever the books allow");
  open({{"remote_mapping", "off"}, {"access_counters", "off"}});
  hmmrt::managed_buffer<std::uint32_t> b(context(), 1024);
  context().pin(b.data(), b.bytes());
  const hmmrt::stream s(context());
  s.launch("pinned_out", b.size(), AddOne{b.gpu()});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_PINNED, "pinned_out");
  context().unpin(b.data(), b.bytes());
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  EXPECT_EQ(b[9], 1u);
}

TEST_P(ApiBadInput, launches_that_make_no_sense) {
  const hmmrt::stream s(context());
  hmmrt_kernel_t k{};
  k.size = sizeof k;
  k.name = "empty";
  k.run = [](const void*, const hmmrt_grid_t*, std::uint64_t, std::uint64_t) {};
  EXPECT_API_ERROR(hmmrt_launch(s.get(), &k, {0, 1, 1}), HMMRT_ERROR_INVALID_VALUE, "0 x 1 x 1");
  EXPECT_API_ERROR(hmmrt_launch(s.get(), &k, {std::uint64_t{1} << 40, 1 << 20, 8}), HMMRT_ERROR_INVALID_VALUE,
                   "63 bits");
  k.functor = &k;
  k.functor_bytes = 4097;
  EXPECT_API_ERROR(hmmrt_launch(s.get(), &k, {1, 1, 1}), HMMRT_ERROR_INVALID_VALUE, "4097");
  k.functor = nullptr;
  EXPECT_API_ERROR(hmmrt_launch(s.get(), &k, {1, 1, 1}), HMMRT_ERROR_INVALID_VALUE, "4097");
  k.functor_bytes = 0;
  k.run = nullptr;
  EXPECT_API_ERROR(hmmrt_launch(s.get(), &k, {1, 1, 1}), HMMRT_ERROR_INVALID_VALUE, "run is null");
  k.size = 3;
  EXPECT_API_ERROR(hmmrt_launch(s.get(), &k, {1, 1, 1}), HMMRT_ERROR_INVALID_VALUE, "size member is 3");
}

TEST_P(ApiBadInput, options_that_do_not_exist_or_are_out_of_range) {
  const auto create = [](const char* name, const char* value) {
    const hmmrt_option_t option = {name, value};
    hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
    desc.options = &option;
    desc.option_count = 1;
    hmmrt_context_t c = nullptr;
    const hmmrt_result_t r = hmmrt_context_create(&desc, &c);
    EXPECT_EQ(c, nullptr);
    return r;
  };
  EXPECT_API_ERROR(create("policy", "magic"), HMMRT_ERROR_INVALID_OPTION, "magic");
  EXPECT_API_ERROR(create("devices", "99"), HMMRT_ERROR_INVALID_OPTION, "1..8");
  EXPECT_API_ERROR(create("device_memory", "1"), HMMRT_ERROR_INVALID_OPTION, "device_memory");
  EXPECT_API_ERROR(create("polizy", "uvm"), HMMRT_ERROR_INVALID_OPTION, "did you mean 'policy'");
  EXPECT_API_ERROR(create(nullptr, "uvm"), HMMRT_ERROR_INVALID_VALUE, "option 0");
  EXPECT_API_ERROR(create("policy", nullptr), HMMRT_ERROR_INVALID_VALUE, "option 0");
  ASSERT_EQ(setenv("HMMRT_POLICI", "uvm", 1), 0);
  hmmrt_context_t c = nullptr;
  EXPECT_API_ERROR(hmmrt_context_create(nullptr, &c), HMMRT_ERROR_INVALID_OPTION, "HMMRT_POLICY");
  unsetenv("HMMRT_POLICI");
  const char* value = nullptr;
  EXPECT_API_ERROR(hmmrt_option_get(handle(), "devicess", &value), HMMRT_ERROR_INVALID_OPTION, "devices");
  hmmrt::check(hmmrt_option_get(handle(), "devices", &value));
  EXPECT_STREQ(value, "2");
}

TEST_P(ApiBadInput, attributes_and_batches_that_make_no_sense) {
  const hmmrt::managed_buffer<char> b(context(), k_page);
  std::int32_t v[2] = {};
  EXPECT_API_ERROR(hmmrt_range_get_attribute(handle(), v, 8, HMMRT_RANGE_READ_MOSTLY, b.data(), 1),
                   HMMRT_ERROR_INVALID_VALUE, "8");
  EXPECT_API_ERROR(hmmrt_range_get_attribute(handle(), v, 6, HMMRT_RANGE_ACCESSED_BY, b.data(), 1),
                   HMMRT_ERROR_INVALID_VALUE, "6");
  EXPECT_API_ERROR(hmmrt_range_get_attribute(handle(), v, 4, static_cast<hmmrt_range_attribute_t>(55), b.data(), 1),
                   HMMRT_ERROR_INVALID_VALUE, "55");
  EXPECT_API_ERROR(hmmrt_advise(handle(), b.data(), 1, static_cast<hmmrt_advice_t>(100), 0), HMMRT_ERROR_INVALID_VALUE,
                   "100");
  const void* ptrs[] = {b.data(), b.data()};
  const std::size_t bytes[] = {1, 1};
  const hmmrt_location_t to[] = {0, -1};
  const std::size_t late[] = {1, 2}, same[] = {0, 0}, beyond[] = {0, 2};
  EXPECT_API_ERROR(hmmrt_prefetch_batch(handle(), ptrs, bytes, 2, to, late, 2, nullptr), HMMRT_ERROR_INVALID_VALUE,
                   "location_index[0]");
  EXPECT_API_ERROR(hmmrt_prefetch_batch(handle(), ptrs, bytes, 2, to, same, 2, nullptr), HMMRT_ERROR_INVALID_VALUE,
                   "location_index[1]");
  EXPECT_API_ERROR(hmmrt_prefetch_batch(handle(), ptrs, bytes, 2, to, beyond, 2, nullptr), HMMRT_ERROR_INVALID_VALUE,
                   "2 ranges");
  EXPECT_API_ERROR(hmmrt_prefetch_batch(handle(), ptrs, bytes, 0, to, same, 1, nullptr), HMMRT_ERROR_INVALID_VALUE,
                   "count");
  EXPECT_API_ERROR(hmmrt_unpin(handle(), const_cast<char*>(b.data()), 1), HMMRT_ERROR_INVALID_VALUE, "pinned");
}

TEST_P(ApiBadInput, structs_of_other_versions) {
  hmmrt_stats_t stats{};
  EXPECT_API_ERROR(hmmrt_stats_context(handle(), &stats), HMMRT_ERROR_INVALID_VALUE, "size member is 0");
  stats.size = offsetof(hmmrt_stats_t, device_faults);  // an older program
  stats.device_faults = 77;
  EXPECT_EQ(hmmrt_stats_context(handle(), &stats), HMMRT_SUCCESS);
  EXPECT_EQ(stats.device_faults, 77u);
  struct {
    hmmrt_context_desc_t desc;
    std::uint64_t newer;
  } desc = {HMMRT_CONTEXT_DESC_INIT, 1};
  desc.desc.size = sizeof desc;
  hmmrt_context_t c = nullptr;
  EXPECT_API_ERROR(hmmrt_context_create(&desc.desc, &c), HMMRT_ERROR_INVALID_VALUE, std::to_string(sizeof desc));
  desc.newer = 0;
  EXPECT_EQ(hmmrt_context_create(&desc.desc, &c), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  EXPECT_EQ(hmmrt_context_destroy(c), HMMRT_SUCCESS);
}

}  // namespace
