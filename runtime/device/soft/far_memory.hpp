// SPDX-License-Identifier: MIT
// Far memory: what a software GPU works on when the memory of its frames is not in this process, because a kernel module
// owns it (host/shim). Frames are then numbers only, and an access is a request by virtual address, which the owner
// serves wherever the page is, as a GPU's own page-table walker would. Coherence is the owner's business; the device's
// page table still decides whether an access faults first, so that batches, policies and statistics are the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hmmrt {

struct FarAccess {
  enum class Op : std::uint8_t { read, write, compare_exchange, add };
  Op op = Op::read;
  bool system = false;  // atomics: to every processor, not only to the waves of this device
  int error = 0;        // out: 0 or errno. EFAULT: no such memory, or no such right
  std::uintptr_t addr = 0;
  void* buffer = nullptr;                   // read, write
  std::size_t bytes = 0;                    // atomics: 4 or 8
  std::uint64_t expected = 0, desired = 0;  // compare_exchange; add: desired is added
  std::uint64_t before = 0;                 // out, atomics
};

class FarMemory {
 public:
  virtual ~FarMemory() = default;
  // Carries the accesses out, in order. Thread: any. Blocks on: the kernel.
  virtual void access(std::span<FarAccess* const> accesses) noexcept = 0;
};

}  // namespace hmmrt
