// SPDX-License-Identifier: MIT
// The Device interface over the parts of the room; soft_device.hpp says what they are.
#include "device/soft/soft_device.hpp"

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "device/soft/fault_buffer.hpp"
#include "device/soft/frame_memory.hpp"
#include "device/soft/injection.hpp"
#include "device/soft/launch_board.hpp"
#include "device/soft/link_model.hpp"
#include "device/soft/page_table.hpp"
#include "device/soft/quiesce.hpp"
#include "device/soft/stream_copy.hpp"
#include "device/soft/thread_setup.hpp"
#include "device/soft/unit.hpp"

namespace hmmrt {

namespace {
SoftDeviceConfig checked(SoftDeviceConfig c) {
  c.wave_size = std::max(c.wave_size, 1u);
  c.waves_per_unit = std::max(c.waves_per_unit, 1u);
  assert(c.far == nullptr || !c.deterministic);
  return c;
}

constexpr std::uint32_t k_max_units = 64;
constexpr std::uint64_t k_turn_ns = 4'000'000;  // how long a wave that never misses keeps others waiting
constexpr unsigned k_polls = 50;                // of quiesce(), before membarrier

// Tickets with the link model on: when the copy ends << 1, and whether it failed. With it off: 0, or failed at once.
constexpr CopyTicket k_failed = 1;

std::uint32_t unit_count(const SoftDeviceConfig& c) {
  if (c.compute_units != 0) return std::min(c.compute_units, k_max_units);
  return std::clamp(std::thread::hardware_concurrency(), 2u, 4u);
}
}  // namespace

struct SoftDeviceParts {
  SoftDeviceParts(const SoftDeviceConfig& c, Doorbell& bell, const Clock& device_clock);

  const SoftDeviceConfig& config;
  const Clock& clock;
  SeededSequence chances;
  Injector allocation_fails, copy_fails, quiesce_slow, fault_dropped;
  FrameMemory memory;
  PageTable pages;
  BoundedBuffer<DeviceFault> faults;
  BoundedBuffer<AccessCount> counts;
  Timeline to_device, to_host, page_table;
  SeededSequence schedule;
  LaunchBoard board;
  UnitShared shared;
  std::vector<std::unique_ptr<Unit>> units;
  std::atomic<bool> stopping{false};
  std::thread ticker;

  // Starts and ends the threads; start() throws std::system_error, with those it had started ended again.
  void start();
  void stop();
  void tick();
  void wake_units() {
    for (auto& u : units) u->wake();
  }
  bool cancel(std::uint32_t launch, const LaunchError& error, const char* text);
  void release_cancelled(LaunchState* launch);
  void spend_page_table_time() {
    if (!config.link.enabled || config.deterministic) return;
    sleep_until(clock, page_table.reserve(clock.now_ns(), config.link.map_ns));
  }
};

SoftDeviceParts::SoftDeviceParts(const SoftDeviceConfig& c, Doorbell& bell, const Clock& device_clock)
    : config(c),
      clock(device_clock),
      chances(c.seed),
      allocation_fails(c.inject.allocation_fails, chances),
      copy_fails(c.inject.copy_fails, chances),
      quiesce_slow(c.inject.quiesce_slow, chances),
      fault_dropped(c.inject.fault_dropped, chances),
      memory(c.memory_bytes, c.populate, c.far == nullptr),
      faults(c.fault_buffer_entries, bell),
      counts(256, bell),
      schedule(c.seed ^ 0x5eed),
      board(
          c.wave_size, unit_count(c), !c.deterministic, [](void* p) { static_cast<SoftDeviceParts*>(p)->wake_units(); },
          this),
      shared{c, device_clock, pages, faults, counts, board, fault_dropped} {
  shared.fast_path = !c.deterministic && c.far == nullptr && c.use_membarrier && membarrier_available();
  shared.cancel_context = this;
  shared.cancel = [](void* p, std::uint32_t launch, const LaunchError& error, const char* text) {
    return static_cast<SoftDeviceParts*>(p)->cancel(launch, error, text);
  };
  for (std::uint32_t i = 0; i < unit_count(c); ++i) units.push_back(std::make_unique<Unit>(shared));
}

void SoftDeviceParts::start() {
  try {
    for (auto& unit : units) unit->start_thread();
    ticker = std::thread([this] { tick(); });
  } catch (...) {
    stop();
    throw;
  }
}

void SoftDeviceParts::stop() {
  stopping.store(true, std::memory_order_release);
  shared.ticker.fetch_add(1, std::memory_order_release);
  unpark(shared.ticker);
  if (ticker.joinable()) ticker.join();
  for (auto& unit : units) unit->stop();
}

// Interrupts the units' waves every so often, see unit.hpp. Rests while no launch runs.
void SoftDeviceParts::tick() {
  prepare_thread("hmmrt-ticker");
  while (!stopping.load(std::memory_order_acquire)) {
    const std::uint32_t seen = shared.ticker.load(std::memory_order_acquire);
    const bool running = board.running();
    // A launch that starts now and finds this still false is seen by the next round.
    if (!running) shared.ticker_rests.store(true);
    if (running || board.running()) {
      for (auto& unit : units) {
        if (!unit->asleep()) unit->flush_requested.fetch_add(1, std::memory_order_release);
      }
      park(shared.ticker, seen, k_turn_ns);
    } else if (!stopping.load(std::memory_order_acquire)) {
      park(shared.ticker, seen);
    }
  }
}

bool SoftDeviceParts::cancel(std::uint32_t launch, const LaunchError& error, const char* text) {
  LaunchState* state = board.begin_cancel(launch, error, text);
  if (state == nullptr) return false;
  release_cancelled(state);
  return true;
}

void SoftDeviceParts::release_cancelled(LaunchState* launch) {
  for (auto& unit : units) {
    unit->flush_requested.fetch_add(1, std::memory_order_release);  // resident loops come the slow way, and end
    if (unit->stalls().release(launch)) unit->wake();
  }
  board.finish_cancel(launch);
}

SoftDevice::SoftDevice(const SoftDeviceConfig& config, Doorbell& faults, const Clock& clock)
    : config_(checked(config)), parts_(std::make_unique<SoftDeviceParts>(config_, faults, clock)) {
  fill_info();
  if (!config_.deterministic) parts_->start();
  if (config_.peers != nullptr) config_.peers->set(config_.processor, this);
}

SoftDevice::~SoftDevice() {
  if (config_.peers != nullptr) config_.peers->set(config_.processor, nullptr);
  while (!parts_->board.all_idle()) {
    std::vector<LaunchState*> running;
    parts_->board.abandon(&running);
    for (LaunchState* launch : running) parts_->release_cancelled(launch);
    if (config_.deterministic) {
      step(0);
    } else {
      std::this_thread::yield();
    }
  }
  parts_->stop();
}

void SoftDevice::fill_info() {
  info_.name = config_.name;
  info_.index = config_.processor - 1u;
  info_.memory_bytes = parts_->memory.count() * k_page_size;
  info_.compute_units = static_cast<std::uint32_t>(parts_->units.size());
  info_.wave_size = config_.wave_size;
  info_.fault_buffer_entries = parts_->faults.capacity();
  info_.caps.retryable_faults = true;
  info_.caps.remote_mapping = config_.remote_mapping;
  info_.caps.access_counters = config_.access_counters;
  info_.caps.coherent = true;
  info_.caps.system_atomics = config_.system_atomics;
  info_.caps.peer_copy = config_.peer && config_.peers != nullptr && config_.far == nullptr;
  info_.caps.peer = info_.caps.peer_copy && config_.peer_mapping;
  info_.caps.dirty_bits = true;
  char text[200];
  std::snprintf(text, sizeof text, "software GPU: %u units of %u waves, %s%s%s", info_.compute_units,
                config_.waves_per_unit, config_.deterministic ? "deterministic" : "threads",
                config_.far != nullptr ? ", memory behind the kernel module: every access is a call"
                : parts_->shared.fast_path || config_.deterministic ? ""
                                                                    : ", no membarrier: every access is slow",
                config_.link.enabled ? ", modelled link" : "");
  info_.description = text;
}

// ---- frames ---------------------------------------------------------------------------------------------------------

bool SoftDevice::allocate_frames(std::uintptr_t /*base*/, const PageMask& pages, Frame* frames) {
  if (parts_->allocation_fails.strike()) return false;
  return parts_->memory.allocate(pages, frames);
}

void SoftDevice::free_frames(const PageMask& pages, const Frame* frames) { parts_->memory.free(pages, frames); }
std::uint64_t SoftDevice::free_frame_count() const { return parts_->memory.free_count(); }
std::byte* SoftDevice::frame_address(Frame frame) {
  return config_.far == nullptr ? parts_->memory.address(frame) : nullptr;
}

bool SoftDevice::zero_frames(const PageMask& pages, const Frame* frames) {
  if (config_.far != nullptr) return true;  // its owner gives out zeroed memory
  pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count;) {
      unsigned n = 1;
      while (i + n < first + count && frames[i + n] == frames[i] + n) ++n;
      std::memset(parts_->memory.address(frames[i]), 0, n * k_page_size);
      i += n;
    }
  });
  return true;
}

// ---- page table -----------------------------------------------------------------------------------------------------

void SoftDevice::map(std::uintptr_t base, std::span<const MapSpan> spans) {
  PageTableLeaf& leaf = parts_->pages.make(base);
  for (const MapSpan& span : spans) {
    if (span.rights == Rights::none || span.count == 0) continue;
    Pte pte = k_pte_read | (span.rights == Rights::write ? k_pte_write : 0);
    std::byte* host = nullptr;
    Processor resident = config_.processor;
    switch (span.target) {
      case Target::frames:
        host = parts_->memory.address(span.frame);
        break;
      case Target::host:
        assert(config_.remote_mapping);
        host = span.host;
        resident = k_cpu;
        // k_pte_host is what bars atomics without system_atomics; an exclusive mapping has no rival.
        pte |= k_pte_remote | (span.exclusive ? 0 : k_pte_host);
        break;
      case Target::peer: {
        SoftDevice* peer = config_.peers != nullptr ? config_.peers->find(span.peer) : nullptr;
        assert(peer != nullptr);
        host = peer->frame_address(span.frame);
        resident = span.peer;
        pte |= k_pte_remote;
        break;
      }
    }
    assert(reinterpret_cast<std::uintptr_t>(host) % k_page_size == 0);
    pte |= reinterpret_cast<std::uintptr_t>(host) | Pte{resident} << k_pte_processor_shift;
    PageTable::map(leaf, span.first, span.count, pte);
  }
  parts_->spend_page_table_time();
}

PageMask SoftDevice::unmap(std::uintptr_t base, const PageMask& pages) {
  PageTableLeaf* leaf = parts_->pages.find(base);
  const PageMask dirty = leaf != nullptr ? PageTable::unmap(*leaf, pages) : PageMask();
  parts_->spend_page_table_time();
  return dirty;
}

bool SoftDevice::quiesce(std::uint64_t timeout_ns) {
  if (parts_->quiesce_slow.strike()) {
    const Word nobody{0};
    park(nobody, 0, config_.inject.slow_quiesce_ns);
  }
  std::uint32_t mine[k_max_units];
  bool awake = false;
  for (std::size_t i = 0; i < parts_->units.size(); ++i) {
    Unit& unit = *parts_->units[i];
    // seq_cst: before the look at whether it sleeps, against the full barrier a unit wakes through.
    mine[i] = unit.flush_requested.fetch_add(1, std::memory_order_seq_cst) + 1;
    awake |= !unit.asleep();
  }
  if (config_.deterministic) {
    for ([[maybe_unused]] auto& unit : parts_->units) assert(unit->busy.load(std::memory_order_relaxed) == 0);
    return true;
  }
  if (!awake) return true;
  const auto acknowledged = [&](std::size_t i) {
    const Unit& unit = *parts_->units[i];
    return unit.asleep() || static_cast<std::int32_t>(unit.flush_seen.load(std::memory_order_acquire) - mine[i]) >= 0;
  };
  // Units that are accessing memory acknowledge within nanoseconds; interrupting them costs microseconds.
  for (unsigned spins = 0; spins < k_polls; ++spins) {
    std::size_t i = 0;
    while (i < parts_->units.size() && acknowledged(i)) ++i;
    if (i == parts_->units.size()) return true;
    __builtin_ia32_pause();
  }
  if (parts_->shared.fast_path) {
    membarrier_all();
  } else {
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  std::uint64_t deadline = 0;
  for (std::size_t i = 0; i < parts_->units.size(); ++i) {
    const Unit& unit = *parts_->units[i];
    for (unsigned spins = 0; unit.busy.load(std::memory_order_acquire) != 0 &&
                             static_cast<std::int32_t>(unit.flush_seen.load(std::memory_order_acquire) - mine[i]) < 0;
         ++spins) {
      // A section lasts nanoseconds to microseconds, unless its thread lost the processor.
      if (spins < 64) {
        __builtin_ia32_pause();
        continue;
      }
      std::this_thread::yield();
      if (timeout_ns == 0) continue;
      const std::uint64_t now = parts_->clock.now_ns();
      if (deadline == 0) deadline = now + timeout_ns;
      if (now >= deadline) return false;
    }
  }
  return true;
}

// ---- faults ---------------------------------------------------------------------------------------------------------

std::size_t SoftDevice::fetch_faults(std::span<DeviceFault> out) { return parts_->faults.fetch(out); }

void SoftDevice::replay(std::uintptr_t base, const PageMask& pages) {
  for (auto& unit : parts_->units) {
    if (unit->stalls().replay(base, pages)) unit->wake();
  }
}

void SoftDevice::replay_all() {
  for (auto& unit : parts_->units) {
    if (unit->stalls().replay_all()) unit->wake();
  }
}

void SoftDevice::cancel(std::uint32_t launch, const LaunchError& error) { parts_->cancel(launch, error, ""); }
std::uint64_t SoftDevice::fault_overflows() const { return parts_->faults.overflows(); }
std::size_t SoftDevice::fetch_access_counts(std::span<AccessCount> out) { return parts_->counts.fetch(out); }

std::uint64_t SoftDevice::last_use(std::uintptr_t base) const {
  const PageTableLeaf* leaf = parts_->pages.find(base);
  return leaf != nullptr ? leaf->last_use.load(std::memory_order_relaxed) : 0;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

CopyTicket SoftDevice::copy_async(std::span<const CopyRun> runs) {
  const bool failed = parts_->copy_fails.strike();
  std::uint64_t to_device = 0;
  std::uint64_t to_host = 0;
  for (const CopyRun& run : runs) {
    const std::size_t bytes = std::size_t{run.pages} * k_page_size;
    std::byte* frame = parts_->memory.address(run.frame);
    (run.kind == CopyKind::host_to_device ? to_device : to_host) += bytes;
    if (failed) continue;
    switch (run.kind) {
      case CopyKind::host_to_device:
        stream_copy(frame, run.host, bytes);
        break;
      case CopyKind::device_to_host:
        stream_copy(run.host, frame, bytes);
        break;
      case CopyKind::peer_to_device:
        stream_copy(frame, config_.peers->find(run.peer)->frame_address(run.peer_frame), bytes);
        break;
    }
  }
  if (!config_.link.enabled || config_.deterministic) return failed ? k_failed : 0;
  const SoftLink& link = config_.link;
  const std::uint64_t now = parts_->clock.now_ns();
  const auto time = [&link](std::uint64_t bytes, double rate) {
    return link.latency_ns + static_cast<std::uint64_t>(static_cast<double>(bytes) / rate);
  };
  std::uint64_t end = now;
  if (to_device != 0) end = std::max(end, parts_->to_device.reserve(now, time(to_device, link.to_device_bytes_per_ns)));
  if (to_host != 0) end = std::max(end, parts_->to_host.reserve(now, time(to_host, link.to_host_bytes_per_ns)));
  return end << 1 | (failed ? k_failed : 0);
}

bool SoftDevice::wait_copy(CopyTicket ticket) {
  if (ticket >> 1 != 0) sleep_until(parts_->clock, ticket >> 1);
  return (ticket & k_failed) == 0;
}

// ---- queues ---------------------------------------------------------------------------------------------------------

Status SoftDevice::create_queue(Queue* out) { return parts_->board.create_queue(out); }

void SoftDevice::destroy_queue(Queue queue) {
  (void)synchronize(queue);
  parts_->board.destroy_queue(queue);
}

Status SoftDevice::launch(Queue queue, const Launch& launch) { return parts_->board.launch(queue, launch); }

Status SoftDevice::enqueue_host(Queue queue, void (*fn)(void*), void* arg) {
  return parts_->board.enqueue_host(queue, fn, arg);
}

LaunchError SoftDevice::synchronize(Queue queue) {
  if (!config_.deterministic) return parts_->board.synchronize(queue, nullptr, nullptr);
  return parts_->board.synchronize(
      queue,
      [](void* p) {
        auto& device = *static_cast<SoftDevice*>(p);
        if (device.step(device.parts_->schedule.next())) return;
        const Word nobody{0};  // every wave is stalled: the simulation's other actors, or another thread, must act
        park(nobody, 0, 100'000);
      },
      this);
}

bool SoftDevice::idle(Queue queue) { return parts_->board.idle(queue); }

// ---- beyond Device --------------------------------------------------------------------------------------------------

bool SoftDevice::step(std::uint64_t choice) {
  assert(config_.deterministic);
  std::size_t total = parts_->board.host_functions_ready();
  std::array<std::size_t, k_max_units> runnable{};
  for (std::size_t i = 0; i < parts_->units.size(); ++i) total += runnable[i] = parts_->units[i]->runnable();
  if (total == 0) return false;
  std::size_t pick = choice % total;
  for (std::size_t i = 0; i < parts_->units.size(); ++i) {
    if (pick < runnable[i]) {
      parts_->units[i]->run_one(pick);
      return true;
    }
    pick -= runnable[i];
  }
  parts_->board.run_host(pick);
  return true;
}

std::uint64_t SoftDevice::metadata_bytes() const { return parts_->pages.metadata_bytes(); }

std::uint64_t SoftDevice::remote_accesses() const {
  std::uint64_t n = 0;
  for (const auto& unit : parts_->units) n += unit->remote_accesses();
  return n;
}

std::uint64_t SoftDevice::stalled_waves() const {
  std::uint64_t n = 0;
  for (const auto& unit : parts_->units) n += unit->stalls().stalled();
  return n;
}

std::uint64_t SoftDevice::injected_failures() const {
  return parts_->allocation_fails.hits() + parts_->copy_fails.hits() + parts_->quiesce_slow.hits() +
         parts_->fault_dropped.hits();
}

std::unique_ptr<Device> make_soft_device(const SoftDeviceConfig& config, Doorbell& faults, const Clock& clock) {
  return std::make_unique<SoftDevice>(config, faults, clock);
}

bool in_kernel() noexcept { return hmmrt_detail_unit != nullptr; }

}  // namespace hmmrt
