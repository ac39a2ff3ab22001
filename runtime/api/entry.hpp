// SPDX-License-Identifier: MIT
// The doorway of every C entry point: who may come in, and that no exception gets out. Also the small checks of
// arguments that all of them share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "device/soft/no_room.hpp"
#include "device/soft/soft_device.hpp"
#include "space/status.hpp"

namespace hmmrt {

// Set in the child of a fork: it has the data, but no threads to serve it.
extern constinit std::atomic<bool> g_forked;
// Set once the process exits: see process.hpp.
extern constinit std::atomic<bool> g_exiting;
// True while the calling thread runs an application's host function.
extern constinit thread_local bool t_in_host_function;

// Calls that only look something up, and so wait for nothing, are answered to the end.
enum class AtExit : std::uint8_t { refused, answered };

Status check_caller(const char* function, AtExit at_exit);

// Runs fn(), which returns a Status, as the C entry point `function`.
template <AtExit at_exit = AtExit::refused, class Fn>
hmmrt_result_t entry(const char* function, Fn&& fn) noexcept {
  try {
    if (const Status s = check_caller(function, at_exit); !s.ok()) return s.code();
    return fn().code();
  } catch (const NoRoom& e) {
    return fail(HMMRT_ERROR_OUT_OF_MEMORY, "%s: %s", function, e.what()).code();
  } catch (const std::system_error& e) {  // std::thread's
    return fail(HMMRT_ERROR_SYSTEM,
                "%s: cannot start another thread: %s; look at RLIMIT_NPROC (ulimit -u), RLIMIT_AS (ulimit -v) and the "
                "control group's pids.max, or lower option compute_units",
                function, e.code().message().c_str())
        .code();
  } catch (const std::bad_alloc&) {
    return fail(HMMRT_ERROR_OUT_OF_MEMORY, "%s: no memory for the library's own bookkeeping", function).code();
  } catch (const std::exception& e) {
    return fail(HMMRT_ERROR_INTERNAL, "%s: %s", function, e.what()).code();
  } catch (...) {
    return fail(HMMRT_ERROR_INTERNAL, "%s: unknown exception", function).code();
  }
}

inline Status null_argument(const char* function, const char* argument) {
  return fail(HMMRT_ERROR_INVALID_VALUE, "%s: %s is null", function, argument);
}

constexpr std::size_t k_largest_struct = 4096;

// Copies a versioned struct (first member `size`) in. Bytes beyond what the caller has are zero here; bytes beyond what
// this library knows must be zero there.
template <class T>
Status read_struct(const char* function, const T* from, std::size_t least, T* to) {
  const std::size_t size = from->size;
  if (size < least || size > k_largest_struct) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "%s: the struct's size member is %zu; set it to sizeof, here %zu", function,
                size, sizeof(T));
  }
  *to = T{};
  std::memcpy(to, from, size < sizeof(T) ? size : sizeof(T));
  const auto* bytes = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] != 0) {
      return fail(HMMRT_ERROR_INVALID_VALUE,
                  "%s: the struct has %zu bytes, of which this library knows %zu; the others "
                  "must be zero",
                  function, size, sizeof(T));
    }
  }
  return {};
}

// Copies a versioned struct out, as much as the caller has room for; the rest of a larger one becomes zero.
template <class T>
Status write_struct(const char* function, const T& from, T* to) {
  const std::size_t size = to->size;
  if (size <= sizeof(std::size_t) || size > k_largest_struct) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "%s: the struct's size member is %zu; set it to sizeof, here %zu", function,
                size, sizeof(T));
  }
  std::memcpy(to, &from, size < sizeof(T) ? size : sizeof(T));
  if (size > sizeof(T)) std::memset(reinterpret_cast<char*>(to) + sizeof(T), 0, size - sizeof(T));
  to->size = size;
  return {};
}

}  // namespace hmmrt
