// SPDX-License-Identifier: MIT
#include "api/stream.hpp"

#include <array>
#include <cstdio>
#include <cstring>
#include <new>

namespace hmmrt {

namespace {

// Says what a launch did wrong and what would be right.
void describe(const LaunchError& error) {
  const char* access = error.access == Access::read ? "read" : error.access == Access::write ? "write" : "atomic";
  switch (error.result) {
    case HMMRT_ERROR_ILLEGAL_ADDRESS:
      (void)fail(error.result,
                 "kernel '%s': %s of %#zx, which is not managed memory; allocate it with hmmrt_alloc or "
                 "hmmrt_register it",
                 error.kernel, access, error.addr);
      return;
    case HMMRT_ERROR_ACCESS_DENIED:
      (void)fail(error.result, "kernel '%s': %s of %#zx, which the CPU's mapping does not allow (mprotect)%s",
                 error.kernel, access, error.addr,
                 error.access == Access::atomic ? ", or which is shared memory or a file's, where atomics need option "
                                                  "system_atomics"
                                                : "");
      return;
    case HMMRT_ERROR_DEVICE_FULL:
      (void)fail(error.result,
                 "kernel '%s': %s of %#zx found no device memory, nothing that may be evicted, and no "
                 "remote mapping; free, unpin, or raise option device_memory",
                 error.kernel, access, error.addr);
      return;
    case HMMRT_ERROR_PINNED:
      (void)fail(error.result,
                 "kernel '%s': %s of %#zx, which is pinned in system memory, and this device cannot map "
                 "it there; unpin it first",
                 error.kernel, access, error.addr);
      return;
    default:
      (void)fail(error.result, "kernel '%s': %s of %#zx failed", error.kernel, access, error.addr);
  }
}

}  // namespace

void Stream::drain() {
  std::array<char, 512> before;
  std::snprintf(before.data(), before.size(), "%s", failure_detail());
  (void)fail(HMMRT_SUCCESS, "%s", "");
  const LaunchError error = device.synchronize(queue);
  if (error.result != HMMRT_SUCCESS) {
    if (failure_detail()[0] == '\0') describe(error);  // the device had no better words
    keep_error(error.result, failure_detail());
  }
  (void)fail(HMMRT_SUCCESS, "%s", before.data());
}

Status Stream::synchronize() {
  drain();
  const std::lock_guard guard(lock_);
  if (error_ == HMMRT_SUCCESS) return {};
  const Status s = fail(error_, "%s", text_.c_str());
  error_ = HMMRT_SUCCESS;
  text_.clear();
  return s;
}

void Stream::keep_error(hmmrt_result_t result, const std::string& text) {
  const std::lock_guard guard(lock_);
  if (error_ != HMMRT_SUCCESS) return;
  error_ = result;
  text_ = text;
}

void Stream::run_guarded(void (*fn)(void*), void* arg) noexcept {
  try {
    fn(arg);
  } catch (const std::bad_alloc&) {
    keep_error(HMMRT_ERROR_OUT_OF_MEMORY, "no memory for an operation of this stream");
  } catch (const std::exception& e) {
    keep_error(HMMRT_ERROR_INTERNAL, e.what());  // ours: a host function's own is caught before
  }
}

}  // namespace hmmrt
