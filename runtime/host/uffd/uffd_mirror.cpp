// SPDX-License-Identifier: MIT
// Making a mirror: what this kernel offers, which path it gives, and what to tell people about it.
#include "host/uffd/uffd_mirror.hpp"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

namespace hmmrt {

UffdMirror::UffdMirror(int managed_fd, int staging_fd, int interrupt_fd, std::uintptr_t zeros, HostMirrorInfo info)
    : info_(std::move(info)),
      move_(staging_fd >= 0),
      managed_(managed_fd),
      staging_(staging_fd),
      interrupt_(interrupt_fd),
      zeros_(zeros) {
  if (maps_.sees_pages()) return;
  if (!info_.note.empty()) info_.note += ' ';
  info_.note +=
      "/proc/self/pagemap is forbidden, as it is to a process that has changed its user: which pages are in use is "
      "guessed, which costs time.";
}

UffdMirror::~UffdMirror() {
  close(interrupt_);
  munmap(reinterpret_cast<void*>(zeros_), k_block_size);  // NOLINT(performance-no-int-to-ptr)
}

std::unique_ptr<HostMirror> make_uffd_mirror(const UffdConfig& config, Status* status) {
  uffd::Probe probe;
  *status = uffd::probe(config.user_mode_only, &probe);
  if (!status->ok()) return nullptr;
  constexpr std::uint64_t k_needed = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE |
                                     UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_THREAD_ID;
  if ((probe.features & k_needed) != k_needed) {
    *status = fail(HMMRT_ERROR_NOT_SUPPORTED,
                   "kernel %s: userfaultfd has no write protection or no mapping events (features %#llx); they came "
                   "with Linux 5.7 on x86-64 and 6.10 on arm64",
                   uffd::kernel_release().c_str(), static_cast<unsigned long long>(probe.features));
    return nullptr;
  }

  HostMirrorInfo info;
  info.name = "uffd";
  info.kernel_faults = probe.kernel_faults();
  info.write_protect = true;
  const bool move = probe.move() && !config.force_fallback;
  if (move) {
    info.path = "move";
  } else if (config.force_fallback) {
    info.path = "fallback: asked for";
  } else {
    info.path = "fallback: kernel " + uffd::kernel_release() + " has no UFFDIO_MOVE (it came with Linux 6.8)";
  }
  if (!info.kernel_faults) {
    info.note =
        "userfaultfd sees faults in user mode only: a system call given memory that is on a device fails with EFAULT. "
        "Either set the sysctl vm.unprivileged_userfaultfd=1 or give this user access to /dev/userfaultfd; or prefetch "
        "to the CPU before the call.";
  }

  const int managed = uffd::open_uffd(
      probe, k_needed | (probe.features & UFFD_FEATURE_EXACT_ADDRESS) | (move ? uffd::k_feature_move : 0));
  const int staging = move ? uffd::open_uffd(probe, UFFD_FEATURE_PAGEFAULT_FLAG_WP | uffd::k_feature_move) : -1;
  const int interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  const int no_eventfd = errno;
  void* const zeros = mmap(nullptr, k_block_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  const int no_zeros = errno;
  const bool opened = managed >= 0 && (!move || staging >= 0);
  if (!opened || interrupt < 0 || zeros == MAP_FAILED) {
    // open_uffd has set the text, if it was it that failed.
    *status = !opened         ? Status(HMMRT_ERROR_SYSTEM)
              : interrupt < 0 ? fail(HMMRT_ERROR_SYSTEM, "eventfd: %s%s", strerror(no_eventfd), hint(no_eventfd))
                              : fail(HMMRT_ERROR_OUT_OF_MEMORY, "mmap of 2 MiB: %s", strerror(no_zeros));
    for (const int fd : {managed, staging, interrupt}) {
      if (fd >= 0) close(fd);
    }
    if (zeros != MAP_FAILED) munmap(zeros, k_block_size);
    return nullptr;
  }
  auto mirror = std::make_unique<UffdMirror>(managed, staging, interrupt, reinterpret_cast<std::uintptr_t>(zeros),
                                             std::move(info));
  *status = mirror->ready();
  if (!status->ok()) return nullptr;
  return mirror;
}

}  // namespace hmmrt
