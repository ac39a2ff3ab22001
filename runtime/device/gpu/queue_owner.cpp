// SPDX-License-Identifier: MIT
#include "device/gpu/queue_owner.hpp"

#include <array>
#include <cstdarg>
#include <cstdio>
#include <system_error>

#include "device/gpu/gpu_queue.hpp"

namespace hmmrt::gpu {

std::mutex& start_lock(unsigned ordinal) {
  static std::array<std::mutex, 64> locks;  // more GPUs than that share
  return locks[ordinal % locks.size()];
}

void describe(const DeviceConfig& config, DeviceInfo* info) {
  info->name = config.name;
  info->index = config.index;
  DeviceProperties properties{};
  if (GPU(GetDeviceProperties)(&properties, static_cast<int>(config.ordinal)) != k_success) return;
  info->description = std::string(properties.name) + ", " HMMRT_GPU_VENDOR;
  info->compute_units = static_cast<std::uint32_t>(properties.multiProcessorCount);
  info->wave_size = static_cast<std::uint32_t>(properties.warpSize);
}

void say_unusable(const DeviceConfig& config, const Services& services, Error error) {
  const std::string text =
      config.name + " (GPU " + std::to_string(config.ordinal) + ") cannot be used: " + GPU(GetErrorString)(error);
  (void)services.fail(HMMRT_ERROR_SYSTEM, text.c_str());
}

Queues::Queues(QueueOwner& owner, const Services& services, const std::string& name)
    : owner_(owner), services_(services), name_(name) {}
Queues::~Queues() = default;

Status Queues::fail(hmmrt_result_t code, const char* format, ...) const {
  char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return services_.fail(code, text);
}

void Queues::clear() {
  const std::lock_guard guard(lock_);
  queues_.clear();
}

GpuQueue* Queues::find(Queue queue) {
  const std::lock_guard guard(lock_);
  const auto it = queues_.find(queue);
  return it != queues_.end() ? it->second.get() : nullptr;
}

Status Queues::create(Queue* out) {
  const Current current = owner_.use();
  Stream stream{};
  if (const Error e = GPU(StreamCreateWithFlags)(&stream, k_stream_flags); e != k_success) {
    return fail(HMMRT_ERROR_SYSTEM, "%s gives no stream: %s", name_.c_str(), GPU(GetErrorString)(e));
  }
  std::unique_ptr<GpuQueue> made;
  try {
    made = std::make_unique<GpuQueue>(owner_, stream);
  } catch (const std::system_error& e) {
    (void)GPU(StreamDestroy)(stream);
    return fail(HMMRT_ERROR_SYSTEM, "%s: no thread for a queue: %s", name_.c_str(), e.what());
  }
  const std::lock_guard guard(lock_);
  *out = next_++;
  queues_.emplace(*out, std::move(made));
  return {};
}

void Queues::destroy(Queue queue) {
  std::unique_ptr<GpuQueue> taken;
  const std::lock_guard guard(lock_);
  if (const auto it = queues_.find(queue); it != queues_.end()) {
    taken = std::move(it->second);
    queues_.erase(it);
  }
}

Status Queues::launch(Queue queue, const Launch& launch) {
  if (launch.run_gpu == nullptr) {
    return fail(
        HMMRT_ERROR_NOT_SUPPORTED,
        "kernel '%.63s' has no code for a GPU: compile the file that launches it with hipcc or nvcc, and launch "
        "it with hmmrt::launch() of kernel.hpp",
        launch.name);
  }
  GpuQueue* q = find(queue);
  if (q == nullptr) return fail(HMMRT_ERROR_INVALID_HANDLE, "launch: %u is not a live queue", queue);
  q->launch(launch);
  return {};
}

Status Queues::enqueue_host(Queue queue, void (*fn)(void*), void* arg) {
  GpuQueue* q = find(queue);
  if (q == nullptr) return fail(HMMRT_ERROR_INVALID_HANDLE, "enqueue_host: %u is not a live queue", queue);
  q->host(fn, arg);
  return {};
}

LaunchError Queues::synchronize(Queue queue) {
  GpuQueue* q = find(queue);
  LaunchError error;
  if (q == nullptr) {
    error.result = fail(HMMRT_ERROR_INVALID_HANDLE, "synchronize: %u is not a live queue", queue).code();
    return error;
  }
  std::string text;
  error = q->synchronize(&text);
  if (error.result != HMMRT_SUCCESS) (void)fail(error.result, "%s", text.c_str());
  return error;
}

bool Queues::idle(Queue queue) {
  GpuQueue* q = find(queue);
  return q == nullptr || q->idle();
}

}  // namespace hmmrt::gpu
