// SPDX-License-Identifier: MIT
// Device memory of the software GPU: one anonymous mapping, 2 MiB aligned, handed out in frames of 4 KiB.
//
// A *chunk* is 2 MiB of it: 512 free bits and a count. Whole-chunk requests are one bit operation in a summary of free
// chunks; smaller ones prefer chunks that are already broken, first fit, longest piece when nothing fits. `longest` of
// a chunk is an upper bound on its longest free run: exact after a failed search, 512 after a free.
// Thread: any; one mutex, held for microseconds, never across a page fault.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "space/page.hpp"
#include "space/page_mask.hpp"

namespace hmmrt {

class FrameMemory {
 public:
  // `backed`: there is memory behind the frames; else they are only counted, and their addresses are tokens. Throws NoRoom
  // when the address space is not there. `populate` touches every page now.
  FrameMemory(std::uint64_t bytes, bool populate, bool backed = true);
  ~FrameMemory();
  FrameMemory(const FrameMemory&) = delete;
  FrameMemory& operator=(const FrameMemory&) = delete;

  // As Device::allocate_frames and Device::free_frames.
  bool allocate(const PageMask& pages, Frame* frames);
  void free(const PageMask& pages, const Frame* frames);
  std::uint64_t free_count() const { return free_.load(std::memory_order_relaxed); }

  std::byte* address(Frame frame) const { return base_ + std::size_t{frame} * k_page_size; }
  std::uint64_t count() const { return frames_; }

 private:
  struct Chunk {
    PageMask free;
    std::uint16_t count = 0;
    std::uint16_t longest = 0;
  };
  class ChunkSet {  // which chunks are wholly free, or partly free
   public:
    void resize(std::size_t n) { words_.assign((n + 63) / 64, 0); }
    void set(std::size_t i, bool on);
    std::size_t next(std::size_t from) const;  // k_none when none

   private:
    std::vector<std::uint64_t> words_;
  };
  static constexpr std::size_t k_none = ~std::size_t{0};

  void map_memory(bool populate);
  void allocate_run(unsigned first, unsigned count, Frame* frames);
  std::size_t find_chunk(unsigned count, unsigned* at);
  void take(std::size_t chunk, unsigned at, unsigned count);
  void give(std::size_t chunk, unsigned at, unsigned count);
  void refile(std::size_t chunk);

  std::uint64_t frames_;
  std::byte* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  std::byte* base_ = nullptr;
  std::mutex mutex_;
  std::vector<Chunk> chunks_;
  ChunkSet whole_;
  ChunkSet broken_;
  std::atomic<std::uint64_t> free_{0};
};

}  // namespace hmmrt
