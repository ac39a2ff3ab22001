// SPDX-License-Identifier: MIT
// Giving pages to the CPU. A page arrives by UFFDIO_MOVE out of staging, or by UFFDIO_COPY from wherever its bytes are.
// Both wake the threads that wait for it. A page that is there already counts as delivered: the application dropped
// and touched it meanwhile, and what it wrote is the truth.
#include <algorithm>
#include <cerrno>

#include "host/uffd/uffd_mirror.hpp"

namespace hmmrt {

void UffdMirror::forget_staging(Part part, const PageMask& pages) {
  const PageMask held = pages & part.state.staged;
  if (held.none()) return;
  part.arena.unback(part.base, held);
  part.state.staged = part.state.staged - held;
  part.state.large = part.state.large - held;
}

void UffdMirror::fail_delivery(Part part, unsigned page, unsigned count, int error, PageOutcome& out) {
  const PageMask mask = PageMask::range(page, count);
  out.done = out.done - mask;
  std::uintptr_t end = 0;
  bool mapped = true;
  if (error == ENOENT || error == ESRCH || error == EINVAL || error == EFAULT) rights_at(part.at(page), &end, &mapped);
  // ENOENT on a mapped page: the mapping is a new one that we do not watch. What we hold belongs to nobody.
  if (!mapped || error == ENOENT || error == ESRCH) {
    out.gone |= mask;
  } else {
    out.busy |= mask;
  }
}

unsigned UffdMirror::area_limit(Part part, unsigned page, unsigned stop) const {
  std::uintptr_t end = 0;
  bool mapped = false;
  rights_at(part.at(page), &end, &mapped);
  return static_cast<unsigned>(std::min<std::uintptr_t>(stop, page + ((end - part.at(page)) >> k_page_shift)));
}

template <class Source>
void UffdMirror::deliver_by_copy(Part part, bool write_protected, PageOutcome& out, Source&& source) {
  PageMask arrived;
  bool changing = false;  // an event waits to be read: nothing more will arrive now
  part.pages.for_each_run([&](unsigned first, unsigned count) {
    unsigned page = first;
    const unsigned end = first + count;
    unsigned limit = end;
    while (page < end) {
      if (changing) {
        fail_delivery(part, page, end - page, EAGAIN, out);
        return;
      }
      if (page >= limit) limit = end;
      const std::uintptr_t from = source(page);
      unsigned stop = page + 1;
      while (stop < limit && source(stop) == from + (stop - page) * k_page_size) ++stop;
      const uffd::Step step = managed_.copy(part.at(page), from, (stop - page) * k_page_size, write_protected);
      const auto copied = static_cast<unsigned>(step.bytes >> k_page_shift);
      arrived |= PageMask::range(page, copied);
      page += copied;
      if (step.error == 0) continue;
      if (step.error == EEXIST) {
        arrived.set(page);
        managed_.wake(part.at(page), k_page_size);
      } else if (step.error == EAGAIN) {
        changing = true;
        continue;
      } else if (const unsigned area = area_limit(part, page, stop); area < stop) {
        limit = area;
        continue;
      } else {
        fail_delivery(part, page, 1, step.error, out);
      }
      ++page;
    }
  });
  out.done |= arrived;
  part.state.copied_out = part.state.copied_out - arrived;
  if (write_protected) {
    part.state.protected_ |= arrived;
  } else {
    part.state.protected_ = part.state.protected_ - arrived;
  }
  forget_staging(part, arrived);
}

void UffdMirror::deliver_by_copy(Part part, Transfer& t) {
  const bool direct = addressable(t);
  deliver_by_copy(part, t.duplicate, t.outcome, [&](unsigned page) {
    const bool kept = !direct || (part.state.staged.test(page) && t.clean.test(page));
    return kept ? part.staging(page) : reinterpret_cast<std::uintptr_t>(t.device->frame_address(t.frames[page]));
  });
}

void UffdMirror::deliver_staged(Part part, PageOutcome& out) {
  deliver_by_copy(part, false, out, [&](unsigned page) { return part.staging(page); });
}

void UffdMirror::restore_staged(Part part, PageOutcome& out) {
  constexpr unsigned k_piece = 32;  // pages that exist twice for a moment
  part.pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned at = first; at < first + count; at += k_piece) {
      const PageMask piece = PageMask::range(at, std::min(k_piece, first + count - at));
      deliver_staged(Part{part.arena, part.base, piece, part.state}, out);
    }
  });
}

void UffdMirror::deliver_zeros(Part part, PageOutcome& out) {
  deliver_by_copy(part, false, out, [&](unsigned page) { return zeros_ + page * k_page_size; });
}

void UffdMirror::deliver_by_move(Part part, PageOutcome& out) {
  PageMask by_copy;
  PageMask there;
  bool changing = false;
  part.pages.for_each_run([&](unsigned first, unsigned count) {
    unsigned page = first;
    const unsigned end = first + count;
    unsigned limit = end;
    while (page < end) {
      if (changing) {
        fail_delivery(part, page, end - page, EAGAIN, out);
        return;
      }
      if (page >= limit) limit = end;
      const uffd::Step step = managed_.move(part.at(page), part.staging(page), (limit - page) * k_page_size);
      const auto moved = static_cast<unsigned>(step.bytes >> k_page_shift);
      const PageMask mask = PageMask::range(page, moved);
      out.done |= mask;
      part.state.staged = part.state.staged - mask;
      part.state.large = part.state.large - mask;
      part.state.protected_ = part.state.protected_ - mask;
      part.state.copied_out = part.state.copied_out - mask;
      page += moved;
      if (step.error == 0) continue;
      switch (step.error) {
        case EEXIST:
          there.set(page++);
          break;
        case EINVAL:  // an area's boundary; else protection changed (mprotect) or locked: copying still works
          if (const unsigned area = area_limit(part, page, limit); area < limit) {
            limit = area;
          } else {
            by_copy.set(page, limit - page);
            page = limit;
          }
          break;
        case EBUSY:
          by_copy.set(page++);
          break;
        case EAGAIN:
          changing = true;
          break;
        default:
          if (const unsigned area = area_limit(part, page, limit); step.error == ENOENT && area < limit) {
            limit = area;
            break;
          }
          fail_delivery(part, page, 1, step.error, out);
          ++page;
          break;
      }
    }
  });
  if (there.any()) {
    out.done |= there;
    part.state.copied_out = part.state.copied_out - there;
    forget_staging(part, there);
    wake(part.base, there);
  }
  if (by_copy.any()) {
    deliver_by_copy(Part{part.arena, part.base, by_copy, part.state}, false, out,
                    [&](unsigned page) { return part.staging(page); });
  }
}

// Decides, for each page asked for, between MOVE and COPY, and makes the staging pages that will be landed on exist.
void UffdMirror::plan_delivery(Transfer& t) {
  PageMask by_copy;
  PageMask landed;
  const PageMask orphans = for_each_part(t.base, t.pages, [&](Part part) {
    uffd::BlockState& s = part.state;
    if (t.duplicate && part.arena.make_protectable(ranges_, managed_, maps_) != 0) {
      t.outcome.busy |= part.pages;
      return;
    }
    PageMask copy;
    if (!move_ || t.duplicate) {
      copy = part.pages;
    } else {
      if (!part.pages.contains(s.large) && part.pages.intersects(s.large)) {
        // A few pages of what may be a huge page: copying them is cheaper than splitting it.
        if (!s.large_verified && s.large.full() && !maps_.huge(part.arena.staging_of(part.base))) s.large = PageMask{};
        s.large_verified = true;
        copy = part.pages & s.large;
      }
      if (addressable(t)) {
        (part.pages - s.staged).for_each_run([&](unsigned first, unsigned count) {
          if (count < k_fresh_pages) copy.set(first, count);
        });
      }
    }
    // Copied pages need staging only as a bounce; whoever can address the frame needs none.
    const PageMask land = (addressable(t) ? part.pages - copy : part.pages) - s.staged;
    if (land.any()) {
      if (!part.arena.back(part.base, land)) {
        part.arena.unback(part.base, land);
        t.outcome.busy |= land;
        part.pages = part.pages - land;
        copy = copy - land;
      } else {
        s.staged |= land;
        landed |= land;
        if (land.full()) {
          s.large = land;
          s.large_verified = false;
        }
      }
    }
    by_copy |= copy;
    t.outcome.done |= part.pages;
  });
  t.outcome.gone |= orphans;
  store(t, Masks::by_copy, by_copy);
  store(t, Masks::other, landed);
}

}  // namespace hmmrt
