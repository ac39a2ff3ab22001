// SPDX-License-Identifier: MIT
// What the kernel says about this process's own mappings: the areas (VMAs) of a range, and which pages of a block have
// something behind them. Answers are a snapshot: the application may change its mappings at any time, so they choose
// between error codes and paths and are never the reason that something is safe.
// Thread: any. Allocates nothing after construction. Blocks on: the kernel only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "space/page.hpp"
#include "space/page_mask.hpp"
#include "space/status.hpp"

namespace hmmrt {

struct Area {
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  bool read = false;
  bool write = false;
  bool exec = false;
  bool shared = false;
  bool file = false;  // has an inode: a file, shared memory, or hugetlb

  Rights rights() const { return write && read ? Rights::write : read ? Rights::read : Rights::none; }
};

class ProcMaps {
 public:
  // Whether what is needed could be opened is what status() says; the other functions need it to be.
  ProcMaps();
  ~ProcMaps();
  ProcMaps(const ProcMaps&) = delete;
  ProcMaps& operator=(const ProcMaps&) = delete;

  // SYSTEM, with the detail text set on the calling thread, when something could not be opened. A process that changed
  // its user may not look at its own pages: that is no failure, see sees_pages().
  Status status() const;
  // False: what is said below about pages is a guess.
  bool sees_pages() const { return pagemap_ >= 0; }

  // The first area that ends above `addr`; it may begin above it. False when there is none.
  bool next(std::uintptr_t addr, Area* out) const noexcept;
  // The area that contains `addr`.
  bool containing(std::uintptr_t addr, Area* out) const noexcept { return next(addr, out) && out->begin <= addr; }
  // Those of `pages` in the block at `base` that are present or swapped out. On error: all (a guess that costs time only).
  PageMask populated(std::uintptr_t base, const PageMask& pages = PageMask::all()) const noexcept;
  // Pages of the block at `base` that are there and carry uffd write protection (reported since Linux 5.14).
  PageMask write_protected(std::uintptr_t base) const noexcept;
  // The page at `addr` is present and mapped by another process, too (or by this one twice).
  bool shared(std::uintptr_t addr) const noexcept;
  // Whether [addr, addr + bytes) is what hmmrt_register takes: whole pages, mapped, private anonymous, readable and
  // writable. *exec: some of it may be executed.
  Status check_registrable(std::uintptr_t addr, std::size_t bytes, bool* exec) const;
  // The rights of [addr, addr + bytes), in spans that cover it: calls fn(arg, addr, bytes, rights).
  void rights(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, std::uintptr_t, std::size_t, Rights),
              void* arg) const noexcept;
  // The block at `base` is mapped by one huge page.
  bool huge(std::uintptr_t base) const noexcept;
  // The next block in [*at, end) that is mapped by the huge zero page; false when there is none (or before Linux 6.7).
  bool next_huge_zero(std::uintptr_t* at, std::uintptr_t end) const noexcept;

 private:
  bool query(std::uintptr_t addr, Area* out, bool* found) const noexcept;
  bool parse(std::uintptr_t addr, Area* out) const noexcept;
  // The first run of pages in [begin, end) that has all of `categories` (PAGEMAP_SCAN, Linux 6.7).
  bool scan(std::uintptr_t begin, std::uintptr_t end, std::uint64_t categories, std::uintptr_t* from,
            std::uintptr_t* to) const noexcept;

  int maps_;
  int maps_error_;  // errno; 0: opened
  int pagemap_;
  int pagemap_error_;
};

// Contiguous 2 MiB-aligned private anonymous memory, MADV_HUGEPAGE, no swap reserved. 0 on failure (errno).
std::uintptr_t map_aligned(std::size_t bytes, int protection);
// What to do about an errno of opening something, to be put behind its text; "" when there is nothing to add.
const char* hint(int error);

}  // namespace hmmrt
