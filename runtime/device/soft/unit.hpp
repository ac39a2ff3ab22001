// SPDX-License-Identifier: MIT
// A compute unit: a thread that runs waves as fibers, with a TLB of its own. When a wave misses it is entered in the
// stall table and the unit runs another; with nothing to run it sleeps.
//
// Scheduling: replayed waves first, oldest first; then new waves as long as a resident slot is free; then waves that gave
// up their turn. Waves never move between units, nor a unit between threads. A wave that never misses is made to give up
// its turn by the device's ticker: it asks awake units for a TLB flush every few milliseconds, which leads the wave's
// next access the slow way, where it lets others run if there are any. So waves may spin for one another.
// The head of the object is the ABI struct that kernel_soft.hpp's inline code works on. Its fields and the waves belong
// to the unit's thread; others use only wake(), the stall table, and flush_requested/flush_seen/busy (quiesce.hpp).
#pragma once

#include <hmmrt/hmmrt.h>

#define HMMRT_KERNEL  // kernel_soft.hpp alone, without the user-facing half
#include <hmmrt/kernel_detail.hpp>
#undef HMMRT_KERNEL

#include <array>
#include <atomic>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "device/soft/far_memory.hpp"
#include "device/soft/fault_buffer.hpp"
#include "device/soft/injection.hpp"
#include "device/soft/launch_board.hpp"
#include "device/soft/page_table.hpp"
#include "device/soft/stall_table.hpp"

namespace hmmrt {

// What the units of one device share. Outlives them.
struct UnitShared {
  const SoftDeviceConfig& config;
  const Clock& clock;
  PageTable& pages;
  BoundedBuffer<DeviceFault>& faults;
  BoundedBuffer<AccessCount>& counts;
  LaunchBoard& board;
  Injector& drop_fault;
  std::atomic<std::uint64_t> tick{1};  // coarse time of use, for recency
  Word ticker{0};                      // rises when a unit starts waves while the ticker rests
  std::atomic<bool> ticker_rests{false};
  bool fast_path = true;  // inline hits allowed: membarrier works, and not deterministic
  bool (*cancel)(void*, std::uint32_t, const LaunchError&, const char*) = nullptr;
  void* cancel_context = nullptr;
};

class Unit : public detail::unit {
 public:
  explicit Unit(UnitShared& shared);
  ~Unit();  // stop() first
  Unit(const Unit&) = delete;
  Unit& operator=(const Unit&) = delete;

  void start_thread();
  // Ends the thread and the fibers. Requires every wave finished.
  void stop();
  // Something may have become runnable. Thread: any.
  void wake();
  // No section is open and none will be before a full barrier. Thread: any.
  bool asleep() const { return wake_.load(std::memory_order_seq_cst) == k_asleep; }

  StallTable& stalls() { return stalls_; }
  std::uint64_t remote_accesses() const { return remote_accesses_.load(std::memory_order_relaxed); }

  // --- deterministic mode: what can run, and running it ---------------------------------------------------------
  std::size_t runnable();  // ready waves, plus one if a new wave could start
  void run_one(std::size_t choice);

  // --- access.cpp: the slow way of an access, on the unit's thread inside a wave -----------------------------------
  void* enter(std::uintptr_t addr, Access access);
  std::size_t open_spans(std::span<detail::span_operand> operands, std::size_t elements);
  void close_spans(std::span<detail::span_operand> operands);
  // --- far_access.cpp: the same on far memory -----------------------------------------------------------------------
  // Of any length and alignment. Waves that do so at a time share one request.
  void far_access(FarAccess& access);
  [[noreturn]] void fail_kernel(std::uintptr_t addr, const char* text);

 private:
  static constexpr std::uint32_t k_awake = 0, k_notified = 1, k_asleep = 2;
  static constexpr std::uint64_t k_generation = std::uint64_t{1} << 36;  // page numbers have 35 bits
  static constexpr std::uint64_t k_no_tag = std::uint64_t{1} << 35;      // plus any page number: no entry's tag

  // scheduling (unit.cpp)
  void run();
  bool run_ready();
  bool start_new(std::uint32_t at_most);
  bool run_yielded();
  bool run_far();
  void resume(Wave& wave);
  void run_wave(Wave& wave) const;
  static void wave_body(void* argument);  // a Wave*
  void yield_wave();
  bool turn_is_over() const;

  // access.cpp
  void begin_section();
  void accept_flush();
  void end_section() { detail::leave(this); }
  void check_cancelled();
  void refuse_nesting(std::uintptr_t addr);
  PageTableLeaf* leaf_of(std::uintptr_t addr);
  Pte translate(std::uintptr_t addr, Access access);
  bool satisfies(Pte entry, Access access) const;
  void fill(std::uintptr_t addr, Pte entry, Access access);
  void count_remote(PageTableLeaf& leaf, std::uintptr_t addr, Pte entry, std::uint64_t transactions);
  void stall();
  void make_present(std::uintptr_t addr, std::size_t bytes, Access access);
  void far_failed(const FarAccess& access);
  std::size_t open_far_spans(std::span<detail::span_operand> operands, std::size_t elements);
  void close_far_spans(std::span<detail::span_operand> operands);
  std::size_t contiguous(std::uintptr_t addr, std::size_t want, Access access, Pte* entry);
  bool mark_span_dirty(const detail::span_operand& operand, std::size_t bytes);
  std::size_t translate_spans(std::span<detail::span_operand> operands, std::size_t elements);
  void collect_faults(std::span<detail::span_operand> operands, std::size_t elements);

  struct LeafSlot {
    std::uintptr_t block = ~std::uintptr_t{0};
    PageTableLeaf* leaf = nullptr;
  };

  UnitShared& shared_;
  std::vector<detail::tlb_entry> entries_;
  detail::tlb_entry never_{};  // what the inline code looks at when it must not hit
  std::array<LeafSlot, 64> leaves_;
  std::uint64_t saved_tag_ = 0;
  bool in_span_ = false;
  std::uint32_t fills_ = 0;
  std::atomic<std::uint64_t> remote_accesses_{0};

  std::vector<FarAccess*> far_accesses_;  // of waves that wait for them
  std::vector<Wave*> far_waves_;
  std::vector<std::byte> far_bounce_;  // what an open span on far memory is a copy of
  std::size_t far_elements_ = 0;       // of the open span

  StackArea stacks_;
  std::vector<std::unique_ptr<Wave>> waves_;
  Wave* free_ = nullptr;
  std::uint32_t free_count_ = 0;
  Wave* current_ = nullptr;
  WaveClaim claim_;
  std::vector<Wave*> delayed_;  // replayed, but not before a time
  std::vector<Wave*> yielded_;  // gave up their turn, ready to go on
  std::vector<Wave*> turn_;     // scratch of run_yielded()
  bool backlog_ = false;        // the list being resumed has more
  StallTable stalls_;
  std::atomic<bool> stopping_{false};
  Word wake_{k_awake};
  std::thread thread_;
};

// Thrown out of an accessor to end a wave of a cancelled launch. Private to the room.
struct WaveCancelled {};

}  // namespace hmmrt
