// SPDX-License-Identifier: MIT
// What does the software GPU cost when nothing has to move?
//
// The same loop bodies over data resident on the device and over plain memory, by as many threads as the device has
// compute units.
#include <benchmark/benchmark.h>

#include <cstring>

#include "common/managed.hpp"
#include "common/measure.hpp"

namespace bench {

namespace {

// --- jacobi --------------------------------------------------------------------------------------------------------

// Both sides call this one function: no difference in what the compiler made of it.
[[gnu::noinline]] void relax(const double* __restrict up, const double* __restrict down, const double* __restrict left,
                             const double* __restrict right, double* __restrict out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = 0.25 * (up[i] + down[i] + left[i] + right[i]);
}

// Row i.x + 1 of an n x n grid.
struct JacobiRow {
  hmmrt::gptr<const double> in;
  hmmrt::gptr<double> out;
  std::uint64_t n;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto row = static_cast<std::ptrdiff_t>((i.x + 1) * n);
    const auto step = static_cast<std::ptrdiff_t>(n);
    const std::size_t inner = n - 2;
    hmmrt::with_spans([](const double* up, const double* down, const double* left, const double* right, double* to,
                         std::size_t, std::size_t count) { relax(up, down, left, right, to, count); },
                      hmmrt::read(in + (row - step + 1), inner), hmmrt::read(in + (row + step + 1), inner),
                      hmmrt::read(in + row, inner), hmmrt::read(in + (row + 2), inner),
                      hmmrt::write(out + (row + 1), inner));
  }
};

void boundary(double* grid, std::size_t n) {
  std::memset(grid, 0, n * n * sizeof(double));
  for (std::size_t i = 0; i < n; ++i) grid[i] = 1;
}

void jacobi(const Settings& settings, Report& report, const Context& context, Team& team, std::size_t n,
            const std::string& name, std::optional<Target> target) {
  const std::size_t bytes = n * n * sizeof(double);
  const unsigned sweeps = n >= 4096 ? 4 : 400;
  auto* a = reinterpret_cast<double*>(context.allocate(bytes));
  auto* b = reinterpret_cast<double*>(context.allocate(bytes));
  const Memory plain_a(bytes);
  const Memory plain_b(bytes);
  auto* c = reinterpret_cast<double*>(plain_a.data());
  auto* d = reinterpret_cast<double*>(plain_b.data());
  for (double* grid : {a, b, c, d}) boundary(grid, n);
  context.prefetch(a, bytes, 0);
  context.prefetch(b, bytes, 0);
  context.reset_stats();

  const auto managed = [&] {
    const std::uint64_t start = now_ns();
    for (unsigned s = 0; s < sweeps; ++s) {
      context.launch("jacobi_row", {n - 2, 1, 1}, JacobiRow{s % 2 == 0 ? a : b, s % 2 == 0 ? b : a, n});
    }
    context.synchronize();
    return seconds_since(start) * 1e3 / sweeps;
  };
  const auto plain = [&] {
    const std::uint64_t start = now_ns();
    for (unsigned s = 0; s < sweeps; ++s) {
      const double* from = s % 2 == 0 ? c : d;
      double* to = s % 2 == 0 ? d : c;
      team.run([&](unsigned t) {
        const std::size_t first = 1 + (n - 2) * t / team.threads();
        const std::size_t end = 1 + (n - 2) * (t + 1) / team.threads();
        for (std::size_t y = first; y < end; ++y) {
          const double* row = from + y * n;
          relax(row - n + 1, row + n + 1, row, row + 2, to + y * n + 1, n - 2);
        }
      });
    }
    return seconds_since(start) * 1e3 / sweeps;
  };
  const Pairs pairs = alternate(settings.repeats, managed, plain);
  const hmmrt_stats_t stats = context.stats();
  if (bytes_migrated(stats) != 0) throw Error("resident data moved");
  context.prefetch(a, bytes, HMMRT_CPU);
  if (std::memcmp(a, c, bytes) != 0) throw Error("jacobi on the device and on plain memory differ");
  report.add(compare(name, "ms", pairs, Ratio::value_by_ceiling, target,
                     "one sweep of " + std::to_string(n) + "^2 doubles; plain memory, " +
                         std::to_string(team.threads()) + " threads"));
  context.free(a);
  context.free(b);
}

// --- micro ---------------------------------------------------------------------------------------------------------

struct Nothing {
  HMMRT_KERNEL void operator()(const hmmrt::item&) const {}
};

// Sums x[0 .. n), one scalar access each, in one wave of one item.
struct ScalarSum {
  hmmrt::gptr<const std::uint64_t> x;
  hmmrt::gptr<std::uint64_t> out;
  std::uint64_t n;
  HMMRT_KERNEL void operator()(const hmmrt::item&) const {
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < n; ++i) sum += x[static_cast<std::ptrdiff_t>(i)];
    out[0] = sum;
  }
};

void micro(const Settings& settings, Report& report, const Context& context) {
  constexpr unsigned k_launches = 1000;
  std::vector<double> launch_us;
  std::vector<double> enqueue_us;
  for (unsigned r = 0; r < settings.repeats + 1; ++r) {
    std::vector<double> us;
    for (unsigned i = 0; i < k_launches; ++i) {
      const std::uint64_t start = now_ns();
      context.launch("nothing", {1, 1, 1}, Nothing{});
      context.synchronize();
      us.push_back(static_cast<double>(now_ns() - start) * 1e-3);
    }
    const std::uint64_t start = now_ns();
    for (unsigned i = 0; i < k_launches; ++i) context.launch("nothing", {1, 1, 1}, Nothing{});
    context.synchronize();
    if (r == 0) continue;
    launch_us.push_back(median(us));
    enqueue_us.push_back(static_cast<double>(now_ns() - start) * 1e-3 / k_launches);
  }
  report.add(
      alone("launch_round_trip", "us", launch_us, std::nullopt, "empty kernel of one item, launch and synchronize"));
  report.add(alone("launch_back_to_back", "us", enqueue_us, std::nullopt, "the same, 1000 in a row"));

  constexpr std::uint64_t k_words = 32 * 1024;  // 256 KiB: in cache, in 64 TLB entries
  constexpr unsigned k_rounds = 100;
  auto* x = reinterpret_cast<std::uint64_t*>(context.allocate((k_words + 512) * sizeof(std::uint64_t)));
  Memory plain(k_words * sizeof(std::uint64_t));
  plain.fill(1);
  std::memset(x, 1, (k_words + 512) * sizeof(std::uint64_t));
  context.prefetch(x, (k_words + 512) * sizeof(std::uint64_t), 0);
  const auto managed = [&] {
    const std::uint64_t start = now_ns();
    for (unsigned r = 0; r < k_rounds; ++r) {
      context.launch("scalar_sum", {1, 1, 1}, ScalarSum{x, x + k_words, k_words});
    }
    context.synchronize();
    return static_cast<double>(now_ns() - start) / (k_rounds * k_words);
  };
  const auto bare = [&] {
    const auto* y = reinterpret_cast<const volatile std::uint64_t*>(plain.data());
    const std::uint64_t start = now_ns();
    for (unsigned r = 0; r < k_rounds; ++r) {
      std::uint64_t sum = 0;
      for (std::uint64_t i = 0; i < k_words; ++i) sum += y[i];
      benchmark::DoNotOptimize(sum);
    }
    return static_cast<double>(now_ns() - start) / (k_rounds * k_words);
  };
  report.add(compare("scalar_access", "ns", alternate(settings.repeats, managed, bare), Ratio::value_by_ceiling,
                     std::nullopt, "gptr load in a TLB-resident array; plain volatile load"));
  context.free(x);
}

}  // namespace

void run_resident(const Settings& settings, Report& report) {
  const Context context({{"device_memory", mib(512)}});
  Team team(context.compute_units());
  jacobi(settings, report, context, team, settings.quick ? 1024 : 4096, "resident_jacobi", ratio_at_most(1.5));
  jacobi(settings, report, context, team, 512, "resident_jacobi_in_cache", std::nullopt);
  micro(settings, report, context);
}

}  // namespace bench
