// SPDX-License-Identifier: MIT
// What is thrown where the system gives the device no more mappings: a std::bad_alloc that says what was asked for, which
// limit stands in the way, and what would be right.
#pragma once

#include <sys/resource.h>

#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

namespace hmmrt {

class NoRoom final : public std::bad_alloc {
 public:
  // errno says why. `advice`: which option to lower.
  NoRoom(const char* what, std::uint64_t bytes, const char* advice) {
    const char* const error = std::strerror(errno);
    std::array<char, 128> limit{};
    rlimit space{};
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY) {
      std::snprintf(limit.data(), limit.size(), "RLIMIT_AS (ulimit -v; now %ju bytes) or ",
                    static_cast<std::uintmax_t>(space.rlim_cur));
    }
    std::snprintf(text_.data(), text_.size(),
                  "%" PRIu64
                  " bytes of address space for %s: %s; lower %s, or raise %sthe sysctl vm.max_map_count "
                  "(now %lu mappings a process)",
                  bytes, what, error, advice, limit.data(), max_map_count());
  }
  const char* what() const noexcept override { return text_.data(); }

 private:
  static unsigned long max_map_count() {
    unsigned long count = 65530;  // the kernel's default
    if (std::FILE* f = std::fopen("/proc/sys/vm/max_map_count", "re"); f != nullptr) {
      if (std::fscanf(f, "%lu", &count) != 1) count = 65530;
      std::fclose(f);
    }
    return count;
  }
  std::array<char, 384> text_;
};

}  // namespace hmmrt
