// SPDX-License-Identifier: MIT
// The ping-pong detector of the adaptive policy: what one block remembers about itself, per granule of 64 KiB, in the
// 256 bytes of its BlockHistory. All functions are pure over (history, arguments).
//
//   flip      a granule moves by fault to another processor than last time. It is *fast* when the stay it ends was
//             shorter than stay_limit: 64 times what moving this block's recent traffic costs. Moving 2 MiB every
//             100 ms is not fast, moving 4 KiB every 20 us is.
//   heat      +1 for each fast flip, halved by a slow one, gone after 8 limits without any. The first processor to take
//             data that another only initialised makes no flip, and reading results once makes one: neither is enough.
//   warm      heat >= 1: excluded from prefetch; faults bring single pages until three of them show real use. False
//             sharing inside a block ends here, at no cost.
//   pinned    heat would reach 3 with the fault at hand: the granule is held where it is (a processor that cannot map
//             remotely first brings its page home) and others map it remotely. That takes two round trips.
//   probe     a pin ends by itself; the next fault migrates again. Taken away again fast: pinned anew, twice as long
//             (at most k_longest_pin). Left alone: trusted again, and the pin time shrinks back. Staying *pinned* never
//             takes longer than about the time the block has already wasted, so a new phase is learnt soon.
//   refault   a granule evicted from a device is faulted back soon. Twice, on a full device and for sparse use: pinned
//             in system memory in the same way (capacity thrash).
//
// Granule times are in ticks of 1024 ns, modulo 2^32 (73 minutes): after a quiet hour an event may be judged fast that
// was not, which costs at most one unneeded unit of heat.
#pragma once

#include "policy/granules.hpp"
#include "policy/policy.hpp"

namespace hmmrt::ping_pong {

constexpr unsigned k_hot = 3;                           // heat at which a granule is pinned
constexpr unsigned k_stay_factor = 64;                  // a stay this many moves long is worth its moves
constexpr std::uint64_t k_shortest_limit_ns = 100'000;  // bounds of stay_limit
constexpr std::uint64_t k_longest_limit_ns = 50'000'000;
constexpr unsigned k_pin_flips = 256;                    // a first pin lasts this many average stays
constexpr std::uint64_t k_shortest_pin_ns = 10'000'000;  // bounds of a first pin
constexpr std::uint64_t k_longest_first_pin_ns = 500'000'000;
constexpr std::uint64_t k_longest_pin_ns = 4'000'000'000;  // after doubling
constexpr std::uint64_t k_soon_ns = 500'000'000;           // "soon" for refaults, before any was seen
constexpr std::uint32_t k_default_fault_ns = 10'000;       // where the service has not measured it yet
constexpr std::uint32_t k_page_copy_ns = 400;              // 4 KiB at about 10 GB/s

struct History {
  std::array<std::uint32_t, k_granules> stamp;  // first move to its present owner; while pinned: when the pin ends
  std::array<std::uint8_t, k_granules> heat;    // low nibble: heat.  High nibble: soon refaults
  std::array<std::uint8_t, k_granules> state;   // State bits and owner
  std::array<std::uint8_t, k_granules>
      level;                             // low nibble: pins doubled this often.  Bits 4-5: pages faulted this stay
  std::uint32_t flip_average;            // exponential averages, ticks: stays ended by fast flips
  std::uint32_t refault_average;         // ... and eviction to refault
  std::uint32_t fault_ns;                // latest cost of a fault, from the service
  std::uint16_t trip_pages, trip_moves;  // moved in the present direction since the last change of direction
  std::uint16_t last_pages, last_moves;  // ... and in the direction before
  std::uint8_t trip_owner;
};
static_assert(sizeof(History) <= 256);

// What the detector says about the granules of one fault group. `pinned` and `thrash` are disjoint.
struct Verdict {
  GranuleSet pinned = 0;    // ping-pong: hold, map remotely
  GranuleSet thrash = 0;    // capacity thrash: hold in system memory, map remotely
  GranuleSet throttle = 0;  // of `pinned`: has not waited since it last moved
  GranuleSet held = 0;      // over the whole block: pinned now, for either reason
  GranuleSet warm = 0;      // over the whole block: keep out of prefetch
  GranuleSet narrow = 0;    // bring faulted pages only
  bool sparse = false;  // few pages of a granule, and its neighbours are not here: no sign of a walk through the block
  bool refaulting = false;  // a touched granule was evicted a short while ago
  std::uint64_t pin_ns = 0;
};

// Judges the granules touched by `open` faults of `who`, starts and ends pins, counts pages. `crowded`: the device has
// hardly a free frame.
Verdict assess(History& h, const PageMask& open, const PageMask& resident_here, Processor who,
               const PolicyContext& context, bool crowded);

// Takes note of a move (Policy::on_migrated).
void record_move(History& h, const PageMask& pages, Processor to, Cause cause, std::uint64_t now_ns);

// Marks the granules as having waited since they last moved.
void note_throttle(History& h, GranuleSet granules);

// A stay shorter than this is not worth the moves that it needs.
std::uint64_t stay_limit_ns(const History& h);

// True when a granule is pinned, or hot, at `now_ns`.
bool any_hot(const History& h, std::uint64_t now_ns);

}  // namespace hmmrt::ping_pong
