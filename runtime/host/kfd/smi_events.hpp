// SPDX-License-Identifier: MIT
// What AMD's kernel driver says about its faults and migrations: the text lines of AMDKFD_IOC_SMI_EVENTS as values.
//
//   SmiParser  bytes, in whatever pieces read() returns them, to events. Knows the lines of every kernel from 5.8 to 7.2;
//              what it cannot read it counts and passes over. Allocates nothing; holds one line
//   SmiPairs   watches the events for an END without its START and the other way round
//
// Events are reports, never grounds for safety. The kernel drops them silently while its buffer is full (1 KiB, about 12
// lines, up to Linux 6.12; 8 KiB on 7.2), so every count is a lower bound; and a line about a process contains a name
// that the process chose, which may contain a newline.
// Thread: each object one at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace hmmrt::kfd {

// The kernel's numbers (enum kfd_smi_event).
enum class SmiKind : std::uint8_t {
  vm_fault = 1,  // a fault that nothing could serve: pid
  thermal_throttle = 2,
  gpu_pre_reset = 3,
  gpu_post_reset = 4,
  migrate_start = 5,     // time, pid, addr, bytes, from, to, prefetch, preferred, trigger
  migrate_end = 6,       // time, pid, addr, bytes, from, to, trigger; error, where the kernel says it
  page_fault_start = 7,  // time, pid, addr, gpu, write
  page_fault_end = 8,    // time, pid, addr, gpu, migrated
  queue_eviction = 9,    // time, pid, gpu, trigger: the process's queues on `gpu` stop
  queue_restore = 10,    // time, pid, gpu, rescheduled
  unmap = 11,            // time, pid, addr, bytes, gpu, trigger
  process_start = 12,    // pid
  process_end = 13       // pid
};

// The kinds above say which members an event of theirs has; the others are 0. Processors are gpu_ids as in the topology's
// gpu_id files, 0 for system memory.
struct SmiEvent {
  std::uint64_t time_ns = 0;  // CLOCK_BOOTTIME
  std::uint64_t addr = 0;     // bytes, as bytes and not as the kernel's pages
  std::uint64_t bytes = 0;
  std::uint32_t pid = 0;
  std::uint32_t gpu = 0;
  std::uint32_t from = 0, to = 0;
  std::uint32_t prefetch = 0, preferred = 0;  // locations set by attributes; k_smi_nowhere: unset
  std::int32_t trigger = 0;  // of linux/kfd_ioctl.h: KFD_MIGRATE_, _QUEUE_EVICTION_, _SVM_UNMAP_TRIGGERS
  std::int32_t error = 0;    // 0: none, or a kernel that does not say
  SmiKind kind = SmiKind::vm_fault;
  bool write = false;
  bool migrated = false;     // else the GPU's page table alone was changed
  bool rescheduled = false;  // the queues did not start again; the kernel will try once more
};

constexpr std::uint32_t k_smi_nowhere = 0xffffffff;

struct SmiCounts {
  std::uint64_t events = 0;
  std::uint64_t unknown = 0;    // lines of kinds that this library does not know
  std::uint64_t malformed = 0;  // lines, or parts of glued ones, that are not what their kind should be: events lost
  std::uint64_t glued = 0;      // lines in which more than one event begins
  std::uint64_t longer = 0;     // events with more fields than are known here, which were passed over
};

class SmiParser {
 public:
  static constexpr std::size_t k_line_bytes = 256;  // the kernel makes at most 96

  // Reads the front of *bytes, shortens it by what was read, and writes at most out.size() events, at least 1, to `out`.
  // Returns how many; when fewer than out.size(), everything there was is read. The events are the same however the bytes
  // are cut into calls.
  std::size_t parse(std::string_view* bytes, std::span<SmiEvent> out) noexcept;

  const SmiCounts& counts() const { return counts_; }
  // Bytes of a line whose end has not come; none of one that is too long already.
  std::size_t waiting() const { return complete_ ? 0 : length_; }

 private:
  void take(std::string_view* bytes) noexcept;
  bool next_part(SmiEvent* out) noexcept;

  std::array<char, k_line_bytes> line_{};
  std::size_t length_ = 0;
  std::size_t at_ = 0;       // of a complete line: the part to read next
  bool complete_ = false;    // the line is whole and has parts to read
  bool discarding_ = false;  // it is too long for line_: wait for its end
  SmiCounts counts_;
};

// What pairing can say about loss. Neither count is proof: an END without START may have started before the subscription;
// and kernels up to 6.12 at least end a migration that moves nothing, and a fault whose migration fails, without END.
class SmiPairs {
 public:
  static constexpr std::size_t k_open = 64;  // operations watched at once; KFD serves one fault at a time

  // Of other kinds than migrations and page faults: ignored.
  void add(const SmiEvent& event) noexcept;

  std::uint64_t ends_without_start() const { return ends_without_start_; }
  // The same operation started again, or k_open others have since.
  std::uint64_t starts_without_end() const { return starts_without_end_; }
  std::size_t open() const { return open_; }

 private:
  void close(std::size_t i) noexcept;

  std::array<SmiEvent, k_open> starts_{};  // the first open_, oldest first
  std::size_t open_ = 0;
  std::uint64_t ends_without_start_ = 0, starts_without_end_ = 0;
};

// There is no "none": see the top.
enum class SmiLoss : std::uint8_t { possible, likely };

SmiLoss smi_loss(const SmiCounts& counts, const SmiPairs& pairs) noexcept;
// A sentence for people.
const char* smi_loss_text(SmiLoss loss) noexcept;

}  // namespace hmmrt::kfd
