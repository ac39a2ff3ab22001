// SPDX-License-Identifier: MIT
// Errors inside the runtime are values: a result code, and one detail text per thread that says what was wrong and what
// would be right. fail() writes the text and returns the code; nothing here allocates or throws.
#pragma once

#include <hmmrt/hmmrt.h>

namespace hmmrt {

class [[nodiscard]] Status {
 public:
  constexpr Status() = default;
  constexpr Status(hmmrt_result_t code) : code_(code) {}  // NOLINT(google-explicit-constructor)
  constexpr bool ok() const { return code_ == HMMRT_SUCCESS; }
  constexpr hmmrt_result_t code() const { return code_; }

 private:
  hmmrt_result_t code_ = HMMRT_SUCCESS;
};

// Sets this thread's detail text (printf style, at most 511 bytes kept) and returns `code`.
Status fail(hmmrt_result_t code, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

// This thread's detail text for its most recent failure; "" when there was none.
const char* failure_detail() noexcept;

}  // namespace hmmrt
