// SPDX-License-Identifier: MIT
#include "policy/uvm.hpp"

#include <algorithm>

#include "policy/advice.hpp"
#include "policy/density_tree.hpp"

namespace hmmrt {
namespace {

// Times are in microseconds, modulo 2^32.
struct UvmHistory {
  std::array<std::uint32_t, k_granules> stamp_us;  // latest change of processor
  std::array<std::uint8_t, k_granules> events;
  std::array<std::uint8_t, k_granules> throttles;
  std::array<std::uint8_t, k_granules> owner;  // processor + 1 that it moved to last; 0: never moved
  std::uint64_t last_event_ns;
  std::uint64_t pinned_until_ns;  // for the granules in `pinned`: pins of one block end together, with the latest
  GranuleSet pinned;
  GranuleSet napped;  // throttled since their latest change
  std::uint32_t nap_until_us;
  std::uint8_t napper;  // processor + 1 whose fault waits
  std::uint8_t resets;
};
static_assert(sizeof(UvmHistory) == 256);

std::uint32_t to_us(std::uint64_t ns) { return static_cast<std::uint32_t>(ns / 1000); }

void forget(UvmHistory& h, GranuleSet granules) {
  for_each_granule(granules, [&h](unsigned g) { h.events[g] = h.throttles[g] = 0; });
  h.napped &= ~granules;
  h.pinned &= ~granules;
}

// Timed unpin, and the epoch.
void expire(UvmHistory& h, std::uint64_t now_ns) {
  if (h.pinned != 0) {
    if (now_ns < h.pinned_until_ns) return;
    forget(h, h.pinned);
  }
  if (h.last_event_ns != 0 && now_ns - h.last_event_ns > UvmPolicy::k_epoch_ns && h.resets < UvmPolicy::k_max_resets) {
    forget(h, k_all_granules);
    h.last_event_ns = 0;
    ++h.resets;
  }
}

GranuleSet thrashing(const UvmHistory& h) {
  GranuleSet set = 0;
  for (unsigned g = 0; g < k_granules; ++g) set |= GranuleSet{h.events[g] >= UvmPolicy::k_threshold} << g;
  return set;
}

}  // namespace

void UvmPolicy::decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context,
                       Plan& plan) const {
  auto& h = block.history->as<UvmHistory>();
  expire(h, context.now_ns);
  PageMask open = apply_advice(block, group, context, plan);
  const GranuleSet thrash = thrashing(h);
  const std::uint32_t now_us = to_us(context.now_ns);
  const auto self = static_cast<std::uint8_t>(group.processor + 1);

  GranuleSet nap = 0;
  std::uint32_t nap_us = 0;
  for_each_granule(granules_of(open) & thrash & ~h.pinned, [&](unsigned g) {
    const GranuleSet bit = GranuleSet{1} << g;
    if (h.owner[g] == self) return;
    if (h.throttles[g] >= k_pin_after_throttles) {
      if (!context.can_map_remote) return;
      h.pinned |= bit;
      h.pinned_until_ns = context.now_ns + k_pin_ns;
      return;
    }
    const std::uint32_t left_us = h.nap_until_us - now_us;
    const bool napping = h.napper == self && left_us != 0 && left_us <= to_us(k_nap_ns);
    if ((h.napped & bit) == 0) {
      h.napped |= bit;
      ++h.throttles[g];
      h.napper = self;
      h.nap_until_us = now_us + to_us(k_nap_ns);
      nap_us = to_us(k_nap_ns);
    } else if (napping) {
      nap_us = std::max(nap_us, left_us);  // asked again too early, and not counted again
    } else {
      return;
    }
    nap |= bit;
  });

  if (context.can_map_remote && h.pinned != 0) {
    // Atomics that do not reach the owner's memory still have to migrate.
    const bool stuck = group.processor != k_cpu && !context.system_atomics;
    const PageMask pinned = (open & pages_of(h.pinned)) - (stuck ? group.atomic : PageMask{});
    if (pinned.any()) {
      plan.remote |= pinned;
      plan.pin_ns = h.pinned_until_ns - context.now_ns;
      plan.reason = Reason::thrash_pin;
      open &= ~pinned;
    }
  }
  if (nap != 0) {
    open &= ~pages_of(nap);
    plan.throttle_ns = nap_us * std::uint64_t{1000};
    plan.reason = Reason::thrash_throttle;
  }
  if (open.none()) return;

  const GranuleSet calm = ~(thrash | h.pinned);
  const PageMask region = density_region(block.resident_here, open, block.valid, k_density_threshold, calm);
  const PageMask extra = (region & pages_of(calm)) - not_to_prefetch(block, context) - plan.duplicate - plan.remote;
  plan.migrate |= open | extra;
  if (plan.reason == Reason::none) plan.reason = (extra - open).any() ? Reason::dense : Reason::sparse;
}

void UvmPolicy::on_migrated(BlockHistory& history, const PageMask& pages, Processor from, Processor to, Cause cause,
                            std::uint64_t now_ns) const {
  (void)from;
  auto& h = history.as<UvmHistory>();
  const std::uint32_t now_us = to_us(now_ns);
  const auto owner = static_cast<std::uint8_t>(to + 1);
  for_each_granule(granules_of(pages), [&](unsigned g) {
    const GranuleSet bit = GranuleSet{1} << g;
    if (cause == Cause::eviction) {
      h.owner[g] = 0;  // the way back is no event either
      return;
    }
    if (h.owner[g] == owner) return;
    if (h.owner[g] != 0) {
      const std::uint64_t limit_ns = (h.napped & bit) != 0 ? k_lapse_ns + k_nap_ns : k_lapse_ns;
      if (now_us - h.stamp_us[g] <= to_us(limit_ns)) {
        if (h.events[g] < 255) ++h.events[g];
        h.last_event_ns = now_ns;
      } else {
        h.events[g] = 0;
      }
    }
    h.owner[g] = owner;
    h.stamp_us[g] = now_us;
    h.napped &= ~bit;
  });
}

bool UvmPolicy::ping_pong(const BlockHistory& history, std::uint64_t now_ns) const {
  auto copy = history;
  auto& h = copy.as<UvmHistory>();
  expire(h, now_ns);
  return (h.pinned | thrashing(h)) != 0;
}

}  // namespace hmmrt
