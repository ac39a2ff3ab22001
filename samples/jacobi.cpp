// SPDX-License-Identifier: MIT
// Heat in a square plate: Jacobi's iteration on an n x n grid whose top edge is held at 1 and the other edges at 0.
// The GPU relaxes, one work item per row, with bulk access (with_spans): translated once per page, then memory speed.
// Every --check-every iterations it also leaves the residual of each row, which the CPU adds up to decide whether to
// stop: a few shared pages that both processors want, beside two large arrays that only the GPU does.
// The answer is compared with the same iteration in plain memory on the CPU.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/plate.hpp"
#include "common/sample.hpp"

namespace {

// The squared change of row i.x + 1 between two iterations.
struct Residual {
  hmmrt::gptr<const double> before, after;
  hmmrt::gptr<double> residual;
  std::ptrdiff_t n;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const std::ptrdiff_t first = (static_cast<std::ptrdiff_t>(i.x) + 1) * n;
    double sum = 0;
    hmmrt::with_spans(
        [&sum](const double* a, const double* b, std::size_t, std::size_t k) {
          for (std::size_t j = 0; j != k; ++j) sum += (b[j] - a[j]) * (b[j] - a[j]);
        },
        hmmrt::read(before + first, static_cast<std::size_t>(n)),
        hmmrt::read(after + first, static_cast<std::size_t>(n)));
    residual[static_cast<std::ptrdiff_t>(i.x)] = sum;
  }
};

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("jacobi", "Heat in a plate: a 2-D stencil on the GPU, its residual summed by the CPU");
  std::uint64_t n = 1024, iterations = 100, check_every = 20;
  double tolerance = 1e-6;
  sample.size_option("-n,--size", n, "rows and columns of the plate")->check(CLI::Range(3, 1 << 20));
  sample.size_option("-i,--iterations", iterations, "most iterations")->check(CLI::Range(1, 1 << 30));
  sample.size_option("--check-every", check_every, "iterations between residuals")->check(CLI::Range(1, 1 << 30));
  sample.cli()
      .add_option("--tolerance", tolerance, "stop at this residual (root of the summed squares)")
      ->check(samples::between(0, 1e300));

  return sample.run(argc, argv, [&] {
    hmmrt::context context = sample.open();
    hmmrt::stream stream(context, sample.device());
    hmmrt::managed_buffer<double> a(context, n * n), b(context, n * n), rows(context, n - 2);
    samples::fill_plate(a.data(), n);
    samples::fill_plate(b.data(), n);
    sample.say("jacobi: %llu x %llu, 2 x %.0f MiB, at most %llu iterations", static_cast<unsigned long long>(n),
               static_cast<unsigned long long>(n), samples::mib(n * n * sizeof(double)),
               static_cast<unsigned long long>(iterations));

    const samples::Stopwatch watch;
    double *from = a.data(), *to = b.data(), residual = 0;
    std::uint64_t done = 0;
    for (bool settled = false; done != iterations && !settled;) {
      const auto width = static_cast<std::ptrdiff_t>(n);
      stream.launch("relax", n - 2, samples::Relax{from, to, width});
      ++done;
      if (done % check_every == 0 || done == iterations) {
        stream.launch("residual", n - 2, Residual{from, to, rows.gpu(), width});
        stream.synchronize();
        residual = 0;
        for (std::size_t y = 0; y != n - 2; ++y) residual += rows[y];
        residual = std::sqrt(residual);
        settled = residual <= tolerance;
      }
      std::swap(from, to);
    }
    const double ms = watch.milliseconds();
    sample.result("iterations", static_cast<double>(done), "");
    sample.result("residual", residual, "");
    sample.result("time", ms, "ms");
    sample.result("rate", static_cast<double>((n - 2) * (n - 2) * done) / ms / 1e6, "Gpoints/s");

    const double worst = samples::largest_difference(from, samples::plain_plate(n, done));
    sample.check("plate", worst <= 1e-12, "largest difference " + std::to_string(worst));
    sample.statistics(context);
  });
}
