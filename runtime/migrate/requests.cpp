// SPDX-License-Identifier: MIT
#include "migrate/requests.hpp"

#include <algorithm>
#include <cinttypes>
#include <memory>
#include <utility>
#include <vector>

#include "migrate/claims.hpp"
#include "migrate/coherence.hpp"
#include "migrate/pieces.hpp"

namespace hmmrt {

namespace {

constexpr unsigned k_attempts = 64;  // rounds for pages that are busy

// Moving pieces to one processor. A run leaves in them what was busy, for the next.
class PrefetchJobs final : public Jobs {
 public:
  PrefetchJobs(House& house, std::vector<Piece> pieces, Processor to, Cause cause, bool happened)
      : house_(house), pieces_(std::move(pieces)), to_(to), cause_(cause), happened_(happened) {}

  std::size_t size() const { return pieces_.size(); }
  // Between runs. Pages to be tried again; pages given up, in all runs.
  std::uint64_t busy() const {
    std::uint64_t pages = 0;
    for (const Piece& piece : pieces_) pages += piece.pages.count();
    return pages;
  }
  std::uint64_t missed() const { return missed_.load(std::memory_order_relaxed); }

  bool plan(std::size_t i, Work& work) override {
    const PageMask asked = std::exchange(pieces_[i].pages, PageMask{});
    Block* block = asked.any() ? house_.space.find(pieces_[i].base) : nullptr;
    if (block == nullptr) return false;
    block->claim();
    const PageMask pages = asked & block->valid;
    work.block = block;
    work.to = to_;
    work.cause = cause_;
    work.happened = happened_;
    work.started_ns = house_.clock.now_ns();
    PageMask wanted = pages;
    if (to_ == k_cpu) {
      wanted = pages - block->on_cpu;
    } else if (const DevicePart* part = block->part(to_); part != nullptr) {
      wanted = pages - (part->resident & part->mapped);
    }
    if (cause_ == Cause::prefetch_user) {
      unhold(house_, *block, pages);  // the user knows better
      if (BlockAdvice* advice = house_.space.obtain_advice(*block); advice != nullptr) {
        pages.for_each([&](unsigned page) { advice->last_prefetch[page] = to_; });
        if (to_ != k_cpu) work.duplicate = wanted & advice->read_mostly;
      }
      if (to_ != k_cpu) missed_.fetch_add((wanted & block->pinned).count(), std::memory_order_relaxed);
    }
    work.pages = wanted - work.duplicate;
    if ((work.pages | work.duplicate).none()) {
      release(house_, *block);
      return false;
    }
    return true;
  }

  void done(std::size_t i, Work& w) override {
    const DevicePart* part = to_ != k_cpu ? w.block->part(to_) : nullptr;
    const PageMask there = to_ == k_cpu ? w.block->on_cpu : part != nullptr ? part->resident : PageMask{};
    const PageMask left = (w.pages | w.duplicate | w.refused | w.full | w.forbidden) - there - w.gone;
    const PageMask again = left & w.refused;
    pieces_[i].pages = again;
    missed_.fetch_add((left - again).count(), std::memory_order_relaxed);
  }

 private:
  House& house_;
  std::vector<Piece> pieces_;
  Processor to_;
  Cause cause_;
  bool happened_;
  std::atomic<std::uint64_t> missed_{0};
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

void adopt(House& house, Block& block, const PageMask& pages) {
  const PageMask strangers = pages - block.valid;
  strangers.for_each_run([&](unsigned first, unsigned count) {
    PageMask mapped;
    house.host.query_rights(
        block.base + first * k_page_size, count * k_page_size,
        [](void* out, std::uintptr_t from, std::size_t bytes, Rights rights) {
          if (rights == Rights::none) return;
          *static_cast<PageMask*>(out) |=
              PageMask::range(page_in_block(from), static_cast<unsigned>(bytes >> k_page_shift));
        },
        &mapped);
    if (mapped.any()) make_valid(house, block, mapped, nullptr);
  });
}

std::uintptr_t adopt(House& house, std::uintptr_t addr, std::size_t bytes) {
  const std::uintptr_t end = addr + bytes;
  std::uintptr_t hole = 0;
  for (std::uintptr_t base = block_floor(addr); base < end && hole == 0; base += k_block_size) {
    Block* block = house.space.ensure(base);
    if (block == nullptr) return base;
    const std::uintptr_t from = std::max(addr, base);
    const std::uintptr_t to = std::min(end, base + k_block_size);
    const PageMask pages = PageMask::range(page_in_block(from), static_cast<unsigned>((to - from) >> k_page_shift));
    block->claim();
    adopt(house, *block, pages);
    const PageMask missing = pages - block->valid;
    if (missing.any()) hole = base + missing.next(0) * k_page_size;
    release(house, *block);
  }
  return hole;
}

Status manage(House& house, std::uintptr_t addr, std::size_t bytes, bool registered, Range** out) {
  if (Status s = house.space.make_blocks(addr, bytes); !s.ok()) return s;
  const Claims all(house, {{addr, bytes}});
  if (Status s = house.space.add_range(addr, bytes, registered, out); !s.ok()) return s;
  house.space.for_each_block(addr, bytes,
                             [&](Block& block, const PageMask& pages) { make_valid(house, block, pages, *out); });
  house.space.note_change();
  return {};
}

namespace {

// Brings home what devices have exclusively, and says whether all pages of the range are home then. All its claims held.
bool at_home(House& house, const Range& range) {
  bool all = true;
  house.space.for_each_block(range.addr, range.bytes, [&](Block& block, const PageMask& pages) {
    take_away(house, block, pages & block.valid);
    all = all && block.on_cpu.contains(pages & block.valid);
  });
  return all;
}

// Takes back the marks of a range that stays.
void unmark(House& house, const Range& range) {
  with_claims(house, range.addr, range.bytes, [&](Block& block, const PageMask& pages) {
    (pages & block.pinned).for_each([&](unsigned page) {
      if (block.advice == nullptr || block.advice->pins[page] == 0) block.pinned.clear(page);
    });
  });
}

}  // namespace

Status unmanage(House& house, PipelinePool& pool, Range* range, bool bring_home) {
  const std::uintptr_t addr = range->addr;
  const std::size_t bytes = range->bytes;
  // Marked as pinned, nothing that has come home leaves again: somebody may be prefetching it to a device just now.
  if (bring_home) {
    with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) { block.pinned |= pages & block.valid; });
  }
  for (unsigned attempt = 0; attempt < k_attempts; ++attempt) {
    if (bring_home) (void)prefetch(house, pool, addr, bytes, k_cpu, Cause::coherence);
    if (range->registered) house.host.catch_up_addresses();
    const Claims all(house, {{addr, bytes}});
    if (bring_home && !at_home(house, *range)) continue;
    const std::unique_ptr<Range> ended = house.space.forget_range(range);
    if (ended == nullptr) break;
    house.space.for_each_block(addr, bytes,
                               [&](Block& block, const PageMask& pages) { make_invalid(house, block, pages); });
    if (ended->registered) house.host.detach(addr, bytes);
    return {};
  }
  if (bring_home) unmark(house, *range);
  if (house.space.find_range(addr) != range) {
    return fail(HMMRT_ERROR_NOT_MANAGED, "[%#" PRIxPTR ", %#" PRIxPTR ") has changed meanwhile, by mremap", addr,
                addr + bytes);
  }
  return fail(HMMRT_ERROR_BUSY, "some pages of [%#" PRIxPTR ", %#" PRIxPTR ") could not be brought home; try again",
              addr, addr + bytes);
}

namespace {

// Asks the driver, which may know better than the books where the pages are; of what is mapped. Pages that are pinned, or that
// it would not send there, stay. Moves to *sent what it did not refuse; returns how many pages stay or were refused.
std::uint64_t send(House& house, std::span<const Extent> extents, Processor to, Cause cause,
                   std::vector<Extent>* sent) {
  const Wish wish = cause == Cause::prefetch_user ? Wish::user_prefetch : Wish::coherence;
  std::uint64_t refused = 0;
  std::vector<Extent> runs;
  for (const Extent& e : extents) {
    with_claims(house, e.addr, e.bytes, [&](Block& block, const PageMask& pages) {
      PageMask stay;
      if (to != k_cpu) {
        end_remote_use(house, block, pages - block.pinned);  // its end would bring home what is sent now
        stay = pages & block.valid & (block.pinned | house.host.kept_home(block.base, to));
      }
      refused += stay.count();
      ((pages & block.valid) - stay).for_each_run([&](unsigned first, unsigned count) {
        append(runs, block.base + first * k_page_size, count * k_page_size);
      });
    });
  }
  const auto ask = [&](const Extent& e) {
    if (!house.host.send(e.addr, e.bytes, to, wish)) return false;
    sent->push_back(e);
    return true;
  };
  for (const Extent& run : runs) {
    if (ask(run)) continue;
    // All of it is refused for a part's sake, for want of memory perhaps.
    for (std::uintptr_t at = run.addr; at < run.end(); at = block_floor(at) + k_block_size) {
      const Extent part{at, std::min(run.end(), block_floor(at) + k_block_size) - at};
      if (part == run || !ask(part)) refused += part.bytes >> k_page_shift;
    }
  }
  if (to == k_cpu) return refused;
  for (const Extent& e : extents) {
    with_claims(house, e.addr, e.bytes,
                [&](Block& block, const PageMask& pages) { bring_back_pinned(house, block, pages); });
  }
  return refused;
}

}  // namespace

std::uint64_t prefetch(House& house, PipelinePool& pool, std::span<const Extent> extents, Processor to, Cause cause) {
  const bool driven = house.host.info().driven;
  std::vector<Extent> sent;
  std::uint64_t refused = 0;
  if (driven) {
    refused = send(house, extents, to, cause, &sent);
    extents = sent;
  }
  const Borrowed pipeline(pool);
  PrefetchJobs jobs(house, pieces_of(extents), to, cause, driven);
  for (unsigned attempt = 0; attempt < k_attempts; ++attempt) {
    pipeline->run(jobs.size(), jobs);
    if (jobs.busy() == 0) break;
    static const Word never{0};
    park(never, 0, 50'000);
  }
  return jobs.missed() + jobs.busy() + refused;
}

Status pin(House& house, PipelinePool& pool, std::uintptr_t addr, std::size_t bytes) {
  // Mark first, so that nothing leaves again between coming home and being counted.
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
    if (BlockAdvice* advice = house.space.obtain_advice(block); advice != nullptr) {
      (pages & block.valid).for_each([&](unsigned page) { ++advice->pins[page]; });
      block.pinned |= pages & block.valid;
    }
  });
  if (prefetch(house, pool, addr, bytes, k_cpu, Cause::coherence) == 0) {
    if (!house.host.info().driven) return {};
    bool tied = true;  // or the driver would move them at the next fault
    with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
      tied = house.host.tie(block.base, pages & block.valid, Wish::user_pin) && tied;
    });
    if (tied) return {};
  }
  (void)unpin(house, addr, bytes);
  return fail(HMMRT_ERROR_BUSY, "some pages of [%#" PRIxPTR ", %#" PRIxPTR ") could not be brought home to be pinned",
              addr, addr + bytes);
}

Status unpin(House& house, std::uintptr_t addr, std::size_t bytes) {
  // Not block.pinned: that is also set while memory is to come home for good.
  const auto pins = [](const Block& block, unsigned page) {
    return block.advice != nullptr ? block.advice->pins[page] : std::uint16_t{0};
  };
  bool pinned = true;
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
    (pages & block.valid).for_each([&](unsigned page) { pinned = pinned && pins(block, page) != 0; });
  });
  if (!pinned) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "not every page of [%#" PRIxPTR ", %#" PRIxPTR ") is pinned", addr,
                addr + bytes);
  }
  with_claims(house, addr, bytes, [&](Block& block, const PageMask& pages) {
    const PageMask before = block.pinned;
    (pages & block.pinned).for_each([&](unsigned page) {
      if (pins(block, page) != 0 && --block.advice->pins[page] == 0) block.pinned.clear(page);
    });
    house.host.let_go(block.base, before - block.pinned);
  });
  return {};
}

namespace {

// Passes advice on to a driver, by where the pages are. Claim held.
bool advise_driver(House& house, Block& block, const PageMask& pages, hmmrt_advice_t advice, Processor p) {
  PageMask home = pages;
  bool known = true;
  for (Processor d = 1; d <= house.device_count; ++d) {
    const DevicePart* part = block.part(d);
    if (part == nullptr) continue;
    known = house.host.advised(block.base, pages & part->resident, advice, p, d) && known;
    home = home - part->resident;
  }
  return house.host.advised(block.base, home, advice, p, k_cpu) && known;
}

}  // namespace

bool advise(House& house, std::uintptr_t addr, std::size_t bytes, hmmrt_advice_t advice, Processor p) {
  bool changed = false, known = true;
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
        unhold(house, block, pages);
        break;
      }
      case HMMRT_ADVISE_SET_ACCESSED_BY:
        pages.for_each([&](unsigned page) {
          changed |= (a->accessed_by[page] & set_of(p)) == 0;
          a->accessed_by[page] |= set_of(p);
        });
        break;
      case HMMRT_ADVISE_UNSET_ACCESSED_BY:
        pages.for_each([&](unsigned page) {
          changed |= (a->accessed_by[page] & set_of(p)) != 0;
          a->accessed_by[page] &= static_cast<ProcessorSet>(~set_of(p));
        });
        break;
    }
    known = advise_driver(house, block, pages, advice, p) && known;
  });
  return changed && known;
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
