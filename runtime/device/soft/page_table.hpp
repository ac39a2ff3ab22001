// SPDX-License-Identifier: MIT
// The software GPU's page table: block number (26 bits, 9 + 9 + 8) -> leaf of 512 entries. Where a whole block is one
// contiguous run with the same rights, the leaf's `huge` entry stands for all of them.
//
// Invariants
//   - Leaves and nodes are made on the first map() of their block, never move and are never freed: a unit may keep
//     leaf pointers for ever. They come from the table's own arena, not from malloc.
//   - huge != 0: the 512 entries are zero or about to be. A reader takes huge, then the entry, then huge again before
//     it calls a page missing, so that turning one into the other never looks like a miss.
//   - A dirty bit is set inside the access section, before the first write through a translation, and the entry is
//     read again after (mark_dirty). unmap() clears entries, fences, then collects: so either the writer finds its
//     entry gone and does not write, or unmap() reports the page. A late bit of the former kind is cleared by the
//     next map(), which by the order of taking away comes after a quiesce().
// Thread: readers any; map and unmap any, one at a time per block (the block's claim).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "space/page.hpp"
#include "space/page_mask.hpp"

namespace hmmrt {

// An entry is the page's address in this process and flags in the low 12 bits; 0 is none.
using Pte = std::uint64_t;
constexpr Pte k_pte_read = 1;
constexpr Pte k_pte_write = 2;
constexpr Pte k_pte_remote = 4;                // not this device's memory
constexpr Pte k_pte_host = 8;                  // system memory
constexpr unsigned k_pte_processor_shift = 4;  // bits 4..7: where it is resident
constexpr Pte k_pte_address = ~Pte{0xfff};

constexpr bool pte_allows(Pte e, Access a) { return (e & (a == Access::read ? k_pte_read : k_pte_write)) != 0; }

struct PageTableLeaf {
  std::atomic<Pte> huge{0};
  std::atomic<std::uint64_t> last_use{0};      // tick of the latest TLB fill
  std::atomic<std::uint32_t> remote_count{0};  // remote accesses since the last report
  PageMask present;                            // pages whose entry is not zero; map/unmap only
  std::array<std::atomic<std::uint64_t>, PageMask::k_words> dirty{};
  std::array<std::atomic<Pte>, k_block_pages> entries{};

  // The entry of a page; 0 when it has none.
  Pte entry(unsigned page) const {
    if (const Pte h = huge.load(std::memory_order_acquire); h != 0) return h + Pte{page} * k_page_size;
    if (const Pte e = entries[page].load(std::memory_order_acquire); e != 0) return e;
    const Pte h = huge.load(std::memory_order_acquire);
    return h != 0 ? h + Pte{page} * k_page_size : 0;
  }

  // Marks [first, first + count) written. True when a bit was new: the caller must read its entries again before it
  // uses them.
  bool mark_dirty(unsigned first, unsigned count);
};

class PageTable {
 public:
  PageTable() = default;
  ~PageTable();
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  // Null when the block was never mapped.
  PageTableLeaf* find(std::uintptr_t addr) const;
  // As find, but makes it.
  PageTableLeaf& make(std::uintptr_t addr);

  // Maps [first, first + count) of the leaf: page first gets `pte`, each next one 4 KiB on.
  static void map(PageTableLeaf& leaf, unsigned first, unsigned count, Pte pte);
  // Removes the pages' entries; returns those of them that were written.
  static PageMask unmap(PageTableLeaf& leaf, const PageMask& pages);

  std::uint64_t metadata_bytes() const { return used_.load(std::memory_order_relaxed); }

 private:
  struct Low {
    std::array<std::atomic<PageTableLeaf*>, 256> leaves{};
  };
  struct Middle {
    std::array<std::atomic<Low*>, 512> lows{};
  };
  struct Slab {
    Slab* next;
    std::size_t bytes;
  };

  static void split(PageTableLeaf& leaf);
  template <class T>
  T& child(std::atomic<T*>& slot);
  void* carve(std::size_t bytes);

  std::array<std::atomic<Middle*>, 512> root_{};
  std::mutex mutex_;  // making nodes
  Slab* slabs_ = nullptr;
  std::byte* cursor_ = nullptr;
  std::byte* end_ = nullptr;
  std::atomic<std::uint64_t> used_{sizeof(root_)};
};

}  // namespace hmmrt
