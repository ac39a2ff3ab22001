// SPDX-License-Identifier: MIT
#include "policy/stream_ahead.hpp"

#include <algorithm>
#include <bit>

namespace hmmrt {

Ahead StreamAhead::note(std::uintptr_t base, std::uint64_t now_ns) {
  constexpr unsigned k_block_order = k_block_shift - k_page_shift;
  Stream* stream = nullptr;
  for (Stream& s : streams_) {
    if (s.blocks != 0 && s.next == base && now_ns - s.last_ns <= k_lapse_ns) stream = &s;
  }
  if (stream == nullptr) {
    stream = &*std::min_element(streams_.begin(), streams_.end(),
                                [](const Stream& a, const Stream& b) { return a.last_ns < b.last_ns; });
    *stream = Stream{};
  }
  stream->next = base + k_block_size;
  stream->last_ns = now_ns;
  ++stream->blocks;
  if (stream->blocks < k_start) return {};
  Ahead ahead;
  ahead.addr = stream->next;
  ahead.blocks = std::min(stream->blocks, k_most_blocks);
  ahead.order = k_block_order + static_cast<unsigned>(std::bit_width(ahead.blocks)) - 1;
  stream->blocks += ahead.blocks;
  stream->next += ahead.blocks * k_block_size;
  return ahead;
}

}  // namespace hmmrt
