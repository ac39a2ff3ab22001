// SPDX-License-Identifier: MIT
#include "space/park.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace hmmrt {

namespace {
constinit std::atomic<ParkHook> hook{nullptr};
}

void set_park_hook(ParkHook h) noexcept { hook.store(h, std::memory_order_release); }

void park(const Word& word, std::uint32_t seen, std::uint64_t timeout_ns) noexcept {
  if (ParkHook h = hook.load(std::memory_order_acquire); h != nullptr) {
    h(word, seen);
    return;
  }
  timespec limit{static_cast<time_t>(timeout_ns / 1'000'000'000u), static_cast<long>(timeout_ns % 1'000'000'000u)};
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, timeout_ns != 0 ? &limit : nullptr, nullptr, 0);
}

void unpark(Word& word) noexcept {
  if (hook.load(std::memory_order_acquire) != nullptr) return;
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace hmmrt
