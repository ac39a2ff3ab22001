// SPDX-License-Identifier: MIT
// hmmrt-info: what libhmmrt finds on this machine: devices and what they can do, which host mirror runs and why, kernel
// features found and missing, privilege, huge pages, what AMD's driver offers; and the options table (--options,
// --markdown for the README). Uses the public API, and host/kfd's probe. Exits 0 also when no context can be made: that, too, is information.
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <hmmrt/hmmrt.hpp>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "device/gpu_modules.hpp"
#include "host/kfd/probe.hpp"
#include "host/kfd/svm_driver.hpp"

namespace {

using hmmrt::kfd::Probe;
using hmmrt::kfd::Rung;

// What option device=gpu does, rung by rung of what the driver offers.
const char* what_to_expect(const Probe& amd) {
  switch (amd.rung) {
    case Rung::svm_xnack:
      return "option device=gpu uses them with host mirror kfd: the driver serves faults and moves pages, any pointer "
             "works";
    case Rung::svm:
      return "option device=gpu uses them with host mirror uffd: pages come at launch (host_mirror=kfd: the driver "
             "moves "
             "what it is asked to)";
    case Rung::no_svm:
      return "option device=gpu uses them with host mirror uffd: pages come at launch";
    default:
      return "a GPU that HIP or CUDA finds all the same is used with host mirror uffd: pages come at launch";
  }
}

std::string first_line(const char* path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// "always [madvise] never" to "madvise"
std::string chosen(const std::string& line) {
  const std::size_t from = line.find('[');
  const std::size_t to = line.find(']');
  return from == std::string::npos || to == std::string::npos ? "unknown" : line.substr(from + 1, to - from - 1);
}

std::string kernel() {
  utsname name{};
  uname(&name);
  return std::string(name.sysname) + " " + name.release + " " + name.machine;
}

// What is looked for in the kernel and around it, whether it is there, and what it is for.
struct Feature {
  const char* name;
  bool found;
  std::string detail;
};

bool membarrier_expedited() {
#ifdef SYS_membarrier
  constexpr long k_query = 0, k_private_expedited = 1 << 3;
  const long offers = syscall(SYS_membarrier, k_query, 0, 0);
  return offers > 0 && (offers & k_private_expedited) != 0;
#else
  return false;
#endif
}

// The driver answered.
bool answers(const Probe& amd) {
  return amd.rung != Rung::absent && amd.rung != Rung::no_permission && amd.rung != Rung::unusable;
}

std::vector<Feature> features(const hmmrt_context_info_t* info, const Probe& amd) {
  std::vector<Feature> all;
  if (info != nullptr) {
    all.push_back({"userfaultfd", std::string(info->host_mirror) == "uffd", "CPU faults"});
    all.push_back({"kernel-mode faults", info->kernel_faults != 0, "system calls given device-resident memory"});
    all.push_back({"UFFDIO_MOVE", info->move != 0, "withdrawing pages without copying them (Linux 6.8)"});
    all.push_back({"write protection", info->write_protect != 0, "read-only copies on several processors"});
  }
  all.push_back({"membarrier", membarrier_expedited(), "quiesce without a cost on each access of the software GPU"});
  all.push_back({"/dev/userfaultfd", access("/dev/userfaultfd", R_OK | W_OK) == 0, "kernel-mode faults without root"});
  all.push_back({"/dev/kfd", answers(amd), "AMD GPUs, see below"});
  all.push_back({"hmmrt_shim", access("/dev/hmmrt0", R_OK | W_OK) == 0,
                 "kernel module: any pointer, device memory of the kernel's (option host_mirror=shim)"});
  return all;
}

std::string capabilities(std::uint32_t bits) {
  static const std::pair<std::uint32_t, const char*> k_names[] = {{HMMRT_DEVICE_RETRYABLE_FAULTS, "retryable faults"},
                                                                  {HMMRT_DEVICE_REMOTE_MAPPING, "remote mapping"},
                                                                  {HMMRT_DEVICE_ACCESS_COUNTERS, "access counters"},
                                                                  {HMMRT_DEVICE_COHERENT, "coherent"},
                                                                  {HMMRT_DEVICE_SYSTEM_ATOMICS, "system atomics"},
                                                                  {HMMRT_DEVICE_PEER, "peer"},
                                                                  {HMMRT_DEVICE_PEER_COPY, "peer copies"}};
  std::string text;
  for (const auto& [bit, name] : k_names) {
    if ((bits & bit) != 0) text += (text.empty() ? "" : ", ") + std::string(name);
  }
  return text.empty() ? "none" : text;
}

std::vector<hmmrt_option_info_t> options() {
  std::vector<hmmrt_option_info_t> all;
  for (std::uint32_t i = 0; i < hmmrt_option_count(); ++i) {
    hmmrt_option_info_t info{};
    info.size = sizeof info;
    hmmrt::check(hmmrt_option_get_info(i, &info));
    all.push_back(info);
  }
  return all;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
}

// `|` ends a cell.
std::string cell(std::string text) {
  for (std::size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2)) text.insert(at, 1, '\\');
  return text;
}

void print_options_markdown() {
  std::puts("| option | environment | default | takes | what it is for |\n| --- | --- | --- | --- | --- |");
  for (const auto& o : options()) {
    const char* tick = *o.default_value != '\0' ? "`" : "";
    std::printf("| `%s` | `%s` | %s%s%s | %s | %s |\n", o.name, o.environment, tick, o.default_value, tick,
                cell(o.range).c_str(), cell(o.doc).c_str());
  }
}

void print_options(const hmmrt::context* context) {
  for (const auto& o : options()) {
    std::printf("  %s  (%s)\n      %s\n      takes %s; default '%s'", o.name, o.environment, o.doc, o.range,
                o.default_value);
    if (context != nullptr) std::printf("; here '%s'", context->option_value(o.name).c_str());
    std::puts("");
  }
}

// The driver is asked when HIP has initialised itself, which does what HSA_XNACK says.
Probe probe_behind_hip() {
  (void)hmmrt::gpu_modules();
  return hmmrt::kfd::probe();
}

// How a context would ask the driver, or why it cannot; "" where there is nothing to ask.
std::string way_to(const Probe& amd) {
  if (amd.rung != Rung::svm && amd.rung != Rung::svm_xnack) return "";
  std::string why;
  const hmmrt::kfd::SvmDriver* const driver = hmmrt::kfd::SvmDriver::open(&why);
  return driver != nullptr ? std::string("it is asked ") + driver->way() : "it cannot be asked: " + why;
}

struct Machine {
  std::string kernel_release = kernel();
  std::string thp = chosen(first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  std::string sysctl = first_line("/proc/sys/vm/unprivileged_userfaultfd");
  bool root = geteuid() == 0;
  Probe amd = probe_behind_hip();
  std::string amd_way = way_to(amd);
};

void print_text(const Machine& machine, const hmmrt::context* context, const std::string& failure) {
  const std::uint32_t v = hmmrt_version();
  std::printf("libhmmrt %u.%u.%u on %s\n", v / 10000, v / 100 % 100, v % 100, machine.kernel_release.c_str());
  std::printf("  user                  %s; vm.unprivileged_userfaultfd = %s\n", machine.root ? "root" : "not root",
              machine.sysctl.empty() ? "absent" : machine.sysctl.c_str());
  std::printf("  transparent huge pages %s%s\n", machine.thp.c_str(),
              machine.thp == "never" ? ": migration of 2 MiB blocks takes many times longer" : "");
  hmmrt_context_info_t info{};
  if (context != nullptr) {
    info = context->info();
    std::printf("\nhost mirror: %s, pages are withdrawn by %s\n", info.host_mirror, info.host_path);
    if (*info.host_note != '\0') std::printf("  %s\n", info.host_note);
    std::printf("policy: %s\n", info.policy);
  } else {
    std::printf("\nno context can be made here: %s\n", failure.c_str());
  }
  std::puts("\nfeatures");
  for (const Feature& f : features(context != nullptr ? &info : nullptr, machine.amd)) {
    std::printf("  %-8s %-20s %s\n", f.found ? "found" : "missing", f.name, f.detail.c_str());
  }
  std::printf("\nAMD GPUs: %s.\n", machine.amd.says.c_str());
  for (const auto& gpu : machine.amd.gpus) {
    std::printf("  node %u: gpu_id %u, gfx target version %u, %s shared virtual memory\n", gpu.node, gpu.gpu_id,
                gpu.gfx_version, gpu.svm ? "with" : "without");
  }
  if (!machine.amd_way.empty()) std::printf("  the driver: %s.\n", machine.amd_way.c_str());
  std::printf("  %s.\n", what_to_expect(machine.amd));
  std::puts("\nmodules for real GPUs (option device=gpu)");
  for (const hmmrt::GpuModule& m : hmmrt::gpu_modules()) {
    std::printf("  %-8s %-20s %s\n", m.module != nullptr ? "loaded" : "missing", m.file.c_str(), m.why.c_str());
    for (int i = 0; i < m.count; ++i) {
      std::printf("           gpu:%d %s\n", i, m.module->describe(static_cast<unsigned>(i)).c_str());
    }
  }
  if (context == nullptr) return;
  std::puts("\ndevices");
  for (std::uint32_t i = 0; i < context->device_count(); ++i) {
    const hmmrt_device_info_t d = context->device_info(i);
    std::printf("  %u: %s, %s\n     %s memory, %u compute units of %u-wide waves, fault buffer of %u\n     %s\n", i,
                d.name, d.description, hmmrt::format_bytes(d.memory_bytes).c_str(), d.compute_units, d.wave_size,
                d.fault_buffer_entries, capabilities(d.capabilities).c_str());
  }
  std::puts("\nhmmrt-info --options prints the options.");
}

void print_json(const Machine& machine, const hmmrt::context* context, const std::string& failure) {
  const std::uint32_t v = hmmrt_version();
  std::printf(R"({"version": "%u.%u.%u", "kernel": %s, "root": %s, "unprivileged_userfaultfd": %s, "thp": %s)",
              v / 10000, v / 100 % 100, v % 100, quoted(machine.kernel_release).c_str(),
              machine.root ? "true" : "false", quoted(machine.sysctl).c_str(), quoted(machine.thp).c_str());
  hmmrt_context_info_t info{};
  if (context != nullptr) {
    info = context->info();
    std::printf(",\n \"host_mirror\": %s, \"host_path\": %s, \"host_note\": %s, \"policy\": %s",
                quoted(info.host_mirror).c_str(), quoted(info.host_path).c_str(), quoted(info.host_note).c_str(),
                quoted(info.policy).c_str());
  } else {
    std::printf(",\n \"error\": %s", quoted(failure).c_str());
  }
  std::printf(",\n \"features\": {");
  const char* comma = "";
  for (const Feature& f : features(context != nullptr ? &info : nullptr, machine.amd)) {
    std::printf("%s%s: %s", comma, quoted(f.name).c_str(), f.found ? "true" : "false");
    comma = ", ";
  }
  std::printf("},\n \"amd\": {\"rung\": %s, \"says\": %s, \"note\": %s, \"way\": %s, \"cpu_nodes\": %u, \"gpus\": [",
              quoted(hmmrt::kfd::rung_name(machine.amd.rung)).c_str(), quoted(machine.amd.says).c_str(),
              quoted(what_to_expect(machine.amd)).c_str(), quoted(machine.amd_way).c_str(), machine.amd.cpu_nodes);
  comma = "";
  for (const auto& gpu : machine.amd.gpus) {
    std::printf(R"(%s{"node": %u, "gpu_id": %u, "gfx_target_version": %u, "svm": %s})", comma, gpu.node, gpu.gpu_id,
                gpu.gfx_version, gpu.svm ? "true" : "false");
    comma = ", ";
  }
  std::printf("]},\n \"gpu_modules\": [");
  comma = "";
  for (const hmmrt::GpuModule& m : hmmrt::gpu_modules()) {
    std::printf("%s\n  {\"file\": %s, \"loaded\": %s, \"why\": %s, \"gpus\": [", comma, quoted(m.file).c_str(),
                m.module != nullptr ? "true" : "false", quoted(m.why).c_str());
    for (int i = 0; i < m.count; ++i) {
      std::printf("%s%s", i != 0 ? ", " : "", quoted(m.module->describe(static_cast<unsigned>(i))).c_str());
    }
    std::printf("]}");
    comma = ",";
  }
  std::printf("],\n \"devices\": [");
  comma = "";
  for (std::uint32_t i = 0; context != nullptr && i < context->device_count(); ++i) {
    const hmmrt_device_info_t d = context->device_info(i);
    std::printf(
        "%s\n  {\"name\": %s, \"description\": %s, \"memory_bytes\": %llu, \"compute_units\": %u, \"wave_size\": %u, "
        "\"fault_buffer_entries\": %u, \"capabilities\": %s}",
        comma, quoted(d.name).c_str(), quoted(d.description).c_str(), static_cast<unsigned long long>(d.memory_bytes),
        d.compute_units, d.wave_size, d.fault_buffer_entries, quoted(capabilities(d.capabilities)).c_str());
    comma = ",";
  }
  std::printf("],\n \"options\": {");
  comma = "";
  for (const auto& o : options()) {
    const std::string value = context != nullptr ? context->option_value(o.name) : o.default_value;
    std::printf("%s\n  %s: %s", comma, quoted(o.name).c_str(), quoted(value).c_str());
    comma = ",";
  }
  std::puts("}}");
}

int run(int argc, char** argv) {
  CLI::App app{"What libhmmrt finds on this machine"};
  bool want_options = false;
  bool markdown = false;
  bool json = false;
  app.add_flag("--options", want_options, "the options table, with the values in force here");
  app.add_flag("--markdown", markdown, "with --options: as a Markdown table of defaults");
  app.add_flag("--json", json, "everything, as JSON");
  CLI11_PARSE(app, argc, argv);
  if (want_options && markdown) {
    print_options_markdown();
    return 0;
  }
  std::vector<hmmrt::context> context;  // none or one
  std::string failure;
  try {
    context.emplace_back();
  } catch (const hmmrt::error& e) {
    failure = e.what();
  }
  const hmmrt::context* c = context.empty() ? nullptr : &context.front();
  if (json) {
    print_json({}, c, failure);
  } else if (want_options) {
    if (c == nullptr) std::printf("no context can be made here: %s\n", failure.c_str());
    print_options(c);
  } else {
    print_text({}, c, failure);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "hmmrt-info: %s\n", e.what());
    return 1;
  }
}
