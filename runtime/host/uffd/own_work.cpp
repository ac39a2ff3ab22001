// SPDX-License-Identifier: MIT
// Memory order: a slot's fields are written before state = active (release) and read after seeing it active (acquire).
// A removal's event is read while the remover is inside madvise, in a batch that began (batch_ odd) before it could
// return; it keeps its slot until that batch has ended. A reading slot is given back first and then outlasts the batch:
// the event thread may have matched it and not yet acted.
#include "host/uffd/own_work.hpp"

#include <sched.h>
#include <unistd.h>

namespace hmmrt::uffd {

template <class Slots>
int OwnWork::take(Slots& slots) noexcept {
  for (unsigned i = 0; i < k_slots; ++i) {
    std::uint32_t expected = k_free;
    if (slots[i].state.load(std::memory_order_relaxed) == k_free &&
        slots[i].state.compare_exchange_strong(expected, k_taken, std::memory_order_acquire)) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

// Holders are inside one madvise, which ends as soon as the event thread reads its event.
template <class Slots>
unsigned OwnWork::take_waiting(Slots& slots) noexcept {
  for (;;) {
    const int slot = take(slots);
    if (slot >= 0) return static_cast<unsigned>(slot);
    sched_yield();
  }
}

void OwnWork::outlast_batch() const noexcept {
  const std::uint32_t batch = batch_.load(std::memory_order_seq_cst);
  while ((batch & 1) != 0 && batch_.load(std::memory_order_acquire) == batch) sched_yield();
}

OwnWork::Removal::Removal(OwnWork& work, std::uintptr_t begin, std::size_t bytes) noexcept
    : work_(work), slot_(take_waiting(work.removals_)) {
  RemovalSlot& slot = work_.removals_[slot_];
  work_.removal_count_.fetch_add(1);
  slot.begin.store(begin, std::memory_order_relaxed);
  slot.end.store(begin + bytes, std::memory_order_relaxed);
  slot.cursor.store(begin, std::memory_order_relaxed);
  slot.state.store(k_active, std::memory_order_release);
}

OwnWork::Removal::~Removal() {
  work_.outlast_batch();
  work_.removals_[slot_].state.store(k_free, std::memory_order_release);
  work_.removal_count_.fetch_sub(1);
}

OwnWork::Breaking::Breaking(OwnWork& work) noexcept : work_(work), slot_(take_waiting(work.breakings_)) {
  BreakingSlot& slot = work_.breakings_[slot_];
  work_.breaking_count_.fetch_add(1);
  slot.thread.store(static_cast<std::uint32_t>(gettid()), std::memory_order_relaxed);
  slot.state.store(k_active, std::memory_order_release);
}

OwnWork::Breaking::~Breaking() {
  work_.breakings_[slot_].state.store(k_free, std::memory_order_release);
  work_.breaking_count_.fetch_sub(1);
}

unsigned OwnWork::begin_reading(std::uintptr_t base, const PageMask& pages) noexcept {
  const int taken = take(readings_);
  if (taken < 0) return k_no_reading;
  ReadingSlot& slot = readings_[static_cast<unsigned>(taken)];
  reading_count_.fetch_add(1);
  slot.base.store(base, std::memory_order_relaxed);
  for (unsigned w = 0; w < PageMask::k_words; ++w) slot.pages[w].store(pages.word(w), std::memory_order_relaxed);
  slot.state.store(k_active, std::memory_order_release);
  return static_cast<unsigned>(taken);
}

void OwnWork::end_reading(unsigned slot) noexcept {
  // seq_cst, as batch_ is: either a batch that began before sees the slot free, or it is outlasted.
  readings_[slot].state.store(k_free, std::memory_order_seq_cst);
  reading_count_.fetch_sub(1);
  outlast_batch();
}

bool OwnWork::matches_removal(std::uintptr_t begin, std::uintptr_t end, const ProcMaps& maps) noexcept {
  if (removal_count_.load() == 0) return false;
  for (auto& slot : removals_) {
    if (slot.state.load(std::memory_order_acquire) != k_active) continue;
    const std::uintptr_t cursor = slot.cursor.load(std::memory_order_relaxed);
    const std::uintptr_t slot_end = slot.end.load(std::memory_order_relaxed);
    if (cursor != begin || end > slot_end) continue;
    // A part of our range is our event only if an area ends there; otherwise the application removed that part at the
    // same moment, and ours is still to come.
    Area area;
    if (end != slot_end && (!maps.containing(begin, &area) || area.end != end)) continue;
    slot.cursor.store(end, std::memory_order_relaxed);
    return true;
  }
  return false;
}

bool OwnWork::matches_reading(std::uintptr_t addr) const noexcept {
  if (reading_count_.load() == 0) return false;
  const std::uintptr_t base = block_floor(addr);
  const unsigned page = page_in_block(addr);
  for (const auto& slot : readings_) {
    if (slot.state.load(std::memory_order_acquire) == k_active && slot.base.load(std::memory_order_relaxed) == base &&
        ((slot.pages[page / 64].load(std::memory_order_relaxed) >> (page % 64)) & 1) != 0) {
      return true;
    }
  }
  return false;
}

bool OwnWork::matches_breaking(std::uint32_t thread) const noexcept {
  if (breaking_count_.load() == 0) return false;
  for (const auto& slot : breakings_) {
    if (slot.state.load(std::memory_order_acquire) == k_active &&
        slot.thread.load(std::memory_order_relaxed) == thread) {
      return true;
    }
  }
  return false;
}

}  // namespace hmmrt::uffd
