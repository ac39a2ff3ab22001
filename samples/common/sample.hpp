// SPDX-License-Identifier: MIT
// What every sample shares: its command line, what it prints, how it ends.
//
//   int main(int argc, char** argv) {
//     samples::Sample sample("scale", "Doubles an array on the GPU");
//     std::uint64_t n = 1 << 20;
//     sample.size_option("-n,--size", n, "elements");
//     return sample.run(argc, argv, [&] {
//       hmmrt::context context = sample.open();
//       ...
//       sample.check("doubled", wrong == 0, "...");
//       sample.statistics(context);
//     });
//   }
//
// Every sample takes --policy, --device, --option NAME=VALUE and --json. It exits with 0 only if every check held, with
// 1 on a wrong answer or a library error, with CLI11's code on a bad command line.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <hmmrt/hmmrt.hpp>
#include <hmmrt/kernel.hpp>
#include <string>
#include <vector>

#include "common/mix.hpp"

namespace samples {

using Settings = std::vector<hmmrt::option>;

// One field of a table row.
struct Cell {
  Cell(const char* column, const std::string& text);
  Cell(const char* column, std::uint64_t value);
  Cell(const char* column, double value, int decimals);
  std::string column, text;
  bool number;
};

class Sample {
 public:
  Sample(const char* name, const char* what);

  CLI::App& cli() { return cli_; }
  // An option that counts or measures: 4096, 64K, 64M, 1G (factors of 1024).
  CLI::Option* size_option(const char* names, std::uint64_t& value, const char* what);

  // Parses, runs `body`, and returns the exit status. Exceptions of the body are printed and make it 1.
  int run(int argc, char** argv, const std::function<void()>& body);

  // A context with, later ones winning: `defaults` (what this sample is made for; an HMMRT_* variable overrides them),
  // the environment, --policy, --option, `forced` (what the sample varies by itself).
  hmmrt::context open(const Settings& defaults = {}, const Settings& forced = {});
  std::uint32_t device() const { return device_; }
  bool json() const { return json_; }
  // Whether the user named this context option, by variable or on the command line.
  bool chosen(const std::string& option) const;

  // Prints a line of the story; nothing under --json.
  void say(const char* format, ...) __attribute__((format(printf, 2, 3)));
  // One named result: a line, or a member of the JSON object.
  void result(const std::string& name, double value, const char* unit);
  // A row of a table; the first row, and any with other columns than the one before, prints a header first.
  void row(const std::vector<Cell>& cells);
  // The answer against an independent one. `detail` is printed when it does not hold.
  void check(const std::string& name, bool holds, const std::string& detail = {});
  bool correct() const { return correct_; }
  // The library's statistics table, or its main counters as JSON.
  void statistics(const hmmrt::context& context);

 private:
  void print_json() const;

  CLI::App cli_;
  std::string name_;
  std::string policy_;
  std::vector<std::string> options_;
  std::string on_ = "0";
  std::uint32_t device_ = 0;
  bool json_ = false;
  bool correct_ = true;
  std::vector<std::string> results_, rows_, checks_, statistics_;  // JSON members
  std::vector<std::string> columns_;                               // of the latest row
};

double mib(std::uint64_t bytes);

// A check for options that are not whole numbers: low to high. As CLI::Range, which lets NaN through.
CLI::Validator between(double low, double high);

class Stopwatch {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace samples
