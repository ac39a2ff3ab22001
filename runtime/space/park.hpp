// SPDX-License-Identifier: MIT
// Waiting, in one place. Everything in the runtime that blocks on another thread blocks here, on a 32-bit word, so
// that the deterministic simulation can replace blocking by switching to another actor (set_park_hook).
//   park(word, seen)   returns once `word` may have changed from `seen` (spurious returns allowed; callers loop)
//   unpark(word)       wakes every thread parked on `word`
//   ParkMutex          a mutex over both
//   Doorbell           a counter to wait on: ring() by producers, wait(seen, timeout) by one or more consumers
#pragma once

#include <atomic>
#include <cstdint>

namespace hmmrt {

using Word = std::atomic<std::uint32_t>;

// Blocks until word != seen, a wake, or `timeout_ns` (0 = no limit) has passed.
void park(const Word& word, std::uint32_t seen, std::uint64_t timeout_ns = 0) noexcept;
void unpark(Word& word) noexcept;

// In simulation: called instead of sleeping; must run other actors and return. Null restores futexes. Process-wide.
using ParkHook = void (*)(const Word&, std::uint32_t seen) noexcept;
void set_park_hook(ParkHook hook) noexcept;

// A mutex that waits in park(). Meets BasicLockable.
class ParkMutex {
 public:
  void lock() noexcept {
    std::uint32_t free = 0;
    if (word_.compare_exchange_strong(free, 1, std::memory_order_acquire)) return;
    while (word_.exchange(2, std::memory_order_acquire) != 0) park(word_, 2);
  }
  void unlock() noexcept {
    if (word_.exchange(0, std::memory_order_release) == 2) unpark(word_);
  }

 private:
  Word word_{0};  // 0 free, 1 held, 2 held and waited for
};

class Doorbell {
 public:
  std::uint32_t seen() const noexcept { return word_.load(std::memory_order_acquire); }
  // Release: what was written before ring() is visible after a wait() that sees it. Costs a syscall only if someone
  // sleeps.
  void ring() noexcept {
    word_.fetch_add(1, std::memory_order_acq_rel);
    // seq_cst pairs with wait(): either the sleeper is seen here, or the sleeper sees the new count.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_relaxed) != 0) unpark(word_);
  }
  void wait(std::uint32_t seen, std::uint64_t timeout_ns = 0) noexcept {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    if (word_.load(std::memory_order_seq_cst) == seen) park(word_, seen, timeout_ns);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  Word word_{0};
  std::atomic<std::uint32_t> sleepers_{0};
};

}  // namespace hmmrt
