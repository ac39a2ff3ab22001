// SPDX-License-Identifier: MIT
#include "space/address_space.hpp"

#include <sys/mman.h>

#include <cinttypes>
#include <mutex>
#include <new>

namespace hmmrt {

AddressSpace::AddressSpace() = default;

AddressSpace::~AddressSpace() {
  for (auto& slot : leaves_) {
    if (Leaf* leaf = slot.load(std::memory_order_relaxed); leaf != nullptr) munmap(leaf, sizeof(Leaf));
  }
}

Block* AddressSpace::find(std::uintptr_t addr) const noexcept {
  const std::uintptr_t index = addr >> k_block_shift;
  if ((index >> k_low_bits) >= leaves_.size()) return nullptr;
  // acquire pairs with obtain(): a leaf and a block are complete before they can be found.
  const Leaf* leaf = leaves_[index >> k_low_bits].load(std::memory_order_acquire);
  if (leaf == nullptr) return nullptr;
  return leaf->blocks[index & ((1u << k_low_bits) - 1)].load(std::memory_order_acquire);
}

Block* AddressSpace::obtain(std::uintptr_t addr) {
  if (Block* block = find(addr); block != nullptr) return block;
  const std::uintptr_t index = addr >> k_block_shift;
  if ((index >> k_low_bits) >= leaves_.size()) return nullptr;
  const std::lock_guard guard(grow_lock_);
  auto& leaf_slot = leaves_[index >> k_low_bits];
  Leaf* leaf = leaf_slot.load(std::memory_order_relaxed);
  if (leaf == nullptr) {
    void* p = mmap(nullptr, sizeof(Leaf), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    leaf = new (p) Leaf;
    leaf_slot.store(leaf, std::memory_order_release);
    leaf_count_.fetch_add(1, std::memory_order_relaxed);
  }
  auto& slot = leaf->blocks[index & ((1u << k_low_bits) - 1)];
  Block* block = slot.load(std::memory_order_relaxed);
  if (block == nullptr) {
    block = blocks_.take(block_floor(addr));
    slot.store(block, std::memory_order_release);
    if (block != nullptr) block_count_.fetch_add(1, std::memory_order_release);
  }
  return block;
}

Status AddressSpace::make_blocks(std::uintptr_t addr, std::size_t bytes) {
  for (std::uintptr_t base = block_floor(addr); base < addr + bytes; base += k_block_size) {
    if (obtain(base) == nullptr) {
      return fail(HMMRT_ERROR_OUT_OF_MEMORY, "no memory for the bookkeeping of %zu managed bytes", bytes);
    }
  }
  return {};
}

Status AddressSpace::add_range(std::uintptr_t addr, std::size_t bytes, bool registered, Range** out) {
  const std::unique_lock guard(ranges_lock_);
  auto after = ranges_.upper_bound(addr);
  const Range* clash = nullptr;
  if (after != ranges_.end() && after->first < addr + bytes) clash = after->second.get();
  if (after != ranges_.begin() && std::prev(after)->second->end() > addr) clash = std::prev(after)->second.get();
  if (clash != nullptr) {
    return fail(HMMRT_ERROR_ALREADY_MANAGED,
                "[%#" PRIxPTR ", %#" PRIxPTR ") overlaps managed range [%#" PRIxPTR ", %#" PRIxPTR
                "); unregister or free that one first",
                addr, addr + bytes, clash->addr, clash->end());
  }
  auto owned = std::make_unique<Range>();
  Range* range = owned.get();
  range->addr = addr;
  range->bytes = bytes;
  range->registered = registered;
  ranges_.emplace(addr, std::move(owned));
  managed_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  *out = range;
  return {};
}

std::unique_ptr<Range> AddressSpace::forget_range(Range* range) {
  const std::unique_lock guard(ranges_lock_);
  const auto it = ranges_.find(range->addr);
  if (it == ranges_.end() || it->second.get() != range) return nullptr;
  managed_bytes_.fetch_sub(range->bytes, std::memory_order_relaxed);
  std::unique_ptr<Range> taken = std::move(it->second);
  ranges_.erase(it);
  return taken;
}

std::vector<Extent> AddressSpace::cut(std::uintptr_t addr, std::size_t bytes, std::vector<Extent>* left) {
  const std::uintptr_t end = addr + bytes;
  std::vector<Extent> taken;
  const std::unique_lock guard(ranges_lock_);
  auto it = ranges_.upper_bound(addr);
  if (it != ranges_.begin() && std::prev(it)->second->end() > addr) --it;
  while (it != ranges_.end() && it->first < end) {
    const Range& old = *it->second;
    const std::pair<std::uintptr_t, std::uintptr_t> pieces[] = {{old.addr, std::min(old.end(), addr)},
                                                                {std::max(old.addr, end), old.end()}};
    const std::uintptr_t from = std::max(old.addr, addr);
    taken.push_back({from, std::min(old.end(), end) - from});
    managed_bytes_.fetch_sub(old.bytes, std::memory_order_relaxed);
    const bool registered = old.registered;
    retired_.push_back(std::move(it->second));
    it = ranges_.erase(it);
    for (const auto& [begin, stop] : pieces) {
      if (begin >= stop) continue;
      auto piece = std::make_unique<Range>();
      piece->addr = begin;
      piece->bytes = stop - begin;
      piece->registered = registered;
      managed_bytes_.fetch_add(piece->bytes, std::memory_order_relaxed);
      left->push_back({begin, piece->bytes});
      ranges_.emplace(begin, std::move(piece));
    }
  }
  return taken;
}

Range* AddressSpace::find_range(std::uintptr_t addr) const {
  const std::shared_lock guard(ranges_lock_);
  auto after = ranges_.upper_bound(addr);
  if (after == ranges_.begin()) return nullptr;
  Range* range = std::prev(after)->second.get();
  return addr < range->end() ? range : nullptr;
}

bool AddressSpace::overlaps(std::uintptr_t addr, std::size_t bytes) const {
  const std::shared_lock guard(ranges_lock_);
  const auto after = ranges_.lower_bound(addr + bytes);
  return after != ranges_.begin() && std::prev(after)->second->end() > addr;
}

bool AddressSpace::managed(std::uintptr_t addr, std::size_t bytes) const {
  const std::shared_lock guard(ranges_lock_);
  const std::uintptr_t end = addr + bytes;
  auto it = ranges_.upper_bound(addr);
  if (it == ranges_.begin()) return false;
  for (--it; it != ranges_.end() && it->first <= addr; ++it) {
    if (it->second->end() <= addr) return false;
    addr = it->second->end();
    if (addr >= end) return true;
  }
  return false;
}

std::vector<Range*> AddressSpace::ranges() const {
  const std::shared_lock guard(ranges_lock_);
  std::vector<Range*> all;
  all.reserve(ranges_.size());
  for (const auto& [addr, range] : ranges_) all.push_back(range.get());
  return all;
}

DevicePart* AddressSpace::obtain_part(Block& block, Processor device) {
  DevicePart*& part = block.parts[device - 1u];
  if (part == nullptr) part = parts_.take(&block);
  return part;
}

BlockAdvice* AddressSpace::obtain_advice(Block& block) {
  if (block.advice == nullptr) block.advice = advice_.take();
  return block.advice;
}

Counters* AddressSpace::range_counters(const Block& block, std::uintptr_t addr) const {
  if (block.range != nullptr) return &block.range->counters;
  Range* range = find_range(addr);
  return range != nullptr ? &range->counters : nullptr;
}

std::uint64_t AddressSpace::metadata_bytes() const {
  return leaf_count_.load(std::memory_order_relaxed) * sizeof(Leaf) + blocks_.bytes() + parts_.bytes() +
         advice_.bytes();
}

}  // namespace hmmrt
