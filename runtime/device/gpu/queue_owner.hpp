// SPDX-License-Identifier: MIT
// What is the same for every kind of GPU: what a GpuQueue needs of the device it belongs to, the queues of a device, how it
// is described, and what is said of one that cannot be used.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "device/gpu/gpu_api.hpp"
#include "device/gpu/module.hpp"

namespace hmmrt::gpu {

class GpuQueue;

// Name, index, what it is and how large its waves are.
void describe(const DeviceConfig& config, DeviceInfo* info);
void say_unusable(const DeviceConfig& config, const Services& services, Error error);

// Makes a GPU the calling thread's, for as long as it lives; the application's choice is restored.
class Current {
 public:
  explicit Current(unsigned ordinal) {
    int now = -1;
    if (GPU(GetDevice)(&now) == k_success && now == static_cast<int>(ordinal)) return;
    before_ = now;
    error_ = GPU(SetDevice)(static_cast<int>(ordinal));
  }
  ~Current() {
    if (before_ >= 0) (void)GPU(SetDevice)(before_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  Error error() const { return error_; }

 private:
  int before_ = -1;
  Error error_ = k_success;
};

// Held while a kernel is started on this GPU: the address offset of a file's kernels is one for all contexts.
std::mutex& start_lock(unsigned ordinal);

class QueueOwner {
 public:
  virtual ~QueueOwner() = default;
  [[nodiscard]] virtual Current use() const = 0;
  enum class Start : std::uint8_t { started, not_ready, failed };
  // Starts the kernel, if all of `ready` is mapped at this moment; null where the device needs nothing ready. failed:
  // *error is the vendor's.
  virtual Start start(Stream stream, const Launch& launch, const ReadyPages* ready, Error* error) = 0;
  // What an earlier call of the vendor's reported that leaves memory unusable; "" when nothing.
  virtual std::string broken() const { return {}; }
  // Why the latest host memory could not be mapped; "" when all could.
  virtual std::string pin_error() { return {}; }
};

// Thread: any.
class Queues {
 public:
  // All three outlive it.
  Queues(QueueOwner& owner, const Services& services, const std::string& name);
  ~Queues();
  Queues(const Queues&) = delete;
  Queues& operator=(const Queues&) = delete;

  Status create(Queue* out);
  void destroy(Queue queue);
  Status launch(Queue queue, const Launch& launch);
  Status enqueue_host(Queue queue, void (*fn)(void*), void* arg);
  LaunchError synchronize(Queue queue);
  bool idle(Queue queue);
  void clear();

 private:
  Status fail(hmmrt_result_t code, const char* format, ...) const __attribute__((format(printf, 3, 4)));
  GpuQueue* find(Queue queue);  // it stays: its stream has users

  QueueOwner& owner_;
  const Services& services_;
  const std::string& name_;
  std::mutex lock_;
  std::map<Queue, std::unique_ptr<GpuQueue>> queues_;
  Queue next_ = 1;
};

}  // namespace hmmrt::gpu
