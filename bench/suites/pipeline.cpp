// SPDX-License-Identifier: MIT
// Does the pipeline overlap the copy of one block with the page-table work of its neighbours?
//
// Under a link model whose copy of a block takes as long as its page-table change, migration with the pipeline's default
// tokens stands beside the same with one token. Perfect overlap of n blocks is 2n / (n + 1) times as fast.
#include <cstring>

#include "common/managed.hpp"
#include "common/measure.hpp"

namespace bench {

namespace {

constexpr double k_bytes_per_ns = 8;  // 8 GB/s: 2 MiB in 262 us, longer than the CPU needs for its own part

Options linked(std::size_t bytes) {
  const auto block_ns = static_cast<std::uint64_t>(static_cast<double>(k_block) / k_bytes_per_ns);
  return {{"device_memory", std::to_string(bytes + 64 * k_mib)},
          {"link", "on"},
          {"link_bandwidth", std::to_string(k_bytes_per_ns)},
          {"link_latency_ns", "0"},
          {"link_map_ns", std::to_string(block_ns)},
          {"link_fault_ns", "0"}};
}

// Milliseconds of each way of moving `bytes`.
struct Times {
  double out, home, fault;
};

Times round_trip(const Context& context, std::byte* p, std::size_t bytes) {
  Times t{};
  const hmmrt_stats_t before = context.stats();
  std::uint64_t start = now_ns();
  context.prefetch(p, bytes, 0);
  t.out = seconds_since(start) * 1e3;
  context.dirty(p, bytes);
  start = now_ns();
  context.prefetch(p, bytes, HMMRT_CPU);
  t.home = seconds_since(start) * 1e3;
  start = now_ns();
  context.read_by_waves(p, bytes, k_block);
  t.fault = seconds_since(start) * 1e3;
  const hmmrt_stats_t after = context.stats();
  expect_bytes(bytes_to_device(after) - bytes_to_device(before), 2 * bytes, "two ways out");
  expect_bytes(bytes_to_host(after) - bytes_to_host(before), bytes, "the way home");
  context.prefetch(p, bytes, HMMRT_CPU);
  return t;
}

void compare_tokens(const Settings& settings, Report& report, const std::string& suffix, Options options,
                    std::size_t bytes, std::optional<Target> target, const std::string& note) {
  options.emplace_back("policy", "first_touch_2m");
  const Context overlapped(options);
  options.emplace_back("pipeline_tokens", "1");
  const Context serial(options);
  std::byte* p = overlapped.allocate(bytes);
  std::byte* q = serial.allocate(bytes);
  std::memset(p, 1, bytes);
  std::memset(q, 1, bytes);
  Pairs out;
  Pairs home;
  Pairs fault;
  for (unsigned i = 0; i < settings.repeats + 1; ++i) {
    const Times ours = round_trip(overlapped, p, bytes);
    const Times theirs = round_trip(serial, q, bytes);
    if (i == 0) continue;
    out.add(ours.out, theirs.out);
    home.add(ours.home, theirs.home);
    fault.add(ours.fault, theirs.fault);
  }
  const std::string name = "pipeline_overlap" + suffix;
  report.add(compare(name, "ms", out, Ratio::ceiling_by_value, target, "prefetch to the device" + note));
  report.add(compare(name + "_to_host", "ms", home, Ratio::ceiling_by_value, std::nullopt, "prefetch home" + note));
  report.add(compare(name + "_fault", "ms", fault, Ratio::ceiling_by_value, std::nullopt,
                     "one device fault a block, all blocks at once" + note));
}

}  // namespace

void run_pipeline(const Settings& settings, Report& report) {
  const std::size_t bytes = (settings.quick ? 64 : 256) * k_mib;
  compare_tokens(settings, report, "", linked(bytes), bytes, ratio_at_least(1.6),
                 ", beside one token; link: a block's copy and its page-table change take 262 us each");
  compare_tokens(settings, report, "_no_link", {{"device_memory", std::to_string(bytes + 64 * k_mib)}}, bytes,
                 std::nullopt, ", beside one token; no link model");
}

}  // namespace bench
