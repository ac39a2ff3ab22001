// SPDX-License-Identifier: MIT
// One in-order queue of a GPU: a stream of the vendor's, and a thread for what has to wait before it can be put on
// that stream. Thread: any; calls of several threads are ordered by the queue's lock.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "device/gpu/queue_owner.hpp"

namespace hmmrt::gpu {

class GpuQueue {
 public:
  static constexpr unsigned k_attempts = 60;  // to start a kernel whose pages are taken away meanwhile

  GpuQueue(QueueOwner& device, Stream stream);
  ~GpuQueue();  // waits for its work

  void launch(const Launch& launch);
  void host(void (*fn)(void*), void* arg);
  // Until nothing is left to do. Returns and clears the first error.
  LaunchError synchronize(std::string* text);
  bool idle();

 private:
  struct Task {
    Launch launch;
    std::vector<std::byte> functor;
    std::string name;
    void (*fn)(void*) = nullptr;  // a host function, if not null
    void* arg = nullptr;
  };

  void work();
  void run(Task& task);
  bool start_if_ready(const Launch& launch);
  bool start(const Launch& launch, const ReadyPages* ready);
  void note_error(const std::string& kernel, hmmrt_result_t result, const std::string& text);

  QueueOwner& device_;
  Stream stream_;
  std::mutex lock_;
  std::condition_variable more_, done_;
  std::deque<Task> tasks_;
  bool busy_ = false, stopping_ = false;
  std::mutex error_lock_;
  LaunchError error_;
  std::string error_text_;
  std::thread thread_;
};

}  // namespace hmmrt::gpu
