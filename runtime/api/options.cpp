// SPDX-License-Identifier: MIT
#include "api/options.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "policy/policy.hpp"
#include "space/page.hpp"

namespace hmmrt {

namespace {

using S = Settings;
using T = OptionType;
constexpr double k_kib = 1024, k_mib = 1024 * k_kib, k_gib = 1024 * k_mib, k_tib = 1024 * k_gib;
constexpr double k_second = 1e9;  // in ns

constexpr std::array k_table = {
    Option{"policy", "HMMRT_POLICY", T::policy, "adaptive", 0, 0, nullptr, &S::policy,
           "Who decides whether faulting pages move, how much with them, and when not."},
    Option{"device", "HMMRT_DEVICE", T::text, "soft", 0, 0, nullptr, &S::device,
           "What runs the kernels: soft, the software GPU; gpu, the first GPUs that HIP or CUDA finds; gpu:1, or "
           "gpu:0,gpu:2, "
           "these."},
    Option{"devices", "HMMRT_DEVICES", T::integer, "1", 1, k_max_devices, nullptr, &S::devices,
           "Devices in the context; where device names some, as many."},
    Option{"device_memory", "HMMRT_DEVICE_MEMORY", T::bytes, "0", 0, 4 * k_tib, nullptr, &S::device_memory,
           "Memory of each device to use. 0: of a software GPU 1G, or a quarter of the machine's memory shared among "
           "them if that "
           "is less; of a GPU three quarters of what is free."},
    Option{"compute_units", "HMMRT_COMPUTE_UNITS", T::integer, "0", 0, 64, nullptr, &S::compute_units,
           "Threads of each software GPU. 0: as many as cores, at least 2, at most 4."},
    Option{"waves_per_unit", "HMMRT_WAVES_PER_UNIT", T::integer, "128", 1, 4096, nullptr, &S::waves_per_unit,
           "Wavefronts resident on a compute unit, so as many of its accesses can be stalled at once."},
    Option{"wave_size", "HMMRT_WAVE_SIZE", T::integer, "64", 1, 1024, nullptr, &S::wave_size,
           "Work items of a wavefront."},
    Option{"fault_buffer_entries", "HMMRT_FAULT_BUFFER_ENTRIES", T::integer, "1024", 1, 1 << 20, nullptr,
           &S::fault_buffer_entries, "Faults a device can hold before it drops some; rounded up to a power of two."},
    Option{"device_populate", "HMMRT_DEVICE_POPULATE", T::boolean, "off", 0, 0, nullptr, &S::device_populate,
           "Touch all device memory at creation, for measurements."},
    Option{"remote_mapping", "HMMRT_REMOTE_MAPPING", T::boolean, "on", 0, 0, nullptr, &S::remote_mapping,
           "Devices can map memory that stays where it is."},
    Option{"peer", "HMMRT_PEER", T::boolean, "on", 0, 0, nullptr, &S::peer,
           "Devices copy each other's memory, and software GPUs map it; off: by way of system memory."},
    Option{"system_atomics", "HMMRT_SYSTEM_ATOMICS", T::boolean, "on", 0, 0, nullptr, &S::system_atomics,
           "Device atomics reach host memory; off: such a page is lent to the device alone (exclusive access)."},
    Option{"access_counters", "HMMRT_ACCESS_COUNTERS", T::boolean, "on", 0, 0, nullptr, &S::access_counters,
           "Devices count remote accesses, and hot regions migrate."},
    Option{"access_counter_threshold", "HMMRT_ACCESS_COUNTER_THRESHOLD", T::integer, "256", 1, 1 << 30, nullptr,
           &S::access_counter_threshold, "Remote accesses to a block before the device reports it."},
    Option{"batch_size", "HMMRT_BATCH_SIZE", T::integer, "256", 1, 256, nullptr, &S::batch_size,
           "Device faults served at once, at most."},
    Option{"pipeline_tokens", "HMMRT_PIPELINE_TOKENS", T::integer, "4", 1, 64, nullptr, &S::pipeline_tokens,
           "Blocks in flight in a migration pipeline. 1: no overlap."},
    Option{"pipeline_threads", "HMMRT_PIPELINE_THREADS", T::integer, "0", 0, 256, nullptr, &S::pipeline_threads,
           "Threads that may work in a migration pipeline, its caller included. 0: one per core."},
    Option{
        "host_mirror", "HMMRT_HOST_MIRROR", T::choice, "auto", 0, 0, "auto|uffd|shim|kfd", &S::host_mirror,
        "Who watches the CPU's side: uffd is userfaultfd; shim the kernel module hmmrt_shim, under which any pointer "
        "can be used; kfd AMD's kernel driver with SVM, which moves pages by itself. auto takes kfd for AMD GPUs whose "
        "driver has it and retries faults (XNACK), and else uffd."},
    Option{"host_path", "HMMRT_HOST_PATH", T::choice, "auto", 0, 0, "auto|move|fallback", &S::host_path,
           "How pages leave the CPU: auto takes UFFDIO_MOVE (Linux 6.8) where it works; move insists on it; fallback "
           "write-protects, copies and drops."},
    Option{"xnack", "HMMRT_XNACK", T::choice, "auto", 0, 0, "auto|on|off", &S::xnack,
           "Retryable faults of AMD GPUs, for host mirror kfd: on and off insist; auto leaves the process as it is "
           "(HSA_XNACK)."},
    Option{"user_mode_faults", "HMMRT_USER_MODE_FAULTS", T::boolean, "off", 0, 0, nullptr, &S::user_mode_faults,
           "Behave as without privilege: system calls given device-resident memory fail with EFAULT."},
    Option{"arena_bytes", "HMMRT_ARENA_BYTES", T::bytes, "256M", k_block_size, 4 * k_tib, nullptr, &S::arena_bytes,
           "Address space the heap takes from the system at a time; rounded up to 2M."},
    Option{"link", "HMMRT_LINK", T::boolean, "off", 0, 0, nullptr, &S::link,
           "Model an interconnect between the CPU and the software GPUs; off: as fast as it goes."},
    Option{"link_bandwidth", "HMMRT_LINK_BANDWIDTH", T::real, "25", 0.001, 10000, nullptr, &S::link_bandwidth,
           "The link's GB/s in each direction."},
    Option{"link_latency_ns", "HMMRT_LINK_LATENCY_NS", T::integer, "1000", 0, k_second, nullptr, &S::link_latency_ns,
           "What starting a copy over the link costs."},
    Option{"link_map_ns", "HMMRT_LINK_MAP_NS", T::integer, "2000", 0, k_second, nullptr, &S::link_map_ns,
           "What a change of a device's page table costs."},
    Option{"link_remote_ns", "HMMRT_LINK_REMOTE_NS", T::integer, "800", 0, k_second, nullptr, &S::link_remote_ns,
           "What a remote access costs."},
    Option{"link_fault_ns", "HMMRT_LINK_FAULT_NS", T::integer, "10000", 0, k_second, nullptr, &S::link_fault_ns,
           "The least time from a device fault to the access that follows it."},
    Option{"inject_allocation", "HMMRT_INJECT_ALLOCATION", T::real, "0", 0, 1, nullptr, &S::inject_allocation,
           "For tests: probability that a device says it is full."},
    Option{"inject_copy", "HMMRT_INJECT_COPY", T::real, "0", 0, 0.99, nullptr, &S::inject_copy,
           "For tests: probability that a copy fails."},
    Option{"inject_fault_dropped", "HMMRT_INJECT_FAULT_DROPPED", T::real, "0", 0, 0.99, nullptr,
           &S::inject_fault_dropped, "For tests: probability that a fault is lost as if the buffer had been full."},
    Option{"inject_quiesce", "HMMRT_INJECT_QUIESCE", T::real, "0", 0, 1, nullptr, &S::inject_quiesce,
           "For tests: probability that a quiesce is slow."},
    Option{"inject_quiesce_ns", "HMMRT_INJECT_QUIESCE_NS", T::integer, "100000", 0, k_second, nullptr,
           &S::inject_quiesce_ns, "How much longer a slow quiesce takes."},
    Option{"trace_entries", "HMMRT_TRACE_ENTRIES", T::integer, "0", 0, 1 << 26, nullptr, &S::trace_entries,
           "Events the trace keeps (64 bytes each), rounded up to a power of two. 0: no trace, or 1048576 with "
           "trace_file."},
    Option{"trace_file", "HMMRT_TRACE_FILE", T::text, "", 0, 0, nullptr, &S::trace_file,
           "Where the trace is written when the context is destroyed; hmmrt-prof reads it. %p becomes the process id."},
    Option{"log_level", "HMMRT_LOG_LEVEL", T::choice, "warn", 0, 0, "trace|debug|info|warn|error|off", &S::log_level,
           "What the library says on stderr (the spdlog logger \"hmmrt\"). Process-wide: the latest context decides."},
    Option{"seed", "HMMRT_SEED", T::integer, "1", 0, 9007199254740992.0, nullptr, &S::seed, "Of injected failures."},
};

// Variables of our own that are no options: ./dev's, and what tests and benchmarks are told.
bool other_variable(std::string_view name) {
  return name == "HMMRT_SKIP_DEPS" || name == "HMMRT_WERROR" || name.starts_with("HMMRT_TEST_") ||
         name.starts_with("HMMRT_STRESS_") || name.starts_with("HMMRT_SIM_") || name.starts_with("HMMRT_BENCH_");
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// The most similar of the names; null when none is similar.
template <class Names, class Get>
const char* nearest(std::string_view name, const Names& names, Get&& get) {
  const char* best = nullptr;
  std::size_t least = std::max<std::size_t>(3, name.size() / 3) + 1;
  for (const auto& n : names) {
    const char* candidate = get(n);
    if (const std::size_t d = edit_distance(name.substr(0, 64), candidate); d < least) {
      least = d;
      best = candidate;
    }
  }
  return best;
}

bool parse_bytes(std::string_view text, double* out) {
  if (text.empty()) return false;
  double factor = 1;
  if (text.size() > 1 && (text.back() == 'B' || text.back() == 'b')) text.remove_suffix(1);
  if (text.size() > 1 && text.back() == 'i') text.remove_suffix(1);
  switch (std::toupper(static_cast<unsigned char>(text.back()))) {
    case 'K':
      factor = k_kib;
      break;
    case 'M':
      factor = k_mib;
      break;
    case 'G':
      factor = k_gib;
      break;
    case 'T':
      factor = k_tib;
      break;
    default:
      break;
  }
  if (factor > 1) text.remove_suffix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return false;
  *out = value * factor;
  return *out == std::floor(*out);
}

bool parse_integer(std::string_view text, double* out) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    text.remove_prefix(2);
    base = 16;
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return false;
  *out = static_cast<double>(value);
  return true;
}

bool parse_real(std::string_view text, double* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size() && !text.empty() && std::isfinite(*out);
}

bool parse_boolean(std::string_view text, bool* out) {
  for (const char* yes : {"on", "1", "true", "yes"}) {
    if (text == yes) return *out = true, true;
  }
  for (const char* no : {"off", "0", "false", "no"}) {
    if (text == no) return *out = false, true;
  }
  return false;
}

bool one_of(std::string_view text, std::string_view choices) {
  while (!choices.empty()) {
    const std::size_t bar = std::min(choices.find('|'), choices.size());
    if (choices.substr(0, bar) == text) return true;
    choices.remove_prefix(std::min(bar + 1, choices.size()));
  }
  return false;
}

std::string short_bytes(double bytes) {
  static constexpr std::array k_suffixes = {"", "K", "M", "G", "T"};
  std::size_t i = 0;
  while (bytes >= k_kib && std::fmod(bytes, k_kib) == 0 && i + 1 < k_suffixes.size()) bytes /= k_kib, ++i;
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.0f%s", bytes, k_suffixes[i]);
  return text.data();
}

// "a, b, c" to "a|b|c"
std::string policies() {
  std::string names;
  for (const char* p = policy_names(); *p != '\0'; ++p) {
    if (*p != ' ') names += *p == ',' ? '|' : *p;
  }
  return names;
}

std::string number(double value) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), value == std::floor(value) ? "%.0f" : "%g", value);
  return text.data();
}

Status out_of_range(const Option& option, const char* value, const char* source) {
  return fail(HMMRT_ERROR_INVALID_OPTION, "%s: option %s cannot be '%.64s': it takes %s", source, option.name, value,
              option_range(option).c_str());
}

}  // namespace

std::span<const Option> option_table() { return k_table; }

std::string option_range(const Option& option) {
  switch (option.type) {
    case T::policy:
      return policies();
    case T::choice:
      return option.choices;
    case T::text:
      return "text";
    case T::boolean:
      return "on|off";
    case T::integer:
    case T::real:
      return number(option.low) + ".." + number(option.high);
    case T::bytes:
      return short_bytes(option.low) + ".." + short_bytes(option.high);
  }
  return "";
}

const Option* find_option(std::string_view name) {
  const auto* it = std::find_if(k_table.begin(), k_table.end(), [&](const Option& o) { return name == o.name; });
  return it != k_table.end() ? it : nullptr;
}

void set_defaults(Settings& settings) {
  for (const Option& option : k_table) (void)set_option(settings, option.name, option.default_value, "default");
}

Status set_option(Settings& settings, std::string_view name, const char* value, const char* source) {
  const Option* option = find_option(name);
  if (option == nullptr) {
    const char* similar = nearest(name, k_table, [](const Option& o) { return o.name; });
    const int length = static_cast<int>(std::min<std::size_t>(name.size(), 64));
    if (similar != nullptr) {
      return fail(HMMRT_ERROR_INVALID_OPTION, "%s: there is no option '%.*s'; did you mean '%s'?", source, length,
                  name.data(), similar);
    }
    return fail(HMMRT_ERROR_INVALID_OPTION, "%s: there is no option '%.*s'; hmmrt-info --options lists them", source,
                length, name.data());
  }
  const std::string_view text = value;
  double parsed = 0;
  switch (option->type) {
    case T::policy: {
      if (make_policy(text) == nullptr) {
        return fail(HMMRT_ERROR_INVALID_OPTION, "%s: there is no policy '%.64s'; there are %s", source, value,
                    policy_names());
      }
      settings.*std::get<std::string S::*>(option->member) = text;
      return {};
    }
    case T::choice:
      if (!one_of(text, option->choices)) return out_of_range(*option, value, source);
      settings.*std::get<std::string S::*>(option->member) = text;
      return {};
    case T::text:
      settings.*std::get<std::string S::*>(option->member) = text;
      return {};
    case T::boolean: {
      bool on = false;
      if (!parse_boolean(text, &on)) return out_of_range(*option, value, source);
      settings.*std::get<bool S::*>(option->member) = on;
      return {};
    }
    case T::integer:
    case T::bytes: {
      const bool ok = option->type == T::bytes ? parse_bytes(text, &parsed) : parse_integer(text, &parsed);
      if (!ok || parsed < option->low || parsed > option->high) return out_of_range(*option, value, source);
      settings.*std::get<std::uint64_t S::*>(option->member) = static_cast<std::uint64_t>(parsed);
      return {};
    }
    case T::real:
      if (!parse_real(text, &parsed) || parsed < option->low || parsed > option->high) {
        return out_of_range(*option, value, source);
      }
      settings.*std::get<double S::*>(option->member) = parsed;
      return {};
  }
  return fail(HMMRT_ERROR_INTERNAL, "option %s has no type", option->name);
}

Status set_from_environment(Settings& settings, const char* const* environment) {
  if (environment == nullptr) environment = environ;
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    const std::string_view entry = *environment;
    const std::size_t equals = entry.find('=');
    if (!entry.starts_with("HMMRT_") || equals == std::string_view::npos) continue;
    const std::string_view name = entry.substr(0, equals);
    if (other_variable(name)) continue;
    const auto* option =
        std::find_if(k_table.begin(), k_table.end(), [&](const Option& o) { return name == o.environment; });
    if (option == k_table.end()) {
      const char* similar = nearest(name, k_table, [](const Option& o) { return o.environment; });
      return fail(HMMRT_ERROR_INVALID_OPTION, "environment: there is no option for %.*s; %s%s",
                  static_cast<int>(std::min<std::size_t>(name.size(), 64)), name.data(),
                  similar != nullptr ? "did you mean " : "hmmrt-info --options lists them",
                  similar != nullptr ? similar : "");
    }
    if (const Status s = set_option(settings, option->name, *environment + equals + 1, option->environment); !s.ok()) {
      return s;
    }
  }
  return {};
}

std::string option_text(const Settings& settings, const Option& option) {
  if (const auto* text = std::get_if<std::string S::*>(&option.member)) return settings.**text;
  if (const auto* flag = std::get_if<bool S::*>(&option.member)) return settings.**flag ? "on" : "off";
  if (const auto* real = std::get_if<double S::*>(&option.member)) {
    std::array<char, 40> digits{};
    std::snprintf(digits.data(), digits.size(), "%.17g", settings.**real);
    double back = 0;
    std::array<char, 40> brief{};
    std::snprintf(brief.data(), brief.size(), "%g", settings.**real);
    return parse_real(brief.data(), &back) && back == settings.**real ? brief.data() : digits.data();
  }
  const std::uint64_t n = settings.*std::get<std::uint64_t S::*>(option.member);
  return option.type == T::bytes ? short_bytes(static_cast<double>(n)) : std::to_string(n);
}

}  // namespace hmmrt
