// SPDX-License-Identifier: MIT
// The baseline that behaves like NVIDIA's UVM driver (FACTS 4): the density tree at 51 %, and its thrashing ladder.
//   event      a granule changes processor within one lapse of its previous change (plus the nap, when it napped)
//   thrashing  3 events in a row. Its granule neither grows nor is prefetched any more
//   throttle   a fault that would take a thrashing granule away waits one lapse, once per change of processor
//   pin        after 10 throttles: mapped remotely and left where it is for 300 lapses, then all is forgotten
//   epoch      no event in the block for 2000 lapses: all is forgotten, at most 4 times in a block's life
// Moves by eviction are no events. A processor that cannot map remotely never pins: its page migrates.
// Unlike the driver, which remembers pages, this remembers granules of 64 KiB (the history has 256 bytes).
#pragma once

#include "policy/granules.hpp"
#include "policy/policy.hpp"

namespace hmmrt {

class UvmPolicy final : public Policy {
 public:
  static constexpr std::uint64_t k_lapse_ns = 500'000;
  static constexpr unsigned k_threshold = 3;
  static constexpr unsigned k_pin_after_throttles = 10;
  static constexpr std::uint64_t k_nap_ns = k_lapse_ns;
  static constexpr std::uint64_t k_pin_ns = 300 * k_lapse_ns;
  static constexpr std::uint64_t k_epoch_ns = 2000 * k_lapse_ns;
  static constexpr unsigned k_max_resets = 4;

  std::string_view name() const override { return "uvm"; }
  void decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context, Plan& plan) const override;
  void on_migrated(BlockHistory& history, const PageMask& pages, Processor from, Processor to, Cause cause,
                   std::uint64_t now_ns) const override;
  bool ping_pong(const BlockHistory& history, std::uint64_t now_ns) const override;
};

}  // namespace hmmrt
