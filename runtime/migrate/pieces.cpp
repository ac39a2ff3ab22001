// SPDX-License-Identifier: MIT
#include "migrate/pieces.hpp"

#include <algorithm>

namespace hmmrt {

std::vector<Piece> pieces_of(std::span<const Extent> extents) {
  std::vector<Piece> pieces;
  for (const Extent& e : extents) {
    const std::uintptr_t end = e.addr + e.bytes;
    for (std::uintptr_t base = block_floor(e.addr); base < end; base += k_block_size) {
      const std::uintptr_t from = std::max(e.addr, base);
      const std::uintptr_t to = std::min(end, base + k_block_size);
      const PageMask pages = PageMask::range(static_cast<unsigned>((from - base) >> k_page_shift),
                                             static_cast<unsigned>((to - from) >> k_page_shift));
      if (!pieces.empty() && pieces.back().base == base) {
        pieces.back().pages |= pages;
      } else {
        pieces.push_back({base, pages});
      }
    }
  }
  const auto lower = [](const Piece& x, const Piece& y) { return x.base < y.base; };
  if (!std::is_sorted(pieces.begin(), pieces.end(), lower)) std::stable_sort(pieces.begin(), pieces.end(), lower);
  std::size_t kept = 0;
  for (std::size_t i = 1; i < pieces.size(); ++i) {
    if (pieces[i].base == pieces[kept].base) {
      pieces[kept].pages |= pieces[i].pages;
    } else {
      pieces[++kept] = pieces[i];
    }
  }
  if (!pieces.empty()) pieces.resize(kept + 1);
  return pieces;
}

}  // namespace hmmrt
