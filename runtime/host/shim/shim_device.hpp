// SPDX-License-Identifier: MIT
// /dev/hmmrt<N> as values: one class per open node, one function per call of driver-shim/uapi/hmmrt_shim.h, errno as a
// number. Nothing here knows blocks or policy. Interrupted calls go on where they stopped.
// Thread: any. Blocks on: the kernel only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "device/soft/far_memory.hpp"
#include "space/page_mask.hpp"
#include "space/status.hpp"
#include "uapi/hmmrt_shim.h"

namespace hmmrt::shim {

class ShimDevice final : public FarMemory {
 public:
  // Opens and binds node `index`. Null, with *status and the detail text set, when that fails.
  static std::unique_ptr<ShimDevice> open(unsigned index, Status* status);
  ~ShimDevice() override;
  ShimDevice(const ShimDevice&) = delete;
  ShimDevice& operator=(const ShimDevice&) = delete;

  int fd() const { return fd_; }  // readable when the ring has events
  const hmmrt_shim_query& info() const { return info_; }

  // One of the calls on ranges (HMMRT_SHIM_TO_DEV, ...) for pages of the block at `base`: a status for each of them.
  // Returns errno, which is the whole call's: ESRCH, ENODEV. Pages not reached then say HMMRT_SHIM_NOT_REACHED.
  using BlockStatus = std::array<std::uint8_t, k_block_pages>;
  int on_pages(unsigned long call, std::uintptr_t base, const PageMask& pages, std::uint32_t flags,
               BlockStatus* status) const noexcept;

  void access(std::span<FarAccess* const> accesses) noexcept override;

  // The event ring. Thread: one.
  bool next(hmmrt_shim_event* out) noexcept;
  // Events there have been so far, those not read yet included; how many of them were taken by next(). Thread: any.
  std::uint64_t events() const noexcept;
  std::uint64_t taken() const noexcept;

 private:
  ShimDevice() = default;
  int submit(std::span<FarAccess* const> accesses, std::size_t* served) const noexcept;
  void retry(FarAccess& access, unsigned* lost) const noexcept;

  int fd_ = -1;
  hmmrt_shim_query info_{};
  hmmrt_shim_ring* ring_ = nullptr;
  std::size_t ring_bytes_ = 0;
};

}  // namespace hmmrt::shim
