// SPDX-License-Identifier: MIT
// Faults, replay, overflow, remote mappings and access counters.
#include <set>

#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

struct Increment {
  gptr<std::uint64_t> p;
  std::uint64_t stride;  // in elements, between waves
  void operator()(const item& i) const { p[static_cast<std::ptrdiff_t>(i.x / 64 * stride + i.x % 64)] += 1; }
};

// Takes faults until `want` are there. No service runs.
std::vector<DeviceFault> fetch(Rig& rig, std::size_t want) {
  std::vector<DeviceFault> all(want + 64);
  std::size_t n = 0;
  while (n < want) {
    const std::uint32_t seen = rig.bell.seen();
    const std::size_t got = rig.device.fetch_faults(std::span(all).subspan(n));
    n += got;
    if (got == 0 && n < want) rig.bell.wait(seen);
  }
  all.resize(n);
  return all;
}

TEST(SoftFault, hundreds_of_waves_stall_at_once) {
  SoftDeviceConfig c = Rig::small();
  c.waves_per_unit = 128;
  Rig rig(c);
  Region region(2);
  ASSERT_TRUE(launch(rig.device, rig.queue, {64 * 256, 1, 1}, Increment{region.at<std::uint64_t>(), 512}).ok());
  const auto faults = fetch(rig, 256);
  EXPECT_EQ(faults.size(), 256u);
  std::set<std::uintptr_t> pages;
  for (const DeviceFault& f : faults) {
    pages.insert(page_floor(f.addr));
    EXPECT_EQ(f.launch, 1u);
    EXPECT_EQ(f.addr, region.address(f.wave));
    EXPECT_GT(f.time_ns, 0u);
  }
  EXPECT_EQ(pages.size(), 256u);
  // A page replayed without a mapping faults again.
  rig.device.replay(region.base(), PageMask::one(7));
  const auto again = fetch(rig, 1);
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].addr, region.address(7));
  Service service(rig.device, rig.bell, region);
  for (const DeviceFault& f : faults) service.serve(f);
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  service.bring_home();
  for (unsigned p = 0; p < 256; ++p) EXPECT_EQ(region.contents<std::uint64_t>(p * k_page_size)[63], 1u);
}

TEST(SoftFault, waves_that_miss_the_same_page_each_report_it) {
  Rig rig;
  Region region(1);
  struct Read {
    gptr<int> p;
    void operator()(const item&) const { (void)p[0].load(); }
  };
  ASSERT_TRUE(launch(rig.device, rig.queue, {64 * 64, 1, 1}, Read{region.at<int>()}).ok());
  const auto faults = fetch(rig, 64);
  EXPECT_EQ(faults.size(), 64u);
  EXPECT_EQ(rig.device.stalled_waves(), 64u);
  const Frame frame = allocate_one(rig.device);
  map_one(rig.device, region.base(), frames_span(0, 1, frame, Rights::read));
  rig.device.replay(region.base(), PageMask::one(0));
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  EXPECT_EQ(rig.device.stalled_waves(), 0u);
}

TEST(SoftFault, a_full_buffer_drops_faults_and_replay_all_brings_them_back) {
  SoftDeviceConfig c = Rig::small();
  c.fault_buffer_entries = 8;
  Rig rig(c);
  Region region(2);
  ASSERT_TRUE(launch(rig.device, rig.queue, {64 * 256, 1, 1}, Increment{region.at<std::uint64_t>(), 512}).ok());
  while (rig.device.stalled_waves() < 64) std::this_thread::yield();
  EXPECT_GT(rig.device.fault_overflows(), 0u);
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  service.bring_home();
  for (unsigned p = 0; p < 256; ++p) ASSERT_EQ(region.contents<std::uint64_t>(p * k_page_size)[5], 1u);
}

TEST(SoftFault, injected_drops_lose_no_access) {
  SoftDeviceConfig c = Rig::small();
  c.inject.fault_dropped.probability = 0.5;
  Rig rig(c);
  Region region(1);
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.run({64 * 512, 1, 1}, Increment{region.at<std::uint64_t>(), 512}).result, HMMRT_SUCCESS);
  EXPECT_GT(rig.device.fault_overflows(), 0u);
  service.bring_home();
  for (unsigned p = 0; p < 512; ++p) ASSERT_EQ(region.contents<std::uint64_t>(p * k_page_size)[5], 1u);
}

// A service that maps host memory in place.
Service::OnFault remote(Rig& rig, Region& region) {
  return [&](const DeviceFault& f) {
    if (!region.contains(f.addr)) return false;
    map_one(rig.device, f.addr,
            host_span(page_in_block(f.addr), 1, region.contents(std::size_t{region.page(f.addr)} * k_page_size),
                      Rights::write));
    return true;
  };
}

TEST(SoftFault, remote_mappings_work_in_place_and_are_counted) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region, remote(rig, region));
  EXPECT_EQ(rig.run({64 * 16, 1, 1}, Increment{region.at<std::uint64_t>(), 64}).result, HMMRT_SUCCESS);
  service.stop();
  for (unsigned i = 0; i < 64 * 16; ++i) ASSERT_EQ(region.contents<std::uint64_t>()[i], 1u);
  EXPECT_EQ(rig.device.remote_accesses(), 2u * 64 * 16);
  AccessCount counts[16];
  std::uint64_t reported = 0;
  const std::size_t n = rig.device.fetch_access_counts(counts);
  for (std::size_t i = 0; i < n; ++i) {
    EXPECT_EQ(counts[i].base, region.base());
    EXPECT_EQ(counts[i].resident, k_cpu);
    reported += counts[i].count;
  }
  EXPECT_GE(n, 1u);
  EXPECT_LE(reported, rig.device.remote_accesses());
  EXPECT_GT(reported + 256, rig.device.remote_accesses());
}

struct SystemAdd {
  gptr<std::uint32_t> p;
  void operator()(const item&) const { atomic_fetch_add(p, 1u, scope::system); }
};

TEST(SoftFault, system_atomics_on_host_memory_fault_where_the_device_cannot_do_them) {
  SoftDeviceConfig c = Rig::small();
  c.system_atomics = false;
  Rig rig(c);
  Region region(1);
  map_one(rig.device, region.base(), host_span(0, 1, region.contents(), Rights::write));
  struct DeviceAdd {
    gptr<std::uint32_t> p;
    void operator()(const item&) const { atomic_fetch_add(p, 1u); }
  };
  EXPECT_EQ(rig.run({1, 1, 1}, DeviceAdd{region.at<std::uint32_t>()}).result, HMMRT_SUCCESS);
  ASSERT_TRUE(launch(rig.device, rig.queue, {64, 1, 1}, SystemAdd{region.at<std::uint32_t>()}).ok());
  const auto faults = fetch(rig, 1);
  EXPECT_EQ(faults[0].access, Access::atomic);
  rig.device.unmap(region.base(), PageMask::one(0));
  EXPECT_TRUE(rig.device.quiesce(0));
  Service service(rig.device, rig.bell, region);
  service.serve(faults[0]);
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  service.bring_home();
  EXPECT_EQ(*region.contents<std::uint32_t>(), 65u);
}

TEST(SoftFault, system_atomics_work_on_host_memory_where_the_device_can) {
  Rig rig;
  Region region(1);
  map_one(rig.device, region.base(), host_span(0, 1, region.contents(), Rights::write));
  ASSERT_TRUE(launch(rig.device, rig.queue, {10'000, 1, 1}, SystemAdd{region.at<std::uint32_t>()}).ok());
  auto* counter = region.contents<std::uint32_t>();
  for (int i = 0; i < 10'000; ++i) __atomic_fetch_add(counter, 1u, __ATOMIC_RELAXED);
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  EXPECT_EQ(*counter, 20'000u);
}

}  // namespace
}  // namespace hmmrt::test
