// SPDX-License-Identifier: MIT
// The options table: the one place that says which options exist, what they are called in the environment, what they
// may be, what they are when nobody says, and what they are for. hmmrt-info prints it and README's table is made from it.
//
// Later ones win: the table's default, the environment (HMMRT_POLICY=uvm), the context description.
// Thread: any; the table is constant. Reading the environment is as safe as getenv().
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "space/status.hpp"

namespace hmmrt {

// The options' values, typed. A member's name is its option's name.
struct Settings {
  std::string policy, device;
  std::uint64_t devices = 0;
  std::uint64_t device_memory = 0;  // bytes per device; 0: to be decided
  std::uint64_t compute_units = 0;  // 0: the device decides
  std::uint64_t waves_per_unit = 0;
  std::uint64_t wave_size = 0;
  std::uint64_t fault_buffer_entries = 0;
  bool device_populate = false;
  bool remote_mapping = false;
  bool peer = false;
  bool system_atomics = false;
  bool access_counters = false;
  std::uint64_t access_counter_threshold = 0;
  std::uint64_t batch_size = 0;
  std::uint64_t pipeline_tokens = 0;
  std::uint64_t pipeline_threads = 0;  // 0: one per core
  std::string host_mirror;
  std::string host_path;
  std::string xnack;
  bool user_mode_faults = false;
  std::uint64_t arena_bytes = 0;
  bool link = false;
  double link_bandwidth = 0;  // GB/s, which is bytes per ns
  std::uint64_t link_latency_ns = 0;
  std::uint64_t link_map_ns = 0;
  std::uint64_t link_remote_ns = 0;
  std::uint64_t link_fault_ns = 0;
  double inject_allocation = 0;
  double inject_copy = 0;
  double inject_fault_dropped = 0;
  double inject_quiesce = 0;
  std::uint64_t inject_quiesce_ns = 0;
  std::uint64_t trace_entries = 0;
  std::string trace_file;
  std::string log_level;
  std::uint64_t seed = 0;
};

using SettingsMember =
    std::variant<std::string Settings::*, std::uint64_t Settings::*, bool Settings::*, double Settings::*>;

enum class OptionType : std::uint8_t {
  policy,   // a policy's name
  choice,   // one of `choices`
  text,     // anything
  boolean,  // on|off, also 1|0, true|false, yes|no
  integer,  // low..high, decimal or 0x...
  bytes,    // low..high, with suffix K, M, G or T (factors of 1024)
  real,     // low..high
};

struct Option {
  const char* name;
  const char* environment;
  OptionType type;
  const char* default_value;
  double low, high;     // integer, bytes, real
  const char* choices;  // choice: "a|b|c"
  SettingsMember member;
  const char* doc;
};

std::span<const Option> option_table();
// What an option may be, for people: "on|off", "1..8", "2M..1T".
std::string option_range(const Option& option);
const Option* find_option(std::string_view name);

// Sets every option to its default.
void set_defaults(Settings& settings);
// `source`: where the value comes from, for the error text ("HMMRT_POLICY", "the context description").
// Errors: INVALID_OPTION, naming the range, or the most similar name.
Status set_option(Settings& settings, std::string_view name, const char* value, const char* source);
// Reads every HMMRT_* variable of `environment` ("NAME=value", null-terminated); null: the process's own.
Status set_from_environment(Settings& settings, const char* const* environment = nullptr);
// The value as set_option() would take it.
std::string option_text(const Settings& settings, const Option& option);

}  // namespace hmmrt
