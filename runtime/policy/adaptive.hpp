// SPDX-License-Identifier: MIT
// The default policy: advice first, then the density tree, tempered by the ping-pong detector (ping_pong.hpp) and by
// how full the device is.
//   pinned granule     mapped remotely where it is, with every other page of pinned granules that the faults make dense;
//                      a processor that cannot map remotely brings home the page (from the third one on, the granule),
//                      which is then held. A device that cannot map remotely waits once, briefly, then migrates.
//   atomics            that do not reach host memory migrate; on a pinned granule with Reason::exclusive, so that the
//                      service can grant exclusive access in place instead.
//   crowded device     (less than 1/16 free, or less than what would come in): only denser regions come in, and nothing
//                      that would evict for the sake of a sparse block.
#pragma once

#include "policy/policy.hpp"

namespace hmmrt {

class AdaptivePolicy final : public Policy {
 public:
  std::string_view name() const override { return "adaptive"; }
  void decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context, Plan& plan) const override;
  void on_migrated(BlockHistory& history, const PageMask& pages, Processor from, Processor to, Cause cause,
                   std::uint64_t now_ns) const override;
  bool ping_pong(const BlockHistory& history, std::uint64_t now_ns) const override;
};

}  // namespace hmmrt
