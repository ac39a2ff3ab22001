// SPDX-License-Identifier: MIT
// UffdMirror: the CPU side with nothing but userfaultfd: no module, no GPU driver, no root.
//
//            withdraw (to_device)                         deliver (to_host)
//   move     UFFDIO_MOVE managed -> staging               copy into staging, UFFDIO_MOVE staging -> managed
//   copy     write-protect, copy, MADV_DONTNEED           UFFDIO_COPY from the frame (or a bounce in staging)
//   remap    mremap(MREMAP_DONTUNMAP) managed -> staging,   as copy
//            copy, drop the staging pages
//
// "move" needs Linux 6.8. "copy" is the fallback below that, and on the move path for single pages that the kernel
// refuses to move (mapping read-only, shared by fork and protected). "remap" is the fallback for whole blocks: no write
// protection and no fault-safe reading. A piece of a huge page moves, which splits it (0.3 ms): copying it instead would
// take a tenth of that, but copying cannot see pins, and what a pinned page receives afterwards would be lost.
//
// Files: withdraw.cpp and deliver.cpp are the two directions; transfer.cpp drives them as prepare/copy/commit/rollback;
// ranges.cpp attaches and detaches; events.cpp is the event thread; single.cpp the single steps. arena.hpp keeps staging
// and masks, own_work.hpp what the event thread must know, maps.hpp, page_reader.hpp
// and uffd.hpp speak to the kernel.
//
// Lazy arming: a fresh range is watched for write protection only, which raises events for munmap, mremap and madvise
// but lets first touches run natively, with huge pages. It is armed for missing faults when the first page leaves.
//
// Thread: as HostMirror says. fetch() must keep running on its own thread while any other function is in progress:
// MADV_DONTNEED on managed memory waits inside the kernel until its event is read.
#pragma once

#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "host/host_mirror.hpp"
#include "host/maps.hpp"
#include "host/uffd/arena.hpp"
#include "host/uffd/own_work.hpp"
#include "host/uffd/page_reader.hpp"
#include "host/uffd/probe.hpp"
#include "host/uffd/uffd.hpp"

namespace hmmrt {

struct UffdConfig {
  bool force_fallback = false;  // never UFFDIO_MOVE
  bool user_mode_only = false;  // as an unprivileged process gets it
};

class UffdMirror final : public HostMirror {
 public:
  // Takes over the descriptors and the mapping; staging_fd -1: no moving. See make_uffd_mirror().
  UffdMirror(int managed_fd, int staging_fd, int interrupt_fd, std::uintptr_t zeros, HostMirrorInfo info);
  ~UffdMirror() override;
  // Whether it may be used; the detail text says why not.
  Status ready() const { return maps_.status(); }

  const HostMirrorInfo& info() const override { return info_; }

  void release(std::uintptr_t addr, std::size_t bytes) override;
  Status attach(std::uintptr_t addr, std::size_t bytes) override;
  void detach(std::uintptr_t addr, std::size_t bytes) override;
  Status rehome(std::uintptr_t from, std::uintptr_t to, std::size_t bytes) override;
  void query_rights(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, std::uintptr_t, std::size_t, Rights),
                    void* arg) override;

  void wait(std::int64_t timeout_ns) override;
  std::size_t fetch(std::span<HostEvent> out) override;
  void interrupt() override;
  void catch_up_addresses() override;
  void wake(std::uintptr_t base, const PageMask& pages) override;

  void prepare(Transfer& t) override;
  void copy(Transfer& t) override;
  bool finish_copy(Transfer& t) override;
  void commit(Transfer& t) override;
  void rollback(Transfer& t) override;

  PageOutcome populate(std::uintptr_t base, const PageMask& pages) override;
  void populate_unclaimed(std::uintptr_t page) override;
  PageOutcome write_protect(std::uintptr_t base, const PageMask& pages, bool on) override;
  PageOutcome give_back(std::uintptr_t base, const PageMask& pages) override;
  void drop(std::uintptr_t base, const PageMask& pages) override;
  void watch_drop(std::uintptr_t base, const PageMask& pages) override;
  PageMask drop_pending(std::uintptr_t base, const PageMask& pages) override;
  bool huge(std::uintptr_t base) override { return maps_.huge(base); }
  PageOutcome map_remote(std::uintptr_t base, const PageMask& pages) override;
  std::byte* remote_address(std::uintptr_t addr) override;
  PageOutcome make_exclusive(std::uintptr_t base, const PageMask& pages) override;
  std::byte* exclusive_address(std::uintptr_t addr) override;
  std::uint64_t metadata_bytes() const override;

 private:
  using Arena = uffd::Arena;
  // Runs of fewer pages without a staging page are cheaper to UFFDIO_COPY than to fault in and move.
  static constexpr unsigned k_fresh_pages = 64;
  static constexpr std::uint64_t k_storm_ns = 50'000'000;  // of waiting for a moment without mapping changes
  enum class Masks : std::uint8_t { by_copy, other };      // of Transfer::scratch
  static constexpr unsigned k_reading_word = 16;           // ... and its slot in own_

  // The part of one arena in a block. `state` belongs to the caller's claim.
  struct Part {
    Arena& arena;
    std::uintptr_t base;
    PageMask pages;
    uffd::BlockState& state;
    std::uintptr_t at(unsigned page) const { return base + page * k_page_size; }
    std::uintptr_t staging(unsigned page) const { return arena.staging_of(at(page)); }
  };
  // Calls fn(Part) for each arena with pages of `pages`; returns the pages that belong to none.
  template <class Fn>
  PageMask for_each_part(std::uintptr_t base, PageMask pages, Fn&& fn) const {
    PageMask orphans;
    for (unsigned page = pages.next(0); page < k_block_pages; page = pages.next(page)) {
      std::uintptr_t begin = 0;
      std::uintptr_t end = 0;
      const std::uintptr_t at = base + page * k_page_size;
      Arena* const arena = ranges_.next(at, &begin, &end);
      const std::uintptr_t stop = arena == nullptr ? base + k_block_size : begin > at ? begin : end;
      const unsigned stop_page =
          stop >= base + k_block_size ? k_block_pages : static_cast<unsigned>((stop - base) >> k_page_shift);
      const PageMask mine = pages & PageMask::range(page, stop_page - page);
      if (arena == nullptr || begin > at) {
        orphans |= mine;
      } else {
        fn(Part{*arena, base, mine, arena->block(base)});
      }
      pages = pages - mine;
    }
    return orphans;
  }

  static bool addressable(const Transfer& t) { return t.device->frame_address(0) != nullptr; }
  static PageMask load(const Transfer& t, Masks which);
  static void store(Transfer& t, Masks which, const PageMask& mask);

  // withdraw.cpp
  void withdraw_by_move(Part part, PageOutcome& out, PageMask& by_copy);
  unsigned moved_unsaid(Part part, unsigned page, unsigned limit) const;
  PageMask settle(Part part);
  // Fallback, whole block. False: nothing was done, copy.
  bool withdraw_by_remap(Part part, PageOutcome& out);
  // Ends what withdraw_by_remap began: staging is empty and ordinary again.
  void drop_remapped(Part part);
  void unwatch_staging(Part part);
  void withdraw_by_copy(Part part, PageOutcome& out, PageMask& by_copy);
  // For a duplicate. `fresh`: pages that were not protected before.
  void protect_in_place(Part part, PageOutcome& out, PageMask& fresh);
  // Removes pages withdrawn by copy from the CPU. Returns those that would not go (locked in memory).
  PageMask remove(Part part, const PageMask& pages);
  bool break_sharing(std::uintptr_t addr, std::size_t bytes);
  void unprotect(Part part, const PageMask& pages);
  void undo_protection(Part part, const PageMask& pages, bool duplicate);

  // deliver.cpp
  void plan_delivery(Transfer& t);
  void deliver_by_move(Part part, PageOutcome& out);
  // Source of page i: source(i). Contiguous sources are taken in one call.
  template <class Source>
  void deliver_by_copy(Part part, bool write_protected, PageOutcome& out, Source&& source);
  void deliver_by_copy(Part part, Transfer& t);  // from frames, or from staging where it holds the contents
  void deliver_staged(Part part, PageOutcome& out);
  // Fallback: puts contents held in staging back, freeing as it goes.
  void restore_staged(Part part, PageOutcome& out);
  void deliver_zeros(Part part, PageOutcome& out);
  void forget_staging(Part part, const PageMask& pages);
  void fail_delivery(Part part, unsigned page, unsigned count, int error, PageOutcome& out);

  // transfer.cpp
  void copy_to_device(Transfer& t);
  void end_reading(Transfer& t);
  void copy_to_host(Transfer& t);

  // ranges.cpp, events.cpp
  Status watch(std::uintptr_t addr, std::size_t bytes, bool exec);
  bool unwatch(std::uintptr_t addr, std::size_t bytes) const;
  int unprotect_in_storm(std::uintptr_t addr, std::size_t bytes) const;  // errno
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> give_up(std::uintptr_t addr, std::size_t bytes);
  std::size_t translate(const uffd_msg* messages, std::size_t count, std::span<HostEvent> out);
  bool own_fault(const uffd_msg& message);
  // One ioctl, no waiting: the event thread may have to read an event before it can succeed.
  void zero_or_wake(std::uintptr_t page, bool write_protected);
  // Where the area (or hole) that contains `page` ends, at most `stop`: UFFDIO_COPY, _MOVE and, before Linux 6.6,
  // _WRITEPROTECT refuse to cross the boundary of an area.
  unsigned area_limit(Part part, unsigned page, unsigned stop) const;
  // Clears or sets protection, area by area where needed. Returns errno; EAGAIN, too, when the range cannot be protected
  // for lack of memory.
  int protect(Arena& arena, std::uintptr_t addr, std::size_t bytes, bool on) const;
  Rights rights_at(std::uintptr_t addr, std::uintptr_t* end, bool* mapped) const;

  HostMirrorInfo info_;
  bool move_;
  uffd::Uffd managed_;  // managed ranges: faults and events
  uffd::Uffd staging_;  // staging: neither; -1 on the fallback path
  ProcMaps maps_;
  uffd::OwnWork own_;
  uffd::PageReader reader_;
  uffd::RangeTable ranges_;
  int interrupt_;                       // eventfd
  std::uintptr_t zeros_;                // k_block_size of zeros, read only
  std::array<uffd_msg, 128> messages_;  // event thread
};

// Null, with *status and the detail text set, when userfaultfd cannot be used here.
std::unique_ptr<HostMirror> make_uffd_mirror(const UffdConfig& config, Status* status);

}  // namespace hmmrt
