// SPDX-License-Identifier: MIT
#include "migrate/work.hpp"

#include <algorithm>

#include "migrate/coherence.hpp"
#include "migrate/to_device.hpp"
#include "migrate/to_host.hpp"
#include "policy/victim.hpp"

namespace hmmrt {

void reset(Work& w) {
  w.block = nullptr;
  w.to = k_cpu;
  w.cause = Cause::fault;
  w.happened = false;
  w.reason = Reason::none;
  for (PageMask* m :
       {&w.pages, &w.duplicate, &w.remote, &w.write, &w.atomic, &w.faulted, &w.satisfied, &w.full, &w.refused,
        &w.uncleared, &w.pinned, &w.forbidden, &w.gone, &w.moved, &w.allocated, &w.from_peer}) {
    *m = PageMask{};
  }
  for (Transfer* t : {&w.move, &w.dup}) {
    t->pages = t->copied = t->clean = t->moved_on = PageMask{};
    t->outcome = PageOutcome{};
    t->ticket = 0;
  }
  w.peer = k_no_processor;
  w.peer_ticket = 0;
  w.started_ns = 0;
}

void prepare(House& house, Work& work, Work& spare) {
  if (work.to == k_cpu) {
    prepare_to_host(house, work);
  } else {
    prepare_to_device(house, work, spare);
  }
}

void copy(House& house, Work& work) {
  if (work.to == k_cpu) {
    copy_to_host(house, work);
  } else {
    copy_to_device(house, work);
  }
}

void finish_copy(House& house, Work& work) {
  if (work.to == k_cpu) {
    finish_copy_to_host(house, work);
  } else {
    finish_copy_to_device(house, work);
  }
}

void commit(House& house, Work& work) {
  if (work.to == k_cpu) {
    commit_to_host(house, work);
  } else {
    commit_to_device(house, work);
  }
}

void carry_out(House& house, Work& work, Work& spare) {
  prepare(house, work, spare);
  copy(house, work);
  finish_copy(house, work);
  commit(house, work);
}

void note_evicted(House& house, Block& block, Processor p, const PageMask& pages) {
  if (pages.none()) return;
  block.part(p)->evicted |= pages;
  const Tally tally = house.tally(block, p, block.base);
  tally.add(Count::evictions);
  tally.add(Count::pages_evicted, pages.count());
  house.log.record({.time_ns = house.clock.now_ns(),
                    .base = block.base,
                    .pages = pages.count(),
                    .kind = EventKind::evicted,
                    .processor = p,
                    .peer = k_cpu});
}

void evict(House& house, Block& block, Processor p, Work& spare, Cause cause) {
  DevicePart* part = block.part(p);
  if (part == nullptr || part->resident.none()) return;
  const Tally tally = house.tally(block, p, block.base);
  const PageMask all = part->resident;
  // Copies of pages that the CPU, or another device, also has: only the frames go.
  const PageMask copies = all & block.shared();
  if (copies.any()) {
    take_away(house, block, copies);
    drop_frames(house, block, p, copies);
    tally.add(Count::pages_left_clean, copies.count());
    // With no copy left beside the CPU's, its protection ends at the next write fault.
  }
  if ((all - copies).any()) {
    reset(spare);
    spare.block = &block;
    spare.to = k_cpu;
    spare.pages = all - copies;
    spare.cause = cause;
    carry_out(house, spare, spare);
  }
  const PageMask left = all - part->resident;
  if (cause == Cause::eviction) {
    note_evicted(house, block, p, left);
  } else {
    part->evicted |= left;
  }
}

bool make_room(House& house, Processor p, std::uint64_t pages, Cause cause, Work& spare) {
  constexpr std::uint64_t k_stay_ns = 200'000;
  constexpr std::size_t k_candidates = 64;
  Device& device = house.device(p);
  if (pages > device.info().memory_bytes / k_page_size) return false;
  std::array<Block*, k_candidates> blocks;
  std::array<VictimCandidate, k_candidates> candidates;
  for (unsigned fruitless = 0; device.free_frame_count() < pages;) {
    const std::size_t n = house.resident[p - 1u].take_oldest(blocks.data(), k_candidates);
    const std::uint64_t now = house.clock.now_ns();
    // Only what can be claimed is described; the rest is being worked on.
    for (std::size_t i = 0; i < n; ++i) {
      Block& b = *blocks[i];
      candidates[i] = VictimCandidate{};
      candidates[i].base = b.base;
      candidates[i].migrating = !b.try_claim();
      if (candidates[i].migrating) continue;
      const DevicePart* part = b.part(p);
      candidates[i].last_use = device.last_use(b.base);
      candidates[i].resident_pages = static_cast<std::uint16_t>(part->resident.count());
      candidates[i].clean_pages = static_cast<std::uint16_t>((part->resident & (part->staged | b.on_cpu)).count());
      const bool fresh = cause != Cause::prefetch_user && now - part->arrived_ns < k_stay_ns;
      candidates[i].pinned = fresh || (now < b.held_until_ns && b.held.intersects(part->resident));
      candidates[i].preferred_here =
          b.advice != nullptr && b.advice->preferred[part->resident.next(0) % k_block_pages] == p;
    }
    const std::size_t victim = choose_victim({candidates.data(), n});
    for (std::size_t i = 0; i < n; ++i) {
      if (!candidates[i].migrating && i != victim) release(house, *blocks[i]);
    }
    if (victim == k_no_victim) return false;
    const std::uint64_t before = device.free_frame_count();
    evict(house, *blocks[victim], p, spare, Cause::eviction);
    release(house, *blocks[victim]);
    if (device.free_frame_count() <= before && ++fruitless == 8) return false;
  }
  return true;
}

Processor main_owner(const House& house, const Block& block, const PageMask& pages) {
  Processor owner = k_no_processor;
  unsigned best = 0;
  for (Processor p = 1; p <= house.device_count; ++p) {
    const DevicePart* part = block.part(p);
    const unsigned n = part != nullptr ? (part->resident & pages).count() : 0;
    if (n > best) {
      best = n;
      owner = p;
    }
  }
  return owner;
}

void start_transfer(House& house, Work& work, Transfer& t, Processor device, const PageMask& pages, bool duplicate) {
  const DevicePart& part = *work.block->part(device);
  const bool home = work.to == k_cpu;
  t.base = work.block->base;
  t.direction = home ? Direction::to_host : Direction::to_device;
  t.duplicate = duplicate;
  t.cause = work.cause;
  t.happened = work.happened;
  t.device = &house.device(device);
  t.frames = home ? part.frames.data() : work.frames.data();
  t.pages = pages;
  t.clean = home ? pages & part.staged : PageMask{};
  t.copied = PageMask{};
  t.outcome = PageOutcome{};
  t.ticket = 0;
  if (!home && pages.any()) {
    // Much may have been waited for since the look at the start: an mremap of these, and another to their addresses.
    house.gate.wait_for_reader();
    const PageMask going = leaving(*work.block, pages);
    t.pages = pages - going;
    work.refused |= going;
  }
  if (t.pages.any()) house.host.prepare(t);
}

void note_refusals(House& house, Work& work, Processor device, const PageOutcome& outcome) {
  const Tally tally = house.tally(*work.block, device, work.block->base);
  tally.add(Count::pages_busy, outcome.busy.count());
  tally.add(Count::pages_pinned, outcome.pinned.count());
  tally.add(Count::pages_gone, outcome.gone.count());
  tally.add(Count::pages_forbidden, outcome.forbidden.count());
  work.refused |= outcome.busy;
  work.gone |= outcome.gone;
  work.forbidden |= outcome.forbidden;
  if (work.to == k_cpu) {
    work.refused |= outcome.pinned;
  } else if (house.device(device).info().caps.remote_mapping) {
    // What the kernel will not let go of stays in system memory; the device may still reach it there.
    work.remote |= outcome.pinned & work.faulted;
  } else {
    work.pinned |= outcome.pinned;
  }
}

}  // namespace hmmrt
