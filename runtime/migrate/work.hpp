// SPDX-License-Identifier: MIT
// Work: one block's worth of moving, and the three stages that carry it out.
//
//   prepare   take the pages away from whoever translates them, quiesce, withdraw them, allocate frames (evicting)
//   copy      start the bytes on their way; finish_copy waits for them
//   commit    state, deliveries, translations; stalled accesses of the block are replayed at once
//
// The order of taking away (DESIGN.md, rule 3) is: mark migrating (the claim) -> unmap -> quiesce -> withdraw -> copy ->
// map -> replay. Every stage leaves each page either as it was or where it was wanted; what could not be done is said in
// the result masks. Stages of different blocks run concurrently; the stages of one Work run in order, on any thread.
// The block's claim is held from before prepare() until release() and belongs to the Work, not to a thread.
#pragma once

#include <array>
#include <cstdint>

#include "migrate/house.hpp"

namespace hmmrt {

struct Work {
  // --- wanted ---
  Block* block = nullptr;
  Processor to = k_cpu;
  PageMask pages;      // to become resident at `to` alone
  PageMask duplicate;  // to get a read-only copy at `to`
  PageMask remote;     // to be mapped on `to` where they are (devices only)
  PageMask write;      // of those: accesses that need write rights (remote mappings, CPU writes to protected pages)
  PageMask atomic;     // ... that are system-scope atomics
  PageMask faulted;    // pages someone waits for; the rest is prefetch
  Cause cause = Cause::fault;
  bool happened = false;  // a driver has moved `pages` already: the books follow
  Reason reason = Reason::none;

  // --- result ---
  PageMask satisfied;  // translated, or delivered, as wanted
  PageMask full;       // no frame could be had
  PageMask refused;    // busy: try again
  PageMask uncleared;  // frames that should have been, and hold what was there before
  PageMask pinned;     // must stay where it is and cannot be mapped remotely
  PageMask forbidden;  // the CPU's mapping gives no such rights
  PageMask gone;       // no longer mapped by the application
  PageMask moved;      // changed residency

  // --- in between ---
  Transfer move;       // pages whose residency moves
  Transfer dup;        // pages copied read-only
  PageMask allocated;  // entries of `frames` in use by this work
  PageMask from_peer;
  Processor peer = k_no_processor;
  CopyTicket peer_ticket = 0;
  std::array<Frame, k_block_pages> frames;
  std::uint64_t started_ns = 0;
};

// Clears everything but the buffers.
void reset(Work& work);

// Claim held. `spare` is used for the victims of eviction.
void prepare(House& house, Work& work, Work& spare);
void copy(House& house, Work& work);
void finish_copy(House& house, Work& work);
void commit(House& house, Work& work);

// The three stages in a row, in the calling thread. Claim held before and after.
void carry_out(House& house, Work& work, Work& spare);

// Frees frames of device `p` until `pages` frames are free, or no victim is left. Never waits for a claim; never evicts a
// held or claimed block, nor, unless a user asked for the move, one whose pages came so lately that the waves that wait
// for them may not have run: without that, a device too small for a kernel's working set would evict for ever and
// never get anything done. Returns whether enough are free.
bool make_room(House& house, Processor p, std::uint64_t pages, Cause cause, Work& spare);

// What the two directions share. Claim held. `device` is the one that copies: work.to, or work.peer on the way home.
// The device that holds most of `pages`; k_no_processor when none does.
Processor main_owner(const House& house, const Block& block, const PageMask& pages);
// Fills in and prepares one of the work's transfers; pages may be none.
void start_transfer(House& house, Work& work, Transfer& t, Processor device, const PageMask& pages, bool duplicate);
// Counts what a transfer did not do, and sorts it into the result masks.
void note_refusals(House& house, Work& work, Processor device, const PageOutcome& outcome);

// Pages of device `p` went home to make room. Claim held.
void note_evicted(House& house, Block& block, Processor p, const PageMask& pages);

// Moves everything device `p` holds of the block home. Claim held.
void evict(House& house, Block& block, Processor p, Work& spare, Cause cause);

}  // namespace hmmrt
