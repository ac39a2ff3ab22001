// SPDX-License-Identifier: MIT
#include "migrate/to_host.hpp"

#include "migrate/coherence.hpp"

namespace hmmrt {

namespace {

// Delivers what the application has not dropped since. Returns the pages delivered.
PageMask deliver(House& house, Work& w, Transfer& t) {
  const PageMask before = t.outcome.taken();
  if (before.none()) return {};
  const DeliveryGuard guard(house.gate);
  const PageMask wanted = still_wanted(*w.block, before);  // settle() takes care of the others
  t.outcome.done = t.outcome.done & wanted;
  t.outcome.not_populated = t.outcome.not_populated & wanted;
  const PageMask offered = t.outcome.taken();
  if (offered.none()) return {};
  house.host.commit(t);
  const PageMask delivered = t.outcome.taken();
  if ((offered - delivered).any()) note_refusals(house, w, w.peer, t.outcome);
  return delivered;
}

}  // namespace

void prepare_to_host(House& house, Work& w) {
  Block& b = *w.block;
  const PageMask going = leaving(b, (w.pages | w.duplicate) & b.valid);
  w.refused |= going;
  w.pages = (w.pages & b.valid) - going;
  w.duplicate = (w.duplicate & b.valid) - w.pages - going;
  for (Processor p = 1; p <= house.device_count; ++p) {  // an exclusive page has no copy to make: it comes home
    if (const DevicePart* part = b.part(p); part != nullptr) w.pages |= w.duplicate & part->exclusive;
  }
  w.duplicate = w.duplicate - w.pages;
  collapse_to_cpu(house, b, w.pages & b.on_cpu & (w.write | ~w.faulted));
  w.satisfied |= w.pages & b.on_cpu;
  const PageMask home = w.pages - b.on_cpu;
  take_away(house, b, home);  // exclusive pages are home after this
  take_write_away(house, b, w.duplicate - b.on_cpu);
  w.satisfied |= home & b.on_cpu;

  const PageMask away = (w.pages | w.duplicate) - b.on_cpu;
  w.peer = main_owner(house, b, away);
  // For the next round: pages on further devices, and exclusive ones that could not be given back just now.
  w.refused |= w.peer == k_no_processor ? away : away - b.part(w.peer)->resident;
  if (w.peer == k_no_processor) return;
  const DevicePart& part = *b.part(w.peer);
  start_transfer(house, w, w.move, w.peer, (w.pages - b.on_cpu) & part.resident, false);
  if ((w.move.pages - w.move.outcome.taken()).any()) note_refusals(house, w, w.peer, w.move.outcome);
  start_transfer(house, w, w.dup, w.peer, (w.duplicate - b.on_cpu) & part.resident, true);
  if ((w.dup.pages - w.dup.outcome.taken()).any()) note_refusals(house, w, w.peer, w.dup.outcome);
}

void copy_to_host(House& house, Work& w) {
  if (w.move.outcome.done.any()) house.host.copy(w.move);
  if (w.dup.outcome.done.any()) house.host.copy(w.dup);
}

void finish_copy_to_host(House& house, Work& w) {
  for (Transfer* t : {&w.move, &w.dup}) {
    if (t->outcome.done.none() || house.host.finish_copy(*t)) continue;
    w.refused |= t->outcome.taken();  // the device still has them
    house.host.rollback(*t);
    t->outcome = PageOutcome{};
  }
}

void commit_to_host(House& house, Work& w) {
  Block& b = *w.block;
  if (w.peer == k_no_processor) {
    w.refused = w.refused - w.satisfied;
    return;
  }
  const Tally tally = house.tally(b, w.peer, b.base);
  const PageMask moved = deliver(house, w, w.move);
  b.set_on_cpu(moved, true);
  for (Processor p = 1; p <= house.device_count; ++p) drop_frames(house, b, p, moved);
  const PageMask duplicated = deliver(house, w, w.dup);
  b.set_on_cpu(duplicated, true);
  b.cpu_protected |= duplicated;
  if (duplicated.any()) map_frames(house, b, w.peer, duplicated, Rights::read);
  w.satisfied |= moved | duplicated;
  w.refused = w.refused - w.satisfied;
  w.moved = moved;

  const PageMask copied = w.move.copied & moved;
  const Cause beyond = w.cause == Cause::fault ? Cause::prefetch_heuristic : w.cause;
  tally.add_bytes(Way::to_host, w.cause, (copied & w.faulted).count() * k_page_size);
  tally.add_bytes(Way::to_host, beyond, (copied - w.faulted).count() * k_page_size);
  tally.add_bytes(Way::to_host, w.cause, (w.dup.copied & duplicated).count() * k_page_size);
  tally.add(Count::pages_to_host, moved.count());
  tally.add(Count::pages_duplicated, duplicated.count());
  tally.add(Count::pages_left_clean, (moved - copied).count());
  if (moved.none()) return;
  const std::uint64_t now = house.clock.now_ns();
  house.policy.on_migrated(b.history, moved, w.peer, k_cpu, w.cause, now);
  if (house.log.on()) {
    house.log.record({.time_ns = now,
                      .base = b.base,
                      .pages = moved.count(),
                      .kind = EventKind::migrated,
                      .processor = w.peer,
                      .peer = k_cpu,
                      .detail = static_cast<std::uint8_t>(w.cause)});
  }
}

}  // namespace hmmrt
