// SPDX-License-Identifier: MIT
// The side of a driver that serves faults by itself (host mirrors that are `driven`): the books follow what it says it has
// done, and the policy, shown the same fault that it would have been asked about, answers with what should be otherwise:
//
//   hold, map remotely (ping-pong, capacity thrash)   the pages are tied to system memory for as long, and sent home
//   bring more                                        is sent after
//   block after block                                 the blocks ahead are sent, and faults there move more at once
//   throttle                                          cannot be done to a driver; the pages stay where it put them
// Runs on the device thread, which may wait for claims.
#include <algorithm>
#include <array>

#include "fault/fault_service.hpp"
#include "fault/view.hpp"
#include "migrate/coherence.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

namespace {

constexpr std::uint64_t k_much = k_block_pages / 2;  // of a block, moved for one fault: the driver's own granule

Wish wish_of(Reason reason) {
  switch (reason) {
    case Reason::thrash_pin:
    case Reason::thrash_throttle:
      return Wish::ping_pong;
    case Reason::capacity_thrash:
    case Reason::device_full:
      return Wish::capacity_thrash;
    default:
      return Wish::remote;
  }
}

}  // namespace

// Makes the scratch work one for these pages, and does it.
void FaultService::steer(Block& block, Processor to, const PageMask& pages, const PageMask& remote, Cause cause,
                         bool happened) {
  Work& work = *scratch_work_;
  reset(work);
  work.block = &block;
  work.to = to;
  work.pages = pages;
  work.remote = work.write = remote;
  work.cause = cause;
  work.happened = happened;
  work.started_ns = house_.clock.now_ns();
  carry_out(house_, work, device_pipeline_.spare());
}

// Pages that a policy wants used where they are. Claim held.
void FaultService::tie_home(Block& block, Processor device, const PageMask& pages, Wish wish) {
  if (pages.none() || !house_.host.tie(block.base, pages, wish)) return;
  const PageMask away = pages - block.on_cpu;
  if (away.any()) steer(block, k_cpu, away, {}, Cause::coherence, true);
  steer(block, device, {}, pages & block.on_cpu, Cause::fault, false);
}

void FaultService::follow_move(const DriverRecord& r) {
  const std::uintptr_t base = block_floor(r.addr);
  PageMask pages = PageMask::range(page_in_block(r.addr), static_cast<unsigned>(r.bytes >> k_page_shift));
  Block* block = house_.space.find(base);
  bool adoptable = house_.host.info().any_pointer;
  if (adoptable && block != nullptr) {
    block->claim();
    adoptable = !block->valid.contains(pages);
    release(house_, *block);
  }
  adoptable = adoptable && !house_.is_foreign(base);  // may wait for other contexts' locks: without the claim
  if (block == nullptr && adoptable) block = house_.space.ensure(base);
  if (block == nullptr) return;
  block->claim();
  if (adoptable) adopt(house_, *block, pages);
  pages &= block->valid;
  const Processor device = r.to != k_cpu ? r.to : r.from;
  const DevicePart* part = block->part(device);
  const PageMask moving =
      r.to == k_cpu ? pages - block->on_cpu : pages - (part != nullptr ? part->resident : PageMask{});
  if (moving.none()) {
    release(house_, *block);
    return;
  }
  PageMask faulted, written;
  for (DriverRecord& f : driver_faults_) {
    if (f.to != r.to || block_floor(f.addr) != base) continue;
    faulted.set(page_in_block(f.addr));
    if (f.access != Access::read) written.set(page_in_block(f.addr));
    f = DriverRecord{};
  }
  faulted &= moving;
  // Of a CPU fault the driver does not say which page it was, and the report of a GPU's may be lost; but of a migration
  // within a block it must be one of these.
  const bool faults = r.cause == Cause::fault && (r.to != k_cpu || r.cpu_fault);
  if (faulted.none() && faults && r.alone) faulted = PageMask::one(moving.next(0));
  const Tally tally = house_.tally(*block, device, r.addr);
  if (r.cpu_fault) {
    tally.add(Count::cpu_faults);
    if (r.took_ns != 0) latencies_.cpu_fault_ns.add(r.took_ns);
  }
  Plan plan;
  PageMask remote, more;
  if (faulted.any()) {
    FaultGroup group;
    group.processor = r.to;
    group.faults = faulted.count();
    (written.any() ? group.write : group.read) = moving;  // the driver moves all for one page's sake
    Work& work = *scratch_work_;
    reset(work);
    work.block = block;
    (void)ask_policy(house_, *block, group, moving, work, plan);
    remote = work.remote;
    if (work.to == r.to) more = work.pages - moving;
  }
  Work& work = *scratch_work_;
  reset(work);
  work.block = block;
  work.to = r.to;
  work.pages = moving;
  work.faulted = faulted;
  work.cause = r.cause;
  work.happened = true;
  work.started_ns = house_.clock.now_ns();
  carry_out(house_, work, device_pipeline_.spare());
  if (r.cause == Cause::eviction && r.to == k_cpu) note_evicted(house_, *block, device, moving & block->on_cpu);

  part = block->part(device);
  if (r.to == k_cpu) {
    if (plan.pin_ns != 0) tie_home(*block, device, block->held & block->on_cpu, wish_of(plan.reason));
  } else if (part != nullptr) {
    tie_home(*block, device, remote & (part->resident | block->on_cpu), wish_of(plan.reason));
    more = more - remote - part->resident - house_.host.kept_home(base, device);
    if (more.any()) steer(*block, device, more, {}, Cause::prefetch_heuristic, false);
  }
  if (plan.pin_ns != 0) later(1, base, block->held, block->held_until_ns, true);
  const bool stream = faulted.any() && r.to != k_cpu && remote.none() && moving.count() >= k_much;
  release(house_, *block);
  if (stream) run_ahead(device, base);
}

// Brings what comes next in a stream of blocks, as far as it is one piece of managed memory and a quarter of what is free.
void FaultService::run_ahead(Processor p, std::uintptr_t base) {
  const Ahead ahead = ahead_[p - 1u].note(base, house_.clock.now_ns());
  const std::uint64_t room = house_.device(p).free_frame_count() / 4 / k_block_pages;
  std::uintptr_t end = ahead.addr;
  for (unsigned i = 0; i < ahead.blocks && i < room; ++i, end += k_block_size) {
    Block* block = house_.space.find(end);
    if (block == nullptr || !block->try_claim()) break;
    const bool free = block->valid.full() && block->on_cpu.full() && block->held.none() && block->pinned.none() &&
                      house_.host.kept_home(end, p).none();
    release(house_, *block);
    if (!free) break;
  }
  if (end == ahead.addr) return;
  const std::size_t bytes = end - ahead.addr;
  if (!house_.host.send(ahead.addr, bytes, p, Wish::stream, ahead.order)) return;
  for (std::uintptr_t at = ahead.addr; at < end; at += k_block_size) {
    Block* block = house_.space.find(at);
    if (block == nullptr) return;
    block->claim();
    bring_back_pinned(house_, *block, block->valid);
    steer(*block, p, (block->valid & block->on_cpu) - block->pinned, {}, Cause::prefetch_heuristic, true);
    release(house_, *block);
  }
}

bool FaultService::serve_records() {
  if (!house_.host.info().driven) return false;
  std::array<DriverRecord, 64> records;
  const std::size_t n = house_.host.fetch_records(records);
  std::array<std::uint64_t, k_max_devices> faults{};
  for (std::size_t i = 0; i < n; ++i) {
    const DriverRecord& r = records[i];
    switch (r.kind) {
      case DriverRecord::Kind::fault: {
        ++faults[r.to - 1u];
        driver_faults_[next_driver_fault_++ % driver_faults_.size()] = r;
        const Tally tally{&house_.counters, house_.device_counters[r.to - 1u], nullptr};
        tally.add(Count::device_faults);
        if (Block* block = house_.space.find(block_floor(r.addr)); block != nullptr) {
          block->claim();
          if (Counters* range = house_.space.range_counters(*block, r.addr)) range->add(Count::device_faults);
          release(house_, *block);
        }
        break;
      }
      case DriverRecord::Kind::served:
        if (r.took_ns != 0) latencies_.device_fault_ns.add(r.took_ns);
        break;
      case DriverRecord::Kind::moved:
        follow_move(r);
        break;
    }
  }
  for (Processor p = 1; p <= house_.device_count; ++p) {
    if (faults[p - 1u] == 0) continue;
    const Tally tally{&house_.counters, house_.device_counters[p - 1u], nullptr};
    tally.add(Count::fault_batches);
    latencies_.batch_faults.add(faults[p - 1u]);
    house_.log.record(
        {.time_ns = house_.clock.now_ns(), .a = faults[p - 1u], .kind = EventKind::fault_batch, .processor = p});
  }
  if (n < records.size()) record_rounds_.fetch_add(1, std::memory_order_acq_rel);
  return n != 0;
}

// A round that began after the call has taken what had been read before it.
void FaultService::wait_records() {
  const std::uint64_t rounds = record_rounds_.load(std::memory_order_acquire) + 2;
  while (record_rounds_.load(std::memory_order_acquire) < rounds) {
    if (frozen_.load(std::memory_order_acquire) || stopping_.load(std::memory_order_acquire)) return;
    doorbell_.ring();
    static const Word never{0};
    park(never, 0, 20'000);
  }
}

}  // namespace hmmrt
