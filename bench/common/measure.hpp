// SPDX-License-Identifier: MIT
// What a benchmark says: a Measure is a value, the ceiling it was measured beside in the same run, their ratio, and what
// the ratio or the value has to reach. Samples are taken as interleaved pairs (A B B A ...), so that what the machine does
// meanwhile hits both; the ratio reported is the median of the pairs' ratios, never a ratio of two medians.
// Report collects measures, prints them as they come and writes them as JSON. Thread: one.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace bench {

// --- time ----------------------------------------------------------------------------------------------------------
std::uint64_t now_ns();
inline double seconds_since(std::uint64_t start_ns) { return static_cast<double>(now_ns() - start_ns) * 1e-9; }
double median(std::vector<double> samples);
double percentile(std::vector<double> samples, double percent);

// --- samples -------------------------------------------------------------------------------------------------------
// What was measured and its ceiling, pair by pair, in the same unit.
struct Pairs {
  std::vector<double> value;
  std::vector<double> ceiling;
  void add(double v, double c) {
    value.push_back(v);
    ceiling.push_back(c);
  }
};

// Calls both once unrecorded, then `repeats` times in alternating order. Each returns its sample.
Pairs alternate(unsigned repeats, const std::function<double()>& value, const std::function<double()>& ceiling);

// --- measures ------------------------------------------------------------------------------------------------------
// How value and ceiling become the ratio.
enum class Ratio { value_by_ceiling, ceiling_by_value };

struct Target {
  enum class Of { ratio, value } of = Of::ratio;
  enum class Is { at_least, at_most, below } is = Is::at_least;
  double number = 0;
};
inline Target ratio_at_least(double x) { return {Target::Of::ratio, Target::Is::at_least, x}; }
inline Target ratio_at_most(double x) { return {Target::Of::ratio, Target::Is::at_most, x}; }
inline Target ratio_below(double x) { return {Target::Of::ratio, Target::Is::below, x}; }
inline Target value_at_most(double x) { return {Target::Of::value, Target::Is::at_most, x}; }

struct Measure {
  std::string name;
  std::string unit;  // of value and ceiling
  double value = 0;  // medians
  std::optional<double> ceiling;
  std::optional<double> ratio;
  std::optional<Target> target;
  std::size_t repeats = 1;
  double min = 0, max = 0;  // of the ratio where there is one, else of the value
  std::string note;         // what the ceiling is, and what else a reader must know
  bool pass() const;
  std::string criterion() const;  // ">= 0.90 x ceiling"; "" without a target
};

// A measure beside its ceiling; what it costs beyond its floor (the difference, pair by pair); and one that stands alone.
Measure compare(std::string name, std::string unit, const Pairs& pairs, Ratio ratio, std::optional<Target> target,
                std::string note);
Measure added(std::string name, std::string unit, const Pairs& pairs, std::optional<Target> target, std::string note);
Measure alone(std::string name, std::string unit, const std::vector<double>& samples, std::optional<Target> target,
              std::string note);

class Report {
 public:
  void begin_suite(const std::string& name);
  void add(Measure measure);
  // Something that went wrong so that measures are missing; makes the run fail.
  void fail(const std::string& suite, const std::string& what);

  // One more thing that readers must know of the machine.
  void note_machine(const std::string& key, const std::string& what) { machine_notes_.emplace_back(key, what); }
  bool write_json(const std::string& path) const;
  void print_summary() const;
  // Whether nothing failed and every target was met.
  bool passed() const;
  bool broken() const { return !failures_.empty(); }

 private:
  std::vector<Measure> measures_;
  std::vector<std::string> failures_;
  std::vector<std::pair<std::string, std::string>> machine_notes_;
};

// --- suites --------------------------------------------------------------------------------------------------------
struct Settings {
  unsigned repeats = 9;
  bool quick = false;  // smaller buffers, for trying things out; targets still apply
};

struct Suite {
  const char* name;
  const char* question;
  void (*run)(const Settings& settings, Report& report);
};
void run_migrate(const Settings& settings, Report& report);
void run_fault(const Settings& settings, Report& report);
void run_pipeline(const Settings& settings, Report& report);
void run_resident(const Settings& settings, Report& report);
void run_policy(const Settings& settings, Report& report);
void run_memory(const Settings& settings, Report& report);

}  // namespace bench
