// SPDX-License-Identifier: MIT
#include "stress/stress.hpp"

#include <dirent.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>

namespace stress {

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr auto k_patience = std::chrono::seconds(200);
#else
constexpr auto k_patience = std::chrono::seconds(40);
#endif

double environment(const char* name, double otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtod(text, nullptr) : otherwise;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

std::uint64_t seed() {
  static const std::uint64_t value = [] {
    const char* text = std::getenv("HMMRT_STRESS_SEED");
    const std::uint64_t s = text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
    std::printf("HMMRT_STRESS_SEED=%llu\n", static_cast<unsigned long long>(s));
    std::fflush(stdout);
    return s;
  }();
  return value;
}

Clock::time_point end_of_share(double share) {
  const double seconds = environment("HMMRT_STRESS_SECONDS", 10) * share;
  return Clock::now() + std::chrono::microseconds(static_cast<std::int64_t>(seconds * 1e6));
}

std::unique_ptr<hmmrt::context> make_context(const std::vector<hmmrt::option>& options) {
  try {
    return std::make_unique<hmmrt::context>(options);
  } catch (const hmmrt::error& e) {
    if (e.code() != HMMRT_ERROR_NOT_SUPPORTED) throw;
    return nullptr;
  }
}

Watchdog::Watchdog(hmmrt_context_t context) : context_(context), thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard guard(mutex_);
    stop_ = true;
  }
  stopping_.notify_all();
  thread_.join();
}

Progress& Watchdog::watch(std::string who) {
  const std::lock_guard guard(mutex_);
  return watched_.emplace_back(std::move(who)).progress;
}

void Watchdog::forget(const Progress& progress) {
  const std::lock_guard guard(mutex_);
  watched_.remove_if([&](const Watched& w) { return &w.progress == &progress; });
}

void Watchdog::run() {
  std::unique_lock lock(mutex_);
  while (
      !stopping_.wait_until(lock, std::chrono::system_clock::now() + std::chrono::seconds(1), [&] { return stop_; })) {
    for (Watched& w : watched_) {
      const std::uint64_t steps = w.progress.steps();
      if (steps != w.seen) w.since = Clock::now();
      w.seen = steps;
      if (Clock::now() - w.since > k_patience) give_up(w.progress);
    }
  }
}

void Watchdog::give_up(const Progress& stuck) {
  std::fprintf(stderr, "watchdog: %s makes no progress; HMMRT_STRESS_SEED=%llu\n", stuck.who().c_str(),
               static_cast<unsigned long long>(seed()));
  for (const Watched& w : watched_) {
    std::fprintf(stderr, "  %-20s step %llu: %s\n", w.progress.who().c_str(),
                 static_cast<unsigned long long>(w.progress.steps()), w.progress.what());
  }
  if (DIR* tasks = opendir("/proc/self/task"); tasks != nullptr) {
    while (const dirent* entry = readdir(tasks)) {
      if (entry->d_name[0] == '.') continue;
      const std::string path = std::string("/proc/self/task/") + entry->d_name + "/";
      std::fprintf(stderr, "  thread %s %s: %s; %s\n", entry->d_name, first_line(path + "comm").c_str(),
                   first_line(path + "wchan").c_str(), first_line(path + "syscall").c_str());
    }
    closedir(tasks);
  }
  hmmrt_stats_t stats{};
  stats.size = sizeof stats;
  if (hmmrt_stats_context(context_, &stats) == HMMRT_SUCCESS) {
    const auto print = [](const char* what, std::uint64_t n) {
      std::fprintf(stderr, "  %-24s%llu\n", what, static_cast<unsigned long long>(n));
    };
    print("CPU faults", stats.cpu_faults);
    print("device faults", stats.device_faults);
    print("batches", stats.fault_batches);
    print("stale faults", stats.stale_faults);
    print("overflows", stats.fault_buffer_overflows);
    print("evictions", stats.evictions);
    print("retries", stats.retries);
    print("busy", stats.pages_busy);
    print("pinned", stats.pages_pinned);
    print("gone", stats.pages_gone);
    print("forbidden", stats.pages_forbidden);
    print("invalidations", stats.invalidations);
    print("exclusive grants", stats.exclusive_grants);
    print("throttles", stats.throttles);
  }
  if (std::getenv("HMMRT_STRESS_DEBUGGER") != nullptr) {  // every thread's stack, when there is a debugger
    const std::string command = "gdb -p " + std::to_string(getpid()) + " -batch -ex 'thread apply all bt 14' 1>&2";
    if (std::system(command.c_str()) != 0) std::fprintf(stderr, "no debugger\n");
  }
  std::abort();
}

}  // namespace stress
