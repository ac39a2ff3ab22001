// SPDX-License-Identifier: MIT
// Which block to evict when a device is full. Pure: the caller describes the candidates, nothing is remembered.
// Thread: any.  Cost: two passes over the candidates, no allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hmmrt {

// One block with frames on the full device.
struct VictimCandidate {
  std::uintptr_t base = 0;
  std::uint64_t last_use = 0;        // larger is later; 0: never or unknown (Device::last_use)
  std::uint16_t resident_pages = 0;  // frames that evicting it would free
  std::uint16_t clean_pages = 0;     // of those, clean or duplicated: dropped without copying
  bool pinned = false;
  bool migrating = false;
  bool preferred_here = false;  // advice: its preferred location is this device
  bool discarded = false;       // its contents are not needed
};

constexpr std::size_t k_no_victim = ~std::size_t{0};

// Index of the best victim; k_no_victim when none may go. Never pinned, never migrating, never empty. In order:
// discarded; wholly clean and not among the recently used half (dropping it costs nothing, but a hot read-only block
// is still hot); least recently used; preferred here. Ties go to the earlier use, then the larger block, then the
// lower address, so that the choice does not depend on the order of candidates.
std::size_t choose_victim(std::span<const VictimCandidate> candidates);

}  // namespace hmmrt
