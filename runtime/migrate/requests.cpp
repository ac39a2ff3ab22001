// SPDX-License-Identifier: MIT
#include "migrate/requests.hpp"

#include <cinttypes>
#include <mutex>

#include "migrate/coherence.hpp"

namespace hmmrt {

namespace {

constexpr unsigned k_attempts = 64;  // rounds for pages that are busy

// A pipeline for the length of a call.
class Borrowed {
 public:
  explicit Borrowed(PipelinePool& pool) : pool_(pool), pipeline_(pool.take()) {}
  ~Borrowed() { pool_.give(std::move(pipeline_)); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Pipeline& operator*() const { return *pipeline_; }
  Pipeline* operator->() const { return pipeline_.get(); }

 private:
  PipelinePool& pool_;
  std::unique_ptr<Pipeline> pipeline_;
};

// Pages of block i of a range.
PageMask pages_of_job(std::uintptr_t addr, std::size_t bytes, std::uintptr_t base) {
  const std::uintptr_t from = addr > base ? addr : base;
  const std::uintptr_t to = addr + bytes < base + k_block_size ? addr + bytes : base + k_block_size;
  return PageMask::range(static_cast<unsigned>((from - base) >> k_page_shift),
                         static_cast<unsigned>((to - from) >> k_page_shift));
}

// Moving a range to one processor.
class PrefetchJobs final : public Jobs {
 public:
  PrefetchJobs(House& house, std::uintptr_t addr, std::size_t bytes, Processor to, Cause cause)
      : house_(house), addr_(addr), bytes_(bytes), to_(to), cause_(cause) {}

  std::size_t count() const {
    return (block_ceil(addr_ + bytes_) - block_floor(addr_)) >> k_block_shift;
  }
  std::uint64_t busy() const { return busy_.load(std::memory_order_relaxed); }
  std::uint64_t missed() const { return missed_.load(std::memory_order_relaxed); }

  bool plan(std::size_t i, Work& work) override {
    const std::uintptr_t base = block_floor(addr_) + i * k_block_size;
    Block* block = house_.space.find(base);
    if (block == nullptr) return false;
    block->claim();
    const PageMask pages = pages_of_job(addr_, bytes_, base) & block->valid;
    work.block = block;
    work.to = to_;
    work.cause = cause_;
    work.started_ns = house_.clock.now_ns();
    PageMask wanted = pages;
    if (to_ == k_cpu) {
      wanted = pages - block->on_cpu;
    } else if (const DevicePart* part = block->part(to_); part != nullptr) {
      wanted = pages - (part->resident & part->mapped);
    }
    if (cause_ == Cause::prefetch_user) {
      block->held = block->held - pages;  // the user knows better
      if (block->advice != nullptr) {
        pages.for_each([&](unsigned page) { block->advice->last_prefetch[page] = to_; });
        if (to_ != k_cpu) work.duplicate = wanted & block->advice->read_mostly;
      }
    }
    work.pages = wanted - work.duplicate;
    if ((work.pages | work.duplicate).none()) {
      release(house_, *block);
      return false;
    }
    return true;
  }

  void done(std::size_t, Work& w) override {
    const PageMask there = to_ == k_cpu ? w.block->on_cpu : w.block->part(to_)->resident;
    const PageMask left = (w.pages | w.duplicate | w.refused | w.full | w.pinned | w.forbidden) - there - w.gone;
    const PageMask again = left & w.refused;
    busy_.fetch_add(again.count(), std::memory_order_relaxed);
    missed_.fetch_add((left - again).count(), std::memory_order_relaxed);
  }

 private:
  House& house_;
  std::uintptr_t addr_;
  std::size_t bytes_;
  Processor to_;
  Cause cause_;
  std::atomic<std::uint64_t> busy_{0}, missed_{0};
};

// Runs `fn(block, pages)` on every block of the range, with its claim.
template <class Fn>
void with_claims(House& house, std::uintptr_t addr, std::size_t bytes, Fn&& fn) {
  house.space.for_each_block(addr, bytes, [&](Block& block, const PageMask& pages) {
    block.claim();
    fn(block, pages);
    release(house, block);
  });
}

}  // namespace

Status manage(House& house, std::uintptr_t addr, std::size_t bytes, bool registered, Range** out) {
  if (Status s = house.space.add_range(addr, bytes, registered, out); !s.ok()) return s;
  with_claims(house, addr, bytes,
              [&](Block& block, const PageMask& pages) { make_valid(house, block, pages, *out); });
  return {};
}

Status unmanage(House& house, PipelinePool& pool, Range* range, bool bring_home) {
  if (bring_home && prefetch(house, pool, range->addr, range->bytes, k_cpu, Cause::coherence) != 0) {
    return fail(HMMRT_ERROR_BUSY, "some pages of [%#" PRIxPTR ", %#" PRIxPTR ") could not be brought home; try again",
                range->addr, range->end());
  }
  const std::uintptr_t addr = range->addr;
  const std::size_t bytes = range->bytes;
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
    make_invalid(house, block, pages);
    if (block.range == range) block.range = nullptr;
  });
  house.space.forget_range(range);
  return {};
}

std::uint64_t prefetch(House& house, PipelinePool& pool, std::uintptr_t addr, std::size_t bytes, Processor to,
                       Cause cause) {
  const Borrowed pipeline(pool);
  std::uint64_t missed = 0;
  for (unsigned attempt = 0; attempt < k_attempts; ++attempt) {
    PrefetchJobs jobs(house, addr, bytes, to, cause);
    pipeline->run(jobs.count(), jobs);
    missed = jobs.missed() + jobs.busy();
    if (jobs.busy() == 0) break;
    static const Word never{0};
    park(never, 0, 50'000);
  }
  return missed;
}

Status pin(House& house, PipelinePool& pool, std::uintptr_t addr, std::size_t bytes) {
  // Mark first, so that nothing leaves again between coming home and being counted.
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
    if (BlockAdvice* advice = house.space.obtain_advice(block); advice != nullptr) {
      (pages & block.valid).for_each([&](unsigned page) { ++advice->pins[page]; });
      block.pinned |= pages & block.valid;
    }
  });
  if (prefetch(house, pool, addr, bytes, k_cpu, Cause::coherence) == 0) return {};
  (void)unpin(house, addr, bytes);
  return fail(HMMRT_ERROR_BUSY, "some pages of [%#" PRIxPTR ", %#" PRIxPTR ") could not be brought home to be pinned",
              addr, addr + bytes);
}

Status unpin(House& house, std::uintptr_t addr, std::size_t bytes) {
  bool pinned = true;
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
    pinned = pinned && block.pinned.contains(pages & block.valid);
  });
  if (!pinned) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "not every page of [%#" PRIxPTR ", %#" PRIxPTR ") is pinned", addr,
                addr + bytes);
  }
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
    (pages & block.pinned).for_each([&](unsigned page) {
      if (--block.advice->pins[page] == 0) block.pinned.clear(page);
    });
  });
  return {};
}

bool advise(House& house, PipelinePool& pool, std::uintptr_t addr, std::size_t bytes, hmmrt_advice_t advice,
            Processor p) {
  bool changed = false;
  bool map_now = false;
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& all) {
    BlockAdvice* a = house.space.obtain_advice(block);
    if (a == nullptr) return;
    const PageMask pages = all & block.valid;
    switch (advice) {
      case HMMRT_ADVISE_SET_READ_MOSTLY:
        changed |= !a->read_mostly.contains(pages);
        a->read_mostly |= pages;
        break;
      case HMMRT_ADVISE_UNSET_READ_MOSTLY:
        changed |= a->read_mostly.intersects(pages);
        a->read_mostly = a->read_mostly - pages;
        collapse_to_cpu(house, block, pages);
        break;
      case HMMRT_ADVISE_SET_PREFERRED_LOCATION:
      case HMMRT_ADVISE_UNSET_PREFERRED_LOCATION: {
        const std::uint8_t to = advice == HMMRT_ADVISE_SET_PREFERRED_LOCATION ? p : k_no_processor;
        pages.for_each([&](unsigned page) {
          changed |= a->preferred[page] != to;
          a->preferred[page] = to;
        });
        block.held = block.held - pages;
        break;
      }
      case HMMRT_ADVISE_SET_ACCESSED_BY:
        pages.for_each([&](unsigned page) {
          changed |= (a->accessed_by[page] & set_of(p)) == 0;
          a->accessed_by[page] |= set_of(p);
        });
        map_now |= p != k_cpu && house.device(p).info().caps.remote_mapping;
        break;
      case HMMRT_ADVISE_UNSET_ACCESSED_BY:
        pages.for_each([&](unsigned page) {
          changed |= (a->accessed_by[page] & set_of(p)) != 0;
          a->accessed_by[page] &= static_cast<ProcessorSet>(~set_of(p));
        });
        break;
    }
  });
  (void)pool, (void)map_now;  // a mapping is made at the first access: one fault per span, no eager work
  return changed;
}

Processor residency(House& house, std::uintptr_t addr, std::size_t bytes) {
  Processor where = k_no_processor;
  bool mixed = false;
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& all) {
    const PageMask pages = all & block.valid;
    if (pages.none()) return;
    Processor here = k_no_processor;
    PageMask system = block.on_cpu;
    for (Processor p = 1; p <= house.device_count; ++p) {
      const DevicePart* part = block.part(p);
      if (part == nullptr) continue;
      if (part->resident.contains(pages)) here = p;
      system |= part->exclusive;
    }
    if (system.contains(pages)) here = k_cpu;  // copies on devices do not count
    mixed |= here == k_no_processor || (where != k_no_processor && where != here);
    where = here;
  });
  return mixed ? k_no_processor : where;
}

}  // namespace hmmrt
