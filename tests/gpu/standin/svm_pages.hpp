// SPDX-License-Identifier: MIT
// Where pages are, and how they go from the process to the GPU's memory and back. Memory of GPUs is a hidden mapping, of
// which a block of 2 MiB stands for each block of the process that has pages there: the way from an address to its page
// is one number for a block. UFFDIO_MOVE takes a page out of the process and puts it there, so that the process faults
// on it; userfaultfd tells of that, and of munmap, mremap and madvise.
// Thread: one at a time, with no kernel running (svm_driver.hpp).
#pragma once

#include <linux/userfaultfd.h>

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory_resource>
#include <vector>

#include "gpu/standin/kernels_abi.hpp"
#include "gpu/standin/own_memory.hpp"

namespace standin {

constexpr std::size_t k_block = std::size_t{2} << 20;
constexpr std::size_t k_block_pages = k_block / k_page;
using Mask = std::bitset<k_block_pages>;

// A mapping of the process, cut at the borders of what stays (own_memory.hpp).
struct Vma {
  std::uintptr_t begin = 0, end = 0;
  bool read = false, write = false;
  bool movable = false;        // private anonymous memory
  bool heap_or_stack = false;  // the kernel's driver lets it stay unless told
};
// False: nothing is mapped at `at`.
bool vma_at(std::uintptr_t at, Vma* out);

struct Block {
  std::uintptr_t hidden = 0;                        // 0: none of its pages was ever on a GPU
  std::uint64_t age = 0;                            // when pages last went to a GPU
  std::array<std::uint8_t, k_block_pages> where{};  // node: 0 is the process's own memory
  std::array<std::uint16_t, k_standin_gpus + 1> on{};
  std::array<Mask, k_standin_gpus + 1> mapped;  // of each node's GPU
  Mask armed;                                   // a page that is missing faults to us
};

class Pages {
 public:
  explicit Pages(std::pmr::memory_resource* memory);

  // Opens userfaultfd. False: this machine has none that will do.
  bool open();
  int events() const { return events_; }

  using Blocks = std::pmr::map<std::uintptr_t, Block>;
  Blocks& blocks() { return blocks_; }
  Block& block(std::uintptr_t at) { return blocks_[at & ~(k_block - 1)]; }
  Block* find(std::uintptr_t at);
  std::uint32_t where(std::uintptr_t at);

  // Calls fn(base, block, first page, last + 1) for the parts of [begin, end). `make`: also for blocks not seen yet.
  template <class Fn>
  void each(std::uintptr_t begin, std::uintptr_t end, bool make, Fn&& fn) {
    for (std::uintptr_t at = begin; at < end;) {
      const std::uintptr_t base = at & ~(k_block - 1);
      const std::uintptr_t until = std::min(end, base + k_block);
      Block* const b = make ? &block(base) : find(base);
      if (b != nullptr) fn(base, *b, (at - base) / k_page, (until - base + k_page - 1) / k_page);
      at = until;
    }
  }

  // Hears of munmap, mremap and madvise in [begin, end) from now on.
  bool watch(std::uintptr_t begin, std::uintptr_t end);
  // And is asked for pages that are missing there.
  bool arm(std::uintptr_t begin, std::uintptr_t end);
  // Is asked for nothing more, and told nothing.
  void close();

  // Moves pages of the block to its hidden memory for `node`, or those of `node` home. Says how many went; a page that
  // could not stays where it was.
  std::size_t take(std::uintptr_t base, Block& block, std::size_t first, std::size_t last, std::uint32_t node);
  std::size_t give(std::uintptr_t base, Block& block, std::size_t first, std::size_t last, std::uint32_t node);
  // Forgets the contents of what is on GPUs.
  void drop(Block& block, std::size_t first, std::size_t last);
  // After mremap: contents and what is known of [from, from + bytes) are at `to`.
  void follow(std::uintptr_t from, std::uintptr_t to, std::size_t bytes);
  // Makes pages that are missing, and that we would be asked for, present.
  void populate(std::uintptr_t base, Block& block, std::size_t first, std::size_t last);
  // Answers for a page that was never touched, and lets who waits for it go on.
  void zero(std::uintptr_t at);
  void wake(std::uintptr_t at, std::size_t bytes);

  std::uint64_t pages_on(std::uint32_t node) const { return used_[node]; }

  // Reads events; when an operation has to wait for one to be read.
  std::function<void()> read_events;
  // Whether an event that was read and not yet heeded is about these addresses.
  std::function<bool(std::uintptr_t begin, std::uintptr_t end)> in_doubt;

 private:
  void set(Block& block, std::size_t page, std::uint32_t node);
  bool again(std::uintptr_t begin, std::uintptr_t end);
  bool copy_home(std::uintptr_t to, std::uintptr_t from);
  Mask transfer(std::uintptr_t base, Block& block, std::size_t first, std::size_t last, bool home);
  std::uintptr_t hidden();

  Blocks blocks_;
  std::pmr::vector<std::uintptr_t> free_;
  std::uintptr_t next_ = 0, hidden_end_ = 0;
  std::array<std::uint64_t, k_standin_gpus + 1> used_{};
  int events_ = -1;  // of the process's memory
  int into_ = -1;    // of the hidden memory: no events
  int pagemap_ = -1;
};

}  // namespace standin
