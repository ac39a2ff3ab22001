// SPDX-License-Identifier: MIT
// Jacobi's iteration in managed memory, for the sample jacobi and for benchmarks. explicit/jacobi.hpp is the same with
// copies written by hand.
#pragma once

#include <cmath>
#include <hmmrt/hmmrt.hpp>
#include <utility>

#include "common/plate.hpp"

namespace samples {

// The sum of the squared changes of a row between two iterations.
HMMRT_KERNEL inline double squared_change(const double* before, const double* after, std::size_t count) {
  double sum = 0;
  for (std::size_t j = 0; j != count; ++j) sum += (after[j] - before[j]) * (after[j] - before[j]);
  return sum;
}

// The squared change of row i.x + 1.
struct Residual {
  hmmrt::gptr<const double> before, after;
  hmmrt::gptr<double> residual;
  std::ptrdiff_t n;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const std::ptrdiff_t first = (static_cast<std::ptrdiff_t>(i.x) + 1) * n;
    double sum = 0;
    hmmrt::with_spans(
        [&sum](const double* a, const double* b, std::size_t, std::size_t k) { sum += squared_change(a, b, k); },
        hmmrt::read(before + first, static_cast<std::size_t>(n)),
        hmmrt::read(after + first, static_cast<std::size_t>(n)));
    residual[static_cast<std::ptrdiff_t>(i.x)] = sum;
  }
};

struct Heat {
  std::uint64_t n = 1024;          // rows and columns of the plate
  std::uint64_t iterations = 100;  // at most
  std::uint64_t check_every = 20;  // iterations between residuals
  double tolerance = 1e-6;         // stop at this residual: the root of the summed squares
  std::uint64_t width = 0;         // points of a work item; 0: rows
  Points points() const {
    const auto rows = static_cast<std::ptrdiff_t>(n);
    return {rows, width == 0 ? rows - 2 : static_cast<std::ptrdiff_t>(width)};
  }
};

struct Settled {
  std::uint64_t iterations = 0;
  double residual = 0;
  bool swapped = false;  // the plate is in `b`
};

inline double root_of_sum(const double* rows, std::size_t count) {
  double sum = 0;
  for (std::size_t y = 0; y != count; ++y) sum += rows[y];
  return std::sqrt(sum);
}

// Iterates from the plate in `a` (and its edges in `b`); `rows` has n - 2 elements.
inline Settled relax(const hmmrt::stream& stream, const Heat& heat, hmmrt::managed_buffer<double>& a,
                     hmmrt::managed_buffer<double>& b, hmmrt::managed_buffer<double>& rows) {
  Settled out;
  double *from = a.data(), *to = b.data();
  const Points points = heat.points();
  for (bool settled = false; out.iterations != heat.iterations && !settled;) {
    stream.launch("relax", points.grid(), Relax{from, to, points});
    ++out.iterations;
    if (out.iterations % heat.check_every == 0 || out.iterations == heat.iterations) {
      stream.launch("residual", heat.n - 2, Residual{from, to, rows.gpu(), points.n});
      stream.synchronize();
      out.residual = root_of_sum(rows.data(), rows.size());
      settled = out.residual <= heat.tolerance;
    }
    std::swap(from, to);
  }
  out.swapped = from == b.data();
  return out;
}

}  // namespace samples
