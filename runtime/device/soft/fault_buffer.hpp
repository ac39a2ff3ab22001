// SPDX-License-Identifier: MIT
// Bounded buffers a device fills and the fault service drains: faults, and access-counter reports.
//
// push() never blocks and never allocates; when the buffer is full it counts and returns false. The doorbell rings when
// the buffer turns non-empty: `size_` counts published entries, and whoever raises it from 0 to 1 rings. fetch() goes on
// until the array is full or size_ was seen not above 0, so an entry is either in the array or will ring.
// Thread: push any, fetch any.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <span>

#include "space/park.hpp"

namespace hmmrt {

template <class T>
class BoundedBuffer {
 public:
  BoundedBuffer(std::uint32_t entries, Doorbell& bell)
      : mask_(std::bit_ceil(entries < 2 ? 2u : entries) - 1), cells_(std::make_unique<Cell[]>(mask_ + 1)), bell_(bell) {
    for (std::uint32_t i = 0; i <= mask_; ++i) cells_[i].turn.store(i, std::memory_order_relaxed);
  }

  std::uint32_t capacity() const { return mask_ + 1; }
  std::uint64_t overflows() const { return overflows_.load(std::memory_order_relaxed); }

  bool push(const T& value) {
    // A cell's turn says whose it is: position p may be written when turn == p, read when turn == p + 1.
    std::uint32_t p = tail_.load(std::memory_order_relaxed);
    for (;;) {
      Cell& cell = cells_[p & mask_];
      const auto ahead = static_cast<std::int32_t>(cell.turn.load(std::memory_order_acquire) - p);
      if (ahead < 0) return drop();
      if (ahead == 0 && tail_.compare_exchange_weak(p, p + 1, std::memory_order_relaxed)) {
        cell.value = value;
        cell.turn.store(p + 1, std::memory_order_release);
        break;
      }
      if (ahead > 0) p = tail_.load(std::memory_order_relaxed);
    }
    if (size_.fetch_add(1, std::memory_order_acq_rel) == 0) bell_.ring();
    return true;
  }

  // Counts an entry as lost. Always false. Rings: what was in the buffer may have been fetched, and the count looked at,
  // before this one was added to it.
  bool drop() {
    overflows_.fetch_add(1, std::memory_order_relaxed);
    bell_.ring();
    return false;
  }

  std::size_t fetch(std::span<T> out) {
    std::size_t n = 0;
    while (n < out.size()) {
      std::size_t got = 0;
      while (n < out.size() && pop(out[n])) ++n, ++got;
      const auto before = size_.fetch_sub(static_cast<std::int32_t>(got), std::memory_order_acq_rel);
      if (before - static_cast<std::int32_t>(got) <= 0) break;
      if (got == 0) {  // published entries behind one that is still being written, whose writer will not ring
        bell_.ring();
        break;
      }
    }
    return n;
  }

 private:
  struct Cell {
    std::atomic<std::uint32_t> turn{0};
    T value{};
  };

  bool pop(T& out) {
    std::uint32_t p = head_.load(std::memory_order_relaxed);
    for (;;) {
      Cell& cell = cells_[p & mask_];
      const auto ahead = static_cast<std::int32_t>(cell.turn.load(std::memory_order_acquire) - (p + 1));
      if (ahead < 0) return false;
      if (ahead == 0 && head_.compare_exchange_weak(p, p + 1, std::memory_order_relaxed)) {
        out = cell.value;
        cell.turn.store(p + mask_ + 1, std::memory_order_release);
        return true;
      }
      if (ahead > 0) p = head_.load(std::memory_order_relaxed);
    }
  }

  const std::uint32_t mask_;
  const std::unique_ptr<Cell[]> cells_;
  Doorbell& bell_;
  alignas(64) std::atomic<std::uint32_t> tail_{0};
  alignas(64) std::atomic<std::uint32_t> head_{0};
  alignas(64) std::atomic<std::int32_t> size_{0};
  std::atomic<std::uint64_t> overflows_{0};
};

}  // namespace hmmrt
