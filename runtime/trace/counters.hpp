// SPDX-License-Identifier: MIT
// Counters: what happened, per context, per device and per range. One array of relaxed counters indexed by Count; the
// three traffic tables are indexed by cause. Tally adds one event to every set of counters that it concerns.
// Thread: any. Reading while others add gives a recent picture; each counter alone is exact.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "space/page.hpp"

namespace hmmrt {

enum class Count : std::uint8_t {
  cpu_faults,
  cpu_write_protect_faults,
  device_faults,
  fault_batches,
  duplicate_faults,
  stale_faults,
  cancelled_faults,
  pages_to_device,
  pages_to_host,
  pages_peer,
  pages_duplicated,
  duplicates_collapsed,
  pages_left_clean,
  pages_mapped_remote,
  evictions,
  pages_evicted,
  refaults,
  ping_pong_detections,
  throttles,
  pins,
  unpins,
  exclusive_grants,
  exclusive_revokes,
  pages_busy,
  pages_pinned,
  pages_gone,
  pages_forbidden,
  invalidations,
  spurious_invalidations,
  retries,
  hints,
  hints_without_effect,
  attribute_changes,
  attribute_changes_refused,
  attribute_changes_limited,
  last_
};

// Which way bytes went.
enum class Way : std::uint8_t { to_device, to_host, peer };

class Counters {
 public:
  void add(Count c, std::uint64_t n = 1) noexcept { counts_[index(c)].fetch_add(n, std::memory_order_relaxed); }
  void add_bytes(Way way, Cause cause, std::uint64_t bytes) noexcept {
    bytes_[index(way)][index(cause)].fetch_add(bytes, std::memory_order_relaxed);
  }
  std::uint64_t get(Count c) const noexcept { return counts_[index(c)].load(std::memory_order_relaxed); }
  std::uint64_t bytes(Way way, Cause cause) const noexcept {
    return bytes_[index(way)][index(cause)].load(std::memory_order_relaxed);
  }
  void reset() noexcept {
    for (auto& c : counts_) c.store(0, std::memory_order_relaxed);
    for (auto& way : bytes_) {
      for (auto& b : way) b.store(0, std::memory_order_relaxed);
    }
  }

 private:
  template <class E>
  static constexpr std::size_t index(E e) {
    return static_cast<std::size_t>(e);
  }
  std::array<std::atomic<std::uint64_t>, static_cast<std::size_t>(Count::last_)> counts_{};
  std::array<std::array<std::atomic<std::uint64_t>, k_causes>, 3> bytes_{};
};

// The counters one event concerns; null members are skipped.
struct Tally {
  Counters* context = nullptr;
  Counters* device = nullptr;
  Counters* range = nullptr;

  void add(Count c, std::uint64_t n = 1) const noexcept {
    if (n == 0) return;
    if (context != nullptr) context->add(c, n);
    if (device != nullptr) device->add(c, n);
    if (range != nullptr) range->add(c, n);
  }
  void add_bytes(Way way, Cause cause, std::uint64_t bytes) const noexcept {
    if (bytes == 0) return;
    if (context != nullptr) context->add_bytes(way, cause, bytes);
    if (device != nullptr) device->add_bytes(way, cause, bytes);
    if (range != nullptr) range->add_bytes(way, cause, bytes);
  }
};

}  // namespace hmmrt
