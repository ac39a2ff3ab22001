// SPDX-License-Identifier: MIT
// libhmmrt from C++17: a kernel written here runs on device 0 over memory that the CPU wrote and then reads.
#include <hmmrt/hmmrt.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <hmmrt/kernel.hpp>

namespace {

void check(hmmrt_result_t result) {
  if (result == HMMRT_SUCCESS) return;
  std::fprintf(stderr, "%s: %s\n", hmmrt_result_name(result), hmmrt_last_error_detail());
  std::exit(1);
}

struct Axpy {
  hmmrt::gptr<const double> x;
  hmmrt::gptr<double> y;
  double a;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto k = static_cast<std::ptrdiff_t>(i.x);
    y[k] += a * x[k];
  }
};

}  // namespace

int main() {
  const std::size_t n = std::size_t{1} << 18;
  hmmrt_context_t context = nullptr;
  check(hmmrt_context_create(nullptr, &context));
  hmmrt_stream_t stream = nullptr;
  check(hmmrt_stream_create(context, 0, &stream));
  void* memory = nullptr;
  check(hmmrt_alloc(context, 2 * n * sizeof(double), &memory));

  auto* x = static_cast<double*>(memory);
  double* y = x + n;
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = static_cast<double>(i);
    y[i] = 1.0;
  }
  check(hmmrt::launch(stream, "axpy", {n, 1, 1}, Axpy{x, y, 2.0}));
  check(hmmrt_stream_synchronize(stream));
  for (std::size_t i = 0; i < n; ++i) {
    if (y[i] != 1.0 + 2.0 * static_cast<double>(i)) {
      std::fprintf(stderr, "y[%zu] is %f\n", i, y[i]);
      return 1;
    }
  }

  hmmrt_stats_t stats{};
  stats.size = sizeof stats;
  check(hmmrt_stats_context(context, &stats));
  std::printf("C++: axpy over %zu values right, %llu device faults, %llu CPU faults\n", n,
              static_cast<unsigned long long>(stats.device_faults), static_cast<unsigned long long>(stats.cpu_faults));
  if (stats.device_faults == 0 || stats.cpu_faults == 0) return 1;
  check(hmmrt_free(context, memory));
  check(hmmrt_stream_destroy(stream));
  check(hmmrt_context_destroy(context));
  return 0;
}
