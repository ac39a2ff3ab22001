// SPDX-License-Identifier: MIT
// The UVM-like ladder, rung by rung, on the times of FACTS 4.
#include "policy/uvm.hpp"
#include "policy_simulator.hpp"

namespace hmmrt::testing {
namespace {

constexpr std::uint64_t k_us = 1000;

// One page, two processors, and a policy; time in the test's hand.
struct Ladder {
  UvmPolicy policy;
  BlockHistory history;
  std::uint64_t now = 1'000'000;
  Processor owner = k_cpu;

  Plan ask(Processor who) {
    BlockView view;
    view.valid = PageMask::all();
    view.populated = PageMask::all();
    view.resident_here = who == owner ? PageMask::all() : PageMask::all() - PageMask::one(0);
    view.history = &history;
    FaultGroup group;
    group.processor = who;
    group.write.set(0);
    PolicyContext context;
    context.now_ns = now;
    context.can_map_remote = who != k_cpu;
    context.system_atomics = true;
    Plan plan;
    policy.decide(view, group, context, plan);
    return plan;
  }
  void move(Processor to, Cause cause = Cause::fault) {
    policy.on_migrated(history, PageMask::one(0), owner, to, cause, now);
    owner = to;
  }
  void take(Processor who) {
    if (ask(who).throttle_ns != 0) now += UvmPolicy::k_nap_ns;
    move(who);
  }
  // Three events, each within a lapse: one first move, then three changes.
  void make_it_thrash() {
    for (int i = 0; i < 4; ++i) {
      now += 100 * k_us;
      ASSERT_EQ(ask(i % 2 == 0 ? k_gpu : k_cpu).throttle_ns, 0u) << i;
      move(i % 2 == 0 ? k_gpu : k_cpu);
    }
    now += 100 * k_us;
  }
};

TEST(policy_uvm, three_quick_events_throttle_the_next_fault_for_one_lapse) {
  Ladder l;
  EXPECT_FALSE(l.policy.ping_pong(l.history, l.now));
  l.make_it_thrash();
  EXPECT_TRUE(l.policy.ping_pong(l.history, l.now));
  const Plan plan = l.ask(k_gpu);
  EXPECT_EQ(plan.throttle_ns, 500 * k_us);
  EXPECT_EQ(plan.reason, Reason::thrash_throttle);
  EXPECT_TRUE(plan.migrate.none());
  EXPECT_TRUE(plan.remote.none());
}

TEST(policy_uvm, a_nap_is_cut_to_what_is_left_and_then_the_page_moves) {
  Ladder l;
  l.make_it_thrash();
  l.ask(k_gpu);
  l.now += 200 * k_us;
  EXPECT_EQ(l.ask(k_gpu).throttle_ns, 300 * k_us);
  l.now += 300 * k_us;
  EXPECT_TRUE(l.ask(k_gpu).migrate.test(0));
}

TEST(policy_uvm, events_more_than_a_lapse_apart_are_not_thrashing) {
  Ladder l;
  for (int i = 0; i < 50; ++i) {
    l.now += 501 * k_us;
    EXPECT_EQ(l.ask(i % 2 == 0 ? k_gpu : k_cpu).throttle_ns, 0u);
    l.move(i % 2 == 0 ? k_gpu : k_cpu);
  }
}

TEST(policy_uvm, ten_throttles_lead_to_a_pin_of_300_lapses_that_ends_by_itself) {
  Ladder l;
  l.make_it_thrash();
  int throttles = 0;
  Plan plan;
  for (int i = 0; i < 100; ++i) {
    const Processor who = i % 2 == 0 ? k_gpu : k_cpu;
    plan = l.ask(who);
    if (plan.remote.any()) break;
    if (plan.throttle_ns != 0) {
      ++throttles;
      l.now += plan.throttle_ns;
      ASSERT_TRUE(l.ask(who).migrate.test(0));
    }
    l.move(who);
    l.now += 100 * k_us;
  }
  EXPECT_EQ(throttles, 10);
  EXPECT_TRUE(plan.remote.test(0));
  EXPECT_EQ(plan.pin_ns, 150'000 * k_us);
  EXPECT_EQ(plan.reason, Reason::thrash_pin);
  l.now += 100'000 * k_us;
  EXPECT_EQ(l.ask(k_gpu).pin_ns, 50'000 * k_us);
  l.now += 50'000 * k_us;
  EXPECT_TRUE(l.ask(k_gpu).migrate.test(0));
  EXPECT_FALSE(l.policy.ping_pong(l.history, l.now));
}

TEST(policy_uvm, a_cpu_that_cannot_map_remotely_never_pins) {
  Ladder l;
  l.make_it_thrash();
  for (int i = 0; i < 10; ++i) {
    const Processor who = i % 2 == 0 ? k_gpu : k_cpu;
    l.take(who);
    l.now += 50 * k_us;
  }
  l.move(k_gpu);
  l.now += 50 * k_us;
  const Plan plan = l.ask(k_cpu);
  EXPECT_TRUE(plan.migrate.test(0));
  EXPECT_TRUE(plan.remote.none());
  EXPECT_EQ(plan.pin_ns, 0u);
}

TEST(policy_uvm, eviction_is_not_thrashing) {
  Ladder l;
  for (int i = 0; i < 50; ++i) {
    l.now += 50 * k_us;
    EXPECT_EQ(l.ask(k_gpu).throttle_ns, 0u);
    l.move(k_gpu);
    l.now += 50 * k_us;
    l.move(k_cpu, Cause::eviction);
  }
}

TEST(policy_uvm, a_quiet_epoch_forgets_at_most_four_times) {
  Ladder l;
  for (int reset = 0; reset < 4; ++reset) {
    l.make_it_thrash();
    l.now += 1'000'001 * k_us;
    EXPECT_EQ(l.ask(k_gpu).throttle_ns, 0u) << reset;
    l.owner = k_cpu;
  }
  l.make_it_thrash();
  l.now += 1'000'001 * k_us;
  EXPECT_EQ(l.ask(k_gpu).throttle_ns, 500 * k_us);
}

TEST(policy_uvm, thrashing_granules_are_neither_grown_nor_prefetched) {
  Simulator s("uvm");
  alternate(s, 0, 1, 3, 50'000);
  s.record = true;
  s.touch(k_gpu, 16, 1);
  EXPECT_FALSE(s.trace.back().plan.migrate.test(0));
}

}  // namespace
}  // namespace hmmrt::testing
