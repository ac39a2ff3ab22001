// SPDX-License-Identifier: MIT
// The adaptive policy on access traces: what it must catch (fine ping-pong, false sharing, capacity thrash), what it must
// leave alone (initialise once, slow alternation, results read once an iteration), and that it changes its mind.
#include <chrono>
#include <cstdio>

#include "policy/ping_pong.hpp"
#include "policy_simulator.hpp"

namespace hmmrt::testing {
namespace {

constexpr std::uint64_t k_us = 1000;
constexpr std::uint64_t k_ms = 1000 * k_us;

struct Total {
  std::uint64_t bytes, ns, faults;
};

Total ping_pong_total(const char* policy, unsigned pages, unsigned trips, std::uint64_t period_ns) {
  Simulator s(policy);
  const std::uint64_t start = s.now();
  alternate(s, 0, pages, trips, period_ns);
  return {s.bytes(), s.now() - start, s.faults};
}

TEST(policy_adaptive, ping_pong_moves_ten_times_fewer_bytes_than_first_touch_and_is_faster) {
  for (const unsigned pages : {1u, 4u, 16u, 64u, 512u}) {
    const Total base = ping_pong_total("first_touch_4k", pages, 300, 40 * k_us);
    for (const char* name : {"first_touch_2m", "uvm", "remote", "adaptive"}) {
      const Total t = ping_pong_total(name, pages, 300, 40 * k_us);
      std::printf("ping_pong %3u pages: %-14s %6.3f of the bytes, %6.2f x faster than first_touch_4k\n", pages, name,
                  double(t.bytes) / double(base.bytes), double(base.ns) / double(t.ns));
    }
    const Total t = ping_pong_total("adaptive", pages, 300, 40 * k_us);
    EXPECT_LE(t.bytes * 10, base.bytes) << pages;
    EXPECT_LT(t.ns, base.ns) << pages;
  }
}

TEST(policy_adaptive, ping_pong_converges_within_four_round_trips_at_every_grain) {
  for (const unsigned pages : {1u, 3u, 16u, 64u, 512u}) {
    Simulator s("adaptive");
    alternate(s, 0, pages, 4, 50 * k_us);
    EXPECT_TRUE(s.policy().ping_pong(s.history, s.now())) << pages;
    const std::uint64_t before = s.bytes();
    alternate(s, 0, pages, 10, 50 * k_us);
    EXPECT_EQ(s.bytes(), before) << pages;
  }
}

TEST(policy_adaptive, ping_pong_with_device_batches_and_uneven_turns_moves_ten_times_fewer_bytes) {
  for (const std::uint32_t seed : {1u, 2u, 3u, 4u}) {
    for (const unsigned pages : {1u, 16u, 100u, 512u}) {
      Simulator adaptive("adaptive");
      Simulator base("first_touch_4k");
      for (Simulator* s : {&adaptive, &base}) {
        std::uint32_t x = seed;
        const auto uneven = [&x] {
          x = x * 1664525 + 1013904223;
          return (x >> 8) % 200 * k_us;
        };
        for (int i = 0; i < 300; ++i) {
          for (unsigned p = 0; p < pages; p += 256) {
            s->touch_together(k_gpu, PageMask::range(p, std::min(256u, pages - p)));
          }
          s->work(uneven());
          s->touch(k_cpu, 0, pages);
          s->work(uneven());
        }
      }
      EXPECT_LE(adaptive.bytes() * 10, base.bytes()) << pages << " pages, seed " << seed;
      EXPECT_LT(adaptive.now(), base.now()) << pages << " pages, seed " << seed;
    }
  }
}

TEST(policy_adaptive, ping_pong_between_two_devices_and_the_cpu_settles) {
  Simulator s("adaptive");
  for (int i = 0; i < 300; ++i) {
    for (const Processor who : {k_gpu, device_processor(1), k_cpu}) {
      s.touch(who, 40, 2);
      s.work(15 * k_us);
    }
  }
  EXPECT_LE(s.pages_to_device + s.pages_to_host, 600u * 3 / 10);
}

TEST(policy_adaptive, a_coherent_cpu_maps_remotely_too) {
  Simulator s("adaptive");
  s.cpu_maps_remote = true;
  alternate(s, 0, 4, 4, 50 * k_us);
  const std::uint64_t before = s.bytes();
  alternate(s, 0, 4, 20, 50 * k_us);
  EXPECT_EQ(s.bytes(), before);
}

TEST(policy_adaptive, a_device_that_cannot_map_remotely_is_throttled_but_served) {
  Simulator s("adaptive");
  s.device_maps_remote = false;
  alternate(s, 0, 2, 100, 30 * k_us);
  EXPECT_GT(s.throttles, 10u);
  EXPECT_TRUE(s.resident(k_cpu).test(0));
}

TEST(policy_adaptive, false_sharing_inside_a_block_ends_without_remote_access) {
  // CPU and device use different pages of the same granules.
  Simulator s("adaptive");
  for (int i = 0; i < 100; ++i) {
    for (unsigned p = 0; p < 128; p += 8) s.touch(k_gpu, p, 1);
    s.work(20 * k_us);
    for (unsigned p = 4; p < 128; p += 8) s.touch(k_cpu, p, 1);
    s.work(20 * k_us);
  }
  EXPECT_LT(s.pages_to_device + s.pages_to_host, 500u);
  const std::uint64_t before = s.bytes();
  for (int i = 0; i < 20; ++i) {
    for (unsigned p = 0; p < 128; p += 8) s.touch(k_gpu, p, 1);
    for (unsigned p = 4; p < 128; p += 8) s.touch(k_cpu, p, 1);
  }
  EXPECT_EQ(s.bytes(), before);
}

TEST(policy_adaptive, data_initialised_once_and_then_computed_on_moves_as_the_density_tree_says) {
  for (const unsigned pages : {1u, 20u, 300u, 512u}) {
    Simulator adaptive("adaptive");
    Simulator uvm("uvm");
    for (Simulator* s : {&adaptive, &uvm}) {
      s->touch(k_cpu, 0, 512);  // initialise
      for (int i = 0; i < 100; ++i) s->touch(k_gpu, 0, pages);
      s->touch(k_cpu, 0, pages, Access::read);  // read the results
    }
    EXPECT_EQ(adaptive.bytes(), uvm.bytes()) << pages;
    EXPECT_EQ(adaptive.faults, uvm.faults) << pages;
    EXPECT_EQ(adaptive.remote_accesses, 0u);
  }
}

TEST(policy_adaptive, two_mib_every_100_ms_is_left_alone) {
  Simulator s("adaptive");
  alternate(s, 0, 512, 50, 100 * k_ms);
  EXPECT_EQ(s.bytes(), 50u * 2 * k_block_size);
  EXPECT_EQ(s.faults, 50u * 12);
  EXPECT_EQ(s.remote_accesses, 0u);
  EXPECT_FALSE(s.policy().ping_pong(s.history, s.now()));
}

TEST(policy_adaptive, a_result_read_once_an_iteration_at_coarse_period_is_left_alone) {
  Simulator s("adaptive");
  for (int i = 0; i < 100; ++i) {
    s.touch(k_gpu, 0, 512);
    s.work(5 * k_ms);
    s.touch(k_cpu, 0, 1, Access::read);  // and the next kernel starts at once
    s.work(20 * k_us);
  }
  EXPECT_EQ(s.remote_accesses, 0u);
  EXPECT_LT(s.faults, 6u + 100 * 3);
}

TEST(policy_adaptive, user_prefetches_back_and_forth_are_no_ping_pong) {
  Simulator s("adaptive");
  for (int i = 0; i < 50; ++i) {
    s.user_prefetch(PageMask::all(), k_gpu);
    s.touch(k_gpu, 0, 512);
    s.user_prefetch(PageMask::all(), k_cpu);
    s.touch(k_cpu, 0, 512);
  }
  EXPECT_EQ(s.faults, 0u);
  EXPECT_FALSE(s.policy().ping_pong(s.history, s.now()));
}

TEST(policy_adaptive, a_new_phase_is_learnt_soon_after_ping_pong_ends) {
  Simulator s("adaptive");
  const std::uint64_t start = s.now();
  alternate(s, 0, 64, 300, 50 * k_us);
  const std::uint64_t wasted = s.now() - start;
  EXPECT_TRUE(s.resident(k_gpu).none());
  const std::uint64_t phase = s.now();
  while (s.resident(k_gpu).count(0, 64) < 64) {
    s.touch(k_gpu, 0, 64);
    s.work(100 * k_us);
    ASSERT_LT(s.now() - phase, 4 * wasted) << "still remote";
  }
  std::printf("phase change: %.1f ms of ping-pong, learnt in %.1f ms\n", double(wasted) / 1e6,
              double(s.now() - phase) / 1e6);
  // And it is trusted again: a slow exchange later moves freely.
  s.work(100 * k_ms);
  const std::uint64_t remote = s.remote_accesses;
  alternate(s, 0, 64, 10, 50 * k_ms);
  EXPECT_EQ(s.remote_accesses, remote);
}

TEST(policy_adaptive, probing_backs_off_while_ping_pong_lasts) {
  Simulator s("adaptive");
  alternate(s, 0, 1, 1000, 40 * k_us);
  const std::uint64_t first = s.bytes();
  alternate(s, 0, 1, 1000, 40 * k_us);
  const std::uint64_t second = s.bytes() - first;
  alternate(s, 0, 1, 2000, 40 * k_us);
  const std::uint64_t later = s.bytes() - first - second;
  EXPECT_LE(second, first);
  EXPECT_LE(later, 2 * second + 4 * k_page_size);
  EXPECT_LE(s.bytes(), 80u * k_page_size);
}

TEST(policy_adaptive, a_pin_never_outlasts_its_bound) {
  Simulator s("adaptive");
  s.record = true;
  alternate(s, 0, 1, 4000, 600 * k_us);
  for (const Recorded& r : s.trace) ASSERT_LE(r.plan.pin_ns, ping_pong::k_longest_pin_ns);
}

TEST(policy_adaptive, atomics_on_ping_pong_pages_ask_for_exclusive_access) {
  Simulator s("adaptive");
  s.system_atomics = false;
  s.record = true;
  for (int i = 0; i < 6; ++i) {
    s.touch(k_gpu, 3, 1, Access::atomic);
    s.work(10 * k_us);
    s.touch(k_cpu, 3, 1);
    s.work(10 * k_us);
  }
  s.touch(k_gpu, 3, 1, Access::atomic);
  EXPECT_EQ(s.trace.back().plan.reason, Reason::exclusive);
  EXPECT_TRUE(s.trace.back().plan.migrate.test(3));
}

TEST(policy_adaptive, sparse_use_of_more_than_the_device_holds_goes_remote) {
  const auto run = [](const char* name) {
    Simulator s(name, 128);  // a quarter of the block fits
    std::uint32_t x = 12345;
    for (int i = 0; i < 4000; ++i) {
      x = x * 1664525 + 1013904223;
      s.touch(k_gpu, (x >> 16) % 32 * 16 + 5, 1);
    }
    std::printf("capacity, sparse: %-14s %6llu pages moved, %5llu faults, %4llu evictions, %.1f ms\n", name,
                static_cast<unsigned long long>(s.pages_to_device + s.pages_to_host),
                static_cast<unsigned long long>(s.faults), static_cast<unsigned long long>(s.evictions),
                double(s.now()) / 1e6);
    return s;
  };
  const Simulator uvm = run("uvm");
  const Simulator adaptive = run("adaptive");
  EXPECT_LT(adaptive.bytes() * 10, uvm.bytes());
  EXPECT_LT(adaptive.now(), uvm.now());
}

TEST(policy_adaptive, sweeps_over_more_than_the_device_holds_cost_no_more_than_with_uvm) {
  const auto run = [](const char* name) {
    Simulator s(name, 256);
    for (int i = 0; i < 40; ++i) {
      for (unsigned p = 0; p < 512; p += 16) s.touch_together(k_gpu, PageMask::range(p, 16));
    }
    std::printf("capacity, sweeps: %-14s %6llu pages moved, %5llu faults, %4llu evictions, %.1f ms\n", name,
                static_cast<unsigned long long>(s.pages_to_device + s.pages_to_host),
                static_cast<unsigned long long>(s.faults), static_cast<unsigned long long>(s.evictions),
                double(s.now()) / 1e6);
    return s;
  };
  const Simulator uvm = run("uvm");
  const Simulator adaptive = run("adaptive");
  EXPECT_LE(adaptive.bytes(), uvm.bytes());
  EXPECT_LE(adaptive.now(), uvm.now() + uvm.now() / 10);
}

TEST(policy_adaptive, eviction_and_return_is_not_ping_pong) {
  Simulator s("adaptive");
  for (int i = 0; i < 20; ++i) {
    s.touch(k_gpu, 0, 512);
    s.evict(PageMask::all(), k_gpu);
  }
  EXPECT_FALSE(s.policy().ping_pong(s.history, s.now()));
  EXPECT_EQ(s.remote_accesses, 0u);  // the device has room: pressure is over
}

TEST(policy_adaptive, a_nearly_full_device_gets_no_prefetch_for_sparse_faults) {
  Simulator full("adaptive", 4096);
  BlockHistory history;
  BlockView view;
  view.valid = view.populated = view.resident_cpu = PageMask::all();
  view.history = &history;
  FaultGroup group;
  group.processor = k_gpu;
  group.read.set(100);
  PolicyContext context;
  context.device_frames = 4096;
  context.device_free_frames = 8;
  context.now_ns = 1;
  Plan plan;
  full.policy().decide(view, group, context, plan);
  EXPECT_LE(plan.migrate.count(), 16u);
  context.device_free_frames = 4096;
  history = {};
  plan = {};
  full.policy().decide(view, group, context, plan);
  EXPECT_EQ(plan.migrate.count(), 16u);
}

TEST(policy_adaptive, a_clock_that_wraps_ends_pins_too) {
  Simulator s("adaptive");
  alternate(s, 0, 1, 4, 50 * k_us);
  EXPECT_TRUE(s.policy().ping_pong(s.history, s.now()));
  s.work((std::uint64_t{1} << 42) / 2 + 1000 * k_ms);  // ticks are modulo 2^32 of 1024 ns
  EXPECT_FALSE(s.policy().ping_pong(s.history, s.now()));
}

TEST(policy_adaptive, decide_costs_little) {
  for (const char* name : {"first_touch_4k", "uvm", "adaptive"}) {
    Simulator s(name);
    s.record = true;
    alternate(s, 0, 40, 20, 50 * k_us);
    s.touch(k_gpu, 0, 512);
    s.touch(k_cpu, 0, 512);
    std::uint64_t sink = 0;
    std::uint64_t runs = 0;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 200; ++i) {
      for (const Recorded& r : s.trace) {
        BlockHistory history = r.before;
        BlockView view = r.view;
        view.history = &history;
        Plan plan;
        s.policy().decide(view, r.group, r.context, plan);
        sink += plan.migrate.word(0);
        ++runs;
      }
    }
    const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
    std::printf("decide: %-14s %4.0f ns a group, copies of its inputs included (%llu)\n", name, ns / double(runs),
                static_cast<unsigned long long>(sink & 1));
  }
}

}  // namespace
}  // namespace hmmrt::testing
