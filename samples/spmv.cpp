// SPDX-License-Identifier: MIT
// Sparse matrix times vector, again and again: the power method for the largest eigenvalue. The matrix (CSR) is read
// from a Matrix Market file or generated (RMAT), and is written once by the CPU and then only read by the GPU, one work
// item per row. The vectors go back and forth: y = A x on the GPU, the norm and x = y / |y| on the CPU.
// The answer is compared with the same iteration in plain memory on the CPU.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/matrix_market.hpp"
#include "common/sample.hpp"

namespace {

struct Multiply {
  hmmrt::gptr<const std::uint64_t> begin;
  hmmrt::gptr<const std::uint32_t> column;
  hmmrt::gptr<const double> value, x;
  hmmrt::gptr<double> y;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto row = static_cast<std::ptrdiff_t>(i.x);
    const auto end = static_cast<std::ptrdiff_t>(begin[row + 1].load());
    double sum = 0;
    for (auto k = static_cast<std::ptrdiff_t>(begin[row].load()); k != end; ++k)
      sum += value[k] * x[static_cast<std::ptrdiff_t>(column[k].load())];
    y[row] = sum;
  }
};

void plain_multiply(const samples::Csr& m, const double* x, double* y) {
  for (std::uint32_t row = 0; row != m.rows; ++row) {
    double sum = 0;
    for (std::uint64_t k = m.begin[row]; k != m.begin[row + 1]; ++k) sum += m.value[k] * x[m.column[k]];
    y[row] = sum;
  }
}

// |y|; and x = y / |y|.
double normalise(const double* y, double* x, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i != n; ++i) sum += y[i] * y[i];
  const double norm = std::sqrt(sum);
  for (std::size_t i = 0; i != n; ++i) x[i] = norm == 0 ? 0 : y[i] / norm;
  return norm;
}

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("spmv", "Sparse matrix times vector on the GPU: the power method for the largest eigenvalue");
  std::string file;
  std::uint32_t scale = 13, edge_factor = 16;
  std::uint64_t repeat = 20, seed = 1;
  sample.cli().add_option("FILE.mtx", file, "square matrix in Matrix Market format; default: a generated one");
  sample.cli().add_option("--rmat-scale", scale, "log2 of the rows of the generated matrix")->check(CLI::Range(1, 26));
  sample.cli().add_option("--edge-factor", edge_factor, "its entries per row, halved")->check(CLI::Range(1, 256));
  sample.cli().add_option("--seed", seed, "of the generated matrix");
  sample.size_option("-r,--repeat", repeat, "multiplications")->check(CLI::Range(1, 1 << 30));

  return sample.run(argc, argv, [&] {
    const samples::Csr m =
        file.empty() ? samples::make_rmat(scale, edge_factor, seed) : samples::read_matrix_market(file);
    if (m.rows != m.columns) throw std::runtime_error(file + ": a square matrix is needed for the power method");
    const std::size_t n = m.rows;
    sample.say("spmv: %s, %zu rows, %llu entries, %llu multiplications", file.empty() ? "RMAT" : file.c_str(), n,
               static_cast<unsigned long long>(m.entries()), static_cast<unsigned long long>(repeat));

    hmmrt::context context = sample.open();
    hmmrt::stream stream(context, sample.device());
    hmmrt::managed_buffer<std::uint64_t> begin(context, n + 1);
    hmmrt::managed_buffer<std::uint32_t> column(context, m.entries() + 1);  // + 1: a matrix may have no entry
    hmmrt::managed_buffer<double> value(context, m.entries() + 1), x(context, n), y(context, n);
    std::copy(m.begin.begin(), m.begin.end(), begin.data());
    std::copy(m.column.begin(), m.column.end(), column.data());
    std::copy(m.value.begin(), m.value.end(), value.data());
    std::fill_n(x.data(), n, 1.0);

    const samples::Stopwatch watch;
    double eigenvalue = 0;
    for (std::uint64_t step = 0; step != repeat; ++step) {
      stream.launch("multiply", n, Multiply{begin.gpu(), column.gpu(), value.gpu(), x.gpu(), y.gpu()});
      stream.synchronize();
      eigenvalue = normalise(y.data(), x.data(), n);
    }
    const double ms = watch.milliseconds();
    sample.result("largest eigenvalue (about)", eigenvalue, "");
    sample.result("time", ms, "ms");
    sample.result("rate", 2e-6 * static_cast<double>(m.entries() * repeat) / ms, "GFlop/s");

    std::vector<double> plain_x(n, 1.0), plain_y(n);
    double wanted = 0;
    for (std::uint64_t step = 0; step != repeat; ++step) {
      plain_multiply(m, plain_x.data(), plain_y.data());
      wanted = normalise(plain_y.data(), plain_x.data(), n);
    }
    double worst = 0;
    for (std::size_t i = 0; i != n; ++i) worst = std::max(worst, std::fabs(x[i] - plain_x[i]));
    sample.check("vector", worst <= 1e-12, "largest difference " + std::to_string(worst));
    sample.check("eigenvalue", std::fabs(eigenvalue - wanted) <= 1e-12 * std::fabs(wanted));
    sample.statistics(context);
  });
}
