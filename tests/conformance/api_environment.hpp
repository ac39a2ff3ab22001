// SPDX-License-Identifier: MIT
// The environments that the API suite runs in: host mirror, its path, number of devices. What this machine does not have
// is skipped, aloud; the kernel module only where its nodes are (driver-shim/vm/sets/runtime).
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <hmmrt/hmmrt.hpp>
#include <hmmrt/kernel.hpp>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace api_test {

constexpr std::size_t k_page = 4096;
constexpr std::size_t k_block = std::size_t{2} << 20;

struct Environment {
  const char* name;
  const char* host_mirror;
  const char* host_path;
  const char* user_mode;
  unsigned devices;
  const char* device = "soft";
};
inline void PrintTo(const Environment& e, std::ostream* out) { *out << e.name; }

inline std::vector<Environment> environments(std::initializer_list<unsigned> counts = {1, 2}) {
  std::vector<Environment> all;
  for (const unsigned devices : counts) {
    const bool one = devices == 1;
#if defined(HMMRT_STANDIN_KERNELS) || defined(HMMRT_GPU_SOURCE)
    // GPUs without retryable faults: what is behind HIP's symbols in tests/gpu/standin; or, compiled by the vendor's
    // compiler, those of this machine.
    setenv("HMMRT_TEST_HIP_DEVICES", "2", 0);
    all.push_back({one ? "gpu_move_1" : "gpu_move_2", "uffd", "auto", "off", devices, "gpu"});
    all.push_back({one ? "gpu_fallback_1" : "gpu_fallback_2", "uffd", "fallback", "off", devices, "gpu"});
    // GPUs whose driver moves pages: behind libhsakmt's symbols.
    setenv("HMMRT_TEST_KFD", "1", 0);
    all.push_back({one ? "kfd_1" : "kfd_2", "kfd", "auto", "off", devices, "gpu"});
    continue;
#endif
    all.push_back({one ? "move_1" : "move_2", "uffd", "move", "off", devices});
    all.push_back({one ? "fallback_1" : "fallback_2", "uffd", "fallback", "off", devices});
    all.push_back({one ? "user_1" : "user_2", "uffd", "auto", "on", devices});
    if (access("/dev/hmmrt0", F_OK) == 0) all.push_back({one ? "shim_1" : "shim_2", "shim", "auto", "off", devices});
  }
  return all;
}

inline std::vector<hmmrt::option> options_of(const Environment& e, std::vector<hmmrt::option> more = {}) {
  std::vector<hmmrt::option> all = {{"host_mirror", e.host_mirror},
                                    {"host_path", e.host_path},
                                    {"user_mode_faults", e.user_mode},
                                    {"devices", std::to_string(e.devices)},
                                    {"device", e.device},
                                    {"device_memory", "64M"},
                                    {"arena_bytes", "32M"}};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

class ApiTest : public ::testing::TestWithParam<Environment> {
 protected:
  void SetUp() override { open(); }
  // Makes (or replaces) the context. Skips the test where the environment does not exist.
  void open(const std::vector<hmmrt::option>& more = {}) {
    context_.reset();
    try {
      context_ = std::make_unique<hmmrt::context>(options_of(GetParam(), more));
    } catch (const hmmrt::error& e) {
      const bool too_few = !faults() && GetParam().devices > 1 && e.code() == HMMRT_ERROR_INVALID_DEVICE;
      if (e.code() != HMMRT_ERROR_NOT_SUPPORTED && !too_few) throw;
      GTEST_SKIP() << e.what();
    }
  }
  hmmrt::context& context() { return *context_; }
  hmmrt_context_t handle() { return context_->get(); }
  // Pointers need no registration, so what is not registered is managed as well.
  static bool any_pointer() { return std::string(GetParam().host_mirror) != "uffd"; }
  // Its driver moves pages by itself, and the runtime hears of it later.
  static bool driven() { return std::string(GetParam().host_mirror) == "kfd"; }
  // Accesses wait for their pages; else a launch brings everything with it.
  static bool faults() { return std::string(GetParam().device) == "soft"; }
  unsigned last_device() const { return GetParam().devices - 1; }

  std::unique_ptr<hmmrt::context> context_;
};

// For what only a device can do that stops at an access, and goes on later or not at all.
#define NEEDS_FAULTS(why) \
  if (!faults()) GTEST_SKIP() << "without retryable faults " << (why)

// For what is the runtime's to decide, and not a driver's that moves pages by itself.
#define NOT_DRIVEN(why) \
  if (driven()) GTEST_SKIP() << "under a driver that serves faults " << (why)

#define API_SUITE(suite)                                                               \
  INSTANTIATE_TEST_SUITE_P(each, suite, ::testing::ValuesIn(api_test::environments()), \
                           [](const auto& param_info) { return std::string(param_info.param.name); })

// The result, and that the detail text is there and names what it is about.
inline void expect_error(hmmrt_result_t got, hmmrt_result_t want, const std::string& names, const char* what) {
  EXPECT_STREQ(hmmrt_result_name(got), hmmrt_result_name(want)) << what << ": " << hmmrt_last_error_detail();
  const std::string detail = hmmrt_last_error_detail();
  EXPECT_GT(detail.size(), 10u) << what;
  EXPECT_NE(detail.find(names), std::string::npos) << what << ": '" << detail << "' does not name '" << names << "'";
}
#define EXPECT_API_ERROR(call, want, names) api_test::expect_error((call), (want), (names), #call)

inline std::string hex(const void* p) {
  char text[32];
  std::snprintf(text, sizeof text, "%#zx", reinterpret_cast<std::size_t>(p));
  return text;
}

// ---- memory of the application's own ---------------------------------------------------------------------------------

// Memory at an address of its choice (null: the kernel's), every page written; null when something is there.
inline std::uint32_t* map_filled(std::size_t bytes, std::uint32_t first, void* at = nullptr,
                                 int protection = PROT_READ | PROT_WRITE) {
  void* const p =
      mmap(at, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | (at != nullptr ? MAP_FIXED_NOREPLACE : 0), -1, 0);
  if (p == MAP_FAILED) return nullptr;
  for (std::size_t i = 0; i < bytes / 4; ++i) static_cast<std::uint32_t*>(p)[i] = first + static_cast<std::uint32_t>(i);
  return static_cast<std::uint32_t*>(p);
}
// How many words are not what map_filled() wrote.
inline std::size_t wrong(const std::uint32_t* p, std::size_t bytes, std::uint32_t first) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < bytes / 4; ++i) n += p[i] != first + i;
  return n;
}

// ---- kernels --------------------------------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
#define COMPILING_FOR_GPU  // bodies that only a software GPU can run are left out
#endif

struct Fill {
  hmmrt::gptr<std::uint32_t> p;
  std::uint32_t base;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    p[static_cast<std::ptrdiff_t>(i.x)] = base + static_cast<std::uint32_t>(i.x);
  }
};
struct AddOne {
  hmmrt::gptr<std::uint32_t> p;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const { p[static_cast<std::ptrdiff_t>(i.x)] += 1u; }
};
struct Count {
  hmmrt::gptr<std::uint64_t> counter;
  std::uint32_t times;
  HMMRT_KERNEL void operator()(const hmmrt::item&) const {
    for (std::uint32_t k = 0; k < times; ++k) hmmrt::atomic_fetch_add(counter, 1, hmmrt::scope::system);
  }
};
// Touches every `stride` bytes of [p, p + bytes), with one item per touch.
struct Touch {
  hmmrt::gptr<unsigned char> p;
  std::uint64_t stride;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const { p[static_cast<std::ptrdiff_t>(i.x * stride)] += 1; }
};
// Adds to *p until *stop.
struct Spin {
  hmmrt::gptr<std::uint64_t> p;
  hmmrt::gptr<std::uint32_t> stop;
  HMMRT_KERNEL void operator()(const hmmrt::item&) const {
    while (hmmrt::atomic_load(stop, hmmrt::scope::system) == 0) hmmrt::atomic_fetch_add(p, 1, hmmrt::scope::system);
  }
};

// Plain memory of the application's own.
class Mapping {
 public:
  explicit Mapping(std::size_t bytes)
      : bytes_(bytes), p_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Mapping() {
    munmap(p_, hole_);
    munmap(get() + hole_ + hole_bytes_, bytes_ - hole_ - hole_bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  char* get() const { return static_cast<char*>(p_); }
  std::uint32_t* words() const { return static_cast<std::uint32_t*>(p_); }
  // Unmaps [first, first + bytes), not at the start, once. What the kernel puts there afterwards is not ours.
  int unmap(std::size_t first, std::size_t bytes) {
    hole_ = first;
    hole_bytes_ = bytes;
    return munmap(get() + first, bytes);
  }
  // mremap has moved all of it: nor are these addresses.
  void moved_away() { hole_bytes_ = bytes_; }

 private:
  std::size_t bytes_;
  void* p_;
  std::size_t hole_ = 0, hole_bytes_ = 0;
};

}  // namespace api_test
