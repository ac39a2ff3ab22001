// SPDX-License-Identifier: MIT
// Heap: managed allocations carved from few, large arenas of the host mirror.
//
//   up to 2 KiB      a slot of a chunk: multiples of 256 bytes, 256-byte aligned, chunks of 64 KiB, one size each
//   up to 2 MiB      whole pages
//   from 2 MiB       whole pages, 2 MiB aligned
//
// Every allocation of pages, and every chunk, is one Range of the address space. Memory handed out is zero: fresh pages
// by nature, recycled ones because they are given back to the system first, recycled slots by clearing.
// All bookkeeping is outside managed memory. What the application unmapped itself is never handed out again.
//
// Thread: any. The heap's lock is never held while managed memory is touched, so a CPU fault never waits for it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "space/page.hpp"
#include "space/status.hpp"

namespace hmmrt {

// What the heap needs of the house.
class HeapBackend {
 public:
  virtual ~HeapBackend() = default;
  // 2 MiB-aligned address space, a multiple of 2 MiB long. Null: see failure_detail().
  virtual std::byte* allocate_arena(std::size_t bytes) = 0;
  // Of an arena, or of what is left of one: whole pages, of no range.
  virtual void release_arena(std::byte* addr, std::size_t bytes) = 0;
  virtual Status manage(std::uintptr_t addr, std::size_t bytes) = 0;
  // Forgets the range and its contents; on return the pages are untouched zeros again. `*reusable` false: the
  // application unmapped some of it, and the rest has been released.
  virtual Status unmanage(std::uintptr_t addr, std::size_t bytes, bool* reusable) = 0;
};

class Heap {
 public:
  Heap(HeapBackend& backend, std::size_t arena_bytes);
  ~Heap();
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  // bytes > 0.
  Status allocate(std::size_t bytes, void** out);

  // Freeing is in two steps, so that the caller can wait for kernels in between. begin_free() finds the allocation and
  // marks it: a second free of it is reported. Errors: NOT_MANAGED, INVALID_VALUE; nothing is marked then.
  struct Freeing {
    std::uintptr_t addr = 0;
    std::size_t bytes = 0;  // of the allocation, rounded up to what it occupies
  };
  Status begin_free(const void* ptr, Freeing* out);
  void cancel_free(const Freeing& freeing);
  Status finish_free(const Freeing& freeing);

  // Forgets every allocation: unmanages and releases all arenas.
  void release_all();

  // True when `addr` lies in an arena, allocated or not.
  bool owns(std::uintptr_t addr) const;
  std::vector<std::pair<std::uintptr_t, std::size_t>> arenas() const;
  std::size_t allocations() const;
  std::uint64_t metadata_bytes() const;

 private:
  static constexpr std::size_t k_slot_unit = 256;
  static constexpr std::size_t k_largest_slot = 2048;
  static constexpr std::size_t k_classes = k_largest_slot / k_slot_unit;
  static constexpr std::size_t k_chunk_bytes = std::size_t{64} << 10;
  static constexpr std::size_t k_most_slots = k_chunk_bytes / k_slot_unit;

  enum class SlotState : std::uint8_t { fresh, used, freeing, recycled };
  struct Chunk {
    std::uintptr_t addr = 0;
    std::size_t slot_bytes = 0;
    std::uint16_t used = 0;        // used or freeing
    std::uint16_t next_fresh = 0;  // slots from here on were never handed out
    std::vector<std::uint16_t> recycled;
    std::vector<SlotState> slots;
  };
  struct Run {
    std::size_t bytes = 0;
    bool freeing = false;
    std::unique_ptr<Chunk> chunk;  // of a chunk's pages
  };

  Status allocate_slot(std::size_t bytes, void** out);
  Status allocate_run(std::size_t bytes, std::uintptr_t* out);
  std::uintptr_t carve(std::size_t bytes, std::size_t alignment);
  void give_run(std::uintptr_t addr, std::size_t bytes);
  void add_free(std::uintptr_t addr, std::size_t bytes);
  std::vector<std::pair<std::uintptr_t, std::size_t>> trim();
  Status free_run(std::uintptr_t addr, std::size_t bytes);
  Status no_allocation(std::uintptr_t addr) const;

  HeapBackend& backend_;
  const std::size_t arena_bytes_;
  mutable std::mutex lock_;
  std::map<std::uintptr_t, std::size_t> arenas_;
  std::map<std::uintptr_t, std::size_t> free_;                   // free runs inside arenas, merged
  std::map<std::uintptr_t, Run> runs_;                           // allocated runs of pages
  std::array<std::set<std::uintptr_t>, k_classes> open_chunks_;  // chunks with a free slot, by size class
  std::size_t slots_used_ = 0;
};

}  // namespace hmmrt
