// SPDX-License-Identifier: MIT
// First touch: whatever is touched moves to the toucher, always. The two baselines others are measured against:
// `first_touch_4k` moves the faulted pages; `first_touch_2m` moves the whole block, as AMD's KFD does (FACTS 3).
// No memory, no detector. Advice is honoured.
#pragma once

#include "policy/policy.hpp"

namespace hmmrt {

class FirstTouchPolicy final : public Policy {
 public:
  enum class Span : std::uint8_t { page, block };
  explicit FirstTouchPolicy(Span span) : span_(span) {}
  std::string_view name() const override;
  void decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context, Plan& plan) const override;

 private:
  Span span_;
};

}  // namespace hmmrt
