// SPDX-License-Identifier: MIT
#include "device/gpu/svm_device.hpp"

#include <algorithm>

#include "device/gpu/gpu_queue.hpp"

namespace hmmrt::gpu {

SvmDevice::SvmDevice(DeviceConfig config, const Services& services)
    : config_(std::move(config)), services_(services), queues_(*this, services_, config_.name) {}

SvmDevice::~SvmDevice() = default;

std::unique_ptr<hmmrt::Device> SvmDevice::make(const DeviceConfig& config, const Services& services) {
  std::unique_ptr<SvmDevice> device(new SvmDevice(config, services));
  if (const Error e = device->open(); e != k_success) {
    say_unusable(config, services, e);
    return nullptr;
  }
  return device;
}

Error SvmDevice::open() {
  const Current current = use();
  if (current.error() != k_success) return current.error();
  std::size_t free_bytes = 0, total = 0;
  if (const Error e = GPU(MemGetInfo)(&free_bytes, &total); e != k_success) return e;
  const std::uint64_t most = std::max<std::uint64_t>(free_bytes, k_block_size);
  std::uint64_t bytes = config_.memory_bytes != 0 ? std::min(config_.memory_bytes, most) : most;
  bytes = std::max<std::uint64_t>(bytes & ~(k_block_size - 1), k_block_size);
  frames_ = bytes / k_page_size;
  describe(config_, &info_);
  info_.memory_bytes = bytes;
  info_.description += config_.xnack ? ": its driver serves faults and moves pages" : ": its driver moves pages";
  info_.caps.retryable_faults = true;  // an access to memory that the driver knows is always served
  info_.caps.remote_mapping = config_.remote_mapping;
  int atomics = 0;
  const Error e = GPU(DeviceGetAttribute)(&atomics, k_native_atomics, static_cast<int>(config_.ordinal));
  info_.caps.system_atomics = e == k_success && atomics != 0;
  return k_success;
}

bool SvmDevice::allocate_frames(std::uintptr_t base, const PageMask& pages, Frame* frames) {
  const std::uint64_t wanted = pages.count();
  std::uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (used + wanted > frames_) return false;
  } while (!used_.compare_exchange_weak(used, used + wanted, std::memory_order_relaxed));
  // Numbers that nobody looks up; in one run, as the pages are.
  const auto first = static_cast<Frame>(base >> k_page_shift & 0x3fffffffu);
  pages.for_each([&](unsigned page) { frames[page] = first + page; });
  return true;
}

void SvmDevice::free_frames(const PageMask& pages, const Frame*) {
  used_.fetch_sub(pages.count(), std::memory_order_relaxed);
}

std::uint64_t SvmDevice::free_frame_count() const { return frames_ - used_.load(std::memory_order_relaxed); }

QueueOwner::Start SvmDevice::start(Stream stream, const Launch& launch, const ReadyPages*, Error* error) {
  const std::lock_guard guard(start_lock(config_.ordinal));
  *error = static_cast<Error>(launch.run_gpu(launch.functor, &launch.grid, 0, stream));
  return *error == k_success ? Start::started : Start::failed;
}

}  // namespace hmmrt::gpu
