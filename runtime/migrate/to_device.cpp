// SPDX-License-Identifier: MIT
#include "migrate/to_device.hpp"

#include "migrate/coherence.hpp"

namespace hmmrt {

namespace {

// Takes out of the wishes what must not or cannot be: forbidden pages, pages pinned in system memory.
void sieve(House& house, Work& w) {
  Block& b = *w.block;
  const PageMask wanted = (w.pages | w.duplicate | w.remote) & b.valid;
  w.forbidden = wanted & (b.no_access | (w.write & b.read_only));
  const PageMask going = dropping(house, b, wanted) | leaving(b, wanted);
  w.refused |= going;
  w.pages = w.pages - going;
  w.duplicate = w.duplicate - going;
  w.remote = w.remote - going;
  w.pages = (w.pages & b.valid) - w.forbidden;
  w.duplicate = (w.duplicate & b.valid) - w.forbidden - w.pages;
  w.remote = (w.remote & b.valid) - w.forbidden - w.pages - w.duplicate;
  const PageMask stay = w.pages & b.pinned;
  w.pages = w.pages - stay;
  if (house.device(w.to).info().caps.remote_mapping) {
    w.remote |= stay & w.faulted;
  } else {
    w.pinned = stay;
  }
}

// Exclusive pages of other devices become the CPU's again; so do our own that lost their translation.
void revoke_exclusive(House& house, Work& w) {
  Block& b = *w.block;
  PageMask revoked;
  for (Processor p = 1; p <= house.device_count; ++p) {
    const DevicePart* part = b.part(p);
    if (part != nullptr) revoked |= p == w.to ? part->exclusive - part->mapped : part->exclusive;
  }
  revoked = revoked & (w.pages | w.duplicate | w.remote);
  if (revoked.none()) return;
  take_away(house, b, revoked);
  const PageMask stuck = revoked - b.on_cpu;
  w.refused |= stuck;
  w.pages = w.pages - stuck;
  w.duplicate = w.duplicate - stuck;
  w.remote = w.remote - stuck;
}

// Frames for everything that will be copied here. Falls back from the whole wish to the faulted pages, and from those to
// mapping them where they are.
void find_frames(House& house, Work& w, Work& spare) {
  Device& device = house.device(w.to);
  const DevicePart& part = *w.block->part(w.to);
  PageMask need = (w.pages | w.duplicate) - part.resident;
  if (need.none()) return;
  const auto get = [&] {
    const unsigned n = need.count();
    if (device.allocate_frames(w.block->base, need, w.frames.data())) return true;
    // Not full: what has this place comes home by itself.
    if (device.info().caps.placed && device.free_frame_count() >= n) return false;
    return make_room(house, w.to, n, w.cause, spare) && device.allocate_frames(w.block->base, need, w.frames.data());
  };
  if (!get()) {
    const PageMask prefetch = need - w.faulted;
    w.full = prefetch;
    w.pages = w.pages - prefetch;
    w.duplicate = w.duplicate - prefetch;
    need = need & w.faulted;
    if (need.none() || (prefetch.none() || !get())) {
      w.pages = w.pages - need;
      w.duplicate = w.duplicate - need;
      w.full |= need;
      // A launch on a placed device is of one kind: there, some pages in system memory help nobody.
      if (device.info().caps.remote_mapping && !device.info().caps.placed) w.remote |= need;
      need = PageMask{};
    }
  }
  w.allocated = need;
}

// Pages of other devices that this one can neither map there nor copy from there come by way of system memory. So do, for
// a device that only copies, those of all but one: it has the whole wish after one round, and none is mapped.
void bring_home_first(House& house, Work& w, Work& spare) {
  const DeviceCaps& caps = house.device(w.to).info().caps;
  if (caps.peer) return;
  Block& b = *w.block;
  PageMask elsewhere;
  for (Processor p = 1; p <= house.device_count; ++p) {
    const DevicePart* part = b.part(p);
    if (p != w.to && part != nullptr) elsewhere |= part->resident;
  }
  elsewhere = elsewhere & (w.pages | w.duplicate | w.remote);
  elsewhere = elsewhere - b.on_cpu - b.part(w.to)->resident;
  if (caps.peer_copy) {
    const Processor owner = main_owner(house, b, elsewhere - w.remote);
    if (owner != k_no_processor) elsewhere = elsewhere - (b.part(owner)->resident - w.remote);
  }
  if (elsewhere.none()) return;
  reset(spare);
  spare.block = &b;
  spare.to = k_cpu;
  spare.pages = elsewhere;
  spare.faulted = elsewhere & w.faulted;
  spare.cause = w.cause;
  spare.happened = w.happened;
  carry_out(house, spare, spare);
  const PageMask stuck = elsewhere - b.on_cpu;
  w.refused |= stuck;
  w.pages = w.pages - stuck;
  w.duplicate = w.duplicate - stuck;
  w.remote = w.remote - stuck;
}

void free_allocated(House& house, Work& w, const PageMask& pages) {
  const PageMask back = w.allocated & pages;
  if (back.none()) return;
  house.device(w.to).free_frames(back, w.frames.data());
  w.allocated = w.allocated - back;
}

// Pages that are here already and also on the CPU become ours alone: withdrawn, without copying.
void collapse_here(House& house, Work& w) {
  Block& b = *w.block;
  const PageMask shared = w.pages & b.part(w.to)->resident & b.on_cpu;
  if (shared.none()) return;
  b.set_on_cpu(shared, false);
  Transfer& t = w.dup;  // free until the duplicates are prepared
  start_transfer(house, w, t, w.to, shared, false);
  if (t.outcome.taken().any()) house.host.commit(t);
  const PageMask kept = shared - t.outcome.taken();
  b.set_on_cpu(kept, true);
  b.cpu_protected = b.cpu_protected - t.outcome.taken();
  house.tally(b, w.to, b.base).add(Count::duplicates_collapsed, t.outcome.taken().count());
  if (kept.any()) {
    // The CPU keeps them, so this device must not hold them as its own.
    note_refusals(house, w, w.to, t.outcome);
    w.pages = w.pages - kept;
  }
}

}  // namespace

void prepare_to_device(House& house, Work& w, Work& spare) {
  Block& b = *w.block;
  DevicePart* part = house.space.obtain_part(b, w.to);
  if (part == nullptr) {
    w.full = w.pages | w.duplicate | w.remote;
    w.pages = w.duplicate = w.remote = PageMask{};
    return;
  }
  sieve(house, w);
  revoke_exclusive(house, w);
  w.pages = w.pages - part->exclusive;  // ours already, in system memory
  w.satisfied |= w.faulted & part->exclusive & part->mapped;
  bring_home_first(house, w, spare);
  find_frames(house, w, spare);
  bring_home_first(house, w, spare);  // what found no frame, and is to be mapped where it is

  const PageMask moving = w.pages;
  if (moving.any()) {
    take_away(house, b, moving, w.to);
    for (Processor p = 1; p <= house.device_count; ++p) {  // read-only copies elsewhere
      const DevicePart* other = b.part(p);
      if (p == w.to || other == nullptr) continue;
      const PageMask copies = other->resident & moving & (b.on_cpu | part->resident);
      drop_frames(house, b, p, copies);
    }
  }
  if (w.duplicate.any()) take_write_away(house, b, w.duplicate);
  collapse_here(house, w);
  const PageMask on_peers = (w.pages | w.duplicate) - b.on_cpu - part->resident;
  w.peer = main_owner(house, b, on_peers);
  if (w.peer != k_no_processor) w.from_peer = b.part(w.peer)->resident & on_peers;
  w.refused |= on_peers - w.from_peer;  // pages on further devices wait for the next round

  const PageMask from_cpu = (w.pages & b.on_cpu) - part->resident;
  b.set_on_cpu(from_cpu, false);
  start_transfer(house, w, w.move, w.to, from_cpu, false);
  const PageMask stayed = from_cpu - w.move.outcome.taken();
  b.set_on_cpu(stayed, true);
  b.cpu_protected = b.cpu_protected - w.move.outcome.taken();
  if (stayed.any()) note_refusals(house, w, w.to, w.move.outcome);

  start_transfer(house, w, w.dup, w.to, (w.duplicate & b.on_cpu) - part->resident, true);
  const PageMask dup_stayed = w.dup.pages - w.dup.outcome.taken();
  if (dup_stayed.any()) note_refusals(house, w, w.to, w.dup.outcome);
  free_allocated(house, w, stayed | dup_stayed);
}

void copy_to_device(House& house, Work& w) {
  Device& device = house.device(w.to);
  if (w.move.outcome.done.any()) house.host.copy(w.move);
  if (w.dup.outcome.done.any()) house.host.copy(w.dup);
  const PageMask fresh = (w.move.outcome.not_populated | w.dup.outcome.not_populated) & w.allocated;
  if (fresh.any() && !device.zero_frames(fresh, w.frames.data())) w.uncleared = fresh;
  if (w.from_peer.none()) return;
  const DevicePart& from = *w.block->part(w.peer);
  std::array<CopyRun, 64> runs;
  std::size_t n = 0;
  w.from_peer.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned page = first; page < first + count;) {
      unsigned end = page + 1;
      while (end < first + count && w.frames[end] == w.frames[end - 1] + 1 &&
             from.frames[end] == from.frames[end - 1] + 1) {
        ++end;
      }
      runs[n++] = CopyRun{CopyKind::peer_to_device, w.peer, w.frames[page], from.frames[page], end - page, nullptr};
      page = end;
      if (n == runs.size()) {
        // A full array is waited for; one block seldom needs two.
        if (!device.wait_copy(device.copy_async({runs.data(), n}))) w.refused |= w.from_peer;
        n = 0;
      }
    }
  });
  if (n != 0) w.peer_ticket = device.copy_async({runs.data(), n});
}

void finish_copy_to_device(House& house, Work& w) {
  Block& b = *w.block;
  if (w.uncleared
          .any()) {  // what the frames held before is nobody's business: they stay untouched, as the CPU has them
    const DeliveryGuard guard(house.gate);
    for (Transfer* t : {&w.move, &w.dup}) {
      const PageMask mine = t->outcome.not_populated & w.uncleared;
      t->outcome.not_populated = t->outcome.not_populated - mine;
      if (t == &w.move) b.set_on_cpu(still_wanted(b, mine), true);
    }
    w.refused |= w.uncleared;
    free_allocated(house, w, w.uncleared);
  }
  for (Transfer* t : {&w.move, &w.dup}) {
    if (t->outcome.done.none() || house.host.finish_copy(*t)) continue;
    const PageMask taken = t->outcome.taken();
    {
      const DeliveryGuard guard(house.gate);
      PageMask wanted = still_wanted(b, taken);            // settle() takes care of the others
      if (t == &w.dup) wanted = wanted - b.cpu_protected;  // another device has a copy: the protection stays
      t->outcome.done = t->outcome.done & wanted;
      t->outcome.not_populated = t->outcome.not_populated & wanted;
      if (wanted.any()) house.host.rollback(*t);
      // Could not go back just now, or not to this address: ours, in system memory, untranslated.
      const PageMask kept = (wanted & t->outcome.busy) | leaving(b, taken);
      b.part(w.to)->exclusive |= kept;
      if (t == &w.move) b.set_on_cpu(wanted - kept, true);
    }
    w.refused |= taken;
    free_allocated(house, w, taken);
    t->outcome = PageOutcome{};
  }
  if (w.from_peer.any()) {
    const bool copied = w.peer_ticket == 0 || house.device(w.to).wait_copy(w.peer_ticket);
    if (!copied || w.refused.intersects(w.from_peer)) {
      w.refused |= w.from_peer;
      free_allocated(house, w, w.from_peer);
      w.from_peer = PageMask{};
    }
  }
}

void commit_to_device(House& house, Work& w) {
  Block& b = *w.block;
  DevicePart* part = b.part(w.to);
  if (part == nullptr) return;
  const Tally tally = house.tally(b, w.to, b.base);
  for (Transfer* t : {&w.move, &w.dup}) {
    const PageMask before = t->outcome.taken();
    if (before.none()) continue;
    house.gate.wait_for_reader();
    t->moved_on = before - still_wanted(b, before);
    house.host.commit(*t);
    const PageMask lost = before - t->outcome.taken();
    if (t == &w.move) b.set_on_cpu(lost, true);
    w.refused |= lost;
    free_allocated(house, w, lost);
  }
  const PageMask moved = w.move.outcome.taken();
  const PageMask duplicated = w.dup.outcome.taken();
  const PageMask peer_moved = w.from_peer & w.pages;
  const PageMask arrived = (moved | duplicated | w.from_peer) & w.allocated;
  tally.add(Count::refaults, (arrived & w.faulted & part->evicted).count());
  add_resident(house, b, w.to, arrived, w.frames.data());
  part->staged |= w.move.outcome.done;
  free_allocated(house, w, w.allocated - arrived);
  w.allocated = PageMask{};
  b.cpu_protected |= duplicated;
  for (Processor p = 1; p <= house.device_count; ++p) {
    if (p != w.to) drop_frames(house, b, p, peer_moved);
  }

  const PageMask shared = b.shared();
  const PageMask own = w.pages & part->resident;
  map_frames(house, b, w.to, own - shared - b.read_only, Rights::write);
  map_frames(house, b, w.to, (own & (shared | b.read_only)) | (w.duplicate & part->resident), Rights::read);

  // Mapped where they are: in system memory, or a peer's.
  const DeviceCaps& caps = house.device(w.to).info().caps;
  PageMask remote = w.remote - part->exclusive;
  if (remote.any() && caps.remote_mapping) {
    collapse_to_cpu(house, b, remote & (w.write | w.atomic));
    remote = remote - part->resident;
    const PageMask lone = caps.system_atomics ? PageMask{} : remote & w.atomic & b.on_cpu;
    if (lone.any()) {
      take_away(house, b, lone);
      map_exclusive(house, b, w.to, lone, &w.forbidden);
      remote = remote - lone;
    }
    const PageMask in_system = remote & b.on_cpu;
    const PageMask readable = b.cpu_protected | b.read_only;
    PageMask mapped = map_host(house, b, w.to, in_system - readable, Rights::write, &w.forbidden);
    mapped |= map_host(house, b, w.to, in_system & readable, Rights::read, &w.forbidden);
    for (Processor p = 1; caps.peer && p <= house.device_count; ++p) {
      if (const DevicePart* owner = b.part(p); owner != nullptr && p != w.to) {
        const PageMask theirs = (remote & owner->resident) - b.shared();
        mapped |= map_peer(house, b, w.to, p, theirs - b.read_only, Rights::write);
        mapped |= map_peer(house, b, w.to, p, theirs & b.read_only, Rights::read);
      }
    }
    tally.add(Count::pages_mapped_remote, mapped.count());
    // What could not be mapped in place is tried again, as a migration if need be.
    w.refused |= (remote & w.faulted) - mapped;
  }
  PageMask reached = part->mapped & ((~w.write & ~w.atomic) | part->writable);
  if (!caps.system_atomics) reached = reached - (w.atomic & (part->remote - part->exclusive));
  w.satisfied |= w.faulted & reached;
  w.refused = w.refused - w.satisfied;
  w.moved = moved | peer_moved;

  const PageMask copied = w.move.copied & w.move.outcome.done;
  const Cause beyond = w.cause == Cause::fault ? Cause::prefetch_heuristic : w.cause;
  tally.add_bytes(Way::to_device, w.cause, (copied & w.faulted).count() * k_page_size);
  tally.add_bytes(Way::to_device, beyond, (copied - w.faulted).count() * k_page_size);
  tally.add_bytes(Way::to_device, w.cause, (w.dup.copied & duplicated).count() * k_page_size);
  tally.add_bytes(Way::peer, w.cause, (w.from_peer & w.faulted).count() * k_page_size);
  tally.add_bytes(Way::peer, beyond, (w.from_peer - w.faulted).count() * k_page_size);
  tally.add(Count::pages_to_device, moved.count());
  tally.add(Count::pages_peer, w.from_peer.count());
  tally.add(Count::pages_duplicated, duplicated.count());
  const std::uint64_t now = house.clock.now_ns();
  if (moved.any()) house.policy.on_migrated(b.history, moved, k_cpu, w.to, w.cause, now);
  if (peer_moved.any()) house.policy.on_migrated(b.history, peer_moved, w.peer, w.to, w.cause, now);
  if (house.log.on() && w.moved.any()) {
    house.log.record({.time_ns = now,
                      .base = b.base,
                      .pages = w.moved.count(),
                      .kind = EventKind::migrated,
                      .processor = peer_moved.any() ? w.peer : k_cpu,
                      .peer = w.to,
                      .detail = static_cast<std::uint8_t>(w.cause)});
  }
  house.device(w.to).replay(b.base, w.satisfied);
}

}  // namespace hmmrt
