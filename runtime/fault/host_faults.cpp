// SPDX-License-Identifier: MIT
// The CPU side of the fault service: CPU faults, and what the application does to its mappings. Runs on the event thread,
// which never waits for a claim: a fault whose block is being worked on is kept until the claim's release.
#include <algorithm>
#include <mutex>

#include "fault/fault_service.hpp"
#include "fault/view.hpp"
#include "migrate/coherence.hpp"

namespace hmmrt {

namespace {
constexpr std::uint64_t k_retry_ns = 20'000;
constexpr unsigned k_first_touch_pages = 16;  // a first touch by the CPU brings its 64 KiB
}  // namespace

// CPU faults, block by block.
class FaultService::HostJobs final : public Jobs {
 public:
  explicit HostJobs(FaultService& service) : service_(service) {}

  bool plan(std::size_t i, Work& work) override {
    House& house = service_.house_;
    BatchGroup& g = service_.host_batch_->group(i);
    const Remapping remapping = service_.remapping(g.base);
    if (const PageMask pages = g.faults.pages() & (remapping.filled | remapping.emptied); pages.any()) {
      // What is mapped where something was taken from is new, and nobody's. Not kept: who faults may be a device's unit
      // whose access a quiesce waits for, before the remap can be followed.
      (pages & remapping.emptied).for_each([&](unsigned page) {
        house.host.populate_unclaimed(g.base + page * k_page_size);
      });
      if ((pages & remapping.filled).any()) {
        service_.keep(g, pages & remapping.filled, house.clock.now_ns() + k_retry_ns);
      }
      for (PageMask* mask : {&g.faults.read, &g.faults.write, &g.faults.atomic, &g.protected_write}) {
        *mask = *mask - pages;
      }
    }
    const PageMask faulted = g.faults.pages();
    if (faulted.none()) return false;
    Block* block = house.space.find(g.base);
    if (block == nullptr) {  // inside an arena, but never allocated; or a stranger's
      house.host.populate(g.base, faulted - g.protected_write);
      house.host.write_protect(g.base, g.protected_write, false);
      house.host.wake(g.base, faulted);  // also where that could not be done just now
      return false;
    }
    if (!block->try_claim() && !claim_or_wait(*block, g)) return false;
    work.block = block;
    work.to = k_cpu;
    work.write = g.faults.write;
    work.faulted = faulted;
    work.started_ns = g.oldest_ns;
    if (Counters* range = house.space.range_counters(*block, g.base + faulted.next(0) * k_page_size)) {
      range->add(Count::cpu_faults, g.faults.faults);
    }

    const PageMask stranger = faulted - block->valid;  // freed, but still mapped: plain memory
    const PageMask there = (faulted & block->on_cpu) - stranger;
    const PageMask mapped = there | stranger;
    const PageMask collapse = there & g.protected_write & block->cpu_protected;
    // A write to a page about to be cleared waits until it was.
    const PageMask going = dropping(house, *block, (there & g.protected_write) - collapse);
    // A stranger's may be write-protected, too: mapped where something was unmapped just as that was being protected.
    const PageMask spurious = (mapped & g.protected_write) - collapse - going;
    if (spurious.any()) house.host.write_protect(g.base, spurious, false);
    const PageMask missing = mapped - g.protected_write;
    if (missing.any()) house.host.populate(g.base, grow(*block, missing));
    work.satisfied = mapped - collapse - going;
    work.pages = collapse;

    const PageMask asking = faulted - there - stranger;
    if (asking.any()) {
      Plan plan;
      const PageMask waiting = ask_policy(house, *block, g.faults, asking, work, plan);
      work.to = k_cpu;  // the CPU can only be served at home
      work.pages = (work.pages | (work.remote & asking)) - waiting;
      work.remote = PageMask{};
      if (waiting.any()) service_.keep(g, waiting, house.clock.now_ns() + plan.throttle_ns);
      work.faulted = work.faulted - waiting;
      if (plan.pin_ns != 0) {
        service_.later(1, g.base, block->held, block->held_until_ns, true);
        service_.doorbell_.ring();  // who serves that may be asleep with nothing due
      }
    }
    return true;
  }

  void done(std::size_t i, Work& w) override {
    House& house = service_.house_;
    const std::uint64_t now = house.clock.now_ns();
    const PageMask settled = (w.faulted & (w.satisfied | w.gone | w.forbidden)) - w.moved;
    if (settled.any()) house.host.wake(w.block->base, settled);
    const PageMask left = w.faulted - w.satisfied - w.gone - w.forbidden;
    if (left.none()) {
      service_.latencies_.cpu_fault_ns.add(now - w.started_ns);
      return;
    }
    house.tally(*w.block, k_cpu, w.block->base).add(Count::retries, left.count());
    service_.keep(service_.host_batch_->group(i), left, now + k_retry_ns);
  }

 private:
  // The claim is held by someone else. Pages that are the CPU's and merely missing are served at once, because the
  // holder may be quiescing a device whose access is stuck on them; the rest waits for the release.
  bool claim_or_wait(Block& block, BatchGroup& g) {
    const PageMask missing = g.faults.pages() - g.protected_write;
    PageMask served;
    {
      const std::lock_guard guard(block.state_lock);
      served = missing & block.on_cpu;
      served.for_each([&](unsigned page) { service_.house_.host.populate_unclaimed(g.base + page * k_page_size); });
      block.notices.cpu_waiting = true;
    }
    if (block.try_claim()) return true;  // released just now: nobody would tell us
    const PageMask left = g.faults.pages() - served;
    if (left.any()) service_.keep(g, left, service_.house_.clock.now_ns() + 50 * k_retry_ns);
    return false;
  }

  // First touches come in sequence: bring the neighbourhood, the whole block if nobody ever had any of it elsewhere.
  static PageMask grow(const Block& block, const PageMask& missing) {
    if (block.valid.full() && block.on_cpu.full() && block.resident_on_devices().none()) return PageMask::all();
    PageMask region;
    missing.for_each_run([&](unsigned first, unsigned count) {
      const unsigned from = first / k_first_touch_pages * k_first_touch_pages;
      const unsigned to = (first + count + k_first_touch_pages - 1) / k_first_touch_pages * k_first_touch_pages;
      region |= PageMask::range(from, to - from);
    });
    return (region & block.valid & block.on_cpu) | missing;
  }

  FaultService& service_;
};

void FaultService::keep(const BatchGroup& group, const PageMask& pages, std::uint64_t due_ns) {
  BatchGroup kept = group;
  kept.faults.read = group.faults.read & pages;
  kept.faults.write = group.faults.write & pages;
  kept.faults.atomic = group.faults.atomic & pages;
  kept.protected_write = group.protected_write & pages;
  for (auto& pending : host_pending_) {
    BatchGroup& other = pending.group;
    if (other.base != kept.base) continue;
    other.faults.atomic |= kept.faults.atomic;
    other.faults.write = (other.faults.write | kept.faults.write) - other.faults.atomic;
    other.faults.read = (other.faults.read | kept.faults.read) - other.faults.write - other.faults.atomic;
    other.protected_write |= kept.protected_write;
    other.oldest_ns = std::min(other.oldest_ns, kept.oldest_ns);
    pending.due_ns = std::min(pending.due_ns, due_ns);
    return;
  }
  host_pending_.push_back({due_ns, kept});
}

FaultService::Remapping FaultService::remapping(std::uintptr_t base) const {
  Remapping pages;
  const auto here = [&](std::uintptr_t addr, std::size_t bytes) {
    const std::uintptr_t from = std::max(addr, base);
    const std::uintptr_t to = std::min(addr + bytes, base + k_block_size);
    if (from >= to) return PageMask{};
    return PageMask::range(page_in_block(from), static_cast<unsigned>((to - from) >> k_page_shift));
  };
  const std::lock_guard guard(remaps_lock_);
  for (const Remap& r : remaps_) {
    const PageMask emptied = here(r.from, r.bytes);
    const PageMask filled = here(r.to, r.bytes);
    pages.filled = (pages.filled - emptied) | filled;
    pages.emptied = (pages.emptied | emptied) - filled;
  }
  return pages;
}

// An address stands for what the latest remap brought there; what the latest took away from there is not ours, and what
// mremap itself reports as unmapped is on its way.
void FaultService::notice_removal(const HostEvent& e) {
  parts_.assign(1, Part{e.addr, e.addr + e.bytes});
  const auto take_out = [&](std::uintptr_t begin, std::uintptr_t end, auto&& found) {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const Part part = parts_[i];
      const Part both{std::max(part.begin, begin), std::min(part.end, end)};
      if (both.begin >= both.end) continue;
      found(both);
      parts_[i].end = both.begin;
      if (part.end > both.end) parts_.push_back({both.end, part.end});
    }
  };
  const bool unmapped = e.kind == HostEventKind::unmap;
  {
    const std::lock_guard guard(remaps_lock_);
    for (auto r = remaps_.rbegin(); r != remaps_.rend(); ++r) {
      take_out(r->to, r->to + r->bytes, [&](const Part& part) {
        late_.push_back({part.begin, part.end, unmapped, r->number});
      });
      take_out(r->from, r->from + r->bytes, [](const Part&) {});
    }
  }
  for (const Part& part : parts_) {
    if (part.begin >= part.end) continue;
    house_.space.for_each_block(part.begin, part.end - part.begin, [&](Block& block, const PageMask& pages) {
      notice(house_, block, pages, unmapped);
      noticed_.push_back(&block);
    });
  }
}

// Reads what the host has to say: faults into events_, mapping changes into the blocks they concern.
bool FaultService::read_events() {
  const std::size_t room = events_.size() - event_count_;
  if (room < k_read_at_once) return false;
  house_.gate.begin_reading();
  const std::size_t n = house_.host.fetch({events_.data() + event_count_, k_read_at_once});
  std::size_t kept = event_count_;
  for (std::size_t i = event_count_; i < event_count_ + n; ++i) {
    const HostEvent& e = events_[i];
    if (e.kind == HostEventKind::fault) {
      events_[kept++] = e;
      continue;
    }
    if (e.kind == HostEventKind::remap) {
      house_.unsettled.fetch_add(1, std::memory_order_relaxed);
      {
        const std::lock_guard guard(remaps_lock_);
        remaps_.push_back({e.addr, e.to, e.bytes, ++remap_count_});
        mark_leaving(house_, e.addr, e.bytes, true);
      }
      doorbell_.ring();
      continue;
    }
    notice_removal(e);
  }
  event_count_ = kept;
  house_.gate.end_reading();
  return n != 0;
}

void FaultService::follow_front() {
  const Remap remap = remaps_.front();
  remaps_.erase(remaps_.begin());
  mark_leaving(house_, remap.from, remap.bytes, false);
  for (const Remap& r : remaps_) mark_leaving(house_, r.from, r.bytes, true);
  for (const Late& late : late_) {
    if (late.remap != remap.number) continue;
    house_.space.for_each_block(late.begin, late.end - late.begin, [&](Block& block, const PageMask& pages) {
      notice(house_, block, pages, late.unmapped);
    });
  }
  std::erase_if(late_, [&](const Late& late) { return late.remap == remap.number; });
}

// Called from a quiesce that takes long. On the event thread: reads on, and serves what needs no claim, because the
// access that the quiesce waits for may be stuck in a CPU fault. That fault may have been read before, too: it is among
// the events not looked at yet, in the batch being served, or among those kept.
void FaultService::while_stalled(void* self) {
  auto& service = *static_cast<FaultService*>(self);
  if (std::this_thread::get_id() != service.event_thread_.load(std::memory_order_relaxed)) return;
  service.read_events();
  const auto serve = [&](std::uintptr_t base, const PageMask& faulted) {
    Block* block = service.house_.space.find(base);
    if (block == nullptr) return;
    const Remapping remapping = service.remapping(block->base);
    const PageMask missing = faulted - remapping.filled;
    const std::lock_guard guard(block->state_lock);
    (missing & (block->on_cpu | remapping.emptied)).for_each([&](unsigned page) {
      service.house_.host.populate_unclaimed(block->base + page * k_page_size);
    });
  };
  const auto serve_group = [&](const BatchGroup& g) { serve(g.base, g.faults.pages() - g.protected_write); };
  for (std::size_t i = 0; i < service.event_count_; ++i) {
    const HostEvent& e = service.events_[i];
    if (!e.write_protected) serve(e.addr, PageMask::one(page_in_block(e.addr)));
  }
  for (std::size_t i = 0; i < service.host_batch_->size(); ++i) serve_group(service.host_batch_->group(i));
  for (const Pending& p : service.host_pending_) serve_group(p.group);
  for (const Pending& p : service.host_retrying_) serve_group(p.group);
}

bool FaultService::serve_host() {
  bool did = false;
  while (!noticed_.empty()) {
    Block* block = noticed_.back();
    noticed_.pop_back();
    if (block->try_claim()) release(house_, *block);
    did = true;
  }
  FaultBatch& batch = *host_batch_;
  const std::uint64_t now = house_.clock.now_ns();
  // What was kept is tried again in every round: a round means that something happened.
  batch.clear();
  std::size_t taken = 0;
  const std::size_t n = std::min(event_count_, FaultBatch::k_capacity);
  for (; taken < n; ++taken) {
    const HostEvent& e = events_[taken];
    if (!batch.add(k_cpu, e.addr, e.access, e.time_ns, e.write_protected)) break;
    house_.counters.add(e.write_protected ? Count::cpu_write_protect_faults : Count::cpu_faults);
  }
  std::copy(events_.begin() + static_cast<std::ptrdiff_t>(taken),
            events_.begin() + static_cast<std::ptrdiff_t>(event_count_), events_.begin());
  event_count_ -= taken;
  if (batch.size() != 0) {
    house_.counters.add(Count::duplicate_faults, batch.duplicates());
    batch.sort();
    HostJobs jobs(*this);
    host_pipeline_.run(batch.size(), jobs);
    did = true;
  }
  if (host_pending_.empty()) return did;
  std::swap(host_pending_, host_retrying_);
  for (Pending& pending : host_retrying_) {
    if (pending.due_ns > now && !interrupted_) {
      host_pending_.push_back(pending);
      continue;
    }
    batch.clear();
    const FaultGroup& f = pending.group.faults;
    const std::uintptr_t base = pending.group.base;
    f.pages().for_each([&](unsigned page) {
      const Access access = f.atomic.test(page) ? Access::atomic : f.write.test(page) ? Access::write : Access::read;
      batch.add(k_cpu, base + page * k_page_size, access, pending.group.oldest_ns,
                pending.group.protected_write.test(page));
    });
    batch.sort();
    HostJobs jobs(*this);
    host_pipeline_.run(batch.size(), jobs);
    did = true;
  }
  host_retrying_.clear();
  return did;
}

bool FaultService::step_host(std::int64_t timeout_ns) {
  if (event_count_ == 0 && noticed_.empty()) {  // a stalled round may have read more than it looked at
    std::int64_t wait_ns = timeout_ns;
    if (!host_pending_.empty()) {
      std::uint64_t due = host_pending_.front().due_ns;
      for (const Pending& p : host_pending_) due = std::min(due, p.due_ns);
      const std::uint64_t now = house_.clock.now_ns();
      wait_ns = due <= now ? 0 : static_cast<std::int64_t>(due - now);
      if (timeout_ns >= 0) wait_ns = std::min(wait_ns, timeout_ns);
    }
    house_.host.wait(wait_ns);
  }
  serving_.fetch_add(1, std::memory_order_acq_rel);
  const bool read = read_events();
  interrupted_ = !read;  // woken without an event: a claim was released, or the time is up
  const bool served = serve_host();
  serving_.fetch_add(1, std::memory_order_acq_rel);
  return served || read;
}

}  // namespace hmmrt
