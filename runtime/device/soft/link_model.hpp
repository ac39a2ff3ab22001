// SPDX-License-Identifier: MIT
// Time on a modelled interconnect, and sleeping to a point of it. A Timeline is one engine that does one thing at a
// time: work starts when it is asked for or when the engine is free, whichever is later.
// Thread: any.
#pragma once

#include <atomic>
#include <cstdint>

#include "space/clock.hpp"

namespace hmmrt {

class Timeline {
 public:
  // Takes the engine for `duration_ns`; returns when that ends.
  std::uint64_t reserve(std::uint64_t now_ns, std::uint64_t duration_ns) {
    std::uint64_t free = free_.load(std::memory_order_relaxed);
    std::uint64_t end = 0;
    do {
      end = (free > now_ns ? free : now_ns) + duration_ns;
    } while (!free_.compare_exchange_weak(free, end, std::memory_order_relaxed));
    return end;
  }

 private:
  std::atomic<std::uint64_t> free_{0};
};

// Sleeps until `clock` (a monotonic one) says `deadline_ns`, within a few microseconds, without spinning.
void sleep_until(const Clock& clock, std::uint64_t deadline_ns);
// Lets this thread's timed waits end on time rather than up to 50 us late.
void want_precise_timers();

}  // namespace hmmrt
