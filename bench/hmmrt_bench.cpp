// SPDX-License-Identifier: MIT
// hmmrt-bench: the speed of libhmmrt, each number beside a ceiling measured in the same run.
//   hmmrt-bench                        all suites
//   hmmrt-bench migrate fault          these
//   hmmrt-bench --json FILE            also writes {"machine": ..., "measures": [...]}
// Exits with 0 when every suite ran to its end, whether or not targets were met (--strict: only when they were), 1 when
// a suite failed, 2 on bad arguments.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>

#include "common/measure.hpp"

namespace {

constexpr std::array k_suites = {
    bench::Suite{"migrate", "how fast is migration, against copying the same bytes?", bench::run_migrate},
    bench::Suite{"fault", "what does a fault cost?", bench::run_fault},
    bench::Suite{"pipeline", "does copying overlap page-table work?", bench::run_pipeline},
    bench::Suite{"resident", "what does the software GPU cost when nothing has to move?", bench::run_resident},
    bench::Suite{"policy", "does the adaptive policy stop ping-pong?", bench::run_policy},
    bench::Suite{"memory", "what does managed memory cost beside plain memory?", bench::run_memory},
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("The speed of libhmmrt, beside ceilings measured in the same run");
  std::vector<std::string> names;
  std::string json;
  bench::Settings settings;
  bool list = false;
  bool strict = false;
  std::vector<std::string> known;
  for (const bench::Suite& s : k_suites) known.emplace_back(s.name);
  app.add_option("SUITE", names, "suites to run; default: all")->check(CLI::IsMember(known));
  app.add_option("--json", json, "write the measures to this file");
  app.add_option("--repeats", settings.repeats, "samples of each measure")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", settings.quick, "smaller buffers: for trying things out");
  app.add_flag("--list", list, "name the suites");
  app.add_flag("--strict", strict, "a missed target is a failure");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (list) {
    for (const bench::Suite& s : k_suites) std::printf("%-10s %s\n", s.name, s.question);
    return 0;
  }
  bench::Report report;
  for (const bench::Suite& s : k_suites) {
    if (!names.empty() && std::find(names.begin(), names.end(), s.name) == names.end()) continue;
    report.begin_suite(s.name);
    try {
      s.run(settings, report);
    } catch (const std::exception& e) {
      report.fail(s.name, e.what());
    }
  }
  report.print_summary();
  if (!json.empty() && !report.write_json(json)) {
    std::fprintf(stderr, "hmmrt-bench: cannot write %s\n", json.c_str());
    return 1;
  }
  return report.broken() || (strict && !report.passed()) ? 1 : 0;
}
