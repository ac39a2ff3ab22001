// SPDX-License-Identifier: MIT
// A stand-in for /dev/kfd, for processes without libhsakmt: open() and ioctl(), before the C library's, over the same driver
// as hsakmt.cpp. It takes gpu_ids, as amdkfd does, and checks what it is given by the kernel's own header.
#include <fcntl.h>
#include <hsakmt.h>
#include <linux/kfd_ioctl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstring>

#include "gpu/standin/kmt_hooks.hpp"
#include "gpu/standin/smi_lines.hpp"

namespace {

constexpr std::uint32_t k_most = 64;

int answer(int error) {
  if (error == 0) return 0;
  errno = error;
  return -1;
}
int answer_of(HSAKMT_STATUS status, int error) { return answer(status == HSAKMT_STATUS_SUCCESS ? 0 : error); }

// The node of a GPU; none: no such GPU.
bool to_node(std::uint32_t gpu_id, std::uint32_t* node) {
  *node = gpu_id - standin::gpu_id(1) + 1;
  HsaNodeProperties properties;
  return *node != 0 && *node < 32 && hsaKmtGetNodeProperties(*node, &properties) == HSAKMT_STATUS_SUCCESS;
}

bool is_location(std::uint32_t type) {
  return type == KFD_IOCTL_SVM_ATTR_PREFERRED_LOC || type == KFD_IOCTL_SVM_ATTR_PREFETCH_LOC;
}
bool is_access(std::uint32_t type) {
  return type == KFD_IOCTL_SVM_ATTR_ACCESS || type == KFD_IOCTL_SVM_ATTR_ACCESS_IN_PLACE ||
         type == KFD_IOCTL_SVM_ATTR_NO_ACCESS;
}

int svm(kfd_ioctl_svm_args* args, std::size_t bytes) {
  if (args->nattr > k_most || bytes != sizeof *args + args->nattr * sizeof(kfd_ioctl_svm_attribute)) {
    return answer(EINVAL);
  }
  const bool get = args->op == KFD_IOCTL_SVM_OP_GET_ATTR;
  std::array<HSA_SVM_ATTRIBUTE, k_most> all{};
  for (std::uint32_t i = 0; i < args->nattr; ++i) {
    const kfd_ioctl_svm_attribute& a = args->attrs[i];
    all[i] = {a.type, a.value};
    const bool whose = is_access(a.type) || (is_location(a.type) && !get && a.value != 0 && a.value != 0xffffffff);
    if (whose && !to_node(a.value, &all[i].value)) return answer(EINVAL);
  }
  void* const at = reinterpret_cast<void*>(args->start_addr);
  if (!get) return answer_of(hsaKmtSVMSetAttr(at, args->size, args->nattr, all.data()), EINVAL);
  if (hsaKmtSVMGetAttr(at, args->size, args->nattr, all.data()) != HSAKMT_STATUS_SUCCESS) return answer(EPERM);
  for (std::uint32_t i = 0; i < args->nattr; ++i) {
    args->attrs[i].type = all[i].type;
    if (!is_access(all[i].type)) {
      args->attrs[i].value = is_location(all[i].type) ? standin::gpu_id(all[i].value) : all[i].value;
    }
  }
  return 0;
}

int xnack(kfd_ioctl_set_xnack_mode_args* args) {
  HSAint32 now = 0;
  if (args->xnack_enabled >= 0) return answer_of(hsaKmtSetXNACKMode(args->xnack_enabled), EBUSY);
  const HSAKMT_STATUS status = hsaKmtGetXNACKMode(&now);
  args->xnack_enabled = now;
  return answer_of(status, EPERM);
}

int smi(kfd_ioctl_smi_events_args* args) {
  std::uint32_t node = 0;
  int fd = -1;
  if (!to_node(args->gpuid, &node) || hsaKmtOpenSMI(node, &fd) != HSAKMT_STATUS_SUCCESS) return answer(EINVAL);
  args->anon_fd = static_cast<std::uint32_t>(fd);
  return 0;
}

int kfd(unsigned long request, void* argument) {
  switch (_IOC_NR(request)) {
    case _IOC_NR(AMDKFD_IOC_GET_VERSION): {
      HsaVersionInfo version{};
      const HSAKMT_STATUS status = hsaKmtGetVersion(&version);
      *static_cast<kfd_ioctl_get_version_args*>(argument) = {version.KernelInterfaceMajorVersion,
                                                             version.KernelInterfaceMinorVersion};
      return answer_of(status, EIO);
    }
    case _IOC_NR(AMDKFD_IOC_SVM):
      return svm(static_cast<kfd_ioctl_svm_args*>(argument), _IOC_SIZE(request));
    case _IOC_NR(AMDKFD_IOC_SET_XNACK_MODE):
      return xnack(static_cast<kfd_ioctl_set_xnack_mode_args*>(argument));
    case _IOC_NR(AMDKFD_IOC_SMI_EVENTS):
      return smi(static_cast<kfd_ioctl_smi_events_args*>(argument));
    default:
      return answer(ENOTTY);
  }
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const unsigned mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, unsigned) : 0;
  va_end(arguments);
  if (std::strcmp(path, "/dev/kfd") != 0) return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
  const HSAKMT_STATUS status = hsaKmtOpenKFD();
  HsaSystemProperties properties;
  if ((status != HSAKMT_STATUS_SUCCESS && status != HSAKMT_STATUS_KERNEL_ALREADY_OPENED) ||
      hsaKmtAcquireSystemProperties(&properties) != HSAKMT_STATUS_SUCCESS) {
    return answer(ENOENT);
  }
  return memfd_create("kfd", MFD_CLOEXEC);  // it is there until the process ends
}

int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  void* const argument = va_arg(arguments, void*);
  va_end(arguments);
  if (_IOC_TYPE(request) == AMDKFD_IOCTL_BASE && _IOC_SIZE(request) != 0) return kfd(request, argument);
  return static_cast<int>(syscall(SYS_ioctl, fd, request, argument));
}

}  // extern "C"
