// SPDX-License-Identifier: MIT
#include "api/heap.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstring>
#include <limits>

namespace hmmrt {

namespace {
std::byte* pointer(std::uintptr_t addr) { return reinterpret_cast<std::byte*>(addr); }
constexpr std::size_t k_most_bytes = std::size_t{1} << 46;  // half of the address space a process has
}  // namespace

Heap::Heap(HeapBackend& backend, std::size_t arena_bytes)
    : backend_(backend), arena_bytes_(block_ceil(std::max(arena_bytes, k_block_size))) {}

Heap::~Heap() { release_all(); }

Status Heap::allocate(std::size_t bytes, void** out) {
  if (bytes > k_most_bytes) {
    return fail(HMMRT_ERROR_OUT_OF_MEMORY, "%zu bytes are more than a process can address", bytes);
  }
  if (bytes <= k_largest_slot) return allocate_slot(bytes, out);
  std::uintptr_t addr = 0;
  if (const Status s = allocate_run(page_ceil(bytes), &addr); !s.ok()) return s;
  *out = pointer(addr);
  return {};
}

// ---- pages ----------------------------------------------------------------------------------------------------------

// Takes a run from the free ones, or 0. Requires lock_.
std::uintptr_t Heap::carve(std::size_t bytes, std::size_t alignment) {
  auto best = free_.end();
  std::uintptr_t best_at = 0;
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    const std::uintptr_t at = (it->first + alignment - 1) & ~(alignment - 1);
    if (at + bytes > it->first + it->second) continue;
    if (best != free_.end() && it->second >= best->second) continue;
    best = it;
    best_at = at;
  }
  if (best == free_.end()) return 0;
  const std::uintptr_t begin = best->first;
  const std::uintptr_t end = begin + best->second;
  free_.erase(best);
  if (best_at > begin) free_.emplace(begin, best_at - begin);
  if (best_at + bytes < end) free_.emplace(best_at + bytes, end - best_at - bytes);
  return best_at;
}

// Requires lock_. Runs of different arenas are not merged: arenas are released one by one.
void Heap::add_free(std::uintptr_t addr, std::size_t bytes) {
  auto after = free_.lower_bound(addr);
  if (after != free_.end() && after->first == addr + bytes && !arenas_.contains(after->first)) {
    bytes += after->second;
    after = free_.erase(after);
  }
  if (after != free_.begin() && !arenas_.contains(addr)) {
    auto before = std::prev(after);
    if (before->first + before->second == addr) {
      before->second += bytes;
      return;
    }
  }
  free_.emplace(addr, bytes);
}

// Takes out the arenas that are wholly free, except one of the usual size: to be released. Requires lock_.
std::vector<std::pair<std::uintptr_t, std::size_t>> Heap::trim() {
  std::vector<std::pair<std::uintptr_t, std::size_t>> unused;
  bool kept = false;
  for (auto it = arenas_.begin(); it != arenas_.end();) {
    const auto free = free_.find(it->first);
    const bool empty = free != free_.end() && free->second == it->second;
    if (!empty || (!kept && it->second == arena_bytes_)) {
      kept = kept || empty;
      ++it;
      continue;
    }
    free_.erase(free);
    unused.emplace_back(*it);
    it = arenas_.erase(it);
  }
  return unused;
}

Status Heap::allocate_run(std::size_t bytes, std::uintptr_t* out) {
  const std::size_t alignment = bytes >= k_block_size ? k_block_size : k_page_size;
  std::uintptr_t addr = 0;
  {
    std::unique_lock guard(lock_);
    for (addr = carve(bytes, alignment); addr == 0; addr = carve(bytes, alignment)) {
      guard.unlock();  // the backend waits for threads that may ask the heap something
      std::size_t size = std::max(arena_bytes_, static_cast<std::size_t>(block_ceil(bytes)));
      std::byte* arena = backend_.allocate_arena(size);
      if (arena == nullptr && size > block_ceil(bytes)) {  // less will do
        size = block_ceil(bytes);
        arena = backend_.allocate_arena(size);
      }
      if (arena == nullptr) return HMMRT_ERROR_OUT_OF_MEMORY;
      guard.lock();
      arenas_.emplace(reinterpret_cast<std::uintptr_t>(arena), size);
      free_.emplace(reinterpret_cast<std::uintptr_t>(arena), size);
    }
    runs_[addr].bytes = bytes;
  }
  if (const Status s = backend_.manage(addr, bytes); !s.ok()) {
    give_run(addr, bytes);
    return s;
  }
  *out = addr;
  return {};
}

void Heap::give_run(std::uintptr_t addr, std::size_t bytes) {
  std::vector<std::pair<std::uintptr_t, std::size_t>> unused;
  {
    const std::lock_guard guard(lock_);
    runs_.erase(addr);
    add_free(addr, bytes);
    unused = trim();
  }
  for (const auto& [begin, size] : unused) backend_.release_arena(pointer(begin), size);  // which may take a while
}

Status Heap::free_run(std::uintptr_t addr, std::size_t bytes) {
  bool reusable = true;
  if (const Status s = backend_.unmanage(addr, bytes, &reusable); !s.ok()) return s;
  if (reusable) {
    give_run(addr, bytes);
  } else {
    // What the application unmapped may be somebody else's by now: the run stays out of use.
    const std::lock_guard guard(lock_);
    runs_.erase(addr);
  }
  return {};
}

// ---- slots ----------------------------------------------------------------------------------------------------------

Status Heap::allocate_slot(std::size_t bytes, void** out) {
  const std::size_t index = (bytes - 1) / k_slot_unit;
  const std::size_t slot_bytes = (index + 1) * k_slot_unit;
  for (;;) {
    {
      const std::lock_guard guard(lock_);
      if (!open_chunks_[index].empty()) {
        Chunk& chunk = *runs_.at(*open_chunks_[index].begin()).chunk;
        std::uint16_t slot = 0;
        bool dirty = false;
        if (!chunk.recycled.empty()) {
          slot = chunk.recycled.back();
          chunk.recycled.pop_back();
          dirty = true;
        } else {
          slot = chunk.next_fresh++;
        }
        chunk.slots[slot] = SlotState::used;
        ++chunk.used;
        ++slots_used_;
        if (chunk.used == chunk.slots.size()) open_chunks_[index].erase(chunk.addr);
        *out = pointer(chunk.addr + slot * slot_bytes);
        if (!dirty) return {};
      } else {
        *out = nullptr;
      }
    }
    if (*out != nullptr) {
      std::memset(*out, 0, slot_bytes);  // may fault; no lock is held
      return {};
    }
    auto chunk = std::make_unique<Chunk>();
    chunk->slot_bytes = slot_bytes;
    chunk->slots.resize(k_chunk_bytes / slot_bytes, SlotState::fresh);
    chunk->recycled.reserve(chunk->slots.size());
    std::uintptr_t addr = 0;
    if (const Status s = allocate_run(k_chunk_bytes, &addr); !s.ok()) return s;
    chunk->addr = addr;
    const std::lock_guard guard(lock_);
    runs_.at(addr).chunk = std::move(chunk);
    open_chunks_[index].insert(addr);
  }
}

// ---- freeing --------------------------------------------------------------------------------------------------------

Status Heap::no_allocation(std::uintptr_t addr) const {
  if (owns(addr)) {
    return fail(HMMRT_ERROR_NOT_MANAGED,
                "%#" PRIxPTR
                " is not allocated: it was freed already, or never returned by "
                "hmmrt_alloc",
                addr);
  }
  return fail(HMMRT_ERROR_NOT_MANAGED, "%#" PRIxPTR " was not returned by hmmrt_alloc of this context", addr);
}

Status Heap::begin_free(const void* ptr, Freeing* out) {
  const auto addr = reinterpret_cast<std::uintptr_t>(ptr);
  std::unique_lock guard(lock_);
  auto it = runs_.upper_bound(addr);
  if (it == runs_.begin()) return guard.unlock(), no_allocation(addr);
  --it;
  Run& run = it->second;
  if (addr >= it->first + run.bytes) return guard.unlock(), no_allocation(addr);
  if (run.chunk == nullptr) {
    if (addr != it->first) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "%#" PRIxPTR " is inside the allocation at %#" PRIxPTR "; free its start",
                  addr, it->first);
    }
    if (run.freeing) return fail(HMMRT_ERROR_NOT_MANAGED, "%#" PRIxPTR " is being freed by another thread", addr);
    run.freeing = true;
    *out = {addr, run.bytes};
    return {};
  }
  Chunk& chunk = *run.chunk;
  const std::size_t slot = (addr - chunk.addr) / chunk.slot_bytes;
  if (slot >= chunk.slots.size() || chunk.slots[slot] == SlotState::fresh || chunk.slots[slot] == SlotState::recycled) {
    return guard.unlock(), no_allocation(addr);
  }
  if ((addr - chunk.addr) % chunk.slot_bytes != 0) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "%#" PRIxPTR " is inside the allocation at %#" PRIxPTR "; free its start",
                addr, chunk.addr + slot * chunk.slot_bytes);
  }
  if (chunk.slots[slot] == SlotState::freeing) {
    return fail(HMMRT_ERROR_NOT_MANAGED, "%#" PRIxPTR " is being freed by another thread", addr);
  }
  chunk.slots[slot] = SlotState::freeing;
  *out = {addr, chunk.slot_bytes};
  return {};
}

void Heap::cancel_free(const Freeing& freeing) {
  const std::lock_guard guard(lock_);
  auto it = std::prev(runs_.upper_bound(freeing.addr));
  if (it->second.chunk == nullptr) {
    it->second.freeing = false;
  } else {
    Chunk& chunk = *it->second.chunk;
    chunk.slots[(freeing.addr - chunk.addr) / chunk.slot_bytes] = SlotState::used;
  }
}

Status Heap::finish_free(const Freeing& freeing) {
  std::uintptr_t empty_chunk = 0;
  {
    const std::lock_guard guard(lock_);
    auto it = std::prev(runs_.upper_bound(freeing.addr));
    if (it->second.chunk != nullptr) {
      Chunk& chunk = *it->second.chunk;
      const auto slot = static_cast<std::uint16_t>((freeing.addr - chunk.addr) / chunk.slot_bytes);
      chunk.slots[slot] = SlotState::recycled;
      chunk.recycled.push_back(slot);
      --chunk.used;
      --slots_used_;
      auto& open = open_chunks_[chunk.slot_bytes / k_slot_unit - 1];
      open.insert(chunk.addr);
      // One empty chunk of a size is kept, so that a lone allocation does not manage and forget pages each time.
      if (chunk.used != 0 || open.size() == 1) return {};
      open.erase(chunk.addr);
      empty_chunk = chunk.addr;
      it->second.freeing = true;
    }
  }
  if (empty_chunk == 0) {
    const Status s = free_run(freeing.addr, freeing.bytes);
    if (!s.ok()) cancel_free(freeing);
    return s;
  }
  if (!free_run(empty_chunk, k_chunk_bytes).ok()) {
    const std::lock_guard guard(lock_);
    Run& run = runs_.at(empty_chunk);
    run.freeing = false;
    open_chunks_[run.chunk->slot_bytes / k_slot_unit - 1].insert(empty_chunk);
  }
  return {};
}

void Heap::release_all() {
  const std::lock_guard guard(lock_);
  for (auto& [addr, run] : runs_) {
    bool reusable = true;
    if (backend_.unmanage(addr, run.bytes, &reusable).ok() && reusable) add_free(addr, run.bytes);
  }
  runs_.clear();
  for (auto& open : open_chunks_) open.clear();
  slots_used_ = 0;
  // All that is left of the arenas is free by now.
  for (const auto& [addr, bytes] : free_) backend_.release_arena(pointer(addr), bytes);
  free_.clear();
  arenas_.clear();
}

// ---- questions ------------------------------------------------------------------------------------------------------

bool Heap::owns(std::uintptr_t addr) const {
  const std::lock_guard guard(lock_);
  auto it = arenas_.upper_bound(addr);
  return it != arenas_.begin() && addr < std::prev(it)->first + std::prev(it)->second;
}

std::vector<std::pair<std::uintptr_t, std::size_t>> Heap::arenas() const {
  const std::lock_guard guard(lock_);
  return {arenas_.begin(), arenas_.end()};
}

std::size_t Heap::allocations() const {
  const std::lock_guard guard(lock_);
  std::size_t chunks = 0;
  for (const auto& [addr, run] : runs_) chunks += run.chunk != nullptr ? 1u : 0u;
  return runs_.size() - chunks + slots_used_;
}

std::uint64_t Heap::metadata_bytes() const {
  const std::lock_guard guard(lock_);
  constexpr std::size_t k_node = 32;  // of a map
  std::uint64_t bytes =
      sizeof *this + (free_.size() + arenas_.size()) * (k_node + 16) + runs_.size() * (k_node + sizeof(Run) + 8);
  for (const auto& [addr, run] : runs_) {
    if (run.chunk != nullptr) bytes += sizeof(Chunk) + run.chunk->slots.size() * 3;
  }
  return bytes;
}

}  // namespace hmmrt
