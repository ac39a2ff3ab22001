// SPDX-License-Identifier: MIT
// The GPU side of the house: one of the two seams. A Device is frames, a page table, a fault buffer, copy engines and
// queues. Nothing above this header knows which implementation runs (soft/ is threads and fibers, gpu/ is HIP or CUDA).
//
// Contract shared by every function, unless it says otherwise:
//   Thread: any. Two calls on pages of the same block never run concurrently (the block's claim orders them); calls on
//           different blocks do.
//   Blocks on: device hardware only; never on application code, a host page fault, or a block's claim.
//   Never allocates on the paths map/unmap/quiesce/fetch/replay/copy; never touches managed memory through the CPU's
//   mapping, except that a `host` mapping target may be any address the host mirror vouched for.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "space/page.hpp"
#include "space/page_mask.hpp"
#include "space/park.hpp"
#include "space/status.hpp"

namespace hmmrt {

struct DeviceCaps {
  bool retryable_faults = false;  // an access that misses waits and is replayed
  bool remote_mapping = false;    // can map host pages (and peer frames, with `peer`)
  bool access_counters = false;   // counts remote accesses and reports hot regions
  bool coherent = false;          // the CPU can address frames directly
  bool system_atomics = false;    // atomics on a host mapping are atomic with the CPU's
  bool peer = false;              // can map another device's frames; then also peer_copy
  bool peer_copy = false;         // can copy another device's frames into its own
  bool dirty_bits = false;        // unmap() tells which pages were written; otherwise it says all of them
  bool placed = false;            // a page's frame follows from its address: see reach()
};

struct DeviceInfo {
  std::string name;                // "soft:0"
  unsigned index = 0;              // of the context's devices
  std::string description;         // one line for people
  std::uint64_t memory_bytes = 0;  // frames * 4 KiB
  std::uint32_t compute_units = 0;
  std::uint32_t wave_size = 0;  // lanes of a wave
  std::uint32_t fault_buffer_entries = 0;
  DeviceCaps caps;
};

// One entry of the fault buffer. The access stays stalled until its page is replayed or the launch is cancelled.
struct DeviceFault {
  std::uintptr_t addr = 0;  // byte address of the access
  std::uint64_t time_ns = 0;
  std::uint32_t launch = 0;  // which launch faulted (cancel() takes it)
  std::uint32_t wave = 0;
  Access access = Access::read;
};

// A hot region that a device accesses remotely (capability access_counters).
struct AccessCount {
  std::uintptr_t base = 0;  // block address
  std::uint32_t count = 0;  // remote accesses since the last report
  Processor resident = k_cpu;
};

// Contiguous frames [first, first + count) of one device.
struct FrameRun {
  Frame first = k_no_frame;
  std::uint32_t count = 0;
};

// What a run of pages is mapped to.
enum class Target : std::uint8_t { frames, host, peer };

// Pages [first, first + count) of a block, mapped to one contiguous target.
struct MapSpan {
  std::uint16_t first = 0;
  std::uint16_t count = 0;
  Rights rights = Rights::none;
  Target target = Target::frames;
  bool exclusive = false;           // with host: no other processor can reach the pages, so any atomic is safe
  Processor peer = k_no_processor;  // with Target::peer: whose frames
  Frame frame = k_no_frame;         // with frames and peer
  std::byte* host = nullptr;        // with host
};

enum class CopyKind : std::uint8_t { host_to_device, device_to_host, peer_to_device };

// One contiguous copy by a device's copy engine. `frame` is this device's; `peer_frame` is on device `peer`.
struct CopyRun {
  CopyKind kind = CopyKind::host_to_device;
  Processor peer = k_no_processor;
  Frame frame = k_no_frame;
  Frame peer_frame = k_no_frame;
  std::uint32_t pages = 0;
  std::byte* host = nullptr;
};

using CopyTicket = std::uint64_t;  // 0: already complete
using Queue = std::uint32_t;       // a device's handle for one in-order queue; 0 is never valid

struct Grid {
  std::uint64_t x = 1, y = 1, z = 1;  // work items in each dimension
};

// What a launch may touch, for devices whose accesses are not replayed: all of it is mapped before the kernel starts, in
// one way: in device memory, or (remote) in system memory.
struct ReadyPages {
  struct InBlock {
    std::uintptr_t base = 0;
    PageMask pages;
    PageMask writable;  // of them: what a kernel writes there counts
  };
  mutable std::atomic<std::uint64_t> unmaps{0};  // Device::unmaps() before the pages were last looked at
  bool remote = false;
  std::vector<InBlock> pages;
};

// Gets a launch's pages ready. The device calls it from the queue that runs the launch, with none of its locks held.
class LaunchPages {
 public:
  virtual ~LaunchPages() = default;
  // What they were the last time, if that may still do; else null. Cheap, waits for nothing. The device looks whether all
  // of it is still mapped.
  virtual std::shared_ptr<const ReadyPages> ready_now() = 0;
  // Migrates, and waits for it. attempt counts from 0: pages may be taken away again before the kernel starts. Null without
  // an error: not yet.
  virtual Status make_ready(unsigned attempt, std::shared_ptr<const ReadyPages>* out) = 0;
  // What was wrong, after an error.
  virtual std::string why() const = 0;
};

// A kernel: `run` is called once per wave with the lanes [first, first + count) of the linearised grid (x fastest).
// `functor` is copied at launch; it must be trivially copyable.
struct Launch {
  const char* name = "";  // copied; shown in errors and traces
  void (*run)(const void* functor, const Grid& grid, std::uint64_t first, std::uint64_t count) = nullptr;
  const void* functor = nullptr;
  std::size_t functor_bytes = 0;
  Grid grid;
  // For real GPUs: starts the kernel on a native stream, its managed pointers `offset` bytes away; returns the vendor's
  // error code. Null in programs that were not compiled for one.
  int (*run_gpu)(const void* functor, const Grid* grid, std::ptrdiff_t offset, void* native_stream) = nullptr;
  std::shared_ptr<LaunchPages> pages;  // for devices without retryable_faults
};

// Why a launch failed: its first forbidden access.
struct LaunchError {
  hmmrt_result_t result = HMMRT_SUCCESS;
  std::uintptr_t addr = 0;
  Access access = Access::read;
  char kernel[64] = {};
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;

  // --- frames ---------------------------------------------------------------------------------------------------
  // Fills `frames[i]` for each page i of `pages`, of the block at `base`, with a free frame, as contiguous and 2
  // MiB-aligned as free memory allows (a full mask gets one 2 MiB frame when there is one). All or nothing: returns false,
  // and changes nothing, when fewer frames are free. Contents are undefined; zero_frames() clears, or says that it did not.
  // `frames` has 512 entries.
  virtual bool allocate_frames(std::uintptr_t base, const PageMask& pages, Frame* frames) = 0;
  virtual void free_frames(const PageMask& pages, const Frame* frames) = 0;
  virtual std::uint64_t free_frame_count() const = 0;
  [[nodiscard]] virtual bool zero_frames(const PageMask& pages, const Frame* frames) = 0;
  // Devices that are `placed` keep managed memory at one constant offset, so that what they hold at a time lies within a
  // window as large as their memory. Puts [begin, end) into it: `now`; `once_empty`: every frame must be freed first,
  // then ask again; `never`: it is larger than the device.
  enum class Reach : std::uint8_t { now, once_empty, never };
  virtual Reach reach(std::uintptr_t /*begin*/, std::uintptr_t /*end*/) { return Reach::now; }
  // CPU address of a frame, or null where the CPU cannot address device memory.
  virtual std::byte* frame_address(Frame frame) = 0;

  // --- page table -----------------------------------------------------------------------------------------------
  // Installs translations for pages of the block at `base`; replaces what was there (widening or narrowing rights,
  // moving the target). Narrowing and moving need a quiesce() before they can be relied on.
  virtual void map(std::uintptr_t base, std::span<const MapSpan> spans) = 0;
  // Removes translations; unmapped pages are ignored. Returns the pages written through the removed translations.
  virtual PageMask unmap(std::uintptr_t base, const PageMask& pages) = 0;
  // True: no access is in flight, or will start, through a translation removed or narrowed before the call. False: after
  // timeout_ns some access was still in flight (it may be stuck in a CPU fault on a `host` target); call again.
  virtual bool quiesce(std::uint64_t timeout_ns) = 0;
  // For a wait in several calls, which has an end however much is launched meanwhile: the launches so far, and a quiesce()
  // that waits for no later ones. Devices without retryable_faults.
  virtual std::uint64_t launches() const { return 0; }
  virtual bool quiesce_launches(std::uint64_t timeout_ns, std::uint64_t /*launches*/) { return quiesce(timeout_ns); }
  // How often unmap(), or map() with less, has taken something away. Devices without retryable_faults.
  virtual std::uint64_t unmaps() const { return 0; }

  // --- fault buffer ---------------------------------------------------------------------------------------------
  // Takes up to out.size() entries, oldest first; 0 when empty. Does not block: the doorbell given at creation rings
  // when the buffer turns non-empty.
  virtual std::size_t fetch_faults(std::span<DeviceFault> out) = 0;
  // Accesses stalled on these pages are tried again.
  virtual void replay(std::uintptr_t base, const PageMask& pages) = 0;
  virtual void replay_all() = 0;
  // Fails the launch: its stalled waves end, waves not started never run, and its queue reports the error.
  virtual void cancel(std::uint32_t launch, const LaunchError& error) = 0;
  // Faults dropped because the buffer was full, so far. Dropped accesses stay stalled and push again at replay_all().
  virtual std::uint64_t fault_overflows() const = 0;

  // --- use ------------------------------------------------------------------------------------------------------
  virtual std::size_t fetch_access_counts(std::span<AccessCount> out) = 0;
  // Recency of local use of a block: larger is later, 0 means never or unknown. Cheap; called for victim choice.
  virtual std::uint64_t last_use(std::uintptr_t base) const = 0;
  virtual std::uint64_t remote_accesses() const {
    return 0;
  }  // 64-byte transactions through remote mappings, if counted
  virtual std::uint64_t metadata_bytes() const { return 0; }  // bookkeeping in system memory

  // --- copy engines ---------------------------------------------------------------------------------------------
  // Starts the copies, in any order among themselves. The runs array need not outlive the call; the memory must,
  // until wait_copy() returns for the ticket. Many tickets may be in flight.
  virtual CopyTicket copy_async(std::span<const CopyRun> runs) = 0;
  // False when a run of the ticket failed; then destination contents are undefined and sources are untouched.
  virtual bool wait_copy(CopyTicket ticket) = 0;

  // --- queues ---------------------------------------------------------------------------------------------------
  virtual Status create_queue(Queue* out) = 0;
  // Waits for the queue's work, then frees it.
  virtual void destroy_queue(Queue queue) = 0;
  virtual Status launch(Queue queue, const Launch& launch) = 0;
  // Runs fn(arg) on a host thread in queue order: after everything enqueued before, before everything after.
  virtual Status enqueue_host(Queue queue, void (*fn)(void*), void* arg) = 0;
  // Waits until the queue is empty. Returns, and clears, the first launch error since the last synchronize.
  virtual LaunchError synchronize(Queue queue) = 0;
  // True when everything enqueued has finished.
  virtual bool idle(Queue queue) = 0;
};

}  // namespace hmmrt
