// SPDX-License-Identifier: MIT
#include "policy/advice.hpp"

namespace hmmrt {

PageMask apply_advice(const BlockView& block, const FaultGroup& group, const PolicyContext& context, Plan& plan) {
  PageMask open = group.pages() & block.valid;
  const auto settle = [&open, &plan](PageMask pages, PageMask& into, Reason reason) {
    pages &= open;
    if (pages.none()) return;
    into |= pages;
    open &= ~pages;
    plan.reason = reason;
  };

  settle(block.resident_here, plan.migrate, plan.reason);
  if (context.can_duplicate) {
    settle(block.read_mostly & (group.read - group.write - group.atomic), plan.duplicate, Reason::read_mostly);
  }
  PageMask reachable = open;
  if (group.processor != k_cpu && !context.system_atomics) {
    // Ordinary advice about where to live cannot make an atomic atomic.
    reachable = open - group.atomic;
    settle(group.atomic & (block.preferred_elsewhere | block.accessed_by), plan.migrate, Reason::exclusive);
  }
  settle(block.preferred_here, plan.migrate, Reason::preferred_location);
  settle(block.preferred_elsewhere & reachable, context.can_map_remote ? plan.remote : plan.migrate,
         Reason::preferred_location);
  if (context.can_map_remote) settle(block.accessed_by & reachable, plan.remote, Reason::accessed_by);
  return open;
}

PageMask not_to_prefetch(const BlockView& block, const PolicyContext& context) {
  PageMask out = block.resident_here | block.preferred_elsewhere | block.read_mostly;
  if (context.can_map_remote) out |= block.accessed_by - block.preferred_here;
  return out;
}

}  // namespace hmmrt
