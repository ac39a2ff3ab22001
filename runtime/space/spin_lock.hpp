// SPDX-License-Identifier: MIT
// SpinLock: for sections of a few dozen instructions. Yields to the scheduler when the holder seems preempted.
#pragma once

#include <sched.h>

#include <atomic>

namespace hmmrt {

class SpinLock {
 public:
  void lock() noexcept {
    for (unsigned spins = 0; held_.exchange(true, std::memory_order_acquire); ++spins) {
      while (held_.load(std::memory_order_relaxed)) {
        if (++spins % 64 == 0) sched_yield();
      }
    }
  }
  bool try_lock() noexcept { return !held_.exchange(true, std::memory_order_acquire); }
  void unlock() noexcept { held_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> held_{false};
};

}  // namespace hmmrt
