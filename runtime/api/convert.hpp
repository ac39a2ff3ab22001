// SPDX-License-Identifier: MIT
// Between the words of the C ABI and those of the house: handles, locations, and the checks that go with them.
#pragma once

#include <cstdint>

#include "api/context.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

template <class Handle>
Handle to_handle(std::uintptr_t value) {
  return reinterpret_cast<Handle>(value);
}
template <class Handle>
std::uintptr_t from_handle(Handle handle) {
  return reinterpret_cast<std::uintptr_t>(handle);
}

inline Status use(hmmrt_context_t handle, Use<Context>* out) {
  return HandleTable::instance().use(from_handle(handle), out);
}
// A child's context stays as long as the child is used. Fails once the context is being destroyed, which would
// otherwise wait for ever for those who keep using its children.
template <class Child>
Status use_owner(Child& child, Use<Context>* owner) {
  if (!child.context.try_begin_use()) {
    return fail(HMMRT_ERROR_INVALID_HANDLE, "the context of %s %#zx is being destroyed", kind_name(child.kind()),
                child.handle());
  }
  *owner = Use<Context>(&child.context);
  return {};
}
inline Status use(hmmrt_stream_t handle, Use<Stream>* out, Use<Context>* owner) {
  return HandleTable::instance().use(from_handle(handle), out, [&](Stream& s) { return use_owner(s, owner); });
}
inline Status use(hmmrt_event_t handle, Use<StreamEvent>* out, Use<Context>* owner) {
  return HandleTable::instance().use(from_handle(handle), out, [&](StreamEvent& e) { return use_owner(e, owner); });
}

inline Status check_device(const char* function, const Context& c, std::uint32_t device) {
  if (device < c.device_count()) return {};
  return fail(HMMRT_ERROR_INVALID_DEVICE, "%s: there is no device %u; the context has devices 0..%u", function, device,
              c.device_count() - 1);
}

// Whole pages.
using Pages = Extent;

// [ptr, ptr + bytes), inside one allocation or registration, rounded outwards to pages. Where any pointer will do, inside
// whatever is mapped, if `adopting`.
Status pages_of(const char* function, Context& c, const void* ptr, std::size_t bytes, Pages* out, bool adopting = true);

// A location as a processor.
inline Status to_processor(const char* function, const Context& c, hmmrt_location_t location, Processor* out) {
  if (location == HMMRT_CPU) {
    *out = k_cpu;
    return {};
  }
  if (location < 0 || static_cast<std::uint32_t>(location) >= c.device_count()) {
    return fail(HMMRT_ERROR_INVALID_DEVICE, "%s: location %d; the context has devices 0..%u, and the CPU is -1",
                function, location, c.device_count() - 1);
  }
  *out = device_processor(static_cast<unsigned>(location));
  return {};
}
inline hmmrt_location_t to_location(Processor p) {
  if (p == k_no_processor) return HMMRT_INVALID_LOCATION;
  return p == k_cpu ? HMMRT_CPU : static_cast<hmmrt_location_t>(p) - 1;
}

}  // namespace hmmrt
