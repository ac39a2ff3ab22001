// SPDX-License-Identifier: MIT
// What does managed memory cost beside plain memory: bookkeeping, first touches, more of it than the device holds?
#include <sys/mman.h>

#include <cstring>
#include <fstream>

#include "common/managed.hpp"
#include "common/measure.hpp"

namespace bench {

namespace {

// Bytes of this process in memory, page tables included, as the kernel counts them.
double process_bytes() {
  std::ifstream in("/proc/self/status");
  double kib = 0;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("VmRSS:", 0) == 0 || line.rfind("VmPTE:", 0) == 0) kib += std::stod(line.substr(6));
  }
  return kib * 1024;
}

struct WriteSpan {
  hmmrt::gptr<std::uint64_t> x;
  std::uint64_t words;  // per item
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    hmmrt::with_spans(
        [](std::uint64_t* to, std::size_t, std::size_t n) {
          for (std::size_t k = 0; k < n; ++k) to[k] += 1;
        },
        hmmrt::read_write(x + static_cast<std::ptrdiff_t>(i.x * words), words));
  }
};

void sweep(const Context& context, std::byte* p, std::size_t bytes) {
  constexpr std::size_t k_item = 64 * 1024;
  context.launch("write_span", {bytes / k_item, 1, 1},
                 WriteSpan{reinterpret_cast<std::uint64_t*>(p), k_item / sizeof(std::uint64_t)});
  context.synchronize();
}

void metadata(Report& report) {
  const std::size_t bytes = 512 * k_mib;
  const Context context({{"device_memory", std::to_string(bytes + 64 * k_mib)}, {"compute_units", "2"}});
  // What a context takes once: stacks of waves, first blocks of the allocators.
  context.read_by_waves(context.allocate(16 * k_mib), 16 * k_mib, k_page);
  const double before = process_bytes();
  std::byte* p = context.allocate(bytes);
  sweep(context, p, bytes);
  const double after = process_bytes();
  const hmmrt_stats_t stats = context.stats();
  if (stats.bytes_resident_device < bytes) throw Error("not everything is resident on the device");
  const double says = static_cast<double>(stats.bytes_metadata) / static_cast<double>(stats.bytes_managed) * 100;
  const double kernel_says = (after - before - static_cast<double>(bytes)) / static_cast<double>(bytes) * 100;
  report.add(alone("metadata", "%", {says}, value_at_most(0.5), "bytes_metadata of bytes_managed, all on one device"));
  report.add(alone("metadata_rss", "%", {kernel_says}, std::nullopt,
                   "growth of the process beyond the frames themselves, page tables included, as /proc counts it"));
  context.free(p);
}

// Seconds of the CPU's first write to each page.
double first_touch(std::byte* p, std::size_t bytes) {
  const std::uint64_t start = now_ns();
  for (std::size_t at = 0; at < bytes; at += k_page) *const_cast<volatile std::byte*>(p + at) = std::byte{1};
  return seconds_since(start);
}

void first_touches(const Settings& settings, Report& report) {
  const std::size_t bytes = 128 * k_mib;
  const double gigabytes = static_cast<double>(bytes) * 1e-9;
  const Context context({{"device_memory", mib(64)}});
  const Pairs fresh = alternate(
      settings.repeats,
      [&] {
        std::byte* p = context.allocate(bytes);
        const double s = first_touch(p, bytes);
        context.free(p);
        return gigabytes / s;
      },
      [&] {
        const Memory plain(bytes);
        return gigabytes / first_touch(plain.data(), bytes);
      });
  report.add(compare("cpu_first_touch", "GB/s", fresh, Ratio::value_by_ceiling, std::nullopt,
                     "fresh managed memory that no device has seen; plain mmap with MADV_HUGEPAGE"));
}

// What more data than the device holds costs: milliseconds per GB swept, beside a working set of 0.75 of the device.
void oversubscription(const Settings& settings, Report& report) {
  const std::size_t device = (settings.quick ? 32 : 128) * k_mib;
  const Context context({{"device_memory", std::to_string(device)}});
  const unsigned sweeps = 4;
  const auto per_gb = [&](double ratio) {
    const std::size_t bytes = static_cast<std::size_t>(static_cast<double>(device) * ratio) / k_block * k_block;
    std::byte* p = context.allocate(bytes);
    std::memset(p, 1, bytes);
    sweep(context, p, bytes);
    const std::uint64_t start = now_ns();
    for (unsigned s = 0; s < sweeps; ++s) sweep(context, p, bytes);
    const double ms = seconds_since(start) * 1e3;
    for (std::size_t at = 0; at < bytes; at += k_page / 2) {
      std::uint64_t word = 0;
      std::memcpy(&word, p + at, sizeof word);
      if (word != 0x0101010101010101u + sweeps + 1) throw Error("oversubscription lost a write");
    }
    context.free(p);
    return ms / (static_cast<double>(bytes) * sweeps * 1e-9);
  };
  const unsigned repeats = std::min(settings.repeats, 5u);
  for (const double ratio : {1.25, 1.5, 2.0}) {
    const Pairs pairs = alternate(
        repeats, [&] { return per_gb(ratio); }, [&] { return per_gb(0.75); });
    char name[64];
    std::snprintf(name, sizeof name, "oversubscribe_%.0f%%", ratio * 100);
    report.add(compare(name, "ms/GB", pairs, Ratio::value_by_ceiling, std::nullopt,
                       "sequential read-write sweeps; beside a working set of 75 % of the device"));
  }
}

}  // namespace

void run_memory(const Settings& settings, Report& report) {
  metadata(report);
  first_touches(settings, report);
  oversubscription(settings, report);
}

}  // namespace bench
