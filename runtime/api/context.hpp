// SPDX-License-Identifier: MIT
// Context: builds the house from settings, and tears it down. Everything above the rooms that is per context lives here:
// devices, the host mirror, the fault service, the heap, the streams and events that belong to it.
//
// Order of life: settings -> log, host mirror, policy -> devices -> house -> fault service -> heap; destroyed backwards.
// Thread: any, except close(), which is called once, when no other call uses the context.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "api/handles.hpp"
#include "api/heap.hpp"
#include "api/options.hpp"
#include "api/stream.hpp"
#include "device/device.hpp"
#include "fault/fault_service.hpp"
#include "migrate/house.hpp"
#include "migrate/pipeline.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

class KfdMirror;
class ShimMirror;
class SoftPeers;

namespace kfd {
struct AttributeChange;
}

class Context final : public HandleObject, private HeapBackend {
 public:
  static constexpr HandleKind k_kind = HandleKind::context;

  // Errors: INVALID_OPTION, NOT_SUPPORTED, SYSTEM, OUT_OF_MEMORY; nothing is left behind then.
  static Status create(Settings settings, std::unique_ptr<Context>* out);
  ~Context() override;

  const Settings& settings() const { return settings_; }
  // The value of the option at `index` of the table, as text that lives as long as the context.
  const char* option_value(std::size_t index) const { return option_values_[index].c_str(); }

  House& house() { return *house_; }
  FaultService& service() { return *service_; }
  PipelinePool& pool() { return *pool_; }
  Heap& heap() { return *heap_; }
  HostMirror& host() { return *host_; }
  EventLog& event_log() { return log_; }
  AddressSpace& space() { return space_; }
  Device& device(unsigned index) { return *devices_[index]; }
  unsigned device_count() const { return static_cast<unsigned>(devices_.size()); }
  Counters& counters() { return counters_; }
  Counters& device_counters(unsigned index) { return *device_counters_[index]; }
  std::uint64_t now_ns() const { return clock_.now_ns(); }

  // --- streams and events -----------------------------------------------------------------------------------------
  Status create_stream(unsigned index, std::uintptr_t* handle);
  // The stream is out of the handle table. Waits for its work and its users.
  void destroy_stream(std::unique_ptr<Stream> stream);
  Status create_event(std::uintptr_t* handle);
  void destroy_event(std::unique_ptr<StreamEvent> event);
  // Waits for what is enqueued on every stream; errors are kept by the streams.
  void drain_streams();
  Status synchronize();
  // Waits until every stream is empty; false when `deadline` came first.
  bool wait_idle(std::chrono::steady_clock::time_point deadline);

  // --- memory -----------------------------------------------------------------------------------------------------
  Status register_memory(std::uintptr_t addr, std::size_t bytes);
  Status unregister_memory(std::uintptr_t addr);
  // Whether any of [addr, addr + bytes) is this context's: an allocation, a registration, or the heap's reserve.
  bool watches(std::uintptr_t addr, std::size_t bytes);
  // The allocation or registration that contains `addr`; false when none.
  bool find_range(std::uintptr_t addr, std::uintptr_t* begin, std::size_t* bytes);
  // All of [addr, addr + bytes) belongs to registrations.
  bool registered(std::uintptr_t addr, std::size_t bytes);
  // Runs fn(range) on the range that contains `addr`, which stays meanwhile. False when none.
  template <class Fn>
  bool with_range(std::uintptr_t addr, Fn&& fn) {
    const std::shared_lock guard(range_lock_);
    Range* range = space_.find_range(addr);
    if (range != nullptr) fn(*range);
    return range != nullptr;
  }
  template <class Fn>
  void for_each_range(Fn&& fn) {
    const std::shared_lock guard(range_lock_);
    for (Range* range : space_.ranges()) fn(*range);
  }
  // Calls fn(block, pages) for the blocks of [addr, addr + bytes), each claimed meanwhile.
  void for_each_claimed(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, Block&, const PageMask&), void* arg);
  template <class Fn>
  void for_each_claimed(std::uintptr_t addr, std::size_t bytes, Fn&& fn) {
    for_each_claimed(
        addr, bytes,
        [](void* f, Block& b, const PageMask& pages) { (*static_cast<std::remove_reference_t<Fn>*>(f))(b, pages); },
        static_cast<void*>(&fn));
  }
  // A page of [addr, addr + bytes) that is pinned, or 0.
  std::uintptr_t pinned_page(std::uintptr_t addr, std::size_t bytes);
  // Before a launch: what the application did to its mappings so far is in force on the devices.
  void settle_mappings();
  // What a launch on device `index` may touch: `declared`, or if that is empty all managed memory. For devices without
  // retryable faults; null for others.
  std::shared_ptr<LaunchPages> launch_pages(unsigned index, std::vector<Extent> declared);
  // Counts a hint, and says at level info what came of one without effect.
  void count_hint(bool effective, const char* what, std::uintptr_t addr, std::size_t bytes);

  // --- statistics -------------------------------------------------------------------------------------------------
  std::uint64_t metadata_bytes();
  std::uint64_t remote_accesses(unsigned index);
  std::uint64_t overflows(unsigned index);
  // What a driver that moves pages by itself has reported, and what must have been lost of it.
  void driver_reports(std::uint64_t* read, std::uint64_t* lost);
  void reset_stats();

  // --- fork and exit ----------------------------------------------------------------------------------------------
  void freeze();
  // Some device's pages cannot be brought home while its kernels run.
  bool takes_only_from_idle() const {
    return std::any_of(devices_.begin(), devices_.end(), [](const auto& d) { return d->info().caps.placed; });
  }
  void thaw() { service_->thaw(); }
  void write_trace();

 private:
  Context(Settings settings, std::unique_ptr<Policy> policy);
  Status make_host(const std::vector<unsigned>& gpus);
  std::unique_ptr<HostMirror> make_kfd(const std::vector<unsigned>& gpus, Status* status);
  void note_attribute(const kfd::AttributeChange& change);
  Status build(const std::vector<unsigned>& gpus);
  std::unique_ptr<Device> make_device(unsigned index, const std::vector<unsigned>& gpus,
                                      const std::shared_ptr<SoftPeers>& peers, Status* status);
  void close();
  void say_what_is_missing() const;
  Status forget(std::uintptr_t addr, bool bring_home);

  // HeapBackend
  std::byte* allocate_arena(std::size_t bytes) override;
  void release_arena(std::byte* addr, std::size_t bytes) override;
  Status manage(std::uintptr_t addr, std::size_t bytes) override;
  Status unmanage(std::uintptr_t addr, std::size_t bytes, bool* reusable) override;

  Settings settings_;
  std::vector<std::string> option_values_;
  MonotonicClock clock_;
  EventLog log_;
  Counters counters_;
  std::unique_ptr<HostMirror> host_;
  ShimMirror* shim_ = nullptr;  // host_, if it is one
  KfdMirror* kfd_ = nullptr;    // likewise
  std::unique_ptr<Policy> policy_;
  AddressSpace space_;
  Doorbell doorbell_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<std::unique_ptr<Counters>> device_counters_;
  std::unique_ptr<House> house_;
  std::unique_ptr<PipelinePool> pool_;
  std::unique_ptr<FaultService> service_;
  std::unique_ptr<Heap> heap_;

  std::mutex children_lock_;
  std::vector<Stream*> streams_;
  std::vector<std::uintptr_t> stream_handles_, event_handles_;

  // Exclusive while a Range is being forgotten; shared while one is looked at.
  std::shared_mutex range_lock_;
  // What the rights of each arena's and registration's mappings looked like at the latest launch.
  std::mutex rights_lock_;
  std::map<std::uintptr_t, std::uint64_t> rights_seen_;
  std::atomic<std::uint64_t> pins_{0};  // pages may be pinned

  // What a device without retryable faults lately had ready for launches, the latest first.
  struct Ready {
    std::vector<Extent> extents;  // none: all managed memory
    std::uint64_t ranges = 0;     // the address space's changes() before
    std::uint64_t since_ns = 0;
    std::shared_ptr<const ReadyPages> pages;
  };
  struct LatelyReady {
    std::mutex lock;
    std::array<Ready, 8> sets;
  };
  std::array<LatelyReady, k_max_devices> ready_;
  friend class ManagedPages;

  struct Baseline {
    std::atomic<std::uint64_t> remote{0}, overflows{0};
  };
  std::array<Baseline, k_max_devices> baseline_{};
  std::atomic<std::uint64_t> reports_before_{0}, lost_before_{0};

 public:
  // Called by pin(): from now on frees look for pinned pages.
  void note_pin() { pins_.fetch_add(1, std::memory_order_relaxed); }
};

}  // namespace hmmrt
