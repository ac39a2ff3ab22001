// SPDX-License-Identifier: MIT
// Tells ThreadSanitizer about an order that it cannot see, because what establishes it is a library that is not
// instrumented (Debian's oneTBB) or the kernel. What happened before tsan_release(p) happened before what follows a later
// tsan_acquire(p). Nothing in other builds: these never order anything themselves.
#pragma once

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace hmmrt {

inline void tsan_release([[maybe_unused]] void* p) noexcept {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(p);
#endif
}

inline void tsan_acquire([[maybe_unused]] void* p) noexcept {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(p);
#endif
}

}  // namespace hmmrt
