// SPDX-License-Identifier: MIT
// SimDevice: a software GPU in deterministic mode behind a proxy that yields at every call of the seam, keeps a record of
// the translations installed (for the coherence check), and makes quiesces slow.
#pragma once

#include <vector>

#include "device/soft/soft_device.hpp"
#include "scheduler.hpp"

namespace hmmrt::sim {

struct Translation {
  Rights rights = Rights::none;
  Target target = Target::frames;
  Processor peer = k_no_processor;
};

class SimDevice final : public Device {
 public:
  SimDevice(SoftDevice& soft, Scheduler& scheduler, std::uintptr_t base, std::size_t pages, unsigned slow_percent)
      : soft_(soft), scheduler_(scheduler), slow_percent_(slow_percent), base_(base), translations_(pages) {}

  // What the device translates `addr` to; rights none when it does not.
  Translation translation(std::uintptr_t addr) const { return translations_[(addr - base_) >> k_page_shift]; }

  const DeviceInfo& info() const override { return soft_.info(); }
  bool allocate_frames(std::uintptr_t base, const PageMask& pages, Frame* frames) override {
    scheduler_.maybe_yield();
    return soft_.allocate_frames(base, pages, frames);
  }
  void free_frames(const PageMask& pages, const Frame* frames) override { soft_.free_frames(pages, frames); }
  std::uint64_t free_frame_count() const override { return soft_.free_frame_count(); }
  bool zero_frames(const PageMask& pages, const Frame* frames) override { return soft_.zero_frames(pages, frames); }
  std::byte* frame_address(Frame frame) override { return soft_.frame_address(frame); }
  void map(std::uintptr_t base, std::span<const MapSpan> spans) override {
    scheduler_.maybe_yield();
    for (const MapSpan& s : spans) {
      for (unsigned i = 0; i < s.count; ++i) {
        scheduler_.trace(soft_.info().name == "soft:0" ? "map d0" : "map d1", base + (s.first + i) * k_page_size,
                         static_cast<unsigned>(s.rights) << 4 | static_cast<unsigned>(s.target));
        at(base + (s.first + i) * k_page_size) = {s.rights, s.target, s.peer};
      }
    }
    soft_.map(base, spans);
  }
  PageMask unmap(std::uintptr_t base, const PageMask& pages) override {
    scheduler_.maybe_yield();
    pages.for_each([&](unsigned page) {
      scheduler_.trace(soft_.info().name == "soft:0" ? "unmap d0" : "unmap d1", base + page * k_page_size);
      at(base + page * k_page_size) = {};
    });
    return soft_.unmap(base, pages);
  }
  bool quiesce(std::uint64_t timeout_ns) override {
    scheduler_.maybe_yield();
    if (scheduler_.random().chance(slow_percent_)) return false;
    return soft_.quiesce(timeout_ns);
  }
  std::size_t fetch_faults(std::span<DeviceFault> out) override {
    const std::size_t n = soft_.fetch_faults(out);
    for (std::size_t i = 0; i < n; ++i) {
      scheduler_.trace("fault", out[i].addr, static_cast<unsigned>(out[i].access));
    }
    return n;
  }
  void replay(std::uintptr_t base, const PageMask& pages) override {
    scheduler_.maybe_yield();
    pages.for_each([&](unsigned page) { scheduler_.trace("replay", base + page * k_page_size); });
    soft_.replay(base, pages);
  }
  void replay_all() override { soft_.replay_all(); }
  void cancel(std::uint32_t launch, const LaunchError& error) override { soft_.cancel(launch, error); }
  std::uint64_t fault_overflows() const override { return soft_.fault_overflows(); }
  std::size_t fetch_access_counts(std::span<AccessCount> out) override { return soft_.fetch_access_counts(out); }
  std::uint64_t last_use(std::uintptr_t base) const override { return soft_.last_use(base); }
  CopyTicket copy_async(std::span<const CopyRun> runs) override { return soft_.copy_async(runs); }
  bool wait_copy(CopyTicket ticket) override { return soft_.wait_copy(ticket); }
  Status create_queue(Queue* out) override { return soft_.create_queue(out); }
  void destroy_queue(Queue queue) override { soft_.destroy_queue(queue); }
  Status launch(Queue queue, const Launch& launch) override { return soft_.launch(queue, launch); }
  Status enqueue_host(Queue queue, void (*fn)(void*), void* arg) override { return soft_.enqueue_host(queue, fn, arg); }
  LaunchError synchronize(Queue queue) override { return soft_.synchronize(queue); }
  bool idle(Queue queue) override { return soft_.idle(queue); }

  SoftDevice& soft() { return soft_; }

 private:
  SoftDevice& soft_;
  Scheduler& scheduler_;
  unsigned slow_percent_;
  Translation& at(std::uintptr_t addr) {
    scheduler_.changed(addr);
    return translations_[(addr - base_) >> k_page_shift];
  }

  std::uintptr_t base_;
  std::vector<Translation> translations_;
};

}  // namespace hmmrt::sim
