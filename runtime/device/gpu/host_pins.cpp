// SPDX-License-Identifier: MIT
#include "device/gpu/host_pins.hpp"

#include <condition_variable>
#include <map>
#include <mutex>

#include "device/gpu/gpu_api.hpp"

namespace hmmrt::gpu {

namespace {

struct Piece {
  std::byte* end;
  std::weak_ptr<HostPin> pin;
  bool changing;  // somebody is pinning or unpinning it, without the lock
};

// Never destroyed: the library's own handler at exit comes later than the destructors of a module.
struct Pins {
  std::mutex lock;
  std::condition_variable changed;
  std::map<std::byte*, Piece> pieces;
};
Pins& pins() {
  static Pins& all = *std::make_unique<Pins>().release();
  return all;
}

// The vendor touches the pages, and may have to wait for their delivery: no lock held.
bool register_pages(std::byte* host, std::size_t bytes, std::string* why) {
  if (const Error e = GPU(HostRegister)(host, bytes, GPU(HostRegisterMapped) | GPU(HostRegisterPortable));
      e != k_success) {
    (void)GPU(GetLastError)();
    *why = GPU(GetErrorString)(e);
    return false;
  }
  void* seen = nullptr;
  if (GPU(HostGetDevicePointer)(&seen, host, 0) == k_success && seen == host) return true;
  (void)GPU(HostUnregister)(host);
  *why = "pinned memory has another address on the GPU";
  return false;
}

// Held through `guard`, and let go for a while.
void give(std::unique_lock<std::mutex>& guard, std::shared_ptr<HostPin>& pin) {
  if (pin.use_count() == 1) {
    std::byte* const host = pin->host;
    pins().pieces.find(host)->second.changing = true;
    guard.unlock();
    (void)GPU(HostUnregister)(host);
    guard.lock();
    pins().pieces.erase(host);
    pins().changed.notify_all();
  }
  pin.reset();
}

}  // namespace

std::vector<std::shared_ptr<HostPin>> take_pins(std::byte* host, std::size_t bytes, std::string* why) {
  std::vector<std::shared_ptr<HostPin>> out;
  auto& [lock, changed, pieces] = pins();
  std::unique_lock guard(lock);
  std::byte* const end = host + bytes;
  for (std::byte* at = host; at < end;) {
    auto next = pieces.upper_bound(at);  // the first that ends behind `at`
    if (next != pieces.begin() && std::prev(next)->second.end > at) --next;
    const bool near = next != pieces.end() && next->first < end;
    if (near && next->second.changing) {
      changed.wait(guard);
      continue;
    }
    if (near && next->first <= at) {
      at = next->second.end;
      out.push_back(next->second.pin.lock());
      continue;
    }
    std::byte* const gap_end = near ? next->first : end;
    const auto size = static_cast<std::size_t>(gap_end - at);
    pieces[at] = Piece{gap_end, {}, true};
    guard.unlock();
    const bool done = register_pages(at, size, why);
    guard.lock();
    changed.notify_all();
    if (!done) {
      pieces.erase(at);
      for (std::shared_ptr<HostPin>& taken : out) give(guard, taken);
      return {};
    }
    out.push_back(std::make_shared<HostPin>(HostPin{at, size}));
    Piece& piece = pieces[at];
    piece.pin = out.back();
    piece.changing = false;
    at = gap_end;
  }
  return out;
}

void give_pin(std::shared_ptr<HostPin>& pin) {
  std::unique_lock guard(pins().lock);
  give(guard, pin);
}

}  // namespace hmmrt::gpu
