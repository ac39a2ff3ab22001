// SPDX-License-Identifier: MIT
// What does a launch cost beyond the vendor's own, when everything it may touch is on the GPU?
#include "gpu/gpu.hpp"

namespace bench::gpu {

namespace {

constexpr std::uint64_t k_items = 256;

struct Increment {
  hmmrt::gptr<std::uint32_t> p;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const { p[static_cast<std::ptrdiff_t>(i.x)] += 1u; }
};
struct PlainIncrement {
  std::uint32_t* p;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const { p[i.x] += 1u; }
};

// Microseconds for each of `count` launches: each waited for, or all together.
template <class Launch, class Wait>
double each(unsigned count, bool waited_for, const Launch& launch, const Wait& wait) {
  const std::uint64_t start = now_ns();
  for (unsigned i = 0; i < count; ++i) {
    launch();
    if (waited_for) wait();
  }
  wait();
  return seconds_since(start) * 1e6 / count;
}

}  // namespace

void launches(const Plan& plan, Report& report) {
  const std::size_t bytes = (plan.smoke ? 8 : 256) * k_mib;  // all of it is looked after at each launch
  const unsigned count = plan.smoke ? 50 : 1000;
  const Context context(plan.options({{"device_memory", std::to_string(2 * bytes)}}));
  auto* p = reinterpret_cast<std::uint32_t*>(context.allocate(bytes));
  context.prefetch(p, bytes, 0);
  const by_hand::Stream stream;
  const by_hand::DeviceArray<std::uint32_t> plain(stream, k_items);
  const std::uint32_t zero[k_items] = {};
  plain.copy_in(zero);
  stream.synchronize();
  const hmmrt_stats_t before = context.stats();
  std::uint64_t done = 0;
  const auto measure = [&](const char* name, bool waited_for, const char* what) {
    const Pairs pairs = alternate(
        plan.repeats,
        [&] {
          done += count;
          return each(
              count, waited_for,
              [&] {
                context.launch("increment", {k_items, 1, 1}, Increment{p});
              },
              [&] { context.synchronize(); });
        },
        [&] {
          return each(
              count, waited_for,
              [&] {
                stream.launch({k_items, 1, 1}, PlainIncrement{plain.get()});
              },
              [&] { stream.synchronize(); });
        });
    report.add(added(name, "us", pairs, plan.target(value_at_most(10)),
                     std::string(what) + "; ceiling: the vendor's, which this is more than"));
  };
  measure("gpu_launch_and_wait_added", true, "launch and synchronize, one at a time");
  measure("gpu_launch_added", false, "of many before one synchronize");
  check(hmmrt_stream_attach(context.stream(), p, bytes), "hmmrt_stream_attach");
  measure("gpu_launch_attached_added", true, "launch of what is attached, and synchronize");
  plan.expect(bytes_migrated(context.stats()) - bytes_migrated(before), 0, "a resident launch");
  if (p[k_items - 1] != static_cast<std::uint32_t>(done)) throw Error("a launch was lost");
  context.free(p);
}

}  // namespace bench::gpu
