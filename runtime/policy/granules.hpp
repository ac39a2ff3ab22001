// SPDX-License-Identifier: MIT
// Granules: a block seen as 32 pieces of 64 KiB (16 pages), the grain at which policies grow faults and keep history.
// A set of granules is a 32-bit word, bit g = pages [16 g, 16 g + 16). Pure functions, a few word operations each.
#pragma once

#include <cstdint>

#include "space/page_mask.hpp"

namespace hmmrt {

constexpr unsigned k_granule_pages = 16;
constexpr unsigned k_granules = k_block_pages / k_granule_pages;
using GranuleSet = std::uint32_t;
constexpr GranuleSet k_all_granules = ~GranuleSet{0};

// Granules with at least one page in `pages`.
constexpr GranuleSet granules_of(const PageMask& pages) {
  constexpr std::uint64_t low = 0x7fff7fff7fff7fffu;
  GranuleSet set = 0;
  for (unsigned w = 0; w < PageMask::k_words; ++w) {
    const std::uint64_t x = pages.word(w);
    // The top bit of each 16-bit lane becomes "lane is not zero"; then the four bits are gathered.
    const std::uint64_t t = ((((x & low) + low) | x) & ~low) >> 15;
    set |= static_cast<GranuleSet>((t | t >> 15 | t >> 30 | t >> 45) & 0xf) << (4 * w);
  }
  return set;
}

// Every page of the granules in `set`.
constexpr PageMask pages_of(GranuleSet set) {
  PageMask pages;
  for (unsigned w = 0; w < PageMask::k_words; ++w) {
    const std::uint64_t n = (set >> (4 * w)) & 0xf;
    pages.set_word(w, ((n & 1) | (n & 2) << 15 | (n & 4) << 30 | (n & 8) << 45) * 0xffffu);
  }
  return pages;
}

// Pages of granule `g` in `pages`, 0..16.
constexpr unsigned count_in_granule(const PageMask& pages, unsigned g) {
  return static_cast<unsigned>(std::popcount((pages.word(g / 4) >> (g % 4 * 16)) & 0xffffu));
}

// Calls fn(g) for each granule in `set`, ascending.
template <class Fn>
constexpr void for_each_granule(GranuleSet set, Fn&& fn) {
  for (; set != 0; set &= set - 1) fn(static_cast<unsigned>(std::countr_zero(set)));
}

}  // namespace hmmrt
