// SPDX-License-Identifier: MIT
// The C entry points about statistics.
#include "api/context.hpp"
#include "api/convert.hpp"
#include "api/entry.hpp"

using namespace hmmrt;  // NOLINT(google-build-using-namespace): the C ABI is outside the namespace

namespace {

static_assert(HMMRT_CAUSE_COUNT == k_causes);

void fill(const Counters& from, hmmrt_stats_t* to) {
  const auto get = [&](Count c) { return from.get(c); };
  to->size = sizeof *to;
#define HMMRT_COPY(name) to->name = get(Count::name)
  HMMRT_COPY(cpu_faults);
  HMMRT_COPY(cpu_write_protect_faults);
  HMMRT_COPY(device_faults);
  HMMRT_COPY(fault_batches);
  HMMRT_COPY(duplicate_faults);
  HMMRT_COPY(stale_faults);
  HMMRT_COPY(cancelled_faults);
  HMMRT_COPY(pages_to_device);
  HMMRT_COPY(pages_to_host);
  HMMRT_COPY(pages_peer);
  HMMRT_COPY(pages_duplicated);
  HMMRT_COPY(duplicates_collapsed);
  HMMRT_COPY(pages_left_clean);
  HMMRT_COPY(pages_mapped_remote);
  HMMRT_COPY(evictions);
  HMMRT_COPY(pages_evicted);
  HMMRT_COPY(refaults);
  HMMRT_COPY(ping_pong_detections);
  HMMRT_COPY(throttles);
  HMMRT_COPY(pins);
  HMMRT_COPY(unpins);
  HMMRT_COPY(exclusive_grants);
  HMMRT_COPY(exclusive_revokes);
  HMMRT_COPY(pages_busy);
  HMMRT_COPY(pages_pinned);
  HMMRT_COPY(pages_gone);
  HMMRT_COPY(pages_forbidden);
  HMMRT_COPY(invalidations);
  HMMRT_COPY(spurious_invalidations);
  HMMRT_COPY(retries);
  HMMRT_COPY(hints);
  HMMRT_COPY(hints_without_effect);
  HMMRT_COPY(attribute_changes);
  HMMRT_COPY(attribute_changes_refused);
  HMMRT_COPY(attribute_changes_limited);
#undef HMMRT_COPY
  for (unsigned i = 0; i < k_causes; ++i) {
    const auto cause = static_cast<Cause>(i);
    to->bytes_to_device_by_cause[i] = from.bytes(Way::to_device, cause);
    to->bytes_to_host_by_cause[i] = from.bytes(Way::to_host, cause);
    to->bytes_peer_by_cause[i] = from.bytes(Way::peer, cause);
  }
}

hmmrt_latency_t latency(const Histogram& h) {
  return {h.count(), h.percentile(50), h.percentile(90), h.percentile(99), h.max()};
}

std::uint64_t resident_bytes(const Device& d) { return d.info().memory_bytes - d.free_frame_count() * k_page_size; }

}  // namespace

hmmrt_result_t hmmrt_stats_context(hmmrt_context_t context, hmmrt_stats_t* stats) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (stats == nullptr) return null_argument("hmmrt_stats_context", "stats");
    c->service().wait_counted();
    hmmrt_stats_t out{};
    fill(c->counters(), &out);
    for (unsigned i = 0; i < c->device_count(); ++i) {
      out.remote_accesses += c->remote_accesses(i);
      out.fault_buffer_overflows += c->overflows(i);
      out.bytes_resident_device += resident_bytes(c->device(i));
    }
    out.bytes_managed = c->space().managed_bytes();
    out.bytes_metadata = c->metadata_bytes();
    c->driver_reports(&out.driver_reports, &out.driver_reports_lost);
    const FaultLatencies& l = c->service().latencies();
    out.cpu_fault_latency = latency(l.cpu_fault_ns);
    out.device_fault_latency = latency(l.device_fault_ns);
    out.batch_size = latency(l.batch_faults);
    out.device_service_ns = l.device_service_ns.load(std::memory_order_relaxed);
    out.device_copy_ns = l.device_copy_ns.load(std::memory_order_relaxed);
    return write_struct("hmmrt_stats_context", out, stats);
  });
}

hmmrt_result_t hmmrt_stats_device(hmmrt_context_t context, uint32_t device, hmmrt_stats_t* stats) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (stats == nullptr) return null_argument("hmmrt_stats_device", "stats");
    if (const Status s = check_device("hmmrt_stats_device", *c, device); !s.ok()) return s;
    c->service().wait_counted();
    hmmrt_stats_t out{};
    fill(c->device_counters(device), &out);
    out.remote_accesses = c->remote_accesses(device);
    out.fault_buffer_overflows = c->overflows(device);
    out.bytes_resident_device = resident_bytes(c->device(device));
    out.bytes_managed = c->space().managed_bytes();
    out.bytes_metadata = c->device(device).metadata_bytes();
    return write_struct("hmmrt_stats_device", out, stats);
  });
}

hmmrt_result_t hmmrt_stats_range(hmmrt_context_t context, const void* ptr, hmmrt_stats_t* stats) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (ptr == nullptr) return null_argument("hmmrt_stats_range", "ptr");
    if (stats == nullptr) return null_argument("hmmrt_stats_range", "stats");
    const auto addr = reinterpret_cast<std::uintptr_t>(ptr);
    c->service().wait_counted();
    hmmrt_stats_t out{};
    std::uintptr_t begin = 0;
    const bool found = c->with_range(addr, [&](const Range& range) {
      fill(range.counters, &out);
      begin = range.addr;
      out.bytes_managed = range.bytes;
    });
    if (!found) {
      return fail(HMMRT_ERROR_NOT_MANAGED, "hmmrt_stats_range: %#zx is not managed memory of this context", addr);
    }
    std::uint64_t pages = 0;
    c->for_each_claimed(begin, out.bytes_managed, [&](Block& block, const PageMask& in_range) {
      for (const DevicePart* part : block.parts) {
        if (part != nullptr) pages += (part->resident & in_range).count();
      }
    });
    out.bytes_resident_device = pages * k_page_size;
    return write_struct("hmmrt_stats_range", out, stats);
  });
}

hmmrt_result_t hmmrt_stats_reset(hmmrt_context_t context) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    c->reset_stats();
    return {};
  });
}
