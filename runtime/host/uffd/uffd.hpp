// SPDX-License-Identifier: MIT
// The kernel's userfaultfd as values: one class per file descriptor, one function per ioctl, errno as a number. Nothing
// here knows blocks, staging or policy.
//
// Every range operation answers with a Step: how many bytes were finished and which errno stopped it there (0: all of
// it). EAGAIN means that an application munmap, mremap or madvise is under way: its event has not been read yet, or who
// made it has not gone on since. It is retried for about 0.5 ms and only then reported. Not longer: the event may wait for
// the delivery that waits here (migrate/event_gate.hpp). And a tenth of that on the thread that reads, while there is
// something to read: nobody else will.
//
// Debian 12's headers stop at Linux 6.1; what is newer is declared here.
// Thread: any. Blocks on: the kernel only.
#pragma once

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace hmmrt::uffd {

constexpr std::uint64_t k_feature_move = std::uint64_t{1} << 16;  // Linux 6.8

struct MoveArgs {
  std::uint64_t dst, src, len, mode;
  std::int64_t move;  // out: bytes moved, or -errno
};
constexpr unsigned long k_ioctl_move = _IOWR(0xAA, 0x05, MoveArgs);
constexpr unsigned long k_dev_ioctl_new = _IO(0xAA, 0x00);  // on /dev/userfaultfd

struct Step {
  std::size_t bytes = 0;
  int error = 0;
};

class Uffd {
 public:
  explicit Uffd(int fd = -1) : fd_(fd) {}
  ~Uffd();
  Uffd(const Uffd&) = delete;
  Uffd& operator=(const Uffd&) = delete;

  int fd() const { return fd_; }
  // The calling thread is the one that reads, from now on.
  void read_here() noexcept { reader_.store(pthread_self(), std::memory_order_relaxed); }

  // UFFDIO_REGISTER_MODE_*. Returns errno. Registering again with more modes adds them.
  int watch(std::uintptr_t addr, std::size_t bytes, std::uint64_t modes) const noexcept;
  int unwatch(std::uintptr_t addr, std::size_t bytes) const noexcept;

  // Takes [src, src + bytes) out of the page table and puts it at dst, which must be watched by this descriptor. Wakes
  // who waits for dst. EEXIST: there is a page at dst, or (Linux 6.18) this call has put it there: move_pages() in
  // mm/userfaultfd.c keeps the EAGAIN of a page that changed under it, moves the page at the second look, takes the kept
  // error for that look's, and finds its own work at the third. Where dst was known to be empty, EEXIST means moved.
  Step move(std::uintptr_t dst, std::uintptr_t src, std::size_t bytes) const noexcept;
  // Fills missing pages at dst. `write_protected`: atomically with uffd write protection. Wakes.
  Step copy(std::uintptr_t dst, std::uintptr_t src, std::size_t bytes, bool write_protected) const noexcept;
  // Sets or clears write protection of present pages; clearing wakes. Returns errno.
  int write_protect(std::uintptr_t addr, std::size_t bytes, bool on) const noexcept;
  void wake(std::uintptr_t addr, std::size_t bytes) const noexcept;

 private:
  class Backoff;

  int fd_;
  std::atomic<pthread_t> reader_{};
};

}  // namespace hmmrt::uffd
