// SPDX-License-Identifier: MIT
// common/spmv.hpp with memory and copies managed by hand, to compare with: the same arithmetic on the same grid.
#pragma once

#include "common/spmv.hpp"
#include "explicit/vendor.hpp"

#ifdef HAND_COPIES
#include <vector>

namespace by_hand {

struct Multiply {
  const std::uint64_t* begin;
  const std::uint32_t* column;
  const double *value, *x;
  double* y;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    y[i.x] = samples::row_times(begin, column, value, x, static_cast<std::ptrdiff_t>(i.x));
  }
};

struct Matrix {  // the GPU's arrays
  DeviceArray<std::uint64_t> begin;
  DeviceArray<std::uint32_t> column;
  DeviceArray<double> value, x, y;
  Matrix(const Stream& stream, const samples::Csr& m)
      : begin(stream, m.rows + std::size_t{1}),
        column(stream, m.entries()),
        value(stream, m.entries()),
        x(stream, m.rows),
        y(stream, m.rows) {}
};

// The largest eigenvalue, about; `x` has m.rows elements, of a vector to begin with, and of its eigenvector afterwards.
inline double power_method(const Stream& stream, const Matrix& on_gpu, const samples::Csr& m, double* x,
                           std::uint64_t repeat) {
  const std::size_t n = m.rows;
  std::vector<double> y(n);
  on_gpu.begin.copy_in(m.begin.data());
  on_gpu.column.copy_in(m.column.data());
  on_gpu.value.copy_in(m.value.data());

  double eigenvalue = 0;
  for (std::uint64_t step = 0; step != repeat; ++step) {
    on_gpu.x.copy_in(x);
    stream.launch({n, 1, 1}, Multiply{on_gpu.begin.get(), on_gpu.column.get(), on_gpu.value.get(), on_gpu.x.get(),
                                      on_gpu.y.get()});
    on_gpu.y.copy_out(y.data());
    eigenvalue = samples::normalise(y.data(), x, n);
  }
  return eigenvalue;
}

}  // namespace by_hand
#endif
