// SPDX-License-Identifier: MIT
// The steps of a transfer. Transfer::scratch holds two masks:
//   by_copy  to_device: withdrawn by copy: still mapped, write-protected, read through the managed address
//            duplicate: the pages that this transfer protected (others were protected already)
//            to_host:   delivered with UFFDIO_COPY
//   other    to_device: pages of by_copy or of a duplicate whose contents could not be read any more
//            to_host:   staging pages that exist only for this transfer
// While managed addresses are read, the block is registered as Reading (own_work.hpp), from prepare until commit begins.
#include <new>
#include <span>
#include <utility>

#include "host/uffd/uffd_mirror.hpp"

namespace hmmrt {

namespace {

constexpr unsigned k_rollback_tries = 4;  // of about 0.5 ms

std::byte* bytes_at(std::uintptr_t a) { return reinterpret_cast<std::byte*>(a); }  // NOLINT(performance-no-int-to-ptr)

// Collects copy-engine runs: consecutive pages with consecutive frames and host addresses become one.
class Runs {
 public:
  explicit Runs(CopyKind kind) : kind_(kind) {}
  std::span<const CopyRun> view() const { return {runs(), count_}; }
  // Pages [first, first + count) of a block, whose host memory is consecutive.
  void add(const Frame* frames, unsigned first, unsigned count, std::byte* host) {
    for (unsigned i = 0; i < count;) {
      unsigned n = 1;
      while (i + n < count && frames[first + i + n] == frames[first + i] + n) ++n;
      add(frames[first + i], n, host + i * k_page_size);
      i += n;
    }
  }

 private:
  void add(Frame frame, unsigned pages, std::byte* host) {
    if (count_ != 0) {
      CopyRun& last = runs()[count_ - 1];
      if (last.frame + last.pages == frame && last.host + std::size_t{last.pages} * k_page_size == host) {
        last.pages += pages;
        return;
      }
    }
    // Constructed one by one: initialising all 512 would cost more than moving a page.
    CopyRun& run = *new (&storage_[count_++ * sizeof(CopyRun)]) CopyRun{};
    run.kind = kind_;
    run.frame = frame;
    run.pages = pages;
    run.host = host;
  }
  CopyRun* runs() { return std::launder(reinterpret_cast<CopyRun*>(storage_)); }
  const CopyRun* runs() const { return std::launder(reinterpret_cast<const CopyRun*>(storage_)); }

  CopyKind kind_;
  std::size_t count_ = 0;
  alignas(CopyRun) std::byte storage_[k_block_pages * sizeof(CopyRun)];
};

}  // namespace

PageMask UffdMirror::load(const Transfer& t, Masks which) {
  PageMask mask;
  const unsigned at = which == Masks::by_copy ? 0 : PageMask::k_words;
  for (unsigned w = 0; w < PageMask::k_words; ++w) mask.set_word(w, t.scratch[at + w]);
  return mask;
}

void UffdMirror::store(Transfer& t, Masks which, const PageMask& mask) {
  const unsigned at = which == Masks::by_copy ? 0 : PageMask::k_words;
  for (unsigned w = 0; w < PageMask::k_words; ++w) t.scratch[at + w] = mask.word(w);
}

void UffdMirror::prepare(Transfer& t) {
  t.scratch[k_reading_word] = uffd::OwnWork::k_no_reading;
  t.outcome = {};
  t.copied = {};
  t.ticket = 0;
  store(t, Masks::by_copy, {});
  store(t, Masks::other, {});
  if (t.direction == Direction::to_host) {
    plan_delivery(t);
    return;
  }
  PageMask by_copy;
  const PageMask orphans = for_each_part(t.base, t.pages, [&](Part part) {
    if (part.arena.arm(ranges_, managed_, maps_) != 0) {
      t.outcome.busy |= part.pages;
      return;
    }
    if (t.duplicate) {
      protect_in_place(part, t.outcome, by_copy);
      return;
    }
    PageMask rest = part.pages;
    if (move_) {
      rest = {};
      withdraw_by_move(part, t.outcome, rest);
    } else if (part.pages.full() && withdraw_by_remap(part, t.outcome)) {
      return;
    }
    if (rest.any()) withdraw_by_copy(Part{part.arena, part.base, rest, part.state}, t.outcome, by_copy);
  });
  t.outcome.gone |= orphans;
  store(t, Masks::by_copy, by_copy);
  const PageMask read_in_place = t.duplicate ? t.outcome.done : by_copy;
  if (read_in_place.any()) t.scratch[k_reading_word] = own_.begin_reading(t.base, read_in_place);
  if (read_in_place.any() && t.scratch[k_reading_word] == uffd::OwnWork::k_no_reading) {
    for_each_part(t.base, by_copy, [&](Part part) { undo_protection(part, part.pages, t.duplicate); });
    t.outcome.done = t.outcome.done - read_in_place;
    t.outcome.busy |= read_in_place;
    store(t, Masks::by_copy, {});
  }
}

void UffdMirror::copy(Transfer& t) {
  if (t.direction == Direction::to_device) {
    copy_to_device(t);
  } else {
    copy_to_host(t);
  }
}

void UffdMirror::copy_to_device(Transfer& t) {
  const PageMask in_place = t.duplicate ? t.outcome.done : load(t, Masks::by_copy);
  Runs runs(CopyKind::host_to_device);
  PageMask failed;
  for_each_part(t.base, t.outcome.done, [&](Part part) {
    PageMask staged = part.pages - in_place;
    const PageMask read = part.pages & in_place;
    if (read.any()) {
      if (t.device->frame_address(t.frames[read.next(0)]) != nullptr) {
        failed |= reader_.read(t.base, read, [&](unsigned page) { return t.device->frame_address(t.frames[page]); });
      } else if (part.arena.back(part.base, read)) {
        part.state.staged |= read;  // as a bounce, until commit or rollback
        failed |= reader_.read(t.base, read, [&](unsigned page) { return bytes_at(part.staging(page)); });
        staged |= read - failed;
      } else {
        failed |= read;
      }
    }
    staged.for_each_run(
        [&](unsigned first, unsigned count) { runs.add(t.frames, first, count, bytes_at(part.staging(first))); });
  });
  store(t, Masks::other, failed);
  t.copied = t.outcome.done - failed;
  if (!runs.view().empty()) t.ticket = t.device->copy_async(runs.view());
}

void UffdMirror::copy_to_host(Transfer& t) {
  const PageMask by_copy = load(t, Masks::by_copy);
  const bool direct = addressable(t);
  Runs runs(CopyKind::device_to_host);
  for_each_part(t.base, t.outcome.done, [&](Part part) {
    const PageMask fresh = load(t, Masks::other);
    const PageMask kept = t.clean & (part.state.staged - fresh);
    const PageMask moving = part.pages - kept;
    t.copied |= moving;
    (direct ? moving - by_copy : moving).for_each_run([&](unsigned first, unsigned count) {
      runs.add(t.frames, first, count, bytes_at(part.staging(first)));
    });
  });
  if (!runs.view().empty()) t.ticket = t.device->copy_async(runs.view());
}

bool UffdMirror::finish_copy(Transfer& t) { return t.ticket == 0 || t.device->wait_copy(t.ticket); }

void UffdMirror::commit(Transfer& t) {
  const PageMask by_copy = load(t, Masks::by_copy);
  if (t.direction == Direction::to_host) {
    const PageMask pages = t.outcome.done;
    const PageMask fresh = load(t, Masks::other);
    t.outcome.done = {};
    for_each_part(t.base, pages & by_copy, [&](Part part) { deliver_by_copy(part, t); });
    for_each_part(t.base, pages - by_copy, [&](Part part) { deliver_by_move(part, t.outcome); });
    // What was landed but not delivered: its contents are in the frames, which stay the owner's.
    for_each_part(t.base, fresh - t.outcome.done, [&](Part part) { forget_staging(part, part.pages); });
    return;
  }
  const PageMask failed = load(t, Masks::other);
  const PageMask in_place = t.duplicate ? t.outcome.done : by_copy;
  // Before anything is removed: from then on a missing page is one that the device has.
  end_reading(t);
  for_each_part(t.base, in_place & t.outcome.done, [&](Part part) {
    const PageMask bad = part.pages & failed;
    undo_protection(part, bad & by_copy, t.duplicate);
    forget_staging(part, part.pages);
    t.outcome.done = t.outcome.done - bad;
    t.outcome.gone |= bad;
    if (t.duplicate) return;
    const PageMask stuck = remove(part, part.pages - bad - t.moved_on) | ((part.pages - bad) & t.moved_on);
    undo_protection(part, stuck - t.moved_on, false);
    t.outcome.done = t.outcome.done - stuck;
    t.outcome.pinned |= stuck;
  });
  if (move_ || t.duplicate) return;
  for_each_part(t.base, t.pages, [&](Part part) { drop_remapped(part); });
  // Withdrawn by remap: from here on the frames have the only copy.
  for_each_part(t.base, t.outcome.done - by_copy, [&](Part part) { part.state.copied_out |= part.pages; });
}

void UffdMirror::rollback(Transfer& t) {
  if (t.ticket != 0) (void)t.device->wait_copy(t.ticket);
  const PageMask by_copy = load(t, Masks::by_copy);
  if (t.direction == Direction::to_host) {
    for_each_part(t.base, load(t, Masks::other), [&](Part part) { forget_staging(part, part.pages); });
    return;
  }
  for_each_part(t.base, t.pages, [&](Part part) { unwatch_staging(part); });
  const PageMask taken = t.outcome.done;
  const PageMask in_place = t.duplicate ? taken : by_copy;
  for_each_part(t.base, taken, [&](Part part) {
    const PageMask here = part.pages & in_place;
    forget_staging(part, here);
    undo_protection(part, part.pages & by_copy, t.duplicate);
    // Busy: the application's munmap or madvise is under way and its event not yet read. Nothing else stops a page here.
    PageMask rest = part.pages - in_place;
    for (unsigned tries = 0; rest.any() && tries < k_rollback_tries; ++tries) {
      PageOutcome back;
      const Part held{part.arena, part.base, rest, part.state};
      if (move_) {
        deliver_by_move(held, back);
      } else {
        restore_staged(held, back);
      }
      rest = back.busy;
    }
    t.outcome.done = t.outcome.done - rest;  // still withdrawn, contents kept
    t.outcome.busy |= rest;
  });
  end_reading(t);
}

void UffdMirror::end_reading(Transfer& t) {
  const auto slot = static_cast<unsigned>(std::exchange(t.scratch[k_reading_word], uffd::OwnWork::k_no_reading));
  if (slot != uffd::OwnWork::k_no_reading) own_.end_reading(slot);
}

// Protection set for a transfer is taken back; a page that was protected before it stays so.
void UffdMirror::undo_protection(Part part, const PageMask& pages, bool duplicate) {
  unprotect(part, duplicate ? pages : pages - part.state.protected_);
}

void UffdMirror::unprotect(Part part, const PageMask& pages) {
  pages.for_each_run(
      [&](unsigned first, unsigned count) { (void)protect(part.arena, part.at(first), count * k_page_size, false); });
  part.state.protected_ = part.state.protected_ - pages;
}

}  // namespace hmmrt
