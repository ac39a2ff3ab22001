// SPDX-License-Identifier: MIT
#include "device/gpu/host_pins.hpp"

#include <algorithm>
#include <map>
#include <mutex>

#include "device/gpu/gpu_api.hpp"

namespace hmmrt::gpu {

namespace {

std::mutex g_pins_lock;
std::map<std::byte*, std::weak_ptr<HostPin>> g_pins;

}  // namespace

std::vector<std::shared_ptr<HostPin>> take_pins(std::byte* host, std::size_t bytes, std::string* why) {
  std::vector<std::shared_ptr<HostPin>> out;
  const std::lock_guard guard(g_pins_lock);
  std::byte* const end = host + bytes;
  const auto pin = [&](std::byte* from, std::byte* to) {
    const auto size = static_cast<std::size_t>(to - from);
    if (const Error e = GPU(HostRegister)(from, size, GPU(HostRegisterMapped) | GPU(HostRegisterPortable));
        e != k_success) {
      (void)GPU(GetLastError)();
      *why = GPU(GetErrorString)(e);
      return false;
    }
    void* seen = nullptr;
    if (GPU(HostGetDevicePointer)(&seen, from, 0) != k_success || seen != from) {
      (void)GPU(HostUnregister)(from);
      *why = "pinned memory has another address on the GPU";
      return false;
    }
    out.push_back(std::make_shared<HostPin>(HostPin{from, size}));
    g_pins[from] = out.back();
    return true;
  };
  auto next = g_pins.upper_bound(host);
  if (next != g_pins.begin()) --next;
  std::byte* at = host;
  while (at < end) {
    std::shared_ptr<HostPin> known;
    while (next != g_pins.end() && next->first < end) {
      known = next->second.lock();
      ++next;
      if (known != nullptr && known->host + known->bytes > at) break;
      known.reset();
    }
    std::byte* const gap_end = known != nullptr ? std::max(known->host, at) : end;
    if (at < gap_end && !pin(at, gap_end)) break;
    at = gap_end;
    if (known == nullptr) continue;
    at = known->host + known->bytes;
    out.push_back(std::move(known));
  }
  if (at >= end) return out;
  for (std::shared_ptr<HostPin>& taken : out) {
    if (taken.use_count() == 1) {
      (void)GPU(HostUnregister)(taken->host);
      g_pins.erase(taken->host);
    }
  }
  return {};
}

void give_pin(std::shared_ptr<HostPin>& pin) {
  const std::lock_guard guard(g_pins_lock);
  if (pin.use_count() == 1) {
    (void)GPU(HostUnregister)(pin->host);
    g_pins.erase(pin->host);
  }
  pin.reset();
}

}  // namespace hmmrt::gpu
