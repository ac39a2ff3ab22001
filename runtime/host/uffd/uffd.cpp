// SPDX-License-Identifier: MIT
#include "host/uffd/uffd.hpp"

#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

namespace hmmrt::uffd {

bool Backoff::wait() noexcept {
  constexpr unsigned k_yields = 32;
  constexpr unsigned k_naps = 4;
  if (tries_ < k_yields) {
    sched_yield();
  } else if (tries_ < k_yields + k_naps) {
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
template <class Call>
Step drive(std::size_t bytes, Call&& call) noexcept {
  Step step;
  Backoff backoff;
  for (;;) {
    std::int64_t progress = 0;
    const int error = call(step.bytes, &progress);
    if (error == 0) return {bytes, 0};
    if (progress > 0) {
      step.bytes += static_cast<std::size_t>(progress);
      if (step.bytes >= bytes) return {bytes, 0};
      backoff = {};
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
  return drive(bytes, [&](std::size_t done, std::int64_t* progress) {
    MoveArgs args{dst + done, src + done, bytes - done, 0, 0};
    const int error = ioctl(fd_, k_ioctl_move, &args) == 0 ? 0 : errno;
    *progress = args.move;
    return error;
  });
}

Step Uffd::copy(std::uintptr_t dst, std::uintptr_t src, std::size_t bytes, bool write_protected) const noexcept {
  return drive(bytes, [&](std::size_t done, std::int64_t* progress) {
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
  Backoff backoff;
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
