// SPDX-License-Identifier: MIT
// Advice comes before any heuristic, in every policy: a hint is never silently ignored. Pure; any thread.
#pragma once

#include "policy/policy.hpp"

namespace hmmrt {

// Puts the faulted pages that advice (or residency) settles into the plan's masks and sets the reason; returns the
// faulted valid pages that are left for the policy. In order:
//   resident here already                            migrate (the service only has to map them)
//   read_mostly, read, duplicates possible           duplicate
//   atomic that does not reach where the page is     migrate (the service may grant exclusive access instead)
//   preferred here                                   migrate
//   preferred elsewhere                              remote; this page alone migrates where that is impossible
//   accessed_by, remote mapping possible             remote
PageMask apply_advice(const BlockView& block, const FaultGroup& group, const PolicyContext& context, Plan& plan);

// Pages that a heuristic must not bring in on its own: resident here, or advised to stay where they are.
PageMask not_to_prefetch(const BlockView& block, const PolicyContext& context);

}  // namespace hmmrt
