// SPDX-License-Identifier: MIT
// libhmmrt in C++17: owners over the C ABI (hmmrt.h), header only. Every failure is an hmmrt::error.
//
//   hmmrt::context context({{"policy", "uvm"}, {"devices", "2"}});
//   hmmrt::stream stream(context, 0);
//   hmmrt::managed_buffer<double> x(context, n);                // zero filled; CPU and kernels use the same addresses
//   stream.launch("scale", n, Scale{x.gpu(), 2.0});             // kernel.hpp: how to write Scale
//   stream.synchronize();
//   hmmrt::print_stats(std::cout, context);
//
// What lives here: error, context, stream, event, managed_buffer<T>, managed_allocator<T>, memory_resource (std::pmr),
// print_stats(). Owners move and do not copy; destructors wait for the work of what they own and report nothing.
// A member function is the C function that it calls: what it does, its errors, which are thrown, its cost and its CUDA
// or HIP counterpart are said there. One that takes no stream does its work before it returns.
// Order: a context outlives its streams, events and buffers; one that does not invalidates them (their calls then throw
// HMMRT_ERROR_INVALID_HANDLE, their destructors do nothing).
// Thread: as the C ABI, any; one owner object is not to be moved from while another thread uses it.
#ifndef HMMRT_HMMRT_HPP
#define HMMRT_HMMRT_HPP

#include <hmmrt/hmmrt.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <hmmrt/kernel.hpp>
#include <initializer_list>
#include <limits>
#include <memory_resource>
#include <ostream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace hmmrt {

// The one exception type: a result code and the sentence that belongs to it.
class error : public std::runtime_error {
 public:
  error(hmmrt_result_t code, const std::string& text)
      : std::runtime_error(std::string(hmmrt_result_name(code)) + (text.empty() ? "" : ": ") + text), code_(code) {}
  hmmrt_result_t code() const noexcept { return code_; }

 private:
  hmmrt_result_t code_;
};

// Throws unless `result` is HMMRT_SUCCESS.
inline void check(hmmrt_result_t result) {
  if (result != HMMRT_SUCCESS) throw error(result, hmmrt_last_error_detail());
}

constexpr hmmrt_location_t cpu = HMMRT_CPU;
using location = hmmrt_location_t;  // a device index, or `cpu`

using option = std::pair<std::string, std::string>;  // name and value, as in `hmmrt-info --options`

inline hmmrt_stats_t empty_stats() {
  hmmrt_stats_t stats{};
  stats.size = sizeof stats;
  return stats;
}

// ---- context --------------------------------------------------------------------------------------------------------

class context {
 public:
  context() : context(std::vector<option>{}) {}
  context(std::initializer_list<option> options) : context(std::vector<option>(options)) {}
  explicit context(const std::vector<option>& options) {
    std::vector<hmmrt_option_t> list;
    list.reserve(options.size());
    for (const option& o : options) list.push_back({o.first.c_str(), o.second.c_str()});
    hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
    desc.options = list.data();
    desc.option_count = static_cast<std::uint32_t>(list.size());
    check(hmmrt_context_create(&desc, &handle_));
  }
  ~context() { reset(); }
  context(context&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  context& operator=(context&& o) noexcept {
    if (this != &o) {
      reset();
      handle_ = std::exchange(o.handle_, nullptr);
    }
    return *this;
  }

  hmmrt_context_t get() const noexcept { return handle_; }

  // Waits for every stream; throws the first launch error.
  void synchronize() const { check(hmmrt_context_synchronize(handle_)); }

  std::uint32_t device_count() const {
    std::uint32_t n = 0;
    check(hmmrt_device_count(handle_, &n));
    return n;
  }
  hmmrt_device_info_t device_info(std::uint32_t device) const {
    hmmrt_device_info_t info{};
    info.size = sizeof info;
    check(hmmrt_device_get_info(handle_, device, &info));
    return info;
  }
  hmmrt_context_info_t info() const {
    hmmrt_context_info_t info{};
    info.size = sizeof info;
    check(hmmrt_context_get_info(handle_, &info));
    return info;
  }
  std::string option_value(const char* name) const {
    const char* value = nullptr;
    check(hmmrt_option_get(handle_, name, &value));
    return value;
  }

  void* allocate(std::size_t bytes) const {
    void* p = nullptr;
    check(hmmrt_alloc(handle_, bytes, &p));
    return p;
  }
  void free(void* p) const { check(hmmrt_free(handle_, p)); }
  void register_memory(void* p, std::size_t bytes) const { check(hmmrt_register(handle_, p, bytes)); }
  void unregister_memory(void* p) const { check(hmmrt_unregister(handle_, p)); }

  void prefetch(const void* p, std::size_t bytes, location to, hmmrt_stream_t stream = nullptr) const {
    check(hmmrt_prefetch(handle_, p, bytes, to, stream));
  }
  void discard(const void* p, std::size_t bytes, hmmrt_stream_t stream = nullptr) const {
    check(hmmrt_discard(handle_, p, bytes, stream));
  }
  void advise(const void* p, std::size_t bytes, hmmrt_advice_t advice, location where = cpu) const {
    check(hmmrt_advise(handle_, p, bytes, advice, where));
  }
  void pin(void* p, std::size_t bytes) const { check(hmmrt_pin(handle_, p, bytes)); }
  void unpin(void* p, std::size_t bytes) const { check(hmmrt_unpin(handle_, p, bytes)); }
  // Where [p, p + bytes) is now; HMMRT_INVALID_LOCATION when in several places.
  location residency(const void* p, std::size_t bytes) const {
    location where = HMMRT_INVALID_LOCATION;
    check(hmmrt_range_get_attribute(handle_, &where, sizeof where, HMMRT_RANGE_RESIDENCY, p, bytes));
    return where;
  }

  hmmrt_stats_t stats() const {
    hmmrt_stats_t s = empty_stats();
    check(hmmrt_stats_context(handle_, &s));
    return s;
  }
  hmmrt_stats_t device_stats(std::uint32_t device) const {
    hmmrt_stats_t s = empty_stats();
    check(hmmrt_stats_device(handle_, device, &s));
    return s;
  }
  hmmrt_stats_t range_stats(const void* p) const {
    hmmrt_stats_t s = empty_stats();
    check(hmmrt_stats_range(handle_, p, &s));
    return s;
  }
  void reset_stats() const { check(hmmrt_stats_reset(handle_)); }

 private:
  void reset() noexcept {
    if (handle_ != nullptr) (void)hmmrt_context_destroy(std::exchange(handle_, nullptr));
  }
  hmmrt_context_t handle_ = nullptr;
};

// ---- streams and events ---------------------------------------------------------------------------------------------

class event {
 public:
  explicit event(const context& c) { check(hmmrt_event_create(c.get(), &handle_)); }
  ~event() { reset(); }
  event(event&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  event& operator=(event&& o) noexcept {
    if (this != &o) {
      reset();
      handle_ = std::exchange(o.handle_, nullptr);
    }
    return *this;
  }
  hmmrt_event_t get() const noexcept { return handle_; }

  void synchronize() const { check(hmmrt_event_synchronize(handle_)); }
  bool done() const {
    const hmmrt_result_t result = hmmrt_event_query(handle_);
    if (result == HMMRT_ERROR_NOT_READY) return false;
    check(result);
    return true;
  }
  // Milliseconds from `earlier` to this event; both recorded and done.
  float milliseconds_since(const event& earlier) const {
    float ms = 0;
    check(hmmrt_event_elapsed(earlier.handle_, handle_, &ms));
    return ms;
  }

 private:
  void reset() noexcept {
    if (handle_ != nullptr) (void)hmmrt_event_destroy(std::exchange(handle_, nullptr));
  }
  hmmrt_event_t handle_ = nullptr;
};

class stream {
 public:
  explicit stream(const context& c, std::uint32_t device = 0) { check(hmmrt_stream_create(c.get(), device, &handle_)); }
  ~stream() { reset(); }
  stream(stream&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  stream& operator=(stream&& o) noexcept {
    if (this != &o) {
      reset();
      handle_ = std::exchange(o.handle_, nullptr);
    }
    return *this;
  }
  hmmrt_stream_t get() const noexcept { return handle_; }

  // Enqueues f(item) for every item of the grid.
  template <class F>
  void launch(const char* name, hmmrt_grid_t grid, const F& f) const {
    check(hmmrt::launch(handle_, name, grid, f));
  }
  template <class F>
  void launch(const char* name, std::uint64_t items, const F& f) const {
    launch(name, hmmrt_grid_t{items, 1, 1}, f);
  }
  // Declares what later launches may touch (hmmrt_stream_attach).
  void attach(const void* p, std::size_t bytes) const { check(hmmrt_stream_attach(handle_, p, bytes)); }
  // Waits for the stream's work; throws the first launch error since the last call.
  void synchronize() const { check(hmmrt_stream_synchronize(handle_)); }
  bool done() const {
    const hmmrt_result_t result = hmmrt_stream_query(handle_);
    if (result == HMMRT_ERROR_NOT_READY) return false;
    check(result);
    return true;
  }
  void record(const event& e) const { check(hmmrt_event_record(e.get(), handle_)); }
  void wait(const event& e) const { check(hmmrt_stream_wait_event(handle_, e.get())); }
  void host_function(void (*fn)(void*), void* arg) const { check(hmmrt_stream_host_function(handle_, fn, arg)); }

 private:
  void reset() noexcept {
    if (handle_ != nullptr) (void)hmmrt_stream_destroy(std::exchange(handle_, nullptr));
  }
  hmmrt_stream_t handle_ = nullptr;
};

// As stream::launch; throws. (hmmrt::launch over a hmmrt_stream_t, in kernel.hpp, returns the result code.)
template <class F>
void launch(const stream& s, const char* name, hmmrt_grid_t grid, const F& f) {
  s.launch(name, grid, f);
}

// ---- managed memory -------------------------------------------------------------------------------------------------

// `size` elements of managed memory, all bytes zero: for types whose zero bytes are a value and that need no destructor.
template <class T>
class managed_buffer {
  static_assert(std::is_trivially_copyable<T>::value && std::is_trivially_destructible<T>::value,
                "pages of a managed_buffer move byte by byte; use managed_allocator for other types");
  static_assert(alignof(T) <= 256, "managed memory is 256-byte aligned");

 public:
  using value_type = T;

  managed_buffer() = default;
  managed_buffer(const context& c, std::size_t size) : context_(c.get()), size_(size) {
    if (size == 0) return;
    if (size > std::numeric_limits<std::size_t>::max() / sizeof(T)) {
      throw error(HMMRT_ERROR_INVALID_VALUE, "managed_buffer: " + std::to_string(size) + " elements overflow");
    }
    void* p = nullptr;
    check(hmmrt_alloc(context_, size * sizeof(T), &p));
    data_ = static_cast<T*>(p);
  }
  ~managed_buffer() { reset(); }
  managed_buffer(managed_buffer&& o) noexcept
      : context_(o.context_), data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}
  managed_buffer& operator=(managed_buffer&& o) noexcept {
    if (this != &o) {
      reset();
      context_ = o.context_;
      data_ = std::exchange(o.data_, nullptr);
      size_ = std::exchange(o.size_, 0);
    }
    return *this;
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t bytes() const noexcept { return size_ * sizeof(T); }
  bool empty() const noexcept { return size_ == 0; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  const T* begin() const noexcept { return data_; }
  const T* end() const noexcept { return data_ + size_; }

  // The pointer a kernel takes.
  gptr<T> gpu() noexcept { return gptr<T>(data_); }
  gptr<const T> gpu() const noexcept { return gptr<const T>(data_); }

  // As the functions of the same names, over the whole buffer; nothing for an empty one.
  void prefetch(location to) const {
    if (size_ != 0) check(hmmrt_prefetch(context_, data_, bytes(), to, nullptr));
  }
  void prefetch(location to, const stream& s) const {
    if (size_ != 0) check(hmmrt_prefetch(context_, data_, bytes(), to, s.get()));
  }
  void advise(hmmrt_advice_t advice, location where = cpu) const {
    if (size_ != 0) check(hmmrt_advise(context_, data_, bytes(), advice, where));
  }
  void discard() const {
    if (size_ != 0) check(hmmrt_discard(context_, data_, bytes(), nullptr));
  }
  location residency() const {
    location where = HMMRT_INVALID_LOCATION;
    if (size_ != 0)
      check(hmmrt_range_get_attribute(context_, &where, sizeof where, HMMRT_RANGE_RESIDENCY, data_, bytes()));
    return where;
  }
  hmmrt_stats_t stats() const {
    hmmrt_stats_t s = empty_stats();
    if (size_ != 0) check(hmmrt_stats_range(context_, data_, &s));
    return s;
  }

 private:
  void reset() noexcept {
    if (data_ != nullptr) (void)hmmrt_free(context_, std::exchange(data_, nullptr));
    size_ = 0;
  }
  hmmrt_context_t context_ = nullptr;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

namespace detail {
// The size to ask hmmrt_alloc for so that the block is aligned to `alignment`.
inline std::size_t aligned_size(std::size_t bytes, std::size_t alignment) {
  constexpr std::size_t k_block = std::size_t{2} << 20;
  const std::size_t least = alignment <= 256 ? 1 : alignment <= k_page ? k_page : k_block;
  if (alignment > k_block) {
    throw error(HMMRT_ERROR_MISALIGNED, "managed memory is aligned to 2 MiB at most, not " + std::to_string(alignment));
  }
  return bytes > least ? bytes : least;
}
}  // namespace detail

// For standard containers: std::vector<T, hmmrt::managed_allocator<T>> v(hmmrt::managed_allocator<T>(context)).
// An allocation takes at least 256 bytes; containers of many small nodes do better with a
// std::pmr::unsynchronized_pool_resource over hmmrt::memory_resource.
template <class T>
class managed_allocator {
 public:
  using value_type = T;
  explicit managed_allocator(const context& c) noexcept : context_(c.get()) {}
  explicit managed_allocator(hmmrt_context_t c) noexcept : context_(c) {}
  template <class U>
  managed_allocator(const managed_allocator<U>& o) noexcept
      : context_(o.get()) {}  // NOLINT(google-explicit-constructor)

  T* allocate(std::size_t n) {
    if (n > std::numeric_limits<std::size_t>::max() / sizeof(T)) {
      throw error(HMMRT_ERROR_INVALID_VALUE, "managed_allocator: " + std::to_string(n) + " elements overflow");
    }
    void* p = nullptr;
    check(hmmrt_alloc(context_, detail::aligned_size(n * sizeof(T), alignof(T)), &p));
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t) noexcept { (void)hmmrt_free(context_, p); }
  hmmrt_context_t get() const noexcept { return context_; }
  template <class U>
  friend bool operator==(const managed_allocator& a, const managed_allocator<U>& b) noexcept {
    return a.get() == b.get();
  }
  template <class U>
  friend bool operator!=(const managed_allocator& a, const managed_allocator<U>& b) noexcept {
    return a.get() != b.get();
  }

 private:
  hmmrt_context_t context_;
};

// Managed memory as a std::pmr resource. Thread: any.
class memory_resource : public std::pmr::memory_resource {
 public:
  explicit memory_resource(const context& c) noexcept : context_(c.get()) {}

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    void* p = nullptr;
    check(hmmrt_alloc(context_, detail::aligned_size(bytes, alignment), &p));
    return p;
  }
  void do_deallocate(void* p, std::size_t, std::size_t) override { (void)hmmrt_free(context_, p); }
  bool do_is_equal(const std::pmr::memory_resource& o) const noexcept override {
    const auto* other = dynamic_cast<const memory_resource*>(&o);
    return other != nullptr && other->context_ == context_;
  }
  hmmrt_context_t context_;
};

// ---- statistics -----------------------------------------------------------------------------------------------------

inline std::uint64_t total(const std::uint64_t (&by_cause)[HMMRT_CAUSE_COUNT]) {
  std::uint64_t sum = 0;
  for (const std::uint64_t bytes : by_cause) sum += bytes;
  return sum;
}
inline std::uint64_t bytes_to_device(const hmmrt_stats_t& s) { return total(s.bytes_to_device_by_cause); }
inline std::uint64_t bytes_to_host(const hmmrt_stats_t& s) { return total(s.bytes_to_host_by_cause); }
inline std::uint64_t bytes_peer(const hmmrt_stats_t& s) { return total(s.bytes_peer_by_cause); }

// "4096 B", "64.0 KiB", "1.50 GiB"
inline std::string format_bytes(std::uint64_t bytes) {
  static const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  unsigned unit = 0;
  while (value >= 1024 && unit < 4) value /= 1024, ++unit;
  char text[32];
  if (unit == 0) {
    std::snprintf(text, sizeof text, "%llu B", static_cast<unsigned long long>(bytes));
  } else {
    std::snprintf(text, sizeof text, "%.*f %s", value < 10 ? 2 : 1, value, units[unit]);
  }
  return text;
}
// "850 ns", "6.4 us", "1.2 ms", "3.00 s"
inline std::string format_ns(std::uint64_t ns) {
  char text[32];
  const auto value = static_cast<double>(ns);
  if (ns < 1000) {
    std::snprintf(text, sizeof text, "%llu ns", static_cast<unsigned long long>(ns));
  } else if (ns < 1000000) {
    std::snprintf(text, sizeof text, "%.1f us", value / 1e3);
  } else if (ns < 1000000000) {
    std::snprintf(text, sizeof text, "%.1f ms", value / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%.2f s", value / 1e9);
  }
  return text;
}

namespace detail {

inline void stats_line(std::ostream& out, const char* what, const std::string& text) {
  char label[32];
  std::snprintf(label, sizeof label, "  %-18s", what);
  out << label << text << '\n';
}

// "1024 device, 12 CPU": the nonzero ones; "none" if all are zero.
class listing {
 public:
  listing& add(std::uint64_t n, const char* what) {
    if (n != 0) put(std::to_string(n) + ' ' + what);
    return *this;
  }
  listing& add_bytes(std::uint64_t n, const char* what) {
    if (n != 0) put(format_bytes(n) + ' ' + what);
    return *this;
  }
  std::string text() const { return text_.empty() ? "none" : text_; }

 private:
  void put(const std::string& item) { text_ += (text_.empty() ? "" : ", ") + item; }
  std::string text_;
};

inline std::string by_cause(const std::uint64_t (&bytes)[HMMRT_CAUSE_COUNT]) {
  const std::uint64_t sum = total(bytes);
  if (sum == 0) return "none";
  listing causes;
  for (int i = 0; i < HMMRT_CAUSE_COUNT; ++i)
    causes.add_bytes(bytes[i], hmmrt_cause_name(static_cast<hmmrt_cause_t>(i)));
  return format_bytes(sum) + "  (" + causes.text() + ")";
}

inline std::string latency(const hmmrt_latency_t& l) {
  return "p50 " + format_ns(l.p50_ns) + ", p90 " + format_ns(l.p90_ns) + ", p99 " + format_ns(l.p99_ns) + ", max " +
         format_ns(l.max_ns);
}

}  // namespace detail

// What happened, and why, as a table for people. Lines of which nothing is to be said are left out.
inline void print_stats(std::ostream& out, const hmmrt_stats_t& s, const char* title = "what happened") {
  using detail::listing;
  using detail::stats_line;
  out << title << '\n';
  stats_line(out, "faults",
             listing()
                 .add(s.device_faults, "device")
                 .add(s.cpu_faults, "CPU")
                 .add(s.cpu_write_protect_faults, "CPU write-protect")
                 .text());
  if (s.fault_batches != 0) {
    char mean[64];
    std::snprintf(mean, sizeof mean, "%llu, mean %.1f faults, p90 %llu, max %llu",
                  static_cast<unsigned long long>(s.fault_batches),
                  static_cast<double>(s.device_faults) / static_cast<double>(s.fault_batches),
                  static_cast<unsigned long long>(s.batch_size.p90_ns),
                  static_cast<unsigned long long>(s.batch_size.max_ns));
    stats_line(out, "batches", mean);
  }
  if ((s.duplicate_faults | s.stale_faults | s.cancelled_faults | s.fault_buffer_overflows) != 0) {
    stats_line(out, "of these",
               listing()
                   .add(s.duplicate_faults, "duplicate")
                   .add(s.stale_faults, "stale")
                   .add(s.cancelled_faults, "cancelled")
                   .add(s.fault_buffer_overflows, "dropped by a full buffer")
                   .text());
  }
  stats_line(out, "to devices", detail::by_cause(s.bytes_to_device_by_cause));
  stats_line(out, "to the CPU", detail::by_cause(s.bytes_to_host_by_cause));
  if (bytes_peer(s) != 0) stats_line(out, "between devices", detail::by_cause(s.bytes_peer_by_cause));
  if ((s.pages_duplicated | s.duplicates_collapsed) != 0) {
    stats_line(out, "read-only copies",
               listing()
                   .add(s.pages_duplicated, "pages duplicated")
                   .add(s.duplicates_collapsed, "collapsed by a write")
                   .text());
  }
  if ((s.pages_mapped_remote | s.remote_accesses) != 0) {
    stats_line(out, "remote",
               listing().add(s.pages_mapped_remote, "pages mapped").add(s.remote_accesses, "accesses").text());
  }
  if (s.pages_left_clean != 0) {
    stats_line(out, "clean", listing().add(s.pages_left_clean, "pages left a device without a copy").text());
  }
  if ((s.evictions | s.refaults) != 0) {
    stats_line(out, "evictions",
               listing().add(s.evictions, "blocks").add(s.pages_evicted, "pages").add(s.refaults, "refaulted").text());
  }
  stats_line(out, "ping-pong",
             listing()
                 .add(s.ping_pong_detections, "detected")
                 .add(s.throttles, "throttled")
                 .add(s.pins, "pinned")
                 .add(s.unpins, "released")
                 .text());
  if ((s.exclusive_grants | s.exclusive_revokes) != 0) {
    stats_line(out, "exclusive pages",
               listing().add(s.exclusive_grants, "granted").add(s.exclusive_revokes, "revoked").text());
  }
  if ((s.pages_busy | s.pages_pinned | s.pages_gone | s.pages_forbidden | s.retries) != 0) {
    stats_line(out, "refused pages",
               listing()
                   .add(s.pages_busy, "busy")
                   .add(s.pages_pinned, "pinned")
                   .add(s.pages_gone, "gone")
                   .add(s.pages_forbidden, "forbidden")
                   .add(s.retries, "retried")
                   .text());
  }
  if ((s.invalidations | s.spurious_invalidations) != 0) {
    stats_line(out, "invalidations",
               listing().add(s.invalidations, "real").add(s.spurious_invalidations, "spurious").text());
  }
  if (s.hints != 0) {
    stats_line(out, "hints", listing().add(s.hints, "given").add(s.hints_without_effect, "without effect").text());
  }
  if ((s.attribute_changes | s.attribute_changes_limited | s.driver_reports) != 0) {
    stats_line(out, "driver",
               listing()
                   .add(s.driver_reports, "reports")
                   .add(s.driver_reports_lost, "lost")
                   .add(s.attribute_changes, "attribute changes")
                   .add(s.attribute_changes_refused, "refused")
                   .add(s.attribute_changes_limited, "too many")
                   .text());
  }
  if (s.device_fault_latency.count != 0) stats_line(out, "device fault", detail::latency(s.device_fault_latency));
  if (s.cpu_fault_latency.count != 0) stats_line(out, "CPU fault", detail::latency(s.cpu_fault_latency));
  stats_line(out, "memory",
             listing()
                 .add_bytes(s.bytes_managed, "managed")
                 .add_bytes(s.bytes_resident_device, "on devices")
                 .add_bytes(s.bytes_metadata, "metadata")
                 .text());
}

inline void print_stats(std::ostream& out, const context& c) {
  const hmmrt_context_info_t info = c.info();
  const std::string title =
      std::string("what happened (policy ") + info.policy + ", " + info.host_mirror + " by " + info.host_path + ")";
  print_stats(out, c.stats(), title.c_str());
}

}  // namespace hmmrt

#endif  // HMMRT_HMMRT_HPP
