// SPDX-License-Identifier: MIT
// Histogram: counts of 64-bit values in log-linear buckets (16 per power of two, so a percentile is within 6.25 %).
// add() is one relaxed increment; reading while others add gives a recent, possibly torn, picture.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

namespace hmmrt {

class Histogram {
 public:
  void add(std::uint64_t value) noexcept {
    buckets_[bucket(value)].fetch_add(1, std::memory_order_relaxed);
    std::uint64_t seen = max_.load(std::memory_order_relaxed);
    while (value > seen && !max_.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
    }
  }

  void reset() noexcept {
    for (auto& b : buckets_) b.store(0, std::memory_order_relaxed);
    max_.store(0, std::memory_order_relaxed);
  }

  std::uint64_t count() const noexcept {
    std::uint64_t n = 0;
    for (const auto& b : buckets_) n += b.load(std::memory_order_relaxed);
    return n;
  }

  std::uint64_t max() const noexcept { return max_.load(std::memory_order_relaxed); }

  // The value below or at which `percent` of the samples lie; 0 when empty.
  std::uint64_t percentile(unsigned percent) const noexcept {
    const std::uint64_t total = count();
    const std::uint64_t rank = (total * percent + 99) / 100;
    std::uint64_t below = 0;
    for (unsigned i = 0; i < k_buckets && rank != 0; ++i) {
      below += buckets_[i].load(std::memory_order_relaxed);
      if (below >= rank) return upper_bound(i) < max() ? upper_bound(i) : max();
    }
    return max();
  }

 private:
  static constexpr unsigned k_sub_bits = 4;
  static constexpr unsigned k_sub = 1u << k_sub_bits;
  static constexpr unsigned k_buckets = (64 - k_sub_bits + 1) * k_sub;

  static constexpr unsigned bucket(std::uint64_t v) {
    if (v < k_sub) return static_cast<unsigned>(v);
    const unsigned exponent = static_cast<unsigned>(std::bit_width(v)) - 1 - k_sub_bits;
    return (exponent + 1) * k_sub + static_cast<unsigned>((v >> exponent) & (k_sub - 1));
  }
  static constexpr std::uint64_t upper_bound(unsigned i) {
    if (i < k_sub) return i;
    const unsigned exponent = i / k_sub - 1;
    return ((std::uint64_t{k_sub} + i % k_sub + 1) << exponent) - 1;
  }

  std::array<std::atomic<std::uint64_t>, k_buckets> buckets_{};
  std::atomic<std::uint64_t> max_{0};
};

}  // namespace hmmrt
