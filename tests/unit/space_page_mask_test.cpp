// SPDX-License-Identifier: MIT
// PageMask against a plain array of flags, and the other small things of the bottom rooms.
#include <gtest/gtest.h>

#include <bitset>
#include <random>

#include "space/address_space.hpp"
#include "space/page_mask.hpp"
#include "space/resident_list.hpp"
#include "trace/histogram.hpp"

namespace hmmrt {
namespace {

using Flags = std::bitset<k_block_pages>;

Flags flags_of(const PageMask& m) {
  Flags f;
  for (unsigned i = 0; i < k_block_pages; ++i) f[i] = m.test(i);
  return f;
}

TEST(PageMask, agrees_with_an_array_of_flags) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    PageMask a, b;
    Flags fa, fb;
    for (int i = 0; i < 8; ++i) {
      const unsigned first = random() % k_block_pages;
      const unsigned count = random() % (k_block_pages - first + 1);
      a.set(first, count);
      for (unsigned p = first; p < first + count; ++p) fa[p] = true;
      const unsigned page = random() % k_block_pages;
      a.clear(page);
      fa[page] = false;
      b.set(random() % k_block_pages);
    }
    fb = flags_of(b);
    ASSERT_EQ(flags_of(a), fa);
    EXPECT_EQ(flags_of(a | b), fa | fb);
    EXPECT_EQ(flags_of(a & b), fa & fb);
    EXPECT_EQ(flags_of(a - b), fa & ~fb);
    EXPECT_EQ(flags_of(~a), ~fa);
    EXPECT_EQ(a.count(), fa.count());
    EXPECT_EQ(a.any(), fa.any());
    EXPECT_EQ(a.contains(b), (fb & ~fa).none());
    Flags runs;
    unsigned last_end = 0;
    a.for_each_run([&](unsigned first, unsigned count) {
      EXPECT_TRUE(first == 0 || first > last_end);
      last_end = first + count;
      for (unsigned p = first; p < first + count; ++p) runs[p] = true;
    });
    EXPECT_EQ(runs, fa);
    Flags each;
    a.for_each([&](unsigned page) { each[page] = true; });
    EXPECT_EQ(each, fa);
  }
}

TEST(Histogram, percentiles_are_within_a_sixteenth) {
  Histogram h;
  for (std::uint64_t v = 1; v <= 100'000; ++v) h.add(v);
  EXPECT_EQ(h.count(), 100'000u);
  EXPECT_EQ(h.max(), 100'000u);
  for (const unsigned percent : {1u, 50u, 90u, 99u}) {
    const double exact = 1000.0 * percent;
    EXPECT_NEAR(static_cast<double>(h.percentile(percent)), exact, exact / 16 + 1) << percent;
  }
  h.reset();
  EXPECT_EQ(h.percentile(50), 0u);
}

TEST(AddressSpace, ranges_may_touch_but_not_overlap) {
  AddressSpace space;
  Range* a = nullptr;
  Range* b = nullptr;
  constexpr std::uintptr_t k_at = 0x7000'0000'0000;
  ASSERT_TRUE(space.make_blocks(k_at, 4 * k_page_size).ok());
  ASSERT_TRUE(space.add_range(k_at, 3 * k_page_size, true, &a).ok());
  EXPECT_EQ(space.add_range(k_at + 2 * k_page_size, k_page_size, true, &b).code(), HMMRT_ERROR_ALREADY_MANAGED);
  ASSERT_TRUE(space.add_range(k_at + 3 * k_page_size, k_page_size, true, &b).ok());
  EXPECT_TRUE(space.managed(k_at, 4 * k_page_size));
  EXPECT_FALSE(space.managed(k_at, 5 * k_page_size));
  EXPECT_EQ(space.find_range(k_at + 3 * k_page_size), b);
  EXPECT_EQ(space.find(k_at), space.find(k_at + 3 * k_page_size));
  EXPECT_EQ(space.find(k_at - k_block_size), nullptr);
  space.forget_range(a);
  EXPECT_EQ(space.find_range(k_at), nullptr);
  EXPECT_EQ(space.managed_bytes(), k_page_size);
}

TEST(Block, release_stops_for_notices_and_tells_of_waiting_cpu_faults) {
  Block block(0);
  ASSERT_TRUE(block.try_claim());
  EXPECT_FALSE(block.try_claim());
  block.notices.removed.set(3);
  EXPECT_EQ(block.try_release(), Block::Released::no);
  block.notices.removed = PageMask{};
  block.notices.cpu_waiting = true;
  EXPECT_EQ(block.try_release(), Block::Released::yes_cpu_waiting);
  ASSERT_TRUE(block.try_claim());
  EXPECT_EQ(block.try_release(), Block::Released::yes);
}

TEST(ResidentList, goes_round_from_the_oldest) {
  Block blocks[3] = {Block(0), Block(k_block_size), Block(2 * k_block_size)};
  DevicePart parts[3] = {DevicePart(&blocks[0]), DevicePart(&blocks[1]), DevicePart(&blocks[2])};
  ResidentList list;
  for (DevicePart& part : parts) list.renew(part);
  Block* out[4];
  ASSERT_EQ(list.take_oldest(out, 2), 2u);
  EXPECT_EQ(out[0], &blocks[0]);
  EXPECT_EQ(out[1], &blocks[1]);
  list.remove(parts[2]);
  ASSERT_EQ(list.take_oldest(out, 4), 2u);
  EXPECT_EQ(out[0], &blocks[0]);
  list.remove(parts[0]);
  list.remove(parts[1]);
  list.remove(parts[1]);
  EXPECT_EQ(list.take_oldest(out, 4), 0u);
}

}  // namespace
}  // namespace hmmrt
