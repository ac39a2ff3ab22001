// SPDX-License-Identifier: MIT
#include "common/measure.hpp"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "hmmrt/hmmrt.h"

namespace bench {

std::uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(t.tv_nsec);
}

double percentile(std::vector<double> samples, double percent) {
  if (samples.empty()) return std::nan("");
  std::sort(samples.begin(), samples.end());
  const double at = percent / 100 * static_cast<double>(samples.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, samples.size() - 1);
  return samples[below] + (samples[above] - samples[below]) * (at - static_cast<double>(below));
}

double median(std::vector<double> samples) { return percentile(std::move(samples), 50); }

Pairs alternate(unsigned repeats, const std::function<double()>& value, const std::function<double()>& ceiling) {
  value();
  ceiling();
  Pairs pairs;
  for (unsigned i = 0; i < repeats; ++i) {
    if (i % 2 == 0) {
      const double v = value();
      pairs.add(v, ceiling());
    } else {
      const double c = ceiling();
      pairs.add(value(), c);
    }
  }
  return pairs;
}

bool Measure::pass() const {
  if (!target) return true;
  const double x = target->of == Target::Of::ratio ? ratio.value_or(std::nan("")) : value;
  switch (target->is) {
    case Target::Is::at_least:
      return x >= target->number;
    case Target::Is::at_most:
      return x <= target->number;
    case Target::Is::below:
      return x < target->number;
  }
  return false;
}

std::string Measure::criterion() const {
  if (!target) return "";
  static const char* const signs[] = {">=", "<=", "<"};
  char text[64];
  std::snprintf(text, sizeof text, "%s %g %s", signs[static_cast<int>(target->is)], target->number,
                target->of == Target::Of::ratio ? "x" : unit.c_str());
  return text;
}

Measure compare(std::string name, std::string unit, const Pairs& pairs, Ratio ratio, std::optional<Target> target,
                std::string note) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < pairs.value.size(); ++i) {
    ratios.push_back(ratio == Ratio::value_by_ceiling ? pairs.value[i] / pairs.ceiling[i]
                                                      : pairs.ceiling[i] / pairs.value[i]);
  }
  Measure m;
  m.name = std::move(name);
  m.unit = std::move(unit);
  m.value = median(pairs.value);
  m.ceiling = median(pairs.ceiling);
  m.ratio = median(ratios);
  m.target = target;
  m.repeats = ratios.size();
  m.min = percentile(ratios, 0);
  m.max = percentile(ratios, 100);
  m.note = std::move(note);
  return m;
}

Measure added(std::string name, std::string unit, const Pairs& pairs, std::optional<Target> target, std::string note) {
  std::vector<double> beyond;
  for (std::size_t i = 0; i < pairs.value.size(); ++i) beyond.push_back(pairs.value[i] - pairs.ceiling[i]);
  Measure m = alone(std::move(name), std::move(unit), beyond, target, std::move(note));
  m.ceiling = median(pairs.ceiling);
  return m;
}

Measure alone(std::string name, std::string unit, const std::vector<double>& samples, std::optional<Target> target,
              std::string note) {
  Measure m;
  m.name = std::move(name);
  m.unit = std::move(unit);
  m.value = median(samples);
  m.target = target;
  m.repeats = samples.size();
  m.min = percentile(samples, 0);
  m.max = percentile(samples, 100);
  m.note = std::move(note);
  return m;
}

// --- report --------------------------------------------------------------------------------------------------------

namespace {

std::string number(std::optional<double> x) {
  if (!x) return "-";
  char text[32];
  std::snprintf(text, sizeof text, std::fabs(*x) >= 1000 ? "%.0f" : "%.3g", *x);
  return text;
}

void print_row(const Measure& m) {
  const char* verdict = !m.target ? "" : m.pass() ? "pass" : "MISS";
  std::printf("  %-40s %9s %-7s %9s %7s  %6s ..%6s  %3zu  %-12s %s\n", m.name.c_str(), number(m.value).c_str(),
              m.unit.c_str(), number(m.ceiling).c_str(), number(m.ratio).c_str(), number(m.min).c_str(),
              number(m.max).c_str(), m.repeats, m.criterion().c_str(), verdict);
}

std::string file_line(const char* path, const char* key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (key[0] == '\0') return line;
    if (line.rfind(key, 0) != 0) continue;
    const std::size_t at = line.find_first_not_of(" \t", line.find(':') + 1);
    return at == std::string::npos ? "" : line.substr(at);
  }
  return "";
}

nlohmann::json machine() {
  utsname u{};
  uname(&u);
  char date[32];
  const std::time_t t = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&t, &parts);
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {{"cpu", file_line("/proc/cpuinfo", "model name")},
          {"cores", std::thread::hardware_concurrency()},
          {"memory_bytes",
           static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))},
          {"kernel", u.release},
          {"thp", file_line("/sys/kernel/mm/transparent_hugepage/enabled", "")},
          {"load_average", file_line("/proc/loadavg", "")},
          {"compiler", __VERSION__},
          {"hmmrt_version", hmmrt_version()},
          {"date", date}};
}

template <class T>
nlohmann::json or_null(const std::optional<T>& x) {
  return x ? nlohmann::json(*x) : nlohmann::json(nullptr);
}

}  // namespace

void Report::begin_suite(const std::string& name) {
  std::printf("\n%s\n  %-40s %9s %-7s %9s %7s  %15s  %3s  %-12s\n", name.c_str(), "measure", "value", "unit", "ceiling",
              "ratio", "spread of ratio", "n", "target");
  std::fflush(stdout);
}

void Report::add(Measure measure) {
  print_row(measure);
  std::fflush(stdout);
  measures_.push_back(std::move(measure));
}

void Report::fail(const std::string& suite, const std::string& what) {
  failures_.push_back(suite + ": " + what);
  std::printf("  FAILED: %s\n", what.c_str());
  std::fflush(stdout);
}

bool Report::passed() const {
  return failures_.empty() &&
         std::all_of(measures_.begin(), measures_.end(), [](const Measure& m) { return m.pass(); });
}

bool Report::write_json(const std::string& path) const {
  nlohmann::json measures = nlohmann::json::array();
  for (const Measure& m : measures_) {
    measures.push_back({{"name", m.name},
                        {"value", m.value},
                        {"unit", m.unit},
                        {"ceiling", or_null(m.ceiling)},
                        {"ratio", or_null(m.ratio)},
                        {"target", m.target ? nlohmann::json(m.target->number) : nlohmann::json(nullptr)},
                        {"pass", m.target ? nlohmann::json(m.pass()) : nlohmann::json(nullptr)},
                        {"repeats", m.repeats},
                        {"min", m.min},
                        {"max", m.max},
                        {"criterion", m.criterion()},
                        {"note", m.note}});
  }
  nlohmann::json here = machine();
  for (const auto& [key, what] : machine_notes_) here[key] = what;
  const nlohmann::json all = {{"machine", here}, {"measures", measures}, {"failures", failures_}};
  std::ofstream out(path);
  out << all.dump(2) << '\n';
  return static_cast<bool>(out.flush());
}

void Report::print_summary() const {
  std::size_t targets = 0;
  std::size_t met = 0;
  for (const Measure& m : measures_) {
    targets += m.target ? 1 : 0;
    met += m.target && m.pass() ? 1 : 0;
  }
  std::printf("\n%zu of %zu targets met", met, targets);
  for (const Measure& m : measures_) {
    if (!m.pass()) std::printf("; missed: %s (%s)", m.name.c_str(), m.criterion().c_str());
  }
  std::printf("\n");
  for (const std::string& f : failures_) std::printf("failed: %s\n", f.c_str());
}

}  // namespace bench
