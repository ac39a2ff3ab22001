// SPDX-License-Identifier: MIT
// FaultService: the loop batch -> policy -> pipeline -> replay, on two threads.
//
//   event thread    the CPU side: reads the host mirror's events, brings pages home for CPU faults, notes what the
//                   application did to its mappings. It never waits for a claim or for user work; what it cannot do now
//                   it keeps and is told about (HostMirror::interrupt) when the claim is released.
//   device thread   the device side: fetches fault batches of every device, asks the policy block by block inside the
//                   pipeline, replays; retries what was refused or throttled; ends timed pins; heeds access counters.
//
// Both can instead be stepped by hand, one batch at a time, which is what the deterministic simulation does.
#pragma once

#include <atomic>
#include <memory>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "fault/fault_batch.hpp"
#include "migrate/house.hpp"
#include "migrate/pipeline.hpp"
#include "policy/stream_ahead.hpp"
#include "trace/histogram.hpp"

namespace hmmrt {

struct FaultServiceConfig {
  std::uint32_t batch_size = 256;  // faults per fetch, 1..256
  unsigned tokens = 4;             // blocks in flight in the device thread's pipeline
  unsigned threads = 2;            // its arena, the device thread included
  bool access_counter_migration = true;
};

struct FaultLatencies {
  Histogram cpu_fault_ns, device_fault_ns, batch_faults;
  // Device batches, fetch to last replay, and how much of it the copies took (summed over the pipeline's threads).
  std::atomic<std::uint64_t> device_service_ns{0}, device_copy_ns{0};
};

class FaultService {
 public:
  // `doorbell` is the one the devices were made with.
  FaultService(House& house, Doorbell& doorbell, const FaultServiceConfig& config);
  ~FaultService();
  FaultService(const FaultService&) = delete;
  FaultService& operator=(const FaultService&) = delete;

  void start();
  void stop();  // joins the threads; faults after this are not served

  // On return, what the application did to its mappings before the call has been noticed and settled. Launches call it,
  // so that a kernel started after madvise() or munmap() sees their effect. Nearly free when nothing is pending.
  void fence();
  // The same for whatever anybody had done before the call, for who has just been given addresses by the kernel.
  void fence_addresses();

  // On return, what threads that ran before the call had faulted on is counted: a thread is let go before its fault is.
  void wait_counted();

  // Compares the rights of the CPU's mappings with what devices were given, and takes away what is too much.
  void refresh_rights(std::uintptr_t addr, std::size_t bytes);

  // Brings every page home and lets none leave until thaw(). For fork().
  void freeze();
  void thaw();
  // Held (shared) around anything but the service's own threads that moves pages away from the CPU.
  std::shared_mutex& departure_lock() { return departures_; }

  const FaultLatencies& latencies() const { return latencies_; }
  FaultLatencies& latencies() { return latencies_; }

  // One round each, without threads. Return whether anything was done.
  bool step_device();
  bool step_host(std::int64_t timeout_ns);
  // When the device side next has something to do on its own account (retries, timers); 0: nothing.
  std::uint64_t next_due_ns() const;

 private:
  class DeviceJobs;
  class HostJobs;
  // Something to look at again at `due_ns`.
  struct Later {
    std::uint64_t due_ns;
    std::uintptr_t base;
    Processor processor;
    bool unpin;  // a timed pin ends; otherwise: replay
    PageMask pages;
  };
  // CPU faults that could not be served yet.
  struct Pending {
    std::uint64_t due_ns;
    BatchGroup group;
  };
  // An mremap that the device thread has yet to follow.
  struct Remap {
    std::uintptr_t from, to;
    std::size_t bytes;
    std::uint64_t number;
  };
  struct Part {
    std::uintptr_t begin, end;
  };
  struct Late {  // a removal that happened after the remap of this number, to pages that it brings
    std::uintptr_t begin, end;
    bool unmapped;
    std::uint64_t remap;
  };
  static constexpr std::size_t k_read_at_once = 64;

  bool serve_device(Processor p);
  bool serve_access_counts(Processor p);
  bool serve_later();
  void leave_old_places(std::uintptr_t addr, std::size_t bytes);
  // driver_records.cpp
  bool serve_records();
  void wait_records();
  void follow_move(const DriverRecord& record);
  void run_ahead(Processor p, std::uintptr_t base);
  void tie_home(Block& block, Processor device, const PageMask& pages, Wish wish);
  void steer(Block& block, Processor to, const PageMask& pages, const PageMask& remote, Cause cause, bool happened);
  bool serve_remaps();
  // The oldest remap has been followed, and its blocks are still claimed: forgets it, and tells the blocks of what came late.
  // remaps_lock_ held.
  void follow_front();
  // Pages of the block whose address a remap that is still to be followed has filled, or else emptied.
  struct Remapping {
    PageMask filled, emptied;
  };
  Remapping remapping(std::uintptr_t base) const;
  // Tells the blocks of what an event removed, or, where a remap is still to be followed, remembers it until then.
  void notice_removal(const HostEvent& event);
  void end_pin(std::uintptr_t base, const PageMask& pages);
  void later(Processor p, std::uintptr_t base, const PageMask& pages, std::uint64_t due_ns, bool unpin = false);
  void cancel_launches(Processor p, std::uintptr_t base, const PageMask& pages, hmmrt_result_t result);

  bool read_events();
  bool serve_host();
  void keep(const BatchGroup& group, const PageMask& pages, std::uint64_t due_ns);
  static void while_stalled(void* self);

  House& house_;
  Doorbell& doorbell_;
  FaultServiceConfig config_;
  FaultLatencies latencies_;
  std::atomic<bool> stopping_{false};
  std::shared_mutex departures_;
  std::atomic<bool> frozen_{false};  // the device thread does nothing until thaw()
  ParkMutex device_step_;            // held for each round of the device thread; freeze() holds it

  // Device thread.
  Pipeline device_pipeline_;
  std::unique_ptr<FaultBatch> device_batch_;
  std::unique_ptr<Work> scratch_work_;
  std::vector<DeviceFault> fetched_;
  std::size_t fetched_count_ = 0;
  mutable SpinLock later_lock_;
  std::vector<Later> later_;
  std::array<std::uint64_t, k_max_devices> overflows_seen_{};
  std::array<std::atomic<std::uint32_t>, k_max_devices> full_rounds_{};  // touched by parallel stages; a rough count

  std::array<DriverRecord, 16> driver_faults_{};  // the latest, whatever became of them
  std::size_t next_driver_fault_ = 0;
  std::array<StreamAhead, k_max_devices> ahead_{};
  std::atomic<std::uint64_t> record_rounds_{0};

  // Event thread.
  Pipeline host_pipeline_;
  std::unique_ptr<FaultBatch> host_batch_;
  std::vector<HostEvent> events_;  // faults read and not yet served: the first event_count_
  std::size_t event_count_ = 0;
  std::vector<Pending> host_pending_, host_retrying_;
  Word serving_{0};           // odd while faults are being served
  bool interrupted_ = false;  // the latest round began without an event
  mutable SpinLock remaps_lock_;
  std::vector<Remap> remaps_;  // oldest first
  std::uint64_t remap_count_ = 0;
  std::vector<Late> late_;
  std::vector<Part> parts_;      // scratch of notice_removal()
  std::vector<Block*> noticed_;  // blocks with fresh notices
  std::atomic<std::thread::id> event_thread_;

  std::thread threads_[2];
};

}  // namespace hmmrt
