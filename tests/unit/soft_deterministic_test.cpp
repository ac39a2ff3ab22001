// SPDX-License-Identifier: MIT
// Deterministic mode: one thread, the test's; the same choices give the same run.
#include <random>
#include <string>

#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

struct Racy {  // lost updates, on purpose: the outcome depends on the interleaving
  gptr<std::uint64_t> p;
  void operator()(const item& i) const {
    const std::uint64_t v = p[0];
    p[0] = v * 3 + i.x;
  }
};

struct Outcome {
  std::uint64_t value;
  std::string trace;
  bool operator==(const Outcome&) const = default;
};

// Runs everything with the test thread as device, fault service and scheduler.
Outcome simulate(unsigned seed, double drop) {
  VirtualClock clock;
  Doorbell bell;
  SoftDeviceConfig c = Rig::small();
  c.deterministic = true;
  c.seed = seed;
  c.fault_buffer_entries = 4;
  c.inject.fault_dropped.probability = drop;
  SoftDevice device(c, bell, clock);
  static Region region(1);  // the same addresses each time
  Queue q1 = 0;
  Queue q2 = 0;
  EXPECT_TRUE(device.create_queue(&q1).ok());
  EXPECT_TRUE(device.create_queue(&q2).ok());
  const Frame frame = allocate_one(device);
  *reinterpret_cast<std::uint64_t*>(device.frame_address(frame)) = 1;
  EXPECT_TRUE(launch(device, q1, {192, 1, 1}, Racy{region.at<std::uint64_t>()}).ok());
  EXPECT_TRUE(launch(device, q2, {128, 1, 1}, Racy{region.at<std::uint64_t>()}).ok());
  static int host_calls;
  host_calls = 0;
  EXPECT_TRUE(device
                  .enqueue_host(
                      q1, [](void*) { ++host_calls; }, nullptr)
                  .ok());

  std::mt19937 rng(seed);
  Outcome out{0, {}};
  bool mapped = false;
  for (int i = 0; !(device.idle(q1) && device.idle(q2)); ++i) {
    if (i > 1'000'000) {
      ADD_FAILURE() << "does not end";
      break;
    }
    clock.advance(10);
    DeviceFault f[2];
    if (rng() % 4 != 0) {
      out.trace += device.step(rng()) ? 's' : '-';
      continue;
    }
    const std::size_t n = device.fetch_faults(f);
    out.trace += static_cast<char>('0' + n);
    if (n == 0) device.replay_all();
    for (std::size_t k = 0; k < n; ++k) {
      if (mapped && rng() % 3 == 0) {
        device.unmap(region.base(), PageMask::one(0));
        EXPECT_TRUE(device.quiesce(0));
        mapped = false;
      } else {
        map_one(device, region.base(),
                frames_span(0, 1, frame, f[k].access == Access::read ? Rights::read : Rights::write));
        mapped = true;
      }
      device.replay(region.base(), PageMask::one(0));
    }
  }
  EXPECT_EQ(host_calls, 1);
  out.value = *reinterpret_cast<std::uint64_t*>(device.frame_address(frame));
  return out;
}

TEST(SoftDeterministic, the_same_seed_gives_the_same_run) {
  for (unsigned seed = 1; seed <= 20; ++seed) EXPECT_EQ(simulate(seed, 0), simulate(seed, 0)) << "seed " << seed;
}

TEST(SoftDeterministic, injected_failures_are_reproduced_too) {
  for (unsigned seed = 1; seed <= 20; ++seed) EXPECT_EQ(simulate(seed, 0.4), simulate(seed, 0.4)) << "seed " << seed;
}

TEST(SoftDeterministic, different_seeds_interleave_differently) {
  const Outcome first = simulate(1, 0);
  bool different = false;
  for (unsigned seed = 2; seed <= 6; ++seed) different |= simulate(seed, 0).value != first.value;
  EXPECT_TRUE(different);
}

TEST(SoftDeterministic, synchronize_drives_the_device) {
  VirtualClock clock;
  Doorbell bell;
  SoftDeviceConfig c = Rig::small();
  c.deterministic = true;
  SoftDevice device(c, bell, clock);
  Region region(1);
  Queue q = 0;
  ASSERT_TRUE(device.create_queue(&q).ok());
  EXPECT_FALSE(device.step(0));
  map_one(device, region.base(), frames_span(0, 1, allocate_one(device), Rights::write));
  ASSERT_TRUE(launch(device, q, {64, 1, 1}, Racy{region.at<std::uint64_t>()}).ok());
  EXPECT_EQ(device.synchronize(q).result, HMMRT_SUCCESS);
  EXPECT_TRUE(device.idle(q));
}

TEST(SoftDeterministic, a_stale_translation_is_used_until_quiesce) {
  VirtualClock clock;
  Doorbell bell;
  SoftDeviceConfig c = Rig::small();
  c.deterministic = true;
  c.compute_units = 1;
  SoftDevice device(c, bell, clock);
  Region region(1);
  Queue q = 0;
  ASSERT_TRUE(device.create_queue(&q).ok());
  map_one(device, region.base(), frames_span(0, 1, allocate_one(device), Rights::write));
  ASSERT_TRUE(launch(device, q, {8, 1, 1}, Racy{region.at<std::uint64_t>()}).ok());
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(device.step(0));  // start, read, write, read: the TLB is warm
  EXPECT_EQ(device.unmap(region.base(), PageMask::one(0)), PageMask::one(0));
  EXPECT_TRUE(device.step(0));  // still hits: hardware does, too
  EXPECT_EQ(device.stalled_waves(), 0u);
  EXPECT_TRUE(device.quiesce(0));
  EXPECT_TRUE(device.step(0));
  EXPECT_EQ(device.stalled_waves(), 1u);
  EXPECT_FALSE(device.step(0));
}

}  // namespace
}  // namespace hmmrt::test
