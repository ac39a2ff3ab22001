// SPDX-License-Identifier: MIT
// The C entry points about streams, events and launches.
#include <cstddef>
#include <exception>
#include <string>

#include "api/context.hpp"
#include "api/convert.hpp"
#include "api/entry.hpp"

using namespace hmmrt;  // NOLINT(google-build-using-namespace): the C ABI is outside the namespace

namespace {

constexpr std::size_t k_largest_functor = 4096;
constexpr std::size_t k_most_extents = 4096;

// The device calls run(functor, grid, ...) with its own Grid: the same three words, by the same pointer.
static_assert(sizeof(hmmrt_grid_t) == sizeof(Grid) && offsetof(hmmrt_grid_t, x) == offsetof(Grid, x) &&
              offsetof(hmmrt_grid_t, y) == offsetof(Grid, y) && offsetof(hmmrt_grid_t, z) == offsetof(Grid, z));
using DeviceRun = decltype(Launch::run);

Status check_kernel(const hmmrt_kernel_t& k, const hmmrt_grid_t& grid) {
  constexpr const char* k_name = "hmmrt_launch";
  if (k.name == nullptr) return null_argument(k_name, "kernel->name");
  if (k.run == nullptr) return null_argument(k_name, "kernel->run");
  if (k.functor_bytes > k_largest_functor) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "%s: kernel '%.63s' has a functor of %zu bytes; at most %zu are copied",
                k_name, k.name, k.functor_bytes, k_largest_functor);
  }
  if (k.functor == nullptr && k.functor_bytes != 0) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "%s: kernel '%.63s' has a functor of %zu bytes at null", k_name, k.name,
                k.functor_bytes);
  }
  std::uint64_t items = 0;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || __builtin_mul_overflow(grid.x, grid.y, &items) ||
      __builtin_mul_overflow(items, grid.z, &items) || items >> 63 != 0) {
    return fail(HMMRT_ERROR_INVALID_VALUE,
                "%s: kernel '%.63s' has grid %llu x %llu x %llu; extents are above 0 and their "
                "product fits 63 bits",
                k_name, k.name, static_cast<unsigned long long>(grid.x), static_cast<unsigned long long>(grid.y),
                static_cast<unsigned long long>(grid.z));
  }
  return {};
}

// The kernel's extents as whole pages.
Status declared_extents(const hmmrt_kernel_t& k, Context& c, std::vector<Extent>* out) {
  if (k.extent_count == 0) return {};
  if (k.extent_count > k_most_extents) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_launch: kernel '%.63s' has %zu extents; at most %zu are taken",
                k.name, k.extent_count, k_most_extents);
  }
  if (k.extents == nullptr) return null_argument("hmmrt_launch", "kernel->extents");
  for (std::size_t i = 0; i < k.extent_count; ++i) {
    Extent pages;
    if (const Status s = pages_of("hmmrt_launch", c, k.extents[i].ptr, k.extents[i].bytes, &pages); !s.ok()) return s;
    out->push_back(pages);
  }
  return {};
}

void trace_launch(Context& c, Stream& s, EventKind kind) {
  if (!c.event_log().on()) return;
  (void)s.enqueue([&c, kind, p = device_processor(s.device_index), handle = s.handle()] {
    c.event_log().record({.time_ns = c.now_ns(), .a = handle, .kind = kind, .processor = p, .peer = p});
  });
}

}  // namespace

// ---- streams --------------------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_stream_create(hmmrt_context_t context, uint32_t device, hmmrt_stream_t* stream) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (stream == nullptr) return null_argument("hmmrt_stream_create", "stream");
    if (const Status s = check_device("hmmrt_stream_create", *c, device); !s.ok()) return s;
    std::uintptr_t handle = 0;
    if (const Status s = c->create_stream(device, &handle); !s.ok()) return s;
    *stream = to_handle<hmmrt_stream_t>(handle);
    return {};
  });
}

hmmrt_result_t hmmrt_stream_destroy(hmmrt_stream_t stream) {
  return entry(__func__, [&]() -> Status {
    std::unique_ptr<Stream> taken;
    Use<Context> owner;
    const Status s =
        HandleTable::instance().take(from_handle(stream), &taken, [&](Stream& st) { return use_owner(st, &owner); });
    if (!s.ok()) return s;
    owner->destroy_stream(std::move(taken));
    return {};
  });
}

hmmrt_result_t hmmrt_stream_synchronize(hmmrt_stream_t stream) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner;
    Use<Stream> st;
    if (const Status s = use(stream, &st, &owner); !s.ok()) return s;
    return st->synchronize();
  });
}

hmmrt_result_t hmmrt_stream_query(hmmrt_stream_t stream) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner;
    Use<Stream> st;
    if (const Status s = use(stream, &st, &owner); !s.ok()) return s;
    if (st->device.idle(st->queue)) return {};
    return fail(HMMRT_ERROR_NOT_READY, "hmmrt_stream_query: the stream has work that is not finished");
  });
}

hmmrt_result_t hmmrt_stream_wait_event(hmmrt_stream_t stream, hmmrt_event_t event) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner, event_owner;
    Use<Stream> st;
    Use<StreamEvent> ev;
    if (const Status s = use(stream, &st, &owner); !s.ok()) return s;
    if (const Status s = use(event, &ev, &event_owner); !s.ok()) return s;
    const std::shared_ptr<EventRecord> record = ev->latest();
    if (record == nullptr || record->finished()) return {};
    return st->enqueue([record] { record->wait(); });
  });
}

hmmrt_result_t hmmrt_stream_host_function(hmmrt_stream_t stream, void (*fn)(void*), void* arg) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner;
    Use<Stream> st;
    if (const Status s = use(stream, &st, &owner); !s.ok()) return s;
    if (fn == nullptr) return null_argument("hmmrt_stream_host_function", "fn");
    return st->enqueue([fn, arg, &s = *st] {
      t_in_host_function = true;
      try {
        fn(arg);
      } catch (const std::exception& e) {
        s.keep_error(HMMRT_ERROR_EXCEPTION, std::string("a host function threw an exception: ") + e.what());
      } catch (...) {
        s.keep_error(HMMRT_ERROR_EXCEPTION, "a host function threw an exception that is not a std::exception");
      }
      t_in_host_function = false;
    });
  });
}

hmmrt_result_t hmmrt_stream_attach(hmmrt_stream_t stream, const void* ptr, size_t bytes) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner;
    Use<Stream> st;
    if (const Status s = use(stream, &st, &owner); !s.ok()) return s;
    if (ptr == nullptr && bytes == 0) {
      st->attach_nothing();
      return {};
    }
    Extent pages;
    if (const Status s = pages_of("hmmrt_stream_attach", *owner, ptr, bytes, &pages); !s.ok()) return s;
    st->attach(pages);
    return {};
  });
}

// ---- events ---------------------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_event_create(hmmrt_context_t context, hmmrt_event_t* event) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (event == nullptr) return null_argument("hmmrt_event_create", "event");
    std::uintptr_t handle = 0;
    if (const Status s = c->create_event(&handle); !s.ok()) return s;
    *event = to_handle<hmmrt_event_t>(handle);
    return {};
  });
}

hmmrt_result_t hmmrt_event_destroy(hmmrt_event_t event) {
  return entry(__func__, [&]() -> Status {
    std::unique_ptr<StreamEvent> taken;
    Use<Context> owner;
    const Status s =
        HandleTable::instance().take(from_handle(event), &taken, [&](StreamEvent& e) { return use_owner(e, &owner); });
    if (!s.ok()) return s;
    owner->destroy_event(std::move(taken));
    return {};
  });
}

hmmrt_result_t hmmrt_event_record(hmmrt_event_t event, hmmrt_stream_t stream) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner, event_owner;
    Use<Stream> st;
    Use<StreamEvent> ev;
    if (const Status s = use(event, &ev, &event_owner); !s.ok()) return s;
    if (const Status s = use(stream, &st, &owner); !s.ok()) return s;
    if (owner.get() != event_owner.get()) {
      return fail(HMMRT_ERROR_INVALID_HANDLE, "hmmrt_event_record: event and stream belong to different contexts");
    }
    auto record = std::make_shared<EventRecord>();
    if (const Status s = st->enqueue([record, &c = *owner] { record->finish(c.now_ns()); }); !s.ok()) return s;
    ev->set_latest(std::move(record));
    return {};
  });
}

hmmrt_result_t hmmrt_event_synchronize(hmmrt_event_t event) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner;
    std::shared_ptr<EventRecord> record;
    {
      Use<StreamEvent> ev;
      if (const Status s = use(event, &ev, &owner); !s.ok()) return s;
      record = ev->latest();
    }
    if (record != nullptr) record->wait();
    return {};
  });
}

hmmrt_result_t hmmrt_event_query(hmmrt_event_t event) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner;
    Use<StreamEvent> ev;
    if (const Status s = use(event, &ev, &owner); !s.ok()) return s;
    const std::shared_ptr<EventRecord> record = ev->latest();
    if (record == nullptr || record->finished()) return {};
    return fail(HMMRT_ERROR_NOT_READY, "hmmrt_event_query: the event has been recorded and not been reached");
  });
}

hmmrt_result_t hmmrt_event_elapsed(hmmrt_event_t start, hmmrt_event_t stop, float* milliseconds) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner, other;
    Use<StreamEvent> first, last;
    if (const Status s = use(start, &first, &owner); !s.ok()) return s;
    if (const Status s = use(stop, &last, &other); !s.ok()) return s;
    if (milliseconds == nullptr) return null_argument("hmmrt_event_elapsed", "milliseconds");
    const std::shared_ptr<EventRecord> from = first->latest();
    const std::shared_ptr<EventRecord> to = last->latest();
    if (from == nullptr || to == nullptr) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_event_elapsed: the %s event was never recorded",
                  from == nullptr ? "start" : "stop");
    }
    if (!from->finished() || !to->finished()) {
      return fail(HMMRT_ERROR_NOT_READY,
                  "hmmrt_event_elapsed: the %s event has not been reached; synchronize with it first",
                  from->finished() ? "stop" : "start");
    }
    *milliseconds = static_cast<float>((static_cast<double>(to->time_ns) - static_cast<double>(from->time_ns)) / 1e6);
    return {};
  });
}

// ---- launches -------------------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_launch(hmmrt_stream_t stream, const hmmrt_kernel_t* kernel, hmmrt_grid_t grid) {
  return entry(__func__, [&]() -> Status {
    Use<Context> owner;
    Use<Stream> st;
    if (const Status s = use(stream, &st, &owner); !s.ok()) return s;
    if (kernel == nullptr) return null_argument("hmmrt_launch", "kernel");
    hmmrt_kernel_t k;
    if (const Status s = read_struct("hmmrt_launch", kernel, offsetof(hmmrt_kernel_t, run_gpu), &k); !s.ok()) return s;
    if (const Status s = check_kernel(k, grid); !s.ok()) return s;
    std::vector<Extent> declared;
    if (const Status s = declared_extents(k, *owner, &declared); !s.ok()) return s;
    owner->settle_mappings();
    Launch launch;
    launch.name = k.name;
    launch.run = reinterpret_cast<DeviceRun>(reinterpret_cast<void (*)()>(k.run));
    launch.functor = k.functor;
    launch.functor_bytes = k.functor_bytes;
    launch.grid = {grid.x, grid.y, grid.z};
    launch.run_gpu = reinterpret_cast<decltype(launch.run_gpu)>(reinterpret_cast<void (*)()>(k.run_gpu));
    if (!st->device.info().caps.retryable_faults) {
      launch.pages = owner->launch_pages(st->device_index, declared.empty() ? st->attached() : std::move(declared));
    }
    trace_launch(*owner, *st, EventKind::launch_begin);
    const Status s = st->device.launch(st->queue, launch);
    trace_launch(*owner, *st, EventKind::launch_end);
    return s;
  });
}
