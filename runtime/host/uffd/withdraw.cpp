// SPDX-License-Identifier: MIT
// Taking pages away from the CPU. Every function works on one Part, whose range is armed, and puts each of its pages
// into exactly one mask of the outcome.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "host/uffd/uffd_mirror.hpp"

namespace hmmrt {

namespace {
void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)
}  // namespace

// Makes shared copy-on-write pages this process's own. The page may vanish meanwhile and fault: own_work.hpp.
bool UffdMirror::break_sharing(std::uintptr_t addr, std::size_t bytes) {
  const uffd::OwnWork::Breaking breaking(own_);
  return madvise(pointer(addr), bytes, MADV_POPULATE_WRITE) == 0;
}

// Pages from `page` on that have moved although the kernel said EEXIST (Uffd::move).
unsigned UffdMirror::moved_unsaid(Part part, unsigned page, unsigned limit) const {
  const PageMask rest = PageMask::range(page, limit - page);
  const PageMask moved = maps_.populated(part.staging(0), rest) - maps_.populated(part.base, rest);
  return moved.test(page) ? moved.next_clear(page) - page : 0;
}

void UffdMirror::withdraw_by_move(Part part, PageOutcome& out, PageMask& by_copy) {
  forget_staging(part, part.pages);  // the CPU has them; from here on what staging holds of them has just moved there
  PageMask populated;
  bool know_populated = false;
  unsigned surprises = 0;     // answers that contradict each other: the application is changing the mapping
  unsigned broken_until = 0;  // pages below this had their sharing broken once
  constexpr unsigned k_max_surprises = 8;

  part.pages.for_each_run([&](unsigned first, unsigned count) {
    const unsigned end = first + count;
    unsigned page = first;
    unsigned limit = end;  // where the current area of the application's mapping ends
    while (page < end) {
      if (page == limit) limit = end;
      const uffd::Step step = staging_.move(part.staging(page), part.at(page), (limit - page) * k_page_size);
      const auto moved = static_cast<unsigned>(step.bytes >> k_page_shift);
      const auto took = [&](unsigned n) {
        const PageMask mask = PageMask::range(page, n);
        out.done |= mask;
        part.state.staged |= mask;
        part.state.protected_ = part.state.protected_ - mask;
        part.state.copied_out = part.state.copied_out - mask;
        if (n == k_block_pages) {
          part.state.large = mask;
          part.state.large_verified = false;
        }
        page += n;
      };
      if (moved != 0) took(moved);
      if (step.error == 0) continue;
      const auto give_up = [&](PageMask& into, unsigned n) {
        into.set(page, n);
        page += n;
      };
      std::uintptr_t area_end = 0;
      bool mapped = false;
      switch (step.error) {
        case ENOENT: {
          if (!know_populated) {
            populated = maps_.populated(part.base, part.pages);
            know_populated = true;
          }
          const Rights rights = rights_at(part.at(page), &area_end, &mapped);
          const unsigned area_pages =
              static_cast<unsigned>(std::min<std::uintptr_t>(area_end - part.at(page), k_block_size) >> k_page_shift);
          const unsigned stop = std::min(limit, page + std::max(1u, area_pages));
          if (!mapped) {
            give_up(out.gone, stop - page);
          } else if (rights == Rights::none) {
            give_up(out.forbidden, stop - page);
          } else if (const unsigned next = std::min(stop, populated.next(page)); next > page) {
            part.state.copied_out = part.state.copied_out - PageMask::range(page, next - page);
            give_up(out.not_populated, next - page);
          } else if (++surprises > k_max_surprises) {
            give_up(out.busy, 1);
          } else {
            know_populated = false;
          }
          break;
        }
        case EEXIST:
          if (const unsigned n = moved_unsaid(part, page, limit); n != 0) {
            took(n);
          } else if (++surprises > k_max_surprises) {
            give_up(out.busy, 1);
          } else {
            part.arena.unback(part.base, PageMask::one(page));
          }
          break;
        case EBUSY: {
          // Shared since a fork, or pinned. A protected page must not become writable even for a moment, so its sharing
          // is not broken: it leaves by copy if another process maps it, and counts as pinned if none does.
          const PageMask rest = PageMask::range(page, limit - page);
          if (part.state.protected_.test(page)) {
            if (maps_.shared(part.at(page))) {
              give_up(by_copy, 1);
            } else {
              give_up(out.pinned, 1);
            }
          } else if (page >= broken_until) {
            // All of the run at once, but no hole: that would populate it.
            const PageMask plain = (rest & maps_.populated(part.base)) - part.state.protected_;
            const unsigned n = plain.test(page) ? plain.next_clear(page) - page : 1;
            broken_until = break_sharing(part.at(page), n * k_page_size) ? page + n : page + 1;
          } else if (page == 0 && limit == k_block_pages && maps_.huge(part.base)) {
            give_up(out.pinned, limit - page);  // a pin on any part holds a huge page whole; trying would split it
          } else {
            give_up(out.pinned, 1);
          }
          break;
        }
        case EINVAL: {
          const Rights rights = rights_at(part.at(page), &area_end, &mapped);
          const unsigned stop = std::min<std::uintptr_t>(limit, page + ((area_end - part.at(page)) >> k_page_shift));
          if (!mapped) {
            give_up(out.gone, stop - page);
          } else if (rights == Rights::none) {
            give_up(out.forbidden, stop - page);
          } else if (rights == Rights::read) {
            give_up(by_copy, stop - page);  // the kernel moves writable memory only
          } else if (stop < limit) {
            limit = stop;
          } else {
            give_up(out.pinned, limit - page);  // mlock: the application wants it in memory
          }
          break;
        }
        case EAGAIN:
        case ENOMEM:
          give_up(out.busy, limit - page);
          break;
        default:  // ESRCH, EFAULT
          give_up(out.gone, limit - page);
          break;
      }
    }
  });
}

// mremap with MREMAP_DONTUNMAP (Linux 5.7) moves the page-table entries of a block and leaves the area in place and
// watched. Measured: 12 us and the reading of an event (30 us when the event thread sleeps on an idle core), where
// write-protecting takes 45; then contents are read by plain loads. The new area in staging is watched, too, until
// drop_remapped(). In a range that cannot be write-protected unwatching costs 2 us and dropping the pages raises no event
// then; in one that can, unwatching would cost 55 us while pages are there, so that the event is cheaper.
bool UffdMirror::withdraw_by_remap(Part part, PageOutcome& out) {
  constexpr int k_dont_unmap = 4;  // MREMAP_DONTUNMAP
  std::uintptr_t end = 0;
  bool mapped = false;
  const std::uintptr_t staging = part.staging(0);
  if (part.state.staged.any() || part.state.staging_watched || rights_at(part.base, &end, &mapped) != Rights::write)
    return false;
  if (end < part.base + k_block_size) return false;
  // EBUSY: locked in memory, which DONTUNMAP would undo.
  if (msync(pointer(part.base), k_block_size, MS_ASYNC | MS_INVALIDATE) != 0) return false;
  {
    const uffd::OwnWork::Removal removal(own_, staging, k_block_size);  // the event is told by where the block goes
    if (mremap(pointer(part.base), k_block_size, k_block_size, MREMAP_MAYMOVE | MREMAP_FIXED | k_dont_unmap,
               pointer(staging)) == MAP_FAILED) {
      return false;
    }
  }
  part.state.staging_watched = true;
  // Protection that the application changed in that moment came along.
  if (rights_at(staging, &end, &mapped) != Rights::write || end < staging + k_block_size) {
    mprotect(pointer(staging), k_block_size, PROT_READ | PROT_WRITE);
  }
  const PageMask populated = maps_.populated(staging);
  out.done |= populated;
  out.not_populated |= ~populated;
  part.state.staged = populated;
  part.state.large = {};
  part.state.protected_ = {};
  part.state.copied_out = {};
  return true;
}

void UffdMirror::drop_remapped(Part part) {
  uffd::BlockState& s = part.state;
  if (!s.staging_watched) return;
  if (!part.arena.protectable()) unwatch_staging(part);
  if (s.staged.any()) {
    const uffd::OwnWork::Removal removal(own_, part.staging(0), k_block_size);
    part.arena.unback(part.base, PageMask::all());
    s.staged = {};
  }
  unwatch_staging(part);
}

void UffdMirror::unwatch_staging(Part part) {
  if (!part.state.staging_watched) return;
  managed_.unwatch(part.staging(0), k_block_size);
  part.state.staging_watched = false;
}

// "Nothing there" may be a moment in the life of the huge zero page (Arena::arm). Giving one page zeros makes it certain:
// the kernel takes the lock under which such moments pass, and a table of small pages has none.
PageMask UffdMirror::settle(Part part) {
  const PageMask populated = maps_.populated(part.base, part.pages);
  if (move_ || part.state.settled || populated.any()) return populated;
  if (managed_.copy(part.at(part.pages.next(0)), zeros_, k_page_size, false).error == 0) part.state.settled = true;
  return maps_.populated(part.base, part.pages);
}

void UffdMirror::withdraw_by_copy(Part part, PageOutcome& out, PageMask& by_copy) {
  if (part.arena.make_protectable(ranges_, managed_, maps_) != 0) {
    out.busy |= part.pages;
    return;
  }
  const PageMask populated = settle(part);
  part.pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned page = first; page < first + count;) {
      std::uintptr_t area_end = 0;
      bool mapped = false;
      const Rights rights = rights_at(part.at(page), &area_end, &mapped);
      const auto stop = static_cast<unsigned>(
          std::min<std::uintptr_t>(first + count, page + ((area_end - part.at(page)) >> k_page_shift)));
      const PageMask span = PageMask::range(page, stop - page);
      page = stop;
      if (!mapped) {
        out.gone |= span;
        continue;
      }
      if (rights == Rights::none) {
        out.forbidden |= span;
        continue;
      }
      out.not_populated |= span - populated;
      part.state.copied_out = part.state.copied_out - span;
      (span & populated).for_each_run([&](unsigned at, unsigned n) {
        const PageMask run = PageMask::range(at, n);
        switch (managed_.write_protect(part.at(at), n * k_page_size, true)) {
          case 0:
            out.done |= run;
            by_copy |= run;
            break;
          case EAGAIN:
          case ENOMEM:
            out.busy |= run;
            break;
          default:
            out.gone |= run;
            break;
        }
      });
    }
  });
}

void UffdMirror::protect_in_place(Part part, PageOutcome& out, PageMask& fresh) {
  PageMask ours;
  withdraw_by_copy(part, out, ours);
  // A page never touched is given zeros first: a duplicate of nothing could be touched natively, unseen.
  if (out.not_populated.any()) {
    const PageMask empty = out.not_populated & part.pages;
    out.not_populated = out.not_populated - empty;
    const PageOutcome filled = populate(part.base, empty);
    out.busy |= filled.busy;
    out.gone |= filled.gone | filled.not_populated;
    out.pinned |= filled.pinned;
    out.forbidden |= filled.forbidden;
    filled.done.for_each_run([&](unsigned at, unsigned n) {
      const bool ok = managed_.write_protect(part.at(at), n * k_page_size, true) == 0;
      const PageMask run = PageMask::range(at, n);
      (ok ? out.done : out.busy) |= run;
      if (ok) ours |= run;
    });
  }
  fresh |= ours - part.state.protected_;
  part.state.protected_ |= ours;
}

PageMask UffdMirror::remove(Part part, const PageMask& pages) {
  PageMask stuck;
  pages.for_each_run([&](unsigned first, unsigned count) {
    const auto removed = [&](unsigned at, unsigned n) {
      const uffd::OwnWork::Removal removal(own_, part.at(at), n * k_page_size);
      return madvise(pointer(part.at(at)), n * k_page_size, MADV_DONTNEED) == 0;
    };
    if (removed(first, count)) return;
    // Some area of it is locked in memory, or gone: unmapped, or moved elsewhere with its pages. What was removed before it
    // may be removed again: nobody can touch it.
    for (unsigned at = first; at < first + count;) {
      const unsigned stop = std::max(at + 1, area_limit(part, at, first + count));
      if (!removed(at, stop - at)) stuck.set(at, stop - at);
      at = stop;
    }
  });
  const PageMask out = pages - stuck;
  part.state.protected_ = part.state.protected_ - out;
  part.state.copied_out |= out;
  return stuck;
}

}  // namespace hmmrt
