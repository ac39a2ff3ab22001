// SPDX-License-Identifier: MIT
// ResidentList: the parts of one device that hold frames, least recently renewed first. Victims are sought at its old
// end; looking at one moves it to the new end, so that successive searches go round (a second chance).
// Thread: any; a spin lock held for a few links.
#pragma once

#include <cstddef>
#include <mutex>

#include "space/block.hpp"
#include "space/spin_lock.hpp"

namespace hmmrt {

class ResidentList {
 public:
  // Adds at the new end, or moves there.
  void renew(DevicePart& part) noexcept {
    const std::lock_guard guard(lock_);
    unlink(part);
    link(part);
  }
  void remove(DevicePart& part) noexcept {
    const std::lock_guard guard(lock_);
    unlink(part);
  }
  // Moves up to `n` of the oldest to the new end and writes their blocks to `out`, oldest first.
  std::size_t take_oldest(Block** out, std::size_t n) noexcept {
    const std::lock_guard guard(lock_);
    std::size_t taken = 0;
    const DevicePart* newest = newest_;
    while (taken < n && oldest_ != nullptr) {
      DevicePart& part = *oldest_;
      out[taken++] = part.block;
      const bool last = &part == newest;
      unlink(part);
      link(part);
      if (last) break;
    }
    return taken;
  }

 private:
  bool linked(const DevicePart& part) const noexcept { return part.older != nullptr || oldest_ == &part; }
  void unlink(DevicePart& part) noexcept {
    if (!linked(part)) return;
    (part.older != nullptr ? part.older->newer : oldest_) = part.newer;
    (part.newer != nullptr ? part.newer->older : newest_) = part.older;
    part.newer = part.older = nullptr;
  }
  void link(DevicePart& part) noexcept {
    part.older = newest_;
    (newest_ != nullptr ? newest_->newer : oldest_) = &part;
    newest_ = &part;
  }

  SpinLock lock_;
  DevicePart* oldest_ = nullptr;
  DevicePart* newest_ = nullptr;
};

}  // namespace hmmrt
