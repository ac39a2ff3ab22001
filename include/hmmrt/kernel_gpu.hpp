// SPDX-License-Identifier: MIT
// kernel.hpp's accessors on a real GPU: a plain access, one constant away. Not for users; included by kernel_detail.hpp
// when a compiler makes code for a GPU.
#ifndef HMMRT_KERNEL_GPU_HPP
#define HMMRT_KERNEL_GPU_HPP

namespace hmmrt::detail {

#ifdef HMMRT_STANDIN_KERNELS
// For tests: a GPU that is none, and says itself where an access goes (tests/gpu/standin/kernels.hpp).
inline thread_local std::ptrdiff_t offset = 0;
template <std::uint32_t Kind = k_write, class T>
T* translated(T* p);
template <class T>
std::remove_cv_t<T> load(T* p);
template <class T>
void store(T* p, const T& v);
template <class Fn, class... Args>
void visit_spans(Fn& fn, const Args&... args);
#else
// Where the device has managed memory, from where the CPU has it: the same for every pointer of a launch. Set before a
// launch when it changes (kernel_launch.hpp). One for each file: what is static needs no device linker.
[[maybe_unused]] static __constant__ std::ptrdiff_t offset;

// `Kind` matters to the stand-in alone.
template <std::uint32_t Kind = k_write, class T>
HMMRT_KERNEL T* translated(T* p) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(offset));
}

template <class T>
HMMRT_KERNEL std::remove_cv_t<T> load(T* p) {
  return *translated(p);
}
template <class T>
HMMRT_KERNEL void store(T* p, const T& v) {
  *translated(p) = v;
}

template <class Fn, class... Args>
HMMRT_KERNEL void visit_spans(Fn& fn, const Args&... args) {
  const std::size_t lengths[] = {args.n...};
  if (lengths[0] != 0) fn(translated(args.p)..., std::size_t{0}, lengths[0]);
}
#endif

// The bits of a 4- or 8-byte T, for compare-and-swap.
template <std::size_t Bytes>
struct bits_of;
template <>
struct bits_of<4> {
  using type = unsigned int;
};
template <>
struct bits_of<8> {
  using type = unsigned long long;
};

template <class To, class From>
HMMRT_KERNEL To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
HMMRT_KERNEL T atomic_compare_exchange(T* p, T expected, T desired, bool system) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are on 4 or 8 bytes");
  using B = typename bits_of<sizeof(T)>::type;
  B e = bit_copy<B>(expected);
  const B d = bit_copy<B>(desired);
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
  B* at = reinterpret_cast<B*>(translated(p));
  e = system ? atomicCAS_system(at, e, d) : atomicCAS(at, e, d);
#else
  (void)system;
  __atomic_compare_exchange_n(reinterpret_cast<B*>(translated(p)), &e, d, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
#endif
  return bit_copy<T>(e);
}

template <class T>
HMMRT_KERNEL T plain_atomic_load(T* at) {
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
  return *static_cast<volatile T*>(at);
#else
  T v;
  __atomic_load(at, &v, __ATOMIC_ACQUIRE);
  return v;
#endif
}

template <class T, class Op>
HMMRT_KERNEL T atomic_update(T* p, Op op, bool system) {
  for (T seen = plain_atomic_load(translated(p));;) {
    const T before = atomic_compare_exchange(p, seen, op(seen), system);
    using B = typename bits_of<sizeof(T)>::type;
    if (bit_copy<B>(before) == bit_copy<B>(seen)) return before;  // as bits: NaN equals itself
    seen = before;
  }
}
template <class T>
struct op_set {
  T v;
  HMMRT_KERNEL T operator()(T) const { return v; }
};
template <class T>
HMMRT_KERNEL T atomic_load(T* p, bool) {
  return plain_atomic_load(translated<k_read>(p));
}
template <class T>
HMMRT_KERNEL void atomic_store(T* p, T v, bool) {
#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
  *static_cast<volatile T*>(translated(p)) = v;
#else
  __atomic_store(translated(p), &v, __ATOMIC_RELEASE);
#endif
}
template <class T>
HMMRT_KERNEL T atomic_exchange(T* p, T v, bool system) {
  return atomic_update(p, op_set<T>{v}, system);
}
template <class T>
HMMRT_KERNEL T atomic_add(T* p, T v, bool system) {
  return atomic_update(p, op_add<T>{v}, system);
}

}  // namespace hmmrt::detail

#endif  // HMMRT_KERNEL_GPU_HPP
