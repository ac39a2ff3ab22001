// SPDX-License-Identifier: MIT
#include "migrate/coherence.hpp"

#include <mutex>

namespace hmmrt {

namespace {

constexpr std::uint64_t k_stall_ns = 50'000;  // a quiesce that takes longer may wait for a CPU fault
// How long a page may be waited for that the application said it drops. MADV_FREE leaves it there; then it is as good.
constexpr std::uint64_t k_drop_ns = 100'000'000;
constexpr std::size_t k_spans = 64;  // spans per map() call; a block in one piece needs one

// Calls device.map() with spans covering `pages`; target(page, span) fills in where page is, and next(page) says whether
// `page` continues the span of page - 1.
template <class Fill, class Continues>
void map_runs(Device& device, std::uintptr_t base, const PageMask& pages, Rights rights, Fill&& fill,
              Continues&& continues) {
  std::array<MapSpan, k_spans> spans;
  std::size_t n = 0;
  pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned page = first; page < first + count;) {
      MapSpan& span = spans[n++];
      span = MapSpan{};
      span.first = static_cast<std::uint16_t>(page);
      span.rights = rights;
      fill(page, span);
      unsigned end = page + 1;
      while (end < first + count && continues(end)) ++end;
      span.count = static_cast<std::uint16_t>(end - page);
      page = end;
      if (n == k_spans) {
        device.map(base, {spans.data(), n});
        n = 0;
      }
    }
  });
  if (n != 0) device.map(base, {spans.data(), n});
}

void note_mapped(DevicePart& part, const PageMask& pages, Rights rights, bool remote) {
  part.mapped |= pages;
  part.writable = rights == Rights::write ? part.writable | pages : part.writable - pages;
  part.remote = remote ? part.remote | pages : part.remote - pages;
}

void unmap_from(House& house, Block& block, Processor p, const PageMask& pages) {
  DevicePart& part = *block.part(p);
  const PageMask written = house.device(p).unmap(block.base, pages);
  // Written perhaps through a mapping of a peer's frames: then the peer's are no longer as they came.
  for (DevicePart* owner : block.parts) {
    if (owner != nullptr) owner->staged = owner->staged - written;
  }
  const PageMask remote = part.remote & pages;
  part.mapped = part.mapped - pages;
  part.writable = part.writable - pages;
  part.remote = part.remote - pages;
  if (remote.any()) house.host.let_go(block.base, remote - block.pinned);
}

// Removes translations of choose(part) from each device, then quiesces those devices.
template <class Choose>
void remove_translations(House& house, Block& block, Choose&& choose) {
  ProcessorSet stale = 0;
  for (Processor p = 1; p <= house.device_count; ++p) {
    DevicePart* part = block.part(p);
    if (part == nullptr) continue;
    const PageMask pages = choose(p, *part);
    if (pages.none()) continue;
    unmap_from(house, block, p, pages);
    stale |= set_of(p);
  }
  for (Processor p = 1; p <= house.device_count; ++p) {
    if ((stale & set_of(p)) == 0) continue;
    const std::uint64_t launches = house.device(p).launches();
    while (!house.device(p).quiesce_launches(k_stall_ns, launches)) {
      if (house.while_stalled != nullptr) house.while_stalled(house.stalled_argument);
    }
  }
}

}  // namespace

void unhold(House& house, Block& block, const PageMask& pages) {
  const PageMask loose = block.held & pages;
  block.held = block.held - loose;
  if (loose.any() && house.host.info().driven) end_remote_use(house, block, loose - block.pinned);
}

void end_remote_use(House& house, Block& block, const PageMask& pages) {
  PageMask remote;
  for (const DevicePart* part : block.parts) {
    if (part != nullptr) remote |= part->remote - part->exclusive;
  }
  take_away(house, block, remote & pages);
}

void bring_back_pinned(House& house, Block& block, const PageMask& pages) {
  (pages & block.pinned).for_each_run([&](unsigned first, unsigned count) {
    (void)house.host.send(block.base + first * k_page_size, count * k_page_size, k_cpu, Wish::coherence);
  });
}

PageMask still_wanted(Block& block, const PageMask& pages) {
  const std::lock_guard guard(block.state_lock);
  return pages - block.notices.removed - block.notices.unmapped - block.notices.leaving;
}

PageMask leaving(Block& block, const PageMask& pages) {
  const std::lock_guard guard(block.state_lock);
  return pages & block.notices.leaving;
}

void mark_leaving(House& house, std::uintptr_t addr, std::size_t bytes, bool on) {
  house.space.for_each_block(addr, bytes, [&](Block& block, const PageMask& pages) {
    const std::lock_guard guard(block.state_lock);
    block.notices.leaving = on ? block.notices.leaving | pages : block.notices.leaving - pages;
  });
}

void take_away(House& house, Block& block, const PageMask& pages, Processor keeper) {
  remove_translations(house, block, [&](Processor p, const DevicePart& part) {
    return (p == keeper ? part.remote : part.mapped) & pages;
  });
  for (Processor p = 1; p <= house.device_count; ++p) {
    DevicePart* part = block.part(p);
    if (part == nullptr || !part->exclusive.intersects(pages)) continue;
    const DeliveryGuard guard(house.gate);
    const PageMask exclusive = still_wanted(block, part->exclusive & pages);
    if (exclusive.none()) continue;
    const PageOutcome back = house.host.give_back(block.base, exclusive);
    part->exclusive = part->exclusive - back.taken();
    block.set_on_cpu(back.taken(), true);
    house.tally(block, p, block.base).add(Count::exclusive_revokes, back.taken().count());
  }
}

void untranslate(House& house, Block& block, const PageMask& pages) {
  remove_translations(house, block, [&](Processor, const DevicePart& part) { return part.mapped & pages; });
}

void take_away_for_good(House& house, Block& block, const PageMask& pages) {
  untranslate(house, block, pages);
  for (Processor p = 1; p <= house.device_count; ++p) {
    DevicePart* part = block.part(p);
    if (part == nullptr) continue;
    drop_frames(house, block, p, pages);
    part->exclusive = part->exclusive - pages;
    part->evicted = part->evicted - pages;
  }
  house.host.drop(block.base, pages - block.on_cpu);
}

void take_write_away(House& house, Block& block, const PageMask& pages) {
  remove_translations(house, block, [&](Processor, const DevicePart& part) { return part.writable & pages; });
}

void drop_frames(House& house, Block& block, Processor p, const PageMask& pages) {
  DevicePart* part = block.part(p);
  if (part == nullptr) return;
  const PageMask held = part->resident & pages;
  if (held.none()) return;
  house.device(p).free_frames(held, part->frames.data());
  held.for_each([&](unsigned page) { part->frames[page] = k_no_frame; });
  part->resident = part->resident - held;
  part->staged = part->staged - held;
  if (part->resident.none()) house.resident[p - 1u].remove(*part);
}

void add_resident(House& house, Block& block, Processor p, const PageMask& pages, const Frame* frames) {
  if (pages.none()) return;
  DevicePart& part = *block.part(p);
  pages.for_each([&](unsigned page) { part.frames[page] = frames[page]; });
  part.resident |= pages;
  part.evicted = part.evicted - pages;
  part.arrived_ns = house.clock.now_ns();
  house.resident[p - 1u].renew(part);
}

void map_frames(House& house, Block& block, Processor p, const PageMask& wanted, Rights rights) {
  if (wanted.none()) return;
  DevicePart& part = *block.part(p);
  // Translations that are there already stay: replacing one would forget that its page was written.
  const PageMask pages = wanted - ((rights == Rights::write ? part.writable : part.mapped) - part.remote);
  if (pages.none()) return;
  map_runs(
      house.device(p), block.base, pages, rights, [&](unsigned page, MapSpan& span) { span.frame = part.frames[page]; },
      [&](unsigned page) { return part.frames[page] == part.frames[page - 1] + 1; });
  note_mapped(part, pages, rights, false);
}

PageMask map_host(House& house, Block& block, Processor p, const PageMask& pages, Rights rights, PageMask* forbidden) {
  if (pages.none()) return {};
  const PageOutcome outcome = house.host.map_remote(block.base, pages);
  *forbidden |= outcome.forbidden;
  PageMask done = outcome.done;
  // Never touched: the CPU gets zeros, and the device sees them there.
  if (outcome.not_populated.any()) done |= house.host.populate(block.base, outcome.not_populated).done;
  // A device must never be stuck in a write-protect fault: whoever may write finds the page writable. (Protection can be
  // left from a withdrawal that was given up while the kernel refused to end it.)
  if (rights == Rights::write) done = house.host.write_protect(block.base, done, false).done;
  map_runs(
      house.device(p), block.base, done, rights,
      [&](unsigned page, MapSpan& span) {
        span.target = Target::host;
        span.host = house.host.remote_address(block.base + page * k_page_size);
      },
      [](unsigned) { return true; });
  note_mapped(*block.part(p), done, rights, true);
  return done;
}

PageMask map_exclusive(House& house, Block& block, Processor p, const PageMask& pages, PageMask* forbidden) {
  if (pages.none()) return {};
  DevicePart& part = *block.part(p);
  block.set_on_cpu(pages, false);
  const PageOutcome outcome = house.host.make_exclusive(block.base, pages);
  const PageMask taken = outcome.taken();
  *forbidden |= outcome.forbidden;
  block.set_on_cpu(pages - taken, true);
  map_runs(
      house.device(p), block.base, taken, Rights::write,
      [&](unsigned page, MapSpan& span) {
        span.target = Target::host;
        span.exclusive = true;
        span.host = house.host.exclusive_address(block.base + page * k_page_size);
      },
      [](unsigned) { return true; });
  note_mapped(part, taken, Rights::write, true);
  part.exclusive |= taken;
  house.tally(block, p, block.base).add(Count::exclusive_grants, taken.count());
  return taken;
}

PageMask map_peer(House& house, Block& block, Processor p, Processor owner, const PageMask& pages, Rights rights) {
  if (pages.none()) return {};
  const DevicePart& from = *block.part(owner);
  map_runs(
      house.device(p), block.base, pages, rights,
      [&](unsigned page, MapSpan& span) {
        span.target = Target::peer;
        span.peer = owner;
        span.frame = from.frames[page];
      },
      [&](unsigned page) { return from.frames[page] == from.frames[page - 1] + 1; });
  note_mapped(*block.part(p), pages, rights, true);
  return pages;
}

PageMask dropping(House& house, Block& block, const PageMask& pages) {
  const PageMask asked = block.dropping & pages;
  if (asked.none()) return {};
  const bool expired = house.clock.now_ns() >= block.dropping_until_ns;
  const PageMask pending = expired ? PageMask{} : house.host.drop_pending(block.base, asked);
  const PageMask over = asked - pending;
  if (expired && over.any()) house.host.write_protect(block.base, over - block.cpu_protected, false);
  block.dropping = block.dropping - over;
  return pending;
}

void collapse_to_cpu(House& house, Block& block, const PageMask& pages) {
  const PageMask shared = pages & block.on_cpu & block.cpu_protected;
  if (shared.none()) return;
  take_away(house, block, shared);
  for (Processor p = 1; p <= house.device_count; ++p) drop_frames(house, block, p, shared);
  house.host.write_protect(block.base, shared, false);
  block.cpu_protected = block.cpu_protected - shared;
  house.tally(block, k_cpu, block.base).add(Count::duplicates_collapsed, shared.count());
}

// Acts on what the application did. Removed pages become the CPU's again, with no contents; unmapped ones invalid.
void settle(House& house, Block& block) {
  Notices taken;
  {
    const std::lock_guard guard(block.state_lock);
    taken = block.notices;
    block.notices.removed = block.notices.unmapped = PageMask{};
  }
  if (!taken.any()) return;
  const PageMask lost = (taken.removed | taken.unmapped) & block.valid;
  const PageMask elsewhere = (lost - block.on_cpu) | (lost & block.resident_on_devices());
  house.tally(block, k_cpu, block.base).add(elsewhere.any() ? Count::invalidations : Count::spurious_invalidations);
  house.log.record(
      {.time_ns = house.clock.now_ns(), .base = block.base, .pages = lost.count(), .kind = EventKind::invalidated});
  PageMask here = (taken.removed - taken.unmapped) & block.valid & block.on_cpu;
  // Before anything is undone that was asked for them: there may be strangers' memory by now.
  if (taken.unmapped.any()) house.host.disown(block.base, taken.unmapped & block.valid, true);
  take_away_for_good(house, block, lost);
  if (here.any()) {  // once no device can be stuck in a fault on what this protects
    const DeliveryGuard guard(house.gate);
    here = still_wanted(block, here);  // where something was unmapped meanwhile, somebody else's may be mapped
    house.host.watch_drop(block.base, here);
    block.dropping |= here;
    block.dropping_until_ns = house.clock.now_ns() + k_drop_ns;
  }
  block.set_on_cpu(lost, true);
  block.cpu_protected = block.cpu_protected - lost;
  if (taken.unmapped.any()) {
    block.valid = block.valid - taken.unmapped;
    block.set_on_cpu(taken.unmapped, false);
    block.pinned = block.pinned - taken.unmapped;
    if (block.advice != nullptr) block.advice->forget(taken.unmapped);
  }
  house.unsettled.fetch_sub(1, std::memory_order_release);
}

void notice(House& house, Block& block, const PageMask& pages, bool unmapped) {
  const std::lock_guard guard(block.state_lock);
  if (!block.notices.any()) house.unsettled.fetch_add(1, std::memory_order_relaxed);
  (unmapped ? block.notices.unmapped : block.notices.removed) |= pages;
}

void release(House& house, Block& block) {
  for (;;) {
    settle(house, block);
    switch (block.try_release()) {
      case Block::Released::no:
        continue;
      case Block::Released::yes_cpu_waiting:
        house.host.interrupt();
        return;
      case Block::Released::yes:
        return;
    }
  }
}

void make_valid(House& house, Block& block, const PageMask& pages, Range* range) {
  {
    const std::lock_guard guard(block.state_lock);  // what was noticed here was about memory now gone
    const bool noticed = block.notices.any();
    block.notices.removed = block.notices.removed - pages;
    block.notices.unmapped = block.notices.unmapped - pages;
    if (noticed && !block.notices.any()) house.unsettled.fetch_sub(1, std::memory_order_release);
  }
  block.range = block.valid.none() ? range : nullptr;
  block.valid |= pages;
  block.set_on_cpu(pages - block.resident_on_devices(), true);  // a driver may have moved what nobody managed
}

void make_invalid(House& house, Block& block, const PageMask& pages) {
  const PageMask lost = pages & block.valid;
  take_away_for_good(house, block, lost);
  if ((block.cpu_protected & lost).any()) house.host.write_protect(block.base, block.cpu_protected & lost, false);
  house.host.disown(block.base, lost, false);
  block.valid = block.valid - lost;
  block.set_on_cpu(lost, false);
  block.cpu_protected = block.cpu_protected - lost;
  block.read_only = block.read_only - lost;
  block.no_access = block.no_access - lost;
  block.held = block.held - lost;
  block.dropping = block.dropping - lost;
  block.pinned = block.pinned - lost;
  if (block.advice != nullptr) block.advice->forget(lost);
  if (block.valid.none()) {
    block.range = nullptr;
    block.history = BlockHistory{};
    block.ping_pong = false;
  }
}

}  // namespace hmmrt
