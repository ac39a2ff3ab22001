// SPDX-License-Identifier: MIT
#include "policy/ping_pong.hpp"

#include <algorithm>

namespace hmmrt::ping_pong {
namespace {

// History::state: the owner (processor + 1; 0 none) in the low four bits, and flags.
constexpr std::uint8_t k_owner = 0x0f;
constexpr std::uint8_t k_pinned = 0x10;
constexpr std::uint8_t k_probe = 0x20;      // moved after a pin ended; nothing known yet
constexpr std::uint8_t k_evicted = 0x40;    // the latest move was an eviction
constexpr std::uint8_t k_throttled = 0x80;  // waited since the latest move
// History::level
constexpr std::uint8_t k_level = 0x0f;
constexpr std::uint8_t k_width = 0x30;  // pages faulted this stay, saturating at 3
constexpr unsigned k_width_shift = 4;
constexpr std::uint8_t k_capacity = 0x40;  // the pin is for capacity thrash
constexpr unsigned k_most_refaults = 15;
constexpr unsigned k_sparse_pages = 4;  // faulted in a granule

std::uint32_t to_ticks(std::uint64_t ns) { return static_cast<std::uint32_t>(ns >> 10); }
std::uint64_t to_ns(std::uint32_t ticks) { return std::uint64_t{ticks} << 10; }

unsigned heat_of(const History& h, unsigned g) { return h.heat[g] & 0x0fu; }
unsigned refaults_of(const History& h, unsigned g) { return h.heat[g] >> 4; }
void set_heat(History& h, unsigned g, unsigned heat) {
  h.heat[g] = static_cast<std::uint8_t>((h.heat[g] & 0xf0u) | std::min(heat, 15u));
}
void set_refaults(History& h, unsigned g, unsigned n) {
  h.heat[g] = static_cast<std::uint8_t>((h.heat[g] & 0x0fu) | std::min(n, k_most_refaults) << 4);
}
void set_level(History& h, unsigned g, unsigned level) {
  h.level[g] = static_cast<std::uint8_t>((h.level[g] & ~unsigned{k_level}) | std::min(level, 10u));
}
unsigned level_of(const History& h, unsigned g) { return h.level[g] & k_level; }

void average(std::uint32_t& value, std::uint32_t sample) {
  value = value == 0 ? std::max(sample, 1u)
                     : static_cast<std::uint32_t>((std::uint64_t{value} * 3 + std::max(sample, 1u)) / 4);
}

// Ticks until the pin of granule g ends; 0 when it has none. More than the longest pin means that the clock wrapped.
std::uint32_t pin_left(const History& h, unsigned g, std::uint32_t now) {
  if ((h.state[g] & k_pinned) == 0) return 0;
  const std::uint32_t left = h.stamp[g] - now;
  return left <= to_ticks(k_longest_pin_ns) ? left : 0;
}

std::uint64_t soon_ns(const History& h) {
  if (h.refault_average == 0) return k_soon_ns;
  return std::clamp<std::uint64_t>(8 * to_ns(h.refault_average), 10'000'000, 2'000'000'000);
}

// The granule before or after is all here: the access walks through the block rather than hopping about.
bool in_sequence(const PageMask& here, unsigned g) {
  return (g > 0 && count_in_granule(here, g - 1) == k_granule_pages) ||
         (g + 1 < k_granules && count_in_granule(here, g + 1) == k_granule_pages);
}

void start_pin(History& h, unsigned g, std::uint32_t now, bool capacity) {
  if ((h.state[g] & k_probe) != 0) set_level(h, g, level_of(h, g) + 1);
  const std::uint64_t base = capacity ? 8 * to_ns(h.refault_average) : k_pin_flips * to_ns(h.flip_average);
  const std::uint64_t first = std::clamp(base, k_shortest_pin_ns, k_longest_first_pin_ns);
  const std::uint64_t pin = std::min(first << level_of(h, g), k_longest_pin_ns);
  h.stamp[g] = now + to_ticks(pin);
  h.state[g] = static_cast<std::uint8_t>((h.state[g] | k_pinned) & ~unsigned{k_probe | k_throttled});
  h.level[g] = static_cast<std::uint8_t>(capacity ? h.level[g] | k_capacity : h.level[g] & ~unsigned{k_capacity});
}

// The pin is over: what the next move shows counts, nothing before it.
void end_pin(History& h, unsigned g) {
  h.state[g] = k_probe;
  if ((h.level[g] & k_capacity) == 0) set_heat(h, g, k_hot - 1);
}

// Heat goes when nothing has happened for long.
void cool(History& h, unsigned g, std::uint64_t stayed_ns, std::uint64_t limit_ns) {
  if (stayed_ns <= 8 * limit_ns) return;
  set_heat(h, g, 0);
  if ((h.state[g] & k_probe) != 0) set_level(h, g, level_of(h, g) / 2);
  h.state[g] &= static_cast<std::uint8_t>(~unsigned{k_probe});
}

}  // namespace

std::uint64_t stay_limit_ns(const History& h) {
  const std::uint64_t fault_ns = h.fault_ns != 0 ? h.fault_ns : k_default_fault_ns;
  const std::uint64_t faults_ns = fault_ns * (h.last_moves + h.trip_moves) / 2;
  const std::uint64_t copy_ns = std::uint64_t{k_page_copy_ns} * (h.last_pages + h.trip_pages) / 2;
  return std::clamp(k_stay_factor * (std::max(faults_ns, fault_ns) + copy_ns), k_shortest_limit_ns, k_longest_limit_ns);
}

Verdict assess(History& h, const PageMask& open, const PageMask& resident_here, Processor who,
               const PolicyContext& context, bool crowded) {
  Verdict v;
  const PageMask in_reach = resident_here | open;
  if (context.fault_ns != 0) h.fault_ns = context.fault_ns;
  const std::uint32_t now = to_ticks(context.now_ns);
  const std::uint64_t limit_ns = stay_limit_ns(h);
  const GranuleSet touched = granules_of(open);
  const bool scattered = crowded && open.count() <= 2 * k_granules;
  std::uint32_t pin_ticks = 0;

  for_each_granule(touched, [&](unsigned g) {
    const GranuleSet bit = GranuleSet{1} << g;
    const unsigned pages = count_in_granule(open, g);
    if ((h.state[g] & k_pinned) != 0 && pin_left(h, g, now) == 0) end_pin(h, g);
    // Pages it faulted this stay; a stay that has yet to begin starts from none.
    const unsigned before = (h.state[g] & k_owner) == who + 1u ? (h.level[g] & k_width) >> k_width_shift : 0;
    const unsigned width = std::min(before + pages, 3u);
    h.level[g] = static_cast<std::uint8_t>((h.level[g] & ~unsigned{k_width}) | width << k_width_shift);

    if ((h.state[g] & k_pinned) == 0) {
      const unsigned owner = h.state[g] & k_owner;
      const std::uint64_t stayed_ns = to_ns(now - h.stamp[g]);
      if ((h.state[g] & k_evicted) != 0) {
        const bool soon = stayed_ns < soon_ns(h);
        v.refaulting |= soon;
        if (soon && scattered && who != k_cpu && context.can_map_remote && pages <= k_sparse_pages &&
            refaults_of(h, g) + 1 >= 2) {
          start_pin(h, g, now, true);
        }
      } else if (owner != 0) {
        cool(h, g, stayed_ns, limit_ns);
        if (owner != who + 1u && stayed_ns < limit_ns && heat_of(h, g) + 1 >= k_hot) start_pin(h, g, now, false);
      }
    }
    if ((h.state[g] & k_pinned) != 0) {
      ((h.level[g] & k_capacity) != 0 ? v.thrash : v.pinned) |= bit;
      if ((h.state[g] & k_throttled) == 0) v.throttle |= bit;
      pin_ticks = std::max(pin_ticks, pin_left(h, g, now));
    }
    v.sparse |= pages < k_granule_pages / 2 && !in_sequence(in_reach, g);
    const bool suspect = heat_of(h, g) != 0 || (h.state[g] & (k_pinned | k_probe)) != 0 ||
                         (crowded && refaults_of(h, g) != 0 && !in_sequence(in_reach, g));
    if (suspect && width < 3) v.narrow |= bit;
  });
  for (unsigned g = 0; g < k_granules; ++g) {
    const bool warm =
        (h.state[g] & (k_pinned | k_probe)) != 0 || (heat_of(h, g) != 0 && to_ns(now - h.stamp[g]) <= 8 * limit_ns);
    v.warm |= GranuleSet{warm} << g;
    v.held |= GranuleSet{pin_left(h, g, now) != 0} << g;
  }
  v.pin_ns = to_ns(pin_ticks);
  return v;
}

void record_move(History& h, const PageMask& pages, Processor to, Cause cause, std::uint64_t now_ns) {
  const std::uint32_t now = to_ticks(now_ns);
  const unsigned owner = to + 1u;
  const bool by_fault = cause == Cause::fault || cause == Cause::prefetch_heuristic;
  if (cause == Cause::coherence) return;
  if (by_fault) {
    if (h.trip_owner != owner) {
      h.last_pages = h.trip_pages;
      h.last_moves = h.trip_moves;
      h.trip_pages = h.trip_moves = 0;
      h.trip_owner = static_cast<std::uint8_t>(owner);
    }
    h.trip_pages = static_cast<std::uint16_t>(std::min(h.trip_pages + pages.count(), k_block_pages));
    if (cause == Cause::fault && h.trip_moves < k_block_pages) ++h.trip_moves;
  }
  const std::uint64_t limit_ns = stay_limit_ns(h);

  for_each_granule(granules_of(pages), [&](unsigned g) {
    std::uint8_t& state = h.state[g];
    if (cause == Cause::eviction) {
      if (pin_left(h, g, now) != 0) return;
      state = static_cast<std::uint8_t>(k_evicted | (state & k_probe) | owner);
      h.stamp[g] = now;
      return;
    }
    if (!by_fault) {  // someone said where it belongs: start afresh
      state = static_cast<std::uint8_t>(owner);
      h.heat[g] = h.level[g] = 0;
      h.stamp[g] = now;
      return;
    }
    if (pin_left(h, g, now) != 0) {
      state = static_cast<std::uint8_t>((state & ~unsigned{k_owner | k_throttled}) | owner);
      return;
    }
    const unsigned before = state & k_owner;
    const std::uint32_t stayed = now - h.stamp[g];
    if ((state & k_evicted) != 0) {
      if (to_ns(stayed) < soon_ns(h)) {
        set_refaults(h, g, refaults_of(h, g) + 1);
        average(h.refault_average, stayed);
      } else {
        set_refaults(h, g, refaults_of(h, g) / 2);
      }
    } else if (before == owner) {
      return;  // more pages of the same stay
    } else if (before != 0) {
      if (to_ns(stayed) < limit_ns) {
        set_heat(h, g, heat_of(h, g) + 1);
        average(h.flip_average, stayed);
      } else {
        set_heat(h, g, heat_of(h, g) / 2);
        set_level(h, g, level_of(h, g) / 2);
        state &= static_cast<std::uint8_t>(~unsigned{k_probe});
      }
    }
    state = static_cast<std::uint8_t>((state & k_probe) | owner);
    h.stamp[g] = now;
  });
}

void note_throttle(History& h, GranuleSet granules) {
  for_each_granule(granules, [&h](unsigned g) { h.state[g] |= k_throttled; });
}

bool any_hot(const History& h, std::uint64_t now_ns) {
  const std::uint32_t now = to_ticks(now_ns);
  for (unsigned g = 0; g < k_granules; ++g) {
    if (pin_left(h, g, now) != 0 && (h.level[g] & k_capacity) == 0) return true;
    if ((h.state[g] & k_pinned) == 0 && heat_of(h, g) >= k_hot && to_ns(now - h.stamp[g]) <= 8 * stay_limit_ns(h)) {
      return true;
    }
  }
  return false;
}

}  // namespace hmmrt::ping_pong
