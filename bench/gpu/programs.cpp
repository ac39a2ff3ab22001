// SPDX-License-Identifier: MIT
// What do whole programs cost in managed memory, beside the same with copies written by hand?
//
// From data that the CPU has written to a result that the CPU has read: all transfers count. Allocation counts for neither:
// managed buffers are new for each sample, so that no policy has a history of the samples before; device arrays stay.
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "explicit/jacobi.hpp"
#include "explicit/spmv.hpp"
#include "gpu/gpu.hpp"

namespace bench::gpu {

namespace {

constexpr unsigned k_warm_up = 1;

void agree(double ours, double theirs, const char* what) {
  if (!(std::fabs(ours - theirs) <= 1e-9 * std::fabs(theirs))) throw Error(std::string(what) + ": the answers differ");
}

std::string in_place(const hmmrt_stats_t& stats) {
  const unsigned long long pages = stats.pages_mapped_remote;
  return pages == 0 ? "" : "; " + std::to_string(pages) + " pages were used in system memory";
}

void jacobi(const Plan& plan, Report& report, const hmmrt::context& context) {
  samples::Heat heat;
  heat.n = plan.smoke ? 512 : 8192;
  heat.iterations = plan.smoke ? 10 : 200;
  heat.check_every = heat.iterations / 4;
  heat.tolerance = 0;
  heat.width = k_stand_in ? 0 : 1;
  const std::size_t points = heat.n * heat.n;
  const hmmrt::stream stream(context, 0);
  const by_hand::Stream bare;
  const by_hand::Plate plate(bare, heat.n);
  std::vector<double> a(points), b(points);
  const Pinned pinned_a(points * sizeof(double)), pinned_b(points * sizeof(double));

  double sums[3] = {};
  const auto managed = [&] {
    hmmrt::managed_buffer<double> ours_a(context, points), ours_b(context, points), rows(context, heat.n - 2);
    samples::fill_plate(ours_a.data(), heat.n);
    samples::fill_plate(ours_b.data(), heat.n);
    const std::uint64_t start = now_ns();
    const samples::Settled settled = samples::relax(stream, heat, ours_a, ours_b, rows);
    const double* result = settled.swapped ? ours_b.data() : ours_a.data();
    sums[0] = std::accumulate(result, result + points, 0.0);
    return seconds_since(start) * 1e3;
  };
  const auto with_copies = [&](double* host_a, double* host_b, double* sum) {
    samples::fill_plate(host_a, heat.n);
    samples::fill_plate(host_b, heat.n);
    const std::uint64_t start = now_ns();
    (void)by_hand::relax(bare, plate, heat, host_a, host_b);
    *sum = std::accumulate(host_a, host_a + points, 0.0);
    return seconds_since(start) * 1e3;
  };

  Pairs beside_pageable, beside_pinned;
  for (unsigned i = 0; i < plan.repeats + k_warm_up; ++i) {
    const double ours = managed();
    const double pageable = with_copies(a.data(), b.data(), &sums[1]);
    const double pinned =
        with_copies(static_cast<double*>(pinned_a.get()), static_cast<double*>(pinned_b.get()), &sums[2]);
    agree(sums[0], sums[1], "jacobi");
    agree(sums[0], sums[2], "jacobi");
    if (i < k_warm_up) continue;
    beside_pageable.add(ours, pageable);
    beside_pinned.add(ours, pinned);
  }
  const std::string what = std::to_string(heat.n) + " x " + std::to_string(heat.n) + ", " +
                           std::to_string(heat.iterations) + " iterations; copies written by hand";
  report.add(compare("gpu_jacobi", "ms", beside_pageable, Ratio::value_by_ceiling, plan.target(ratio_at_most(1.1)),
                     what + in_place(context.stats())));
  report.add(compare("gpu_jacobi_beside_pinned", "ms", beside_pinned, Ratio::value_by_ceiling, std::nullopt,
                     what + ", from and to pinned memory"));
}

void spmv(const Plan& plan, Report& report, const hmmrt::context& context) {
  const samples::Csr m = samples::make_rmat(plan.smoke ? 10 : 19, 16, 1);
  const std::uint64_t repeat = plan.smoke ? 4 : 20;
  const hmmrt::stream stream(context, 0);
  const by_hand::Stream bare;
  const by_hand::Matrix arrays(bare, m);
  Pairs pairs;
  for (unsigned i = 0; i < plan.repeats + k_warm_up; ++i) {
    samples::ManagedMatrix managed(context, m);
    std::uint64_t start = now_ns();
    const double ours = samples::power_method(stream, managed, repeat);
    const double ours_ms = seconds_since(start) * 1e3;
    std::vector<double> x(m.rows, 1.0);
    start = now_ns();
    const double theirs = by_hand::power_method(bare, arrays, m, x.data(), repeat);
    const double theirs_ms = seconds_since(start) * 1e3;
    agree(ours, theirs, "spmv");
    if (i >= k_warm_up) pairs.add(ours_ms, theirs_ms);
  }
  report.add(compare("gpu_spmv", "ms", pairs, Ratio::value_by_ceiling, plan.target(ratio_at_most(1.1)),
                     "power method, " + std::to_string(m.rows) + " rows, " + std::to_string(m.entries()) +
                         " entries, " + std::to_string(repeat) + " steps; copies written by hand" +
                         in_place(context.stats())));
}

}  // namespace

void programs(const Plan& plan, Report& report) {
  // The device's memory is a window onto addresses: three quarters of what is free, so that all buffers lie in it.
  const hmmrt::context context({{"device", plan.device.c_str()}, {"host_mirror", plan.host_mirror.c_str()}});
  jacobi(plan, report, context);
  context.reset_stats();
  spmv(plan, report, context);
}

}  // namespace bench::gpu
