// SPDX-License-Identifier: MIT
// The registry, first touch, remote, advice (which every policy honours), and what all policies promise.
#include <string>

#include "policy_simulator.hpp"

namespace hmmrt::testing {
namespace {

const char* const k_policies[] = {"adaptive", "first_touch_2m", "first_touch_4k", "remote", "uvm"};

std::uint64_t faults_of_sequential_fill(const char* policy) {
  Simulator s(policy);
  s.touch(k_gpu, 0, 512);
  return s.faults;
}

TEST(policy_baselines, policies_are_found_by_the_names_that_are_listed) {
  EXPECT_STREQ(policy_names(), "adaptive, first_touch_2m, first_touch_4k, remote, uvm");
  for (const char* name : k_policies) {
    ASSERT_NE(make_policy(name), nullptr) << name;
    EXPECT_EQ(make_policy(name)->name(), name);
  }
  EXPECT_EQ(make_policy("Adaptive"), nullptr);
  EXPECT_EQ(make_policy(""), nullptr);
}

TEST(policy_baselines, every_reason_has_a_name) {
  for (unsigned r = 0; r <= static_cast<unsigned>(Reason::plug_in); ++r) {
    EXPECT_STRNE(reason_name(static_cast<Reason>(r)), "unknown");
  }
  EXPECT_STREQ(reason_name(Reason::thrash_pin), "thrash_pin");
}

TEST(policy_baselines, sequential_fill_of_a_block_takes_the_known_number_of_faults) {
  EXPECT_EQ(faults_of_sequential_fill("first_touch_4k"), 512u);
  EXPECT_EQ(faults_of_sequential_fill("first_touch_2m"), 1u);
  EXPECT_EQ(faults_of_sequential_fill("uvm"), 6u);
  EXPECT_EQ(faults_of_sequential_fill("adaptive"), 6u);
}

TEST(policy_baselines, remote_moves_nothing_to_the_device_and_single_pages_home) {
  Simulator s("remote");
  s.touch(k_gpu, 0, 512);
  EXPECT_EQ(s.bytes(), 0u);
  s.user_prefetch(PageMask::range(0, 512), k_gpu);
  s.touch(k_cpu, 7, 1);
  EXPECT_EQ(s.pages_to_host, 1u);
}

TEST(policy_baselines, remote_moves_where_it_cannot_map) {
  Simulator s("remote");
  s.device_maps_remote = false;
  s.touch(k_gpu, 0, 4);
  EXPECT_EQ(s.pages_to_device, 4u);
}

TEST(policy_baselines, partial_blocks_stay_within_valid_pages) {
  for (const char* name : k_policies) {
    Simulator s(name);
    s.advice().valid = PageMask::range(5, 100);
    s.touch(k_gpu, 5, 100);  // the simulator checks every plan
    s.touch(k_cpu, 5, 100);
  }
}

TEST(policy_baselines, pages_preferred_elsewhere_are_mapped_remotely) {
  for (const char* name : k_policies) {
    Simulator s(name);
    s.advice().preferred_elsewhere = PageMask::range(0, 256);
    s.touch(k_gpu, 0, 512, Access::read);
    EXPECT_TRUE(s.resident(k_cpu).contains(PageMask::range(0, 256))) << name;
  }
}

TEST(policy_baselines, pages_preferred_here_migrate) {
  for (const char* name : k_policies) {
    Simulator s(name);
    s.advice().preferred_here = PageMask::range(32, 4);
    s.touch(k_gpu, 32, 4, Access::read);
    EXPECT_TRUE(s.resident(k_gpu).contains(PageMask::range(32, 4))) << name;
  }
}

TEST(policy_baselines, accessed_by_maps_instead_of_migrating) {
  for (const char* name : k_policies) {
    Simulator s(name);
    s.advice().accessed_by = PageMask::all();
    s.touch(k_gpu, 0, 64);
    EXPECT_EQ(s.pages_to_device, 0u) << name;
  }
}

TEST(policy_baselines, read_mostly_reads_are_duplicated_and_writes_are_not) {
  for (const char* name : k_policies) {
    Simulator s(name);
    s.can_duplicate = true;
    s.record = true;
    s.advice().read_mostly = PageMask::all();
    s.touch(k_gpu, 0, 1, Access::read);
    EXPECT_TRUE(s.trace.back().plan.duplicate.test(0)) << name;
    EXPECT_EQ(s.trace.back().plan.reason, Reason::read_mostly) << name;
    s.touch(k_gpu, 256, 1, Access::write);
    EXPECT_TRUE(s.trace.back().plan.duplicate.none()) << name;
  }
}

TEST(policy_baselines, atomics_that_cannot_reach_the_host_migrate_whatever_the_advice) {
  for (const char* name : k_policies) {
    Simulator s(name);
    s.system_atomics = false;
    s.advice().preferred_elsewhere = PageMask::all();
    s.touch(k_gpu, 9, 1, Access::atomic);
    EXPECT_TRUE(s.resident(k_gpu).test(9)) << name;
  }
}

TEST(policy_baselines, replaying_recorded_inputs_gives_the_recorded_answers) {
  for (const char* name : k_policies) {
    Simulator s(name, std::string(name) == "first_touch_2m" ? 512 : 300);
    s.record = true;
    alternate(s, 0, 40, 40, 50'000);
    s.touch(k_gpu, 0, 512);
    s.touch(k_cpu, 100, 50, Access::read);
    s.touch(k_gpu, 0, 512, Access::read);
    const auto fresh = make_policy(name);
    ASSERT_FALSE(s.trace.empty());
    for (const Recorded& r : s.trace) {
      for (int twice = 0; twice < 2; ++twice) {
        BlockHistory history = r.before;
        BlockView view = r.view;
        view.history = &history;
        Plan plan;
        fresh->decide(view, r.group, r.context, plan);
        ASSERT_EQ(plan.migrate, r.plan.migrate) << name;
        ASSERT_EQ(plan.remote, r.plan.remote) << name;
        ASSERT_EQ(plan.duplicate, r.plan.duplicate) << name;
        ASSERT_EQ(plan.throttle_ns, r.plan.throttle_ns) << name;
        ASSERT_EQ(plan.pin_ns, r.plan.pin_ns) << name;
        ASSERT_EQ(plan.reason, r.plan.reason) << name;
        ASSERT_EQ(std::memcmp(history.bytes.data(), r.after.bytes.data(), history.bytes.size()), 0) << name;
      }
    }
  }
}

}  // namespace
}  // namespace hmmrt::testing
