// SPDX-License-Identifier: MIT
// The C entry points about managed memory: allocate, register, prefetch, discard, advise, query, pin.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <vector>

#include "api/context.hpp"
#include "api/convert.hpp"
#include "api/entry.hpp"
#include "migrate/coherence.hpp"
#include "migrate/ready.hpp"
#include "migrate/requests.hpp"

using namespace hmmrt;  // NOLINT(google-build-using-namespace): the C ABI is outside the namespace

Status hmmrt::pages_of(const char* function, Context& c, const void* ptr, std::size_t bytes, Pages* out,
                       bool adopting) {
  const auto addr = reinterpret_cast<std::uintptr_t>(ptr);
  if (ptr == nullptr) return null_argument(function, "ptr");
  if (bytes == 0) return fail(HMMRT_ERROR_INVALID_VALUE, "%s: bytes is 0", function);
  if (addr + bytes < addr || addr + bytes > std::uintptr_t{1} << 63) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "%s: %zu bytes from %#zx overflow the address space", function, bytes, addr);
  }
  c.service().fence();  // an mremap that has returned has happened
  out->addr = page_floor(addr);
  out->bytes = page_ceil(addr + bytes) - out->addr;
  std::uintptr_t begin = 0;
  std::size_t length = 0;
  const bool found = c.find_range(addr, &begin, &length);
  if (!found && adopting && c.host().info().any_pointer) {
    const std::uintptr_t hole = adopt(c.house(), out->addr, out->bytes);
    if (hole == 0) return {};
    return fail(HMMRT_ERROR_NOT_MANAGED, "%s: nothing that may be read is mapped at %#zx, inside [%#zx, +%zu)",
                function, hole, addr, bytes);
  }
  if (!found) {
    return fail(HMMRT_ERROR_NOT_MANAGED,
                "%s: %#zx is not managed memory of this context; allocate it with hmmrt_alloc or "
                "hmmrt_register it",
                function, addr);
  }
  // Adjoining registrations, as mremap may leave them, are as good as one.
  if (addr + bytes > begin + length && !c.registered(out->addr, out->bytes)) {
    return fail(HMMRT_ERROR_NOT_MANAGED, "%s: [%#zx, +%zu) goes %zu bytes past the managed range [%#zx, +%zu)",
                function, addr, bytes, addr + bytes - begin - length, begin, length);
  }
  return {};
}

namespace {

// Null: no stream was given.
Status stream_of(const char* function, hmmrt_stream_t handle, Context& c, Use<Stream>* stream, Use<Context>* owner) {
  if (handle == nullptr) return {};
  if (const Status s = use(handle, stream, owner); !s.ok()) return s;
  if (owner->get() != &c) {
    return fail(HMMRT_ERROR_INVALID_HANDLE, "%s: the stream belongs to another context", function);
  }
  return {};
}

void prefetch_now(Context& c, std::span<const Extent> extents, Processor to) {
  std::uint64_t left = 0;
  {
    const std::shared_lock guard(c.service().departure_lock());
    if (to != k_cpu) (void)bring_within_reach(c.house(), c.pool(), extents, to);  // if not, pages are left
    left = prefetch(c.house(), c.pool(), extents, to, Cause::prefetch_user);
  }
  c.count_hint(left == 0, "prefetch", extents.front().addr, extents.front().bytes);
}

// madvise may not touch what the application unmapped meanwhile, nor take a pinned page's frame.
Status discard_now(Context& c, const Pages& pages) {
  std::vector<Pages> runs;
  std::size_t kept = 0;
  c.for_each_claimed(pages.addr, pages.bytes, [&](Block& block, const PageMask& in_range) {
    kept += (block.pinned & in_range).count();
    ((block.valid - block.pinned) & in_range).for_each_run([&](unsigned first, unsigned count) {
      append(runs, block.base + first * k_page_size, count * k_page_size);
    });
  });
  for (const Pages& run : runs) {
    // ENOMEM: some of it is unmapped meanwhile, and the rest has been dropped.
    if (madvise(reinterpret_cast<void*>(run.addr), run.bytes, MADV_DONTNEED) != 0 && errno != ENOMEM) {
      return fail(HMMRT_ERROR_SYSTEM, "hmmrt_discard: madvise(MADV_DONTNEED) of [%#zx, +%zu): %s", run.addr, run.bytes,
                  std::strerror(errno));
    }
  }
  if (c.host().info().driven) {  // which does not say so
    for (const Pages& run : runs) {
      (void)c.host().send(run.addr, run.bytes, k_cpu, Wish::managed);
      c.for_each_claimed(run.addr, run.bytes, [&](Block& block, const PageMask& in_range) {
        const PageMask dropped = in_range & block.valid;
        take_away_for_good(c.house(), block, dropped);
        block.set_on_cpu(dropped, true);
      });
    }
  }
  c.service().fence();
  c.count_hint(kept == 0, "discard", pages.addr, pages.bytes);
  return {};
}

Status check_grown(const char* function, std::size_t bytes, const void* ptr) {
  const auto addr = reinterpret_cast<std::uintptr_t>(ptr);
  if (bytes == 0) return fail(HMMRT_ERROR_INVALID_VALUE, "%s: bytes is 0", function);
  if (addr % k_page_size != 0) {
    return fail(HMMRT_ERROR_MISALIGNED, "%s: ptr is %#zx; it must be a multiple of 4096", function, addr);
  }
  if (bytes % k_page_size != 0) {
    return fail(HMMRT_ERROR_MISALIGNED, "%s: bytes is %zu; it must be a multiple of 4096", function, bytes);
  }
  if (addr + bytes < addr || addr + bytes > std::uintptr_t{1} << 47) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "%s: %zu bytes from %#zx leave the address space", function, bytes, addr);
  }
  return {};
}

}  // namespace

// ---- allocate and register ------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_alloc(hmmrt_context_t context, size_t bytes, void** ptr) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (ptr == nullptr) return null_argument("hmmrt_alloc", "ptr");
    if (bytes == 0) return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_alloc: bytes is 0");
    if (bytes > SIZE_MAX - k_block_size) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_alloc: %zu bytes overflow when rounded up", bytes);
    }
    void* made = nullptr;
    if (const Status s = c->heap().allocate(bytes, &made); !s.ok()) return s;
    *ptr = made;
    return {};
  });
}

hmmrt_result_t hmmrt_free(hmmrt_context_t context, void* ptr) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (ptr == nullptr) return {};
    const auto addr = reinterpret_cast<std::uintptr_t>(ptr);
    Heap::Freeing freeing;
    if (const Status s = c->heap().begin_free(ptr, &freeing); !s.ok()) {
      bool registered = false;
      c->with_range(addr, [&](const Range& range) { registered = range.registered; });
      if (!registered) return s;
      return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_free: %#zx is registered memory; use hmmrt_unregister", addr);
    }
    c->drain_streams();
    if (const std::uintptr_t page =
            c->pinned_page(page_floor(addr), page_ceil(addr + freeing.bytes) - page_floor(addr));
        page != 0) {
      c->heap().cancel_free(freeing);
      return fail(HMMRT_ERROR_PINNED, "hmmrt_free: the page at %#zx is pinned; unpin it first", page);
    }
    return c->heap().finish_free(freeing);
  });
}

hmmrt_result_t hmmrt_register(hmmrt_context_t context, void* ptr, size_t bytes) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (ptr == nullptr) return null_argument("hmmrt_register", "ptr");
    if (const Status s = check_grown("hmmrt_register", bytes, ptr); !s.ok()) return s;
    const auto addr = reinterpret_cast<std::uintptr_t>(ptr);
    if (c->heap().owns(addr)) {
      return fail(HMMRT_ERROR_ALREADY_MANAGED,
                  "hmmrt_register: %#zx is in memory of hmmrt_alloc; it needs no registration", addr);
    }
    return c->register_memory(addr, bytes);
  });
}

hmmrt_result_t hmmrt_unregister(hmmrt_context_t context, void* ptr) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (ptr == nullptr) return null_argument("hmmrt_unregister", "ptr");
    return c->unregister_memory(reinterpret_cast<std::uintptr_t>(ptr));
  });
}

// ---- hints ----------------------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_prefetch(hmmrt_context_t context, const void* ptr, size_t bytes, hmmrt_location_t location,
                              hmmrt_stream_t stream) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c, owner;
    Use<Stream> on;
    Pages pages;
    Processor to = k_cpu;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (const Status s = pages_of("hmmrt_prefetch", *c, ptr, bytes, &pages); !s.ok()) return s;
    if (const Status s = to_processor("hmmrt_prefetch", *c, location, &to); !s.ok()) return s;
    if (const Status s = stream_of("hmmrt_prefetch", stream, *c, &on, &owner); !s.ok()) return s;
    if (on) return on->enqueue([&ctx = *c, pages, to] { prefetch_now(ctx, {&pages, 1}, to); });
    prefetch_now(*c, {&pages, 1}, to);
    return {};
  });
}

hmmrt_result_t hmmrt_prefetch_batch(hmmrt_context_t context, const void* const* ptrs, const size_t* bytes, size_t count,
                                    const hmmrt_location_t* locations, const size_t* location_index,
                                    size_t location_count, hmmrt_stream_t stream) {
  return entry(__func__, [&]() -> Status {
    constexpr const char* k_name = "hmmrt_prefetch_batch";
    Use<Context> c, owner;
    Use<Stream> on;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (ptrs == nullptr) return null_argument(k_name, "ptrs");
    if (bytes == nullptr) return null_argument(k_name, "bytes");
    if (locations == nullptr) return null_argument(k_name, "locations");
    if (location_index == nullptr) return null_argument(k_name, "location_index");
    if (count == 0) return fail(HMMRT_ERROR_INVALID_VALUE, "%s: count is 0", k_name);
    if (count > (std::size_t{1} << 47) / sizeof *ptrs) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "%s: %zu ranges are more than an address space can list", k_name, count);
    }
    if (location_count == 0 || location_count > count) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "%s: %zu locations for %zu ranges; it takes 1 to as many as ranges",
                  k_name, location_count, count);
    }
    std::vector<Processor> to(location_count);
    for (std::size_t k = 0; k < location_count; ++k) {
      if (const Status s = to_processor(k_name, *c, locations[k], &to[k]); !s.ok()) return s;
      if (k == 0 ? location_index[0] != 0 : location_index[k] <= location_index[k - 1]) {
        return fail(HMMRT_ERROR_INVALID_VALUE, "%s: location_index[%zu] is %zu; indices start at 0 and strictly rise",
                    k_name, k, location_index[k]);
      }
      if (location_index[k] >= count) {
        return fail(HMMRT_ERROR_INVALID_VALUE, "%s: location_index[%zu] is %zu, but there are %zu ranges", k_name, k,
                    location_index[k], count);
      }
    }
    std::vector<Extent> extents(count);
    for (std::size_t i = 0; i < count; ++i) {
      if (const Status s = pages_of(k_name, *c, ptrs[i], bytes[i], &extents[i]); !s.ok()) return s;
    }
    std::vector<std::size_t> ends(location_index + 1, location_index + location_count);
    ends.push_back(count);
    if (const Status s = stream_of(k_name, stream, *c, &on, &owner); !s.ok()) return s;
    auto run = [&ctx = *c, extents = std::move(extents), ends = std::move(ends), to = std::move(to)] {
      for (std::size_t k = 0, first = 0; k < to.size(); first = ends[k++]) {
        prefetch_now(ctx, std::span(extents).subspan(first, ends[k] - first), to[k]);
      }
    };
    if (on) return on->enqueue(std::move(run));
    run();
    return {};
  });
}

hmmrt_result_t hmmrt_discard(hmmrt_context_t context, const void* ptr, size_t bytes, hmmrt_stream_t stream) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c, owner;
    Use<Stream> on;
    Pages pages;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (const Status s = pages_of("hmmrt_discard", *c, ptr, bytes, &pages, false); !s.ok()) return s;
    if (const Status s = stream_of("hmmrt_discard", stream, *c, &on, &owner); !s.ok()) return s;
    // Only pages that are wholly covered.
    const auto addr = reinterpret_cast<std::uintptr_t>(ptr);
    const std::uintptr_t first = page_ceil(addr);
    const std::uintptr_t end = page_floor(addr + bytes);
    if (first >= end) {
      c->count_hint(false, "discard", pages.addr, pages.bytes);
      return {};
    }
    pages = {first, end - first};
    if (!on) return discard_now(*c, pages);
    return on->enqueue([&ctx = *c, &st = *on, pages] {
      if (const Status s = discard_now(ctx, pages); !s.ok()) st.keep_error(s.code(), failure_detail());
    });
  });
}

hmmrt_result_t hmmrt_advise(hmmrt_context_t context, const void* ptr, size_t bytes, hmmrt_advice_t advice,
                            hmmrt_location_t location) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    Pages pages;
    Processor p = k_cpu;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (advice < HMMRT_ADVISE_SET_READ_MOSTLY || advice > HMMRT_ADVISE_UNSET_ACCESSED_BY) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_advise: there is no advice %d; it takes 1..6",
                  static_cast<int>(advice));
    }
    if (const Status s = pages_of("hmmrt_advise", *c, ptr, bytes, &pages); !s.ok()) return s;
    if (advice == HMMRT_ADVISE_SET_PREFERRED_LOCATION || advice == HMMRT_ADVISE_SET_ACCESSED_BY ||
        advice == HMMRT_ADVISE_UNSET_ACCESSED_BY) {
      if (const Status s = to_processor("hmmrt_advise", *c, location, &p); !s.ok()) return s;
    }
    bool changed = false;
    {
      const std::shared_lock guard(c->service().departure_lock());
      changed = advise(c->house(), pages.addr, pages.bytes, advice, p);
    }
    // Advice that this platform cannot act on is no better than advice that changes nothing.
    const bool possible = advice != HMMRT_ADVISE_SET_READ_MOSTLY || c->host().info().write_protect;
    c->count_hint(changed && possible, "advice", pages.addr, pages.bytes);
    return {};
  });
}

// ---- questions ------------------------------------------------------------------------------------------------------

namespace {

// The one value of all pages, or k_no_processor.
class Common {
 public:
  void see(Processor p) {
    mixed_ |= seen_ && p != value_;
    seen_ = true;
    value_ = p;
  }
  Processor value() const { return mixed_ || !seen_ ? k_no_processor : value_; }

 private:
  bool seen_ = false, mixed_ = false;
  Processor value_ = k_no_processor;
};

std::int32_t read_mostly(Context& c, const Pages& pages) {
  bool all = true;
  c.for_each_claimed(pages.addr, pages.bytes, [&](Block& b, const PageMask& m) {
    all = all && b.advice != nullptr && b.advice->read_mostly.contains(m & b.valid);
  });
  return all ? 1 : 0;
}

hmmrt_location_t common_location(Context& c, const Pages& pages,
                                 std::array<std::uint8_t, k_block_pages> BlockAdvice::*member) {
  Common common;
  c.for_each_claimed(pages.addr, pages.bytes, [&](Block& b, const PageMask& m) {
    if (b.advice == nullptr) return common.see(k_no_processor);
    (m & b.valid).for_each([&](unsigned page) { common.see((b.advice->*member)[page]); });
  });
  return to_location(common.value());
}

ProcessorSet accessed_by(Context& c, const Pages& pages) {
  auto all = static_cast<ProcessorSet>(~0u);
  c.for_each_claimed(pages.addr, pages.bytes, [&](Block& b, const PageMask& m) {
    if (b.advice == nullptr) {
      all = 0;
      return;
    }
    (m & b.valid).for_each([&](unsigned page) { all &= b.advice->accessed_by[page]; });
  });
  return all;
}

}  // namespace

hmmrt_result_t hmmrt_range_get_attribute(hmmrt_context_t context, void* data, size_t data_bytes,
                                         hmmrt_range_attribute_t attribute, const void* ptr, size_t bytes) {
  return entry(__func__, [&]() -> Status {
    constexpr const char* k_name = "hmmrt_range_get_attribute";
    Use<Context> c;
    Pages pages;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (data == nullptr) return null_argument(k_name, "data");
    const bool list = attribute == HMMRT_RANGE_ACCESSED_BY;
    if (list ? data_bytes == 0 || data_bytes % sizeof(std::int32_t) != 0 : data_bytes != sizeof(std::int32_t)) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "%s: data_bytes is %zu; attribute %d takes %s", k_name, data_bytes,
                  static_cast<int>(attribute), list ? "a multiple of 4" : "4");
    }
    if (const Status s = pages_of(k_name, *c, ptr, bytes, &pages); !s.ok()) return s;
    std::int32_t value = HMMRT_INVALID_LOCATION;
    switch (attribute) {
      case HMMRT_RANGE_READ_MOSTLY:
        value = read_mostly(*c, pages);
        break;
      case HMMRT_RANGE_PREFERRED_LOCATION:
        value = common_location(*c, pages, &BlockAdvice::preferred);
        break;
      case HMMRT_RANGE_LAST_PREFETCH_LOCATION:
        value = common_location(*c, pages, &BlockAdvice::last_prefetch);
        break;
      case HMMRT_RANGE_RESIDENCY:
        value = to_location(residency(c->house(), pages.addr, pages.bytes));
        break;
      case HMMRT_RANGE_ACCESSED_BY: {
        const ProcessorSet set = accessed_by(*c, pages);
        auto* out = static_cast<unsigned char*>(data);
        std::size_t left = data_bytes / sizeof value;
        for (Processor p = 0; p <= c->device_count() && left != 0; ++p) {
          if ((set & set_of(p)) == 0) continue;
          value = to_location(p);
          std::memcpy(out, &value, sizeof value);
          out += sizeof value;
          --left;
        }
        value = HMMRT_INVALID_LOCATION;
        for (; left != 0; --left, out += sizeof value) std::memcpy(out, &value, sizeof value);
        return {};
      }
      default:
        return fail(HMMRT_ERROR_INVALID_VALUE, "%s: there is no attribute %d; there are 1..4 and 100", k_name,
                    static_cast<int>(attribute));
    }
    std::memcpy(data, &value, sizeof value);
    return {};
  });
}

hmmrt_result_t hmmrt_pin(hmmrt_context_t context, void* ptr, size_t bytes) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    Pages pages;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (const Status s = pages_of("hmmrt_pin", *c, ptr, bytes, &pages); !s.ok()) return s;
    c->note_pin();
    return pin(c->house(), c->pool(), pages.addr, pages.bytes);
  });
}

hmmrt_result_t hmmrt_unpin(hmmrt_context_t context, void* ptr, size_t bytes) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    Pages pages;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (const Status s = pages_of("hmmrt_unpin", *c, ptr, bytes, &pages); !s.ok()) return s;
    return unpin(c->house(), pages.addr, pages.bytes);
  });
}
