// SPDX-License-Identifier: MIT
#include "device/soft/page_table.hpp"

#include <sys/mman.h>

#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace hmmrt {

namespace {
constexpr std::size_t k_slab_bytes = std::size_t{1} << 20;
constexpr std::uintptr_t k_blocks = std::uintptr_t{1} << 26;  // of a 47-bit user address space
}  // namespace

bool PageTableLeaf::mark_dirty(unsigned first, unsigned count) {
  bool fresh = false;
  while (count != 0) {
    const unsigned bit = first % 64;
    const unsigned n = count < 64 - bit ? count : 64 - bit;
    const std::uint64_t mask = (n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1) << bit;
    std::atomic<std::uint64_t>& word = dirty[first / 64];
    // A bit that is set already needs no second look at the entry: unmap() collects it after clearing the entry.
    if ((word.load(std::memory_order_acquire) & mask) != mask) {
      word.fetch_or(mask, std::memory_order_seq_cst);
      fresh = true;
    }
    first += n;
    count -= n;
  }
  // Bits before entries, against unmap()'s entries before bits.
  if (fresh) std::atomic_thread_fence(std::memory_order_seq_cst);
  return fresh;
}

PageTable::~PageTable() {
  while (slabs_ != nullptr) {
    Slab* next = slabs_->next;
    munmap(slabs_, slabs_->bytes);
    slabs_ = next;
  }
}

// Zeroed memory, 64-byte aligned, that lives as long as the table. Requires mutex_.
void* PageTable::carve(std::size_t bytes) {
  bytes = (bytes + 63) & ~std::size_t{63};
  if (static_cast<std::size_t>(end_ - cursor_) < bytes) {
    void* m = mmap(nullptr, k_slab_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) {
      // map() has no way to fail, and a page the runtime believes mapped must be.
      std::fputs("hmmrt: no system memory for the software GPU's page table\n", stderr);
      std::abort();
    }
    slabs_ = new (m) Slab{slabs_, k_slab_bytes};
    cursor_ = static_cast<std::byte*>(m) + 64;
    end_ = static_cast<std::byte*>(m) + k_slab_bytes;
  }
  void* p = cursor_;
  cursor_ += bytes;
  used_.fetch_add(bytes, std::memory_order_relaxed);
  return p;
}

template <class T>
T& PageTable::child(std::atomic<T*>& slot) {
  if (T* t = slot.load(std::memory_order_acquire); t != nullptr) return *t;
  const std::lock_guard lock(mutex_);
  T* t = slot.load(std::memory_order_relaxed);
  if (t == nullptr) {
    t = new (carve(sizeof(T))) T();
    slot.store(t, std::memory_order_release);
  }
  return *t;
}

PageTableLeaf* PageTable::find(std::uintptr_t addr) const {
  const std::uintptr_t block = addr >> k_block_shift;
  if (block >= k_blocks) return nullptr;
  const Middle* middle = root_[block >> 17].load(std::memory_order_acquire);
  if (middle == nullptr) return nullptr;
  const Low* low = middle->lows[(block >> 8) & 511].load(std::memory_order_acquire);
  return low != nullptr ? low->leaves[block & 255].load(std::memory_order_acquire) : nullptr;
}

PageTableLeaf& PageTable::make(std::uintptr_t addr) {
  const std::uintptr_t block = addr >> k_block_shift;
  assert(block < k_blocks);
  Middle& middle = child(root_[block >> 17]);
  Low& low = child(middle.lows[(block >> 8) & 511]);
  return child(low.leaves[block & 255]);
}

// Turns a huge entry into 512: entries first, so that a reader who finds huge gone finds them.
void PageTable::split(PageTableLeaf& leaf) {
  const Pte h = leaf.huge.load(std::memory_order_relaxed);
  for (unsigned i = 0; i < k_block_pages; ++i) {
    leaf.entries[i].store(h + Pte{i} * k_page_size, std::memory_order_relaxed);
  }
  leaf.present = PageMask::all();
  leaf.huge.store(0, std::memory_order_release);
}

void PageTable::map(PageTableLeaf& leaf, unsigned first, unsigned count, Pte pte) {
  const bool was_huge = leaf.huge.load(std::memory_order_relaxed) != 0;
  const PageMask range = PageMask::range(first, count);
  // Pages that had no translation start clean; a replaced translation keeps its bit until unmap() reports it.
  if (!was_huge) {
    const PageMask fresh = range - leaf.present;
    for (unsigned w = 0; w < PageMask::k_words; ++w) {
      const std::uint64_t bits = fresh.word(w);
      if ((leaf.dirty[w].load(std::memory_order_relaxed) & bits) != 0) {
        leaf.dirty[w].fetch_and(~bits, std::memory_order_relaxed);
      }
    }
  }
  if (count == k_block_pages) {
    leaf.huge.store(pte, std::memory_order_release);
    leaf.present.for_each([&](unsigned i) { leaf.entries[i].store(0, std::memory_order_release); });
    leaf.present = PageMask();
    return;
  }
  if (was_huge) split(leaf);
  for (unsigned i = 0; i < count; ++i) {
    leaf.entries[first + i].store(pte + Pte{i} * k_page_size, std::memory_order_release);
  }
  leaf.present |= range;
}

PageMask PageTable::unmap(PageTableLeaf& leaf, const PageMask& pages) {
  PageMask removed = pages;
  if (leaf.huge.load(std::memory_order_relaxed) != 0 && !pages.full()) split(leaf);
  if (leaf.huge.load(std::memory_order_relaxed) != 0) {
    leaf.huge.store(0, std::memory_order_relaxed);
  } else {
    removed &= leaf.present;
    removed.for_each([&](unsigned i) { leaf.entries[i].store(0, std::memory_order_relaxed); });
    leaf.present = leaf.present - removed;
  }
  // Entries before bits: see the invariants.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  PageMask dirty;
  for (unsigned w = 0; w < PageMask::k_words; ++w) {
    const std::uint64_t bits = leaf.dirty[w].load(std::memory_order_acquire) & removed.word(w);
    if (bits != 0) leaf.dirty[w].fetch_and(~bits, std::memory_order_acq_rel);
    dirty.set_word(w, bits);
  }
  return dirty;
}

}  // namespace hmmrt
