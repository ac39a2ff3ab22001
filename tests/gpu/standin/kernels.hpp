// SPDX-License-Identifier: MIT
// Kernels for the stand-in GPU (hip.cpp): included by kernel.hpp in programs compiled with
// -DHMMRT_STANDIN_KERNELS="gpu/standin/kernels.hpp". They use the accessors of real GPUs, and run in a thread of the
// stand-in's stream.
#pragma once

#ifndef __HIP_PLATFORM_AMD__
#define __HIP_PLATFORM_AMD__
#endif
#include <hip/hip_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "gpu/standin/kernels_abi.hpp"

namespace hmmrt::detail {

inline void standin_check(std::uintptr_t addr) {
  thread_local std::uintptr_t begin = 0, end = 0;
  thread_local std::uint64_t changes = 0;
  const std::uint64_t now = hmmrt_standin_changes.load(std::memory_order_acquire);
  if (now == changes && addr >= begin && addr < end) return;
  changes = now;
  if (hmmrt_standin_reachable(addr, &begin, &end)) return;
  std::fprintf(stderr, "stand-in GPU: memory access fault at %#zx: neither its own memory nor pinned\n", addr);
  std::abort();
}

template <class F>
struct standin_block {
  StandinLaunch head;
  F functor;
  hmmrt_grid_t grid;
  std::ptrdiff_t offset;
};

template <class F>
void standin_kernel(void* p) {
  const auto& block = *static_cast<const standin_block<F>*>(p);
  offset = block.offset;
  in_standin_kernel = true;
  run_items<F>(&block.functor, &block.grid, 0, block.grid.x * block.grid.y * block.grid.z);
  in_standin_kernel = false;
  offset = 0;
}

template <class F>
int run_gpu(const void* functor, const hmmrt_grid_t* grid, std::ptrdiff_t where, void* native_stream) {
  standin_block<F> block{{sizeof block}, *static_cast<const F*>(functor), *grid, where};
  void* args[] = {&block};
  return hipLaunchKernel(reinterpret_cast<const void*>(&standin_kernel<F>), {1, 1, 1}, {1, 1, 1}, args, 0,
                         static_cast<hipStream_t>(native_stream));
}

}  // namespace hmmrt::detail
