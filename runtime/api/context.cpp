// SPDX-License-Identifier: MIT
#include "api/context.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "api/log.hpp"
#include "host/kfd/kfd_mirror.hpp"
#include "migrate/claims.hpp"
#include "migrate/coherence.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

namespace {

constexpr unsigned k_home_attempts = 100;  // at destruction, for pages that are busy

}  // namespace

Context::~Context() {
  if (service_ != nullptr) close();
}

void Context::close() {
  // The handle is gone and no call is in progress. Children first: their handles die, their work ends.
  HandleTable& table = HandleTable::instance();
  std::vector<std::uintptr_t> streams, events;
  {
    const std::lock_guard guard(children_lock_);
    streams = stream_handles_;
    events = event_handles_;
  }
  for (const std::uintptr_t handle : streams) {
    std::unique_ptr<Stream> stream;
    if (table.take(handle, &stream).ok()) destroy_stream(std::move(stream));
  }
  for (const std::uintptr_t handle : events) {
    std::unique_ptr<StreamEvent> event;
    if (table.take(handle, &event).ok()) destroy_event(std::move(event));
  }
  wait_unused();

  std::string failed;
  for (unsigned attempt = 0; attempt < k_home_attempts; ++attempt) {
    service_->fence();  // what mremap has moved, perhaps since the last attempt, is known by its new address
    std::vector<std::uintptr_t> registered;
    for_each_range([&](const Range& range) {
      if (range.registered) registered.push_back(range.addr);
    });
    if (registered.empty()) break;
    failed.clear();
    for (const std::uintptr_t addr : registered) {
      const Status s = forget(addr, true);
      if (!s.ok() && s.code() != HMMRT_ERROR_NOT_MANAGED) failed = failure_detail();  // else it has moved just now
    }
  }
  if (!failed.empty()) log::warn("context destroyed with registered memory that cannot come home: " + failed);
  if (heap_ != nullptr) heap_->release_all();
  service_->stop();
  write_trace();
  heap_.reset();
  service_.reset();
  pool_.reset();
  house_.reset();
  devices_.clear();
  host_.reset();
}

// ---- streams and events ---------------------------------------------------------------------------------------------

Status Context::create_stream(unsigned index, std::uintptr_t* handle) {
  Device& on = device(index);
  Queue queue = 0;
  if (const Status s = on.create_queue(&queue); !s.ok()) return s;
  auto stream = std::make_unique<Stream>(*this, on, index, queue);
  Stream* raw = stream.get();
  const std::lock_guard guard(children_lock_);
  streams_.reserve(streams_.size() + 1);
  stream_handles_.reserve(stream_handles_.size() + 1);
  *handle = HandleTable::instance().put(std::move(stream));
  if (*handle == 0) {
    on.destroy_queue(queue);
    return fail(HMMRT_ERROR_OUT_OF_MEMORY, "no room for another handle; destroy streams or events");
  }
  streams_.push_back(raw);
  stream_handles_.push_back(*handle);
  return {};
}

void Context::destroy_stream(std::unique_ptr<Stream> stream) {
  {
    const std::lock_guard guard(children_lock_);
    std::erase(streams_, stream.get());
    std::erase(stream_handles_, stream->handle());
  }
  stream->drain();
  stream->wait_unused();
  stream->drain();  // what the last users enqueued
  stream->device.destroy_queue(stream->queue);
}

Status Context::create_event(std::uintptr_t* handle) {
  auto event = std::make_unique<StreamEvent>(*this);
  const std::lock_guard guard(children_lock_);
  event_handles_.reserve(event_handles_.size() + 1);
  *handle = HandleTable::instance().put(std::move(event));
  if (*handle == 0) return fail(HMMRT_ERROR_OUT_OF_MEMORY, "no room for another handle; destroy streams or events");
  event_handles_.push_back(*handle);
  return {};
}

void Context::destroy_event(std::unique_ptr<StreamEvent> event) {
  {
    const std::lock_guard guard(children_lock_);
    std::erase(event_handles_, event->handle());
  }
  event->wait_unused();
}

void Context::drain_streams() {
  std::vector<Use<Stream>> busy;
  {
    const std::lock_guard guard(children_lock_);
    for (Stream* stream : streams_) {
      if (stream->device.idle(stream->queue)) continue;
      stream->begin_use();
      busy.emplace_back(stream);
    }
  }
  for (const Use<Stream>& stream : busy) stream->drain();
}

Status Context::synchronize() {
  std::vector<Use<Stream>> all;
  {
    const std::lock_guard guard(children_lock_);
    for (Stream* stream : streams_) {
      stream->begin_use();
      all.emplace_back(stream);
    }
  }
  for (const Use<Stream>& stream : all) stream->drain();
  // One error is reported; the others stay with their streams.
  for (const Use<Stream>& stream : all) {
    if (const Status s = stream->synchronize(); !s.ok()) return s;
  }
  return {};
}

bool Context::wait_idle(std::chrono::steady_clock::time_point deadline) {
  constexpr std::uint64_t k_look_again_ns = 500'000;
  for (;;) {
    {
      const std::lock_guard guard(children_lock_);
      const auto idle = [](Stream* stream) { return stream->device.idle(stream->queue); };
      if (std::all_of(streams_.begin(), streams_.end(), idle)) return true;
    }
    if (std::chrono::steady_clock::now() >= deadline) return false;
    const Word never{0};
    park(never, 0, k_look_again_ns);
  }
}

// ---- memory ---------------------------------------------------------------------------------------------------------

std::byte* Context::allocate_arena(std::size_t bytes) {
  std::vector<void*> refused;  // holes that the application unmapped in what is managed
  std::uintptr_t memory = 0;
  for (;;) {
    memory = map_aligned(bytes, PROT_READ | PROT_WRITE);
    if (memory == 0) {
      (void)fail(HMMRT_ERROR_OUT_OF_MEMORY, "mmap of %zu bytes: %s", bytes, strerror(errno));
      break;
    }
    service_->fence_addresses();
    if (!space_.overlaps(memory, bytes)) {
      const Status s = host_->attach(memory, bytes);
      if (s.ok()) break;
      if (s.code() != HMMRT_ERROR_ALREADY_MANAGED) {
        munmap(reinterpret_cast<void*>(memory), bytes);
        memory = 0;
        break;
      }
    }
    refused.push_back(reinterpret_cast<void*>(memory));
  }
  for (void* hole : refused) munmap(hole, bytes);
  return reinterpret_cast<std::byte*>(memory);
}

void Context::release_arena(std::byte* addr, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(addr);
  host_->catch_up_addresses();
  {
    const Claims all(*house_, {{begin, bytes}});
    host_->release(begin, bytes);
  }
  const std::lock_guard guard(rights_lock_);
  rights_seen_.erase(begin);
}

Status Context::manage(std::uintptr_t addr, std::size_t bytes) {
  Range* range = nullptr;
  return hmmrt::manage(*house_, addr, bytes, false, &range);
}

// Forgets the range that starts at `addr` and, if registered, hands its memory back to the application.
Status Context::forget(std::uintptr_t addr, bool bring_home) {
  {
    const std::unique_lock guard(range_lock_);
    Range* range = space_.find_range(addr);
    if (range == nullptr || range->addr != addr) return fail(HMMRT_ERROR_NOT_MANAGED, "%#zx is not managed", addr);
    if (const Status s = hmmrt::unmanage(*house_, *pool_, range, bring_home); !s.ok()) return s;
  }
  if (!bring_home) return {};
  service_->fence();
  const std::lock_guard guard(rights_lock_);
  rights_seen_.erase(addr);
  return {};
}

Status Context::unmanage(std::uintptr_t addr, std::size_t bytes, bool* reusable) {
  service_->fence();
  // What mremap has moved away is no allocation any more; what it has left is one or more ranges.
  std::vector<Extent> ranges;
  const auto take = [&](const Range& range) {
    if (!range.registered && range.addr >= addr && range.end() <= addr + bytes)
      ranges.push_back({range.addr, range.bytes});
  };
  with_range(addr, take);
  const bool whole = !ranges.empty() && ranges.front().bytes == bytes;
  if (!whole) {
    ranges.clear();
    for_each_range(take);
  }
  std::vector<Extent> left;
  for (const Extent& range : ranges) {
    for_each_claimed(range.addr, range.bytes, [&](Block& block, const PageMask& pages) {
      (pages & block.valid).for_each_run([&](unsigned first, unsigned count) {
        append(left, block.base + first * k_page_size, count * k_page_size);
      });
    });
    if (const Status s = forget(range.addr, false); !s.ok()) return s;
  }
  *reusable = false;
  if (left.size() != 1 || left.front() != Extent{addr, bytes}) {
    for (const Extent& e : left) release_arena(reinterpret_cast<std::byte*>(e.addr), e.bytes);
    return {};
  }
  void* memory = reinterpret_cast<void*>(addr);
  // The application may have changed its protection; what is handed out again is ordinary memory, and all there.
  if (mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0 || madvise(memory, bytes, MADV_DONTNEED) != 0) {
    release_arena(static_cast<std::byte*>(memory), bytes);
    return {};
  }
  (void)host_->send(addr, bytes, k_cpu, Wish::managed);  // or a driver would take it for where it was
  service_->fence();
  *reusable = true;
  return {};
}

bool Context::watches(std::uintptr_t addr, std::size_t bytes) {
  const auto overlaps = [&](std::uintptr_t a, std::size_t n) { return a < addr + bytes && addr < a + n; };
  bool found = false;
  for (const auto& [a, n] : heap_->arenas()) found = found || overlaps(a, n);
  for_each_range([&](const Range& range) { found = found || overlaps(range.addr, range.bytes); });
  return found;
}

Status Context::register_memory(std::uintptr_t addr, std::size_t bytes) {
  service_->fence_addresses();  // what was at these addresses before has gone
  const auto others = [&]() -> Status {
    for (const Use<Context>& other : HandleTable::instance().use_all<Context>()) {
      if (other.get() == this || !other->watches(addr, bytes)) continue;
      return fail(HMMRT_ERROR_ALREADY_MANAGED,
                  "[%#zx, +%zu) overlaps memory that another context, %#zx, manages; a page belongs to one context",
                  addr, bytes, other->handle());
    }
    return {};
  };
  if (host_->info().driven) {  // which would let both have it
    if (const Status s = others(); !s.ok()) return s;
  }
  if (const Status s = host_->attach(addr, bytes); !s.ok()) {
    if (s.code() != HMMRT_ERROR_BUSY) return s;
    const std::string why = failure_detail();
    if (const Status other = others(); !other.ok()) return other;
    return fail(s.code(), "%s", why.c_str());
  }
  Range* range = nullptr;
  const Status s = hmmrt::manage(*house_, addr, bytes, true, &range);
  if (!s.ok()) {
    const std::string why = failure_detail();
    const Claims all(*house_, {{addr, bytes}});
    host_->detach(addr, bytes);
    return fail(s.code(), "%s", why.c_str());
  }
  return {};
}

Status Context::unregister_memory(std::uintptr_t addr) {
  drain_streams();
  service_->fence();  // an mremap or munmap that has returned has happened
  bool registered = false;
  std::size_t bytes = 0;
  std::uintptr_t begin = 0;
  const bool found = with_range(addr, [&](const Range& r) {
    registered = r.registered;
    bytes = r.bytes;
    begin = r.addr;
  });
  if (!found) return fail(HMMRT_ERROR_NOT_MANAGED, "hmmrt_unregister: %#zx is not registered", addr);
  if (!registered) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_unregister: %#zx was allocated by hmmrt_alloc; use hmmrt_free", addr);
  }
  if (begin != addr) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_unregister: %#zx is inside the registration at %#zx; give its start",
                addr, begin);
  }
  if (const std::uintptr_t page = pinned_page(addr, bytes); page != 0) {
    return fail(HMMRT_ERROR_PINNED, "hmmrt_unregister: the page at %#zx is pinned; unpin it first", page);
  }
  return forget(addr, true);
}

bool Context::find_range(std::uintptr_t addr, std::uintptr_t* begin, std::size_t* bytes) {
  return with_range(addr, [&](const Range& range) {
    *begin = range.addr;
    *bytes = range.bytes;
  });
}

bool Context::registered(std::uintptr_t addr, std::size_t bytes) {
  for (const std::uintptr_t end = addr + bytes; addr < end;) {
    std::uintptr_t next = addr;
    with_range(addr, [&](const Range& range) {
      if (range.registered) next = range.end();
    });
    if (next == addr) return false;
    addr = next;
  }
  return true;
}

void Context::for_each_claimed(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, Block&, const PageMask&),
                               void* arg) {
  space_.for_each_block(addr, bytes, [&](Block& block, const PageMask& pages) {
    block.claim();
    fn(arg, block, pages);
    release(*house_, block);
  });
}

std::uintptr_t Context::pinned_page(std::uintptr_t addr, std::size_t bytes) {
  if (pins_.load(std::memory_order_relaxed) == 0) return 0;
  std::uintptr_t found = 0;
  for_each_claimed(addr, bytes, [&](Block& block, const PageMask& pages) {
    const PageMask pinned = block.pinned & pages & block.valid;
    if (found == 0 && pinned.any()) found = block.base + pinned.next(0) * k_page_size;
  });
  return found;
}

void Context::settle_mappings() {
  if (host_->info().driven) return;  // the driver checks every access
  service_->fence();
  const auto look = [&](std::uintptr_t addr, std::size_t bytes) {
    std::uint64_t seen = 0xcbf29ce484222325u;
    host_->query_rights(
        addr, bytes,
        [](void* h, std::uintptr_t from, std::size_t length, Rights rights) {
          auto& hash = *static_cast<std::uint64_t*>(h);
          for (const std::uint64_t v : {static_cast<std::uint64_t>(from), static_cast<std::uint64_t>(length),
                                        static_cast<std::uint64_t>(rights)}) {
            hash = (hash ^ v) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 29;
          }
        },
        &seen);
    {
      const std::lock_guard guard(rights_lock_);
      const auto [it, fresh] = rights_seen_.try_emplace(addr, seen);
      if (!fresh && it->second == seen) return;
      it->second = seen;
    }
    service_->refresh_rights(addr, bytes);
    space_.note_change();
  };
  for (const auto& [addr, bytes] : heap_->arenas()) look(addr, bytes);
  std::vector<std::pair<std::uintptr_t, std::size_t>> registered;
  for_each_range([&](const Range& range) {
    if (range.registered) registered.emplace_back(range.addr, range.bytes);
  });
  for (const auto& [addr, bytes] : registered) look(addr, bytes);
}

void Context::count_hint(bool effective, const char* what, std::uintptr_t addr, std::size_t bytes) {
  counters_.add(Count::hints);
  with_range(addr, [](Range& range) { range.counters.add(Count::hints); });
  if (effective) return;
  counters_.add(Count::hints_without_effect);
  with_range(addr, [](Range& range) { range.counters.add(Count::hints_without_effect); });
  log_.record({.time_ns = now_ns(),
               .base = addr,
               .pages = static_cast<std::uint32_t>(std::min<std::size_t>(bytes >> k_page_shift, ~0u)),
               .kind = EventKind::hint_ignored});
  if (!log::info_on()) return;
  char text[256];
  std::snprintf(text, sizeof text, "%s of [%#zx, +%zu) had no effect, or not on every page", what, addr, bytes);
  log::info(text);
}

// ---- statistics -----------------------------------------------------------------------------------------------------

std::uint64_t Context::metadata_bytes() {
  std::uint64_t bytes = space_.metadata_bytes() + host_->metadata_bytes() + heap_->metadata_bytes();
  for (const auto& d : devices_) bytes += d->metadata_bytes();
  return bytes;
}

std::uint64_t Context::remote_accesses(unsigned index) {
  return devices_[index]->remote_accesses() - baseline_[index].remote.load(std::memory_order_relaxed);
}

std::uint64_t Context::overflows(unsigned index) {
  return devices_[index]->fault_overflows() - baseline_[index].overflows.load(std::memory_order_relaxed);
}

void Context::driver_reports(std::uint64_t* read, std::uint64_t* lost) {
  if (kfd_ == nullptr) return;
  const kfd::SmiStats s = kfd_->reports();
  *read = s.events - reports_before_.load(std::memory_order_relaxed);
  *lost = s.lost() - lost_before_.load(std::memory_order_relaxed);
}

void Context::reset_stats() {
  if (kfd_ != nullptr) {
    const kfd::SmiStats s = kfd_->reports();
    reports_before_.store(s.events, std::memory_order_relaxed);
    lost_before_.store(s.lost(), std::memory_order_relaxed);
  }
  counters_.reset();
  for (const auto& c : device_counters_) c->reset();
  for_each_range([](Range& range) { range.counters.reset(); });
  service_->latencies().cpu_fault_ns.reset();
  service_->latencies().device_fault_ns.reset();
  service_->latencies().batch_faults.reset();
  service_->latencies().device_service_ns.store(0, std::memory_order_relaxed);
  service_->latencies().device_copy_ns.store(0, std::memory_order_relaxed);
  for (unsigned i = 0; i < device_count(); ++i) {
    baseline_[i].remote.store(devices_[i]->remote_accesses(), std::memory_order_relaxed);
    baseline_[i].overflows.store(devices_[i]->fault_overflows(), std::memory_order_relaxed);
  }
}

// ---- fork and exit --------------------------------------------------------------------------------------------------

void Context::freeze() {
  const std::shared_lock guard(range_lock_);  // freeze() walks the ranges
  service_->freeze();
}

void Context::write_trace() {
  if (settings_.trace_file.empty()) return;
  std::string path = settings_.trace_file;
  for (std::size_t at = path.find("%p"); at != std::string::npos; at = path.find("%p", at + 1)) {
    path.replace(at, 2, std::to_string(getpid()));
  }
  if (!log_.write_file(path.c_str()).ok()) log::warn(failure_detail());
}

}  // namespace hmmrt
