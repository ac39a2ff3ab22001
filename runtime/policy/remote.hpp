// SPDX-License-Identifier: MIT
// Remote: nothing moves that can be reached where it is (zero copy). A processor that cannot map remotely, usually the
// CPU, gets the faulted pages and nothing more. Advice is honoured.
#pragma once

#include "policy/policy.hpp"

namespace hmmrt {

class RemotePolicy final : public Policy {
 public:
  std::string_view name() const override { return "remote"; }
  void decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context, Plan& plan) const override;
};

}  // namespace hmmrt
