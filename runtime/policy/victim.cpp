// SPDX-License-Identifier: MIT
#include "policy/victim.hpp"

#include <algorithm>
#include <limits>
#include <tuple>

namespace hmmrt {

std::size_t choose_victim(std::span<const VictimCandidate> candidates) {
  const auto may_go = [](const VictimCandidate& c) { return !c.pinned && !c.migrating && c.resident_pages != 0; };

  std::uint64_t oldest = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t newest = 0;
  for (const auto& c : candidates) {
    if (!may_go(c)) continue;
    oldest = std::min(oldest, c.last_use);
    newest = std::max(newest, c.last_use);
  }
  const std::uint64_t old_half = oldest <= newest ? oldest + (newest - oldest) / 2 : 0;

  const auto rank = [old_half](const VictimCandidate& c) {
    unsigned order = 2;
    if (c.discarded) {
      order = 0;
    } else if (c.preferred_here) {
      order = 3;
    } else if (c.clean_pages >= c.resident_pages && c.last_use <= old_half) {
      order = 1;
    }
    return std::tuple(order, c.last_use, -static_cast<int>(c.resident_pages), c.base);
  };

  std::size_t best = k_no_victim;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (!may_go(candidates[i])) continue;
    if (best == k_no_victim || rank(candidates[i]) < rank(candidates[best])) best = i;
  }
  return best;
}

}  // namespace hmmrt
