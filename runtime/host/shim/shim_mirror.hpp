// SPDX-License-Identifier: MIT
// The HostMirror over our kernel module (driver-shim/), which keeps memory coherent by itself: a CPU touch of a page on a
// device brings it home inside the kernel, whether the runtime looks or not. So this mirror asks for moves and reports
// what happened; it never withdraws, stages or delivers anything, needs no registration, and any pointer will do.
//
//   to_device   prepare: TO_DEV, all of it: contents move, the CPU's entries are replaced. copy, commit: nothing left
//   to_host     commit: TO_SYS. What the CPU has touched meanwhile is home already, and counts as moved
//   events      a CPU fault that the kernel has served arrives as a fault: serving it again finds the page home and
//               brings the books up to date. Unmapped and dropped ranges likewise. mprotect, fork and other people's
//               migrations need no word: the module checks every access itself
//
// The books (space/) may therefore be behind the truth at any time, and are never relied on for safety: an access that
// they allow wrongly is still served where the page is, and one that they refuse faults once more. An overflow of the
// event ring costs accuracy of residency and statistics, nothing else.
// Read-only duplicates do not exist in this kernel interface: such pages are mapped where they are.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "host/host_mirror.hpp"
#include "host/maps.hpp"
#include "host/shim/shim_device.hpp"

namespace hmmrt {

class ShimMirror final : public HostMirror {
 public:
  // Binds the first `devices` nodes. Null, with *status and the detail text set, when that fails.
  static std::unique_ptr<ShimMirror> make(unsigned devices, Status* status);
  ~ShimMirror() override;

  // What the software GPU of this number works on, and how much there is of it.
  FarMemory& memory(unsigned device) { return *devices_[device]; }
  std::uint64_t capacity(unsigned device) const { return devices_[device]->info().devmem_pages * k_page_size; }

  const HostMirrorInfo& info() const override { return info_; }
  void release(std::uintptr_t addr, std::size_t bytes) override;
  Status attach(std::uintptr_t addr, std::size_t bytes) override;
  void detach(std::uintptr_t addr, std::size_t bytes) override;
  void query_rights(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, std::uintptr_t, std::size_t, Rights),
                    void* arg) override;

  void wait(std::int64_t timeout_ns) override;
  std::size_t fetch(std::span<HostEvent> out) override;
  void interrupt() override;
  void catch_up() override;
  void wake(std::uintptr_t, const PageMask&) override {}

  void prepare(Transfer& t) override;
  void copy(Transfer& t) override;
  bool finish_copy(Transfer&) override { return true; }
  void commit(Transfer& t) override;
  void rollback(Transfer& t) override;

  PageOutcome populate(std::uintptr_t base, const PageMask& pages) override;
  void populate_unclaimed(std::uintptr_t) override {}
  PageOutcome write_protect(std::uintptr_t base, const PageMask& pages, bool on) override;
  PageOutcome give_back(std::uintptr_t base, const PageMask& pages) override;
  void drop(std::uintptr_t, const PageMask&) override {}
  void watch_drop(std::uintptr_t, const PageMask&) override {}
  PageMask drop_pending(std::uintptr_t, const PageMask&) override { return {}; }
  PageOutcome map_remote(std::uintptr_t base, const PageMask& pages) override;
  std::byte* remote_address(std::uintptr_t addr) override;
  PageOutcome make_exclusive(std::uintptr_t base, const PageMask& pages) override;
  std::byte* exclusive_address(std::uintptr_t addr) override { return remote_address(addr); }
  std::uint64_t metadata_bytes() const override;

 private:
  explicit ShimMirror(int interrupt) : interrupt_(interrupt) {}
  shim::ShimDevice& device_of(const Transfer& t) const { return *devices_[t.device->info().index]; }
  // Calls `call` for the pages, and sorts them.
  static PageOutcome ask(const shim::ShimDevice& device, unsigned long call, std::uintptr_t base, const PageMask& pages,
                         std::uint32_t flags);

  HostMirrorInfo info_;
  std::vector<std::unique_ptr<shim::ShimDevice>> devices_;
  ProcMaps maps_;
  int interrupt_;                                       // eventfd
  std::vector<bool> gone_;                              // by device: seen to have ended. Event thread
  std::vector<std::atomic<std::uint64_t>> dealt_with_;  // by device: events fetched before the current round
};

}  // namespace hmmrt
