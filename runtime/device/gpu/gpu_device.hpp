// SPDX-License-Identifier: MIT
// A real GPU without retryable faults, over HIP or CUDA: nothing an access does can be waited for or taken back, so a
// kernel starts only when every page it may touch is mapped, and what it may touch is taken away only when it has ended.
//
//   memory    one allocation of the vendor's. A managed address A, within a window as large as that allocation, has its
//             frame at A + offset: pointers stored inside managed data work after one addition. reach() moves the window.
//   remote    managed memory where it is, pinned and mapped by the vendor, at its own address: offset 0. A launch is of
//             one kind or the other (ReadyPages::remote).
//   peers     frames of another GPU of the context are copied by the vendor's runtime, and never mapped.
//   queues    a thread each, for what must wait: making pages ready, host functions. A launch whose pages are ready, on a
//             queue with nothing else to do, starts in the caller's thread.
//   quiesce   waits for the kernels that started before it. unmap() first marks the pages, and a launch looks at the
//             marks and counts its kernel under one lock: so it is either seen by quiesce(), or sees the pages gone.
//
// Locks, outermost first: a queue's, start_, unpin_lock_, remote_lock_, table_. Serving a CPU fault waits for none that is held while the
// vendor waits for a kernel (a queue's, start_) or touches host memory.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <mutex>
#include <vector>

#include "device/gpu/copy_lanes.hpp"
#include "device/gpu/host_pins.hpp"
#include "device/gpu/queue_owner.hpp"

namespace hmmrt::gpu {

class GpuDevice final : public hmmrt::Device, public QueueOwner {
 public:
  // Null: services.fail() was called.
  static std::unique_ptr<hmmrt::Device> make(const DeviceConfig& config, const Services& services);
  ~GpuDevice() override;

  const DeviceInfo& info() const override { return info_; }

  bool allocate_frames(std::uintptr_t base, const PageMask& pages, Frame* frames) override;
  void free_frames(const PageMask& pages, const Frame* frames) override;
  std::uint64_t free_frame_count() const override { return frames_ - used_.load(std::memory_order_relaxed); }
  bool zero_frames(const PageMask& pages, const Frame* frames) override;
  Reach reach(std::uintptr_t begin, std::uintptr_t end) override;
  std::byte* frame_address(Frame) override { return nullptr; }

  void map(std::uintptr_t base, std::span<const MapSpan> spans) override;
  PageMask unmap(std::uintptr_t base, const PageMask& pages) override;
  bool quiesce(std::uint64_t timeout_ns) override { return quiesce_launches(timeout_ns, launches()); }
  std::uint64_t launches() const override { return kernels_.load(std::memory_order_acquire); }
  bool quiesce_launches(std::uint64_t timeout_ns, std::uint64_t launches) override;
  std::uint64_t unmaps() const override { return unmaps_.load(std::memory_order_acquire); }

  std::size_t fetch_faults(std::span<DeviceFault>) override { return 0; }
  void replay(std::uintptr_t, const PageMask&) override {}
  void replay_all() override {}
  void cancel(std::uint32_t, const LaunchError&) override {}
  std::uint64_t fault_overflows() const override { return 0; }
  std::size_t fetch_access_counts(std::span<AccessCount>) override { return 0; }
  std::uint64_t last_use(std::uintptr_t) const override { return 0; }
  std::uint64_t metadata_bytes() const override;

  CopyTicket copy_async(std::span<const CopyRun> runs) override;
  bool wait_copy(CopyTicket ticket) override;

  Status create_queue(Queue* out) override { return queues_.create(out); }
  void destroy_queue(Queue queue) override { queues_.destroy(queue); }
  Status launch(Queue queue, const Launch& launch) override { return queues_.launch(queue, launch); }
  Status enqueue_host(Queue queue, void (*fn)(void*), void* arg) override {
    return queues_.enqueue_host(queue, fn, arg);
  }
  LaunchError synchronize(Queue queue) override { return queues_.synchronize(queue); }
  bool idle(Queue queue) override { return queues_.idle(queue); }

  Start start(Stream stream, const Launch& launch, const ReadyPages* ready, Error* error) override;
  Current use() const override { return Current(config_.ordinal); }
  std::string broken() const override;
  std::string pin_error() override;

 private:
  struct Kernel {  // in flight, or ended and not looked at
    Event done;
    std::uint64_t number;
  };
  struct Mapped {
    PageMask read, write;  // disjoint
  };
  struct Pinned {  // pages that the vendor has pinned in one call
    std::uint16_t first, count;
    std::shared_ptr<HostPin> pin;
  };
  struct Remote {
    Mapped mapped;
    std::vector<Pinned> pinned;
  };
  struct Stale {  // to be unpinned when kernel `number` and those before have ended
    std::uint64_t number;
    Pinned pinned;
    const GpuDevice* cause;  // who unmapped a page of it
  };

  GpuDevice(DeviceConfig config, const Services& services);
  Error open();
  void describe_itself();
  void meet(GpuDevice& other);         // devices().lock held
  Mapped* local(std::uintptr_t base);  // table_ held; null outside the window
  bool holds(const ReadyPages& ready);
  PageMask pin(std::uintptr_t base, const PageMask& pages, const MapSpan& span);
  void unpin_stale(std::uint64_t ended);
  // Maps pages with exactly these rights; true: some of them had more. take(): unmaps; returns what was writable.
  static bool give(Mapped& mapped, const PageMask& pages, Rights rights);
  static PageMask take(Mapped& mapped, const PageMask& pages);
  PageMask unmap_remote(std::uintptr_t base, const PageMask& pages, const PageMask& asked, PageMask* unpinned,
                        const GpuDevice* cause);
  bool finish_kernels(std::uint64_t timeout_ns, std::uint64_t number);
  void reap();
  std::uint64_t last_stale(const GpuDevice* cause);
  void break_down(const char* what, Error error);

  const DeviceConfig config_;
  const Services services_;
  DeviceInfo info_;
  std::byte* pool_ = nullptr;
  std::uint64_t frames_ = 0;
  std::atomic<std::uint64_t> used_{0}, unmaps_{0};
  CopyLanes lanes_;

  std::atomic<std::uint64_t> kernels_{0};           // that saw their pages mapped. Counted up with table_ held
  std::atomic<std::uint64_t> waiting_since_ns_{0};  // quiesce() has been, 0: has not
  std::mutex start_;  // kernels start, and are listed, one after the other; the vendor may take its time
  std::list<Kernel> in_flight_;
  std::vector<Event> spare_events_;

  std::mutex unpin_lock_;  // held until what is stale is unpinned
  std::mutex remote_lock_;
  std::map<std::uintptr_t, Remote> remote_;  // by block. Written with table_ held as well
  std::vector<Stale> stale_;
  std::string pin_error_;
  std::atomic<bool> holds_less_{false};  // once: the caller may take pages for mapped that are not

  mutable std::mutex table_;
  std::uintptr_t window_ = 0;     // block aligned; 0: none
  std::vector<Mapped> mapped_;    // by block of the window
  std::vector<PageMask> in_use_;  // frames; also by what an mremap has moved to another address
  std::string broken_;

  Queues queues_;
};

}  // namespace hmmrt::gpu
