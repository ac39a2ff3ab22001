// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "policy/victim.hpp"

namespace hmmrt {
namespace {

VictimCandidate block(std::uintptr_t base, std::uint64_t last_use) {
  VictimCandidate c;
  c.base = base;
  c.last_use = last_use;
  c.resident_pages = 512;
  return c;
}

TEST(policy_victim, the_least_recently_used_block_goes) {
  std::vector<VictimCandidate> c{block(1, 30), block(2, 10), block(3, 20)};
  EXPECT_EQ(choose_victim(c), 1u);
}

TEST(policy_victim, pinned_migrating_and_empty_blocks_never_go) {
  std::vector<VictimCandidate> c{block(1, 1), block(2, 2), block(3, 3), block(4, 4)};
  c[0].pinned = true;
  c[1].migrating = true;
  c[2].resident_pages = 0;
  EXPECT_EQ(choose_victim(c), 3u);
  c[3].pinned = true;
  EXPECT_EQ(choose_victim(c), k_no_victim);
  EXPECT_EQ(choose_victim({}), k_no_victim);
}

TEST(policy_victim, discarded_blocks_go_first_even_when_recent_or_preferred) {
  std::vector<VictimCandidate> c{block(1, 1), block(2, 99)};
  c[1].discarded = true;
  c[1].preferred_here = true;
  EXPECT_EQ(choose_victim(c), 1u);
}

TEST(policy_victim, clean_blocks_go_before_dirty_ones_unless_recently_used) {
  std::vector<VictimCandidate> c{block(1, 10), block(2, 20), block(3, 100)};
  c[1].clean_pages = 512;
  EXPECT_EQ(choose_victim(c), 1u);
  c[1].clean_pages = 511;
  EXPECT_EQ(choose_victim(c), 0u);
  c[2].clean_pages = 512;
  EXPECT_EQ(choose_victim(c), 0u);
}

TEST(policy_victim, blocks_that_prefer_the_device_go_last) {
  std::vector<VictimCandidate> c{block(1, 1), block(2, 1000)};
  c[0].preferred_here = true;
  EXPECT_EQ(choose_victim(c), 1u);
  c[1].pinned = true;
  EXPECT_EQ(choose_victim(c), 0u);
}

TEST(policy_victim, the_choice_does_not_depend_on_the_order_of_candidates) {
  std::mt19937_64 rng(3);
  for (int i = 0; i < 200; ++i) {
    std::vector<VictimCandidate> c;
    for (unsigned b = 0; b < 12; ++b) {
      auto x = block(b + 1, rng() % 4);
      x.resident_pages = static_cast<std::uint16_t>(1 + rng() % 3);
      x.clean_pages = static_cast<std::uint16_t>(rng() % 4);
      x.pinned = rng() % 5 == 0;
      x.preferred_here = rng() % 4 == 0;
      x.discarded = rng() % 8 == 0;
      c.push_back(x);
    }
    const std::size_t chosen = choose_victim(c);
    const std::uintptr_t base = chosen == k_no_victim ? 0 : c[chosen].base;
    std::shuffle(c.begin(), c.end(), rng);
    const std::size_t again = choose_victim(c);
    EXPECT_EQ(again == k_no_victim ? 0 : c[again].base, base);
  }
}

}  // namespace
}  // namespace hmmrt
