// SPDX-License-Identifier: MIT
// The density tree: how far around a fault to bring pages in. A conceptual binary tree over a block's 512 pages, where
// a node is as dense as the share of its valid pages that are resident or faulted; each faulted page first grows to its
// 64 KiB granule. For every fault, the largest ancestor denser than the threshold comes in. As in NVIDIA's UVM: filling
// 2 MiB page by page takes 6 faults at 51 %, 1 at 1 %, 3 at 25 %, 20 at 75 %, 512 at 100 %.
//
// No tree is stored: pages are counted in lanes of words. Pure, thread-safe, under 100 ns whatever the masks.
#pragma once

#include "policy/granules.hpp"
#include "space/page_mask.hpp"

namespace hmmrt {

constexpr unsigned k_density_threshold = 51;  // percent, exclusive

// The pages that should be resident after the faults on `faulted`: the faulted pages themselves and every region they
// pull in, all within `valid`. Pages that are resident already may be in the answer. Faults in granules outside `grow`
// do not grow to 64 KiB (they count as single pages, and come in alone unless a larger node is dense enough).
// `threshold_percent` of 100 or more turns prefetching off.
PageMask density_region(const PageMask& resident, const PageMask& faulted, const PageMask& valid,
                        unsigned threshold_percent, GranuleSet grow = k_all_granules);

}  // namespace hmmrt
