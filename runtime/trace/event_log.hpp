// SPDX-License-Identifier: MIT
// EventLog: what the runtime did and why, as 64-byte binary records in a ring that keeps the latest. Off, record() is
// one predictable branch; on, it is one fetch_add and a 64-byte store, with no lock, allocation or system call, so the
// fault path may log. write_file() dumps the ring for hmmrt-prof.
// Thread: record() any; write_file() after the recorders have stopped.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "space/page.hpp"
#include "space/status.hpp"

namespace hmmrt {

enum class EventKind : std::uint8_t {
  fault_batch,    // a: faults, b: blocks
  decision,       // pages: faulted pages, a: migrated, b: remote, c: duplicated; detail: Reason
  migrated,       // pages; detail: Cause; processor -> peer
  evicted,        // pages, processor: from
  mapped_remote,  // pages
  throttled,
  pinned,
  unpinned,
  invalidated,   // the host changed mappings: pages
  cpu_fault,     // one page; detail: Access
  replayed,      // pages
  cancelled,     // a: address
  hint_ignored,  // pages
  launch_begin,
  launch_end,
  attribute  // of a driver's, changed or not: base, pages; a: which, b: value, c: 0 done, 1 refused, 2 too many; detail: Wish
};

struct Event {
  std::uint64_t sequence = 0;  // position in the log, from 1; 0 = never written
  std::uint64_t time_ns = 0;
  std::uint64_t base = 0;  // block or address
  std::uint64_t a = 0, b = 0, c = 0;
  std::uint32_t pages = 0;
  EventKind kind = EventKind::fault_batch;
  Processor processor = k_cpu;  // who faulted, or source
  Processor peer = k_cpu;       // destination
  std::uint8_t detail = 0;      // Reason, Cause or Access, by kind
  std::uint64_t reserved = 0;
};
static_assert(sizeof(Event) == 64);

class EventLog {
 public:
  // `entries` a power of two, or 0 for off. Allocates here, once.
  explicit EventLog(std::uint32_t entries = 0);
  ~EventLog();
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  bool on() const noexcept { return mask_ != 0; }
  void record(const Event& event) noexcept {
    if (on()) store(event);
  }
  std::uint64_t recorded() const noexcept { return next_.load(std::memory_order_relaxed); }
  // Oldest kept to newest, after a header naming version and clock. Errors: HMMRT_ERROR_SYSTEM.
  Status write_file(const char* path) const;

 private:
  void store(const Event& event) noexcept;
  std::unique_ptr<Event[]> ring_;
  std::uint64_t mask_ = 0;
  std::atomic<std::uint64_t> next_{0};
};

}  // namespace hmmrt
