// SPDX-License-Identifier: MIT
// Queues, launches and host functions of one software GPU.
//
// A queue is a list of commands done one after another: launches and host functions. The head of each queue is
// *started*: a launch goes on the list that units claim waves from, a host function goes to the queue's thread (made
// when the queue first needs one, so that a function of one queue may wait for another queue). A launch is over when
// its last wave has completed; waves a cancelled launch never started count as completed.
// Thread: any; one mutex, never held while user code runs. Lifetime: a unit holds a LaunchState only while it owns
// waves of it that have not completed, so a finished launch is referenced by no one and is recycled.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "device/device.hpp"

namespace hmmrt {

struct QueueState;

constexpr std::size_t k_functor_bytes = 4096;

struct LaunchState {
  std::uint32_t id = 0;
  QueueState* queue = nullptr;
  std::array<char, 64> name{};
  void (*run)(const void*, const Grid&, std::uint64_t, std::uint64_t) = nullptr;
  Grid grid;
  std::uint64_t items = 0;
  std::uint64_t waves = 0;
  std::uint64_t next = 0;              // first wave not claimed; the board's mutex
  std::atomic<std::uint64_t> done{0};  // waves completed or skipped
  std::atomic<bool> cancelled{false};
  LaunchError error;             // the board's mutex until finished
  std::array<char, 160> text{};  // detail, when the error is not an access
  alignas(64) std::array<std::byte, k_functor_bytes> functor;
};

// Waves [first, first + count) of a launch, owned by one unit.
struct WaveClaim {
  LaunchState* launch = nullptr;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

class LaunchBoard {
 public:
  // `work_arrived(context)` is called, with no lock held, when units have something new to claim. `threads` false: host
  // functions run by run_host() only.
  LaunchBoard(std::uint32_t wave_size, std::uint32_t units, bool threads, void (*work_arrived)(void*), void* context);
  ~LaunchBoard();
  LaunchBoard(const LaunchBoard&) = delete;
  LaunchBoard& operator=(const LaunchBoard&) = delete;

  // --- for the device -------------------------------------------------------------------------------------------
  Status create_queue(Queue* out);
  void destroy_queue(Queue queue);  // the queue must be idle
  Status launch(Queue queue, const Launch& launch);
  Status enqueue_host(Queue queue, void (*fn)(void*), void* arg);
  // Waits for the queue; with `drive`, by calling drive(context) instead of sleeping.
  LaunchError synchronize(Queue queue, void (*drive)(void*), void* context);
  bool idle(Queue queue);
  // Marks a running launch failed; the first error stays. Returns it, with one reference that finish_cancel() gives
  // back after the stalled waves were released; null when it is not running.
  LaunchState* begin_cancel(std::uint32_t id, const LaunchError& error, const char* text);
  void finish_cancel(LaunchState* launch);
  // Drops commands not started and fails running launches; for destruction. Appends the launches as begin_cancel().
  void abandon(std::vector<LaunchState*>* running);
  bool all_idle();
  bool running();  // a launch is

  // --- for units ------------------------------------------------------------------------------------------------
  bool claim(WaveClaim* out, std::uint64_t at_most);
  bool has_work() const { return unclaimed_.load(std::memory_order_acquire) != 0; }
  void complete(LaunchState* launch, std::uint64_t waves);

  // --- deterministic mode ---------------------------------------------------------------------------------------
  std::size_t host_functions_ready();
  void run_host(std::size_t index);

 private:
  std::shared_ptr<QueueState> find(Queue queue);
  void advance(QueueState& queue, bool* new_work);
  void finish(LaunchState* launch);
  void pop(QueueState& queue);
  void run_host_thread(QueueState& queue);
  void call_host(std::unique_lock<std::mutex>& lock, QueueState& queue);

  const std::uint32_t wave_size_;
  const std::uint32_t units_;
  const bool threads_;
  void (*const work_arrived_)(void*);
  void* const context_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<QueueState>> queues_;  // handle - 1; null when destroyed
  std::vector<LaunchState*> running_;
  std::vector<std::unique_ptr<LaunchState>> states_;  // all there are
  std::vector<LaunchState*> unused_;
  std::uint32_t next_id_ = 1;
  std::size_t rotate_ = 0;
  std::atomic<std::uint64_t> unclaimed_{0};  // launches that still have waves to claim
};

}  // namespace hmmrt
