// SPDX-License-Identifier: MIT
// Block: the state of 512 pages. The unit of locking, policy and pipelining.
//
// A page of a block is `valid` (belongs to a managed range) or nobody's. The residency of a valid page is the set of
// processors whose memory holds its valid contents: the CPU (on_cpu) and devices (part(d)->resident). Invariants, which
// hold whenever the claim is free:
//   I1  a valid page has at least one residency; with several, every mapping of it allows reading only (cpu_protected
//       is set for it and no part's `writable` has it)
//   I2  a device's `writable` page is resident on that device alone, or is a remote mapping of the one resident copy, or
//       is `exclusive`
//   I3  an `exclusive` page is in system memory but not in the CPU's page table: on_cpu is clear, resident nowhere, and
//       exactly one device maps it
//   I4  part(d)->frames[i] names a frame if and only if part(d)->resident has i
//   I5  a page in `pinned` (user pin) does not leave system memory; hmmrt_pin marks it first, then brings it home
//
// Locking. Everything is guarded by the claim, with two exceptions. `on_cpu` is written with claim and state lock, so
// the event thread may read it with the state lock alone. `notices` is written with the state lock by whoever hears of
// an invalidation, and settled by the claim holder before it releases.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>

#include "space/block_history.hpp"
#include "space/page.hpp"
#include "space/page_mask.hpp"
#include "space/park.hpp"
#include "space/spin_lock.hpp"

namespace hmmrt {

struct Range;
class Block;

// What one device holds of one block.
struct DevicePart {
  PageMask resident;   // in this device's frames
  PageMask mapped;     // this device translates the page, to its frame or remotely
  PageMask writable;   // ... and may write it
  PageMask remote;     // ... to memory that is not this device's
  PageMask exclusive;  // ... to system memory that the CPU cannot reach meanwhile
  PageMask staged;     // system memory kept the contents the page came with; still valid unless the device wrote
  PageMask evicted;    // was evicted from here and has not been back
  std::array<Frame, k_block_pages> frames;
  std::uint64_t arrived_ns = 0;  // when pages last came: they are not evicted before they could be used
  Block* const block;
  DevicePart* newer = nullptr;  // links of the device's ResidentList; guarded by its lock
  DevicePart* older = nullptr;
  explicit DevicePart(Block* owner) : block(owner) { frames.fill(k_no_frame); }
};

// Advice and other facts that few blocks have.
struct BlockAdvice {
  PageMask read_mostly;
  std::array<std::uint8_t, k_block_pages> preferred;      // processor, k_no_processor when none
  std::array<std::uint8_t, k_block_pages> last_prefetch;  // processor, k_no_processor when none
  std::array<ProcessorSet, k_block_pages> accessed_by{};
  std::array<std::uint16_t, k_block_pages> pins{};
  BlockAdvice() {
    preferred.fill(k_no_processor);
    last_prefetch.fill(k_no_processor);
  }
  // Page `page` has the advice that page `other_page` of `other` has.
  void take(const BlockAdvice& other, unsigned other_page, unsigned page) {
    if (other.read_mostly.test(other_page)) {
      read_mostly.set(page);
    } else {
      read_mostly.clear(page);
    }
    preferred[page] = other.preferred[other_page];
    last_prefetch[page] = other.last_prefetch[other_page];
    accessed_by[page] = other.accessed_by[other_page];
    pins[page] = other.pins[other_page];
  }
  void forget(const PageMask& pages) {
    read_mostly = read_mostly - pages;
    pages.for_each([&](unsigned page) {
      preferred[page] = last_prefetch[page] = k_no_processor;
      accessed_by[page] = 0;
      pins[page] = 0;
    });
  }
};

// Invalidations heard of and not yet acted on.
struct Notices {
  PageMask removed;          // the application dropped the contents (madvise)
  PageMask unmapped;         // the application unmapped the pages
  PageMask leaving;          // mremap has moved the pages; their state follows. Nothing may be done at this address
  bool cpu_waiting = false;  // a CPU fault waits for the claim: tell the event thread at release
  bool any() const { return removed.any() || unmapped.any(); }
};

class Block {
 public:
  explicit Block(std::uintptr_t address) : base(address) {}

  const std::uintptr_t base;

  // --- the claim ---
  bool try_claim() noexcept {
    std::uint32_t free = 0;
    return claim_.compare_exchange_strong(free, k_held, std::memory_order_acquire, std::memory_order_relaxed);
  }
  // Blocks until the claim is free. A thread may wait for a claim only while every claim it holds is of a lower block;
  // the event thread never waits.
  void claim() noexcept {
    while (!try_claim()) wait_unclaimed();
  }
  // Returns when the claim was seen free, without taking it.
  void wait_unclaimed() noexcept {
    std::uint32_t seen = claim_.load(std::memory_order_relaxed);
    if (seen == 0) return;
    if (seen == k_held && !claim_.compare_exchange_strong(seen, k_contended, std::memory_order_relaxed)) return;
    park(claim_, k_contended);
  }
  bool claimed() const noexcept { return claim_.load(std::memory_order_relaxed) != 0; }
  enum class Released : std::uint8_t { no, yes, yes_cpu_waiting };
  // Releases unless there are notices to settle: then `no`, and the block is still claimed.
  Released try_release() noexcept {
    std::uint32_t before = 0;
    bool waiting = false;
    {
      const std::lock_guard guard(state_lock);
      if (notices.any()) return Released::no;
      waiting = notices.cpu_waiting;
      notices.cpu_waiting = false;
      before = claim_.exchange(0, std::memory_order_release);
    }
    if (before == k_contended) unpark(claim_);
    return waiting ? Released::yes_cpu_waiting : Released::yes;
  }

  // --- state, see above ---
  SpinLock state_lock;
  Notices notices;

  PageMask valid;
  PageMask on_cpu;
  PageMask cpu_protected;               // write-protected on the CPU because a device holds a read-only copy
  PageMask read_only;                   // the application's mapping forbids writing
  PageMask no_access;                   // ... forbids everything
  PageMask dropping;                    // the application is dropping these; the kernel may not have cleared them yet
  std::uint64_t dropping_until_ns = 0;  // ... for no longer than this
  PageMask pinned;                      // by hmmrt_pin
  PageMask held;                        // residency held by the policy until held_until_ns
  std::uint64_t held_until_ns = 0;
  bool ping_pong = false;  // as last reported in statistics
  BlockHistory history;
  Range* range = nullptr;  // when one range covers every valid page; otherwise look it up
  BlockAdvice* advice = nullptr;
  std::array<DevicePart*, k_max_devices> parts{};

  DevicePart* part(Processor p) const { return parts[p - 1u]; }

  void set_on_cpu(const PageMask& pages, bool on) noexcept {
    const std::lock_guard guard(state_lock);
    if (on) {
      on_cpu |= pages;
    } else {
      on_cpu = on_cpu - pages;
    }
  }
  // Pages with more than one residency.
  PageMask shared() const noexcept {
    PageMask one = on_cpu, two;
    for (const DevicePart* p : parts) {
      if (p == nullptr) continue;
      two |= one & p->resident;
      one |= p->resident;
    }
    return two;
  }
  PageMask resident_on_devices() const noexcept {
    PageMask m;
    for (const DevicePart* p : parts) {
      if (p != nullptr) m |= p->resident;
    }
    return m;
  }

 private:
  static constexpr std::uint32_t k_held = 1, k_contended = 2;
  Word claim_{0};
};

}  // namespace hmmrt
