// SPDX-License-Identifier: MIT
// The driver's reports of a context's GPUs, from their descriptors to DriverRecords: one reader, one consumer.
//
// The driver's buffer holds about 12 lines on many kernels, so read() is called as soon as a descriptor is readable; what it
// makes of them waits in a ring. Where that is full, records are lost and counted, like lines that the driver dropped.
//
// A report may be older than what was asked of the driver since: books that follow what was asked would be led back. So who
// asks says so with Asking; reports about those addresses wait for its end, and those from before it are passed over. What
// was refused may have been done in part: then the reports are all there is to know it by, and count.
// Thread: read() one at a time (the event thread); take() one at a time (the device thread); the others any.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "host/host_mirror.hpp"
#include "host/kfd/probe.hpp"
#include "host/kfd/smi_events.hpp"
#include "space/spin_lock.hpp"

namespace hmmrt::kfd {

struct SmiStats {
  std::uint64_t events = 0;      // read
  std::uint64_t damaged = 0;     // lines that could not be read
  std::uint64_t unpaired = 0;    // ends without a start, starts without an end
  std::uint64_t overflowed = 0;  // records that found the ring full
  std::uint64_t full =
      0;  // times that the driver's buffer was found as good as full: it probably dropped what came next
  std::uint64_t queue_evictions = 0;
  SmiLoss loss = SmiLoss::possible;
  // What speaks for a loss each time: a lower bound.
  std::uint64_t lost() const { return damaged + unpaired + overflowed + full; }
};

class SmiReader {
 public:
  struct Gpu {
    std::uint32_t gpu_id;
    Processor processor;
  };
  // Owns the descriptors, one for each GPU; -1 where the driver gave none.
  SmiReader(std::vector<int> fds, std::vector<Gpu> gpus);
  ~SmiReader();
  SmiReader(const SmiReader&) = delete;
  SmiReader& operator=(const SmiReader&) = delete;

  std::span<const int> fds() const { return fds_; }
  // Reads what is there, without waiting. Returns whether records were made.
  bool read();
  // Those in front of the first that must wait for an Asking's end.
  std::size_t take(std::span<DriverRecord> out);
  bool has_records() const;
  // Ranges that the CPU has unmapped while a GPU knew them, as HostEvents. Thread: as read().
  bool has_unmapped() const { return !unmapped_.empty(); }
  std::size_t take_unmapped(std::span<HostEvent> out);
  // Rounds of read() that have ended.
  std::uint64_t rounds() const { return rounds_.load(std::memory_order_acquire); }
  SmiStats stats() const;

  // Reports about [addr, addr + bytes) from before its end count for nothing, unless it was refused.
  class Asking {
   public:
    // `fresh`: the memory there is new, and so reports that it was unmapped are old, too.
    Asking(SmiReader& reader, std::uintptr_t addr, std::size_t bytes, bool fresh = false);
    ~Asking();
    Asking(const Asking&) = delete;
    Asking& operator=(const Asking&) = delete;
    void refused() { refused_ = true; }

   private:
    SmiReader& reader_;
    std::size_t slot_;
    bool refused_ = false;
  };

 private:
  static constexpr std::size_t k_ring = 4096;
  static constexpr std::size_t k_asked = 128;
  static constexpr std::size_t k_open = 64;
  struct Asked {
    std::uintptr_t begin = 0, end = 0;
    std::uint64_t until_ns = 0;
    bool open = false, fresh = false;
  };
  struct Open {  // a fault or migration that has started
    SmiKind kind;
    std::uint32_t gpu;
    std::uint64_t addr, time_ns;
  };

  void note_full(std::size_t bytes);
  void understand(const SmiEvent& event);
  void put(const DriverRecord& record);
  void put_moved(const SmiEvent& event, std::uint64_t took_ns);
  // Whether something was asked about these addresses after the time of a report.
  enum class When : std::uint8_t { never, since, now };
  When asked(std::uintptr_t begin, std::uintptr_t end, std::uint64_t time_ns, bool fresh = false);
  Processor processor_of(std::uint32_t gpu_id) const;
  void note_open(SmiKind kind, std::uint32_t gpu, std::uint64_t addr, std::uint64_t time_ns);
  bool close_open(SmiKind kind, std::uint32_t gpu, std::uint64_t addr, std::uint64_t* time_ns);

  std::vector<int> fds_;
  std::vector<Gpu> gpus_;
  std::vector<SmiParser> parsers_;  // one a descriptor
  SmiPairs pairs_;
  std::array<Open, k_open> open_{};
  std::size_t open_count_ = 0;
  std::vector<DriverRecord> made_;  // in this round
  std::vector<HostEvent> unmapped_;
  std::size_t buffer_bytes_ = 1024;  // of the driver, as far as is known: Linux 7.2 has more

  mutable SpinLock lock_;  // what follows
  std::vector<DriverRecord> ring_;
  std::size_t head_ = 0, tail_ = 0;  // count up; their difference is what waits
  SmiStats stats_;
  SpinLock asked_lock_;
  std::array<Asked, k_asked> asked_{};
  std::size_t next_asked_ = 0;
  std::atomic<std::uint64_t> rounds_{0};
};

}  // namespace hmmrt::kfd
