// SPDX-License-Identifier: MIT
// How kernel.hpp's accessors reach memory. Not for users; included by kernel.hpp only.
//
// On the software GPU an access is a *section* of the compute unit that runs the wave:
//   busy = 1 | compiler fence | flush requested? | TLB lookup | plain access | busy = 0 (release)
// A hit is inline and costs plain loads and stores. Everything else goes through hmmrt_detail_enter(), which walks the
// page table, faults, and may let other waves run before it returns with the section open and the page present.
// Why plain stores suffice against Device::quiesce(): runtime/device/soft/quiesce.hpp.
//
// The layout of `unit` is ABI between this inline code and the library: k_abi names it and launch() checks it.
#ifndef HMMRT_KERNEL_DETAIL_HPP
#define HMMRT_KERNEL_DETAIL_HPP

#include <hmmrt/hmmrt.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace hmmrt::detail {

constexpr std::uint32_t k_abi = 2;
constexpr std::uint32_t k_read = 0, k_write = 1, k_atomic = 2;  // Access
constexpr std::size_t k_max_operands = 8;
constexpr std::size_t k_page = 4096;

template <class T>
struct same_type {
  using type = T;
};
template <class T>
using same = typename same_type<T>::type;  // not deduced

template <class T>
struct loaded {  // what gptr::operator-> returns
  T value;
  HMMRT_KERNEL const T* operator->() const { return &value; }
};

template <class T, std::uint32_t Kind>
struct span_argument {
  using type = T;
  static constexpr std::uint32_t kind = Kind;
  T* p;
  std::size_t n;
};

template <class T>
struct op_and {
  T v;
  HMMRT_KERNEL T operator()(T x) const { return static_cast<T>(x & v); }
};
template <class T>
struct op_or {
  T v;
  HMMRT_KERNEL T operator()(T x) const { return static_cast<T>(x | v); }
};
template <class T>
struct op_xor {
  T v;
  HMMRT_KERNEL T operator()(T x) const { return static_cast<T>(x ^ v); }
};
template <class T>
struct op_min {
  T v;
  HMMRT_KERNEL T operator()(T x) const { return v < x ? v : x; }
};
template <class T>
struct op_max {
  T v;
  HMMRT_KERNEL T operator()(T x) const { return x < v ? v : x; }
};
template <class T>
struct op_add {
  T v;
  HMMRT_KERNEL T operator()(T x) const { return static_cast<T>(x + v); }
};

}  // namespace hmmrt::detail

#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__) || defined(HMMRT_STANDIN_KERNELS)
#include <hmmrt/kernel_gpu.hpp>
#else
#include <hmmrt/kernel_soft.hpp>
#endif

#endif  // HMMRT_KERNEL_DETAIL_HPP
