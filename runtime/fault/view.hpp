// SPDX-License-Identifier: MIT
// How a block, a device and a clock look to a policy, and how a policy's answer becomes a Work.
#pragma once

#include "fault/fault_batch.hpp"
#include "migrate/work.hpp"

namespace hmmrt {

// Claim held.
BlockView view_of(const House& house, Block& block, Processor p);
PolicyContext context_of(const House& house, Processor p, std::uint64_t now_ns);

// Asks the policy about `pages` of the group and writes its answer into `work`. Returns the pages to leave alone for
// plan.throttle_ns. Counts what the policy did about ping-pong.
PageMask ask_policy(House& house, Block& block, const FaultGroup& group, const PageMask& pages, Work& work, Plan& plan);

}  // namespace hmmrt
