// SPDX-License-Identifier: MIT
// Thousands of seeded schedules of the whole runtime above its seams, on one thread and in virtual time, with failures
// injected, the coherence rules checked after every step, and every load compared with an oracle.
// HMMRT_SIM_SEED=n runs that schedule alone; HMMRT_SIM_SCHEDULES=n sets how many (default 10,000 over all policies).
#include <gtest/gtest.h>

#include <cstdlib>

#include "world.hpp"

namespace {

using hmmrt::Count;
using hmmrt::sim::Scheduler;
using hmmrt::sim::World;
using hmmrt::sim::WorldConfig;

std::uint64_t environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

class Schedules : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { hmmrt::set_park_hook(Scheduler::park_hook); }
  void TearDown() override { hmmrt::set_park_hook(nullptr); }
};

TEST_P(Schedules, keep_every_coherence_rule_and_lose_nothing) {
  const std::uint64_t only = environment("HMMRT_SIM_SEED", 0);
  const std::uint64_t first = only != 0 ? only : 1;
  const std::uint64_t count = only != 0 ? 1 : environment("HMMRT_SIM_SCHEDULES", 10'000) / 5;
  std::uint64_t faults = 0, evictions = 0, injected = 0, duplicates = 0, exclusive = 0, remote = 0, peer = 0;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    World world({seed, GetParam()});
    const std::string wrong = world.run();
    ASSERT_EQ(wrong, "") << "reproduce with HMMRT_SIM_SEED=" << seed << ", policy " << GetParam();
    faults += world.counters().get(Count::device_faults) + world.counters().get(Count::cpu_faults);
    evictions += world.counters().get(Count::evictions);
    duplicates += world.counters().get(Count::pages_duplicated);
    exclusive += world.counters().get(Count::exclusive_grants);
    remote += world.counters().get(Count::pages_mapped_remote);
    peer += world.counters().get(Count::pages_peer);
    injected += world.injected();
  }
  std::printf(
      "%s: %lu schedules; faults %lu, evictions %lu, duplicated %lu, exclusive %lu, remote %lu, peer %lu, "
      "injected failures %lu\n",
      GetParam(), count, faults, evictions, duplicates, exclusive, remote, peer, injected);
}

INSTANTIATE_TEST_SUITE_P(policies, Schedules,
                         testing::Values("adaptive", "first_touch_4k", "first_touch_2m", "uvm", "remote"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
