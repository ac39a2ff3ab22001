// SPDX-License-Identifier: MIT
// Arena: what the mirror keeps for one attached range. A hidden staging mapping lies at a constant, 2 MiB-aligned offset
// from the range, so the staging place of a page is arithmetic, a huge page fits a huge page, and all bookkeeping is
// masks. RangeTable: which arena an address belongs to.
//
// Staging is watched by a second userfaultfd that raises no events and no missing faults: UFFDIO_MOVE needs its
// destination watched, but touching staging must fault in fresh (huge) pages natively and dropping it must not send
// events to anyone. It is not inherited by fork.
//
// Invariants, per page:
//   staged      staging holds a page: a withdrawn page's contents, or the landing place of a delivery. On the move path
//               it holds no other (withdraw_by_move relies on it)
//   large       subset of staged: probably part of a huge page (moving it alone would split 512 pages: about 0.5 ms)
//   protected_  uffd write protection is set on the CPU's page
//   copied_out  withdrawn by copy: its contents are in frames only
//   unwatched   the application drops it, and it could not be marked yet (watch_drop)
// Thread: a BlockState under its block's claim; RangeTable any (short internal lock, no system call inside).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

#include "host/maps.hpp"
#include "host/uffd/uffd.hpp"
#include "space/page.hpp"
#include "space/page_mask.hpp"
#include "space/status.hpp"

namespace hmmrt::uffd {

struct alignas(64) BlockState {
  PageMask staged;
  PageMask large;
  PageMask protected_;
  PageMask copied_out;
  PageMask unwatched;
  bool staging_watched = false;  // staging holds a remapped block, or will until drop_remapped()
  bool settled = false;         // fallback: the CPU's page table of this block has had small pages (UffdMirror::settle)
  bool large_verified = false;  // `large` was compared with the kernel since the block was last moved out whole
};

class RangeTable;

class Arena {
 public:
  // Reserves staging for [begin, begin + bytes). `exec`: give staging the same rights as the range, or no page can
  // move. `staging` watches staging, null on the fallback path; `zeros`: k_block_size of them. Both outlive the arena.
  // Null, with detail text, when the system refuses.
  static std::unique_ptr<Arena> make(std::uintptr_t begin, std::size_t bytes, bool exec, const Uffd* staging,
                                     std::uintptr_t zeros);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::uintptr_t begin() const { return begin_; }
  std::size_t bytes() const { return bytes_; }
  bool exec() const { return exec_; }
  std::uintptr_t staging_of(std::uintptr_t addr) const { return addr + offset_; }
  BlockState& block(std::uintptr_t base) { return blocks_[(base - cover_) >> k_block_shift]; }
  std::uint64_t metadata_bytes() const { return sizeof(Arena) + block_count_ * sizeof(BlockState); }

  // From now on untouched pages raise missing faults. Idempotent. Returns errno.
  // Move path: from then on, too, no block is mapped by the kernel's huge zero page, which is what a block that was read
  // before it was ever written gets. While that is split or replaced the page table is empty for as long as a TLB
  // shootdown takes, and both UFFDIO_MOVE and pagemap, which look without the lock, would say that nothing is there.
  int arm(const RangeTable& ranges, const Uffd& managed, const ProcMaps& maps);
  // From now on pages of the range can be write-protected. Idempotent. Returns errno. On the fallback path arming alone
  // gives that up: with it, what withdraw_by_remap() leaves in staging costs 55 us to unwatch, or an event to drop.
  int make_protectable(const RangeTable& ranges, const Uffd& managed, const ProcMaps& maps);
  bool protectable() const { return protectable_.load(std::memory_order_acquire); }
  // The pages of `from` are here now, watched as they were (mremap). Registering would be wrong: by now somebody else's
  // memory may be at these addresses.
  void follow(const Arena& from);
  bool armed() const { return armed_.load(std::memory_order_acquire); }

  // Makes staging pages exist (zero filled where new). False: no memory.
  bool back(std::uintptr_t base, const PageMask& pages) const noexcept;
  // Returns staging pages to the system.
  void unback(std::uintptr_t base, const PageMask& pages) const noexcept;

 private:
  Arena() = default;
  int split_huge_zeros(const Uffd& managed, const ProcMaps& maps) const;
  int watch(const RangeTable& ranges, const Uffd& managed, const ProcMaps& maps, std::uint64_t modes) const;

  const Uffd* uffd_ = nullptr;  // that watches staging
  std::uintptr_t zeros_ = 0;
  std::uintptr_t begin_ = 0;
  std::size_t bytes_ = 0;
  bool exec_ = false;
  std::uintptr_t cover_ = 0;   // begin_ rounded down to a block
  std::uintptr_t offset_ = 0;  // staging - managed, modulo 2^64
  std::size_t block_count_ = 0;
  std::unique_ptr<BlockState[]> blocks_;
  std::atomic<bool> armed_{false};
  std::atomic<bool> protectable_{false};
  std::mutex arming_;
};

class RangeTable {
 public:
  // False: overlaps an existing range.
  bool insert(std::uintptr_t begin, std::size_t bytes, std::shared_ptr<Arena> arena);
  bool overlaps(std::uintptr_t begin, std::size_t bytes) const;
  // Forgets [begin, begin + bytes); ranges that reach beyond it are trimmed or split.
  void erase(std::uintptr_t begin, std::size_t bytes);
  // The first attached piece that ends above `addr`: [*begin, *end). Null when none. The arena stays alive as long as
  // a block of the piece is claimed (contract of detach).
  Arena* next(std::uintptr_t addr, std::uintptr_t* begin, std::uintptr_t* end) const;
  // The application has unmapped (or moved away) [begin, end): whatever is mapped there now is not ours to watch.
  void note_hole(std::uintptr_t begin, std::uintptr_t end);
  // The first part from `at` on that still belongs to the arena (null: to any) and is no hole: *from to *to. False when there
  // is none.
  bool next_solid(const Arena* arena, std::uintptr_t at, std::uintptr_t* from, std::uintptr_t* to) const;
  std::uint64_t metadata_bytes() const;

 private:
  struct Hole {
    std::uintptr_t begin, end;
  };
  void fill_holes(std::uintptr_t begin, std::uintptr_t end);

  struct Piece {
    std::uintptr_t begin, end;
    std::shared_ptr<Arena> arena;
  };
  mutable std::shared_mutex mutex_;
  std::vector<Piece> pieces_;  // sorted, disjoint
  std::vector<Hole> holes_;    // sorted, disjoint, inside pieces
};

}  // namespace hmmrt::uffd
