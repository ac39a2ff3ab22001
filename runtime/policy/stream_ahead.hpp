// SPDX-License-Identifier: MIT
// Recognises blocks that a device uses one after the other, where a driver brings each for a fault of its own: how far to
// bring more in one go. One object a device; pure but for what it remembers of the latest streams.
//
// A stream is k_start blocks in ascending order, each faulted in within k_lapse_ns of the one before. It is then run ahead of
// by as many blocks as it has had, at most k_most_blocks, and its next fault is expected behind those.
#pragma once

#include <array>
#include <cstdint>

#include "space/page.hpp"

namespace hmmrt {

struct Ahead {
  std::uintptr_t addr = 0;  // block aligned
  unsigned blocks = 0;      // 0: nothing to do
  unsigned order = 0;       // log2 pages that a fault there should move
};

class StreamAhead {
 public:
  static constexpr unsigned k_start = 3, k_most_blocks = 16, k_streams = 8;
  static constexpr std::uint64_t k_lapse_ns = 1'000'000'000;

  // The block at `base` was brought in for a fault at `now_ns`.
  Ahead note(std::uintptr_t base, std::uint64_t now_ns);

 private:
  struct Stream {
    std::uintptr_t next = 0;
    std::uint64_t last_ns = 0;
    unsigned blocks = 0;
  };
  std::array<Stream, k_streams> streams_{};
};

}  // namespace hmmrt
