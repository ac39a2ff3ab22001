// SPDX-License-Identifier: MIT
// Kernels in single-source C++17: a functor over a grid whose accesses to managed memory go through gptr<T>.
//
//   struct Scale {
//     hmmrt::gptr<double> x; double a;
//     HMMRT_KERNEL void operator()(const hmmrt::item& i) const { x[i.x] *= a; }
//   };
//   hmmrt::launch(stream, "scale", {n, 1, 1}, Scale{x, 2.0});
//
// What lives here: item, gptr<T> and its reference proxy, with_spans() for bulk access at memory speed, atomics with a
// scope, launch(). Each access is translated by the software GPU that runs the kernel (kernel_detail.hpp), and is a plain
// access outside a kernel, so that CPU code may use the same types. A file that hipcc or nvcc compiles has code for real
// GPUs besides, in which an access is a plain one, a constant away; its kernels run on either.
//
// Rules for kernels on the software GPU
//   - Reach managed memory only through these accessors; a raw pointer into it bypasses translation.
//   - A launch that fails ends its waves by an exception of a private type thrown from an accessor: destructors run;
//     do not swallow it with catch (...) and do not access managed memory in a noexcept function.
//   - A wave keeps its thread but not its turn: no thread_local state, locks or blocking calls across an access.
//   - A wave that spins on an access lets others run every few milliseconds; one that computes without access does not.
//   - About 60 KiB of stack per wave; more ends the process. No call into hmmrt.h. An exception that a kernel lets out
//     fails its launch (HMMRT_ERROR_EXCEPTION).
// Memory order: plain accesses are relaxed; atomics are acquire-release. Everything a launch did is visible to who
// synchronises with its stream.
#ifndef HMMRT_KERNEL_HPP
#define HMMRT_KERNEL_HPP

#include <hmmrt/hmmrt.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define HMMRT_GPU_SOURCE 1
#ifdef __HIPCC__
#include <hip/hip_runtime.h>
#endif
#define HMMRT_KERNEL __host__ __device__
#else
#define HMMRT_KERNEL
#endif

#include <hmmrt/kernel_detail.hpp>

namespace hmmrt {

// One work item: its place in the grid.
struct item {
  std::uint64_t x, y, z;
  hmmrt_grid_t grid;
  // Position in the linearised grid, x fastest.
  HMMRT_KERNEL std::uint64_t linear() const { return (z * grid.y + y) * grid.x + x; }
};

// Who an atomic is atomic to: waves of this device, or every processor.
enum class scope { device, system };

template <class T>
class gptr;

// What *p is: reads convert to T, assignment writes. Trivial to copy; keep it only as long as the expression.
template <class T>
class gref {
 public:
  using value_type = std::remove_cv_t<T>;
  HMMRT_KERNEL explicit gref(T* p) : p_(p) {}
  gref(const gref&) = default;

  HMMRT_KERNEL operator value_type() const { return detail::load(p_); }  // NOLINT(google-explicit-constructor)
  HMMRT_KERNEL value_type load() const { return detail::load(p_); }
  HMMRT_KERNEL const gref& operator=(const value_type& v) const {
    detail::store(p_, v);
    return *this;
  }
  // Of itself too: it reads, then writes.
  HMMRT_KERNEL const gref& operator=(const gref& o) const {  // NOLINT(bugprone-unhandled-self-assignment)
    return *this = o.load();
  }
  HMMRT_KERNEL gptr<T> operator&() const { return gptr<T>(p_); }

  template <class U>
  HMMRT_KERNEL const gref& operator+=(const U& v) const {
    return set(load() + v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator-=(const U& v) const {
    return set(load() - v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator*=(const U& v) const {
    return set(load() * v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator/=(const U& v) const {
    return set(load() / v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator%=(const U& v) const {
    return set(load() % v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator&=(const U& v) const {
    return set(load() & v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator|=(const U& v) const {
    return set(load() | v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator^=(const U& v) const {
    return set(load() ^ v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator<<=(const U& v) const {
    return set(load() << v);
  }
  template <class U>
  HMMRT_KERNEL const gref& operator>>=(const U& v) const {
    return set(load() >> v);
  }
  HMMRT_KERNEL const gref& operator++() const { return set(load() + 1); }
  HMMRT_KERNEL const gref& operator--() const { return set(load() - 1); }
  HMMRT_KERNEL value_type operator++(int) const {
    const value_type v = load();
    set(v + 1);
    return v;
  }
  HMMRT_KERNEL value_type operator--(int) const {
    const value_type v = load();
    set(v - 1);
    return v;
  }

 private:
  template <class U>
  HMMRT_KERNEL const gref& set(const U& v) const {
    detail::store(p_, static_cast<value_type>(v));
    return *this;
  }
  T* p_;
};

// A pointer into managed memory: the size and bits of T*, so managed structures may hold either. From T* implicitly;
// to T* only by get() or a cast, because dereferencing a raw pointer in a kernel bypasses translation.
// Cost of an access on the software GPU: a few nanoseconds where the unit has the translation, some ten where only the
// page table has it, a fault (microseconds and up; other waves run meanwhile) where that has none.
template <class T>
class gptr {
 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;

  gptr() = default;
  HMMRT_KERNEL gptr(T* p) : p_(p) {}                  // NOLINT(google-explicit-constructor)
  HMMRT_KERNEL gptr(std::nullptr_t) : p_(nullptr) {}  // NOLINT(google-explicit-constructor)
  template <class U, class = std::enable_if_t<std::is_convertible<U*, T*>::value && !std::is_same<U, T>::value>>
  HMMRT_KERNEL gptr(const gptr<U>& o) : p_(o.get()) {}  // NOLINT(google-explicit-constructor)

  HMMRT_KERNEL T* get() const { return p_; }
  HMMRT_KERNEL explicit operator T*() const { return p_; }
  HMMRT_KERNEL explicit operator bool() const { return p_ != nullptr; }

  HMMRT_KERNEL gref<T> operator*() const { return gref<T>(p_); }
  HMMRT_KERNEL gref<T> operator[](std::ptrdiff_t i) const { return gref<T>(p_ + i); }
  // Read access to the members of a loaded copy; to write one, or to read one of many, use member().
  HMMRT_KERNEL detail::loaded<value_type> operator->() const { return {detail::load(p_)}; }
  // Pointer to a member: p.member(&Node::next). An array member gives a pointer to its first element.
  template <class M, class C, class = std::enable_if_t<!std::is_array<M>::value>>
  HMMRT_KERNEL gptr<std::conditional_t<std::is_const<T>::value, const M, M>> member(M C::*m) const {
    return {&(p_->*m)};
  }
  template <class M, std::size_t N, class C>
  HMMRT_KERNEL gptr<std::conditional_t<std::is_const<T>::value, const M, M>> member(M (C::*m)[N]) const {
    return {&(p_->*m)[0]};
  }

  HMMRT_KERNEL gptr& operator+=(std::ptrdiff_t n) { return p_ += n, *this; }
  HMMRT_KERNEL gptr& operator-=(std::ptrdiff_t n) { return p_ -= n, *this; }
  HMMRT_KERNEL gptr& operator++() { return ++p_, *this; }
  HMMRT_KERNEL gptr& operator--() { return --p_, *this; }
  HMMRT_KERNEL gptr operator++(int) { return {p_++}; }
  HMMRT_KERNEL gptr operator--(int) { return {p_--}; }
  HMMRT_KERNEL friend gptr operator+(gptr p, std::ptrdiff_t n) { return {p.p_ + n}; }
  HMMRT_KERNEL friend gptr operator+(std::ptrdiff_t n, gptr p) { return {p.p_ + n}; }
  HMMRT_KERNEL friend gptr operator-(gptr p, std::ptrdiff_t n) { return {p.p_ - n}; }
  HMMRT_KERNEL friend std::ptrdiff_t operator-(gptr a, gptr b) { return a.p_ - b.p_; }
  HMMRT_KERNEL friend bool operator==(gptr a, gptr b) { return a.p_ == b.p_; }
  HMMRT_KERNEL friend bool operator!=(gptr a, gptr b) { return a.p_ != b.p_; }
  HMMRT_KERNEL friend bool operator<(gptr a, gptr b) { return a.p_ < b.p_; }
  HMMRT_KERNEL friend bool operator<=(gptr a, gptr b) { return a.p_ <= b.p_; }
  HMMRT_KERNEL friend bool operator>(gptr a, gptr b) { return a.p_ > b.p_; }
  HMMRT_KERNEL friend bool operator>=(gptr a, gptr b) { return a.p_ >= b.p_; }

 private:
  T* p_;
};
static_assert(sizeof(gptr<int>) == sizeof(int*) && std::is_trivially_copyable<gptr<int>>::value, "a pointer's size");

// ---- bulk access ----------------------------------------------------------------------------------------------------

// Operands of with_spans: `n` elements from `p`, to be read, overwritten, or both.
template <class T>
HMMRT_KERNEL detail::span_argument<const std::remove_cv_t<T>, detail::k_read> read(gptr<T> p, std::size_t n) {
  return {p.get(), n};
}
template <class T>
HMMRT_KERNEL detail::span_argument<T, detail::k_write> write(gptr<T> p, std::size_t n) {
  return {p.get(), n};
}
template <class T>
HMMRT_KERNEL detail::span_argument<T, detail::k_write> read_write(gptr<T> p, std::size_t n) {
  return {p.get(), n};
}

// Calls fn(a, b, ..., offset, count) with raw pointers to elements [offset, offset + count) of every operand, over and
// over until all elements were visited in order. Operands have equal lengths, elements of at most 4 KiB, and may
// overlap as they do in memory; there are at most 8. `fn` is short (it delays page-table changes), makes no access of
// its own (that fails the launch) and does not keep the pointers. Elements that straddle two frames are visited through
// a copy, one at a time. Cost: some 10 ns per operand and chunk of up to 64 KiB, otherwise memory speed.
template <class Fn, class... Args>
HMMRT_KERNEL void with_spans(Fn&& fn, const Args&... args) {
  static_assert(sizeof...(Args) >= 1 && sizeof...(Args) <= detail::k_max_operands, "one to eight operands");
  detail::visit_spans(fn, args...);
}

// ---- atomics --------------------------------------------------------------------------------------------------------
// On naturally aligned integers of 4 or 8 bytes (fetch_add and fetch_sub: float and double too). Each returns the
// value before. With scope::system on a device whose atomics do not reach host memory, the page is first brought here.
// Cost: as an access. Counterparts: atomicAdd and its kin; with scope::system atomicAdd_system.

template <class T>
HMMRT_KERNEL T atomic_load(gptr<T> p, scope s = scope::device) {
  return detail::atomic_load(p.get(), s == scope::system);
}
template <class T>
HMMRT_KERNEL void atomic_store(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  detail::atomic_store(p.get(), v, s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_exchange(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_exchange(p.get(), v, s == scope::system);
}
// Writes `desired` if *p == expected. Returns the value before, as CUDA's atomicCAS: equal to `expected` on success.
template <class T>
HMMRT_KERNEL T atomic_compare_exchange(gptr<T> p, detail::same<T> expected, detail::same<T> desired,
                                       scope s = scope::device) {
  return detail::atomic_compare_exchange(p.get(), expected, desired, s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_fetch_add(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_add(p.get(), v, s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_fetch_sub(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_add(p.get(), static_cast<T>(T{} - v), s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_fetch_and(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_update(p.get(), detail::op_and<T>{v}, s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_fetch_or(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_update(p.get(), detail::op_or<T>{v}, s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_fetch_xor(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_update(p.get(), detail::op_xor<T>{v}, s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_fetch_min(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_update(p.get(), detail::op_min<T>{v}, s == scope::system);
}
template <class T>
HMMRT_KERNEL T atomic_fetch_max(gptr<T> p, detail::same<T> v, scope s = scope::device) {
  return detail::atomic_update(p.get(), detail::op_max<T>{v}, s == scope::system);
}

// ---- launch ---------------------------------------------------------------------------------------------------------

namespace detail {
// What hmmrt_kernel_t::run is for a functor: calls it for items [first, first + count).
template <class F>
void run_items(const void* functor, const hmmrt_grid_t* grid, std::uint64_t first, std::uint64_t count) {
  const F& f = *static_cast<const F*>(functor);
  item i{first % grid->x, first / grid->x % grid->y, first / grid->x / grid->y, *grid};
  for (; count != 0; --count) {
    f(static_cast<const item&>(i));
    if (++i.x == grid->x) {
      i.x = 0;
      if (++i.y == grid->y) i.y = 0, ++i.z;
    }
  }
}
}  // namespace detail

#if defined(HMMRT_GPU_SOURCE)
}  // namespace hmmrt
#include <hmmrt/kernel_launch.hpp>
namespace hmmrt {
#elif defined(HMMRT_STANDIN_KERNELS)
}  // namespace hmmrt
#include HMMRT_STANDIN_KERNELS
namespace hmmrt {
#else
namespace detail {
template <class F>
constexpr int (*run_gpu)(const void*, const hmmrt_grid_t*, std::ptrdiff_t, void*) = nullptr;
}
#endif

// Enqueues f(item) for every item of `grid`. `f` is copied: trivially copyable, at most 4096 bytes, with
// `void operator()(const item&) const`. Errors, thread safety and cost: those of hmmrt_launch; HMMRT_ERROR_NOT_SUPPORTED
// when this header does not match the library, or the stream's device is a GPU and a host compiler compiled this file.
// `extents` (`extent_count` of them): what it may touch, see hmmrt_stream_attach. (hipLaunchKernelGGL)
template <class F>
hmmrt_result_t launch(hmmrt_stream_t stream, const char* name, hmmrt_grid_t grid, const F& f,
                      const hmmrt_extent_t* extents = nullptr, std::size_t extent_count = 0) {
  static_assert(std::is_trivially_copyable<F>::value, "a kernel functor is copied to the device byte by byte");
  static_assert(sizeof(F) <= 4096, "a kernel functor has at most 4096 bytes");
#if !defined(HMMRT_STANDIN_KERNELS) && !defined(__HIP_DEVICE_COMPILE__) && !defined(__CUDA_ARCH__)
  if (hmmrt_detail_abi() != detail::k_abi) return HMMRT_ERROR_NOT_SUPPORTED;
#endif
  hmmrt_kernel_t kernel{};
  kernel.size = sizeof kernel;
  kernel.name = name;
  kernel.run = &detail::run_items<F>;
  kernel.functor = &f;
  kernel.functor_bytes = sizeof(F);
  kernel.run_gpu = detail::run_gpu<F>;
  kernel.extents = extents;
  kernel.extent_count = extent_count;
  return hmmrt_launch(stream, &kernel, grid);
}

}  // namespace hmmrt

#endif  // HMMRT_KERNEL_HPP
