// SPDX-License-Identifier: MIT
// kernel.hpp's accessors on the software GPU. Not for users; included by kernel_detail.hpp, whose opening comment says
// what an access is. Outside a kernel (no current unit) every accessor is a plain access.
#ifndef HMMRT_KERNEL_SOFT_HPP
#define HMMRT_KERNEL_SOFT_HPP

#include <tuple>
#include <utility>

namespace hmmrt::detail {

// One translation of a unit's TLB. A tag is the page number plus the unit's `tag`; an entry filled for reading has no
// write_tag, so the first write goes the slow way, which marks the page dirty.
struct tlb_entry {
  std::uint64_t read_tag;
  std::uint64_t write_tag;
  std::uint64_t delta;  // add to the managed address
  std::uint64_t reserved;
};

// The head of a compute unit. Only the unit's own thread writes, except flush_requested.
struct unit {
  std::uint32_t abi;
  std::uint32_t tlb_mask;                      // entries - 1
  std::atomic<std::uint32_t> busy;             // 1: inside an access section
  std::atomic<std::uint32_t> flush_requested;  // raised by quiesce(); differs from flush_seen: the TLB is stale
  std::atomic<std::uint32_t> flush_seen;
  std::uint32_t far;  // 1: memory has no address here; every access is a call
  std::uint64_t tag;  // TLB generation << 36; raising it empties the TLB
  tlb_entry* tlb;
};

// One operand of an open span. `host` is where its elements are; an element that straddles two frames is in `bounce`.
struct span_operand {
  std::uintptr_t addr;  // of the next element
  std::uint32_t element_bytes;
  std::uint32_t kind;
  void* host;
  void* bounce;            // element_bytes of scratch, aligned for the element
  void* tail;              // straddling: where the element's second part is
  std::size_t head_bytes;  // straddling: bytes of the first part; 0: contiguous
  void* head;
};

}  // namespace hmmrt::detail

extern "C" {
// The unit whose wave this thread is running; null outside kernels.
extern HMMRT_API __thread hmmrt::detail::unit* hmmrt_detail_unit __attribute__((tls_model("initial-exec")));
HMMRT_API std::uint32_t hmmrt_detail_abi();
// Opens a section with the page of `addr` translated for `kind`; returns where `addr` is. May let other waves run.
HMMRT_API void* hmmrt_detail_enter(hmmrt::detail::unit* unit, std::uintptr_t addr, std::uint32_t kind);
// Copies between `local` and managed memory that may straddle pages.
HMMRT_API void hmmrt_detail_copy_in(hmmrt::detail::unit* unit, void* local, std::uintptr_t addr, std::size_t bytes);
HMMRT_API void hmmrt_detail_copy_out(hmmrt::detail::unit* unit, const void* local, std::uintptr_t addr,
                                     std::size_t bytes);
// One atomic on far memory, which `system` makes atomic to every processor. Returns the value before.
HMMRT_API std::uint64_t hmmrt_detail_far_compare_exchange(hmmrt::detail::unit* unit, std::uintptr_t addr,
                                                          std::size_t bytes, std::uint64_t expected,
                                                          std::uint64_t desired, bool system);
HMMRT_API std::uint64_t hmmrt_detail_far_add(hmmrt::detail::unit* unit, std::uintptr_t addr, std::size_t bytes,
                                             std::uint64_t value, bool system);
// Opens a section over up to `elements` elements of every operand; returns how many, at least 1.
HMMRT_API std::size_t hmmrt_detail_open_spans(hmmrt::detail::unit* unit, hmmrt::detail::span_operand* operands,
                                              std::size_t count, std::size_t elements);
HMMRT_API void hmmrt_detail_close_spans(hmmrt::detail::unit* unit, hmmrt::detail::span_operand* operands,
                                        std::size_t count);
// Fails the running launch: `text` says what the kernel did wrong at `addr`.
[[noreturn]] HMMRT_API void hmmrt_detail_fail(hmmrt::detail::unit* unit, std::uintptr_t addr, const char* text);
}

namespace hmmrt::detail {

// Closes a section. Release: whoever sees busy == 0 sees the access done.
inline void leave(unit* u) {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  u->busy.store(0, std::memory_order_release);
}

template <std::uint32_t Kind>
inline void* enter(unit* u, std::uintptr_t addr) {
  u->busy.store(1, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const std::uint64_t page = addr >> 12;
  const tlb_entry& e = u->tlb[page & u->tlb_mask];
  // Acquire: seeing a flush request also shows the page-table changes made before it.
  const bool current =
      u->flush_requested.load(std::memory_order_acquire) == u->flush_seen.load(std::memory_order_relaxed);
  const bool hit = (Kind == k_read ? e.read_tag : e.write_tag) == page + u->tag;
  if (__builtin_expect(current && hit, 1)) return reinterpret_cast<void*>(addr + e.delta);
  return hmmrt_detail_enter(u, addr, Kind);
}

// An object of a type as aligned as it is large cannot straddle pages.
template <class T>
inline bool straddles(std::uintptr_t addr) {
  if (alignof(T) == sizeof(T)) return false;
  return (addr & (k_page - 1)) + sizeof(T) > k_page;
}

template <class T>
inline std::remove_cv_t<T> load(T* p) {
  using V = std::remove_cv_t<T>;
  static_assert(std::is_trivially_copyable<V>::value, "managed values are copied byte by byte");
  unit* u = hmmrt_detail_unit;
  if (u == nullptr) return *p;
  alignas(V) unsigned char bytes[sizeof(V)];
  const auto addr = reinterpret_cast<std::uintptr_t>(p);
  if (u->far != 0 || straddles<V>(addr)) {
    hmmrt_detail_copy_in(u, bytes, addr, sizeof(V));
  } else {
    std::memcpy(bytes, enter<k_read>(u, addr), sizeof(V));
    leave(u);
  }
  return *reinterpret_cast<V*>(bytes);
}

template <class T>
inline void store(T* p, const T& v) {
  static_assert(std::is_trivially_copyable<T>::value, "managed values are copied byte by byte");
  unit* u = hmmrt_detail_unit;
  if (u == nullptr) {
    *p = v;
    return;
  }
  const auto addr = reinterpret_cast<std::uintptr_t>(p);
  if (u->far != 0 || straddles<T>(addr)) {
    hmmrt_detail_copy_out(u, &v, addr, sizeof(T));
  } else {
    std::memcpy(enter<k_write>(u, addr), &v, sizeof(T));
    leave(u);
  }
}

// ---- spans ----------------------------------------------------------------------------------------------------------

// Closes the open span also when the visitor throws.
struct span_closer {
  unit* u;
  span_operand* operands;
  std::size_t count;
  ~span_closer() { hmmrt_detail_close_spans(u, operands, count); }
};

template <class Fn, std::size_t... I, class... Args>
inline void visit_spans_indexed(unit* u, Fn& fn, std::index_sequence<I...>, const Args&... args) {
  constexpr std::size_t k = sizeof...(Args);
  const std::size_t lengths[k] = {args.n...};
  for (std::size_t length : lengths) {
    if (length != lengths[0]) {
      const std::uintptr_t addresses[k] = {reinterpret_cast<std::uintptr_t>(args.p)...};
      hmmrt_detail_fail(u, addresses[0], "with_spans() was given operands of different lengths");
    }
  }
  std::tuple<std::aligned_storage_t<sizeof(typename Args::type), alignof(typename Args::type)>...> scratch;
  span_operand operands[k] = {span_operand{reinterpret_cast<std::uintptr_t>(args.p), sizeof(typename Args::type),
                                           Args::kind, nullptr, &std::get<I>(scratch), nullptr, 0, nullptr}...};
  for (std::size_t offset = 0; offset < lengths[0];) {
    const std::size_t n = hmmrt_detail_open_spans(u, operands, k, lengths[0] - offset);
    {
      span_closer closer{u, operands, k};
      fn(static_cast<typename Args::type*>(operands[I].host)..., offset, n);
    }
    offset += n;
    for (span_operand& o : operands) o.addr += n * o.element_bytes;
  }
}

template <class Fn, class... Args>
inline void visit_spans(Fn& fn, const Args&... args) {
  static_assert(((sizeof(typename Args::type) <= k_page) && ...), "span elements have at most 4096 bytes");
  static_assert((std::is_trivially_copyable<std::remove_cv_t<typename Args::type>>::value && ...),
                "managed values are copied byte by byte");
  unit* u = hmmrt_detail_unit;
  if (u == nullptr) {
    const std::size_t lengths[] = {args.n...};
    if (lengths[0] != 0) fn(args.p..., std::size_t{0}, lengths[0]);
    return;
  }
  visit_spans_indexed(u, fn, std::index_sequence_for<Args...>{}, args...);
}

// ---- atomics --------------------------------------------------------------------------------------------------------

template <class T>
inline std::uint64_t to_bits(T v) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof v);
  return bits;
}
template <class T>
inline T from_bits(std::uint64_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// fn on a copy, until nobody came between reading it and writing it back.
template <class T, class Fn>
inline auto with_far_atomic(unit* u, std::uintptr_t addr, bool system, Fn fn) {
  T before;
  hmmrt_detail_copy_in(u, &before, addr, sizeof(T));
  for (;;) {
    T after = before;
    const auto result = fn(&after);
    const std::uint64_t seen =
        hmmrt_detail_far_compare_exchange(u, addr, sizeof(T), to_bits(before), to_bits(after), system);
    if (seen == to_bits(before)) return result;
    before = from_bits<T>(seen);
  }
}

// Runs fn(T*) on the translated, writable address of p.
template <class T, class Fn>
inline auto with_atomic(T* p, bool system, Fn fn) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are on 4 or 8 bytes");
  unit* u = hmmrt_detail_unit;
  if (u == nullptr) return fn(p);
  const auto addr = reinterpret_cast<std::uintptr_t>(p);
  if (addr % sizeof(T) != 0) hmmrt_detail_fail(u, addr, "an atomic needs a naturally aligned address");
  if (u->far != 0) return with_far_atomic<T>(u, addr, system, fn);
  T* host = static_cast<T*>(system ? enter<k_atomic>(u, addr) : enter<k_write>(u, addr));
  const auto result = fn(host);
  leave(u);
  return result;
}

template <class T>
inline T atomic_load(T* p, bool system) {
  using V = std::remove_cv_t<T>;
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are on 4 or 8 bytes");
  (void)system;  // an aligned load is single-copy atomic wherever the page is
  unit* u = hmmrt_detail_unit;
  V v;
  if (u == nullptr) {
    __atomic_load(p, &v, __ATOMIC_ACQUIRE);
    return v;
  }
  const auto addr = reinterpret_cast<std::uintptr_t>(p);
  if (addr % sizeof(T) != 0) hmmrt_detail_fail(u, addr, "an atomic needs a naturally aligned address");
  if (u->far != 0) {
    hmmrt_detail_copy_in(u, &v, addr, sizeof v);
    return v;
  }
  __atomic_load(static_cast<V*>(enter<k_read>(u, addr)), &v, __ATOMIC_ACQUIRE);
  leave(u);
  return v;
}
template <class T>
inline void atomic_store(T* p, T v, bool system) {
  with_atomic(p, system, [&](T* q) { return __atomic_store(q, &v, __ATOMIC_RELEASE), 0; });
}
template <class T>
inline T atomic_exchange(T* p, T v, bool system) {
  return with_atomic(p, system, [&](T* q) {
    T before;
    __atomic_exchange(q, &v, &before, __ATOMIC_ACQ_REL);
    return before;
  });
}
template <class T>
inline T atomic_compare_exchange(T* p, T expected, T desired, bool system) {
  return with_atomic(p, system, [&](T* q) {
    T before = expected;
    __atomic_compare_exchange(q, &before, &desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return before;
  });
}
template <class T, class Op>
inline T atomic_update(T* p, Op op, bool system) {
  return with_atomic(p, system, [&](T* q) {
    T before;
    __atomic_load(q, &before, __ATOMIC_RELAXED);
    for (T after = op(before);
         !__atomic_compare_exchange(q, &before, &after, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);)
      after = op(before);
    return before;
  });
}
template <class T>
inline T atomic_add(T* p, T v, bool system) {
  if constexpr (std::is_integral<T>::value) {
    unit* u = hmmrt_detail_unit;
    const auto addr = reinterpret_cast<std::uintptr_t>(p);
    if (u != nullptr && u->far != 0 && addr % sizeof(T) == 0) {
      return from_bits<T>(hmmrt_detail_far_add(u, addr, sizeof(T), to_bits(v), system));
    }
    return with_atomic(p, system, [&](T* q) { return __atomic_fetch_add(q, v, __ATOMIC_ACQ_REL); });
  } else {
    return atomic_update(p, op_add<T>{v}, system);
  }
}

}  // namespace hmmrt::detail

#endif  // HMMRT_KERNEL_SOFT_HPP
