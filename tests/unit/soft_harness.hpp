// SPDX-License-Identifier: MIT
// What the soft_*_test programs share: a managed region whose addresses no CPU access survives, with its contents in an
// ordinary array beside it, and a fault service of the simplest kind (one thread, one page at a time, no policy).
// Thread: a Service's own thread serves; the test reads its state only after stop().
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <hmmrt/kernel.hpp>
#include <mutex>
#include <thread>
#include <vector>

#include "device/soft/soft_device.hpp"

namespace hmmrt::test {

// Address space that is managed by nobody but the test: PROT_NONE, 2 MiB aligned.
class Region {
 public:
  explicit Region(std::size_t blocks) : bytes_(blocks * k_block_size), contents_(bytes_ + k_page_size) {
    mapping_ = mmap(nullptr, bytes_ + k_block_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    base_ = block_ceil(reinterpret_cast<std::uintptr_t>(mapping_));
    first_ = page_ceil(reinterpret_cast<std::uintptr_t>(contents_.data())) -
             reinterpret_cast<std::uintptr_t>(contents_.data());
  }
  ~Region() { munmap(mapping_, bytes_ + k_block_size); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  std::uintptr_t base() const { return base_; }
  std::size_t bytes() const { return bytes_; }
  unsigned pages() const { return static_cast<unsigned>(bytes_ / k_page_size); }
  bool contains(std::uintptr_t a) const { return a >= base_ && a < base_ + bytes_; }
  unsigned page(std::uintptr_t a) const { return static_cast<unsigned>((a - base_) >> k_page_shift); }
  std::uintptr_t address(unsigned page) const { return base_ + std::size_t{page} * k_page_size; }
  // The CPU's copy of the contents, page aligned.
  template <class T = std::byte>
  T* contents(std::size_t offset = 0) {
    return reinterpret_cast<T*>(contents_.data() + first_ + offset);
  }
  template <class T>
  gptr<T> at(std::size_t offset = 0) const {
    return {reinterpret_cast<T*>(base_ + offset)};
  }

 private:
  std::size_t bytes_;
  void* mapping_;
  std::uintptr_t base_;
  std::vector<std::byte> contents_;
  std::size_t first_ = 0;
};

// One span of one page, or more.
inline MapSpan frames_span(unsigned first, unsigned count, Frame frame, Rights rights) {
  MapSpan s;
  s.first = static_cast<std::uint16_t>(first);
  s.count = static_cast<std::uint16_t>(count);
  s.rights = rights;
  s.frame = frame;
  return s;
}
inline MapSpan host_span(unsigned first, unsigned count, std::byte* host, Rights rights) {
  MapSpan s = frames_span(first, count, k_no_frame, rights);
  s.target = Target::host;
  s.host = host;
  return s;
}
inline void map_one(Device& device, std::uintptr_t addr, const MapSpan& span) {
  device.map(block_floor(addr), std::span(&span, 1));
}
inline Frame allocate_one(Device& device) {
  Frame frames[k_block_pages];
  return device.allocate_frames(0, PageMask::one(0), frames) ? frames[0] : k_no_frame;
}

// Serves faults: gives the page a frame with the region's contents, or what `on_fault` does instead.
class Service {
 public:
  using OnFault = std::function<bool(const DeviceFault&)>;  // true: served, not yet replayed

  Service(SoftDevice& device, Doorbell& bell, Region& region, OnFault on_fault = {})
      : device_(device),
        bell_(bell),
        region_(region),
        on_fault_(std::move(on_fault)),
        frames_(region.pages(), k_no_frame),
        writable_(region.pages(), false) {
    thread_ = std::thread([this] { run(); });
  }
  ~Service() { stop(); }

  void stop() {
    if (!thread_.joinable()) return;
    stopping_.store(true);
    bell_.ring();
    thread_.join();
  }

  // Takes every page back into the region's contents. Requires no launch running. Returns the pages that were written.
  std::vector<bool> bring_home() {
    stop();
    std::vector<bool> dirty(region_.pages(), false);
    for (unsigned p = 0; p < region_.pages(); ++p) {
      if (frames_[p] == k_no_frame) continue;
      const std::uintptr_t addr = region_.address(p);
      dirty[p] = device_.unmap(block_floor(addr), PageMask::one(page_in_block(addr))).any();
      EXPECT_TRUE(device_.quiesce(0));
      std::memcpy(region_.contents(std::size_t{p} * k_page_size), device_.frame_address(frames_[p]), k_page_size);
      device_.free_frames(PageMask::one(0), &frames_[p]);
      frames_[p] = k_no_frame;
    }
    return dirty;
  }

  // Also callable by the test, beside the thread.
  void serve(const DeviceFault& f) {
    const std::lock_guard lock(mutex_);
    if (on_fault_ && on_fault_(f)) {
      // served
    } else if (!region_.contains(f.addr)) {
      LaunchError e;
      e.result = HMMRT_ERROR_ILLEGAL_ADDRESS;
      e.addr = f.addr;
      e.access = f.access;
      device_.cancel(f.launch, e);
      return;
    } else {
      bring(region_.page(f.addr), f.access != Access::read);
    }
    device_.replay(block_floor(f.addr), PageMask::one(page_in_block(f.addr)));
  }

  std::uint64_t faults() const { return faults_.load(); }
  std::size_t largest_batch() const { return largest_.load(); }

 private:
  void bring(unsigned p, bool write) {
    const std::uintptr_t addr = region_.address(p);
    if (frames_[p] == k_no_frame) {
      frames_[p] = allocate_one(device_);
      ASSERT_NE(frames_[p], k_no_frame);
      std::memcpy(device_.frame_address(frames_[p]), region_.contents(std::size_t{p} * k_page_size), k_page_size);
    } else if (writable_[p] || !write) {
      return;  // stale
    }
    writable_[p] = writable_[p] || write;
    map_one(device_, addr, frames_span(page_in_block(addr), 1, frames_[p], write ? Rights::write : Rights::read));
  }

  void run() {
    std::vector<DeviceFault> batch(4096);
    std::uint64_t overflows = 0;
    while (!stopping_.load()) {
      const std::uint32_t seen = bell_.seen();
      const std::size_t n = device_.fetch_faults(batch);
      for (std::size_t i = 0; i < n; ++i) serve(batch[i]);
      faults_.fetch_add(n);
      if (n > largest_.load()) largest_.store(n);
      if (const std::uint64_t o = device_.fault_overflows(); n == 0 && o != overflows) {
        overflows = o;
        device_.replay_all();
      } else if (n == 0) {
        bell_.wait(seen, 1'000'000);
      }
    }
  }

  SoftDevice& device_;
  Doorbell& bell_;
  Region& region_;
  OnFault on_fault_;
  std::vector<Frame> frames_;
  std::vector<bool> writable_;
  std::mutex mutex_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> faults_{0};
  std::atomic<std::size_t> largest_{0};
  std::thread thread_;
};

// Runs a C++ functor on a Device as hmmrt::launch does through the C ABI.
template <class F>
void run_items_on_device(const void* functor, const Grid& grid, std::uint64_t first, std::uint64_t count) {
  const hmmrt_grid_t g{grid.x, grid.y, grid.z};
  detail::run_items<F>(functor, &g, first, count);
}
template <class F>
Status launch(Device& device, Queue queue, Grid grid, const F& f, const char* name = "test") {
  static_assert(std::is_trivially_copyable_v<F>);
  Launch l;
  l.name = name;
  l.run = &run_items_on_device<F>;
  l.functor = &f;
  l.functor_bytes = sizeof f;
  l.grid = grid;
  return device.launch(queue, l);
}

// A device, its bell and one queue.
struct Rig {
  explicit Rig(SoftDeviceConfig config = small()) : device(config, bell, clock) {
    EXPECT_TRUE(device.create_queue(&queue).ok());
  }
  static SoftDeviceConfig small() {
    SoftDeviceConfig c;
    c.memory_bytes = 16 * k_block_size;
    c.compute_units = 2;
    c.waves_per_unit = 32;
    return c;
  }
  template <class F>
  LaunchError run(Grid grid, const F& f) {
    EXPECT_TRUE(launch(device, queue, grid, f).ok());
    return device.synchronize(queue);
  }

  Doorbell bell;
  MonotonicClock clock;
  SoftDevice device;
  Queue queue = 0;
};

}  // namespace hmmrt::test
