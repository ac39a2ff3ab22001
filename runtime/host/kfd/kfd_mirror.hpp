// SPDX-License-Identifier: MIT
// The HostMirror over AMD's kernel driver with SVM: the driver keeps memory coherent, serves the faults of its GPUs and of
// the CPU, and moves pages, whether the runtime looks or not. So this mirror observes and asks:
//
//   observes   the driver's reports (SmiReader) become DriverRecords, which the fault service follows with the books and
//              shows to the policy
//   asks       what the policy, a user or coherence wants becomes attributes (SvmAttributes): a prefetch, memory tied to
//              the system, a larger granularity
//
// Managed memory is ordinary memory with attributes. With XNACK on, pointers need no registration at all; off, memory must
// be made known first (access), and an invalidation stops the process's queues for a moment.
// The books may be behind the truth at any time, because reports are lost silently; they are never relied on for safety,
// and what users ask is asked of the driver whatever they say. The driver tells nothing of single pages: a transfer
// that it does not refuse counts as done.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "host/host_mirror.hpp"
#include "host/kfd/probe.hpp"
#include "host/kfd/smi_reader.hpp"
#include "host/kfd/svm_attributes.hpp"
#include "host/kfd/svm_driver.hpp"
#include "host/maps.hpp"

namespace hmmrt {

enum class Xnack : std::uint8_t { as_it_is, on, off };

struct KfdConfig {
  struct Gpu {                       // of the context's devices, in order; as HIP says
    std::uint32_t domain, location;  // PCI: domain, and bus << 8 | device << 3
    bool integrated;                 // its memory is the CPU's
  };
  std::vector<Gpu> gpus;
  Xnack xnack = Xnack::as_it_is;
  bool only_with_xnack = false;  // without it, nothing migrates unless it is asked for
  // Called when reports wait for fetch_records(); from the event thread.
  std::function<void()> on_reports;
  // Called after each change of attributes; from any thread.
  std::function<void(const kfd::AttributeChange&)> on_change;
};

class KfdMirror final : public HostMirror {
 public:
  // Null, with *status and the detail text, when the driver cannot do it for these GPUs.
  static std::unique_ptr<KfdMirror> make(const KfdConfig& config, Status* status);
  ~KfdMirror() override;

  bool xnack() const { return info_.any_pointer; }
  kfd::SmiStats reports() const { return reader_->stats(); }

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
  void copy(Transfer& t) override { t.copied = t.outcome.done; }
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
  std::uint64_t metadata_bytes() const override { return sizeof(*this) + attributes_->metadata_bytes(); }

  std::size_t fetch_records(std::span<DriverRecord> out) override { return reader_->take(out); }
  bool send(std::uintptr_t addr, std::size_t bytes, Processor to, Wish wish, unsigned order = 0) override;
  bool tie(std::uintptr_t base, const PageMask& pages, Wish wish) override;
  void let_go(std::uintptr_t base, const PageMask& pages) override;
  PageMask kept_home(std::uintptr_t base, Processor to) override { return attributes_->kept_home(base, to); }
  bool advised(std::uintptr_t base, const PageMask& pages, hmmrt_advice_t advice, Processor p,
               Processor where) override;
  void disown(std::uintptr_t base, const PageMask& pages, bool gone) override;

 private:
  explicit KfdMirror(int interrupt) : interrupt_(interrupt) {}
  Status open(const KfdConfig& config);
  Status set_xnack(Xnack wanted);
  // fn() asks the driver something about this memory and returns whether it was done; reports count as Asking says.
  template <class Fn>
  bool ask(std::uintptr_t addr, std::size_t bytes, bool fresh, const Fn& fn);
  // Sends pages of a block, in runs; returns those that were not refused.
  PageMask send_pages(std::uintptr_t base, const PageMask& pages, Processor to, Wish wish);

  HostMirrorInfo info_;
  const kfd::SvmDriver* driver_ = nullptr;
  std::unique_ptr<kfd::SvmAttributes> attributes_;
  std::unique_ptr<kfd::SmiReader> reader_;
  std::function<void()> on_reports_;
  ProcMaps maps_;
  int interrupt_;                             // eventfd
  std::array<bool, k_max_devices> deaf_{};    // by device: its reports have ended. Event thread
  std::atomic<std::uint64_t> dealt_with_{0};  // rounds of reading whose events have been
};

}  // namespace hmmrt
