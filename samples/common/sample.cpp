// SPDX-License-Identifier: MIT
#include "common/sample.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>

namespace samples {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20)
      out += c;
    else
      out += ' ';
  }
  return out + "\"";
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string joined(const std::vector<std::string>& members) {
  std::string out;
  for (const std::string& m : members) out += (out.empty() ? "" : ", ") + m;
  return out;
}

// HMMRT_POLICY for policy, as hmmrt.h's options table has it.
bool in_environment(const std::string& option) {
  std::string name = "HMMRT_" + option;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
  return std::getenv(name.c_str()) != nullptr;
}

}  // namespace

Cell::Cell(const char* name, const std::string& value) : column(name), text(value), number(false) {}
Cell::Cell(const char* name, std::uint64_t value) : column(name), text(std::to_string(value)), number(true) {}
Cell::Cell(const char* name, double value, int decimals) : column(name), number(true) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.*f", decimals, value);
  text = digits;
}

Sample::Sample(const char* name, const char* what) : cli_(what, name), name_(name) {
  cli_.option_defaults()->always_capture_default();
  cli_.add_option("--policy", policy_, "who decides what moves: adaptive (default), uvm, first_touch_4k, ...");
  cli_.add_option("--device", on_, "what to run on: 0 or soft:0, the first software GPU; gpu:0, the first real one");
  cli_.add_option("--option", options_, "NAME=VALUE: any context option (hmmrt-info --options); may be repeated")
      ->type_name("NAME=VALUE")
      ->take_all()
      ->allow_extra_args(false)
      ->check([](const std::string& text) {
        return text.find('=') == std::string::npos || text[0] == '=' ? "'" + text + "' is not NAME=VALUE" : "";
      });
  cli_.add_flag("--json", json_, "print one JSON object instead of text");
}

CLI::Option* Sample::size_option(const char* names, std::uint64_t& value, const char* what) {
  return cli_.add_option(names, value, what)
      ->transform(CLI::AsSizeValue(false))
      ->type_name("SIZE")
      ->capture_default_str();
}

int Sample::run(int argc, char** argv, const std::function<void()>& body) {
  CLI11_PARSE(cli_, argc, argv);
  try {
    body();
  } catch (const std::exception& e) {
    std::fflush(stdout);
    std::fprintf(stderr, "%s: %s\n", name_.c_str(), e.what());
    return 1;
  }
  if (json_) print_json();
  std::fflush(stdout);
  return correct_ ? 0 : 1;
}

bool Sample::chosen(const std::string& option) const {
  const auto names_it = [&](const std::string& text) { return text.substr(0, text.find('=')) == option; };
  return (option == "policy" && !policy_.empty()) || std::any_of(options_.begin(), options_.end(), names_it) ||
         in_environment(option);
}

hmmrt::context Sample::open(const Settings& defaults, const Settings& forced) {
  Settings all;
  for (const auto& setting : defaults)
    if (!in_environment(setting.first)) all.push_back(setting);
  if (!policy_.empty()) all.emplace_back("policy", policy_);
  const std::string digits = on_.substr(on_.rfind(':') + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), device_);
  const std::string kind = on_.substr(0, on_.size() - digits.size());
  if (error != std::errc{} || end != digits.data() + digits.size() ||
      (!kind.empty() && kind != "soft:" && kind != "gpu:")) {
    throw std::invalid_argument("--device cannot be '" + on_ + "': it is N, soft:N or gpu:N");
  }
  if (kind == "gpu:") {
    all.emplace_back("device", on_);
    device_ = 0;
  }
  for (const std::string& text : options_) {
    const std::size_t equals = text.find('=');
    all.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  all.insert(all.end(), forced.begin(), forced.end());
  return hmmrt::context(all);
}

void Sample::say(const char* format, ...) {
  if (json_) return;
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::putchar('\n');
  std::fflush(stdout);
}

void Sample::result(const std::string& name, double value, const char* unit) {
  results_.push_back("{\"name\": " + quoted(name) + ", \"value\": " + number(value) + ", \"unit\": " + quoted(unit) +
                     "}");
  say("  %-28s %.6g%s%s", name.c_str(), value, *unit == '\0' ? "" : " ", unit);
}

void Sample::row(const std::vector<Cell>& cells) {
  std::vector<std::string> columns, members;
  std::string header, line;
  for (const Cell& c : cells) {
    columns.push_back(c.column);
    members.push_back(quoted(c.column) + ": " + (c.number ? c.text : quoted(c.text)));
    const int width = std::max<int>(static_cast<int>(c.column.size()), c.number ? 9 : 14);
    char text[2][64];
    std::snprintf(text[0], sizeof text[0], "  %*s", c.number ? width : -width, c.column.c_str());
    std::snprintf(text[1], sizeof text[1], "  %*s", c.number ? width : -width, c.text.c_str());
    header += text[0];
    line += text[1];
  }
  for (std::string* text : {&header, &line}) text->erase(text->find_last_not_of(' ') + 1);
  if (columns != columns_) say("\n%s", header.c_str());
  say("%s", line.c_str());
  columns_ = std::move(columns);
  rows_.push_back("{" + joined(members) + "}");
}

void Sample::check(const std::string& name, bool holds, const std::string& detail) {
  correct_ = correct_ && holds;
  checks_.push_back("{\"name\": " + quoted(name) + ", \"holds\": " + (holds ? "true" : "false") + "}");
  say("  %-28s %s%s%s", name.c_str(), holds ? "correct" : "WRONG", holds || detail.empty() ? "" : ": ",
      holds ? "" : detail.c_str());
}

void Sample::statistics(const hmmrt::context& context) {
  const hmmrt_stats_t s = context.stats();
  if (!json_) {
    std::putchar('\n');
    std::fflush(stdout);
    hmmrt::print_stats(std::cout, context);
    std::cout.flush();
    return;
  }
  statistics_.clear();
  const auto member = [this](const char* name, std::uint64_t value) {
    statistics_.push_back("\"" + std::string(name) + "\": " + std::to_string(value));
  };
  member("device_faults", s.device_faults);
  member("cpu_faults", s.cpu_faults);
  member("fault_batches", s.fault_batches);
  member("duplicate_faults", s.duplicate_faults);
  member("bytes_to_device", hmmrt::bytes_to_device(s));
  member("bytes_to_host", hmmrt::bytes_to_host(s));
  member("evictions", s.evictions);
  member("pages_evicted", s.pages_evicted);
  member("refaults", s.refaults);
  member("ping_pong_detections", s.ping_pong_detections);
  member("throttles", s.throttles);
  member("pins", s.pins);
  member("pages_mapped_remote", s.pages_mapped_remote);
  member("remote_accesses", s.remote_accesses);
  member("hints", s.hints);
  member("hints_without_effect", s.hints_without_effect);
}

void Sample::print_json() const {
  std::printf(
      "{\"sample\": %s, \"correct\": %s, \"checks\": [%s], \"results\": [%s], \"rows\": [%s], "
      "\"statistics\": {%s}}\n",
      quoted(name_).c_str(), correct_ ? "true" : "false", joined(checks_).c_str(), joined(results_).c_str(),
      joined(rows_).c_str(), joined(statistics_).c_str());
}

CLI::Validator between(double low, double high) {
  const std::string range = number(low) + " to " + number(high);
  return {[=](const std::string& text) {
            double value = 0;
            const bool inside = CLI::detail::lexical_cast(text, value) && value >= low && value <= high;
            return inside ? std::string() : "'" + text + "' is not a number from " + range;
          },
          "FLOAT from " + range};
}

double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0); }

}  // namespace samples
