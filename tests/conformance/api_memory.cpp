// SPDX-License-Identifier: MIT
// Managed memory as the API promises it: allocation, registration, prefetch, advice, discard, pins, attributes.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <list>
#include <memory_resource>
#include <thread>
#include <vector>

#include "conformance/api_environment.hpp"

namespace {

using namespace api_test;  // NOLINT(google-build-using-namespace)

using ApiMemory = ApiTest;
API_SUITE(ApiMemory);

TEST_P(ApiMemory, allocations_are_aligned_zero_and_reusable) {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{300}, k_page, 3 * k_page + 1, k_block, 5 * k_block + 7}) {
    for (int round = 0; round < 2; ++round) {
      auto* p = static_cast<unsigned char*>(context().allocate(bytes));
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % (bytes >= k_block ? k_block : 256), 0u);
      EXPECT_TRUE(std::all_of(p, p + bytes, [](unsigned char c) { return c == 0; })) << bytes << ", round " << round;
      std::memset(p, 0x5a, bytes);
      if (round == 0) context().prefetch(p, bytes, 0);  // freed on the device, the second time on the CPU
      context().free(p);
    }
  }
}

TEST_P(ApiMemory, contents_written_on_a_device_do_not_survive_free) {
  for (int round = 0; round < 3; ++round) {
    hmmrt::managed_buffer<std::uint32_t> b(context(), k_block / 4);
    EXPECT_EQ(std::count(b.begin(), b.end(), 0u), static_cast<std::ptrdiff_t>(b.size()));
    const hmmrt::stream s(context());
    s.launch("fill", b.size(), Fill{b.gpu(), 1});
    s.synchronize();
  }
}

TEST_P(ApiMemory, standard_containers_live_in_managed_memory) {
  hmmrt::memory_resource resource(context());
  std::pmr::list<std::uint32_t> list(&resource);
  for (std::uint32_t i = 0; i < 2000; ++i) list.push_back(i);
  std::uint64_t sum = 0;
  for (const std::uint32_t v : list) sum += v;
  EXPECT_EQ(sum, 1999u * 2000u / 2);
  std::vector<double, hmmrt::managed_allocator<double>> v(100'000, 1.5, hmmrt::managed_allocator<double>(context()));
  EXPECT_EQ(std::count(v.begin(), v.end(), 1.5), 100'000);
}

TEST_P(ApiMemory, prefetch_moves_both_ways_and_residency_says_so) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), 3 * k_block / 4 + 1000);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::uint32_t>(i * 7);
  EXPECT_EQ(b.residency(), HMMRT_CPU);
  for (unsigned d = 0; d <= last_device(); ++d) {
    b.prefetch(static_cast<hmmrt::location>(d));
    EXPECT_EQ(b.residency(), static_cast<hmmrt::location>(d));
  }
  std::int32_t last = 77;
  hmmrt::check(hmmrt_range_get_attribute(handle(), &last, 4, HMMRT_RANGE_LAST_PREFETCH_LOCATION, b.data(), b.bytes()));
  EXPECT_EQ(last, static_cast<std::int32_t>(last_device()));
  b.prefetch(HMMRT_CPU);
  EXPECT_EQ(b.residency(), HMMRT_CPU);
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], static_cast<std::uint32_t>(i * 7));
  const hmmrt_stats_t stats = context().stats();
  EXPECT_EQ(stats.hints_without_effect, 0u);
  EXPECT_GE(hmmrt::bytes_to_device(stats), b.bytes() - k_page);
}

TEST_P(ApiMemory, part_of_a_range_prefetched_is_mixed_residency) {
  hmmrt::managed_buffer<char> b(context(), 8 * k_page);
  std::memset(b.data(), 1, b.bytes());
  context().prefetch(b.data() + k_page + 5, 1, 0);  // rounded outwards
  EXPECT_EQ(context().residency(b.data() + k_page, k_page), 0);
  EXPECT_EQ(context().residency(b.data(), k_page), HMMRT_CPU);
  EXPECT_EQ(context().residency(b.data() + 2 * k_page, k_page), HMMRT_CPU);
  EXPECT_EQ(b.residency(), HMMRT_INVALID_LOCATION);
}

TEST_P(ApiMemory, a_block_on_several_devices_comes_home_whole) {
  if (last_device() == 0) GTEST_SKIP() << "one device";
  hmmrt::managed_buffer<std::uint32_t> b(context(), k_block / 4);
  const auto scatter = [&] {
    context().prefetch(b.data(), k_block / 2, 0);
    context().prefetch(b.data() + b.size() / 2, k_block / 2, 1);
  };
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::uint32_t>(i);
  scatter();
  b.prefetch(HMMRT_CPU);
  EXPECT_EQ(b.residency(), HMMRT_CPU);
  scatter();
  EXPECT_EQ(hmmrt_pin(handle(), b.data(), b.bytes()), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  EXPECT_EQ(b.residency(), HMMRT_CPU);
  context().unpin(b.data(), b.bytes());
  scatter();
  b.prefetch(1);
  EXPECT_EQ(b.residency(), 1);
  EXPECT_EQ(context().stats().hints_without_effect, 0u);
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], static_cast<std::uint32_t>(i));
}

TEST(ApiMemoryOfThree, a_block_on_two_devices_goes_to_a_third_whole) {
  hmmrt::context c({{"devices", "3"}, {"device_memory", "16M"}, {"log_level", "off"}});
  hmmrt::managed_buffer<std::uint32_t> b(c, k_block / 4);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::uint32_t>(i);
  c.prefetch(b.data(), k_block / 2, 0);
  c.prefetch(b.data() + b.size() / 2, k_block / 2, 1);
  b.prefetch(2);
  EXPECT_EQ(b.residency(), 2);
  EXPECT_EQ(c.stats().hints_without_effect, 0u);
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], static_cast<std::uint32_t>(i));
}

TEST_P(ApiMemory, batch_prefetch_sends_each_range_to_its_location) {
  hmmrt::managed_buffer<char> a(context(), k_block), b(context(), k_block), c(context(), k_block);
  for (auto* x : {&a, &b, &c}) std::memset(x->data(), 1, k_block);
  const void* ptrs[] = {a.data(), b.data(), c.data()};
  const std::size_t bytes[] = {k_block, k_block, k_block};
  const hmmrt_location_t locations[] = {static_cast<hmmrt_location_t>(last_device()), HMMRT_CPU};
  const std::size_t index[] = {0, 2};
  hmmrt::check(hmmrt_prefetch_batch(handle(), ptrs, bytes, 3, locations, index, 2, nullptr));
  EXPECT_EQ(a.residency(), static_cast<hmmrt::location>(last_device()));
  EXPECT_EQ(b.residency(), static_cast<hmmrt::location>(last_device()));
  EXPECT_EQ(c.residency(), HMMRT_CPU);
}

TEST_P(ApiMemory, stream_ordered_prefetch_happens_in_order) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), k_block / 4);
  const hmmrt::stream s(context());
  s.launch("fill", b.size(), Fill{b.gpu(), 5});
  b.prefetch(HMMRT_CPU, s);
  s.launch("add", 1, AddOne{b.gpu()});
  s.synchronize();
  EXPECT_EQ(b[0], 6u);
  EXPECT_EQ(b[b.size() - 1], 5u + b.size() - 1);
  EXPECT_GE(context().stats().hints, 1u);
}

TEST_P(ApiMemory, advice_is_remembered_page_by_page) {
  hmmrt::managed_buffer<char> b(context(), 4 * k_page);
  const auto get = [&](hmmrt_range_attribute_t a, std::size_t bytes) {
    std::int32_t v = 99;
    hmmrt::check(hmmrt_range_get_attribute(handle(), &v, 4, a, b.data(), bytes));
    return v;
  };
  EXPECT_EQ(get(HMMRT_RANGE_READ_MOSTLY, b.bytes()), 0);
  EXPECT_EQ(get(HMMRT_RANGE_PREFERRED_LOCATION, b.bytes()), -2);
  EXPECT_EQ(get(HMMRT_RANGE_LAST_PREFETCH_LOCATION, b.bytes()), -2);
  b.advise(HMMRT_ADVISE_SET_READ_MOSTLY);
  EXPECT_EQ(get(HMMRT_RANGE_READ_MOSTLY, b.bytes()), 1);
  context().advise(b.data(), 1, HMMRT_ADVISE_UNSET_READ_MOSTLY);
  EXPECT_EQ(get(HMMRT_RANGE_READ_MOSTLY, b.bytes()), 0);
  context().advise(b.data(), k_page, HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
  EXPECT_EQ(get(HMMRT_RANGE_PREFERRED_LOCATION, k_page), 0);
  EXPECT_EQ(get(HMMRT_RANGE_PREFERRED_LOCATION, b.bytes()), -2);
  context().advise(b.data(), k_page, HMMRT_ADVISE_UNSET_PREFERRED_LOCATION, 12345);  // location ignored
  EXPECT_EQ(get(HMMRT_RANGE_PREFERRED_LOCATION, k_page), -2);
  b.advise(HMMRT_ADVISE_SET_ACCESSED_BY, 0);
  b.advise(HMMRT_ADVISE_SET_ACCESSED_BY, HMMRT_CPU);
  std::int32_t list[4] = {};
  hmmrt::check(hmmrt_range_get_attribute(handle(), list, sizeof list, HMMRT_RANGE_ACCESSED_BY, b.data(), b.bytes()));
  EXPECT_EQ(std::vector<int>(list, list + 4), (std::vector<int>{-1, 0, -2, -2}));
  b.advise(HMMRT_ADVISE_UNSET_ACCESSED_BY, HMMRT_CPU);
  hmmrt::check(hmmrt_range_get_attribute(handle(), list, 4, HMMRT_RANGE_ACCESSED_BY, b.data(), b.bytes()));
  EXPECT_EQ(list[0], 0);
}

TEST_P(ApiMemory, a_hint_that_changes_nothing_is_counted) {
  hmmrt::managed_buffer<char> b(context(), k_page);
  b.advise(HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
  EXPECT_EQ(context().stats().hints_without_effect, 0u);
  b.advise(HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
  const hmmrt_stats_t s = context().stats();
  EXPECT_EQ(s.hints, 2u);
  EXPECT_EQ(s.hints_without_effect, 1u);
  EXPECT_EQ(b.stats().hints_without_effect, 1u);
}

struct Copy {
  hmmrt::gptr<const std::uint32_t> from;
  hmmrt::gptr<std::uint32_t> to;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto k = static_cast<std::ptrdiff_t>(i.x);
    to[k] = from[k * 128].load();
  }
};

TEST_P(ApiMemory, read_mostly_data_is_read_by_all_and_a_write_is_seen_by_all) {
  hmmrt::managed_buffer<std::uint32_t> in(context(), k_block / 4), out(context(), 4096);
  for (auto& v : in) v = 3;
  in.advise(HMMRT_ADVISE_SET_READ_MOSTLY);
  for (std::uint32_t round = 0; round < 3; ++round) {
    for (unsigned d = 0; d <= last_device(); ++d) {
      const hmmrt::stream s(context(), d);
      s.launch("copy", out.size(), Copy{hmmrt::gptr<const std::uint32_t>(in.data()), out.gpu()});
      s.synchronize();
      EXPECT_EQ(std::count(out.begin(), out.end(), 3u + round), 4096) << "device " << d;
    }
    for (auto& v : in) v = 4 + round;
  }
}

TEST_P(ApiMemory, discarded_pages_read_as_zero_and_their_neighbours_stay) {
  hmmrt::managed_buffer<char> b(context(), 16 * k_page);
  for (const hmmrt::location where : {HMMRT_CPU, hmmrt::location{0}}) {
    std::memset(b.data(), 7, b.bytes());
    b.prefetch(where);
    context().discard(b.data() + k_page / 2, 4 * k_page);
    for (std::size_t page = 0; page < 16; ++page) {
      const bool gone = page >= 1 && page <= 3;
      EXPECT_EQ(b[page * k_page], gone ? 0 : 7) << page;
      EXPECT_EQ(b[page * k_page + k_page - 1], gone ? 0 : 7) << page;
    }
  }
  const hmmrt::stream s(context());
  context().discard(b.data(), b.bytes(), s.get());
  s.synchronize();
  EXPECT_EQ(std::count(b.begin(), b.end(), 0), static_cast<std::ptrdiff_t>(b.size()));
}

TEST_P(ApiMemory, registered_memory_is_shared_and_comes_home) {
  const std::size_t n = 3 * k_block / 4;
  const Mapping m(n * 4);
  for (std::size_t i = 0; i < n; ++i) m.words()[i] = static_cast<std::uint32_t>(i);
  context().register_memory(m.get(), n * 4);
  const hmmrt::stream s(context(), last_device());
  s.launch("add", n, AddOne{hmmrt::gptr<std::uint32_t>(m.words())});
  context().unregister_memory(m.get());  // waits for the kernel
  for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(m.words()[i], i + 1);
  const hmmrt_result_t unregistered = any_pointer() ? HMMRT_SUCCESS : HMMRT_ERROR_NOT_MANAGED;
  EXPECT_EQ(hmmrt_prefetch(handle(), m.get(), 1, 0, nullptr), unregistered);
  context().register_memory(m.get(), n * 4);  // and again
  context().prefetch(m.get(), n * 4, 0);
  context_.reset();  // destroying the context brings it home, too
  for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(m.words()[i], i + 1);
}

// Each is found by the addresses of the block, also while it ends.
TEST_P(ApiMemory, a_registration_comes_and_goes_beside_another_of_its_block) {
  constexpr std::size_t k_half = k_block / 2;
  const Mapping m(2 * k_block);
  char* const block = m.get() + (k_block - reinterpret_cast<std::uintptr_t>(m.get()) % k_block) % k_block;
  std::memset(block, 7, k_half);
  auto* const words = reinterpret_cast<std::uint32_t*>(block + k_half);
  context().register_memory(words, k_half);
  std::atomic<bool> stop{false};
  std::thread neighbour([&] {
    while (!stop) {
      context().register_memory(block, k_half);
      hmmrt_result_t result = HMMRT_ERROR_BUSY;
      while (result == HMMRT_ERROR_BUSY) result = hmmrt_unregister(handle(), block);
      ASSERT_EQ(result, HMMRT_SUCCESS) << hmmrt_last_error_detail();
    }
  });
  const hmmrt::stream s(context(), last_device());
  constexpr std::uint32_t k_rounds = 10;
  for (std::uint32_t round = 1; round <= k_rounds; ++round) {
    s.launch("add", k_half / 4, AddOne{hmmrt::gptr<std::uint32_t>(words)});
    s.synchronize();
    for (std::size_t i = 0; i < k_half / 4; i += 1023) ASSERT_EQ(words[i], round);
  }
  stop = true;
  neighbour.join();
  EXPECT_EQ(std::count(block, block + k_half, 7), static_cast<std::ptrdiff_t>(k_half));
  context().unregister_memory(words);
}

TEST_P(ApiMemory, pinned_pages_stay_home_until_the_last_unpin) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), k_block / 4);
  for (auto& v : b) v = 1;
  b.prefetch(0);
  context().pin(b.data(), b.bytes());
  context().pin(b.data(), b.bytes());
  EXPECT_EQ(b.residency(), HMMRT_CPU);
  b.prefetch(0);
  EXPECT_EQ(b.residency(), HMMRT_CPU);
  EXPECT_GE(context().stats().hints_without_effect, 1u);
  const hmmrt::stream s(context());
  s.launch("add", b.size(), AddOne{b.gpu()});  // reaches them remotely
  s.synchronize();
  EXPECT_EQ(b.residency(), HMMRT_CPU);
  EXPECT_EQ(std::count(b.begin(), b.end(), 2u), static_cast<std::ptrdiff_t>(b.size()));
  context().unpin(b.data(), b.bytes());
  EXPECT_API_ERROR(hmmrt_free(handle(), b.data()), HMMRT_ERROR_PINNED, "pinned");
  context().unpin(b.data(), b.bytes());
  EXPECT_EQ(hmmrt_unpin(handle(), b.data(), b.bytes()), HMMRT_ERROR_INVALID_VALUE);
  b.prefetch(0);
  EXPECT_EQ(b.residency(), 0);
}

TEST_P(ApiMemory, statistics_agree_with_each_other) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), 2 * k_block / 4);
  for (auto& v : b) v = 1;
  const hmmrt::stream s(context());
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  // A fault that was served already may still be on its way into the counters: sample until nothing moves.
  hmmrt_stats_t all{}, device{}, range{};
  do {
    all = context().stats();
    device = context().device_stats(0);
    range = b.stats();
  } while (context().stats().device_faults != all.device_faults);
  EXPECT_EQ(all.device_faults > 0, faults() || driven());
  EXPECT_EQ(all.device_faults, device.device_faults);
  EXPECT_EQ(all.device_faults, range.device_faults);
  EXPECT_EQ(hmmrt::bytes_to_device(all), hmmrt::bytes_to_device(device));
  EXPECT_EQ(hmmrt::bytes_to_device(all), hmmrt::bytes_to_device(range));
  EXPECT_EQ(hmmrt::bytes_to_device(all), b.bytes());
  EXPECT_EQ(range.bytes_managed, b.bytes());
  EXPECT_EQ(range.bytes_resident_device, b.bytes());
  EXPECT_EQ(all.bytes_resident_device, b.bytes());
  EXPECT_GT(all.bytes_metadata, 0u);
  EXPECT_EQ(all.device_fault_latency.count > 0, faults() || driven());
  EXPECT_LE(all.device_fault_latency.p50_ns, all.device_fault_latency.p99_ns);
  EXPECT_LE(all.device_fault_latency.p99_ns, all.device_fault_latency.max_ns);
  EXPECT_EQ(all.batch_size.count, all.fault_batches);
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < b.size(); i += 1000) sum += b[i];
  EXPECT_EQ(sum, 2 * ((b.size() + 999) / 1000));
  EXPECT_GT(context().stats().cpu_faults, 0u);
  context().reset_stats();
  const hmmrt_stats_t zero = context().stats();
  EXPECT_EQ(zero.device_faults + zero.cpu_faults + zero.fault_batches + hmmrt::bytes_to_device(zero), 0u);
  EXPECT_EQ(zero.cpu_fault_latency.count, 0u);
  EXPECT_EQ(zero.bytes_managed, all.bytes_managed);
}

struct Page {
  hmmrt::gptr<std::uint32_t> p;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    p[static_cast<std::ptrdiff_t>(i.x * 1024)] += static_cast<std::uint32_t>(i.x);
  }
};

TEST_P(ApiMemory, twice_the_device_memory_computes_right) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), (std::size_t{128} << 20) / 4);
  const hmmrt::stream s(context());
  for (int round = 0; round < 2; ++round) s.launch("page", b.size() / 1024, Page{b.gpu()});
  s.synchronize();
  for (std::size_t i = 0; i < b.size() / 1024; ++i) ASSERT_EQ(b[i * 1024], 2 * i);
  if (driven()) return;  // how much of its memory is used is the driver's business
  // A launch that may touch more than the device holds uses it where it is.
  EXPECT_GT(faults() ? context().stats().evictions : context().stats().pages_mapped_remote, 0u);
}

}  // namespace
