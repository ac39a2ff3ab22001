// SPDX-License-Identifier: MIT
// What programs with copies written by hand use of HIP or CUDA, under one set of names: memory, copies, kernel launches, all
// on one stream. Only where a vendor's compiler compiles (HAND_COPIES is defined), and over the tests' stand-in.
#pragma once

#include <hmmrt/kernel.hpp>

#if defined(HMMRT_GPU_SOURCE) || defined(HMMRT_STANDIN_KERNELS)
#define HAND_COPIES 1

#include <cstddef>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__) && !defined(__HIPCC__)
#include <cuda_runtime.h>
#define VENDOR(name) cuda##name
#else
#define VENDOR(name) hip##name
#endif

namespace by_hand {

inline void check(VENDOR(Error_t) e, const char* call) {
  if (e != VENDOR(Success)) throw std::runtime_error(std::string(call) + ": " + VENDOR(GetErrorString)(e));
}
#define CHECKED_AS(call) by_hand::check(call, #call)
#define CHECKED(call) CHECKED_AS(call)  // with the vendor's names in it

#ifdef HMMRT_GPU_SOURCE
// Items are laid out as hmmrt::launch does, so that only the copies differ.
template <class F>
__global__ void items(F f, hmmrt_grid_t grid) {
  const std::uint64_t count = grid.x * grid.y * grid.z;
  const std::uint64_t stride = static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
  for (std::uint64_t k = static_cast<std::uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < count; k += stride) {
    f(hmmrt::item{k % grid.x, k / grid.x % grid.y, k / grid.x / grid.y, grid});
  }
}
#endif

class Stream {
 public:
  Stream() {
    int gpus = 0;
    if (const auto e = VENDOR(GetDeviceCount)(&gpus); e != VENDOR(Success) || gpus == 0) {
      throw std::runtime_error(std::string("no GPU can be used: ") + VENDOR(GetErrorString)(e));
    }
    CHECKED(VENDOR(StreamCreateWithFlags)(&stream_, VENDOR(StreamNonBlocking)));
  }
  ~Stream() { (void)VENDOR(StreamDestroy)(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  VENDOR(Stream_t) get() const { return stream_; }

  template <class F>
  void launch(hmmrt_grid_t grid, const F& f) const {
#ifdef HMMRT_GPU_SOURCE
    constexpr unsigned k_threads = 256;
    constexpr std::uint64_t k_most_blocks = 1u << 20;
    const std::uint64_t wanted = (grid.x * grid.y * grid.z + k_threads - 1) / k_threads;
    const auto blocks = static_cast<unsigned>(wanted < k_most_blocks ? wanted : k_most_blocks);
    items<F><<<blocks, k_threads, 0, stream_>>>(f, grid);
    CHECKED(VENDOR(GetLastError)());
#else
    check(static_cast<VENDOR(Error_t)>(hmmrt::detail::run_gpu<F>(&f, &grid, 0, stream_)), "launch");
#endif
  }
  void synchronize() const { CHECKED(VENDOR(StreamSynchronize)(stream_)); }
  void copy(void* to, const void* from, std::size_t bytes, VENDOR(MemcpyKind) kind) const {
    CHECKED(VENDOR(MemcpyAsync)(to, from, bytes, kind, stream_));
  }

 private:
  VENDOR(Stream_t) stream_{};
};

// n elements of a GPU's memory.
template <class T>
class DeviceArray {
 public:
  DeviceArray(const Stream& stream, std::size_t n) : stream_(stream), n_(n) {
    void* memory = nullptr;
    CHECKED(VENDOR(Malloc)(&memory, n * sizeof(T)));
    data_ = static_cast<T*>(memory);
  }
  ~DeviceArray() { (void)VENDOR(Free)(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* get() const { return data_; }
  // Enqueued; of pageable memory the vendors' runtimes have taken a copy when they return.
  void copy_in(const T* host) const { stream_.copy(data_, host, n_ * sizeof(T), VENDOR(MemcpyHostToDevice)); }
  // Waited for.
  void copy_out(T* host) const {
    stream_.copy(host, data_, n_ * sizeof(T), VENDOR(MemcpyDeviceToHost));
    stream_.synchronize();
  }

 private:
  const Stream& stream_;
  T* data_ = nullptr;
  std::size_t n_;
};

}  // namespace by_hand

#endif
