// SPDX-License-Identifier: MIT
// Time. Everything above the seams reads time from a Clock, so that tests and offline replay can run on virtual time.
#pragma once

#include <cstdint>
#include <ctime>

namespace hmmrt {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual std::uint64_t now_ns() const noexcept = 0;
};

// CLOCK_MONOTONIC. About 20 ns a read.
class MonotonicClock final : public Clock {
 public:
  std::uint64_t now_ns() const noexcept override {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(t.tv_nsec);
  }
};

// Time that moves only when told to. Thread: one.
class VirtualClock final : public Clock {
 public:
  std::uint64_t now_ns() const noexcept override { return now_; }
  void advance(std::uint64_t ns) { now_ += ns; }

 private:
  std::uint64_t now_ = 1;
};

}  // namespace hmmrt
