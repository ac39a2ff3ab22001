// SPDX-License-Identifier: MIT
// kernel.hpp's accessors on a real GPU: plain pointers, the hardware translates. Not for users; included by
// kernel_detail.hpp under nvcc and hipcc only.
#ifndef HMMRT_KERNEL_GPU_HPP
#define HMMRT_KERNEL_GPU_HPP

namespace hmmrt::detail {

template <class T>
HMMRT_KERNEL std::remove_cv_t<T> load(T* p) {
  return *p;
}
template <class T>
HMMRT_KERNEL void store(T* p, const T& v) {
  *p = v;
}

template <class Fn, class... Args>
HMMRT_KERNEL void visit_spans(Fn& fn, const Args&... args) {
  const std::size_t lengths[] = {args.n...};
  fn(args.p..., std::size_t{0}, lengths[0]);
}

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
  e = system ? atomicCAS_system(reinterpret_cast<B*>(p), e, d) : atomicCAS(reinterpret_cast<B*>(p), e, d);
#else
  (void)system;
  __atomic_compare_exchange_n(reinterpret_cast<B*>(p), &e, d, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
#endif
  return bit_copy<T>(e);
}

template <class T, class Op>
HMMRT_KERNEL T atomic_update(T* p, Op op, bool system) {
  for (T seen = *static_cast<volatile T*>(p);;) {
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
  return *static_cast<volatile T*>(p);
}
template <class T>
HMMRT_KERNEL void atomic_store(T* p, T v, bool) {
  *static_cast<volatile T*>(p) = v;
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
