// SPDX-License-Identifier: MIT
// The suite `gpu`: libhmmrt on a real GPU, beside bare HIP or CUDA in the same run. Compiled by hipcc or nvcc; by a host
// compiler only over the tests' stand-in, whose figures say nothing (k_stand_in).
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "common/managed.hpp"
#include "common/measure.hpp"
#include "explicit/vendor.hpp"

namespace bench::gpu {

#ifdef HMMRT_STANDIN_KERNELS
inline constexpr bool k_stand_in = true;
#else
inline constexpr bool k_stand_in = false;
#endif

struct Plan {
  unsigned repeats = 9;
  bool smoke = false;  // small, and without targets: does it run?
  std::string device = "gpu:0";
  std::string host_mirror = "auto";
  bool driven = false;  // the driver moves pages, and its reports may come late, or be lost
  int gpus = 1;         // that the vendor's runtime finds
  Options options(Options more = {}) const {
    more.insert(more.begin(), {{"device", device}, {"host_mirror", host_mirror}});
    return more;
  }
  // Unless the driver counts: throws where a measured run did not move what it was meant to.
  void expect(std::uint64_t moved, std::uint64_t wanted, const char* what) const {
    if (!driven) expect_bytes(moved, wanted, what);
  }
  std::optional<Target> target(const Target& t) const { return smoke || k_stand_in ? std::nullopt : std::optional(t); }
};

// Pages and bytes: migration by prefetch and by launch, out and home, beside pinned copies; GPU to GPU.
void copies(const Plan& plan, Report& report);
// What a launch costs beyond the vendor's own when nothing has to move.
void launches(const Plan& plan, Report& report);
// jacobi and spmv, beside their versions with copies written by hand.
void programs(const Plan& plan, Report& report);

// Pinned memory of the CPU's.
class Pinned {
 public:
  explicit Pinned(std::size_t bytes) {
#if defined(__CUDACC__) && !defined(__HIPCC__)
    CHECKED(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
#else
    CHECKED(hipHostMalloc(&data_, bytes, 0));
#endif
  }
  ~Pinned() {
#if defined(__CUDACC__) && !defined(__HIPCC__)
    (void)cudaFreeHost(data_);
#else
    (void)hipHostFree(data_);
#endif
  }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

}  // namespace bench::gpu
