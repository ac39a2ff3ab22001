// SPDX-License-Identifier: MIT
// Heat in a square plate: Jacobi's iteration on an n x n grid whose top edge is held at 1 and the other edges at 0.
// The GPU relaxes with bulk access (with_spans): translated once per page, then memory speed. On the software GPU a work
// item has a row, on a real one a point.
// Every --check-every iterations it also leaves the residual of each row, which the CPU adds up to decide whether to
// stop: a few shared pages that both processors want, beside two large arrays that only the GPU does.
// The answer is compared with the same iteration in plain memory on the CPU. Compiled by hipcc or nvcc it also takes
// --explicit: the same with copies written by hand (explicit/jacobi.hpp).
#include "common/jacobi.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/sample.hpp"
#include "explicit/jacobi.hpp"

namespace {

void report(samples::Sample& sample, const samples::Heat& heat, const samples::Settled& settled, double ms) {
  sample.result("iterations", static_cast<double>(settled.iterations), "");
  sample.result("residual", settled.residual, "");
  sample.result("time", ms, "ms");
  sample.result("rate", static_cast<double>((heat.n - 2) * (heat.n - 2) * settled.iterations) / ms / 1e6, "Gpoints/s");
}

void check(samples::Sample& sample, const samples::Heat& heat, const samples::Settled& settled, const double* plate) {
  const double worst = samples::largest_difference(plate, samples::plain_plate(heat.n, settled.iterations));
  sample.check("plate", worst <= 1e-12, "largest difference " + std::to_string(worst));
}

void managed(samples::Sample& sample, samples::Heat heat) {
  hmmrt::context context = sample.open();
  hmmrt::stream stream(context, sample.device());
  if (heat.width == 0 && (context.device_info(sample.device()).capabilities & HMMRT_DEVICE_RETRYABLE_FAULTS) == 0) {
    heat.width = 1;
  }
  hmmrt::managed_buffer<double> a(context, heat.n * heat.n), b(context, heat.n * heat.n), rows(context, heat.n - 2);
  samples::fill_plate(a.data(), heat.n);
  samples::fill_plate(b.data(), heat.n);
  const samples::Stopwatch watch;
  const samples::Settled settled = samples::relax(stream, heat, a, b, rows);
  report(sample, heat, settled, watch.milliseconds());
  check(sample, heat, settled, settled.swapped ? b.data() : a.data());
  sample.statistics(context);
}

#ifdef HAND_COPIES
void with_copies(samples::Sample& sample, samples::Heat heat) {
  if (heat.width == 0) heat.width = 1;
  std::vector<double> a(heat.n * heat.n), b(heat.n * heat.n);
  samples::fill_plate(a.data(), heat.n);
  samples::fill_plate(b.data(), heat.n);
  const by_hand::Stream stream;
  const by_hand::Plate on_gpu(stream, heat.n);
  const samples::Stopwatch watch;
  const samples::Settled settled = by_hand::relax(stream, on_gpu, heat, a.data(), b.data());
  report(sample, heat, settled, watch.milliseconds());
  check(sample, heat, settled, a.data());
}
#endif

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("jacobi", "Heat in a plate: a 2-D stencil on the GPU, its residual summed by the CPU");
  samples::Heat heat;
#ifdef HAND_COPIES
  bool copies = false;
#endif
  sample.size_option("-n,--size", heat.n, "rows and columns of the plate")->check(CLI::Range(3, 1 << 20));
  sample.size_option("-i,--iterations", heat.iterations, "most iterations")->check(CLI::Range(1, 1 << 30));
  sample.size_option("--check-every", heat.check_every, "iterations between residuals")->check(CLI::Range(1, 1 << 30));
  sample.size_option("--width", heat.width, "points of a work item; 0: a row, on a real GPU one")
      ->check(CLI::Range(0, 1 << 20));
  sample.cli()
      .add_option("--tolerance", heat.tolerance, "stop at this residual (root of the summed squares)")
      ->check(samples::between(0, 1e300));
#ifdef HAND_COPIES
  sample.cli().add_flag("--explicit", copies, "on the first real GPU, with copies written by hand");
#endif

  return sample.run(argc, argv, [&] {
    sample.say("jacobi: %llu x %llu, 2 x %.0f MiB, at most %llu iterations", static_cast<unsigned long long>(heat.n),
               static_cast<unsigned long long>(heat.n), samples::mib(heat.n * heat.n * sizeof(double)),
               static_cast<unsigned long long>(heat.iterations));
#ifdef HAND_COPIES
    if (copies) return with_copies(sample, heat);
#endif
    managed(sample, heat);
  });
}
