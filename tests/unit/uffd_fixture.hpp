// SPDX-License-Identifier: MIT
// What the uffd tests stand on: a fake device (frames are plain memory, copy engine is memcpy in the caller) and an
// event thread that reads events, and a server thread that brings faulting pages home, unless a test holds them back.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "host/uffd/uffd_mirror.hpp"
#include "unit/idle_device.hpp"

namespace hmmrt::test {

class FakeDevice final : public IdleDevice {
 public:
  FakeDevice(unsigned frames, bool addressable) : addressable_(addressable), bytes_(std::size_t{frames} * k_page_size) {
    memory_ =
        static_cast<std::byte*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(memory_, bytes_, MADV_HUGEPAGE);
    memset(memory_, 0xEE, bytes_);
  }
  ~FakeDevice() override { munmap(memory_, bytes_); }
  std::byte* frame(Frame f) { return memory_ + std::size_t{f} * k_page_size; }
  bool fail_copies = false;

  bool allocate_frames(std::uintptr_t, const PageMask&, Frame*) override { return false; }
  void free_frames(const PageMask&, const Frame*) override {}
  std::uint64_t free_frame_count() const override { return 0; }
  bool zero_frames(const PageMask& pages, const Frame* frames) override {
    pages.for_each([&](unsigned i) { memset(frame(frames[i]), 0, k_page_size); });
    return true;
  }
  std::byte* frame_address(Frame f) override { return addressable_ ? frame(f) : nullptr; }
  void map(std::uintptr_t, std::span<const MapSpan>) override {}
  PageMask unmap(std::uintptr_t, const PageMask&) override { return {}; }
  void replay(std::uintptr_t, const PageMask&) override {}
  CopyTicket copy_async(std::span<const CopyRun> runs) override {
    if (fail_copies) return 1;
    for (const CopyRun& r : runs) {
      const std::size_t n = std::size_t{r.pages} * k_page_size;
      if (r.kind == CopyKind::host_to_device) memcpy(frame(r.frame), r.host, n);
      if (r.kind == CopyKind::device_to_host) memcpy(r.host, frame(r.frame), n);
    }
    return 0;
  }
  bool wait_copy(CopyTicket) override { return !fail_copies; }

 private:
  bool addressable_;
  std::size_t bytes_;
  std::byte* memory_;
};

struct Variant {
  const char* name;
  bool fallback;
  bool addressable;
};
inline std::string variant_name(const testing::TestParamInfo<Variant>& v) { return v.param.name; }
inline const Variant k_variants[] = {
    {"move", false, true}, {"move_bounce", false, false}, {"fallback", true, true}, {"fallback_bounce", true, false}};

// Frame i of block b is b * 512 + i, so that expectations are arithmetic.
class World {
 public:
  World(Variant variant, unsigned blocks, bool user_mode_only = false)
      : device(blocks * k_block_pages, variant.addressable), blocks_(blocks), variant_(variant) {
    Status status;
    mirror = make_uffd_mirror({variant.fallback, user_mode_only}, &status);
    if (!mirror) return;
    for (unsigned i = 0; i < k_block_pages * blocks; ++i) frames_.push_back(i);
    away_.resize(blocks);
    events_ = std::thread([this] { run(); });
    const std::uintptr_t aligned = map_aligned(blocks * k_block_size, PROT_READ | PROT_WRITE);
    if (mirror->attach(aligned, blocks * k_block_size).ok()) memory = reinterpret_cast<std::byte*>(aligned);
    server_ = std::thread([this] { serve_all(); });
  }
  ~World() {
    if (!mirror) return;
    {
      const std::lock_guard lock(mutex_);
      stop_serving_ = true;
    }
    changed_.notify_all();
    server_.join();
    if (memory != nullptr) mirror->release(base(), blocks_ * k_block_size);
    stop_ = true;
    mirror->interrupt();
    events_.join();
  }

  std::uintptr_t base(unsigned block = 0) const {
    return reinterpret_cast<std::uintptr_t>(memory) + block * k_block_size;
  }
  const Frame* frames(unsigned block = 0) const { return frames_.data() + block * k_block_pages; }
  std::byte* frame(unsigned page, unsigned block = 0) { return device.frame(block * k_block_pages + page); }
  std::byte* page(unsigned page, unsigned block = 0) { return memory + block * k_block_size + page * k_page_size; }
  bool move() const { return mirror->info().path == "move"; }

  Transfer transfer(Direction direction, const PageMask& pages, unsigned block = 0) {
    Transfer t;
    t.base = base(block);
    t.direction = direction;
    t.device = &device;
    t.frames = frames(block);
    t.pages = pages;
    return t;
  }
  bool run_transfer(Transfer& t) {
    mirror->prepare(t);
    mirror->copy(t);
    if (!mirror->finish_copy(t)) {
      mirror->rollback(t);
      return false;
    }
    mirror->commit(t);
    return true;
  }
  // One claim for all blocks. The mirror, with the claim held until the end of the expression.
  struct Claimed {
    std::unique_lock<std::mutex> lock;
    HostMirror* mirror;
    HostMirror* operator->() const { return mirror; }
  };
  Claimed claimed() { return {std::unique_lock(claim_), mirror.get()}; }

  PageOutcome to_device(const PageMask& pages, bool duplicate = false, unsigned block = 0) {
    const std::lock_guard claim(claim_);
    Transfer t = transfer(Direction::to_device, pages, block);
    t.duplicate = duplicate;
    run_transfer(t);
    t.outcome.not_populated.for_each([&](unsigned i) { memset(frame(i, block), 0, k_page_size); });
    if (!duplicate) away_[block] |= t.outcome.taken();
    return t.outcome;
  }
  PageOutcome to_host(const PageMask& pages, bool duplicate = false, PageMask clean = {}, unsigned block = 0) {
    const std::lock_guard claim(claim_);
    return deliver(pages, duplicate, clean, block);
  }
  PageOutcome deliver(const PageMask& pages, bool duplicate, const PageMask& clean, unsigned block) {
    Transfer t = transfer(Direction::to_host, pages, block);
    t.duplicate = duplicate;
    t.clean = clean;
    run_transfer(t);
    away_[block] = away_[block] - t.outcome.done;
    return t.outcome;
  }

  void fill(unsigned seed, unsigned pages = k_block_pages) {
    for (unsigned i = 0; i < pages; ++i) memset(page(i), static_cast<int>((seed + i) & 0xff), k_page_size);
  }
  void hold_faults(bool on) { hold_ = on; }
  std::size_t fault_count() {
    const std::lock_guard lock(mutex_);
    return faults;
  }
  // Waits until an event satisfies `wanted`; the test's own time limit is ctest's.
  HostEvent await(const std::function<bool(const HostEvent&)>& wanted) {
    std::unique_lock lock(mutex_);
    for (;;) {
      for (const HostEvent& e : log) {
        if (wanted(e)) return e;
      }
      changed_.wait(lock);
    }
  }
  HostEvent await(HostEventKind kind) {
    return await([kind](const HostEvent& e) { return e.kind == kind; });
  }
  void forget_events() {
    const std::lock_guard lock(mutex_);
    log.clear();
  }
  std::size_t count(HostEventKind kind) {
    const std::lock_guard lock(mutex_);
    return static_cast<std::size_t>(std::count_if(log.begin(), log.end(), [kind](auto& e) { return e.kind == kind; }));
  }

  std::unique_ptr<HostMirror> mirror;
  FakeDevice device;
  std::byte* memory = nullptr;
  std::vector<HostEvent> log;
  std::size_t faults = 0;
  // From now on `handler` gets every event, on the event thread, and nothing is served here.
  void on_event(std::function<void(const HostEvent&)> handler) {
    const std::lock_guard lock(mutex_);
    handler_ = std::move(handler);
  }

 private:
  void run() {
    std::array<HostEvent, 64> events;
    while (!stop_) {
      mirror->wait(100'000'000);
      const std::size_t n = mirror->fetch(events);
      for (std::size_t i = 0; i < n; ++i) {
        const HostEvent& e = events[i];
        bool handled = false;
        {
          const std::lock_guard lock(mutex_);
          log.push_back(e);
          faults += e.kind == HostEventKind::fault;
          handled = static_cast<bool>(handler_);
          if (e.kind == HostEventKind::fault && !hold_ && !handled) queue_.push_back(e);
        }
        changed_.notify_all();
        if (handled) handler_(e);
      }
    }
  }
  void serve_all() {
    for (;;) {
      HostEvent e;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stop_serving_ || !queue_.empty(); });
        if (queue_.empty()) return;
        e = queue_.back();
        queue_.pop_back();
      }
      if (serve(e)) continue;
      const std::lock_guard lock(mutex_);  // busy: the thread still waits, and nobody raises its fault again
      queue_.insert(queue_.begin(), e);
    }
  }
  // False: busy.
  bool serve(const HostEvent& e) {
    const std::lock_guard claim(claim_);
    const auto block = static_cast<unsigned>((e.addr - base()) >> k_block_shift);
    const PageMask page = PageMask::one(page_in_block(e.addr));
    if (e.write_protected) {
      return mirror->write_protect(block_floor(e.addr), page, false).busy.none();
    }
    if (block < blocks_ && away_[block].intersects(page)) return deliver(page, false, {}, block).busy.none();
    return mirror->populate(block_floor(e.addr), page).busy.none();
  }

  unsigned blocks_;
  Variant variant_;
  std::vector<Frame> frames_;
  std::mutex claim_;
  std::vector<PageMask> away_;
  std::mutex mutex_;
  std::vector<HostEvent> queue_;
  std::function<void(const HostEvent&)> handler_;
  bool stop_serving_ = false;
  std::condition_variable changed_;
  std::atomic<bool> hold_{false};
  std::atomic<bool> stop_{false};
  std::thread events_;
  std::thread server_;
};

inline bool all_bytes(const std::byte* p, unsigned value) {
  for (std::size_t i = 0; i < k_page_size; ++i) {
    if (p[i] != static_cast<std::byte>(value & 0xff)) return false;
  }
  return true;
}

}  // namespace hmmrt::test
