// SPDX-License-Identifier: MIT
// The list of policies. Adding one means a class and a line in make_policy() and in k_names.
#include "policy/policy.hpp"

#include "policy/adaptive.hpp"
#include "policy/first_touch.hpp"
#include "policy/plug_in.hpp"
#include "policy/remote.hpp"
#include "policy/uvm.hpp"

namespace hmmrt {

const char* reason_name(Reason r) {
  switch (r) {
    case Reason::none:
      return "none";
    case Reason::first_touch:
      return "first_touch";
    case Reason::dense:
      return "dense";
    case Reason::sparse:
      return "sparse";
    case Reason::preferred_location:
      return "preferred_location";
    case Reason::accessed_by:
      return "accessed_by";
    case Reason::read_mostly:
      return "read_mostly";
    case Reason::thrash_throttle:
      return "thrash_throttle";
    case Reason::thrash_pin:
      return "thrash_pin";
    case Reason::capacity_thrash:
      return "capacity_thrash";
    case Reason::remote_policy:
      return "remote_policy";
    case Reason::exclusive:
      return "exclusive";
    case Reason::access_counter:
      return "access_counter";
    case Reason::device_full:
      return "device_full";
    case Reason::plug_in:
      return "plug_in";
  }
  return "unknown";
}

std::unique_ptr<Policy> make_policy(std::string_view name) {
  if (name == "adaptive") return std::make_unique<AdaptivePolicy>();
  if (name == "first_touch_2m") return std::make_unique<FirstTouchPolicy>(FirstTouchPolicy::Span::block);
  if (name == "first_touch_4k") return std::make_unique<FirstTouchPolicy>(FirstTouchPolicy::Span::page);
  if (name == "remote") return std::make_unique<RemotePolicy>();
  if (name == "uvm") return std::make_unique<UvmPolicy>();
  return make_plug_in_policy(name);
}

const char* policy_names() { return policy_names_with_plug_ins(k_built_in_policies); }

}  // namespace hmmrt
