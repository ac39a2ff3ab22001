// SPDX-License-Identifier: MIT
// AddressSpace: which addresses are managed, and the Block of each. Blocks are found without a lock (a two-level radix
// over 47-bit addresses) and live as long as the space; ranges are kept in a map under a reader-writer lock that only
// API calls and rare statistics take.
// Thread: any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <shared_mutex>
#include <vector>

#include "space/block.hpp"
#include "space/extent.hpp"
#include "space/slab.hpp"
#include "space/status.hpp"
#include "trace/counters.hpp"

namespace hmmrt {

// One allocation or registration.
struct Range {
  std::uintptr_t addr = 0;
  std::size_t bytes = 0;
  bool registered = false;
  Counters counters;
  std::uintptr_t end() const { return addr + bytes; }
};

class AddressSpace {
 public:
  AddressSpace();
  ~AddressSpace();
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;

  // The block that contains `addr`; null when no page near it was ever managed. Lock-free.
  Block* find(std::uintptr_t addr) const noexcept;

  // The same, made if there is none; null when out of memory or not an address of this process.
  Block* ensure(std::uintptr_t addr) { return obtain(addr); }

  // Makes the blocks of [addr, addr + bytes). Errors: no memory.
  Status make_blocks(std::uintptr_t addr, std::size_t bytes);
  // Records [addr, addr + bytes), page aligned, as a range; its blocks exist, and the caller makes their pages valid. Errors:
  // overlap (ALREADY_MANAGED). Claims of all its blocks held, here and in the next two.
  Status add_range(std::uintptr_t addr, std::size_t bytes, bool registered, Range** out);
  // Takes a range out of the ranges: who counts for it does so under a claim of one of its blocks, so from now on nobody
  // does. Null: it was cut meanwhile, see below.
  std::unique_ptr<Range> forget_range(Range* range);
  // Takes [addr, addr + bytes) out of the ranges, for mremap, and returns what it was of them, ascending. What is left of a
  // range that it meets becomes a range of its own, or two, added to `left`: the caller makes their blocks forget the old
  // one. The Range itself stays in memory until the space goes, because anybody may be using it.
  std::vector<Extent> cut(std::uintptr_t addr, std::size_t bytes, std::vector<Extent>* left);

  // The range that contains `addr`, or null. Valid until that range is removed.
  Range* find_range(std::uintptr_t addr) const;
  // True when every byte of [addr, addr + bytes) is managed.
  bool managed(std::uintptr_t addr, std::size_t bytes) const;
  // True when some byte of it belongs to a range.
  bool overlaps(std::uintptr_t addr, std::size_t bytes) const;
  std::uint64_t managed_bytes() const noexcept { return managed_bytes_.load(std::memory_order_relaxed); }

  // Calls fn(block, pages) for each block that meets [addr, addr + bytes), ascending; `pages` are those inside.
  template <class Fn>
  void for_each_block(std::uintptr_t addr, std::size_t bytes, Fn&& fn) const {
    const std::uintptr_t end = addr + bytes;
    for (std::uintptr_t base = block_floor(addr); base < end; base += k_block_size) {
      Block* block = find(base);
      if (block == nullptr) continue;
      const std::uintptr_t from = addr > base ? addr : base;
      const std::uintptr_t to = end < base + k_block_size ? end : base + k_block_size;
      fn(*block, PageMask::range(static_cast<unsigned>((from - base) >> k_page_shift),
                                 static_cast<unsigned>((page_ceil(to) - page_floor(from)) >> k_page_shift)));
    }
  }
  std::vector<Range*> ranges() const;
  // Counts changes of what is managed and of the rights to it; who has made one says so when its blocks show it.
  std::uint64_t changes() const { return changes_.load(std::memory_order_acquire); }
  void note_change() { changes_.fetch_add(1, std::memory_order_acq_rel); }

  // Every block ever made, in no order; for victim choice. Index < block_count().
  std::size_t block_count() const noexcept { return block_count_.load(std::memory_order_acquire); }

  // Lazily made parts of a block; null when out of memory. Claim held.
  DevicePart* obtain_part(Block& block, Processor device);
  BlockAdvice* obtain_advice(Block& block);

  // The counters of the range at `addr` within `block`; null when none. Claim held.
  Counters* range_counters(const Block& block, std::uintptr_t addr) const;

  std::uint64_t metadata_bytes() const;

 private:
  static constexpr unsigned k_low_bits = 14, k_high_bits = 47 - k_block_shift - k_low_bits;
  struct Leaf {
    std::array<std::atomic<Block*>, std::size_t{1} << k_low_bits> blocks{};
  };

  Block* obtain(std::uintptr_t addr);

  std::array<std::atomic<Leaf*>, std::size_t{1} << k_high_bits> leaves_{};
  std::atomic<std::size_t> leaf_count_{0};
  std::atomic<std::size_t> block_count_{0};
  std::atomic<std::uint64_t> changes_{0};
  Slab<Block> blocks_;
  Slab<DevicePart> parts_;
  Slab<BlockAdvice> advice_;
  SpinLock grow_lock_;

  mutable std::shared_mutex ranges_lock_;
  std::map<std::uintptr_t, std::unique_ptr<Range>> ranges_;
  std::vector<std::unique_ptr<Range>> retired_;
  std::atomic<std::uint64_t> managed_bytes_{0};
};

}  // namespace hmmrt
