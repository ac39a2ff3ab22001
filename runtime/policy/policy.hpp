// SPDX-License-Identifier: MIT
// The interface every policy stands behind. A policy is a pure function: the same (block view, fault group, context)
// gives the same plan, live or in offline replay. What it wants to remember about a block it keeps in that block's
// BlockHistory, which is part of its input; it has no other state, no clock, and makes no system calls.
//
// Thread: decide() and the on_*() notices run with the block's claim held, on many threads for different blocks; a
// policy object is immutable after construction. Cost: the fault path waits for it; no allocation, no logging.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "space/block_history.hpp"
#include "space/page.hpp"
#include "space/page_mask.hpp"

namespace hmmrt {

// One block as a policy sees it.
struct BlockView {
  std::uintptr_t base = 0;
  PageMask valid;                     // pages that belong to a managed range
  PageMask resident_here;             // on the faulting processor
  PageMask resident_cpu;              // in system memory (includes never-touched pages of the CPU's)
  PageMask resident_peer;             // on some other device
  PageMask mapped_here;               // any translation on the faulting processor, remote ones too
  PageMask populated;                 // has contents somewhere, as far as the runtime knows
  PageMask read_mostly;               // advice
  PageMask accessed_by;               // advice: the faulting processor wants a mapping rather than faults
  PageMask preferred_here;            // advice: preferred location is the faulting processor
  PageMask preferred_elsewhere;       // advice: preferred location is some other processor
  std::uint64_t pinned_until_ns = 0;  // residency held until then (0: not held)
  bool cpu_huge = false;  // all on the CPU in one huge page: whole it moves cheaply, in part it must be split
  BlockHistory* history = nullptr;
};

// The faults of one batch that fell into one block, from one processor.
struct FaultGroup {
  Processor processor = k_cpu;
  PageMask read;             // pages whose strongest access in the batch was a read
  PageMask write;            // ... a write
  PageMask atomic;           // ... a system-scope atomic
  std::uint32_t faults = 0;  // entries in the batch for this block, duplicates counted
  PageMask pages() const { return read | write | atomic; }
};

struct PolicyContext {
  std::uint64_t now_ns = 0;
  std::uint64_t device_frames = 0;  // of the faulting device (0 when the CPU faults)
  std::uint64_t device_free_frames = 0;
  bool can_map_remote = false;  // the faulting processor can map pages resident elsewhere
  bool can_duplicate = false;   // read-only copies beside the owner's are possible
  bool system_atomics = false;  // the faulting processor's atomics reach host memory
  std::uint32_t fault_ns = 0;   // what one fault costs here (0: unknown, the policy assumes 10 us)
};

enum class Reason : std::uint8_t {
  none,
  first_touch,
  dense,
  sparse,
  preferred_location,
  accessed_by,
  read_mostly,
  thrash_throttle,
  thrash_pin,
  capacity_thrash,
  remote_policy,
  exclusive,
  access_counter,
  device_full,
  plug_in
};
const char* reason_name(Reason r);

// What to do about a group. The masks are disjoint; faulted pages in no mask are throttled when throttle_ns != 0 and
// migrated otherwise. Pages beyond the faulted ones are prefetch (cause prefetch_heuristic).
struct Plan {
  PageMask migrate;               // to `to`
  PageMask duplicate;             // read-only copy on the faulting processor, owner keeps reading
  PageMask remote;                // map on the faulting processor where it is resident
  Processor to = k_no_processor;  // destination of `migrate`; k_no_processor: the faulting processor
  std::uint64_t throttle_ns = 0;  // look at the throttled pages again after this long
  std::uint64_t pin_ns = 0;       // hold the residency that this plan leaves; remote mappings end with it
  Reason reason = Reason::none;
};

class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  virtual void decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context,
                      Plan& plan) const = 0;
  // Pages of the block moved. Called after the fact for every cause, in order, so that history sees evictions and user
  // prefetches too. `from` and `to` are processors.
  virtual void on_migrated(BlockHistory& history, const PageMask& pages, Processor from, Processor to, Cause cause,
                           std::uint64_t now_ns) const {
    (void)history, (void)pages, (void)from, (void)to, (void)cause, (void)now_ns;
  }
  // True when the history marks the block as ping-ponging at `now_ns` (for statistics and hmmrt-prof).
  virtual bool ping_pong(const BlockHistory& history, std::uint64_t now_ns) const {
    (void)history, (void)now_ns;
    return false;
  }
  // Whether a region that a device accesses remotely and often (access counters) should move there.
  virtual bool follows_access_counters() const { return false; }
};

// The policies by name; null for a name that does not exist. policy_names() lists them, comma separated.
std::unique_ptr<Policy> make_policy(std::string_view name);
const char* policy_names();

}  // namespace hmmrt
