// SPDX-License-Identifier: MIT
#include "device/gpu/gpu_queue.hpp"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

namespace hmmrt::gpu {

GpuQueue::GpuQueue(QueueOwner& device, Stream stream) : device_(device), stream_(stream) {
  thread_ = std::thread([this] { work(); });
}

GpuQueue::~GpuQueue() {
  {
    const std::lock_guard guard(lock_);
    stopping_ = true;
  }
  more_.notify_one();
  thread_.join();
  const Current current = device_.use();
  (void)GPU(StreamSynchronize)(stream_);
  (void)GPU(StreamDestroy)(stream_);
}

void GpuQueue::launch(const Launch& launch) {
  std::unique_lock guard(lock_);
  if (tasks_.empty() && !busy_) {
    const Current current = device_.use();
    if (start_if_ready(launch)) return;
  }
  Task task;
  task.launch = launch;
  task.name = launch.name;
  const auto* bytes = static_cast<const std::byte*>(launch.functor);
  task.functor.assign(bytes, bytes + launch.functor_bytes);
  tasks_.push_back(std::move(task));
  guard.unlock();
  more_.notify_one();
}

void GpuQueue::host(void (*fn)(void*), void* arg) {
  Task task;
  task.fn = fn;
  task.arg = arg;
  {
    const std::lock_guard guard(lock_);
    tasks_.push_back(std::move(task));
  }
  more_.notify_one();
}

LaunchError GpuQueue::synchronize(std::string* text) {
  std::unique_lock guard(lock_);
  done_.wait(guard, [this] { return tasks_.empty() && !busy_; });
  guard.unlock();
  const Current current = device_.use();
  const Error e = GPU(StreamSynchronize)(stream_);
  const std::lock_guard errors(error_lock_);
  if (e != k_success && error_.result == HMMRT_SUCCESS) {
    error_.result = HMMRT_ERROR_ILLEGAL_ADDRESS;
    error_text_ = std::string("a kernel ended with an error of the GPU's: ") + GPU(GetErrorString)(e);
  }
  const LaunchError error = error_;
  *text = error_text_;
  error_ = LaunchError{};
  error_text_.clear();
  return error;
}

bool GpuQueue::idle() {
  {
    const std::unique_lock guard(lock_, std::try_to_lock);  // held while a kernel is being started
    if (!guard.owns_lock() || !tasks_.empty() || busy_) return false;
  }
  const Current current = device_.use();
  return GPU(StreamQuery)(stream_) != k_not_ready;
}

void GpuQueue::work() {
  pthread_setname_np(pthread_self(), "hmmrt-gpu");
  std::unique_lock guard(lock_);
  for (;;) {
    more_.wait(guard, [this] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    guard.unlock();
    const Current current = device_.use();
    try {
      run(task);
    } catch (const std::exception& e) {  // no memory to make pages ready with
      note_error(task.name, HMMRT_ERROR_OUT_OF_MEMORY, e.what());
    }
    task = Task{};  // what it holds is let go before anyone sees the queue idle
    guard.lock();
    busy_ = false;
    if (tasks_.empty()) done_.notify_all();
  }
}

void GpuQueue::run(Task& task) {
  if (task.fn != nullptr) {
    if (GPU(StreamSynchronize)(stream_) != k_success && GPU(DeviceSynchronize)() != k_success) {
      note_error("(host function)", HMMRT_ERROR_SYSTEM, "the GPU does not say whether what came before has ended");
    }
    task.fn(task.arg);
    return;
  }
  task.launch.name = task.name.c_str();
  task.launch.functor = task.functor.data();
  if (start_if_ready(task.launch)) return;
  for (unsigned attempt = 0; attempt < k_attempts; ++attempt) {
    std::shared_ptr<const ReadyPages> ready;
    if (attempt > 1) std::this_thread::sleep_for(std::chrono::microseconds(20u << std::min(attempt, 10u)));
    LaunchPages& pages = *task.launch.pages;  // there are some, or it would have started
    if (const Status s = pages.make_ready(attempt, &ready); !s.ok()) {
      note_error(task.launch.name, s.code(), pages.why());
      return;
    }
    if (ready != nullptr && start(task.launch, ready.get())) return;
  }
  const std::string pins = device_.pin_error();
  note_error(task.launch.name, HMMRT_ERROR_BUSY,
             pins.empty() ? "its pages were taken away again and again before it could start"
                          : "its memory cannot be mapped where it is: " + pins);
}

// What was ready for an earlier launch and still is, is enough.
bool GpuQueue::start_if_ready(const Launch& launch) {
  if (launch.pages == nullptr) return start(launch, nullptr);
  const std::shared_ptr<const ReadyPages> known = launch.pages->ready_now();
  return known != nullptr && start(launch, known.get());
}

// False: its pages are not ready. Otherwise the kernel has started or failed, and may have started all the same: never twice.
bool GpuQueue::start(const Launch& launch, const ReadyPages* ready) {
  if (const std::string broken = device_.broken(); !broken.empty()) {
    note_error(launch.name, HMMRT_ERROR_SYSTEM, broken);
    return true;
  }
  Error error{};
  const QueueOwner::Start how = device_.start(stream_, launch, ready, &error);
  if (how == QueueOwner::Start::failed) {
    note_error(launch.name, HMMRT_ERROR_SYSTEM, std::string("did not start: ") + GPU(GetErrorString)(error));
  }
  return how != QueueOwner::Start::not_ready;
}

void GpuQueue::note_error(const std::string& kernel, hmmrt_result_t result, const std::string& text) {
  const std::lock_guard guard(error_lock_);
  if (error_.result != HMMRT_SUCCESS) return;
  error_.result = result;
  std::snprintf(error_.kernel, sizeof error_.kernel, "%s", kernel.c_str());
  error_text_ = "kernel '" + kernel + "': " + text;
}

}  // namespace hmmrt::gpu
