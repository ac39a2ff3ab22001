// SPDX-License-Identifier: MIT
// The frame allocator against a brute-force model: one bool per frame.
#include <algorithm>
#include <random>

#include "device/soft/frame_memory.hpp"
#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

TEST(SoftFrames, agree_with_a_model_of_one_bool_a_frame) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  constexpr std::uint64_t k_chunks = 9;
  FrameMemory memory(k_chunks * k_block_size + 37 * k_page_size, false);
  ASSERT_EQ(memory.count(), k_chunks * 512 + 37);
  std::vector<bool> used(memory.count(), false);
  struct Held {
    PageMask pages;
    std::array<Frame, 512> frames;
  };
  std::vector<Held> held;
  for (int round = 0; round < 6000; ++round) {
    const std::uint64_t free = static_cast<std::uint64_t>(std::count(used.begin(), used.end(), false));
    ASSERT_EQ(memory.free_count(), free);
    if (rng() % 100 < 55) {
      Held h;
      switch (rng() % 4) {
        case 0:
          h.pages = PageMask::all();
          break;
        case 1:
          h.pages = PageMask::one(rng() % 512);
          break;
        case 2: {
          const unsigned first = rng() % 512;
          h.pages = PageMask::range(first, 1 + rng() % (512 - first));
          break;
        }
        default:
          for (int i = 0; i < 100; ++i) h.pages.set(rng() % 512);
      }
      h.frames.fill(k_no_frame);
      bool whole_chunk = false;
      for (std::uint64_t c = 0; c < k_chunks; ++c) {
        whole_chunk |= std::none_of(used.begin() + static_cast<long>(c * 512),
                                    used.begin() + static_cast<long>(c * 512 + 512), [](bool b) { return b; });
      }
      const bool got = memory.allocate(h.pages, h.frames.data());
      ASSERT_EQ(got, h.pages.count() <= free);
      for (unsigned i = 0; i < 512; ++i) {
        if (!got || !h.pages.test(i)) {
          ASSERT_EQ(h.frames[i], k_no_frame);
          continue;
        }
        ASSERT_LT(h.frames[i], memory.count());
        ASSERT_FALSE(used[h.frames[i]]);
        used[h.frames[i]] = true;
      }
      if (got && h.pages.full() && whole_chunk) {
        ASSERT_EQ(h.frames[0] % 512, 0u);
        ASSERT_EQ(h.frames[511], h.frames[0] + 511);
      }
      if (got) held.push_back(h);
    } else if (!held.empty()) {
      const std::size_t k = rng() % held.size();
      const PageMask some = rng() % 2 != 0 ? held[k].pages : held[k].pages & PageMask::range(0, 256);
      memory.free(some, held[k].frames.data());
      some.for_each([&](unsigned i) { used[held[k].frames[i]] = false; });
      held[k].pages = held[k].pages - some;
      if (held[k].pages.none()) {
        held[k] = held.back();
        held.pop_back();
      }
    }
  }
}

TEST(SoftFrames, a_run_of_pages_gets_adjoining_frames_when_there_are_any) {
  FrameMemory memory(4 * k_block_size, false);
  Frame frames[512];
  ASSERT_TRUE(memory.allocate(PageMask::one(3), frames));
  ASSERT_TRUE(memory.allocate(PageMask::range(16, 16), frames));
  for (unsigned i = 17; i < 32; ++i) EXPECT_EQ(frames[i], frames[16] + (i - 16));
}

TEST(SoftFrames, a_full_device_changes_nothing) {
  FrameMemory memory(k_block_size, false);
  Frame frames[512];
  ASSERT_TRUE(memory.allocate(PageMask::range(0, 500), frames));
  Frame more[512];
  std::fill(std::begin(more), std::end(more), Frame{77});
  EXPECT_FALSE(memory.allocate(PageMask::range(0, 13), more));
  EXPECT_EQ(more[0], 77u);
  EXPECT_TRUE(memory.allocate(PageMask::range(0, 12), more));
  EXPECT_EQ(memory.free_count(), 0u);
}

TEST(SoftFrames, zeroing_clears_only_what_was_asked) {
  Rig rig;
  Frame frames[512];
  ASSERT_TRUE(rig.device.allocate_frames(0, PageMask::range(0, 3), frames));
  for (int i = 0; i < 3; ++i) std::memset(rig.device.frame_address(frames[i]), 0x5a, k_page_size);
  EXPECT_TRUE(rig.device.zero_frames(PageMask::one(1), frames));
  EXPECT_EQ(rig.device.frame_address(frames[0])[100], std::byte{0x5a});
  EXPECT_EQ(rig.device.frame_address(frames[1])[100], std::byte{0});
  EXPECT_EQ(rig.device.frame_address(frames[2])[100], std::byte{0x5a});
}

}  // namespace
}  // namespace hmmrt::test
