// SPDX-License-Identifier: MIT
// The three stages of a Work whose destination is the CPU. See work.hpp for the contract.
#pragma once

#include "migrate/work.hpp"

namespace hmmrt {

void prepare_to_host(House& house, Work& work);
void copy_to_host(House& house, Work& work);
void finish_copy_to_host(House& house, Work& work);
void commit_to_host(House& house, Work& work);

}  // namespace hmmrt
