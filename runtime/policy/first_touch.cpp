// SPDX-License-Identifier: MIT
#include "policy/first_touch.hpp"

#include "policy/advice.hpp"

namespace hmmrt {

std::string_view FirstTouchPolicy::name() const { return span_ == Span::page ? "first_touch_4k" : "first_touch_2m"; }

void FirstTouchPolicy::decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context,
                              Plan& plan) const {
  const PageMask open = apply_advice(block, group, context, plan);
  if (open.none()) return;
  plan.migrate |= open;
  if (span_ == Span::block) {
    plan.migrate |= block.valid - not_to_prefetch(block, context) - plan.duplicate - plan.remote;
  }
  plan.reason = Reason::first_touch;
}

}  // namespace hmmrt
