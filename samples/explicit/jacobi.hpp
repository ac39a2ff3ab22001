// SPDX-License-Identifier: MIT
// common/jacobi.hpp with memory and copies managed by hand, to compare with: the same arithmetic on the same grid.
#pragma once

#include "common/jacobi.hpp"
#include "explicit/vendor.hpp"

#ifdef HAND_COPIES
#include <vector>

namespace by_hand {

struct Relax {
  const double* from;
  double* to;
  samples::Points points;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const std::ptrdiff_t at = points.first(i), n = points.n;
    samples::relax_points(from + at - n, from + at - 1, from + at + 1, from + at + n, to + at, points.count(i));
  }
};

struct Residual {
  const double *before, *after;
  double* residual;
  std::ptrdiff_t n;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const std::ptrdiff_t first = (static_cast<std::ptrdiff_t>(i.x) + 1) * n;
    residual[i.x] = samples::squared_change(before + first, after + first, static_cast<std::size_t>(n));
  }
};

struct Plate {  // the GPU's arrays
  DeviceArray<double> a, b, rows;
  Plate(const Stream& stream, std::size_t n) : a(stream, n * n), b(stream, n * n), rows(stream, n - 2) {}
};

// Iterates from the plate in `a` (and its edges in `b`), n * n elements each of the CPU's; the result is in `a`.
inline samples::Settled relax(const Stream& stream, const Plate& on_gpu, const samples::Heat& heat, double* a,
                              const double* b) {
  std::vector<double> rows(heat.n - 2);
  on_gpu.a.copy_in(a);
  on_gpu.b.copy_in(b);

  samples::Settled out;
  const DeviceArray<double>*from = &on_gpu.a, *to = &on_gpu.b;
  const samples::Points points = heat.points();
  for (bool settled = false; out.iterations != heat.iterations && !settled;) {
    stream.launch(points.grid(), Relax{from->get(), to->get(), points});
    ++out.iterations;
    if (out.iterations % heat.check_every == 0 || out.iterations == heat.iterations) {
      stream.launch({heat.n - 2, 1, 1}, Residual{from->get(), to->get(), on_gpu.rows.get(), points.n});
      on_gpu.rows.copy_out(rows.data());
      out.residual = samples::root_of_sum(rows.data(), rows.size());
      settled = out.residual <= heat.tolerance;
    }
    std::swap(from, to);
  }
  from->copy_out(a);
  return out;
}

}  // namespace by_hand
#endif
