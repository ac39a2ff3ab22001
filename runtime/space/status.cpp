// SPDX-License-Identifier: MIT
#include "space/status.hpp"

#include <cstdarg>
#include <cstdio>

namespace hmmrt {

namespace {
constinit thread_local char detail[512] = "";
}

Status fail(hmmrt_result_t code, const char* format, ...) noexcept {
  va_list args;
  va_start(args, format);
  std::vsnprintf(detail, sizeof detail, format, args);
  va_end(args);
  return code;
}

const char* failure_detail() noexcept { return detail; }

}  // namespace hmmrt
