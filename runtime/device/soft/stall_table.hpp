// SPDX-License-Identifier: MIT
// Waves, and the table of those of one unit that wait for pages. A wave that misses enters the table under every block
// it misses pages of; replay of any of the pages takes it out of all of them and puts it on the unit's ready list.
//
// Lost wake-ups: a wave enters the table *before* it pushes its faults, so whoever serves a fault finds its wave here.
// A replay that finds no wave (because it came earlier) needs nothing: that wave's fault is still to be fetched.
// Thread: any; one mutex per unit. A filter of non-empty buckets lets replay skip units that hold nothing of a block.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "device/device.hpp"
#include "device/soft/fiber.hpp"

namespace hmmrt {

class Unit;
struct LaunchState;

constexpr unsigned k_stall_blocks = 8;   // blocks one wave can wait for at once
constexpr unsigned k_stall_faults = 64;  // faults one wave raises at once

struct Wave;

// A wave's entry under one block.
struct StallNode {
  Wave* wave = nullptr;
  StallNode* next = nullptr;
  StallNode** link = nullptr;  // what points here
  std::uintptr_t block = 0;
  PageMask pages;
};

struct WaveFault {
  std::uintptr_t addr;
  Access access;
};

struct Wave {
  Unit* unit = nullptr;
  Wave* next = nullptr;  // in the unit's free or ready list
  std::uint32_t index = 0;
  LaunchState* launch = nullptr;
  std::uint64_t number = 0;         // of the launch's waves
  bool finished = false;            // this wave number ran to its end
  bool stop = false;                // the body is to return
  bool stalled = false;             // in the table; the table's mutex
  std::uint64_t not_before_ns = 0;  // link model: earliest time of the replayed access
  unsigned fault_count = 0;
  unsigned node_count = 0;
  std::array<WaveFault, k_stall_faults> faults;
  std::array<StallNode, k_stall_blocks> nodes;
  Fiber fiber;

  // Adds a page to wait for. False when the wave's lists are full.
  bool add_fault(std::uintptr_t addr, Access access);
  void clear_faults() { fault_count = node_count = 0; }
};

class StallTable {
 public:
  // False when the wave's launch is cancelled: it was not entered.
  bool enter(Wave& wave);
  // Takes the wave out again. False when a replay was faster: it is on the ready list then.
  bool leave(Wave& wave);

  // These move waves to the ready list and return whether they moved any.
  bool replay(std::uintptr_t base, const PageMask& pages);
  bool replay_all();
  bool release(const LaunchState* launch);

  bool has_ready() const { return has_ready_.load(std::memory_order_acquire); }
  Wave* take_ready();  // the whole list, oldest first
  std::uint32_t stalled() const { return stalled_.load(std::memory_order_relaxed); }

 private:
  static constexpr unsigned k_buckets = 64;
  static unsigned bucket(std::uintptr_t base) { return static_cast<unsigned>(base >> k_block_shift) % k_buckets; }
  void unlink(Wave& wave);
  void ready(Wave& wave);
  template <class Want>
  bool move_if(Want&& want);

  std::mutex mutex_;
  std::array<StallNode*, k_buckets> heads_{};
  std::atomic<std::uint64_t> filter_{0};  // bit b: bucket b may hold nodes
  Wave* ready_head_ = nullptr;
  Wave** ready_tail_ = &ready_head_;
  std::atomic<bool> has_ready_{false};
  std::atomic<std::uint32_t> stalled_{0};
};

}  // namespace hmmrt
