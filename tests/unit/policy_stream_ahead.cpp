// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include "policy/stream_ahead.hpp"

namespace hmmrt {
namespace {

constexpr std::uintptr_t k_base = std::uintptr_t{1} << 40;
constexpr std::uint64_t k_step_ns = 100'000;
std::uintptr_t block(unsigned i) { return k_base + i * k_block_size; }

TEST(StreamAhead, three_blocks_in_order_are_a_stream) {
  StreamAhead s;
  EXPECT_EQ(s.note(block(0), 1).blocks, 0u);
  EXPECT_EQ(s.note(block(1), 1 + k_step_ns).blocks, 0u);
  const Ahead ahead = s.note(block(2), 1 + 2 * k_step_ns);
  EXPECT_EQ(ahead.addr, block(3));
  EXPECT_EQ(ahead.blocks, 3u);
  EXPECT_EQ(ahead.order, 10u);  // 4 MiB
}

TEST(StreamAhead, its_next_fault_is_behind_what_was_brought) {
  StreamAhead s;
  for (unsigned i = 0; i < 3; ++i) (void)s.note(block(i), 1 + i);
  const Ahead ahead = s.note(block(6), 10);
  EXPECT_EQ(ahead.addr, block(7));
  EXPECT_EQ(ahead.blocks, 7u);
}

TEST(StreamAhead, it_never_runs_further_than_its_limit) {
  StreamAhead s;
  unsigned at = 0, most = 0;
  for (unsigned i = 0; i < 50; ++i) {
    const Ahead ahead = s.note(block(at), 1 + i);
    at += 1 + ahead.blocks;
    most = std::max(most, ahead.blocks);
  }
  EXPECT_EQ(most, StreamAhead::k_most_blocks);
}

TEST(StreamAhead, scattered_blocks_bring_nothing) {
  StreamAhead s;
  for (unsigned i = 0; i < 1000; ++i) EXPECT_EQ(s.note(block(i * 7919 % 4093 * 2), 1 + i).blocks, 0u) << i;
}

TEST(StreamAhead, a_stream_that_pauses_starts_anew) {
  StreamAhead s;
  (void)s.note(block(0), 1);
  (void)s.note(block(1), 2);
  EXPECT_EQ(s.note(block(2), 3 + StreamAhead::k_lapse_ns).blocks, 0u);
}

TEST(StreamAhead, several_streams_at_once_are_kept_apart) {
  StreamAhead s;
  unsigned found = 0;
  for (unsigned i = 0; i < 3; ++i) {
    for (unsigned stream = 0; stream < StreamAhead::k_streams; ++stream) {
      const Ahead ahead = s.note(block(stream * 1000 + i), 1 + i * 10 + stream);
      if (ahead.blocks != 0) ++found;
    }
  }
  EXPECT_EQ(found, StreamAhead::k_streams);
}

}  // namespace
}  // namespace hmmrt
