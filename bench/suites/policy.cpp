// SPDX-License-Identifier: MIT
// Does the adaptive policy stop ping-pong, beside first_touch_4k, which never does?
//
// The CPU and the device take turns incrementing every page's words; each sees what the other did. One sample is a fresh
// buffer, so that the policy has to find out each time.
#include <atomic>
#include <cstring>
#include <thread>

#include "common/managed.hpp"
#include "common/measure.hpp"

namespace bench {

namespace {

constexpr std::size_t k_words = k_page / sizeof(std::uint64_t);

struct Increment {
  hmmrt::gptr<std::uint64_t> x;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const { ++x[static_cast<std::ptrdiff_t>(i.x * k_words)]; }
};

// Word 1 of page 0, many times, while the CPU increments word 0: false sharing.
struct IncrementAlone {
  hmmrt::gptr<std::uint64_t> x;
  std::uint64_t times;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto word = static_cast<std::ptrdiff_t>(i.x * k_words + 1);
    for (std::uint64_t t = 0; t < times; ++t) ++x[word];
  }
};

struct Sample {
  double mib, ms;
};

Sample take_turns(const Context& context, std::size_t pages, unsigned rounds) {
  const std::size_t bytes = pages * k_page;
  auto* x = reinterpret_cast<std::uint64_t*>(context.allocate(bytes));
  std::memset(x, 0, bytes);
  context.reset_stats();
  const std::uint64_t start = now_ns();
  for (unsigned r = 0; r < rounds; ++r) {
    context.launch("increment", {pages, 1, 1}, Increment{x});
    context.synchronize();
    for (std::size_t page = 0; page < pages; ++page) ++x[page * k_words];
  }
  const double ms = seconds_since(start) * 1e3;
  const double moved = static_cast<double>(bytes_migrated(context.stats())) / k_mib;
  for (std::size_t page = 0; page < pages; ++page) {
    if (x[page * k_words] != 2 * rounds) throw Error("ping_pong lost an increment");
  }
  context.free(x);
  return {moved, ms};
}

Sample share_falsely(const Context& context, std::size_t pages, unsigned times) {
  const std::size_t bytes = pages * k_page;
  auto* x = reinterpret_cast<std::uint64_t*>(context.allocate(bytes));
  std::memset(x, 0, bytes);
  context.reset_stats();
  const std::uint64_t start = now_ns();
  context.launch("increment_alone", {pages, 1, 1}, IncrementAlone{x, times});
  for (unsigned t = 0; t < times; ++t) {
    for (std::size_t page = 0; page < pages; ++page) {
      auto* word = const_cast<volatile std::uint64_t*>(x + page * k_words);
      *word = *word + 1;
    }
  }
  context.synchronize();
  const double ms = seconds_since(start) * 1e3;
  const double moved = static_cast<double>(bytes_migrated(context.stats())) / k_mib;
  for (std::size_t page = 0; page < pages; ++page) {
    if (x[page * k_words] != times || x[page * k_words + 1] != times) throw Error("false sharing lost an increment");
  }
  context.free(x);
  return {moved, ms};
}

template <class Run>
void against_first_touch(const Settings& settings, Report& report, const std::string& name, bool target,
                         const std::string& note, Run&& run) {
  const Context adaptive({{"policy", "adaptive"}, {"device_memory", mib(64)}});
  const Context naive({{"policy", "first_touch_4k"}, {"device_memory", mib(64)}});
  Pairs bytes;
  Pairs time;
  const unsigned repeats = std::min(settings.repeats, 5u);
  for (unsigned i = 0; i < repeats + 1; ++i) {
    const Sample ours = run(adaptive);
    const Sample theirs = run(naive);
    if (i == 0) continue;
    bytes.add(ours.mib, theirs.mib);
    time.add(ours.ms, theirs.ms);
  }
  report.add(compare(name + "_bytes", "MiB", bytes, Ratio::ceiling_by_value,
                     target ? std::optional(ratio_at_least(10)) : std::nullopt, "migrated; first_touch_4k; " + note));
  report.add(compare(name + "_time", "ms", time, Ratio::value_by_ceiling,
                     target ? std::optional(ratio_below(1)) : std::nullopt, "adaptive beside first_touch_4k; " + note));
}

}  // namespace

void run_policy(const Settings& settings, Report& report) {
  const unsigned rounds = settings.quick ? 50 : 200;
  against_first_touch(settings, report, "ping_pong", true, "turns on each of 256 pages",
                      [&](const Context& c) { return take_turns(c, 256, rounds); });
  against_first_touch(settings, report, "false_sharing", false, "CPU and device at once, two words of each of 4 pages",
                      [&](const Context& c) { return share_falsely(c, 4, settings.quick ? 200'000 : 1'000'000); });
}

}  // namespace bench
