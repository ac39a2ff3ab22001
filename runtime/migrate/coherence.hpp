// SPDX-License-Identifier: MIT
// The moves that keep a block coherent, shared by both directions of migration: taking translations away, dropping
// copies, installing translations, settling what the application did to its mappings. All need the block's claim.
#pragma once

#include "migrate/house.hpp"

namespace hmmrt {

// Removes every translation of `pages` from every device, except that `keeper` (if any) keeps translations to its own
// frames. On return no access through them is in flight. Exclusive pages are given back to the CPU. Pages the devices
// wrote are no longer `staged`.
void take_away(House& house, Block& block, const PageMask& pages, Processor keeper = k_no_processor);

// Only the translations, nothing else; on return no access through them is in flight.
void untranslate(House& house, Block& block, const PageMask& pages);

// The same as take_away() for pages whose contents are not wanted any more: device frames, exclusive pages and what the host mirror kept
// are dropped too. The caller says whose the pages are afterwards.
void take_away_for_good(House& house, Block& block, const PageMask& pages);

// `pages` less those whose contents the application dropped since: these must not be delivered again. Meaningful while a
// DeliveryGuard is held.
PageMask still_wanted(Block& block, const PageMask& pages);
// Those of `pages` whose state waits to follow an mremap: what is at their address by now is something else.
PageMask leaving(Block& block, const PageMask& pages);
void mark_leaving(House& house, std::uintptr_t addr, std::size_t bytes, bool on);

// The policy's hold on these pages ends before its time. A driver's mappings in place end with it: no fault would come to
// end them.
void unhold(House& house, Block& block, const PageMask& pages);
// Ends devices' use of these pages where they are, in system memory or a peer's; with a driver, what ties them there.
void end_remote_use(House& house, Block& block, const PageMask& pages);
// A driver was asked to take these pages, without the claim: what has been pinned since the look before comes back.
void bring_back_pinned(House& house, Block& block, const PageMask& pages);

// Removes only translations that allow writing.
void take_write_away(House& house, Block& block, const PageMask& pages);

// Gives back device `p`'s frames of `pages` (already untranslated, or about to be lost with no translation left).
void drop_frames(House& house, Block& block, Processor p, const PageMask& pages);

// Marks frames[i] as device `p`'s frame of page i for each page, resident from now on.
void add_resident(House& house, Block& block, Processor p, const PageMask& pages, const Frame* frames);

// Translates the `wanted` pages, resident on `p`, to its frames with `rights`.
void map_frames(House& house, Block& block, Processor p, const PageMask& wanted, Rights rights);

// Translates pages of system memory, or of a peer's frames, on `p`. Returns the pages translated; *forbidden grows by those
// that never will be.
PageMask map_host(House& house, Block& block, Processor p, const PageMask& pages, Rights rights, PageMask* forbidden);
PageMask map_exclusive(House& house, Block& block, Processor p, const PageMask& pages, PageMask* forbidden);
PageMask map_peer(House& house, Block& block, Processor p, Processor owner, const PageMask& pages, Rights rights);

// Of `pages`, those that the application is dropping and the kernel has not cleared yet: for now they may be neither taken
// away nor written by anyone. They soon will be cleared; callers treat them as busy.
PageMask dropping(House& house, Block& block, const PageMask& pages);

// Lets the CPU write pages again whose read-only copies on devices are being dropped here.
void collapse_to_cpu(House& house, Block& block, const PageMask& pages);

// Records what the application did to `pages`, for whoever holds the claim to settle before releasing it. Any thread,
// no claim.
void notice(House& house, Block& block, const PageMask& pages, bool unmapped);

// Acts on what has been noticed. Claim held. `release` does so, too; before it only who is about to change what pages of the
// block stand for needs this.
void settle(House& house, Block& block);

// Settles notices, releases the claim, and tells the event thread if a CPU fault waits for the block.
void release(House& house, Block& block);

// Makes the block's pages valid and the CPU's / invalid, dropping device copies and kept contents.
void make_valid(House& house, Block& block, const PageMask& pages, Range* range);
void make_invalid(House& house, Block& block, const PageMask& pages);

}  // namespace hmmrt
