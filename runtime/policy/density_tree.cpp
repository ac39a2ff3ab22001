// SPDX-License-Identifier: MIT
// The tree is counted in 16-bit lanes of 64-bit words, four nodes a word: 8 words of granules, 4 of pairs, and so on up
// to one node for the block. No branch depends on the masks. A lane never overflows: 512 * 100 < 65536.
#include "policy/density_tree.hpp"

#include <array>
#include <utility>

namespace hmmrt {
namespace {

constexpr unsigned k_levels = 6;  // spans of 1, 2, 4, 8, 16, 32 granules
using Lanes = std::array<std::uint64_t, PageMask::k_words>;

// Pages per granule: the classic parallel bit count, stopped at 16-bit lanes.
Lanes count_granules(const PageMask& pages) {
  Lanes lanes;
  for (unsigned w = 0; w < PageMask::k_words; ++w) {
    std::uint64_t x = pages.word(w);
    x -= (x >> 1) & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    lanes[w] = (x + (x >> 8)) & 0x001f001f001f001fu;
  }
  return lanes;
}

// Sums of neighbouring lanes, packed: from k_count words to half as many (one stays one).
template <unsigned k_count>
void pair_up(Lanes& lanes) {
  const auto sums = [](std::uint64_t x) {
    x = (x & 0x0000ffff0000ffffu) + ((x >> 16) & 0x0000ffff0000ffffu);
    return (x | x >> 16) & 0xffffffffu;
  };
  if constexpr (k_count == 1) {
    lanes[0] = sums(lanes[0]);
  } else {
    for (std::size_t w = 0; w < k_count / 2; ++w) lanes[w] = sums(lanes[2 * w]) | sums(lanes[2 * w + 1]) << 32;
  }
}

// One bit per lane, a > b (unsigned).
std::uint32_t greater(std::uint64_t a, std::uint64_t b) {
  constexpr std::uint64_t high = 0x8000800080008000u;
  const std::uint64_t difference = (b | high) - (a & ~high);
  const std::uint64_t at_most = (b & ~a) | (~(b ^ a) & difference);  // top bit of each lane: b >= a
  const std::uint64_t t = (~at_most & high) >> 15;
  return static_cast<std::uint32_t>((t | t >> 15 | t >> 30 | t >> 45) & 0xf);
}

// Bit n of the result: bit 2n or bit 2n + 1 of `x`.
std::uint32_t parents(std::uint32_t x) {
  x = (x | x >> 1) & 0x55555555u;
  x = (x | x >> 1) & 0x33333333u;
  x = (x | x >> 2) & 0x0f0f0f0fu;
  x = (x | x >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0x0000ffffu;
}

// Bits 2n and 2n + 1 of the result: bit n of `x`.
std::uint32_t children(std::uint32_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  x = (x | x << 4) & 0x0f0f0f0fu;
  x = (x | x << 2) & 0x33333333u;
  x = (x | x << 1) & 0x55555555u;
  return x | x << 1;
}

// The granules of the largest dense ancestors of `touched`. `k_whole`: every page of the block is valid, so that a
// node's room is known without counting.
template <bool k_whole>
GranuleSet dense_granules(const PageMask& set, const PageMask& valid, GranuleSet touched, unsigned threshold_percent) {
  Lanes have = count_granules(set);
  Lanes room{};
  if constexpr (!k_whole) room = count_granules(valid);
  std::uint64_t bar = 0x0010001000100010u * threshold_percent;

  // Bottom up: at each level, the nodes with a fault below them that are dense enough. Unrolled at compile time.
  std::array<std::uint32_t, k_levels> dense;
  GranuleSet nodes = touched;
  const auto count_level = [&]<std::size_t k_level>(std::integral_constant<std::size_t, k_level>) {
    constexpr unsigned k_count = k_level < 3 ? PageMask::k_words >> k_level : 1;
    std::uint32_t bits = 0;
    for (unsigned w = 0; w < k_count; ++w) {
      if constexpr (!k_whole) bar = room[w] * threshold_percent;
      bits |= greater(have[w] * 100, bar) << (4 * w);
    }
    dense[k_level] = bits & nodes;
    nodes = parents(nodes);
    pair_up<k_count>(have);
    if constexpr (!k_whole) pair_up<k_count>(room);
    if constexpr (k_whole) bar *= 2;
  };
  [&]<std::size_t... k_level>(std::index_sequence<k_level...>) {
    (count_level(std::integral_constant<std::size_t, k_level>{}), ...);
  }
  (std::make_index_sequence<k_levels>{});
  // Top down: what a node takes, its children take.
  GranuleSet taken = dense[k_levels - 1];
  for (unsigned level = k_levels - 1; level-- > 0;) taken = children(taken) | dense[level];
  return taken;
}

}  // namespace

PageMask density_region(const PageMask& resident, const PageMask& faulted, const PageMask& valid,
                        unsigned threshold_percent, GranuleSet grow) {
  const PageMask wanted = faulted & valid;
  if (threshold_percent >= 100) return wanted;
  const GranuleSet touched = granules_of(wanted);
  const PageMask set = (resident | wanted | pages_of(touched & grow)) & valid;
  const GranuleSet taken = valid.full() ? dense_granules<true>(set, valid, touched, threshold_percent)
                                        : dense_granules<false>(set, valid, touched, threshold_percent);
  return wanted | (pages_of(taken) & valid);
}

}  // namespace hmmrt
