// SPDX-License-Identifier: MIT
// Reading pages through their managed address while the application may unmap them at any moment: process_vm_readv on
// ourselves stops with EFAULT where a plain load would end the process. About the speed of memcpy on huge pages, 0.4x
// of it on small ones (it looks up every page).
#pragma once

#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "space/page.hpp"
#include "space/page_mask.hpp"

namespace hmmrt::uffd {

// Copies page i of the block at `base` to `to(i)` for each i in `pages`; returns the pages that could not be read.
template <class To>
PageMask read_pages(std::uintptr_t base, const PageMask& pages, To&& to) {
  PageMask failed;
  const pid_t self = getpid();
  pages.for_each_run([&](unsigned first, unsigned count) {
    unsigned page = first;
    const unsigned end = first + count;
    while (page < end) {
      std::array<iovec, 64> local;
      std::size_t pieces = 0;
      unsigned stop = page;
      while (stop < end) {
        std::byte* const at = to(stop);
        if (pieces != 0 && static_cast<std::byte*>(local[pieces - 1].iov_base) + local[pieces - 1].iov_len == at) {
          local[pieces - 1].iov_len += k_page_size;
        } else if (pieces < local.size()) {
          local[pieces++] = {at, k_page_size};
        } else {
          break;
        }
        ++stop;
      }
      const iovec remote{reinterpret_cast<void*>(base + page * k_page_size),  // NOLINT(performance-no-int-to-ptr)
                         (stop - page) * k_page_size};
      const ssize_t n = process_vm_readv(self, local.data(), pieces, &remote, 1, 0);
      const unsigned got = n > 0 ? static_cast<unsigned>(static_cast<std::size_t>(n) >> k_page_shift) : 0;
      page += got;
      if (page < stop) failed.set(page++);
    }
  });
  return failed;
}

}  // namespace hmmrt::uffd
