// SPDX-License-Identifier: MIT
#include "host/kfd/svm_driver.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>

#include "host/kfd/hsakmt.hpp"
#include "host/kfd/kernel_svm.hpp"

namespace hmmrt::kfd {

const char* attribute_name(SvmAttr type) noexcept {
  static constexpr std::array<const char*, k_svm_attrs> names = {"preferred_location", "prefetch_location", "access",
                                                                 "access_in_place",    "no_access",         "set_flags",
                                                                 "clear_flags",        "granularity"};
  return names[static_cast<std::size_t>(type) % k_svm_attrs];
}

const SvmDriver* SvmDriver::open(std::string* why) {
  static std::mutex lock;
  static const SvmDriver* opened = nullptr;
  const std::lock_guard guard(lock);
  if (opened != nullptr) return opened;
  std::unique_ptr<SvmDriver> made;
  if (void* const library = Hsakmt::library_here(); library != nullptr) {
    made = Hsakmt::make(library, why);
  } else {
    made = KernelSvm::make({}, why);
  }
  opened = made.release();
  return opened;
}

const char* svm_error_text(int error) noexcept {
  switch (error) {
    case 0:
      return "no error";
    case EPERM:
      return "Operation not permitted: this kernel or GPU does not have it";
    case EOPNOTSUPP:
      return "not supported by this kernel or GPU";
    case ENOTTY:
      return "Inappropriate ioctl: the driver is older than shared virtual memory (Linux 5.14)";
    case EINVAL:
      return "Invalid argument: the driver knows no such attribute, or no such GPU with shared virtual memory for this "
             "process";
    case ENODEV:
      return "No such device: this process may not use that GPU";
    case ENXIO:
      return "/dev/kfd cannot be opened";
    case EFAULT:
      return "Bad address: not all of it is ordinary mapped memory";
    case EBUSY:
      return "Device or resource busy: this process has queues on a GPU";
    case ENOMEM:
    case ENOSPC:
      return "out of memory, the system's or the GPU's";
    case EBADF:
      return "Bad file descriptor: /dev/kfd was opened before fork(), and serves the parent only";
    case E2BIG:
      return "too many attributes at once";
    case EIO:
      return "the driver reports an error; see the kernel's log for amdgpu";
    default:
      return strerror(error);
  }
}

}  // namespace hmmrt::kfd
