// SPDX-License-Identifier: MIT
// The power method in managed memory, for the sample spmv and for benchmarks: y = A x on the GPU, the norm and
// x = y / |y| on the CPU. explicit/spmv.hpp is the same with copies written by hand.
#pragma once

#include <algorithm>
#include <cmath>
#include <hmmrt/hmmrt.hpp>
#include <hmmrt/kernel.hpp>

#include "common/matrix_market.hpp"

namespace samples {

// One row of a CSR matrix times x. The arguments are pointers, or gptr.
template <class Begin, class Column, class Value>
HMMRT_KERNEL double row_times(Begin begin, Column column, Value value, Value x, std::ptrdiff_t row) {
  const std::uint64_t first = begin[row], end = begin[row + 1];
  double sum = 0;
  for (auto k = static_cast<std::ptrdiff_t>(first); k != static_cast<std::ptrdiff_t>(end); ++k) {
    const std::uint32_t c = column[k];
    sum += value[k] * x[static_cast<std::ptrdiff_t>(c)];
  }
  return sum;
}

struct Multiply {
  hmmrt::gptr<const std::uint64_t> begin;
  hmmrt::gptr<const std::uint32_t> column;
  hmmrt::gptr<const double> value, x;
  hmmrt::gptr<double> y;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto row = static_cast<std::ptrdiff_t>(i.x);
    y[row] = row_times(begin, column, value, x, row);
  }
};

// |y|; and x = y / |y|.
inline double normalise(const double* y, double* x, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i != n; ++i) sum += y[i] * y[i];
  const double norm = std::sqrt(sum);
  for (std::size_t i = 0; i != n; ++i) x[i] = norm == 0 ? 0 : y[i] / norm;
  return norm;
}

// A square matrix, and the two vectors of the power method; x is all ones.
struct ManagedMatrix {
  hmmrt::managed_buffer<std::uint64_t> begin;
  hmmrt::managed_buffer<std::uint32_t> column;
  hmmrt::managed_buffer<double> value, x, y;

  ManagedMatrix(const hmmrt::context& context, const Csr& m)
      : begin(context, m.rows + std::size_t{1}),
        column(context, m.entries() + 1),  // + 1: a matrix may have no entry
        value(context, m.entries() + 1),
        x(context, m.rows),
        y(context, m.rows) {
    std::copy(m.begin.begin(), m.begin.end(), begin.data());
    std::copy(m.column.begin(), m.column.end(), column.data());
    std::copy(m.value.begin(), m.value.end(), value.data());
    std::fill_n(x.data(), x.size(), 1.0);
  }
};

// The largest eigenvalue, about; its vector is in m.x.
inline double power_method(const hmmrt::stream& stream, ManagedMatrix& m, std::uint64_t repeat) {
  double eigenvalue = 0;
  for (std::uint64_t step = 0; step != repeat; ++step) {
    stream.launch("multiply", m.x.size(), Multiply{m.begin.gpu(), m.column.gpu(), m.value.gpu(), m.x.gpu(), m.y.gpu()});
    stream.synchronize();
    eigenvalue = normalise(m.y.data(), m.x.data(), m.x.size());
  }
  return eigenvalue;
}

}  // namespace samples
