// SPDX-License-Identifier: MIT
#include "device/soft/link_model.hpp"

#include <sys/prctl.h>

#include <ctime>

namespace hmmrt {

void want_precise_timers() { prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); }

void sleep_until(const Clock& clock, std::uint64_t deadline_ns) {
  std::uint64_t now = clock.now_ns();
  if (now >= deadline_ns) return;
  const int slack = prctl(PR_GET_TIMERSLACK, 0UL, 0UL, 0UL, 0UL);
  want_precise_timers();
  for (; now < deadline_ns; now = clock.now_ns()) {
    const std::uint64_t left = deadline_ns - now;
    const timespec t{static_cast<time_t>(left / 1'000'000'000u), static_cast<long>(left % 1'000'000'000u)};
    nanosleep(&t, nullptr);
  }
  if (slack > 0) prctl(PR_SET_TIMERSLACK, static_cast<unsigned long>(slack), 0UL, 0UL, 0UL);
}

}  // namespace hmmrt
