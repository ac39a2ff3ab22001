// SPDX-License-Identifier: MIT
#include "fault/fault_service.hpp"

#include <pthread.h>

#include "migrate/coherence.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

FaultService::FaultService(House& house, Doorbell& doorbell, const FaultServiceConfig& config)
    : house_(house),
      doorbell_(doorbell),
      config_(config),
      device_pipeline_(house, config.tokens, config.threads),
      device_batch_(std::make_unique<FaultBatch>()),
      scratch_work_(std::make_unique<Work>()),
      fetched_(FaultBatch::k_capacity),
      host_pipeline_(house, 1, 1),
      host_batch_(std::make_unique<FaultBatch>()),
      events_(16 * k_read_at_once) {
  later_.reserve(4096);
  host_pending_.reserve(1024);
  host_retrying_.reserve(1024);
  remaps_.reserve(64);
  late_.reserve(64);
  parts_.reserve(64);
  noticed_.reserve(4096);
  house.while_stalled = &FaultService::while_stalled;
  house.stalled_argument = this;
}

FaultService::~FaultService() {
  stop();
  house_.while_stalled = nullptr;
}

void FaultService::start() {
  threads_[0] = std::thread([this] {
    pthread_setname_np(pthread_self(), "hmmrt-host");
    event_thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    while (!stopping_.load(std::memory_order_acquire)) step_host(-1);
  });
  threads_[1] = std::thread([this] {
    pthread_setname_np(pthread_self(), "hmmrt-device");
    for (;;) {
      const std::uint32_t seen = doorbell_.seen();  // before anything is looked at: who changes it rings afterwards
      if (stopping_.load(std::memory_order_acquire)) return;
      if (step_device()) continue;
      const std::uint64_t due = next_due_ns();
      const std::uint64_t now = house_.clock.now_ns();
      if (due != 0 && due <= now) continue;
      doorbell_.wait(seen, due != 0 ? due - now : 0);
    }
  });
}

void FaultService::stop() {
  stopping_.store(true, std::memory_order_release);
  doorbell_.ring();
  house_.host.interrupt();
  for (std::thread& t : threads_) {
    if (t.joinable()) t.join();
  }
}

void FaultService::fence() {
  house_.host.catch_up();
  house_.gate.wait_for_reader();
  while (house_.unsettled.load(std::memory_order_acquire) != 0) {
    // The event thread, or a claim holder, is at it; both wait only for the kernel and the hardware.
    house_.host.interrupt();
    static const Word never{0};
    park(never, 0, 20'000);
  }
}

void FaultService::fence_addresses() {
  house_.host.catch_up_addresses();
  fence();
}

void FaultService::wait_counted() {
  house_.host.catch_up();
  if (house_.host.info().driven) wait_records();
  const std::uint32_t seen = serving_.load(std::memory_order_acquire);
  if (seen % 2 == 0) return;
  while (serving_.load(std::memory_order_acquire) == seen) park(serving_, seen, 100'000);
}

void FaultService::refresh_rights(std::uintptr_t addr, std::size_t bytes) {
  house_.host.query_rights(
      addr, bytes,
      [](void* self, std::uintptr_t from, std::size_t length, Rights rights) {
        House& house = static_cast<FaultService*>(self)->house_;
        house.space.for_each_block(from, length, [&](Block& block, const PageMask& pages) {
          block.claim();
          const PageMask mine = pages & block.valid;
          const PageMask no_access = rights == Rights::none ? mine : PageMask{};
          const PageMask read_only = rights == Rights::read ? mine : PageMask{};
          const PageMask narrowed = (no_access - block.no_access) | (read_only - block.read_only);
          // A device that cannot refuse a write may have written to its copy.
          collapse_to_cpu(house, block, (block.read_only & mine) - read_only);
          block.no_access = (block.no_access - mine) | no_access;
          block.read_only = (block.read_only - mine) | read_only;
          take_away(house, block, narrowed);
          release(house, block);
        });
      },
      this);
}

void FaultService::freeze() {
  fence();  // an mremap that has returned has happened: its pages are where they will be brought home from
  departures_.lock();
  frozen_.store(true, std::memory_order_release);
  device_step_.lock();
  PipelinePool pool(house_, 1, 1);
  for (const Range* range : house_.space.ranges()) {
    for (unsigned attempt = 0; attempt < 100; ++attempt) {
      if (prefetch(house_, pool, range->addr, range->bytes, k_cpu, Cause::coherence) == 0) break;
    }
  }
}

void FaultService::thaw() {
  device_step_.unlock();
  frozen_.store(false, std::memory_order_release);
  departures_.unlock();
  doorbell_.ring();
}

}  // namespace hmmrt
