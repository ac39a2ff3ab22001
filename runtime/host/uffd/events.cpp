// SPDX-License-Identifier: MIT
// The event thread's side: faults and mapping changes, read in batches, with the mirror's own footprints taken out.
// No allocation, no lock, no log; never waits for a claim.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "host/uffd/uffd_mirror.hpp"

namespace hmmrt {

namespace {

std::uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(t.tv_nsec);
}

}  // namespace

void UffdMirror::wait(std::int64_t timeout_ns) {
  pollfd fds[2] = {{managed_.fd(), POLLIN, 0}, {interrupt_, POLLIN, 0}};
  const timespec limit{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
  const int ready = ppoll(fds, 2, timeout_ns < 0 ? nullptr : &limit, nullptr);  // EINTR: returning early is allowed
  if (ready > 0 && (fds[1].revents & POLLIN) != 0) {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t n = read(interrupt_, &count, sizeof count);
  }
}

std::size_t UffdMirror::fetch(std::span<HostEvent> out) {
  const std::size_t room = std::min(out.size(), messages_.size());
  if (room == 0) return 0;
  managed_.read_here();
  for (;;) {
    own_.begin_batch();
    const ssize_t n = read(managed_.fd(), messages_.data(), room * sizeof(uffd_msg));
    const std::size_t count =
        n <= 0 ? 0 : translate(messages_.data(), static_cast<std::size_t>(n) / sizeof(uffd_msg), out);
    own_.end_batch();
    if (n <= 0 || count != 0) return count;  // else all were our own: read on
  }
}

void UffdMirror::interrupt() {
  const std::uint64_t one = 1;
  // Cannot fail but by overflow, and then the counter is set anyway.
  [[maybe_unused]] const ssize_t n = write(interrupt_, &one, sizeof one);
}

// From before the kernel takes watched memory away until its event has been read and who did it goes on, no page of any
// memory can be protected (EAGAIN). Where threads never stop doing that there may be no other moment, so the wait has an
// end; by time, not by tries: on a busy machine a single one can take long.
int UffdMirror::unprotect_in_storm(std::uintptr_t addr, std::size_t bytes) const {
  const std::uint64_t end = now_ns() + k_storm_ns;
  int error = 0;
  while ((error = managed_.write_protect(addr, bytes, false)) == EAGAIN && now_ns() < end) {
  }
  return error;
}

// Asked for memory that is not watched, nothing else comes of it than the wait; and whoever had begun to take memory away
// before the call is through by the time limit.
void UffdMirror::catch_up_addresses() {
  (void)unprotect_in_storm(zeros_, k_page_size);
  own_.outlast_batch();  // what was read is noted
}

void UffdMirror::wake(std::uintptr_t base, const PageMask& pages) {
  pages.for_each_run(
      [&](unsigned first, unsigned count) { managed_.wake(base + first * k_page_size, count * k_page_size); });
}

std::size_t UffdMirror::translate(const uffd_msg* messages, std::size_t count, std::span<HostEvent> out) {
  std::size_t written = 0;
  const std::uint64_t time = now_ns();
  for (std::size_t i = 0; i < count; ++i) {
    const uffd_msg& m = messages[i];
    HostEvent e{};
    e.time_ns = time;
    switch (m.event) {
      case UFFD_EVENT_PAGEFAULT:
        if (own_fault(m)) continue;
        e.kind = HostEventKind::fault;
        e.addr = m.arg.pagefault.address;
        e.access = (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0 ? Access::write : Access::read;
        e.write_protected = (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
        e.thread = m.arg.pagefault.feat.ptid;
        break;
      case UFFD_EVENT_REMOVE:
        if (own_.matches_removal(m.arg.remove.start, m.arg.remove.end, maps_)) continue;
        e.kind = HostEventKind::remove;
        e.addr = m.arg.remove.start;
        e.bytes = m.arg.remove.end - m.arg.remove.start;
        break;
      case UFFD_EVENT_UNMAP:
        ranges_.note_hole(m.arg.remove.start, m.arg.remove.end);
        e.kind = HostEventKind::unmap;
        e.addr = m.arg.remove.start;
        e.bytes = m.arg.remove.end - m.arg.remove.start;
        break;
      case UFFD_EVENT_REMAP:
        // A block's way into staging (withdraw_by_remap). The application cannot mremap to there.
        if (own_.matches_removal(m.arg.remap.to, m.arg.remap.to + m.arg.remap.len, maps_)) continue;
        ranges_.note_hole(m.arg.remap.from, m.arg.remap.from + m.arg.remap.len);
        e.kind = HostEventKind::remap;
        e.addr = m.arg.remap.from;
        e.to = m.arg.remap.to;
        e.bytes = m.arg.remap.len;
        break;
      default:
        continue;
    }
    out[written++] = e;
  }
  return written;
}

void UffdMirror::zero_or_wake(std::uintptr_t page, bool write_protected) {
  uffdio_copy args{};
  args.dst = page;
  args.src = zeros_;
  args.len = k_page_size;
  args.mode = write_protected ? UFFDIO_COPY_MODE_WP : 0;
  if (ioctl(managed_.fd(), UFFDIO_COPY, &args) != 0) managed_.wake(page, k_page_size);
}

// Touches no BlockState: what it says of this page may be out of date afterwards, which withdrawing notices (EEXIST).
void UffdMirror::populate_unclaimed(std::uintptr_t page) { zero_or_wake(page_floor(page), false); }

// Faults that must be served here because their block is claimed by whom they hold up (own_work.hpp). On EAGAIN the
// thread is woken to fault again, by which time the event that was in the way has been read.
bool UffdMirror::own_fault(const uffd_msg& m) {
  const std::uintptr_t page = page_floor(m.arg.pagefault.address);
  const bool write_protected = (m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
  if (own_.matches_breaking(m.arg.pagefault.feat.ptid)) {
    if (write_protected) {
      uffdio_writeprotect args{};
      args.range = {page, k_page_size};
      if (ioctl(managed_.fd(), UFFDIO_WRITEPROTECT, &args) != 0) managed_.wake(page, k_page_size);
    } else {
      zero_or_wake(page, false);
    }
    return true;
  }
  if (!write_protected && own_.matches_reading(page)) {
    zero_or_wake(page, true);
    return true;
  }
  return false;
}

}  // namespace hmmrt
