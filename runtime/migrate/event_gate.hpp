// SPDX-License-Identifier: MIT
// EventGate orders two things that must not overlap: reading the host's events (which lets the application's madvise or
// munmap go on) and delivering contents to the CPU after checking that no such event concerns them. Without it a page
// could be delivered, with its old contents, just after the application dropped it and before anyone here knew.
// Many deliver at once; one reads. Both sections are short and wait only for the kernel.
#pragma once

#include <atomic>
#include <cstdint>

#include "space/park.hpp"

namespace hmmrt {

class EventGate {
 public:
  void begin_delivery() noexcept {
    for (;;) {
      delivering_.fetch_add(1, std::memory_order_seq_cst);
      // seq_cst pairs with begin_reading(): of the two sides, at least one sees the other.
      const std::uint32_t reading = reading_.load(std::memory_order_seq_cst);
      if (reading % 2 == 0) return;
      end_delivery();
      park(reading_, reading);
    }
  }
  void end_delivery() noexcept {
    if (delivering_.fetch_sub(1, std::memory_order_seq_cst) == 1 && reading_.load(std::memory_order_seq_cst) % 2 != 0) {
      unpark(delivering_);
    }
  }

  // Event thread only.
  void begin_reading() noexcept {
    reading_.fetch_add(1, std::memory_order_seq_cst);
    for (std::uint32_t n = delivering_.load(std::memory_order_seq_cst); n != 0;
         n = delivering_.load(std::memory_order_seq_cst)) {
      park(delivering_, n, 1'000'000);
    }
  }
  void end_reading() noexcept {
    reading_.fetch_add(1, std::memory_order_seq_cst);
    unpark(reading_);
  }

  // On return, every event that the event thread had begun to read before the call has been noticed.
  void wait_for_reader() const noexcept {
    const std::uint32_t seen = reading_.load(std::memory_order_seq_cst);
    if (seen % 2 == 0) return;
    while (reading_.load(std::memory_order_seq_cst) == seen) park(reading_, seen, 1'000'000);
  }

 private:
  Word delivering_{0};
  Word reading_{0};  // odd while reading
};

class DeliveryGuard {
 public:
  explicit DeliveryGuard(EventGate& gate) noexcept : gate_(gate) { gate_.begin_delivery(); }
  ~DeliveryGuard() { gate_.end_delivery(); }
  DeliveryGuard(const DeliveryGuard&) = delete;
  DeliveryGuard& operator=(const DeliveryGuard&) = delete;

 private:
  EventGate& gate_;
};

}  // namespace hmmrt
