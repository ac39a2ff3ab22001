// SPDX-License-Identifier: MIT
// libhmmrt from C++17: a kernel written here runs on device 0 over memory that the CPU wrote and then reads, and over a
// list whose nodes a standard container allocated.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <hmmrt/hmmrt.hpp>
#include <iostream>
#include <list>
#include <memory_resource>
#include <vector>

namespace {

struct Axpy {
  hmmrt::gptr<const double> x;
  hmmrt::gptr<double> y;
  double a;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto k = static_cast<std::ptrdiff_t>(i.x);
    y[k] += a * x[k];
  }
};

struct Sum {
  hmmrt::gptr<const std::uint32_t> values;
  hmmrt::gptr<std::uint32_t> total;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    hmmrt::atomic_fetch_add(total, values[static_cast<std::ptrdiff_t>(i.x)].load());
  }
};

int run() {
  const std::size_t n = std::size_t{1} << 18;
  const hmmrt::context context;
  const hmmrt::stream stream(context);

  hmmrt::managed_buffer<double> x(context, n);
  hmmrt::managed_buffer<double> y(context, n);
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = static_cast<double>(i);
    y[i] = 1.0;
  }
  stream.launch("axpy", n, Axpy{x.gpu(), y.gpu(), 2.0});
  stream.synchronize();
  for (std::size_t i = 0; i < n; ++i) {
    if (y[i] != 1.0 + 2.0 * static_cast<double>(i)) {
      std::fprintf(stderr, "y[%zu] is %f\n", i, y[i]);
      return 1;
    }
  }

  std::vector<std::uint32_t, hmmrt::managed_allocator<std::uint32_t>> values(
      1000, 3u, hmmrt::managed_allocator<std::uint32_t>(context));
  hmmrt::managed_buffer<std::uint32_t> total(context, 1);
  stream.launch("sum", values.size(), Sum{hmmrt::gptr<std::uint32_t>(values.data()), total.gpu()});
  stream.synchronize();
  if (total[0] != 3000) {
    std::fprintf(stderr, "the sum is %u\n", total[0]);
    return 1;
  }

  hmmrt::memory_resource resource(context);
  std::pmr::unsynchronized_pool_resource pool(&resource);
  std::pmr::list<int> list(&pool);
  for (int i = 0; i < 1000; ++i) list.push_back(i);

  try {
    const int local = 0;
    context.prefetch(&local, sizeof local, 0);
    std::fprintf(stderr, "a local variable was prefetched\n");
    return 1;
  } catch (const hmmrt::error& e) {
    if (e.code() != HMMRT_ERROR_NOT_MANAGED) throw;
  }

  const hmmrt_stats_t stats = context.stats();
  hmmrt::print_stats(std::cout, context);
  std::printf("C++: axpy over %zu values right, %llu device faults, %llu CPU faults\n", n,
              static_cast<unsigned long long>(stats.device_faults), static_cast<unsigned long long>(stats.cpu_faults));
  return stats.device_faults != 0 && stats.cpu_faults != 0 ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
