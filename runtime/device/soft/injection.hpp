// SPDX-License-Identifier: MIT
// Failing on purpose. Each Injector counts its own calls, so "every third" means what it says; probabilities come from
// one seeded sequence. In deterministic mode the same seed gives the same failures. Thread: any.
#pragma once

#include <atomic>
#include <cstdint>

#include "device/soft/soft_device.hpp"

namespace hmmrt {

// splitmix64 (Steele, Lea, Flood 2014), atomically.
class SeededSequence {
 public:
  explicit SeededSequence(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    constexpr std::uint64_t k_step = 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_.fetch_add(k_step, std::memory_order_relaxed) + k_step;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

 private:
  std::atomic<std::uint64_t> state_;
};

class Injector {
 public:
  Injector(const SoftChance& chance, SeededSequence& sequence) : chance_(chance), sequence_(sequence) {}

  bool strike() {
    if (chance_.every == 0 && chance_.probability <= 0) return false;
    bool hit = chance_.every != 0 && (calls_.fetch_add(1, std::memory_order_relaxed) + 1) % chance_.every == 0;
    if (!hit && chance_.probability > 0) {
      hit = static_cast<double>(sequence_.next() >> 11) * 0x1p-53 < chance_.probability;
    }
    if (hit) hits_.fetch_add(1, std::memory_order_relaxed);
    return hit;
  }
  std::uint64_t hits() const { return hits_.load(std::memory_order_relaxed); }

 private:
  const SoftChance chance_;
  SeededSequence& sequence_;
  std::atomic<std::uint64_t> calls_{0};
  std::atomic<std::uint64_t> hits_{0};
};

}  // namespace hmmrt
