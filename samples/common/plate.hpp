// SPDX-License-Identifier: MIT
// Heat in a square plate, for jacobi and quickstart: n x n points, the top edge held at 1, the other edges at 0, every
// other point first at random in [0, 1), then relaxed to the mean of its four neighbours. As a kernel, and in plain CPU
// code to check it against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <hmmrt/kernel.hpp>
#include <vector>

#include "common/mix.hpp"

namespace samples {

// Relaxes row i.x + 1 of `from` into `to`: a grid of n - 2 work items. Bulk access, so at memory speed.
struct Relax {
  hmmrt::gptr<const double> from;
  hmmrt::gptr<double> to;
  std::ptrdiff_t n;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(i.x) + 1;
    const auto above = from + (row - 1) * n + 1, left = from + row * n, below = from + (row + 1) * n + 1;
    const std::size_t count = static_cast<std::size_t>(n) - 2;
    hmmrt::with_spans(
        [](const double* u, const double* l, const double* r, const double* d, double* __restrict out, std::size_t,
           std::size_t k) {
          for (std::size_t j = 0; j != k; ++j) out[j] = 0.25 * (u[j] + l[j] + r[j] + d[j]);
        },
        hmmrt::read(above, count), hmmrt::read(left, count), hmmrt::read(left + 2, count), hmmrt::read(below, count),
        hmmrt::write(to + row * n + 1, count));
  }
};

inline void fill_plate(double* plate, std::size_t n) {
  for (std::size_t y = 0; y != n; ++y)
    for (std::size_t x = 0; x != n; ++x) {
      const bool edge = y == 0 || x == 0 || y + 1 == n || x + 1 == n;
      plate[y * n + x] = y == 0 ? 1.0 : edge ? 0.0 : static_cast<double>(mix(y * n + x) >> 11) * 0x1p-53;
    }
}

// The plate after so many relaxations, computed in plain memory.
inline std::vector<double> plain_plate(std::size_t n, std::uint64_t iterations) {
  std::vector<double> a(n * n), b(n * n);
  fill_plate(a.data(), n);
  fill_plate(b.data(), n);
  for (std::uint64_t step = 0; step != iterations; ++step) {
    for (std::size_t y = 1; y + 1 < n; ++y)
      for (std::size_t x = 1; x + 1 < n; ++x)
        b[y * n + x] = 0.25 * (a[(y - 1) * n + x] + a[y * n + x - 1] + a[y * n + x + 1] + a[(y + 1) * n + x]);
    a.swap(b);
  }
  return a;
}

inline double largest_difference(const double* a, const std::vector<double>& b) {
  double worst = 0;
  for (std::size_t i = 0; i != b.size(); ++i) worst = std::max(worst, std::fabs(a[i] - b[i]));
  return worst;
}

}  // namespace samples
