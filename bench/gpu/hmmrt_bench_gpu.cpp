// SPDX-License-Identifier: MIT
// hmmrt-bench-gpu: libhmmrt on a real GPU, each number beside bare HIP or CUDA in the same run (./dev bench gpu).
//   hmmrt-bench-gpu --json FILE     also writes {"machine": ..., "measures": [...]}, as hmmrt-bench does
//   hmmrt-bench-gpu --smoke         small, without targets: does it run?
// Exits with 0 when everything ran, whether or not targets were met (--strict: only when they were), 1 when something
// failed, 2 on bad arguments, 77 when there is no GPU to measure: then it says what is missing.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "gpu/gpu.hpp"

namespace {

constexpr int k_skipped = 77;

#if defined(__CUDACC__) && !defined(__HIPCC__)
constexpr const char* k_vendor = "CUDA";
#else
constexpr const char* k_vendor = "HIP";
#endif

int skip(std::string why) {
  for (std::size_t at = why.find("; lib"); at != std::string::npos; at = why.find("; lib", at))
    why.replace(at, 2, "\n  ");
  std::printf("SKIP: nothing to measure here.\n  %s\n", why.c_str());
  return k_skipped;
}

// The GPU's description, and who moves its pages; null and why when there is none.
std::optional<std::string> describe(bench::gpu::Plan* plan, std::string* why) {
  const hmmrt_option_t options[] = {{"device", plan->device.c_str()}, {"host_mirror", plan->host_mirror.c_str()}};
  hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
  desc.options = options;
  desc.option_count = 2;
  hmmrt_context_t context = nullptr;
  if (const hmmrt_result_t r = hmmrt_context_create(&desc, &context); r != HMMRT_SUCCESS) {
    *why = hmmrt_last_error_detail();
    if (r != HMMRT_ERROR_NOT_SUPPORTED && r != HMMRT_ERROR_INVALID_DEVICE) throw bench::Error(*why);
    return std::nullopt;
  }
  hmmrt_device_info_t info{};
  info.size = sizeof info;
  hmmrt_context_info_t host{};
  host.size = sizeof host;
  const hmmrt_result_t about_gpu = hmmrt_device_get_info(context, 0, &info);
  const hmmrt_result_t about_host = hmmrt_context_get_info(context, &host);
  hmmrt_context_destroy(context);
  bench::check(about_gpu, "hmmrt_device_get_info");
  bench::check(about_host, "hmmrt_context_get_info");
  plan->driven = std::string(host.host_mirror) == "kfd";
  return std::string(info.description) + "; host mirror " + host.host_mirror;
}

int run(int argc, char** argv) {
  CLI::App app("libhmmrt on a real GPU, beside bare " + std::string(k_vendor) + " in the same run");
  bench::gpu::Plan plan;
  std::string json;
  bool strict = false;
  int ordinal = 0;
  app.add_option("--json", json, "write the measures to this file");
  app.add_option("--repeats", plan.repeats, "samples of each measure")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--gpu", ordinal, "which one, as the vendor counts")->check(CLI::Range(0, 63))->capture_default_str();
  app.add_option("--host-mirror", plan.host_mirror, "who watches the CPU's side (option host_mirror)")
      ->capture_default_str();
  app.add_flag("--smoke", plan.smoke, "small, and without targets");
  app.add_flag("--strict", strict, "a missed target is a failure");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  if (plan.smoke && app.count("--repeats") == 0) plan.repeats = 2;
  plan.device = "gpu:" + std::to_string(ordinal);
  std::string why;
  const std::optional<std::string> description = describe(&plan, &why);
  if (!description) return skip(why);
  if (VENDOR(GetDeviceCount)(&plan.gpus) != VENDOR(Success) || plan.gpus <= ordinal) {
    return skip("this program was compiled for " + std::string(k_vendor) +
                ", which finds no such GPU here; the library runs on: " + *description);
  }
  CHECKED(VENDOR(SetDevice)(ordinal));

  bench::Report report;
  std::printf("%s: %s\n", plan.device.c_str(), description->c_str());
  report.note_machine("gpu", *description);
  report.note_machine("gpu_api", k_vendor);
  if (bench::gpu::k_stand_in) {
    std::puts("NOT A RESULT: a stand-in runs here in place of a GPU, and its figures say nothing.");
    report.note_machine("not_a_result", "a stand-in ran in place of a GPU");
  }
  report.begin_suite("gpu");
  const auto part = [&](const char* name, void (*measure)(const bench::gpu::Plan&, bench::Report&)) {
    try {
      measure(plan, report);
    } catch (const std::exception& e) {
      report.fail(name, e.what());
    }
  };
  part("copies", bench::gpu::copies);
  part("launches", bench::gpu::launches);
  part("programs", bench::gpu::programs);
  report.print_summary();
  if (!json.empty() && !report.write_json(json)) {
    std::fprintf(stderr, "hmmrt-bench-gpu: cannot write %s\n", json.c_str());
    return 1;
  }
  return report.broken() || (strict && !report.passed()) ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "hmmrt-bench-gpu: %s\n", e.what());
    return 1;
  }
}
