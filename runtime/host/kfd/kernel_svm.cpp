// SPDX-License-Identifier: MIT
#include "host/kfd/kernel_svm.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "host/kfd/kfd_abi.h"

namespace hmmrt::kfd {

namespace {

static_assert(k_most_attributes == HMMRT_KFD_SVM_MOST);

// 0 or errno. As libhsakmt does it: again where a signal or the driver says so.
int call(const KfdSystem& system, int device, unsigned long request, void* argument) noexcept {
  int error = 0;
  do {
    error = system.ioctl(device, request, argument) == 0 ? 0 : errno;
  } while (error == EINTR || error == EAGAIN);
  return error;
}

// The call with its attributes; false: too many.
bool fill(hmmrt_kfd_svm* out, std::uint32_t op, std::uintptr_t addr, std::size_t bytes,
          std::span<const SvmAttribute> attributes) {
  if (attributes.size() > k_most_attributes) return false;
  out->start = addr;
  out->bytes = bytes;
  out->op = op;
  out->attributes = static_cast<std::uint32_t>(attributes.size());
  for (std::size_t i = 0; i < attributes.size(); ++i) {
    out->attribute[i] = {static_cast<std::uint32_t>(attributes[i].type), attributes[i].value};
  }
  return true;
}

}  // namespace

std::unique_ptr<KernelSvm> KernelSvm::make(const KfdSystem& system, std::string* why) {
  const std::string no = "by the kernel directly (no libhsakmt is in this process): " + system.device;
  const int device = system.open(system.device.c_str(), O_RDWR | O_CLOEXEC);
  if (device < 0) {
    *why = no + " does not open (" + strerror(errno) + ")";
    return nullptr;
  }
  std::unique_ptr<KernelSvm> made(new KernelSvm(system, device));
  hmmrt_kfd_version version{};
  if (const int error = call(system, device, HMMRT_KFD_GET_VERSION, &version); error != 0) {
    *why = no + " does not tell its version (" + strerror(error) + ")";
    return nullptr;
  }
  if (version.abi_major != HMMRT_KFD_MAJOR || version.abi_minor < HMMRT_KFD_MINOR_SVM) {
    *why = no + " speaks version " + std::to_string(version.abi_major) + "." + std::to_string(version.abi_minor) +
           ", and shared virtual memory takes 1.5 or a later 1.x (Linux 5.14)";
    return nullptr;
  }
  made->minor_ = version.abi_minor;
  return made;
}

KernelSvm::~KernelSvm() { close(device_); }

int KernelSvm::set(std::uintptr_t addr, std::size_t bytes, std::span<const SvmAttribute> attributes) const noexcept {
  hmmrt_kfd_svm svm{};
  if (!fill(&svm, HMMRT_KFD_SVM_SET_ATTR, addr, bytes, attributes)) return E2BIG;
  return call(system_, device_, HMMRT_KFD_SVM_WITH(attributes.size()), &svm);
}

int KernelSvm::get(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept {
  hmmrt_kfd_svm svm{};
  if (!fill(&svm, HMMRT_KFD_SVM_GET_ATTR, addr, bytes, attributes)) return E2BIG;
  const int error = call(system_, device_, HMMRT_KFD_SVM_WITH(attributes.size()), &svm);
  if (error != 0) return error;
  for (std::size_t i = 0; i < attributes.size(); ++i) {
    attributes[i] = {static_cast<SvmAttr>(svm.attribute[i].type), svm.attribute[i].value};
  }
  return 0;
}

int KernelSvm::get_xnack(bool* on) const noexcept {
  hmmrt_kfd_xnack xnack{-1};
  const int error = call(system_, device_, HMMRT_KFD_XNACK, &xnack);
  *on = error == 0 && xnack.enabled > 0;
  return error;
}

int KernelSvm::set_xnack(bool on) const noexcept {
  hmmrt_kfd_xnack xnack{on ? 1 : 0};
  return call(system_, device_, HMMRT_KFD_XNACK, &xnack);
}

int KernelSvm::open_smi(std::uint32_t gpu_id, std::uint64_t mask, int* fd) const noexcept {
  *fd = -1;
  const int error = open_kernel_smi(system_, device_, gpu_id, fd);
  return error != 0 ? error : listen_to(fd, mask);
}

int open_kernel_smi(const KfdSystem& system, int device, std::uint32_t gpu_id, int* fd) noexcept {
  hmmrt_kfd_smi_events events{gpu_id, 0};
  const int error = call(system, device, HMMRT_KFD_SMI_EVENTS, &events);
  if (error == 0) *fd = static_cast<int>(events.fd);
  return error;
}

int listen_to(int* fd, std::uint64_t mask) noexcept {
  int error = write(*fd, &mask, sizeof mask) == sizeof mask ? 0 : errno;
  if (error == 0 && (fcntl(*fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(*fd, F_SETFL, O_NONBLOCK) != 0)) error = errno;
  if (error != 0) {
    close(*fd);
    *fd = -1;
  }
  return error;
}

}  // namespace hmmrt::kfd
