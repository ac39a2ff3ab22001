// SPDX-License-Identifier: MIT
// Residency at launch, for devices whose accesses cannot be replayed: before a kernel starts, every page that it may touch is
// mapped. The same policies decide, and the same pipeline moves, as for faults; the launch stands for a batch of them.
#pragma once

#include <memory>
#include <span>

#include "migrate/requests.hpp"

namespace hmmrt {

// Brings all of `extents` into the memory of device `p`, or maps all of it where it is, in system memory, when
//   - it is larger than the device, or lies too far apart for its window;
//   - a page is pinned in system memory;
//   - the policy takes most of it for ping-ponging;
//   - a third attempt is needed: the CPU wants the same pages now.
// Null without an error: some page could not be had yet. Claims are taken one after the other, so what this says may be
// past when it returns: the device compares. Caller: FaultService::departure_lock() shared, no claim.
// Errors: HMMRT_ERROR_DEVICE_FULL, HMMRT_ERROR_PINNED where only a remote mapping would do and the device has none.
Status make_ready(House& house, PipelinePool& pool, std::span<const Extent> extents, Processor p, unsigned attempt,
                  std::shared_ptr<const ReadyPages>* out);

// Moves the window of a device that has one (Device::reach()) so that pages of `extents` can be brought there. False when
// it cannot hold them all, or not now.
bool bring_within_reach(House& house, PipelinePool& pool, std::span<const Extent> extents, Processor p);

}  // namespace hmmrt
