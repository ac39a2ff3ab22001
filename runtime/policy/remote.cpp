// SPDX-License-Identifier: MIT
#include "policy/remote.hpp"

#include "policy/advice.hpp"

namespace hmmrt {

void RemotePolicy::decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context,
                          Plan& plan) const {
  const PageMask open = apply_advice(block, group, context, plan);
  if (open.none()) return;
  plan.reason = Reason::remote_policy;
  if (!context.can_map_remote) {
    plan.migrate |= open;
    return;
  }
  // Atomics that do not reach the owner's memory need the page here.
  const bool stuck = group.processor != k_cpu && !context.system_atomics;
  const PageMask move = stuck ? open & group.atomic : PageMask{};
  plan.migrate |= move;
  plan.remote |= open - move;
}

}  // namespace hmmrt
