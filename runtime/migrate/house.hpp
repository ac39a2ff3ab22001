// SPDX-License-Identifier: MIT
// House: the rooms below, wired together, as everything from migrate/ upwards sees them. Context (api/) builds one; tests
// build one from models. It owns nothing.
#pragma once

#include <array>
#include <atomic>

#include "device/device.hpp"
#include "host/host_mirror.hpp"
#include "migrate/event_gate.hpp"
#include "policy/policy.hpp"
#include "space/address_space.hpp"
#include "space/clock.hpp"
#include "space/resident_list.hpp"
#include "trace/counters.hpp"
#include "trace/event_log.hpp"

namespace hmmrt {

struct House {
  AddressSpace& space;
  HostMirror& host;
  const Policy& policy;
  const Clock& clock;
  EventLog& log;
  Counters& counters;
  unsigned device_count = 0;
  std::array<Device*, k_max_devices> devices{};
  std::array<Counters*, k_max_devices> device_counters{};
  std::array<ResidentList, k_max_devices> resident{};
  EventGate gate{};
  std::atomic<std::uint32_t> unsettled{0};  // blocks with notices recorded and not yet settled
  // Called while a quiesce takes long, so that the event thread can serve the CPU fault that a compute unit may be
  // stuck in (a remote access to a page that the application dropped). Does nothing on other threads.
  void (*while_stalled)(void*) = nullptr;
  void* stalled_argument = nullptr;
  // Whether the block at `base` is somebody else's: another context's of this process. May take locks; no claim is needed.
  bool (*foreign)(void*, std::uintptr_t base) = nullptr;
  void* foreign_argument = nullptr;

  bool is_foreign(std::uintptr_t base) const { return foreign != nullptr && foreign(foreign_argument, base); }
  Device& device(Processor p) const { return *devices[p - 1u]; }
  // Counters for pages of `block` moving to or from `p`. Claim held.
  Tally tally(const Block& block, Processor p, std::uintptr_t addr) const {
    return {&counters, p != k_cpu ? device_counters[p - 1u] : nullptr, space.range_counters(block, addr)};
  }
};

}  // namespace hmmrt
