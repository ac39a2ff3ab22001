// SPDX-License-Identifier: MIT
// ModelHost: a HostMirror over a model of the CPU's page table, standing in for Linux in the deterministic simulation.
// Addresses are made up and never dereferenced; a page's bytes live in `system`, or in `staging` while withdrawn. It
// refuses pages at random (busy, pinned), makes calls fail while an application's madvise or munmap is in flight, as
// userfaultfd does with EAGAIN, and yields at every call so that anything may happen in between.
#pragma once

#include <deque>
#include <vector>

#include "host/host_mirror.hpp"
#include "scheduler.hpp"

namespace hmmrt::sim {

struct ModelHostConfig {
  std::uintptr_t base = 0;
  std::size_t pages = 0;
  bool write_protect = true;
  unsigned busy_percent = 0;
  unsigned pinned_percent = 0;
};

class ModelHost final : public HostMirror {
 public:
  ModelHost(const ModelHostConfig& config, Scheduler& scheduler)
      : config_(config),
        scheduler_(scheduler),
        pages_(config.pages),
        system_memory_((config.pages + 1) * k_page_size),
        staging_memory_((config.pages + 1) * k_page_size),
        system_(aligned(system_memory_)),
        staging_(aligned(staging_memory_)) {
    info_.name = "model";
    info_.path = "move";
    info_.write_protect = config.write_protect;
    info_.kernel_faults = true;
  }

  // --- the CPU as the application's threads see it ---
  bool mapped(std::uintptr_t addr) const { return addr >= config_.base && index(addr) < pages_.size(); }
  bool readable(std::uintptr_t addr) const { return page(addr).present; }
  bool writable(std::uintptr_t addr) const { return page(addr).present && !page(addr).wp; }
  std::byte* bytes(std::uintptr_t addr) { return &system_[addr - config_.base]; }
  // Raises the fault that an access would raise. The caller yields and tries again.
  void fault(std::uintptr_t addr, Access access, std::uint64_t now) {
    for (const HostEvent& e : events_) {
      if (e.kind == HostEventKind::fault && e.addr == addr && e.access == access) return;
    }
    HostEvent e;
    e.addr = addr;
    e.access = access;
    e.write_protected = page(addr).present;
    e.time_ns = now;
    events_.push_back(e);
  }
  // madvise(MADV_DONTNEED): an event, a wait until it was read, then the zap. `twice` repeats the notice.
  void dont_need(std::uintptr_t addr, std::size_t n, bool twice) {
    HostEvent e;
    e.kind = HostEventKind::remove;
    e.addr = addr;
    e.bytes = n * k_page_size;
    for (int i = 0; i < (twice ? 2 : 1); ++i) {
      ++changing_;
      const std::uint64_t ticket = ++pushed_;
      events_.push_back(e);
      events_.back().thread = static_cast<std::uint32_t>(ticket);
      while (read_ < ticket) scheduler_.yield();
      --changing_;
      scheduler_.maybe_yield();
      for (std::size_t k = 0; k < n; ++k) {
        scheduler_.trace("zap", addr + k * k_page_size);
        Page& p = page(addr + k * k_page_size);
        p.present = p.wp = p.populated = p.dropping = false;
        std::fill_n(bytes(addr + k * k_page_size), k_page_size, std::byte{0});
      }
    }
  }

  // --- HostMirror ---
  const HostMirrorInfo& info() const override { return info_; }
  void release(std::uintptr_t, std::size_t) override {}
  Status attach(std::uintptr_t, std::size_t) override { return {}; }
  void detach(std::uintptr_t, std::size_t) override {}
  void query_rights(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, std::uintptr_t, std::size_t, Rights),
                    void* arg) override {
    fn(arg, addr, bytes, Rights::write);
  }
  void wait(std::int64_t) override { scheduler_.yield(); }
  std::size_t fetch(std::span<HostEvent> out) override {
    std::size_t n = 0;
    while (n < out.size() && !events_.empty()) {
      out[n] = events_.front();
      events_.pop_front();
      if (out[n].kind != HostEventKind::fault) read_ = out[n].thread;
      ++n;
    }
    return n;
  }
  void interrupt() override {}
  void wake(std::uintptr_t, const PageMask&) override {}

  void prepare(Transfer& t) override {
    scheduler_.maybe_yield();
    t.pages.for_each([&](unsigned i) {
      Page& p = page(t.base + i * k_page_size);
      if (changing_ != 0 || scheduler_.random().chance(config_.busy_percent)) {
        t.outcome.busy.set(i);
      } else if (t.direction == Direction::to_host) {
        t.outcome.done.set(i);
      } else if (scheduler_.random().chance(config_.pinned_percent)) {
        t.outcome.pinned.set(i);
      } else if (t.duplicate) {
        if (!p.populated) populate_page(p);
        p.wp = true;
        t.outcome.done.set(i);
      } else {
        const bool had = p.populated;
        withdraw(t.base + i * k_page_size);
        (had ? t.outcome.done : t.outcome.not_populated).set(i);
      }
    });
  }
  void copy(Transfer& t) override {
    scheduler_.maybe_yield();
    PageMask copied;
    std::vector<CopyRun> runs;
    t.outcome.done.for_each([&](unsigned i) {
      const std::uintptr_t addr = t.base + i * k_page_size;
      const bool to_host = t.direction == Direction::to_host;
      if (to_host && t.clean.test(i) && page(addr).staged && !t.duplicate) return;
      CopyRun run;
      run.kind = to_host ? CopyKind::device_to_host : CopyKind::host_to_device;
      run.frame = t.frames[i];
      run.pages = 1;
      scheduler_.trace(to_host ? "copy to host" : "copy to device", addr, run.frame);
      run.host = !to_host && t.duplicate ? bytes(addr) : staged(addr);
      runs.push_back(run);
      copied.set(i);
    });
    t.copied = copied;
    t.ticket = runs.empty() ? 0 : t.device->copy_async(runs);
    scheduler_.maybe_yield();
  }
  bool finish_copy(Transfer& t) override {
    scheduler_.maybe_yield();
    return t.ticket == 0 || t.device->wait_copy(t.ticket);
  }
  void commit(Transfer& t) override {
    if (t.direction == Direction::to_device) return;
    const PageMask all = t.outcome.done;
    all.for_each([&](unsigned i) {
      Page& p = page(t.base + i * k_page_size);
      // While an event is unread the kernel refuses; nothing is lost.
      if (changing_ != 0 && read_ < pushed_) {
        t.outcome.done.clear(i);
        t.outcome.busy.set(i);
        return;
      }
      scheduler_.trace(t.duplicate ? "deliver copy" : "deliver", t.base + i * k_page_size,
                       *reinterpret_cast<std::uint64_t*>(staged(t.base + i * k_page_size) + 1024));
      std::copy_n(staged(t.base + i * k_page_size), k_page_size, bytes(t.base + i * k_page_size));
      p.present = p.populated = true;
      p.staged = false;
      p.wp = t.duplicate;
    });
  }
  void rollback(Transfer& t) override {
    const PageMask all = t.outcome.taken();
    all.for_each([&](unsigned i) {
      Page& p = page(t.base + i * k_page_size);
      if (t.direction == Direction::to_host) return;
      if (t.duplicate) {
        p.wp = false;
      } else if (t.outcome.done.test(i) && scheduler_.random().chance(10)) {  // an event waits to be read
        t.outcome.done.clear(i);
        t.outcome.busy.set(i);
      } else if (t.outcome.done.test(i)) {
        restore(t.base + i * k_page_size);
      }
    });
  }
  PageOutcome populate(std::uintptr_t base, const PageMask& pages) override {
    scheduler_.maybe_yield();
    PageOutcome o;
    pages.for_each([&](unsigned i) { populate_unclaimed(base + i * k_page_size); });
    o.done = pages;
    return o;
  }
  void populate_unclaimed(std::uintptr_t addr) override {
    scheduler_.trace("populate", addr);
    if (mapped(addr)) populate_page(page(addr));
  }
  PageOutcome write_protect(std::uintptr_t base, const PageMask& pages, bool on) override {
    scheduler_.maybe_yield();
    PageOutcome o;
    pages.for_each([&](unsigned i) { page(base + i * k_page_size).wp = on; });
    o.done = pages;
    return o;
  }
  PageOutcome give_back(std::uintptr_t base, const PageMask& pages) override {
    PageOutcome o;
    scheduler_.maybe_yield();
    pages.for_each([&](unsigned i) { restore(base + i * k_page_size); });
    o.done = pages;
    return o;
  }
  void drop(std::uintptr_t base, const PageMask& pages) override {
    pages.for_each([&](unsigned i) { page(base + i * k_page_size).staged = false; });
  }
  void watch_drop(std::uintptr_t base, const PageMask& pages) override {
    pages.for_each([&](unsigned i) {
      Page& p = page(base + i * k_page_size);
      if (p.present) p.wp = p.dropping = true;
    });
  }
  PageMask drop_pending(std::uintptr_t base, const PageMask& pages) override {
    PageMask pending;
    pages.for_each([&](unsigned i) {
      if (page(base + i * k_page_size).dropping) pending.set(i);
    });
    return pending;
  }
  PageOutcome map_remote(std::uintptr_t base, const PageMask& pages) override {
    scheduler_.maybe_yield();
    PageOutcome o;
    pages.for_each([&](unsigned i) {
      if (changing_ != 0) {
        o.busy.set(i);
        return;
      }
      populate_page(page(base + i * k_page_size));
      o.done.set(i);
    });
    return o;
  }
  std::byte* remote_address(std::uintptr_t addr) override { return bytes(addr); }
  PageOutcome make_exclusive(std::uintptr_t base, const PageMask& pages) override {
    scheduler_.maybe_yield();
    PageOutcome o;
    pages.for_each([&](unsigned i) {
      if (changing_ != 0) {
        o.busy.set(i);
        return;
      }
      populate_page(page(base + i * k_page_size));
      withdraw(base + i * k_page_size);
      o.done.set(i);
    });
    return o;
  }
  std::byte* exclusive_address(std::uintptr_t addr) override { return staged(addr); }
  std::uint64_t metadata_bytes() const override { return 0; }

 private:
  struct Page {
    bool present = false;
    bool populated = false;  // has contents here
    bool wp = false;
    bool staged = false;    // contents kept in staging
    bool dropping = false;  // the application's drop was announced and has not happened
  };
  std::size_t index(std::uintptr_t addr) const { return (addr - config_.base) >> k_page_shift; }
  // For changing it.
  Page& page(std::uintptr_t addr) {
    scheduler_.changed(addr);
    return pages_.at(index(addr));
  }
  const Page& page(std::uintptr_t addr) const { return pages_.at(index(addr)); }
  std::byte* staged(std::uintptr_t addr) { return &staging_[page_floor(addr) - config_.base]; }
  static std::byte* aligned(std::vector<std::byte>& memory) {
    return reinterpret_cast<std::byte*>(page_ceil(reinterpret_cast<std::uintptr_t>(memory.data())));
  }
  static void populate_page(Page& p) { p.present = p.populated = true; }
  void withdraw(std::uintptr_t addr) {
    scheduler_.trace("withdraw", addr, page(addr).populated);
    Page& p = page(addr);
    if (p.populated) std::copy_n(bytes(addr), k_page_size, staged(addr));
    p.staged = p.populated;
    p.present = p.populated = p.wp = false;
    std::fill_n(bytes(addr), k_page_size, std::byte{0});
  }
  void restore(std::uintptr_t addr) {
    scheduler_.trace("restore", addr, page(addr).staged);
    Page& p = page(addr);
    if (!p.staged) return;
    std::copy_n(staged(addr), k_page_size, bytes(addr));
    p.present = p.populated = true;
    p.staged = p.wp = false;
  }

  ModelHostConfig config_;
  Scheduler& scheduler_;
  HostMirrorInfo info_;
  std::vector<Page> pages_;
  std::vector<std::byte> system_memory_, staging_memory_;
  std::byte *system_, *staging_;  // page aligned, as translations need
  std::deque<HostEvent> events_;
  unsigned changing_ = 0;
  std::uint64_t pushed_ = 0, read_ = 0;
};

}  // namespace hmmrt::sim
