// SPDX-License-Identifier: MIT
// Policies from outside: registration, what the plug-in sees, and what becomes of a senseless answer.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "policy/plug_in.hpp"

namespace hmmrt {
namespace {

struct Seen {
  hmmrt_policy_block_t block;
  hmmrt_policy_faults_t faults;
  hmmrt_policy_context_t context;
  hmmrt_policy_plan_t answer;
  int moves;
};
Seen seen;

void decide(void* user, const hmmrt_policy_block_t* block, const hmmrt_policy_faults_t* faults,
            const hmmrt_policy_context_t* context, hmmrt_policy_history_t* history, hmmrt_policy_plan_t* plan) {
  auto* s = static_cast<Seen*>(user);
  s->block = *block;
  s->faults = *faults;
  s->context = *context;
  ++history->bytes[255];
  plan->migrate = s->answer.migrate;
  plan->duplicate = s->answer.duplicate;
  plan->remote = s->answer.remote;
  plan->throttle_ns = s->answer.throttle_ns;
  plan->to = s->answer.to;
}

void on_migrated(void* user, hmmrt_policy_history_t*, const hmmrt_page_mask_t* pages, uint32_t from, uint32_t to,
                 hmmrt_cause_t cause, uint64_t) {
  auto* s = static_cast<Seen*>(user);
  if (pages->words[1] == 2 && from == 0 && to == 1 && cause == HMMRT_CAUSE_EVICTION) ++s->moves;
}

int ping_pong(void*, const hmmrt_policy_history_t* history, uint64_t) { return history->bytes[255]; }

hmmrt_policy_ops_t table(const char* name) {
  return {sizeof(hmmrt_policy_ops_t), HMMRT_POLICY_ABI_VERSION, name, &seen, decide, on_migrated, ping_pong};
}

// Asks a registered plug-in about two faulted pages, 1 and 65, in a block whose first 128 pages are valid.
Plan ask(const Policy& policy, BlockHistory& history, bool can_map_remote) {
  BlockView view;
  view.base = 0x200000;
  view.valid = PageMask::range(0, 128);
  view.history = &history;
  FaultGroup group;
  group.processor = 2;
  group.read.set(1);
  group.atomic.set(65);
  PolicyContext context;
  context.now_ns = 77;
  context.can_map_remote = can_map_remote;
  Plan plan;
  policy.decide(view, group, context, plan);
  return plan;
}

TEST(policy_plug_in, a_registered_policy_is_found_listed_and_asked) {
  ASSERT_TRUE(register_plug_in([] {
                static hmmrt_policy_ops_t ops = table("mine");
                return &ops;
              }())
                  .ok());
  EXPECT_STREQ(policy_names(), "adaptive, first_touch_2m, first_touch_4k, remote, uvm, mine");
  const auto policy = make_policy("mine");
  ASSERT_NE(policy, nullptr);
  EXPECT_EQ(policy->name(), "mine");

  BlockHistory history;
  seen = {};
  seen.answer.to = HMMRT_POLICY_FAULTING_PROCESSOR;
  EXPECT_FALSE(policy->ping_pong(history, 0));
  const Plan plan = ask(*policy, history, true);
  EXPECT_TRUE(policy->ping_pong(history, 0));
  EXPECT_EQ(seen.block.base, 0x200000u);
  EXPECT_EQ(seen.block.valid.words[1], ~std::uint64_t{0});
  EXPECT_EQ(seen.block.valid.words[2], 0u);
  EXPECT_EQ(seen.faults.processor, 2u);
  EXPECT_EQ(seen.faults.read.words[0], 2u);
  EXPECT_EQ(seen.faults.atomic.words[1], 2u);
  EXPECT_EQ(seen.context.now_ns, 77u);
  EXPECT_EQ(seen.context.flags, HMMRT_POLICY_CAN_MAP_REMOTE);
  EXPECT_EQ(plan.migrate, PageMask::one(1) | PageMask::one(65)) << "an empty answer migrates";
  EXPECT_EQ(plan.reason, Reason::plug_in);
  EXPECT_EQ(plan.to, k_no_processor);

  policy->on_migrated(history, PageMask::one(65), 0, 1, Cause::eviction, 5);
  EXPECT_EQ(seen.moves, 1);
}

TEST(policy_plug_in, a_senseless_answer_is_corrected) {
  auto ops = table("senseless");
  ASSERT_TRUE(register_plug_in(&ops).ok());
  const auto policy = make_policy("senseless");
  BlockHistory history;
  seen = {};
  std::memset(&seen.answer, 0xff, sizeof seen.answer);
  seen.answer.throttle_ns = 0;
  Plan plan = ask(*policy, history, false);
  EXPECT_EQ(plan.migrate, PageMask::range(0, 128));
  EXPECT_TRUE(plan.remote.none());
  EXPECT_TRUE(plan.duplicate.none());
  EXPECT_EQ(plan.to, k_no_processor);

  seen.answer = {};
  seen.answer.remote.words[0] = 2;
  seen.answer.throttle_ns = 1000;
  seen.answer.to = 0;
  plan = ask(*policy, history, false);
  EXPECT_EQ(plan.migrate, PageMask::one(1)) << "what cannot be mapped remotely migrates";
  EXPECT_EQ(plan.throttle_ns, 1000u);
  EXPECT_EQ(plan.to, k_cpu);
}

TEST(policy_plug_in, bad_tables_are_refused_with_a_sentence) {
  const auto refused = [](const hmmrt_policy_ops_t* ops) {
    const Status s = register_plug_in(ops);
    EXPECT_EQ(s.code(), HMMRT_ERROR_INVALID_VALUE);
    EXPECT_STRNE(failure_detail(), "");
    return !s.ok();
  };
  EXPECT_TRUE(refused(nullptr));
  auto ops = table("bad");
  ops.size = 8;
  EXPECT_TRUE(refused(&ops));
  ops = table("bad");
  ops.abi_version = 99;
  EXPECT_TRUE(refused(&ops));
  ops = table("bad");
  ops.decide = nullptr;
  EXPECT_TRUE(refused(&ops));
  for (const char* name : {"", "Upper", "has space", "comma,", "a_name_that_is_much_too_long_for_it", "uvm"}) {
    ops = table(name);
    EXPECT_TRUE(refused(&ops)) << name;
  }
  ops = table(nullptr);
  EXPECT_TRUE(refused(&ops));
  EXPECT_EQ(make_policy("bad"), nullptr);
}

TEST(policy_plug_in, a_name_can_be_taken_once_and_sixteen_fit) {
  auto ops = table("once");
  ops.ping_pong = nullptr;
  ops.on_migrated = nullptr;
  EXPECT_TRUE(register_plug_in(&ops).ok());
  EXPECT_FALSE(register_plug_in(&ops).ok());
  BlockHistory history;
  make_policy("once")->on_migrated(history, {}, 0, 1, Cause::fault, 1);
  EXPECT_FALSE(make_policy("once")->ping_pong(history, 1));
  Status last;
  for (int i = 0; i < 17 && last.ok(); ++i) {
    const std::string name = "many_" + std::to_string(i);
    ops = table(name.c_str());
    last = register_plug_in(&ops);
  }
  EXPECT_EQ(last.code(), HMMRT_ERROR_OUT_OF_MEMORY);
  EXPECT_NE(std::string(policy_names()).find("many_3"), std::string::npos);
}

}  // namespace
}  // namespace hmmrt
