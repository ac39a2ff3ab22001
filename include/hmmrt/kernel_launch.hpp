// SPDX-License-Identifier: MIT
// How hipcc and nvcc start a functor on a real GPU. Not for users; included by kernel.hpp.
#ifndef HMMRT_KERNEL_LAUNCH_HPP
#define HMMRT_KERNEL_LAUNCH_HPP

#ifdef __HIPCC__
#include <hip/hip_runtime.h>
#define HMMRT_GPU(name) hip##name
#else
#include <cuda_runtime.h>
#define HMMRT_GPU(name) cuda##name
#endif

namespace hmmrt::detail {

#if !defined(__CUDA_ARCH__) && !defined(__HIP_DEVICE_COMPILE__)
[[maybe_unused]] static __constant__ std::ptrdiff_t offset;  // the host's view of kernel_gpu.hpp's
#endif

// Puts `value` into this file's `offset`, 0 at first, on the current device, after everything that may be using the one before.
// The library starts kernels of one GPU one after the other, so that nobody else is here for the same GPU.
[[maybe_unused]] static int set_offset(std::ptrdiff_t value) {
  constexpr int k_devices = 64;
  static std::ptrdiff_t set[k_devices];
  int device = 0;
  if (const auto e = HMMRT_GPU(GetDevice)(&device); e != HMMRT_GPU(Success)) return static_cast<int>(e);
  const bool cached = device < k_devices;
  if (cached && set[device] == value) return 0;
  if (const auto e = HMMRT_GPU(DeviceSynchronize)(); e != HMMRT_GPU(Success)) return static_cast<int>(e);
#ifdef __HIPCC__
  const auto e = hipMemcpyToSymbol(HIP_SYMBOL(offset), &value, sizeof value, 0, hipMemcpyHostToDevice);
#else
  const auto e = cudaMemcpyToSymbol(offset, &value, sizeof value, 0, cudaMemcpyHostToDevice);
#endif
  if (e != HMMRT_GPU(Success)) return static_cast<int>(e);
  // CUDA may have returned when it had only read `value`.
  if (const auto late = HMMRT_GPU(StreamSynchronize)(nullptr); late != HMMRT_GPU(Success))
    return static_cast<int>(late);
  if (cached) set[device] = value;
  return 0;
}

template <class F>
__global__ void items_kernel(F f, hmmrt_grid_t grid) {
  const std::uint64_t items = grid.x * grid.y * grid.z;
  const std::uint64_t stride = static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
  for (std::uint64_t k = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < items; k += stride) {
    f(item{k % grid.x, k / grid.x % grid.y, k / grid.x / grid.y, grid});
  }
}

// What hmmrt_kernel_t::run_gpu is for a functor.
template <class F>
int run_gpu(const void* functor, const hmmrt_grid_t* grid, std::ptrdiff_t where, void* native_stream) {
  static_assert(sizeof(F) <= 4000, "a kernel functor for a GPU has at most 4000 bytes");
  constexpr std::uint64_t k_threads = 256, k_most_blocks = 1u << 20;
  if (const int e = set_offset(where); e != 0) return e;
  const std::uint64_t wanted = (grid->x * grid->y * grid->z + k_threads - 1) / k_threads;
  const auto blocks = static_cast<unsigned>(wanted < k_most_blocks ? wanted : k_most_blocks);
  // Not <<<>>>, whose result is the thread's latest error, whoever's that was.
  F copy = *static_cast<const F*>(functor);
  hmmrt_grid_t items = *grid;
  void* arguments[] = {&copy, &items};
  return static_cast<int>(HMMRT_GPU(LaunchKernel)(reinterpret_cast<const void*>(&items_kernel<F>), dim3(blocks),
                                                  dim3(static_cast<unsigned>(k_threads)), arguments, 0,
                                                  static_cast<HMMRT_GPU(Stream_t)>(native_stream)));
}

}  // namespace hmmrt::detail

#undef HMMRT_GPU

#endif  // HMMRT_KERNEL_LAUNCH_HPP
