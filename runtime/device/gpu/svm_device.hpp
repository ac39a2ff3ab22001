// SPDX-License-Identifier: MIT
// A GPU whose driver serves its faults and moves its pages (AMD's, with SVM): what is left to do here is to start kernels,
// at the addresses that the CPU uses. The page table, the frames and the copies are the driver's; the host mirror kfd asks
// it for moves and hears of those it makes by itself, so:
//
//   frames     are counted, not kept: how much the books say is here, against the GPU's memory
//   map, unmap nothing to do; what was written is not known, so: all of it
//   quiesce    the driver waits for its hardware before it lets the CPU, or anyone, have a page
//   faults     come by way of the mirror, served already
#pragma once

#include <atomic>
#include <memory>

#include "device/gpu/queue_owner.hpp"

namespace hmmrt::gpu {

class SvmDevice final : public hmmrt::Device, public QueueOwner {
 public:
  // Null: services.fail() was called.
  static std::unique_ptr<hmmrt::Device> make(const DeviceConfig& config, const Services& services);
  ~SvmDevice() override;

  const DeviceInfo& info() const override { return info_; }

  bool allocate_frames(std::uintptr_t base, const PageMask& pages, Frame* frames) override;
  void free_frames(const PageMask& pages, const Frame* frames) override;
  std::uint64_t free_frame_count() const override;
  bool zero_frames(const PageMask&, const Frame*) override { return true; }
  std::byte* frame_address(Frame) override { return nullptr; }

  void map(std::uintptr_t, std::span<const MapSpan>) override {}
  PageMask unmap(std::uintptr_t, const PageMask& pages) override { return pages; }
  bool quiesce(std::uint64_t) override { return true; }

  std::size_t fetch_faults(std::span<DeviceFault>) override { return 0; }
  void replay(std::uintptr_t, const PageMask&) override {}
  void replay_all() override {}
  void cancel(std::uint32_t, const LaunchError&) override {}
  std::uint64_t fault_overflows() const override { return 0; }
  std::size_t fetch_access_counts(std::span<AccessCount>) override { return 0; }
  std::uint64_t last_use(std::uintptr_t) const override { return 0; }

  CopyTicket copy_async(std::span<const CopyRun>) override { return 0; }
  bool wait_copy(CopyTicket) override { return true; }

  Status create_queue(Queue* out) override { return queues_.create(out); }
  void destroy_queue(Queue queue) override { queues_.destroy(queue); }
  Status launch(Queue queue, const Launch& launch) override { return queues_.launch(queue, launch); }
  Status enqueue_host(Queue queue, void (*fn)(void*), void* arg) override {
    return queues_.enqueue_host(queue, fn, arg);
  }
  LaunchError synchronize(Queue queue) override { return queues_.synchronize(queue); }
  bool idle(Queue queue) override { return queues_.idle(queue); }

  Current use() const override { return Current(config_.ordinal); }
  Start start(Stream stream, const Launch& launch, const ReadyPages* ready, Error* error) override;

 private:
  SvmDevice(DeviceConfig config, const Services& services);
  Error open();

  const DeviceConfig config_;
  const Services services_;
  DeviceInfo info_;
  std::uint64_t frames_ = 0;
  std::atomic<std::uint64_t> used_{0};
  Queues queues_;
};

}  // namespace hmmrt::gpu
