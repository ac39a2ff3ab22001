// SPDX-License-Identifier: MIT
// What the mirror is doing to managed memory right now, told to the event thread so that it can tell the mirror's own
// footprints from the application's. Three small tables without locks:
//   Removal   this thread is inside madvise(MADV_DONTNEED) on [begin, end): the removal event is ours, swallow it
//             (or inside mremap to there, which is in staging: the same for the remap event)
//   Reading   pages whose contents are being read through their managed address (write-protected: stable). If the
//             application drops one of them meanwhile, the reader would wait in a fault that nobody may serve, because
//             the block is claimed; the event thread gives it zeros, write-protected, which is what the application's
//             own madvise asked for
//   Breaking  this thread (by id) is in madvise(MADV_POPULATE_WRITE) to break copy-on-write; same hazard
// Each object registers in its constructor and leaves in its destructor (Reading: begin/end, it spans calls).
// Thread: any; the matching functions: the event thread only.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "host/maps.hpp"
#include "space/page_mask.hpp"

namespace hmmrt::uffd {

class OwnWork {
 public:
  static constexpr unsigned k_slots = 64;

  class Removal {
   public:
    Removal(OwnWork& work, std::uintptr_t begin, std::size_t bytes) noexcept;
    ~Removal();
    Removal(const Removal&) = delete;
    Removal& operator=(const Removal&) = delete;

   private:
    OwnWork& work_;
    unsigned slot_;
  };

  class Breaking {
   public:
    explicit Breaking(OwnWork& work) noexcept;
    ~Breaking();
    Breaking(const Breaking&) = delete;
    Breaking& operator=(const Breaking&) = delete;

   private:
    OwnWork& work_;
    unsigned slot_;
  };

  // A slot to give to end_reading(); k_no_reading when too many transfers read at once: report the pages busy.
  static constexpr unsigned k_no_reading = k_slots;
  unsigned begin_reading(std::uintptr_t base, const PageMask& pages) noexcept;
  // On return the event thread gives nobody zeros on account of this slot any more, nor is it about to: it may have
  // matched a fault just before. Only then may the pages be taken away.
  void end_reading(unsigned slot) noexcept;

  // Around each read of events and their matching: the kernel lets the remover go on as soon as its event is read, so the
  // remover waits until that batch has been matched before it takes its slot back.
  void begin_batch() noexcept { batch_.fetch_add(1, std::memory_order_seq_cst); }
  void end_batch() noexcept { batch_.fetch_add(1, std::memory_order_seq_cst); }
  // The event is ours. The kernel splits one madvise into one event per area, in ascending order.
  bool matches_removal(std::uintptr_t begin, std::uintptr_t end, const ProcMaps& maps) noexcept;
  bool matches_reading(std::uintptr_t addr) const noexcept;
  bool matches_breaking(std::uint32_t thread) const noexcept;

  // Waits until the batch of events that is being matched, if any, has been.
  void outlast_batch() const noexcept;

 private:
  enum State : std::uint32_t { k_free, k_taken, k_active };

  struct alignas(64) RemovalSlot {
    std::atomic<std::uint32_t> state{k_free};
    std::atomic<std::uintptr_t> begin{0}, end{0};
    std::atomic<std::uintptr_t> cursor{0};  // event thread: where the next event of this call begins
  };
  struct alignas(64) ReadingSlot {
    std::atomic<std::uint32_t> state{k_free};
    std::atomic<std::uintptr_t> base{0};
    std::array<std::atomic<std::uint64_t>, PageMask::k_words> pages{};
  };
  struct BreakingSlot {
    std::atomic<std::uint32_t> state{k_free};
    std::atomic<std::uint32_t> thread{0};
  };

  template <class Slots>
  static int take(Slots& slots) noexcept;
  template <class Slots>
  static unsigned take_waiting(Slots& slots) noexcept;

  std::array<RemovalSlot, k_slots> removals_;
  std::array<ReadingSlot, k_slots> readings_;
  std::array<BreakingSlot, k_slots> breakings_;
  std::atomic<std::uint32_t> batch_{0};  // odd: the event thread is between reading and having matched
  // How many slots are taken: the event thread skips the tables when zero. A slot is counted before it is active.
  std::atomic<std::uint32_t> removal_count_{0}, reading_count_{0}, breaking_count_{0};
};

}  // namespace hmmrt::uffd
