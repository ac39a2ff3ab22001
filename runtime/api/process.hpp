// SPDX-License-Identifier: MIT
// What concerns the whole process: fork and exit while contexts are alive.
//
//   fork   every context brings its pages home and lets none leave until the parent goes on, so that the child has the
//          data of the moment of the fork in ordinary memory. In the child every call answers HMMRT_ERROR_FORKED.
//   exit   calls are refused from here on, but for those that only look something up. What contexts still alive have in
//          flight may end, for a while; then they bring their pages home and stay, so that destructors that run later
//          find their data, and nothing to wait for.
#pragma once

#include <shared_mutex>

namespace hmmrt {

// Installs the handlers: before the first context is made; and, for exit, after one is.
void watch_process();
void watch_exit(bool with_gpus);
// Held (shared) while a context is made or torn down: fork waits for it.
std::shared_mutex& lifecycle_lock();

}  // namespace hmmrt
