// SPDX-License-Identifier: MIT
#include "host/uffd/probe.hpp"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "host/maps.hpp"
#include "host/uffd/uffd.hpp"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

namespace hmmrt::uffd {

namespace {

int open_raw(Probe::Opening opening) {
  constexpr int k_flags = O_CLOEXEC | O_NONBLOCK;
  switch (opening) {
    case Probe::Opening::syscall:
      return static_cast<int>(syscall(SYS_userfaultfd, k_flags));
    case Probe::Opening::user_mode_only:
      return static_cast<int>(syscall(SYS_userfaultfd, k_flags | UFFD_USER_MODE_ONLY));
    case Probe::Opening::device_node: {
      const int node = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
      if (node < 0) return -1;
      const int fd = ioctl(node, k_dev_ioctl_new, k_flags);
      const int error = errno;
      close(node);
      errno = error;
      return fd;
    }
  }
  return -1;
}

}  // namespace

bool Probe::write_protect() const { return (features & UFFD_FEATURE_PAGEFAULT_FLAG_WP) != 0; }
bool Probe::move() const { return (features & k_feature_move) != 0 && write_protect(); }

Status probe(bool user_mode_only, Probe* out) {
  constexpr Probe::Opening k_order[] = {Probe::Opening::syscall, Probe::Opening::device_node,
                                        Probe::Opening::user_mode_only};
  int error = 0;
  for (const auto opening : k_order) {
    if (user_mode_only && opening != Probe::Opening::user_mode_only) continue;
    const int fd = open_raw(opening);
    if (fd < 0) {
      if (error == 0 || errno != ENOENT) error = errno;
      continue;
    }
    uffdio_api api{};
    api.api = UFFD_API;
    const int failed = ioctl(fd, UFFDIO_API, &api) == 0 ? 0 : errno;
    close(fd);
    if (failed != 0) return fail(HMMRT_ERROR_SYSTEM, "UFFDIO_API: %s", strerror(failed));
    out->opening = opening;
    out->features = api.features;
    return {};
  }
  if (error == ENOSYS) {
    return fail(HMMRT_ERROR_NOT_SUPPORTED, "this kernel (%s) has no userfaultfd: CONFIG_USERFAULTFD is not set",
                kernel_release().c_str());
  }
  return fail(HMMRT_ERROR_SYSTEM, "userfaultfd: %s%s", strerror(error), hint(error));
}

int open_uffd(const Probe& probe, std::uint64_t features) {
  const int fd = open_raw(probe.opening);
  if (fd < 0) {
    const int error = errno;
    (void)fail(HMMRT_ERROR_SYSTEM, "userfaultfd: %s%s", strerror(error), hint(error));
    return -1;
  }
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (ioctl(fd, UFFDIO_API, &api) != 0) {
    (void)fail(HMMRT_ERROR_SYSTEM, "UFFDIO_API with features 0x%llx: %s", static_cast<unsigned long long>(features),
               strerror(errno));
    close(fd);
    return -1;
  }
  return fd;
}

std::string kernel_release() {
  utsname name{};
  uname(&name);
  return name.release;
}

}  // namespace hmmrt::uffd
