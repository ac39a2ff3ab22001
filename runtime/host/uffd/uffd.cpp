// SPDX-License-Identifier: MIT
#include "host/uffd/uffd.hpp"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

namespace hmmrt::uffd {

// Waits a little longer each time.
class Uffd::Backoff {
 public:
  explicit Backoff(const Uffd& uffd) noexcept : uffd_(uffd) {}
  // False: give up.
  bool wait() noexcept;
  void begin_again() noexcept { tries_ = 0; }

 private:
  // An event is in the way that only this thread reads.
  bool in_vain() const noexcept {
    if (uffd_.reader_.load(std::memory_order_relaxed) != pthread_self()) return false;
    pollfd unread{uffd_.fd_, POLLIN, 0};
    return poll(&unread, 1, 0) == 1;
  }

  const Uffd& uffd_;
  unsigned tries_ = 0;
};

bool Uffd::Backoff::wait() noexcept {
  constexpr unsigned k_yields = 32;
  constexpr unsigned k_naps = 4;
  if (tries_ < k_yields) {  // in the way may be who was just let go on, and what is to be read a fault
    sched_yield();
  } else if (tries_ < k_yields + k_naps && !in_vain()) {
    const timespec nap{0, 50'000};
    nanosleep(&nap, nullptr);
  } else {
    return false;
  }
  ++tries_;
  return true;
}

Uffd::~Uffd() {
  if (fd_ >= 0) close(fd_);
}

int Uffd::watch(std::uintptr_t addr, std::size_t bytes, std::uint64_t modes) const noexcept {
  uffdio_register args{};
  args.range = {addr, bytes};
  args.mode = modes;
  return ioctl(fd_, UFFDIO_REGISTER, &args) == 0 ? 0 : errno;
}

int Uffd::unwatch(std::uintptr_t addr, std::size_t bytes) const noexcept {
  uffdio_range args{addr, bytes};
  return ioctl(fd_, UFFDIO_UNREGISTER, &args) == 0 ? 0 : errno;
}

namespace {

// Drives an ioctl that reports partial progress as EAGAIN plus a byte count. `call(done, &progress)` returns errno.
template <class Backoff, class Call>
Step drive(Backoff backoff, std::size_t bytes, Call&& call) noexcept {
  Step step;
  for (;;) {
    std::int64_t progress = 0;
    const int error = call(step.bytes, &progress);
    if (error == 0) return {bytes, 0};
    if (progress > 0) {
      step.bytes += static_cast<std::size_t>(progress);
      if (step.bytes >= bytes) return {bytes, 0};
      backoff.begin_again();
      continue;  // the next call names what stopped this one
    }
    if (error != EAGAIN || !backoff.wait()) {
      step.error = error;
      return step;
    }
  }
}

}  // namespace

Step Uffd::move(std::uintptr_t dst, std::uintptr_t src, std::size_t bytes) const noexcept {
  return drive(Backoff(*this), bytes, [&](std::size_t done, std::int64_t* progress) {
    MoveArgs args{dst + done, src + done, bytes - done, 0, 0};
    const int error = ioctl(fd_, k_ioctl_move, &args) == 0 ? 0 : errno;
    *progress = args.move;
    return error;
  });
}

Step Uffd::copy(std::uintptr_t dst, std::uintptr_t src, std::size_t bytes, bool write_protected) const noexcept {
  return drive(Backoff(*this), bytes, [&](std::size_t done, std::int64_t* progress) {
    uffdio_copy args{};
    args.dst = dst + done;
    args.src = src + done;
    args.len = bytes - done;
    args.mode = write_protected ? UFFDIO_COPY_MODE_WP : 0;
    const int error = ioctl(fd_, UFFDIO_COPY, &args) == 0 ? 0 : errno;
    *progress = args.copy;
    return error;
  });
}

int Uffd::write_protect(std::uintptr_t addr, std::size_t bytes, bool on) const noexcept {
  Backoff backoff(*this);
  for (;;) {
    uffdio_writeprotect args{};
    args.range = {addr, bytes};
    args.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
    if (ioctl(fd_, UFFDIO_WRITEPROTECT, &args) == 0) return 0;
    const int error = errno;
    if (error != EAGAIN || !backoff.wait()) return error;
  }
}

void Uffd::wake(std::uintptr_t addr, std::size_t bytes) const noexcept {
  uffdio_range args{addr, bytes};
  ioctl(fd_, UFFDIO_WAKE, &args);
}

}  // namespace hmmrt::uffd
