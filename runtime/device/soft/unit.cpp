// SPDX-License-Identifier: MIT
// The scheduling half of a compute unit; access.cpp has the other.
#include "device/soft/unit.hpp"

#include <sched.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdio>
#include <cstring>
#include <exception>

#include "device/soft/link_model.hpp"
#include "device/soft/thread_setup.hpp"

extern "C" {
__thread hmmrt::detail::unit* hmmrt_detail_unit __attribute__((tls_model("initial-exec"))) = nullptr;
}

namespace hmmrt {

Unit::Unit(UnitShared& shared)
    : shared_(shared),
      entries_(std::bit_ceil(std::max(shared.config.tlb_entries, 1u))),
      stacks_(shared.config.waves_per_unit) {
  abi = detail::k_abi;
  busy.store(0, std::memory_order_relaxed);
  flush_requested.store(0, std::memory_order_relaxed);
  flush_seen.store(0, std::memory_order_relaxed);
  far = shared.config.far != nullptr ? 1 : 0;
  tag = k_generation;  // entries start zeroed: tag 0 matches none
  tlb = shared.fast_path ? entries_.data() : &never_;
  tlb_mask = shared.fast_path ? static_cast<std::uint32_t>(entries_.size() - 1) : 0;
  waves_.reserve(shared.config.waves_per_unit);
  delayed_.reserve(shared.config.waves_per_unit);
  yielded_.reserve(shared.config.waves_per_unit);
  turn_.reserve(shared.config.waves_per_unit);
  for (std::uint32_t i = 0; i < shared.config.waves_per_unit; ++i) {
    waves_.push_back(std::make_unique<Wave>());
    Wave& wave = *waves_.back();
    wave.unit = this;
    wave.index = i;
  }
  for (auto w = waves_.rbegin(); w != waves_.rend(); ++w) {
    (*w)->next = free_;
    free_ = w->get();
    ++free_count_;
  }
}

Unit::~Unit() { assert(!thread_.joinable()); }

void Unit::start_thread() {
  thread_ = std::thread([this] { run(); });
}

void Unit::stop() {
  stopping_.store(true, std::memory_order_release);
  if (thread_.joinable()) {
    wake();
    thread_.join();
  }
  for (const auto& wave : waves_) {  // fibers end on whatever thread this is: they hold nothing
    if (!wave->fiber.started()) continue;
    wave->stop = true;
    wave->fiber.resume();
  }
}

void Unit::wake() {
  // Release: what became runnable before. If this replaces k_asleep the unit sleeps, or is about to and will see it.
  if (wake_.exchange(k_notified, std::memory_order_acq_rel) == k_asleep) unpark(wake_);
}

void Unit::run() {
  prepare_thread("hmmrt-unit");
  if (shared_.config.batch_units) {
    const sched_param parameters{};
    sched_setscheduler(0, SCHED_BATCH, &parameters);
  }
  if (shared_.config.link.enabled) want_precise_timers();
  for (;;) {
    // A full barrier before the next section: quiesce() may have counted on our being asleep until here.
    wake_.exchange(k_awake, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    bool progress = run_ready();
    progress |= start_new(~std::uint32_t{0});
    progress |= run_yielded();
    progress |= run_far();
    if (progress) continue;
    if (stopping_.load(std::memory_order_acquire)) return;
    std::uint64_t timeout = 0;
    if (!delayed_.empty()) {
      std::uint64_t first = ~std::uint64_t{0};
      for (const Wave* wave : delayed_) first = std::min(first, wave->not_before_ns);
      const std::uint64_t now = shared_.clock.now_ns();
      if (first <= now) continue;
      timeout = first - now;
    }
    std::uint32_t expected = k_awake;
    if (wake_.compare_exchange_strong(expected, k_asleep, std::memory_order_seq_cst)) park(wake_, k_asleep, timeout);
  }
}

bool Unit::run_ready() {
  bool progress = false;
  if (!delayed_.empty()) {
    const std::uint64_t now = shared_.clock.now_ns();
    const auto due = std::stable_partition(delayed_.begin(), delayed_.end(),
                                           [now](const Wave* w) { return w->not_before_ns > now; });
    std::vector<Wave*> go(due, delayed_.end());
    delayed_.erase(due, delayed_.end());
    for (Wave* wave : go) resume(*wave);
    progress = !go.empty();
  }
  if (!stalls_.has_ready()) return progress;
  for (Wave* wave = stalls_.take_ready(); wave != nullptr;) {
    Wave* next = wave->next;
    backlog_ = next != nullptr;
    if (wave->not_before_ns != 0 && wave->not_before_ns > shared_.clock.now_ns()) {
      delayed_.push_back(wave);
    } else {
      resume(*wave);
    }
    wave = next;
  }
  return true;
}

// Starts up to `at_most` new waves, until there are none, no slot is free, or replayed waves want to go on.
bool Unit::start_new(std::uint32_t at_most) {
  bool progress = false;
  backlog_ = false;
  for (; free_ != nullptr && at_most != 0; --at_most) {
    if (claim_.count == 0 && !shared_.board.claim(&claim_, std::min({free_count_, at_most, 8u}))) break;
    if (shared_.ticker_rests.load(std::memory_order_relaxed) && shared_.ticker_rests.exchange(false)) {
      shared_.ticker.fetch_add(1, std::memory_order_release);
      unpark(shared_.ticker);
    }
    LaunchState* launch = claim_.launch;
    const std::uint64_t number = claim_.first++;
    --claim_.count;
    progress = true;
    if (launch->cancelled.load(std::memory_order_acquire)) {
      shared_.board.complete(launch, 1);
      continue;
    }
    Wave& wave = *free_;
    free_ = wave.next;
    --free_count_;
    wave.launch = launch;
    wave.number = number;
    wave.finished = false;
    if (!wave.fiber.started()) wave.fiber.start(stacks_.top(wave.index), &Unit::wave_body, &wave);
    resume(wave);
    if (stalls_.has_ready()) break;
  }
  return progress;
}

bool Unit::run_yielded() {
  turn_.swap(yielded_);
  for (std::size_t i = 0; i < turn_.size(); ++i) {
    backlog_ = i + 1 < turn_.size();
    resume(*turn_[i]);
  }
  const bool progress = !turn_.empty();
  turn_.clear();
  return progress;
}

// Carries out what waves wait for, all at once, and lets them go on.
bool Unit::run_far() {
  if (far_waves_.empty()) return false;
  shared_.config.far->access(far_accesses_);
  far_accesses_.clear();
  turn_.swap(far_waves_);
  for (std::size_t i = 0; i < turn_.size(); ++i) {
    backlog_ = i + 1 < turn_.size();
    resume(*turn_[i]);
  }
  turn_.clear();
  return true;
}

// Runs the wave until it stalls, yields or finishes.
void Unit::resume(Wave& wave) {
  current_ = &wave;
  hmmrt_detail_unit = this;
  wave.fiber.resume();
  hmmrt_detail_unit = nullptr;
  current_ = nullptr;
  accept_flush();
  if (!wave.finished) return;
  LaunchState* launch = wave.launch;
  wave.launch = nullptr;
  wave.finished = false;
  wave.next = free_;
  free_ = &wave;
  ++free_count_;
  shared_.board.complete(launch, 1);
}

void Unit::wave_body(void* argument) {
  Wave& wave = *static_cast<Wave*>(argument);
  while (!wave.stop) {
    wave.unit->run_wave(wave);
    wave.finished = true;
    wave.fiber.suspend();
  }
}

void Unit::run_wave(Wave& wave) const {
  LaunchState& launch = *wave.launch;
  const std::uint64_t first = wave.number * shared_.config.wave_size;
  const std::uint64_t count = std::min<std::uint64_t>(shared_.config.wave_size, launch.items - first);
  LaunchError error;
  error.result = HMMRT_ERROR_EXCEPTION;
  char text[128];
  try {
    launch.run(launch.functor.data(), launch.grid, first, count);
    return;
  } catch (const WaveCancelled&) {
    return;
  } catch (const std::exception& e) {
    std::snprintf(text, sizeof text, "the kernel threw an exception: %s", e.what());
  } catch (...) {
    std::snprintf(text, sizeof text, "the kernel threw an exception that is not a std::exception");
  }
  shared_.cancel(shared_.cancel_context, launch.id, error, text);
}

std::size_t Unit::runnable() {
  for (Wave* wave = stalls_.has_ready() ? stalls_.take_ready() : nullptr; wave != nullptr; wave = wave->next) {
    yielded_.push_back(wave);
  }
  const bool can_start = free_ != nullptr && (claim_.count != 0 || shared_.board.has_work());
  return yielded_.size() + (can_start ? 1 : 0);
}

void Unit::run_one(std::size_t choice) {
  if (choice < yielded_.size()) {
    Wave& wave = *yielded_[choice];
    yielded_.erase(yielded_.begin() + static_cast<std::ptrdiff_t>(choice));
    resume(wave);
    return;
  }
  start_new(1);
}

// Whether the running wave is to let others go first: in deterministic mode at every access, else when the ticker or a
// quiesce() interrupts it and something else could run.
bool Unit::turn_is_over() const {
  if (shared_.config.deterministic) return true;
  if (flush_requested.load(std::memory_order_relaxed) == flush_seen.load(std::memory_order_relaxed)) return false;
  return backlog_ || stalls_.has_ready() || !yielded_.empty() ||
         (free_ != nullptr && (claim_.count != 0 || shared_.board.has_work()));
}

void Unit::yield_wave() {
  Wave& wave = *current_;
  yielded_.push_back(&wave);
  wave.fiber.suspend();
}

}  // namespace hmmrt
