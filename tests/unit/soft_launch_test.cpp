// SPDX-License-Identifier: MIT
// Queues, launches, host functions, cancellation of the software GPU.
#include <stdexcept>
#include <string>

#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

struct Append {  // one item: notes its turn
  gptr<std::uint64_t> log;
  std::uint64_t what;
  void operator()(const item&) const {
    const std::uint64_t n = log[0];
    log[static_cast<std::ptrdiff_t>(n + 1)] = what;
    log[0] = n + 1;
  }
};

TEST(SoftLaunch, a_queue_runs_launches_and_host_functions_in_order) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  struct Host {
    std::vector<int> turns;
  } host;
  for (std::uint64_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(launch(rig.device, rig.queue, {1, 1, 1}, Append{region.at<std::uint64_t>(), i}).ok());
    if (i % 10 == 9) {
      ASSERT_TRUE(rig.device
                      .enqueue_host(
                          rig.queue,
                          [](void* p) {
                            EXPECT_FALSE(in_kernel());
                            static_cast<Host*>(p)->turns.push_back(1);
                          },
                          &host)
                      .ok());
    }
  }
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  EXPECT_TRUE(rig.device.idle(rig.queue));
  EXPECT_EQ(host.turns.size(), 10u);
  service.bring_home();
  EXPECT_EQ(region.contents<std::uint64_t>()[0], 100u);
  for (std::uint64_t i = 0; i < 100; ++i) EXPECT_EQ(region.contents<std::uint64_t>()[i + 1], i);
}

struct Gate {
  Word open{0};
  static void wait(void* p) {
    Gate& g = *static_cast<Gate*>(p);
    while (g.open.load() == 0) park(g.open, 0);
  }
  static void release(void* p) {
    Gate& g = *static_cast<Gate*>(p);
    g.open.store(1);
    unpark(g.open);
  }
};

TEST(SoftLaunch, a_host_function_may_wait_for_another_queue) {
  Rig rig;
  Queue other = 0;
  ASSERT_TRUE(rig.device.create_queue(&other).ok());
  Gate gate;
  ASSERT_TRUE(rig.device.enqueue_host(rig.queue, &Gate::wait, &gate).ok());
  EXPECT_FALSE(rig.device.idle(rig.queue));
  ASSERT_TRUE(rig.device.enqueue_host(other, &Gate::release, &gate).ok());
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  rig.device.destroy_queue(other);
}

struct Spin {
  gptr<std::uint32_t> flag;
  void operator()(const item&) const {
    while (atomic_load(flag) == 0) {
    }
  }
};

TEST(SoftLaunch, a_wave_that_spins_lets_the_others_run) {
  SoftDeviceConfig c = Rig::small();
  c.compute_units = 1;
  Rig rig(c);
  Region region(1);
  Service service(rig.device, rig.bell, region);
  Queue other = 0;
  ASSERT_TRUE(rig.device.create_queue(&other).ok());
  ASSERT_TRUE(launch(rig.device, rig.queue, {1, 1, 1}, Spin{region.at<std::uint32_t>()}).ok());
  struct Set {
    gptr<std::uint32_t> flag;
    void operator()(const item&) const { atomic_store(flag, 1u); }
  };
  ASSERT_TRUE(launch(rig.device, other, {1, 1, 1}, Set{region.at<std::uint32_t>()}).ok());
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  EXPECT_EQ(rig.device.synchronize(other).result, HMMRT_SUCCESS);
}

struct Counted {  // an object in a kernel whose destructor must run
  std::atomic<int>* live;
  explicit Counted(std::atomic<int>* l) : live(l) { live->fetch_add(1); }
  ~Counted() { live->fetch_sub(1); }
};
struct OutOfBounds {
  gptr<int> p;
  std::atomic<int>* live;
  std::atomic<int>* ran;
  void operator()(const item&) const {
    Counted c(live);
    ran->fetch_add(1);
    *p = 1;
  }
};

TEST(SoftLaunch, a_cancelled_launch_unwinds_its_waves_and_reports_where) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  std::atomic<int> live{0};
  std::atomic<int> ran{0};
  const std::uint64_t items = 64 * 100'000;
  ASSERT_TRUE(launch(rig.device, rig.queue, {items, 1, 1},
                     OutOfBounds{region.at<int>(region.bytes() + 40), &live, &ran}, "stray")
                  .ok());
  const LaunchError e = rig.device.synchronize(rig.queue);
  EXPECT_EQ(e.result, HMMRT_ERROR_ILLEGAL_ADDRESS);
  EXPECT_EQ(e.addr, region.base() + region.bytes() + 40);
  EXPECT_EQ(e.access, Access::write);
  EXPECT_STREQ(e.kernel, "stray");
  EXPECT_EQ(live.load(), 0);
  EXPECT_LT(ran.load(), 1000);                                         // waves not started never ran
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);  // reported once
  EXPECT_EQ(rig.run({1, 1, 1}, Append{region.at<std::uint64_t>(), 1}).result, HMMRT_SUCCESS);
}

TEST(SoftLaunch, cancelling_ends_a_loop_that_never_misses) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  ASSERT_TRUE(launch(rig.device, rig.queue, {256, 1, 1}, Spin{region.at<std::uint32_t>()}).ok());
  while (service.faults() == 0) std::this_thread::yield();
  LaunchError e;
  e.result = HMMRT_ERROR_ACCESS_DENIED;
  rig.device.cancel(1, e);
  rig.device.cancel(77, e);  // no such launch
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_ERROR_ACCESS_DENIED);
}

struct Thrower {
  gptr<int> p;
  void operator()(const item& i) const {
    int v = 0;
    try {
      throw std::string("mine");
    } catch (const std::string& s) {
      v = *p;  // stalls while an exception is being handled
      if (s != "mine") throw;
    }
    if (i.x == 70) throw std::runtime_error("tired");
    p[static_cast<std::ptrdiff_t>(i.x + 1)] = v + 1;
  }
};

TEST(SoftLaunch, an_exception_in_a_kernel_fails_the_launch_with_its_text) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  const LaunchError e = rig.run({128, 1, 1}, Thrower{region.at<int>()});
  EXPECT_EQ(e.result, HMMRT_ERROR_EXCEPTION);
  EXPECT_NE(std::string(failure_detail()).find("tired"), std::string::npos) << failure_detail();
}

TEST(SoftLaunch, bad_launches_are_refused_with_a_reason) {
  Rig rig;
  const Append f{nullptr, 0};
  EXPECT_EQ(launch(rig.device, rig.queue, {0, 1, 1}, f).code(), HMMRT_ERROR_INVALID_VALUE);
  EXPECT_EQ(launch(rig.device, rig.queue, {1ull << 40, 1ull << 40, 1}, f).code(), HMMRT_ERROR_INVALID_VALUE);
  EXPECT_EQ(launch(rig.device, 99, {1, 1, 1}, f).code(), HMMRT_ERROR_INVALID_HANDLE);
  EXPECT_NE(std::string(failure_detail()), "");
  EXPECT_EQ(rig.device
                .enqueue_host(
                    0, [](void*) {}, nullptr)
                .code(),
            HMMRT_ERROR_INVALID_HANDLE);
  Launch l;
  EXPECT_EQ(rig.device.launch(rig.queue, l).code(), HMMRT_ERROR_INVALID_VALUE);
}

struct InKernel {
  gptr<int> out;
  void operator()(const item&) const { *out = in_kernel() ? 1 : 2; }
};

TEST(SoftLaunch, in_kernel_is_true_only_in_a_kernel) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  EXPECT_FALSE(in_kernel());
  EXPECT_EQ(rig.run({1, 1, 1}, InKernel{region.at<int>()}).result, HMMRT_SUCCESS);
  service.bring_home();
  EXPECT_EQ(*region.contents<int>(), 1);
}

TEST(SoftLaunch, destroying_the_device_ends_stalled_launches) {
  Region region(1);
  std::atomic<int> live{0};
  std::atomic<int> ran{0};
  Rig rig;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(launch(rig.device, rig.queue, {10'000, 1, 1}, OutOfBounds{region.at<int>(), &live, &ran}).ok());
  }
  while (rig.device.stalled_waves() == 0) std::this_thread::yield();
}

}  // namespace
}  // namespace hmmrt::test
