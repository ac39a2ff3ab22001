// SPDX-License-Identifier: MIT
// The attributes that this context has set on ranges of memory: the one place that sets any. Knows what users advised and
// what the policy has tied to system memory, so that the end of one leaves the other in force; counts, limits and reports
// every change.
//
//   user's advice    preferred location, accessed by: kept by page
//   tied             sent home and used there: preferred in system memory, access in place for every GPU of the context
//   both             a tie hides the advice until let_go()
// The driver remembers where memory was last sent, and sends it there again whenever one of its attributes changes; so every
// change also says where it is, or is to go.
// The driver splits its ranges wherever attributes change and never joins them, so the policy's wishes are limited: at most
// k_per_second, with bursts of k_burst. What a user or coherence needs is never refused for that.
// The driver refuses a change of anything that has a hole. Not all holes are known: of memory that no GPU maps it reports no
// unmapping, and any report can be lost. So what is refused is set again where something of the kind is mapped.
// Thread: any; calls for pages of one block are ordered by its claim. Blocks on: the kernel.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "host/host_mirror.hpp"
#include "host/kfd/svm_driver.hpp"
#include "host/maps.hpp"

namespace hmmrt::kfd {

enum class Outcome : std::uint8_t { done, refused, limited };

struct AttributeChange {
  std::uintptr_t addr = 0;
  std::size_t bytes = 0;
  SvmAttribute attribute{};  // the first of the change
  Wish wish = Wish::managed;
  Outcome outcome = Outcome::done;
  int status = 0;  // errno, where refused
};

class SvmAttributes {
 public:
  static constexpr std::uint64_t k_per_second = 1000, k_burst = 256;

  struct Gpu {
    std::uint32_t gpu_id = 0;
    ProcessorSet linked = 0;  // devices that reach its memory
    bool apu = false;
  };

  // gpus[i]: the context's device i. granularity: the driver's own. whole_ranges: a fault moves all that came to be managed
  // in one call, so it is done by blocks. `report` is called after every change, from any thread.
  SvmAttributes(const SvmDriver& driver, const ProcMaps& maps, std::vector<Gpu> gpus, bool xnack, unsigned granularity,
                bool whole_ranges, std::function<void(const AttributeChange&)> report);

  // The GPUs may use the memory, wherever it is.
  bool manage(std::uintptr_t addr, std::size_t bytes);
  // order: 0, or the granularity from now on.
  bool send(std::uintptr_t addr, std::size_t bytes, Processor to, Wish wish, unsigned order);
  bool tie(std::uintptr_t base, const PageMask& pages, Wish wish);
  void let_go(std::uintptr_t base, const PageMask& pages);
  PageMask tied(std::uintptr_t base) const;
  // Pages of a block that the driver would send home instead of to this GPU (svm_range_best_prefetch_location): all, of an
  // APU; those that other GPUs may use in place, which cannot reach them there. Without XNACK every GPU may.
  PageMask kept_home(std::uintptr_t base, Processor to) const;
  // Of one block. What the driver would ignore is refused without asking it.
  bool advise(std::uintptr_t base, const PageMask& pages, hmmrt_advice_t advice, Processor p, Processor where);
  // Nothing that was asked for these pages is in force any more: as before, unless the memory is `gone`.
  void reset(std::uintptr_t base, const PageMask& pages, bool gone);
  std::uint64_t metadata_bytes() const;

 private:
  struct Known {
    PageMask tied, coarse;  // coarse: with another granularity than the driver's own
    std::array<Processor, k_block_pages> preferred;
    std::array<ProcessorSet, k_block_pages> accessed_by{};
    Known() { preferred.fill(k_no_processor); }
  };
  std::uint32_t location_of(Processor p) const { return p == k_cpu ? k_system_memory : gpus_[p - 1u].gpu_id; }
  // Sets attributes[0..]; reports; the failure text is set when it returns false. A refusal may come when part is done.
  bool set(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes, Wish wish, bool is_allowed);
  bool set(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes, Wish wish) {
    return set(addr, bytes, attributes, wish, allowed(wish, 1));
  }
  // Sets them where something is mapped; errno.
  int set_mapped(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const;
  bool allowed(Wish wish, unsigned changes);
  // Sets what Known says of the pages, all of them on `where`, in runs that are alike.
  bool restore(std::uintptr_t base, const PageMask& pages, const Known& known, Processor where, Wish wish);
  Known& known(std::uintptr_t base);  // lock_ held

  const SvmDriver& driver_;
  const ProcMaps& maps_;
  const std::vector<Gpu> gpus_;
  const bool xnack_, whole_ranges_;
  const unsigned granularity_;
  const std::function<void(const AttributeChange&)> report_;
  mutable std::mutex lock_;
  std::unordered_map<std::uintptr_t, std::unique_ptr<Known>> known_;  // by block
  std::atomic<std::uint64_t> ties_{0};                                // blocks with tied pages; 0: nothing to let go
  std::mutex limit_lock_;
  std::uint64_t tokens_ = k_burst, refilled_ns_ = 0;
};

}  // namespace hmmrt::kfd
