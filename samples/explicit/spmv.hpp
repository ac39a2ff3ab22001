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

// The largest eigenvalue, about; `x` has m.rows elements, of a vector to begin with, and of its eigenvector afterwards.
inline double power_method(const Stream& stream, const samples::Csr& m, double* x, std::uint64_t repeat) {
  const std::size_t n = m.rows;
  const DeviceArray<std::uint64_t> begin(stream, n + 1);
  const DeviceArray<std::uint32_t> column(stream, m.entries());
  const DeviceArray<double> value(stream, m.entries()), on_gpu_x(stream, n), on_gpu_y(stream, n);
  std::vector<double> y(n);
  begin.copy_in(m.begin.data());
  column.copy_in(m.column.data());
  value.copy_in(m.value.data());

  double eigenvalue = 0;
  for (std::uint64_t step = 0; step != repeat; ++step) {
    on_gpu_x.copy_in(x);
    stream.launch({n, 1, 1}, Multiply{begin.get(), column.get(), value.get(), on_gpu_x.get(), on_gpu_y.get()});
    on_gpu_y.copy_out(y.data());
    eigenvalue = samples::normalise(y.data(), x, n);
  }
  return eigenvalue;
}

}  // namespace by_hand
#endif
