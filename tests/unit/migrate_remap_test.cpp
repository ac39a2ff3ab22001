// SPDX-License-Identifier: MIT
// What is known about pages follows an mremap, over models of the two seams.
#include <gtest/gtest.h>

#include "unit/migrate_models.hpp"

namespace hmmrt {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

// A range of two blocks; the first one's pages are on the device.
class Remap : public testing::Test {
 protected:
  Remap() : world(2), pipeline(world.house, 1, 1) {
    Moves moves(world, 1);
    moves.wanted = [](std::size_t i) { return i == 0; };
    pipeline.run(world.size(), moves);
  }
  void follow(std::uintptr_t from, std::uintptr_t to, std::size_t bytes) {
    follow_remap(
        world.house, from, to, bytes, [](void*) {}, nullptr);
  }
  World world;
  Pipeline pipeline;
};

// In both: the event thread had noticed it, and not come to settle it, when the pages came.
TEST_F(Remap, what_was_noticed_at_the_new_addresses_is_not_about_what_comes_there) {
  notice(world.house, world.block(1), PageMask::all(), true);
  follow(world.base(0), world.base(1), k_block_size);
  EXPECT_EQ(world.house.unsettled, 0u);
  EXPECT_TRUE(world.block(0).valid.none());
  EXPECT_TRUE(world.block(1).valid.full());
  ASSERT_EQ(world.part(1).resident, k_used);
  k_used.for_each([&](unsigned p) { EXPECT_EQ(world.device.words[world.part(1).frames[p]], contents(0, p)) << p; });
}

TEST_F(Remap, what_was_dropped_before_is_dropped_at_the_new_addresses) {
  notice(world.house, world.block(0), PageMask::one(3), false);
  notice(world.house, world.block(1), PageMask::all(), true);
  follow(world.base(0), world.base(1), k_block_size);
  EXPECT_EQ(world.house.unsettled, 0u);
  EXPECT_EQ(world.part(1).resident, k_used - PageMask::one(3));
  EXPECT_TRUE(world.block(1).on_cpu.test(3));
}

TEST_F(Remap, registrations_that_move_together_stay_two_and_what_was_unregistered_before_stays_so) {
  PipelinePool pool(world.house, 1, 1);
  ASSERT_TRUE(unmanage(world.house, pool, world.space.find_range(world.base(0)), false).ok());
  Range* range = nullptr;
  ASSERT_TRUE(manage(world.house, world.base(0), k_block_size, true, &range).ok());
  const std::uintptr_t third = world.base(1) + k_page_size;
  ASSERT_TRUE(manage(world.house, third, k_page_size, true, &range).ok());
  const std::uintptr_t to = world.base(0) + (std::uintptr_t{1} << 40);
  follow(world.base(0), to, 2 * k_block_size);
  EXPECT_EQ(world.space.find_range(world.base(0)), nullptr);
  const Range* const first = world.space.find_range(to);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->bytes, k_block_size);
  EXPECT_EQ(world.space.find_range(to + k_block_size), nullptr);
  const Range* const second = world.space.find_range(third - world.base(0) + to);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->bytes, k_page_size);
  EXPECT_TRUE(world.space.find(to)->valid.full());
  EXPECT_EQ(world.space.find(to + k_block_size)->valid, PageMask::one(1));
}

}  // namespace
}  // namespace hmmrt
