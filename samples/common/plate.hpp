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

// out[j] = the mean of four neighbours.
HMMRT_KERNEL inline void relax_points(const double* u, const double* l, const double* r, const double* d,
                                      double* __restrict out, std::size_t count) {
  for (std::size_t j = 0; j != count; ++j) out[j] = 0.25 * (u[j] + l[j] + r[j] + d[j]);
}

// Which points of the plate a work item has: `width` of them, or what is left of the row. Whole rows suit the software GPU,
// which translates a span at a time; on a real one neighbouring work items should read neighbouring points: 1.
struct Points {
  std::ptrdiff_t n, width;
  hmmrt_grid_t grid() const {
    return {static_cast<std::uint64_t>((n - 2 + width - 1) / width), static_cast<std::uint64_t>(n - 2), 1};
  }
  HMMRT_KERNEL std::ptrdiff_t first(const hmmrt::item& i) const {
    return (static_cast<std::ptrdiff_t>(i.y) + 1) * n + 1 + static_cast<std::ptrdiff_t>(i.x) * width;
  }
  HMMRT_KERNEL std::size_t count(const hmmrt::item& i) const {
    const std::ptrdiff_t left = n - 2 - static_cast<std::ptrdiff_t>(i.x) * width;
    return static_cast<std::size_t>(left < width ? left : width);
  }
};

// Relaxes points of `from` into `to`: a grid of points.grid() work items. Bulk access, so at memory speed.
struct Relax {
  hmmrt::gptr<const double> from;
  hmmrt::gptr<double> to;
  Points points;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const std::ptrdiff_t first = points.first(i), n = points.n;
    const std::size_t count = points.count(i);
    hmmrt::with_spans([](const double* u, const double* l, const double* r, const double* d, double* out, std::size_t,
                         std::size_t k) { relax_points(u, l, r, d, out, k); },
                      hmmrt::read(from + (first - n), count), hmmrt::read(from + (first - 1), count),
                      hmmrt::read(from + (first + 1), count), hmmrt::read(from + (first + n), count),
                      hmmrt::write(to + first, count));
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
