// SPDX-License-Identifier: MIT
// FaultBatch: what one fetch of a fault buffer returned, deduplicated and grouped by block in ascending order.
// Pure: no locks, no system calls, no allocation after construction. Thread: one.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "device/device.hpp"
#include "policy/policy.hpp"

namespace hmmrt {

struct BatchGroup {
  std::uintptr_t base = 0;
  FaultGroup faults;
  std::uint64_t oldest_ns = 0;  // time of the group's first fault
  PageMask protected_write;     // CPU only: faults on present, write-protected pages
};

class FaultBatch {
 public:
  static constexpr std::size_t k_capacity = 256;

  void clear();
  // Adds one fault; false when a new block no longer fits.
  bool add(Processor processor, std::uintptr_t addr, Access access, std::uint64_t time_ns,
           bool protected_write = false);
  // Orders the groups. Call once, after the last add().
  void sort();

  std::size_t size() const { return order_size_; }
  BatchGroup& group(std::size_t i) { return groups_[order_[i]]; }
  std::uint32_t faults() const { return faults_; }
  std::uint32_t duplicates() const { return duplicates_; }

 private:
  static constexpr std::size_t k_buckets = 512;
  std::array<BatchGroup, k_capacity> groups_;
  std::array<std::uint16_t, k_capacity> order_{};
  std::array<std::uint16_t, k_buckets> buckets_{};  // index + 1 of the group; 0 empty
  std::size_t order_size_ = 0;
  std::size_t last_ = 0;  // the group of the previous fault: neighbours fault together
  std::uint32_t faults_ = 0;
  std::uint32_t duplicates_ = 0;
};

}  // namespace hmmrt
