// SPDX-License-Identifier: MIT
// What API calls ask for, over whole address ranges: manage and forget memory, prefetch, pin, advise. All take claims
// block by block in ascending order and may wait for them; none may be called by the service's threads, with a claim
// held, or from a kernel. `addr` and `bytes` are page aligned and managed unless said otherwise.
// Callers that move pages to devices hold FaultService::departure_lock() shared.
#pragma once

#include <span>

#include "migrate/pipeline.hpp"

namespace hmmrt {

// [addr, addr + bytes) must already be allocated from, or attached to, the host mirror.
// For host mirrors that need no registration: pages of the block that are mapped with any right become valid, though of no
// range. Claim held. Allocates nothing but what the mirror needs to look.
void adopt(House& house, Block& block, const PageMask& pages);
// The same for [addr, addr + bytes), whole pages. Returns 0, or the first address where nothing is mapped that may be read.
std::uintptr_t adopt(House& house, std::uintptr_t addr, std::size_t bytes);

Status manage(House& house, std::uintptr_t addr, std::size_t bytes, bool registered, Range** out);

// Drops device copies and kept contents of the range, then forgets it. With `bring_home`, contents come back to the CPU
// first; pages that cannot come (HMMRT_ERROR_BUSY) leave the range managed.
Status unmanage(House& house, PipelinePool& pool, Range* range, bool bring_home);

// The application moved [from, from + bytes) to `to` with mremap, and its page table moved along: residency, frames and
// kept contents follow, without copying. The new range counts as registered. Called by the device thread.
// `before_release(arg)` is called while the blocks are still claimed: what it notices about the new addresses is settled
// with the release.
void follow_remap(House& house, std::uintptr_t from, std::uintptr_t to, std::size_t bytes,
                  void (*before_release)(void*), void* arg);

// Moves pages to `to` (the CPU or a device), in one pass over the blocks whatever the number and order of extents.
// Returns how many of the pages that should have moved did not.
std::uint64_t prefetch(House& house, PipelinePool& pool, std::span<const Extent> extents, Processor to, Cause cause);
inline std::uint64_t prefetch(House& house, PipelinePool& pool, std::uintptr_t addr, std::size_t bytes, Processor to,
                              Cause cause) {
  const Extent extent{addr, bytes};
  return prefetch(house, pool, {&extent, 1}, to, cause);
}

// Pins are counted per page. Errors: HMMRT_ERROR_BUSY when a page cannot come home; then nothing stays pinned.
Status pin(House& house, PipelinePool& pool, std::uintptr_t addr, std::size_t bytes);
// Errors: HMMRT_ERROR_INVALID_VALUE when some page is not pinned; then nothing changes.
Status unpin(House& house, std::uintptr_t addr, std::size_t bytes);

// `p` is the processor of the advice's location. Nothing is mapped or moved now: the first access does. Returns whether any page's advice changed,
// and the host mirror could pass all of it on.
bool advise(House& house, std::uintptr_t addr, std::size_t bytes, hmmrt_advice_t advice, Processor p);

// Residency of the whole range when it is one processor's (the CPU's, where it also has read-only copies on devices);
// k_no_processor when mixed.
Processor residency(House& house, std::uintptr_t addr, std::size_t bytes);

}  // namespace hmmrt
