// SPDX-License-Identifier: MIT
// The driver's SVM calls, made of the kernel itself: /dev/kfd and its ioctls (kfd_abi.h). It knows a GPU when the process has
// acquired it, which HIP's runtime does for all that it finds.
// Thread: any.
#pragma once

#include <memory>
#include <utility>

#include "host/kfd/probe.hpp"
#include "host/kfd/svm_driver.hpp"

namespace hmmrt::kfd {

class KernelSvm final : public SvmDriver {
 public:
  // Null, and why: the device does not open, or is older than SVM.
  static std::unique_ptr<KernelSvm> make(const KfdSystem& system, std::string* why);
  ~KernelSvm() override;

  const char* way() const noexcept override { return "by the kernel directly"; }
  std::uint32_t minor() const noexcept override { return minor_; }
  int set(std::uintptr_t addr, std::size_t bytes, std::span<const SvmAttribute> attributes) const noexcept override;
  int get(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept override;
  int get_xnack(bool* on) const noexcept override;
  int set_xnack(bool on) const noexcept override;
  int open_smi(std::uint32_t gpu_id, std::uint64_t mask, int* fd) const noexcept override;

 private:
  KernelSvm(KfdSystem system, int device) : system_(std::move(system)), device_(device) {}

  const KfdSystem system_;
  const int device_;
  std::uint32_t minor_ = 0;
};

// A descriptor of reports of one GPU. 0 or errno.
int open_kernel_smi(const KfdSystem& system, int device, std::uint32_t gpu_id, int* fd) noexcept;
// Says which events it shall give, and that reading it must not block. 0, or errno, and it is closed.
int listen_to(int* fd, std::uint64_t mask) noexcept;

}  // namespace hmmrt::kfd
