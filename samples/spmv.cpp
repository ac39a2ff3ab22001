// SPDX-License-Identifier: MIT
// Sparse matrix times vector, again and again: the power method for the largest eigenvalue. The matrix (CSR) is read
// from a Matrix Market file or generated (RMAT), and is written once by the CPU and then only read by the GPU, one work
// item per row. The vectors go back and forth: y = A x on the GPU, the norm and x = y / |y| on the CPU.
// The answer is compared with the same iteration in plain memory on the CPU. Compiled by hipcc or nvcc it also takes
// --explicit: the same with copies written by hand (explicit/spmv.hpp).
#include "common/spmv.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/sample.hpp"
#include "explicit/spmv.hpp"

namespace {

void plain_multiply(const samples::Csr& m, const double* x, double* y) {
  for (std::uint32_t row = 0; row != m.rows; ++row) {
    double sum = 0;
    for (std::uint64_t k = m.begin[row]; k != m.begin[row + 1]; ++k) sum += m.value[k] * x[m.column[k]];
    y[row] = sum;
  }
}

void report(samples::Sample& sample, const samples::Csr& m, std::uint64_t repeat, double eigenvalue, double ms) {
  sample.result("largest eigenvalue (about)", eigenvalue, "");
  sample.result("time", ms, "ms");
  sample.result("rate", 2e-6 * static_cast<double>(m.entries() * repeat) / ms, "GFlop/s");
}

void check(samples::Sample& sample, const samples::Csr& m, std::uint64_t repeat, double eigenvalue, const double* x) {
  std::vector<double> plain_x(m.rows, 1.0), plain_y(m.rows);
  double wanted = 0;
  for (std::uint64_t step = 0; step != repeat; ++step) {
    plain_multiply(m, plain_x.data(), plain_y.data());
    wanted = samples::normalise(plain_y.data(), plain_x.data(), m.rows);
  }
  double worst = 0;
  for (std::size_t i = 0; i != m.rows; ++i) worst = std::max(worst, std::fabs(x[i] - plain_x[i]));
  sample.check("vector", worst <= 1e-12, "largest difference " + std::to_string(worst));
  sample.check("eigenvalue", std::fabs(eigenvalue - wanted) <= 1e-12 * std::fabs(wanted));
}

void managed(samples::Sample& sample, const samples::Csr& m, std::uint64_t repeat) {
  hmmrt::context context = sample.open();
  hmmrt::stream stream(context, sample.device());
  samples::ManagedMatrix matrix(context, m);
  const samples::Stopwatch watch;
  const double eigenvalue = samples::power_method(stream, matrix, repeat);
  report(sample, m, repeat, eigenvalue, watch.milliseconds());
  check(sample, m, repeat, eigenvalue, matrix.x.data());
  sample.statistics(context);
}

#ifdef HAND_COPIES
void with_copies(samples::Sample& sample, const samples::Csr& m, std::uint64_t repeat) {
  std::vector<double> x(m.rows, 1.0);
  const by_hand::Stream stream;
  const by_hand::Matrix on_gpu(stream, m);
  const samples::Stopwatch watch;
  const double eigenvalue = by_hand::power_method(stream, on_gpu, m, x.data(), repeat);
  report(sample, m, repeat, eigenvalue, watch.milliseconds());
  check(sample, m, repeat, eigenvalue, x.data());
}
#endif

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
#ifdef HAND_COPIES
  bool copies = false;
  sample.cli().add_flag("--explicit", copies, "on the first real GPU, with copies written by hand");
#endif

  return sample.run(argc, argv, [&] {
    const samples::Csr m =
        file.empty() ? samples::make_rmat(scale, edge_factor, seed) : samples::read_matrix_market(file);
    if (m.rows != m.columns) throw std::runtime_error(file + ": a square matrix is needed for the power method");
    sample.say("spmv: %s, %u rows, %llu entries, %llu multiplications", file.empty() ? "RMAT" : file.c_str(), m.rows,
               static_cast<unsigned long long>(m.entries()), static_cast<unsigned long long>(repeat));
#ifdef HAND_COPIES
    if (copies) return with_copies(sample, m, repeat);
#endif
    managed(sample, m, repeat);
  });
}
