// SPDX-License-Identifier: MIT
// The device side of the fault service: batches of device faults, retries, timed pins, access counters.
#include <algorithm>
#include <mutex>

#include "fault/fault_service.hpp"
#include "fault/view.hpp"
#include "migrate/coherence.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

namespace {
constexpr std::uint64_t k_retry_ns = 20'000;        // a page that was busy
constexpr std::uint64_t k_full_retry_ns = 100'000;  // a device whose frames are all being worked on
constexpr std::uint32_t k_full_rounds = 2'000;      // fruitless rounds before a launch fails for lack of memory
}  // namespace

// One batch of one device through the pipeline.
class FaultService::DeviceJobs final : public Jobs {
 public:
  DeviceJobs(FaultService& service, Processor p)
      : service_(service), p_(p), frames_left_(service.house_.device(p).info().memory_bytes / k_page_size / 2) {}

  bool plan(std::size_t i, Work& work) override {
    House& house = service_.house_;
    BatchGroup& g = service_.device_batch_->group(i);
    const PageMask faulted = g.faults.pages();
    const bool any_pointer = house.host.info().any_pointer;
    Block* block = any_pointer ? house.space.ensure(g.base) : house.space.find(g.base);
    if (block == nullptr) {
      service_.cancel_launches(p_, g.base, faulted, HMMRT_ERROR_ILLEGAL_ADDRESS);
      return false;
    }
    if (!block->try_claim()) {
      service_.later(p_, g.base, faulted, house.clock.now_ns() + k_retry_ns);
      return false;
    }
    work.block = block;
    work.to = p_;
    work.write = g.faults.write | g.faults.atomic;
    work.atomic = g.faults.atomic;
    work.started_ns = g.oldest_ns;
    if (Counters* range = house.space.range_counters(*block, g.base + faulted.next(0) * k_page_size)) {
      range->add(Count::device_faults, g.faults.faults);
    }
    if (any_pointer && !block->valid.contains(faulted)) adopt(house, *block, PageMask::all());
    const PageMask stranger = faulted - block->valid;
    if (stranger.any()) service_.cancel_launches(p_, g.base, stranger, HMMRT_ERROR_ILLEGAL_ADDRESS);
    const PageMask forbidden = (faulted & block->no_access) | (work.write & block->read_only);
    if (forbidden.any()) service_.cancel_launches(p_, g.base, forbidden, HMMRT_ERROR_ACCESS_DENIED);
    work.faulted = faulted - stranger - forbidden;

    PageMask asking = work.faulted;
    PageMask here;
    if (const DevicePart* part = block->part(p_); part != nullptr) {
      PageMask stale = asking & part->mapped & (~work.write | part->writable);
      if (!house.device(p_).info().caps.system_atomics) {
        stale = stale - (work.atomic & (part->remote - part->exclusive));
      }
      work.satisfied = stale;
      house.tally(*block, p_, block->base).add(Count::stale_faults, stale.count());
      asking = asking - stale;
      // Ours already, only the translation is missing or too weak.
      here = asking & part->resident;
      const PageMask keep_shared = here & block->shared() & ~work.write;
      work.pages |= here - keep_shared;
      work.duplicate |= keep_shared;
      asking = asking - here;
    }
    if (asking.any()) {
      Plan plan;
      const PageMask waiting = ask_policy(house, *block, g.faults, asking, work, plan);
      if (waiting.any()) service_.later(p_, g.base, waiting, house.clock.now_ns() + plan.throttle_ns);
      work.faulted = work.faulted - waiting;
      if (work.to != p_ && here.any()) {  // first what is ours; the rest, which belongs elsewhere, next time
        work.to = p_;
        work.pages = here - work.duplicate;
        service_.later(p_, g.base, work.faulted - here, house.clock.now_ns());
        work.faulted = work.faulted & (here | work.satisfied);
      }
      if (plan.pin_ns != 0) service_.later(p_, g.base, block->held, block->held_until_ns, true);
    }
    // A batch never brings in more than half of the device, so that what it brought survives until it was used.
    const std::uint64_t wanted = (work.pages | work.duplicate).count();
    if (planned_ != 0 && planned_ + wanted > frames_left_) {
      service_.later(p_, g.base, work.faulted, house.clock.now_ns());
      release(house, *block);
      return false;
    }
    planned_ += wanted;
    return true;
  }

  void done(std::size_t, Work& w) override {
    House& house = service_.house_;
    Block& b = *w.block;
    const std::uint64_t now = house.clock.now_ns();
    service_.latencies_.device_fault_ns.add(now - w.started_ns);
    if (w.to != p_) {  // went to its preferred location; this device asks again and finds it there
      house.device(p_).replay(b.base, w.faulted);
      return;
    }
    // Stale faults never went through a stage that replays them.
    house.device(p_).replay(b.base, w.satisfied);
    PageMask left = w.faulted - w.satisfied;
    if (left.none()) {
      service_.full_rounds_[p_ - 1u].store(0, std::memory_order_relaxed);
      return;
    }
    const PageMask forbidden = left & w.forbidden;
    if (forbidden.any()) service_.cancel_launches(p_, b.base, forbidden, HMMRT_ERROR_ACCESS_DENIED);
    left = left - forbidden;
    const PageMask gone = left & w.gone;
    if (gone.any()) service_.cancel_launches(p_, b.base, gone, HMMRT_ERROR_ILLEGAL_ADDRESS);
    left = left - gone;
    const PageMask pinned = left & w.pinned;
    if (pinned.any()) service_.cancel_launches(p_, b.base, pinned, HMMRT_ERROR_PINNED);
    left = left - pinned;
    const PageMask full = left & w.full;
    if (full.any()) {
      if (service_.full_rounds_[p_ - 1u].fetch_add(1, std::memory_order_relaxed) >= k_full_rounds) {
        service_.cancel_launches(p_, b.base, full, HMMRT_ERROR_DEVICE_FULL);
      } else {
        service_.later(p_, b.base, full, now + k_full_retry_ns);
      }
      left = left - full;
    }
    if (left.any()) {
      house.tally(b, p_, b.base).add(Count::retries, left.count());
      service_.later(p_, b.base, left, now + k_retry_ns);
    }
  }

 private:
  FaultService& service_;
  Processor p_;
  std::uint64_t frames_left_;
  std::uint64_t planned_ = 0;
};

bool FaultService::serve_device(Processor p) {
  Device& device = house_.device(p);
  const std::size_t n = device.fetch_faults({fetched_.data(), config_.batch_size});
  bool did = n != 0;
  if (n != 0) {
    const std::uint64_t begin_ns = house_.clock.now_ns();
    const std::uint64_t copied_before = device_pipeline_.copy_ns();
    FaultBatch& batch = *device_batch_;
    batch.clear();
    for (std::size_t i = 0; i < n; ++i) batch.add(p, fetched_[i].addr, fetched_[i].access, fetched_[i].time_ns);
    batch.sort();
    fetched_count_ = n;
    const Tally tally{&house_.counters, house_.device_counters[p - 1u], nullptr};
    tally.add(Count::fault_batches);
    tally.add(Count::device_faults, n);
    tally.add(Count::duplicate_faults, batch.duplicates());
    latencies_.batch_faults.add(n);
    if (house_.log.on()) {
      house_.log.record({.time_ns = house_.clock.now_ns(),
                         .a = n,
                         .b = batch.size(),
                         .kind = EventKind::fault_batch,
                         .processor = p});
    }
    DeviceJobs jobs(*this, p);
    device_pipeline_.run(batch.size(), jobs);
    latencies_.device_service_ns.fetch_add(house_.clock.now_ns() - begin_ns, std::memory_order_relaxed);
    latencies_.device_copy_ns.fetch_add(device_pipeline_.copy_ns() - copied_before, std::memory_order_relaxed);
  }
  const std::uint64_t overflows = device.fault_overflows();
  if (overflows != overflows_seen_[p - 1u]) {
    overflows_seen_[p - 1u] = overflows;
    device.replay_all();
    did = true;
  }
  return did;
}

void FaultService::cancel_launches(Processor p, std::uintptr_t base, const PageMask& pages, hmmrt_result_t result) {
  const Tally tally{&house_.counters, house_.device_counters[p - 1u], nullptr};
  for (std::size_t i = 0; i < fetched_count_; ++i) {
    const DeviceFault& fault = fetched_[i];
    if (block_floor(fault.addr) != base || !pages.test(page_in_block(fault.addr))) continue;
    LaunchError error;
    error.result = result;
    error.addr = fault.addr;
    error.access = fault.access;
    tally.add(Count::cancelled_faults);
    house_.device(p).cancel(fault.launch, error);
  }
}

bool FaultService::serve_access_counts(Processor p) {
  std::array<AccessCount, 32> counts;
  const std::size_t n = house_.device(p).fetch_access_counts(counts);
  if (!config_.access_counter_migration) return n != 0;
  for (std::size_t i = 0; i < n; ++i) {
    Block* block = house_.space.find(counts[i].base);
    if (block == nullptr || !block->try_claim()) continue;
    const std::uint64_t now = house_.clock.now_ns();
    DevicePart* part = block->part(p);
    const BlockView view = view_of(house_, *block, p);
    // A region that the device uses remotely and often moves there, unless something holds it where it is.
    const bool held = block->held.any() && now < block->held_until_ns;
    if (part != nullptr && !held && !house_.policy.ping_pong(block->history, now)) {
      const PageMask hot = (part->remote & block->on_cpu) - view.preferred_elsewhere - view.accessed_by - block->pinned;
      if (hot.any() && house_.policy.follows_access_counters()) {
        Work& work = *scratch_work_;
        reset(work);
        work.block = block;
        work.to = p;
        work.pages = hot;
        work.cause = Cause::access_counter;
        carry_out(house_, work, device_pipeline_.spare());
      }
    }
    release(house_, *block);
  }
  return n != 0;
}

void FaultService::later(Processor p, std::uintptr_t base, const PageMask& pages, std::uint64_t due_ns, bool unpin) {
  const std::lock_guard guard(later_lock_);
  for (Later& l : later_) {
    if (l.base == base && l.processor == p && l.unpin == unpin) {
      l.pages |= pages;
      l.due_ns = unpin ? std::max(l.due_ns, due_ns) : std::min(l.due_ns, due_ns);
      return;
    }
  }
  if (later_.size() == later_.capacity() && !unpin) {
    house_.device(p).replay(base, pages);  // no room to remember: let them fault again
    return;
  }
  if (later_.size() < later_.capacity()) later_.push_back({due_ns, base, p, unpin, pages});
}

bool FaultService::serve_later() {
  const std::uint64_t now = house_.clock.now_ns();
  bool did = false;
  for (;;) {
    Later due{};
    {
      const std::lock_guard guard(later_lock_);
      const auto it = std::find_if(later_.begin(), later_.end(), [&](const Later& l) { return l.due_ns <= now; });
      if (it == later_.end()) return did;
      due = *it;
      *it = later_.back();
      later_.pop_back();
    }
    did = true;
    if (due.unpin) {
      end_pin(due.base, due.pages);
    } else {
      house_.device(due.processor).replay(due.base, due.pages);
    }
  }
}

// On a device whose frames have the order of the addresses, pages that have changed their address are in the wrong place:
// they come home, before anyone uses them there or somebody else's go there. Claims of the range held.
void FaultService::leave_old_places(std::uintptr_t addr, std::size_t bytes) {
  constexpr unsigned k_rounds = 2000;  // of 50 us: while other mappings change, nothing can be delivered
  for (Processor p = 1; p <= house_.device_count; ++p) {
    if (!house_.device(p).info().caps.placed) continue;
    house_.space.for_each_block(addr, bytes, [&](Block& block, const PageMask& pages) {
      for (unsigned round = 0; round < k_rounds; ++round) {
        const DevicePart* part = block.part(p);
        if (part == nullptr) return;
        // What has been discarded or moved on since is settled when the claim ends.
        const PageMask away = still_wanted(block, part->resident & pages & block.valid);
        if (away.none()) return;
        steer(block, k_cpu, away, {}, Cause::coherence, false);
        if (round == 0) continue;
        static const Word never{0};
        park(never, 0, 50'000);
      }
    });
  }
}

bool FaultService::serve_remaps() {
  for (bool did = false;; did = true) {
    Remap remap{};
    {
      const std::lock_guard guard(remaps_lock_);
      if (remaps_.empty()) return did;
      remap = remaps_.front();
    }
    // With the claims still held: what was said about the new addresses meanwhile is told to their blocks, and from then
    // on the event thread tells them itself.
    struct Follow {
      FaultService& service;
      const Remap& remap;
    } follow{*this, remap};
    follow_remap(
        house_, remap.from, remap.to, remap.bytes,
        [](void* self) {
          const auto& [service, followed] = *static_cast<Follow*>(self);
          {
            const std::lock_guard guard(service.remaps_lock_);
            service.follow_front();
          }
          service.leave_old_places(followed.to, followed.bytes);
        },
        &follow);
    house_.unsettled.fetch_sub(1, std::memory_order_release);
    house_.host.interrupt();  // CPU faults on the new addresses were kept
  }
}

void FaultService::end_pin(std::uintptr_t base, const PageMask& pages) {
  Block* block = house_.space.find(base);
  if (block == nullptr) return;
  if (!block->try_claim()) {
    later(1, base, pages, house_.clock.now_ns() + k_retry_ns, true);
    return;
  }
  const std::uint64_t now = house_.clock.now_ns();
  if (block->held.any() && now < block->held_until_ns) {
    later(1, base, block->held, block->held_until_ns, true);  // held on meanwhile
  } else if (block->held.any()) {
    // Remote mappings end with the pin: the next access faults, and the policy looks again.
    PageMask remote;
    for (Processor p = 1; p <= house_.device_count; ++p) {
      if (const DevicePart* part = block->part(p); part != nullptr) remote |= part->remote - part->exclusive;
    }
    take_away(house_, *block, remote & block->held);
    // A driver's mapping in place stays, and makes no fault: so they are sent there, to see.
    for (Processor p = 1; house_.host.info().driven && p <= house_.device_count; ++p) {
      if (block->part(p) == nullptr) continue;
      PageMask sent;
      const PageMask stay = block->pinned | house_.host.kept_home(base, p);
      ((remote & block->held & block->on_cpu) - stay).for_each_run([&](unsigned first, unsigned count) {
        const std::uintptr_t at = base + first * k_page_size;
        if (house_.host.send(at, count * k_page_size, p, Wish::trial)) sent |= PageMask::range(first, count);
      });
      if (sent.any()) steer(*block, p, sent, {}, Cause::prefetch_heuristic, true);
      break;
    }
    house_.tally(*block, k_cpu, base).add(Count::unpins);
    block->held = PageMask{};
  }
  release(house_, *block);
}

std::uint64_t FaultService::next_due_ns() const {
  const std::lock_guard guard(later_lock_);
  std::uint64_t due = 0;
  for (const Later& l : later_) due = due == 0 ? l.due_ns : std::min(due, l.due_ns);
  return due;
}

bool FaultService::step_device() {
  const std::lock_guard guard(device_step_);
  bool did = serve_remaps();
  did |= serve_records();
  for (Processor p = 1; p <= house_.device_count; ++p) {
    did |= serve_device(p);
    did |= serve_access_counts(p);
  }
  did |= serve_later();
  return did;
}

}  // namespace hmmrt
