// SPDX-License-Identifier: MIT
// Policies from outside the library: the registry behind hmmrt_policy_register() (hmmrt/policy.h) and the adapter that
// makes a table of C functions a Policy. What a plug-in answers is not trusted: masks are clipped to valid pages and made
// disjoint, destinations and reasons checked; faulted pages it forgets migrate.
// Thread: any. Registrations last as long as the process.
#pragma once

#include <hmmrt/policy.h>

#include <memory>
#include <string_view>

#include "policy/policy.hpp"
#include "space/status.hpp"

namespace hmmrt {

constexpr char k_built_in_policies[] = "adaptive, first_touch_2m, first_touch_4k, remote, uvm";
constexpr unsigned k_max_plug_ins = 16;

// Registers a plug-in under its name; the table is copied. Errors: INVALID_VALUE (null, wrong size or version, no
// decide, bad or taken name), OUT_OF_MEMORY (k_max_plug_ins are registered).
Status register_plug_in(const hmmrt_policy_ops_t* ops);

// Null when no plug-in has that name.
std::unique_ptr<Policy> make_plug_in_policy(std::string_view name);

// `built_in` followed by the plug-ins, comma separated. The string lives as long as the process.
const char* policy_names_with_plug_ins(const char* built_in);

}  // namespace hmmrt
