// SPDX-License-Identifier: MIT
// How fast is migration to and from a real GPU, against pinned asynchronous copies of the same size?
//
// One cycle, with the buffer on the CPU at both ends:
//   pinned out | pinned home | hmmrt_prefetch to the GPU | it writes every page | hmmrt_prefetch home
// and the same with a launch that brings its memory, and CPU reads that fetch it home. The GPU's write matters: a page that
// it only read would go home without a copy.
#include <cstring>

#include "gpu/gpu.hpp"

namespace bench::gpu {

namespace {

constexpr unsigned k_warm_up = 2;

class BareCopies {
 public:
  explicit BareCopies(std::size_t bytes)
      : bytes_(bytes), host_(bytes), device_(stream_, bytes), other_(stream_, bytes) {
    std::memset(host_.get(), 1, bytes);
  }
  // Seconds.
  double out() const { return timed(device_.get(), host_.get(), VENDOR(MemcpyHostToDevice)); }
  double home() const { return timed(host_.get(), device_.get(), VENDOR(MemcpyDeviceToHost)); }
  double within() const { return timed(other_.get(), device_.get(), VENDOR(MemcpyDeviceToDevice)); }

 private:
  double timed(void* to, const void* from, VENDOR(MemcpyKind) kind) const {
    const std::uint64_t start = now_ns();
    stream_.copy(to, from, bytes_, kind);
    stream_.synchronize();
    return seconds_since(start);
  }
  std::size_t bytes_;
  by_hand::Stream stream_;
  Pinned host_;
  by_hand::DeviceArray<std::byte> device_, other_;
};

// The CPU wrote a mark in every byte; of each page the GPU wrote the first word.
void verify(const std::byte* p, std::size_t bytes, std::uint64_t value) {
  for (std::size_t at = 0; at < bytes; at += k_page) {
    std::uint64_t first = 0;
    std::memcpy(&first, p + at, sizeof first);
    if (first != value + at / k_page) throw Error("a page came home with wrong contents");
    if (p[at + k_page - 1] != std::byte{0x5a}) throw Error("a page lost what the CPU had written");
  }
}

void read_pages(const std::byte* p, std::size_t bytes) {
  const volatile std::byte* at = p;
  for (; at < p + bytes; at += k_page) (void)*at;
}

void to_and_fro(const Plan& plan, Report& report, std::size_t bytes) {
  const Context context(plan.options({{"device_memory", std::to_string(2 * bytes)}}));
  const BareCopies bare(bytes);
  std::byte* p = context.allocate(bytes);
  std::memset(p, 0x5a, bytes);
  const double gigabytes = static_cast<double>(bytes) * 1e-9;
  Pairs out, home, launched, faulted;
  std::vector<double> within;
  for (unsigned i = 0; i < plan.repeats + k_warm_up; ++i) {
    const double bare_out = bare.out(), bare_home = bare.home(), bare_within = bare.within();
    const hmmrt_stats_t before = context.stats();
    std::uint64_t start = now_ns();
    context.prefetch(p, bytes, 0);
    const double ours_out = seconds_since(start);
    std::uint64_t value = std::uint64_t{2 * i + 1} << 32;
    context.dirty(p, bytes, value);
    start = now_ns();
    context.prefetch(p, bytes, HMMRT_CPU);
    const double ours_home = seconds_since(start);
    verify(p, bytes, value);

    const double again_out = bare.out(), again_home = bare.home();
    value += std::uint64_t{1} << 32;
    start = now_ns();
    context.dirty(p, bytes, value);
    const double by_launch = seconds_since(start);
    start = now_ns();
    read_pages(p, bytes);
    const double by_faults = seconds_since(start);
    verify(p, bytes, value);
    const hmmrt_stats_t after = context.stats();
    plan.expect(bytes_to_device(after) - bytes_to_device(before), 2 * bytes, "the ways out");
    plan.expect(bytes_to_host(after) - bytes_to_host(before), 2 * bytes, "the ways home");
    if (i < k_warm_up) continue;
    out.add(gigabytes / ours_out, gigabytes / bare_out);
    home.add(gigabytes / ours_home, gigabytes / bare_home);
    launched.add(gigabytes / by_launch, gigabytes / again_out);
    faulted.add(gigabytes / by_faults, gigabytes / again_home);
    within.push_back(gigabytes / bare_within);
  }
  context.free(p);
  const std::string pinned = "; pinned asynchronous copy of the same " + std::to_string(bytes / k_mib) + " MiB";
  const auto target = plan.target(ratio_at_least(0.85));
  report.add(
      compare("gpu_prefetch_to_device", "GB/s", out, Ratio::value_by_ceiling, target, "hmmrt_prefetch" + pinned));
  report.add(compare("gpu_launch_to_device", "GB/s", launched, Ratio::value_by_ceiling, target,
                     "launch whose memory is on the CPU, to its end" + pinned));
  report.add(compare("gpu_prefetch_to_host", "GB/s", home, Ratio::value_by_ceiling, target, "hmmrt_prefetch" + pinned));
  report.add(compare("gpu_faults_to_host", "GB/s", faulted, Ratio::value_by_ceiling, std::nullopt,
                     "the CPU reads a byte of each page in order" + pinned));
  report.add(alone("gpu_pinned_copy_to_device", "GB/s", out.ceiling, std::nullopt, "context"));
  report.add(alone("gpu_pinned_copy_to_host", "GB/s", home.ceiling, std::nullopt, "context"));
  report.add(
      alone("gpu_copy_within_device", "GB/s", within, std::nullopt, "context; bytes copied, not read and written"));
}

// Between the first two GPUs.
void to_another(const Plan& plan, Report& report, std::size_t bytes) {
  Plan both = plan;
  both.device = "gpu:0,gpu:1";
  const Context context(both.options({{"device_memory", std::to_string(2 * bytes)}}));
  std::byte* p = context.allocate(bytes);
  std::memset(p, 0x5a, bytes);
  context.prefetch(p, bytes, 0);
  const by_hand::Stream stream;  // of the plan's GPU
  void* ends[2] = {};
  int home = 0;
  CHECKED(VENDOR(GetDevice)(&home));
  for (int gpu : {0, 1}) {
    CHECKED(VENDOR(SetDevice)(gpu));
    CHECKED(VENDOR(Malloc)(&ends[gpu], bytes));
  }
  CHECKED(VENDOR(SetDevice)(home));
  int at = 0;
  const double gigabytes = static_cast<double>(bytes) * 1e-9;
  const hmmrt_stats_t before = context.stats();
  const Pairs pairs = alternate(
      plan.repeats,
      [&] {
        const std::uint64_t start = now_ns();
        context.prefetch(p, bytes, at = 1 - at);
        return gigabytes / seconds_since(start);
      },
      [&] {
        const std::uint64_t start = now_ns();
        CHECKED(VENDOR(MemcpyPeerAsync)(ends[at], at, ends[1 - at], 1 - at, bytes, stream.get()));
        stream.synchronize();
        return gigabytes / seconds_since(start);
      });
  plan.expect(bytes_migrated(context.stats()) - bytes_migrated(before), (plan.repeats + 1) * bytes, "GPU to GPU");
  for (std::size_t i = 0; i < bytes; i += k_page) {
    if (p[i] != std::byte{0x5a}) throw Error("a page went from GPU to GPU and was lost");
  }
  for (void* end : ends) (void)VENDOR(Free)(end);
  context.free(p);
  report.add(compare("gpu_prefetch_to_another", "GB/s", pairs, Ratio::value_by_ceiling, std::nullopt,
                     "hmmrt_prefetch between GPUs 0 and 1; MemcpyPeerAsync of the same bytes"));
}

}  // namespace

void copies(const Plan& plan, Report& report) {
  const std::size_t bytes = (plan.smoke ? 8 : 256) * k_mib;
  to_and_fro(plan, report, bytes);
  if (plan.gpus > 1) to_another(plan, report, bytes);
}

}  // namespace bench::gpu
