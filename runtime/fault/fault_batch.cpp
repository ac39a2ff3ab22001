// SPDX-License-Identifier: MIT
#include "fault/fault_batch.hpp"

#include <algorithm>

namespace hmmrt {

void FaultBatch::clear() {
  for (std::size_t i = 0; i < order_size_; ++i) groups_[i] = BatchGroup{};
  if (order_size_ != 0) buckets_.fill(0);
  order_size_ = last_ = 0;
  faults_ = duplicates_ = 0;
}

bool FaultBatch::add(Processor processor, std::uintptr_t addr, Access access, std::uint64_t time_ns,
                     bool protected_write) {
  const std::uintptr_t base = block_floor(addr);
  std::size_t g = last_;
  if (order_size_ == 0 || groups_[g].base != base || groups_[g].faults.processor != processor) {
    std::size_t bucket = (base >> k_block_shift) * 0x9e3779b97f4a7c15u >> (64 - 9);
    while (buckets_[bucket] != 0) {
      const BatchGroup& other = groups_[buckets_[bucket] - 1u];
      if (other.base == base && other.faults.processor == processor) break;
      bucket = (bucket + 1) % k_buckets;
    }
    if (buckets_[bucket] == 0) {
      if (order_size_ == k_capacity) return false;
      g = order_size_++;
      groups_[g].base = base;
      groups_[g].faults.processor = processor;
      groups_[g].oldest_ns = time_ns;
      buckets_[bucket] = static_cast<std::uint16_t>(g + 1);
    } else {
      g = buckets_[bucket] - 1u;
    }
    last_ = g;
  }
  BatchGroup& group = groups_[g];
  const unsigned page = page_in_block(addr);
  ++faults_;
  ++group.faults.faults;
  group.oldest_ns = std::min(group.oldest_ns, time_ns);
  FaultGroup& f = group.faults;
  const bool known = f.read.test(page) || f.write.test(page) || f.atomic.test(page);
  if (known) ++duplicates_;
  // Each page is in one mask, that of its strongest access.
  if (access == Access::atomic) {
    f.atomic.set(page);
    f.write.clear(page);
    f.read.clear(page);
  } else if (access == Access::write && !f.atomic.test(page)) {
    f.write.set(page);
    f.read.clear(page);
  } else if (!known) {
    f.read.set(page);
  }
  if (protected_write) group.protected_write.set(page);
  return true;
}

void FaultBatch::sort() {
  for (std::size_t i = 0; i < order_size_; ++i) order_[i] = static_cast<std::uint16_t>(i);
  std::sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(order_size_),
            [&](std::uint16_t a, std::uint16_t b) { return groups_[a].base < groups_[b].base; });
}

}  // namespace hmmrt
