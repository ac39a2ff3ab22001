// SPDX-License-Identifier: MIT
#include "device/soft/launch_board.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "device/soft/thread_setup.hpp"
#include "space/park.hpp"

namespace hmmrt {

namespace {

struct Command {
  LaunchState* launch = nullptr;  // null: a host function
  void (*fn)(void*) = nullptr;
  void* arg = nullptr;
};

}  // namespace

struct QueueState {
  std::deque<Command> commands;  // the head is started
  bool started = false;
  bool closing = false;
  LaunchError error;
  std::array<char, 160> text{};
  Word changed{0};    // rises when a command is finished
  Word host_work{0};  // rises when the host thread has something to look at
  std::thread host_thread;
};

LaunchBoard::LaunchBoard(std::uint32_t wave_size, std::uint32_t units, bool threads, void (*work_arrived)(void*),
                         void* context)
    : wave_size_(wave_size), units_(units), threads_(threads), work_arrived_(work_arrived), context_(context) {}

LaunchBoard::~LaunchBoard() {
  for (Queue q = 1; q <= queues_.size(); ++q) destroy_queue(q);
}

std::shared_ptr<QueueState> LaunchBoard::find(Queue queue) {
  return queue >= 1 && queue <= queues_.size() ? queues_[queue - 1] : nullptr;
}

Status LaunchBoard::create_queue(Queue* out) {
  auto state = std::make_shared<QueueState>();
  const std::lock_guard lock(mutex_);
  queues_.push_back(std::move(state));
  *out = static_cast<Queue>(queues_.size());
  return {};
}

void LaunchBoard::destroy_queue(Queue queue) {
  std::shared_ptr<QueueState> state;
  {
    const std::lock_guard lock(mutex_);
    state = find(queue);
    if (state == nullptr) return;
    queues_[queue - 1] = nullptr;
    state->closing = true;
    state->host_work.fetch_add(1, std::memory_order_release);
  }
  unpark(state->host_work);
  if (state->host_thread.joinable()) state->host_thread.join();
}

Status LaunchBoard::launch(Queue queue, const Launch& launch) {
  if (launch.run == nullptr) return fail(HMMRT_ERROR_INVALID_VALUE, "launch: the kernel has no run function");
  if (launch.functor_bytes > k_functor_bytes || (launch.functor == nullptr && launch.functor_bytes != 0)) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "launch: a functor of %zu bytes at %p; at most %zu bytes are copied",
                launch.functor_bytes, launch.functor, k_functor_bytes);
  }
  std::uint64_t items = 0;
  if (__builtin_mul_overflow(launch.grid.x, launch.grid.y, &items) ||
      __builtin_mul_overflow(items, launch.grid.z, &items) || items == 0 || items >> 63 != 0) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "launch: the extents of a grid are above 0 and their product fits 63 bits");
  }
  bool new_work = false;
  {
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<QueueState> state = find(queue);
    if (state == nullptr) return fail(HMMRT_ERROR_INVALID_HANDLE, "launch: %u is not a live queue", queue);
    if (unused_.empty()) {
      states_.push_back(std::make_unique<LaunchState>());
      unused_.push_back(states_.back().get());
    }
    LaunchState* s = unused_.back();
    unused_.pop_back();
    s->id = next_id_++;
    if (next_id_ == 0) next_id_ = 1;
    s->queue = state.get();
    std::snprintf(s->name.data(), s->name.size(), "%s", launch.name != nullptr ? launch.name : "");
    s->run = launch.run;
    s->grid = launch.grid;
    s->items = items;
    s->waves = (items - 1) / wave_size_ + 1;
    s->next = 0;
    s->done.store(0, std::memory_order_relaxed);
    s->cancelled.store(false, std::memory_order_relaxed);
    s->error = {};
    s->text[0] = '\0';
    if (launch.functor_bytes != 0) std::memcpy(s->functor.data(), launch.functor, launch.functor_bytes);
    state->commands.push_back({s, nullptr, nullptr});
    advance(*state, &new_work);
  }
  if (new_work) work_arrived_(context_);
  return {};
}

Status LaunchBoard::enqueue_host(Queue queue, void (*fn)(void*), void* arg) {
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<QueueState> state = find(queue);
  if (state == nullptr) return fail(HMMRT_ERROR_INVALID_HANDLE, "enqueue_host: %u is not a live queue", queue);
  if (threads_ && !state->host_thread.joinable()) {
    state->host_thread = std::thread([this, q = state.get()] { run_host_thread(*q); });
  }
  state->commands.push_back({nullptr, fn, arg});
  bool new_work = false;
  advance(*state, &new_work);
  return {};
}

// Starts the head of the queue if it is not. Requires mutex_.
void LaunchBoard::advance(QueueState& queue, bool* new_work) {
  if (queue.started || queue.commands.empty()) return;
  queue.started = true;
  if (LaunchState* launch = queue.commands.front().launch; launch != nullptr) {
    running_.push_back(launch);
    unclaimed_.fetch_add(1, std::memory_order_release);
    *new_work = true;
  } else {
    queue.host_work.fetch_add(1, std::memory_order_release);
    unpark(queue.host_work);
  }
}

// The head of the queue is done. Requires mutex_; the caller calls advance().
void LaunchBoard::pop(QueueState& queue) {
  queue.commands.pop_front();
  queue.started = false;
  queue.changed.fetch_add(1, std::memory_order_release);
  unpark(queue.changed);
}

bool LaunchBoard::claim(WaveClaim* out, std::uint64_t at_most) {
  if (!has_work()) return false;
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < running_.size(); ++i) {
    LaunchState* launch = running_[(rotate_ + i) % running_.size()];
    if (launch->next == launch->waves) continue;
    // Enough to make the lock cheap, few enough to share the rest.
    const std::uint64_t share = launch->waves / (std::uint64_t{units_} * 16) + 1;
    const std::uint64_t n = std::min({share, at_most, launch->waves - launch->next});
    *out = {launch, launch->next, n};
    launch->next += n;
    if (launch->next == launch->waves) unclaimed_.fetch_sub(1, std::memory_order_relaxed);
    rotate_ = (rotate_ + i + 1) % running_.size();
    return true;
  }
  return false;
}

void LaunchBoard::complete(LaunchState* launch, std::uint64_t waves) {
  const std::uint64_t all = launch->waves;  // once ours are counted, another unit may finish and recycle the launch
  // Acquire-release: the last to complete has everyone's work behind it, and so has who synchronises with it.
  if (launch->done.fetch_add(waves, std::memory_order_acq_rel) + waves == all) finish(launch);
}

void LaunchBoard::finish(LaunchState* launch) {
  bool new_work = false;
  {
    const std::lock_guard lock(mutex_);
    std::erase(running_, launch);
    QueueState& queue = *launch->queue;
    if (launch->error.result != HMMRT_SUCCESS && queue.error.result == HMMRT_SUCCESS) {
      queue.error = launch->error;
      queue.text = launch->text;
      if (queue.error.kernel[0] == '\0')
        std::memcpy(queue.error.kernel, launch->name.data(), sizeof queue.error.kernel);
    }
    unused_.push_back(launch);
    pop(queue);
    advance(queue, &new_work);
  }
  if (new_work) work_arrived_(context_);
}

LaunchState* LaunchBoard::begin_cancel(std::uint32_t id, const LaunchError& error, const char* text) {
  const std::lock_guard lock(mutex_);
  const auto at = std::find_if(running_.begin(), running_.end(), [id](LaunchState* l) { return l->id == id; });
  // A launch whose last wave is just completing is as good as over; otherwise `done` is held below `waves` by one
  // skipped or claimed wave, so it stays until finish_cancel().
  if (at == running_.end()) return nullptr;
  LaunchState* launch = *at;
  if (launch->error.result == HMMRT_SUCCESS) {
    launch->error = error;
    std::snprintf(launch->text.data(), launch->text.size(), "%s", text);
  }
  launch->cancelled.store(true, std::memory_order_release);
  return launch;
}

void LaunchBoard::finish_cancel(LaunchState* launch) {
  std::uint64_t skipped = 0;
  {
    const std::lock_guard lock(mutex_);
    if (std::find(running_.begin(), running_.end(), launch) == running_.end()) return;
    if (!launch->cancelled.load(std::memory_order_relaxed)) return;  // recycled meanwhile
    skipped = launch->waves - launch->next;
    launch->next = launch->waves;
    if (skipped != 0) unclaimed_.fetch_sub(1, std::memory_order_relaxed);
  }
  if (skipped != 0) complete(launch, skipped);
}

LaunchError LaunchBoard::synchronize(Queue queue, void (*drive)(void*), void* context) {
  std::unique_lock lock(mutex_);
  const std::shared_ptr<QueueState> state = find(queue);
  if (state == nullptr) {
    LaunchError e;
    e.result = fail(HMMRT_ERROR_INVALID_HANDLE, "synchronize: %u is not a live queue", queue).code();
    return e;
  }
  while (!state->commands.empty()) {
    const std::uint32_t seen = state->changed.load(std::memory_order_acquire);
    lock.unlock();
    if (drive != nullptr) {
      drive(context);
    } else {
      park(state->changed, seen);
    }
    lock.lock();
  }
  const LaunchError error = state->error;
  state->error = {};
  if (error.result != HMMRT_SUCCESS && state->text[0] != '\0') {
    if (error.addr != 0) {
      (void)fail(error.result, "kernel '%s' at %#zx: %s", error.kernel, error.addr, state->text.data());
    } else {  // it is not about an address
      (void)fail(error.result, "kernel '%s': %s", error.kernel, state->text.data());
    }
  }
  return error;
}

bool LaunchBoard::idle(Queue queue) {
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<QueueState> state = find(queue);
  return state == nullptr || state->commands.empty();
}

bool LaunchBoard::all_idle() {
  const std::lock_guard lock(mutex_);
  return std::all_of(queues_.begin(), queues_.end(), [](const auto& q) { return q == nullptr || q->commands.empty(); });
}

bool LaunchBoard::running() {
  const std::lock_guard lock(mutex_);
  return !running_.empty();
}

void LaunchBoard::abandon(std::vector<LaunchState*>* running) {
  LaunchError error;
  error.result = HMMRT_ERROR_INVALID_HANDLE;
  const std::lock_guard lock(mutex_);
  for (const auto& queue : queues_) {
    if (queue == nullptr) continue;
    while (queue->commands.size() > (queue->started ? 1u : 0u)) queue->commands.pop_back();
  }
  for (LaunchState* launch : running_) {
    if (launch->error.result == HMMRT_SUCCESS) launch->error = error;
    launch->cancelled.store(true, std::memory_order_release);
    running->push_back(launch);
  }
}

// Calls the host function at the head of the queue. Releases the lock meanwhile.
void LaunchBoard::call_host(std::unique_lock<std::mutex>& lock, QueueState& queue) {
  const Command command = queue.commands.front();
  lock.unlock();
  command.fn(command.arg);
  lock.lock();
  pop(queue);
  bool new_work = false;
  advance(queue, &new_work);
  if (!new_work) return;
  lock.unlock();
  work_arrived_(context_);
  lock.lock();
}

void LaunchBoard::run_host_thread(QueueState& queue) {
  prepare_thread("hmmrt-queue");
  std::unique_lock lock(mutex_);
  for (;;) {
    const std::uint32_t seen = queue.host_work.load(std::memory_order_acquire);
    if (queue.started && !queue.commands.empty() && queue.commands.front().launch == nullptr) {
      call_host(lock, queue);
      continue;
    }
    if (queue.closing) return;
    lock.unlock();
    park(queue.host_work, seen);
    lock.lock();
  }
}

std::size_t LaunchBoard::host_functions_ready() {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(std::count_if(queues_.begin(), queues_.end(), [](const auto& q) {
    return q != nullptr && q->started && q->commands.front().launch == nullptr;
  }));
}

void LaunchBoard::run_host(std::size_t index) {
  std::unique_lock lock(mutex_);
  for (const auto& q : queues_) {
    if (q == nullptr || !q->started || q->commands.front().launch != nullptr) continue;
    if (index-- == 0) {
      const std::shared_ptr<QueueState> kept = q;  // call_host() drops the lock
      call_host(lock, *kept);
      return;
    }
  }
}

}  // namespace hmmrt
