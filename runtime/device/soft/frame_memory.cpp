// SPDX-License-Identifier: MIT
#include "device/soft/frame_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

#include "device/soft/no_room.hpp"

namespace hmmrt {

namespace {

constexpr std::size_t k_search_limit = 64;  // broken chunks looked at before a whole one is broken

// Longest run of set bits, or the first run of at least `wanted`. Returns its length, its start in *at.
unsigned find_run(const PageMask& free, unsigned wanted, unsigned* at) {
  unsigned best = 0;
  for (unsigned first = free.next(0); first < k_block_pages;) {
    const unsigned end = free.next_clear(first);
    if (end - first > best) {
      best = end - first;
      *at = first;
      if (best >= wanted) return best;
    }
    first = end < k_block_pages ? free.next(end) : k_block_pages;
  }
  return best;
}

}  // namespace

void FrameMemory::ChunkSet::set(std::size_t i, bool on) {
  const std::uint64_t bit = std::uint64_t{1} << (i % 64);
  if (on) {
    words_[i / 64] |= bit;
  } else {
    words_[i / 64] &= ~bit;
  }
}

std::size_t FrameMemory::ChunkSet::next(std::size_t from) const {
  for (std::size_t w = from / 64; w < words_.size(); ++w) {
    std::uint64_t x = words_[w];
    if (w == from / 64) x &= ~std::uint64_t{0} << (from % 64);
    if (x != 0) return w * 64 + static_cast<std::size_t>(std::countr_zero(x));
  }
  return k_none;
}

FrameMemory::FrameMemory(std::uint64_t bytes, bool populate, bool backed) : frames_(bytes / k_page_size) {
  if (backed) {
    map_memory(populate);
  } else {
    base_ = reinterpret_cast<std::byte*>(k_block_size);  // frame 0 has a token, too
  }
  const std::size_t chunks = (frames_ + k_block_pages - 1) / k_block_pages;
  chunks_.resize(chunks);
  whole_.resize(chunks);
  broken_.resize(chunks);
  for (std::size_t c = 0; c < chunks; ++c) {
    give(c, 0, static_cast<unsigned>(std::min<std::uint64_t>(k_block_pages, frames_ - c * k_block_pages)));
  }
}

void FrameMemory::map_memory(bool populate) {
  const std::size_t usable = frames_ * k_page_size;
  mapping_bytes_ = block_ceil(usable) + k_block_size;
  void* m = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) throw NoRoom("a device's memory", mapping_bytes_, "option device_memory or devices");
  mapping_ = static_cast<std::byte*>(m);
  base_ = reinterpret_cast<std::byte*>(block_ceil(reinterpret_cast<std::uintptr_t>(m)));
  madvise(base_, block_ceil(usable), MADV_HUGEPAGE);
  madvise(mapping_, mapping_bytes_, MADV_DONTFORK);  // device memory is not the child's
  if (populate) {
    for (std::size_t at = 0; at < usable; at += k_page_size) *reinterpret_cast<volatile char*>(base_ + at) = 0;
  }
}

FrameMemory::~FrameMemory() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

void FrameMemory::refile(std::size_t chunk) {
  const unsigned n = chunks_[chunk].count;
  whole_.set(chunk, n == k_block_pages);
  broken_.set(chunk, n != 0 && n != k_block_pages);
}

void FrameMemory::take(std::size_t chunk, unsigned at, unsigned count) {
  Chunk& c = chunks_[chunk];
  c.free = c.free - PageMask::range(at, count);
  c.count = static_cast<std::uint16_t>(c.count - count);
  free_.fetch_sub(count, std::memory_order_relaxed);
  refile(chunk);
}

void FrameMemory::give(std::size_t chunk, unsigned at, unsigned count) {
  Chunk& c = chunks_[chunk];
  c.free.set(at, count);
  c.count = static_cast<std::uint16_t>(c.count + count);
  c.longest = k_block_pages;
  free_.fetch_add(count, std::memory_order_relaxed);
  refile(chunk);
}

// A chunk with a free run of `count`, its start in *at; k_none when none was found in a bounded search.
std::size_t FrameMemory::find_chunk(unsigned count, unsigned* at) {
  std::size_t looked = 0;
  for (std::size_t c = broken_.next(0); c != k_none && looked < k_search_limit; c = broken_.next(c + 1), ++looked) {
    Chunk& chunk = chunks_[c];
    if (chunk.longest < count || chunk.count < count) continue;
    const unsigned run = find_run(chunk.free, count, at);
    if (run >= count) return c;
    chunk.longest = static_cast<std::uint16_t>(run);
  }
  const std::size_t c = whole_.next(0);
  *at = 0;
  return c;
}

void FrameMemory::allocate_run(unsigned first, unsigned count, Frame* frames) {
  while (count != 0) {
    unsigned at = 0;
    unsigned n = count;
    std::size_t c = n == k_block_pages ? whole_.next(0) : find_chunk(n, &at);
    if (c == k_none) {  // no place for all of it: the longest piece of the first broken chunk, and go on
      c = broken_.next(0);
      n = std::min(count, find_run(chunks_[c].free, count, &at));
    }
    take(c, at, n);
    const auto start = static_cast<Frame>(c * k_block_pages + at);
    for (unsigned i = 0; i < n; ++i) frames[first + i] = start + i;
    first += n;
    count -= n;
  }
}

bool FrameMemory::allocate(const PageMask& pages, Frame* frames) {
  const unsigned need = pages.count();
  const std::lock_guard lock(mutex_);
  if (need > free_count()) return false;
  pages.for_each_run([&](unsigned first, unsigned count) { allocate_run(first, count, frames); });
  return true;
}

void FrameMemory::free(const PageMask& pages, const Frame* frames) {
  const std::lock_guard lock(mutex_);
  pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count;) {
      const Frame start = frames[i];
      unsigned n = 1;
      while (i + n < first + count && frames[i + n] == start + n && (start + n) % k_block_pages != 0) ++n;
      give(start / k_block_pages, start % k_block_pages, n);
      i += n;
    }
  });
}

}  // namespace hmmrt
