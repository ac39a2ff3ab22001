// SPDX-License-Identifier: MIT
// Kernels for the stand-in GPU (hip.cpp): included by kernel.hpp in programs compiled with
// -DHMMRT_STANDIN_KERNELS="gpu/standin/kernels.hpp". They run in a thread of the stand-in's stream, and each access asks
// where a GPU would find it: in its own memory or pinned memory, where it says, or, with the stand-in for libhsakmt,
// wherever the page is now. What no GPU could reach stops the program; the CPU, which runs the kernel here, would reach it.
#pragma once

#ifndef __HIP_PLATFORM_AMD__
#define __HIP_PLATFORM_AMD__
#endif
#include <hip/hip_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <tuple>

#include "gpu/standin/kernels_abi.hpp"

namespace hmmrt::detail {

// A thread's: the kernel in it, and where it has found memory so far.
struct standin_thread {
  static constexpr std::size_t k_views = 16;
  StandinView& view_of(std::uintptr_t at) { return views[(at >> 21) * 0x9e3779b97f4a7c15u >> 60]; }

  StandinThread* kernel = nullptr;  // none runs
  bool svm = false;
  unsigned long misses = 0;
  StandinView views[k_views] = {};
};
inline thread_local standin_thread standin;

// Makes `view` one that has `at` in it. With what was asked for before the kernel is done, unless its view still holds and
// no miss has come between.
inline const StandinView& standin_view(std::uintptr_t at, bool write, StandinView& view) {
  // Before the stamp is looked at: who changes it then looks here, and waits. See gpu/standin/svm_driver.hpp.
  if (standin.svm) standin.kernel->pass.store((standin.kernel->pass.load(std::memory_order_relaxed) + 2) | 1);
  if (view.stamp == hmmrt_standin_stamp() && at >= view.begin && at < view.end && (view.writable || !write))
    return view;
  ++standin.misses;
  if (hmmrt_standin_view(at, write, &view)) return view;
  std::fprintf(stderr, "stand-in GPU: memory access fault at %#zx: %s\n", static_cast<std::size_t>(at),
               standin.svm ? "the driver lets it have no such access" : "neither its own memory nor pinned");
  std::abort();
}

inline const StandinView& standin_view(std::uintptr_t at, bool write) {
  return standin_view(at, write, standin.view_of(at));
}

// Bytes that may lie across views.
inline void standin_copy(std::uintptr_t at, std::byte* bytes, std::size_t n, bool write) {
  while (n != 0) {
    const StandinView& view = standin_view(at, write);
    const std::size_t part = std::min<std::size_t>(n, view.end - at);
    auto* const there = reinterpret_cast<std::byte*>(at + static_cast<std::uintptr_t>(view.delta));
    memcpy(write ? there : bytes, write ? bytes : there, part);
    at += part, bytes += part, n -= part;
  }
}

template <class T>
struct standin_value {
  alignas(T) std::byte bytes[sizeof(T)];
  T* get() { return reinterpret_cast<T*>(&bytes[0]); }
};

inline std::uintptr_t standin_address(const volatile void* p) {
  return reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(offset);
}

template <std::uint32_t Kind, class T>
T* translated(T* p) {
  std::uintptr_t at = standin_address(p);
  if (standin.kernel != nullptr) at += static_cast<std::uintptr_t>(standin_view(at, Kind != k_read).delta);
  return reinterpret_cast<T*>(at);
}

template <class T>
std::remove_cv_t<T> load(T* p) {
  const std::uintptr_t at = standin_address(p);
  if (standin.kernel == nullptr) return *reinterpret_cast<T*>(at);
  const StandinView& view = standin_view(at, false);
  if (view.end - at >= sizeof(T)) return *reinterpret_cast<T*>(at + static_cast<std::uintptr_t>(view.delta));
  standin_value<std::remove_cv_t<T>> value;
  standin_copy(at, value.bytes, sizeof(T), false);
  return *value.get();
}

template <class T>
void store(T* p, const T& v) {
  const std::uintptr_t at = standin_address(p);
  if (standin.kernel == nullptr) {
    *reinterpret_cast<T*>(at) = v;
    return;
  }
  const StandinView& view = standin_view(at, true);
  if (view.end - at >= sizeof(T)) {
    *reinterpret_cast<T*>(at + static_cast<std::uintptr_t>(view.delta)) = v;
    return;
  }
  standin_value<T> value;
  memcpy(&value.bytes[0], &v, sizeof(T));
  standin_copy(at, value.bytes, sizeof(T), true);
}

// How many whole elements of the operand, from its `first`, are in one piece, and where they are.
template <class T, std::uint32_t Kind>
std::size_t standin_piece(const span_argument<T, Kind>& a, std::size_t first, StandinView& view, T** where) {
  const std::uintptr_t at = standin_address(a.p + first);
  standin_view(at, Kind != k_read, view);
  *where = reinterpret_cast<T*>(at + static_cast<std::uintptr_t>(view.delta));
  return (view.end - at) / sizeof(T);
}

template <class Fn, class... Args, std::size_t... I>
void standin_spans(Fn& fn, std::size_t length, std::index_sequence<I...>, const Args&... args) {
  std::tuple<decltype(args.p)...> at;
  StandinView views[sizeof...(Args)] = {};  // one for each: those of the thread may be in each other's place
  for (std::size_t first = 0, n = 0; first < length; first += n) {
    unsigned long misses = 0;
    do {  // until all of them are known at once
      misses = standin.misses;
      n = std::min({length - first, standin_piece(args, first, views[I], &std::get<I>(at))...});
    } while (misses != standin.misses);
    if (n != 0) {
      fn(std::get<I>(at)..., first, n);
      continue;
    }
    // One element of somebody's lies across views.
    n = 1;
    std::tuple<standin_value<std::remove_cv_t<typename Args::type>>...> copies;
    (standin_copy(standin_address(args.p + first), std::get<I>(copies).bytes, sizeof(typename Args::type), false), ...);
    fn(static_cast<decltype(args.p)>(std::get<I>(copies).get())..., first, n);
    const auto put = [&](const auto& arg, auto& copy) {
      using A = std::remove_cvref_t<decltype(arg)>;
      if (A::kind == k_read) return;
      standin_copy(standin_address(arg.p + first), copy.bytes, sizeof(typename A::type), true);
    };
    (put(args, std::get<I>(copies)), ...);
  }
}

template <class Fn, class... Args>
void visit_spans(Fn& fn, const Args&... args) {
  const std::size_t lengths[] = {args.n...};
  if (standin.kernel != nullptr) {
    standin_spans(fn, lengths[0], std::index_sequence_for<Args...>(), args...);
  } else if (lengths[0] != 0) {
    fn(translated(args.p)..., std::size_t{0}, lengths[0]);
  }
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
  standin = {};
  standin.svm = hmmrt_standin_svm();
  standin.kernel = hmmrt_standin_thread();
  run_items<F>(&block.functor, &block.grid, 0, block.grid.x * block.grid.y * block.grid.z);
  standin.kernel->pass.store((standin.kernel->pass.load(std::memory_order_relaxed) + 1) & ~std::uint64_t{1});
  standin.kernel = nullptr;
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
