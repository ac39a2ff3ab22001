// SPDX-License-Identifier: MIT
// The software GPU: a Device made of threads and fibers, good enough to find the runtime's bugs and to measure it.
//
//   unit.*          a compute unit: a thread, its TLB, its waves, the scheduler that runs them
//   fiber.*         the stack a wave runs on
//   access.cpp      the slow way of an access: page walk, TLB fill, fault, remote accounting (kernel_soft.hpp calls it)
//   stall_table.*   waves that wait for a page, found by block when it is replayed
//   fault_buffer.*  the bounded fault buffer; also the access-counter buffer
//   page_table.*    block -> leaf of 512 translations, or one huge translation; dirty bits, recency
//   quiesce.*       the asymmetric barrier
//   frame_memory.*  device memory and its allocator
//   launch_board.*  queues, launches, host functions
//   link_model.*    time an interconnect would take
//   soft_device.cpp the Device interface over these
//
// Threads: one per compute unit, one that ends the turns of waves that never miss, one per queue that ever ran a host
// function; none in deterministic mode, where step()
// is the only thing that runs kernels and must always be called from one thread.
// Locks, never nested in one another except as listed: launch board; one per stall table; frame allocator; page-table
// arena. None is held across an access to memory a kernel or the host mapped.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "device/device.hpp"
#include "space/clock.hpp"

namespace hmmrt {

class SoftDevice;

// The software GPUs of one context, so that one can reach another's frames. Give the same object to all of them; a
// device enters itself when made and leaves when destroyed.
class SoftPeers {
 public:
  SoftDevice* find(Processor p) const {
    return p < k_max_processors ? devices_[p].load(std::memory_order_acquire) : nullptr;
  }
  void set(Processor p, SoftDevice* device) { devices_[p].store(device, std::memory_order_release); }

 private:
  std::array<std::atomic<SoftDevice*>, k_max_processors> devices_{};
};

// A modelled interconnect. Off: copies and page-table calls take the time the CPU needs for them. On: they are done at
// once but complete later, on one timeline per copy direction and one for the page table; waiting sleeps.
struct SoftLink {
  bool enabled = false;
  double to_device_bytes_per_ns = 25;    // 25 GB/s
  double to_host_bytes_per_ns = 25;      // device to host, and peer to device
  std::uint64_t latency_ns = 1000;       // per copy_async()
  std::uint64_t map_ns = 2000;           // per map() or unmap()
  std::uint64_t remote_access_ns = 800;  // per scalar access, or span chunk, through a remote mapping
  std::uint64_t fault_ns = 10'000;       // least time from a fault to the replayed access
};

// When to fail on purpose: every n-th time (0: never), and with a probability.
struct SoftChance {
  std::uint32_t every = 0;
  double probability = 0;
};

struct SoftInjection {
  SoftChance allocation_fails;  // allocate_frames() says full
  SoftChance copy_fails;        // wait_copy() says false; the destination was not written
  SoftChance quiesce_slow;      // quiesce() takes slow_quiesce_ns longer
  SoftChance fault_dropped;     // a fault is lost as if the buffer had been full
  std::uint64_t slow_quiesce_ns = 100'000;
};

class FarMemory;

struct SoftDeviceConfig {
  std::string name = "soft:0";
  Processor processor = device_processor(0);
  std::uint64_t memory_bytes = std::uint64_t{256} << 20;  // rounded down to 4 KiB
  std::uint32_t compute_units = 0;                        // threads; 0: cores, at least 2, at most 4. At most 64
  std::uint32_t waves_per_unit = 128;                     // resident, so as many faults can be outstanding per unit
  std::uint32_t wave_size = 64;
  std::uint32_t fault_buffer_entries = 1024;  // rounded up to a power of two
  std::uint32_t tlb_entries = 256;            // per unit; rounded up to a power of two
  bool populate = false;                      // touch all device memory at once, for measurements
  bool system_atomics = true;
  bool remote_mapping = true;
  bool access_counters = true;
  bool peer = true;
  bool peer_mapping = true;  // with peer; false: other devices' frames are copied, never mapped
  std::uint32_t access_counter_threshold = 256;
  // Units that wake do not take the processor from the thread that replays (SCHED_BATCH): on few cores replaying a batch
  // costs a tenth, a lone fault's round trip half as much again.
  bool batch_units = true;
  bool use_membarrier = true;  // false: as on kernels without it; every access then takes the slow way
  bool deterministic = false;  // no threads; step() runs everything, time is the clock's
  std::uint64_t seed = 1;      // of injected failures, and of synchronize()'s choices in deterministic mode
  SoftLink link;
  SoftInjection inject;
  std::shared_ptr<SoftPeers> peers;  // may be null: no other devices
  FarMemory* far = nullptr;  // not null: frames are numbers, this serves accesses. Outlives the device. No peers
};

struct SoftDeviceParts;

class SoftDevice final : public Device {
 public:
  // `faults` rings when the fault buffer or the access-counter buffer turns non-empty. Both outlive the device.
  SoftDevice(const SoftDeviceConfig& config, Doorbell& faults, const Clock& clock);
  // Cancels what still runs. No queue may be in use by another thread.
  ~SoftDevice() override;
  SoftDevice(const SoftDevice&) = delete;
  SoftDevice& operator=(const SoftDevice&) = delete;

  const DeviceInfo& info() const override { return info_; }

  bool allocate_frames(std::uintptr_t base, const PageMask& pages, Frame* frames) override;
  void free_frames(const PageMask& pages, const Frame* frames) override;
  std::uint64_t free_frame_count() const override;
  bool zero_frames(const PageMask& pages, const Frame* frames) override;
  std::byte* frame_address(Frame frame) override;

  void map(std::uintptr_t base, std::span<const MapSpan> spans) override;
  PageMask unmap(std::uintptr_t base, const PageMask& pages) override;
  // timeout_ns 0: no limit.
  bool quiesce(std::uint64_t timeout_ns) override;

  std::size_t fetch_faults(std::span<DeviceFault> out) override;
  void replay(std::uintptr_t base, const PageMask& pages) override;
  void replay_all() override;
  void cancel(std::uint32_t launch, const LaunchError& error) override;
  std::uint64_t fault_overflows() const override;

  std::size_t fetch_access_counts(std::span<AccessCount> out) override;
  std::uint64_t last_use(std::uintptr_t base) const override;

  CopyTicket copy_async(std::span<const CopyRun> runs) override;
  bool wait_copy(CopyTicket ticket) override;

  Status create_queue(Queue* out) override;
  void destroy_queue(Queue queue) override;
  Status launch(Queue queue, const Launch& launch) override;
  Status enqueue_host(Queue queue, void (*fn)(void*), void* arg) override;
  LaunchError synchronize(Queue queue) override;
  bool idle(Queue queue) override;

  // --- beyond Device --------------------------------------------------------------------------------------------
  // Deterministic mode: takes the `choice`-th (modulo how many there are) possible next action: run a wave up to its
  // next access, start one, or run a host function. False when nothing can run: all is done, or all waves are stalled.
  bool step(std::uint64_t choice);
  std::uint64_t metadata_bytes() const override;   // page-table memory
  std::uint64_t remote_accesses() const override;  // 64-byte transactions through remote mappings
  std::uint64_t stalled_waves() const;             // waiting for a replay now
  std::uint64_t injected_failures() const;

 private:
  void fill_info();
  void resume_units();

  SoftDeviceConfig config_;
  DeviceInfo info_;
  std::unique_ptr<SoftDeviceParts> parts_;
};

std::unique_ptr<Device> make_soft_device(const SoftDeviceConfig& config, Doorbell& faults, const Clock& clock);

// True while the calling thread is running a kernel's wave: the C API answers HMMRT_ERROR_IN_KERNEL then.
bool in_kernel() noexcept;

}  // namespace hmmrt
