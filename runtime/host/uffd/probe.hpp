// SPDX-License-Identifier: MIT
// Finds out what this kernel's userfaultfd can do for this process, and opens descriptors accordingly.
//
// Order of opening: userfaultfd(2) with kernel faults; /dev/userfaultfd; userfaultfd(2) for user-mode faults only. The
// last is what an unprivileged process gets: its system calls fail with EFAULT on pages that are elsewhere.
// Thread: any; called once, when a mirror is made.
#pragma once

#include <cstdint>
#include <string>

#include "space/status.hpp"

namespace hmmrt::uffd {

struct Probe {
  enum class Opening : std::uint8_t { syscall, device_node, user_mode_only };
  Opening opening = Opening::syscall;
  std::uint64_t features = 0;  // all that UFFDIO_API offers
  bool kernel_faults() const { return opening != Opening::user_mode_only; }
  bool write_protect() const;
  bool move() const;
};

// Fails with NOT_SUPPORTED or SYSTEM when userfaultfd cannot be used at all.
Status probe(bool user_mode_only, Probe* out);
// Opens a descriptor and enables exactly `features`. Returns -1 and sets the detail text on failure.
int open_uffd(const Probe& probe, std::uint64_t features);
// "6.1.0-30-amd64"
std::string kernel_release();

}  // namespace hmmrt::uffd
