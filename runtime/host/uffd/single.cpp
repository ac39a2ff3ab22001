// SPDX-License-Identifier: MIT
// The single steps of HostMirror: populate, write-protect, give back, drop, map remotely, make exclusive.
#include <cerrno>

#include "host/uffd/uffd_mirror.hpp"

namespace hmmrt {

namespace {
std::byte* bytes_at(std::uintptr_t a) { return reinterpret_cast<std::byte*>(a); }  // NOLINT(performance-no-int-to-ptr)
}  // namespace

PageOutcome UffdMirror::populate(std::uintptr_t base, const PageMask& pages) {
  PageOutcome out;
  const PageMask present = maps_.populated(base);
  const PageMask strangers = for_each_part(base, pages, [&](Part part) {
    const PageMask there = part.pages & present;
    out.done |= there;
    wake(base, there);
    PageMask by_copy = part.pages - there;
    if (move_) {
      // Long runs: fresh zeroed pages, huge where they can be, move in from staging.
      PageMask by_move;
      by_copy.for_each_run([&](unsigned first, unsigned count) {
        if (count >= k_fresh_pages) by_move.set(first, count);
      });
      forget_staging(part, by_move);
      if (by_move.any() && part.arena.back(base, by_move)) {
        part.state.staged |= by_move;
        deliver_by_move(Part{part.arena, base, by_move, part.state}, out);
        by_copy = by_copy - by_move;
        forget_staging(part, by_move - out.done);
      } else {
        part.arena.unback(base, by_move);
      }
    }
    if (by_copy.any()) deliver_zeros(Part{part.arena, base, by_copy, part.state}, out);
  });
  // Of no range, yet watched: memory that mremap added to one, or left behind. Whoever touches it waits for us alone.
  strangers.for_each([&](unsigned page) {
    const int error = managed_.copy(base + page * k_page_size, zeros_, k_page_size, false).error;
    (error == 0 || error == EEXIST ? out.done : error == EAGAIN ? out.busy : out.gone).set(page);
    if (error == EEXIST) managed_.wake(base + page * k_page_size, k_page_size);
  });
  return out;
}

PageOutcome UffdMirror::write_protect(std::uintptr_t base, const PageMask& pages, bool on) {
  PageOutcome out;
  const PageMask strangers = for_each_part(base, pages, [&](Part part) {
    if (!on) {
      part.pages.for_each_run([&](unsigned first, unsigned count) {
        const PageMask run = PageMask::range(first, count);
        const int error = protect(part.arena, part.at(first), count * k_page_size, false);
        (error == 0 ? out.done : error == EAGAIN ? out.busy : out.gone) |= run;
        if (error == 0) part.state.protected_ = part.state.protected_ - run;
      });
      return;
    }
    if (part.arena.arm(ranges_, managed_, maps_) != 0) {
      out.busy |= part.pages;
      return;
    }
    PageMask protected_now;
    withdraw_by_copy(part, out, protected_now);
    part.state.protected_ |= protected_now;
  });
  if (on) {
    out.gone |= strangers;
    return out;
  }
  strangers.for_each([&](unsigned page) {  // of no range, yet watched: see populate()
    const int error = managed_.write_protect(base + page * k_page_size, k_page_size, false);
    (error == 0 ? out.done : error == EAGAIN ? out.busy : out.gone).set(page);
  });
  return out;
}

PageOutcome UffdMirror::give_back(std::uintptr_t base, const PageMask& pages) {
  PageOutcome out;
  out.gone |= for_each_part(base, pages, [&](Part part) {
    const PageMask staged = part.pages & part.state.staged;
    out.forbidden |= (part.pages & part.state.copied_out) - staged;
    out.not_populated |= part.pages - staged - part.state.copied_out;
    const Part held{part.arena, base, staged, part.state};
    if (move_) {
      deliver_by_move(held, out);
    } else {
      deliver_staged(held, out);
    }
  });
  return out;
}

void UffdMirror::drop(std::uintptr_t base, const PageMask& pages) {
  for_each_part(base, pages, [&](Part part) {
    forget_staging(part, part.pages);
    part.state.copied_out = part.state.copied_out - part.pages;
  });
}

// The mark is write protection: it goes when the kernel clears the page, and a page touched afterwards has none. While
// the application's call has not gone on, marking fails with EAGAIN: such pages stay `unwatched`, which is pending too.
void UffdMirror::watch_drop(std::uintptr_t base, const PageMask& pages) {
  int error = 0;  // EAGAIN will be so for all: each try would wait for it to end
  for_each_part(base, pages, [&](Part part) {
    part.pages.for_each_run([&](unsigned first, unsigned count) {
      const PageMask run = PageMask::range(first, count);
      if (error != EAGAIN) error = protect(part.arena, part.at(first), count * k_page_size, true);
      part.state.unwatched = error == EAGAIN ? part.state.unwatched | run : part.state.unwatched - run;
      if (error == 0) part.state.protected_ |= run;
    });
  });
}

PageMask UffdMirror::drop_pending(std::uintptr_t base, const PageMask& pages) {
  PageMask pending;
  for_each_part(base, pages, [&](const Part& part) {
    const PageMask again = part.pages & part.state.unwatched;
    if (again.any()) watch_drop(base, again);
    pending |= part.pages & part.state.unwatched;
  });
  pending |= pages & maps_.write_protected(base);
  for_each_part(base, pages - pending,
                [](const Part& part) { part.state.protected_ = part.state.protected_ - part.pages; });
  return pending;
}

PageOutcome UffdMirror::map_remote(std::uintptr_t base, const PageMask& pages) {
  PageOutcome out;
  const PageMask present = maps_.populated(base);
  out.gone |= for_each_part(base, pages, [&](Part part) {
    for (unsigned page = part.pages.next(0); page < k_block_pages;) {
      std::uintptr_t end = 0;
      bool mapped = false;
      const Rights rights = rights_at(part.at(page), &end, &mapped);
      const std::uintptr_t block_end = base + k_block_size;
      const unsigned stop = end >= block_end ? k_block_pages : page_in_block(end);
      const PageMask span = part.pages & PageMask::range(page, stop - page);
      if (!mapped) {
        out.gone |= span;
      } else if (rights == Rights::none) {
        out.forbidden |= span;
      } else {
        out.done |= span & present;
        out.not_populated |= span - present;
      }
      page = stop < k_block_pages ? part.pages.next(stop) : k_block_pages;
    }
  });
  return out;
}

std::byte* UffdMirror::remote_address(std::uintptr_t addr) { return bytes_at(addr); }

PageOutcome UffdMirror::make_exclusive(std::uintptr_t base, const PageMask& pages) {
  PageOutcome out;
  PageMask by_copy;
  out.gone |= for_each_part(base, pages, [&](Part part) {
    if (part.arena.arm(ranges_, managed_, maps_) != 0) {
      out.busy |= part.pages;
      return;
    }
    PageMask rest = part.pages;
    if (move_) {
      rest = {};
      withdraw_by_move(part, out, rest);
    }
    if (rest.any()) withdraw_by_copy(Part{part.arena, base, rest, part.state}, out, by_copy);
  });
  const unsigned reading = by_copy.any() ? own_.begin_reading(base, by_copy) : uffd::OwnWork::k_no_reading;
  if (by_copy.any() && reading == uffd::OwnWork::k_no_reading) {
    for_each_part(base, by_copy, [&](Part part) { undo_protection(part, part.pages, false); });
    out.done = out.done - by_copy;
    out.busy |= by_copy;
    by_copy = {};
  }
  PageMask failed;
  for_each_part(base, by_copy, [&](Part part) {
    if (part.arena.back(base, part.pages)) {
      failed |= reader_.read(base, part.pages, [&](unsigned page) { return bytes_at(part.staging(page)); });
    } else {
      failed |= part.pages;
    }
  });
  // Before anything is removed: from then on a missing page is one that was taken.
  if (by_copy.any()) own_.end_reading(reading);
  for_each_part(base, by_copy, [&](Part part) {
    const PageMask bad = part.pages & failed;
    const PageMask stuck = remove(part, part.pages - bad);
    undo_protection(part, bad | stuck, false);
    part.arena.unback(base, bad | stuck);
    const PageMask taken = part.pages - bad - stuck;
    part.state.staged |= taken;
    part.state.copied_out = part.state.copied_out - taken;
    out.done = out.done - (bad | stuck);
    out.gone |= bad;
    out.pinned |= stuck;
  });
  // A page never touched gets one now, for the device to map.
  for_each_part(base, out.not_populated, [&](Part part) {
    forget_staging(part, part.pages);
    const bool backed = part.arena.back(base, part.pages);
    out.not_populated = out.not_populated - part.pages;
    (backed ? out.done : out.busy) |= part.pages;
    if (backed) part.state.staged |= part.pages;
  });
  return out;
}

std::byte* UffdMirror::exclusive_address(std::uintptr_t addr) {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  const Arena* const arena = ranges_.next(addr, &begin, &end);
  return arena == nullptr || begin > addr ? nullptr : bytes_at(arena->staging_of(addr));
}

}  // namespace hmmrt
