// SPDX-License-Identifier: MIT
// What does a fault cost?
//
// CPU faults: one page home at a time, against a bare userfaultfd with a poll thread, in turns of 64 faults in one
// process. Device faults: what the service does between fetching a batch and replaying it, less the copy.
#include <dirent.h>
#include <sched.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>

#include "common/managed.hpp"
#include "common/measure.hpp"

namespace bench {

namespace {

// --- the CPU's faults ----------------------------------------------------------------------------------------------

constexpr std::size_t k_turn = 64;  // faults before it is the other's turn

// Reads one word of each of `count` pages from `first` on; adds each read's microseconds.
void touch(const std::byte* p, std::size_t first, std::size_t count, std::vector<double>& us) {
  for (std::size_t page = first; page < first + count; ++page) {
    const auto* word = reinterpret_cast<const volatile std::uint64_t*>(p + page * k_page);
    const std::uint64_t start = now_ns();
    (void)*word;
    us.push_back(static_cast<double>(now_ns() - start) * 1e-3);
  }
}

// Calls fn(thread id) for each thread of this process.
template <class Fn>
void for_each_thread(Fn&& fn) {
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == nullptr) throw Error("no /proc/self/task");
  while (const dirent* d = readdir(tasks)) {
    if (d->d_name[0] != '.') fn(std::atoi(d->d_name));
  }
  closedir(tasks);
}

// While it lives, all of this process runs on one core. A fault is a round trip between two threads; across cores it
// costs what waking the other core costs, 3 us or 30, and where the scheduler puts which thread would decide who wins.
class OneCore {
 public:
  OneCore() {
    sched_getaffinity(0, sizeof before_, &before_);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++core) {
      if (CPU_ISSET(core, &before_)) CPU_SET(core, &one);
    }
    keep_to(one);
  }
  ~OneCore() { keep_to(before_); }
  OneCore(const OneCore&) = delete;
  OneCore& operator=(const OneCore&) = delete;

 private:
  static void keep_to(const cpu_set_t& set) {
    for_each_thread([&](int thread) { sched_setaffinity(thread, sizeof set, &set); });
  }
  cpu_set_t before_{};
};

void cpu_faults(const Settings& settings, Report& report) {
  const std::size_t faults = settings.quick ? 1024 : 4096;
  const std::size_t bytes = faults * k_page;
  const Context context({{"policy", "first_touch_4k"}, {"device_memory", mib(128)}});
  std::byte* p = context.allocate(bytes);
  std::memset(p, 1, bytes);
  Memory source(bytes);
  source.fill(1);
  Memory bare(bytes, false);
  RawUffd uffd(bare.data(), bytes, RawUffd::For::missing);
  uffd.start_poll_thread(source.data());

  Pairs middle;
  Pairs tail;
  std::vector<double> latency_ratio;
  for (unsigned round = 0; round < settings.repeats + 1; ++round) {
    context.prefetch(p, bytes, 0);
    context.dirty(p, bytes, round);
    bare.drop();
    const std::uint64_t before = bytes_to_host(context.stats());
    std::vector<double> ours;
    std::vector<double> theirs;
    const OneCore placed;
    for (std::size_t first = 0; first < faults; first += k_turn) {
      touch(p, first, k_turn, ours);
      touch(bare.data(), first, k_turn, theirs);
    }
    // The last fault was delivered before it was counted.
    const std::uint64_t patience = now_ns() + 1'000'000'000;
    while (bytes_to_host(context.stats()) - before < bytes && now_ns() < patience) std::this_thread::yield();
    expect_bytes(bytes_to_host(context.stats()) - before, bytes, "CPU faults, one page each,");
    if (round == 0) continue;
    middle.add(median(ours), median(theirs));
    tail.add(percentile(ours, 99), percentile(theirs, 99));
  }
  report.add(compare("cpu_fault_4k", "us", middle, Ratio::value_by_ceiling, ratio_at_most(1.6),
                     "median of read faults; bare: poll, read, UFFDIO_COPY of 4 KiB in a thread; both on one core"));
  report.add(
      compare("cpu_fault_4k_p99", "us", tail, Ratio::value_by_ceiling, std::nullopt, "the same, 99th percentile"));
  context.free(p);
}

// --- the device's faults -------------------------------------------------------------------------------------------

// CPU time of the threads of this process that have this name.
class ThreadTime {
 public:
  explicit ThreadTime(const std::string& name) {
    for_each_thread([&](int thread) {
      std::ifstream in("/proc/self/task/" + std::to_string(thread) + "/comm");
      std::string comm;
      if (std::getline(in, comm) && comm == name) clocks_.push_back(clock_of(thread));
    });
    if (clocks_.empty()) throw Error("no thread is called " + name);
  }
  double seconds() const {
    double sum = 0;
    for (const clockid_t clock : clocks_) {
      timespec t{};
      clock_gettime(clock, &t);
      sum += static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
    }
    return sum;
  }

 private:
  // As the C library's pthread_getcpuclockid() makes it: per thread, time scheduled.
  static clockid_t clock_of(int thread) { return static_cast<clockid_t>((~static_cast<unsigned>(thread) << 3) | 6u); }
  std::vector<clockid_t> clocks_;
};

void device_faults(const Settings& settings, Report& report, const Options& extra, const std::string& name,
                   std::optional<Target> target) {
  const std::size_t bytes = (settings.quick ? 32 : 128) * k_mib;
  Options options = {{"device_memory", mib(256)}, {"device_populate", "on"}, {"pipeline_tokens", "1"}};
  options.insert(options.end(), extra.begin(), extra.end());
  const Context context(options);
  context.dirty(context.allocate(k_block), k_block);  // a fault served: the service's thread is up and has its name
  const ThreadTime service("hmmrt-device");

  Pairs per_fault;            // handling, copying: ns of the service's thread
  std::vector<double> wall;   // ns of the launch beyond a resident one and the copy
  std::vector<double> batch;  // faults in a batch
  std::vector<double> moved;  // pages for a fault
  for (unsigned round = 0; round < settings.repeats + 1; ++round) {
    std::byte* p = context.allocate(bytes);  // fresh, so that no history of moving back and forth is judged
    std::memset(p, 1, bytes);
    context.reset_stats();
    const double service_before = service.seconds();
    std::uint64_t start = now_ns();
    context.read_by_waves(p, bytes, k_page);
    const double faulting = seconds_since(start);
    const double served = service.seconds() - service_before;
    const hmmrt_stats_t stats = context.stats();
    const double copy = static_cast<double>(stats.device_copy_ns) * 1e-9;  // by the same thread: pipeline_tokens is 1
    start = now_ns();
    context.read_by_waves(p, bytes, k_page);
    const double resident = seconds_since(start);
    expect_bytes(bytes_to_device(stats), bytes, "device faults");
    context.free(p);
    if (round == 0) continue;
    const auto faults = static_cast<double>(stats.device_faults);
    per_fault.add((served - copy) * 1e9 / faults, copy * 1e9 / faults);
    wall.push_back((faulting - resident - copy) * 1e9 / faults);
    batch.push_back(faults / static_cast<double>(stats.fault_batches));
    moved.push_back(static_cast<double>(bytes / k_page) / faults);
  }
  report.add(compare(name, "ns", per_fault, Ratio::value_by_ceiling, target,
                     "CPU time of the service's thread less its copying, for each fault; beside it that copying"));
  report.add(alone(name + "_wall", "ns", wall, std::nullopt,
                   "time of the launch beyond a resident one and the copy, a fault"));
  report.add(alone(name + "_batch", "faults", batch, std::nullopt, "mean batch"));
  report.add(alone(name + "_pages", "pages", moved, std::nullopt, "moved for one fault"));
}

}  // namespace

void run_fault(const Settings& settings, Report& report) {
  cpu_faults(settings, report);
  // Batches of 256 need more waves than that to be stalled while one is served; 128 a unit, the default, gives fewer.
  device_faults(settings, report, {{"waves_per_unit", "256"}}, "gpu_fault_service", value_at_most(150));
  device_faults(settings, report, {}, "gpu_fault_service_128", std::nullopt);
  device_faults(settings, report, {{"policy", "first_touch_2m"}}, "gpu_fault_service_2m", std::nullopt);
  device_faults(settings, report, {{"policy", "first_touch_4k"}}, "gpu_fault_service_4k", std::nullopt);
}

}  // namespace bench
