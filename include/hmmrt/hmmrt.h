/* SPDX-License-Identifier: MIT
 *
 * libhmmrt: one address space shared by the CPU and its GPUs. C ABI.
 *
 * Glossary
 *   managed memory   memory the runtime is responsible for: any pointer into it may be used on every processor
 *   processor        the CPU (HMMRT_CPU) or a device (0, 1, ...)
 *   residency        where a page's valid contents are; whoever touches it elsewhere takes a fault and the runtime
 *                    migrates the page, maps it remotely, or copies it read-only
 *   page, block      4 KiB, the unit of state; 2 MiB, the unit of migration work
 *
 * Conventions
 *   - Every function returns hmmrt_result_t; HMMRT_SUCCESS is 0. On failure nothing has changed, and
 *     hmmrt_last_error_detail() says, for the calling thread, what was wrong and what would be right.
 *   - Every function is safe to call from any thread, on any handles, unless its comment says otherwise. Destroying a
 *     handle while another thread uses it is reported (HMMRT_ERROR_INVALID_HANDLE), not undefined.
 *   - Structs whose first member is `size` are versioned: set it to sizeof the struct (the _INIT macros do). Members
 *     beyond a smaller size take their defaults; nonzero members beyond what this library knows are an error.
 *   - No function may be called from inside a kernel.
 */
#ifndef HMMRT_HMMRT_H
#define HMMRT_HMMRT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define HMMRT_API __attribute__((visibility("default")))
#else
#define HMMRT_API
#endif

/* In C++ an enumeration of a fixed type may hold any int, so that a wrong value is an error code and not undefined. */
#if defined(__cplusplus)
#define HMMRT_ENUM : int
#else
#define HMMRT_ENUM
#endif

#define HMMRT_VERSION_MAJOR 0
#define HMMRT_VERSION_MINOR 1
#define HMMRT_VERSION_PATCH 0

/* ---- results ---------------------------------------------------------------------------------------------------- */

typedef enum hmmrt_result HMMRT_ENUM {
  HMMRT_SUCCESS = 0,
  HMMRT_ERROR_INVALID_VALUE = 1,    /* an argument is null, zero, out of range, or overflows */
  HMMRT_ERROR_INVALID_HANDLE = 2,   /* not a live context, stream, event or range of this library */
  HMMRT_ERROR_INVALID_DEVICE = 3,   /* no such device in this context */
  HMMRT_ERROR_INVALID_OPTION = 4,   /* no option of that name, or a value outside its range */
  HMMRT_ERROR_NOT_MANAGED = 5,      /* the address is not (wholly) managed memory */
  HMMRT_ERROR_ALREADY_MANAGED = 6,  /* registering memory that is managed already */
  HMMRT_ERROR_MISALIGNED = 7,       /* address or size is not a multiple of what is required */
  HMMRT_ERROR_NOT_ANONYMOUS = 8,    /* registering memory that is not a private anonymous mapping */
  HMMRT_ERROR_OUT_OF_MEMORY = 9,    /* system memory or address space */
  HMMRT_ERROR_DEVICE_FULL = 10,     /* no device memory left and nothing may be evicted or mapped remotely */
  HMMRT_ERROR_BUSY = 11,            /* in use by a launch or by another call: try again after synchronizing */
  HMMRT_ERROR_PINNED = 12,          /* the pages are pinned */
  HMMRT_ERROR_ILLEGAL_ADDRESS = 13, /* a kernel touched unmanaged memory */
  HMMRT_ERROR_ACCESS_DENIED = 14,   /* a kernel needed rights that the CPU's mapping does not give */
  HMMRT_ERROR_NOT_READY = 15,       /* query: work is still running */
  HMMRT_ERROR_NOT_SUPPORTED = 16,   /* this platform, device or kernel cannot do it */
  HMMRT_ERROR_FORKED = 17,          /* the handle belongs to the parent process */
  HMMRT_ERROR_IN_KERNEL = 18,       /* API called from inside a kernel */
  HMMRT_ERROR_SYSTEM = 19,          /* the operating system refused; the detail text names the call and errno */
  HMMRT_ERROR_INTERNAL = 20         /* a bug in this library */
} hmmrt_result_t;

/* The enumerator's name ("HMMRT_ERROR_PINNED"); "HMMRT_ERROR_UNKNOWN" for other values. Static string. */
HMMRT_API const char* hmmrt_result_name(hmmrt_result_t result);
/* What the calling thread's latest failure was about, as a sentence; "" if none. Valid until its next failure. */
HMMRT_API const char* hmmrt_last_error_detail(void);
/* Library version as major * 10000 + minor * 100 + patch. */
HMMRT_API uint32_t hmmrt_version(void);

/* ---- handles and locations ---------------------------------------------------------------------------------------- */

typedef struct hmmrt_context_s* hmmrt_context_t;
typedef struct hmmrt_stream_s* hmmrt_stream_t;
typedef struct hmmrt_event_s* hmmrt_event_t;

/* A location is a device index (0, 1, ...) or one of these. Values as in HIP: hipCpuDeviceId, hipInvalidDeviceId. */
typedef int32_t hmmrt_location_t;
#define HMMRT_CPU ((hmmrt_location_t)-1)
#define HMMRT_INVALID_LOCATION ((hmmrt_location_t)-2)

/* ---- options ------------------------------------------------------------------------------------------------------ */

/* Options come, later ones winning, from: the table's default; the environment (HMMRT_POLICY=uvm); the context
 * description. An unknown name or a value out of range is an error, wherever it comes from. */
typedef struct hmmrt_option {
  const char* name;  /* "policy" */
  const char* value; /* "uvm" */
} hmmrt_option_t;

typedef struct hmmrt_option_info {
  size_t size;
  const char* name;
  const char* environment; /* "HMMRT_POLICY" */
  const char* default_value;
  const char* range; /* for people: "first_touch_4k|...", "0..1000000", "bytes, 2M..1T" */
  const char* doc;
} hmmrt_option_info_t;

HMMRT_API uint32_t hmmrt_option_count(void);
HMMRT_API hmmrt_result_t hmmrt_option_get_info(uint32_t index, hmmrt_option_info_t* info);
/* The value in force in a context, as text. The string lives as long as the context. */
HMMRT_API hmmrt_result_t hmmrt_option_get(hmmrt_context_t context, const char* name, const char** value);

/* ---- contexts ----------------------------------------------------------------------------------------------------- */

typedef struct hmmrt_context_desc {
  size_t size;
  const hmmrt_option_t* options;
  uint32_t option_count;
} hmmrt_context_desc_t;
#define HMMRT_CONTEXT_DESC_INIT \
  { sizeof(hmmrt_context_desc_t), NULL, 0 }

/* Creates a context: finds devices, starts the host mirror and the fault service. `desc` may be null.
 * Cost: milliseconds, a few threads. Counterpart: none in HIP (implicit); a CUDA context. */
HMMRT_API hmmrt_result_t hmmrt_context_create(const hmmrt_context_desc_t* desc, hmmrt_context_t* context);
/* Waits for all work, brings registered memory home, frees managed memory and destroys every stream and event of the
 * context. Managed pointers are invalid afterwards. */
HMMRT_API hmmrt_result_t hmmrt_context_destroy(hmmrt_context_t context);
/* Waits for every stream. Returns the first launch error, like hmmrt_stream_synchronize. (hipDeviceSynchronize) */
HMMRT_API hmmrt_result_t hmmrt_context_synchronize(hmmrt_context_t context);

typedef struct hmmrt_context_info {
  size_t size;
  char policy[32];
  char host_mirror[32]; /* "uffd" */
  char host_path[160];  /* "move", or "fallback: why" */
  char host_note[512];  /* what is missing on this machine and what it costs; "" when nothing */
  uint32_t device_count;
  uint32_t kernel_faults; /* 1: system calls given device-resident buffers work */
  uint32_t write_protect; /* 1: read-only duplicates possible */
  uint32_t move;          /* 1: UFFDIO_MOVE in use */
  uint64_t page_bytes, block_bytes;
} hmmrt_context_info_t;
HMMRT_API hmmrt_result_t hmmrt_context_get_info(hmmrt_context_t context, hmmrt_context_info_t* info);

/* ---- devices ------------------------------------------------------------------------------------------------------ */

#define HMMRT_DEVICE_RETRYABLE_FAULTS (1u << 0)
#define HMMRT_DEVICE_REMOTE_MAPPING (1u << 1)
#define HMMRT_DEVICE_ACCESS_COUNTERS (1u << 2)
#define HMMRT_DEVICE_COHERENT (1u << 3)
#define HMMRT_DEVICE_SYSTEM_ATOMICS (1u << 4)
#define HMMRT_DEVICE_PEER (1u << 5)

typedef struct hmmrt_device_info {
  size_t size;
  char name[64];
  char description[128];
  uint32_t capabilities; /* HMMRT_DEVICE_* */
  uint32_t compute_units;
  uint32_t wave_size;
  uint32_t fault_buffer_entries;
  uint64_t memory_bytes;
  uint64_t memory_free_bytes; /* free now; managed memory can always evict */
} hmmrt_device_info_t;

HMMRT_API hmmrt_result_t hmmrt_device_count(hmmrt_context_t context, uint32_t* count);
HMMRT_API hmmrt_result_t hmmrt_device_get_info(hmmrt_context_t context, uint32_t device, hmmrt_device_info_t* info);

/* ---- managed memory ----------------------------------------------------------------------------------------------- */

/* Allocates managed memory, zero filled, 256-byte aligned at least (2 MiB aligned from 2 MiB up). `bytes` > 0.
 * Cost: microseconds; no page is touched. Counterpart: hipMallocManaged, cudaMallocManaged. */
HMMRT_API hmmrt_result_t hmmrt_alloc(hmmrt_context_t context, size_t bytes, void** ptr);
/* Frees what hmmrt_alloc returned; null is allowed. Waits for launches already enqueued. (hipFree) */
HMMRT_API hmmrt_result_t hmmrt_free(hmmrt_context_t context, void* ptr);

/* Makes an existing private anonymous mapping managed: `ptr` and `bytes` page aligned. The application keeps owning the
 * mapping and may still munmap, mremap or madvise it. Counterpart: system-allocated memory under HMM; hipHostRegister. */
HMMRT_API hmmrt_result_t hmmrt_register(hmmrt_context_t context, void* ptr, size_t bytes);
/* Brings every page home and forgets the range; `ptr` must be what was registered. */
HMMRT_API hmmrt_result_t hmmrt_unregister(hmmrt_context_t context, void* ptr);

/* Moves [ptr, ptr + bytes) to `location`, in stream order; `stream` null: now, in the calling thread, returning when
 * done. Rounded outwards to pages. Pages that cannot move (pinned, device full of pinned pages) are left and counted
 * in hints_without_effect. Counterpart: hipMemPrefetchAsync, cudaMemPrefetchAsync. */
HMMRT_API hmmrt_result_t hmmrt_prefetch(hmmrt_context_t context, const void* ptr, size_t bytes,
                                        hmmrt_location_t location, hmmrt_stream_t stream);
/* Many ranges at once. location_index[k] is the first range that goes to locations[k]; it starts at 0 and strictly
 * rises. Counterpart: cudaMemPrefetchBatchAsync. */
HMMRT_API hmmrt_result_t hmmrt_prefetch_batch(hmmrt_context_t context, const void* const* ptrs, const size_t* bytes,
                                              size_t count, const hmmrt_location_t* locations,
                                              const size_t* location_index, size_t location_count,
                                              hmmrt_stream_t stream);
/* The contents are no longer needed: wholly covered pages read as undefined (here: zero) until written or prefetched,
 * and move nowhere. Counterpart: cudaMemDiscardBatchAsync. */
HMMRT_API hmmrt_result_t hmmrt_discard(hmmrt_context_t context, const void* ptr, size_t bytes, hmmrt_stream_t stream);

/* Values as hipMemoryAdvise. */
typedef enum hmmrt_advice HMMRT_ENUM {
  HMMRT_ADVISE_SET_READ_MOSTLY = 1,
  HMMRT_ADVISE_UNSET_READ_MOSTLY = 2,
  HMMRT_ADVISE_SET_PREFERRED_LOCATION = 3,
  HMMRT_ADVISE_UNSET_PREFERRED_LOCATION = 4,
  HMMRT_ADVISE_SET_ACCESSED_BY = 5,
  HMMRT_ADVISE_UNSET_ACCESSED_BY = 6
} hmmrt_advice_t;
/* Advice applies to whole pages. `location` is ignored by (UN)SET_READ_MOSTLY and UNSET_PREFERRED_LOCATION.
 * Counterpart: hipMemAdvise, cudaMemAdvise. */
HMMRT_API hmmrt_result_t hmmrt_advise(hmmrt_context_t context, const void* ptr, size_t bytes, hmmrt_advice_t advice,
                                      hmmrt_location_t location);

/* Values as hipMemRangeAttribute. */
typedef enum hmmrt_range_attribute HMMRT_ENUM {
  HMMRT_RANGE_READ_MOSTLY = 1,            /* int32: 1 when every page is */
  HMMRT_RANGE_PREFERRED_LOCATION = 2,     /* int32 location; -2 when none or mixed */
  HMMRT_RANGE_ACCESSED_BY = 3,            /* int32 array of locations, padded with -2 */
  HMMRT_RANGE_LAST_PREFETCH_LOCATION = 4, /* int32 location; -2 when none or mixed */
  HMMRT_RANGE_RESIDENCY = 100             /* int32 location now; -2 when mixed. hmmrt only */
} hmmrt_range_attribute_t;
/* `data_bytes` is 4, or for ACCESSED_BY any multiple of 4. Counterpart: hipMemRangeGetAttribute. */
HMMRT_API hmmrt_result_t hmmrt_range_get_attribute(hmmrt_context_t context, void* data, size_t data_bytes,
                                                   hmmrt_range_attribute_t attribute, const void* ptr, size_t bytes);

/* Brings pages home and holds them in system memory until as many unpins; devices map them remotely. For I/O, RDMA and
 * other long-term users of the physical page. Counterpart: cudaHostRegister on managed memory; FOLL_LONGTERM. */
HMMRT_API hmmrt_result_t hmmrt_pin(hmmrt_context_t context, void* ptr, size_t bytes);
HMMRT_API hmmrt_result_t hmmrt_unpin(hmmrt_context_t context, void* ptr, size_t bytes);

/* ---- streams, events, launches ------------------------------------------------------------------------------------ */

HMMRT_API hmmrt_result_t hmmrt_stream_create(hmmrt_context_t context, uint32_t device, hmmrt_stream_t* stream);
/* Waits for the stream's work first. */
HMMRT_API hmmrt_result_t hmmrt_stream_destroy(hmmrt_stream_t stream);
/* Waits until the stream is empty. Reports, once, the first launch that failed since the last call: its result, and in
 * the detail text the kernel, address and access. The context stays usable. (hipStreamSynchronize) */
HMMRT_API hmmrt_result_t hmmrt_stream_synchronize(hmmrt_stream_t stream);
/* HMMRT_SUCCESS when empty, HMMRT_ERROR_NOT_READY otherwise. (hipStreamQuery) */
HMMRT_API hmmrt_result_t hmmrt_stream_query(hmmrt_stream_t stream);
/* Later work of `stream` waits for the event's latest record. (hipStreamWaitEvent) */
HMMRT_API hmmrt_result_t hmmrt_stream_wait_event(hmmrt_stream_t stream, hmmrt_event_t event);
/* Runs fn(arg) on a host thread in stream order; it must not call this library. (hipLaunchHostFunc) */
HMMRT_API hmmrt_result_t hmmrt_stream_host_function(hmmrt_stream_t stream, void (*fn)(void*), void* arg);

HMMRT_API hmmrt_result_t hmmrt_event_create(hmmrt_context_t context, hmmrt_event_t* event);
HMMRT_API hmmrt_result_t hmmrt_event_destroy(hmmrt_event_t event);
HMMRT_API hmmrt_result_t hmmrt_event_record(hmmrt_event_t event, hmmrt_stream_t stream);
HMMRT_API hmmrt_result_t hmmrt_event_synchronize(hmmrt_event_t event);
HMMRT_API hmmrt_result_t hmmrt_event_query(hmmrt_event_t event);
/* Milliseconds between two recorded and completed events. (hipEventElapsedTime) */
HMMRT_API hmmrt_result_t hmmrt_event_elapsed(hmmrt_event_t start, hmmrt_event_t stop, float* milliseconds);

/* A grid of work items, x fastest. Every extent > 0; the product must fit 63 bits. */
typedef struct hmmrt_grid {
  uint64_t x, y, z;
} hmmrt_grid_t;

/* A kernel for hmmrt_launch. C++ code uses hmmrt::launch (kernel.hpp), which fills this in.
 * `run` executes work items [first, first + count) of the linearised grid; it reaches managed memory only through
 * kernel.hpp's accessors. */
typedef struct hmmrt_kernel {
  size_t size;
  const char* name;
  void (*run)(const void* functor, const hmmrt_grid_t* grid, uint64_t first, uint64_t count);
  const void* functor; /* copied at the call; at most 4096 bytes */
  size_t functor_bytes;
} hmmrt_kernel_t;
/* Enqueues the kernel and returns. Counterpart: hipLaunchKernel. */
HMMRT_API hmmrt_result_t hmmrt_launch(hmmrt_stream_t stream, const hmmrt_kernel_t* kernel, hmmrt_grid_t grid);

/* ---- statistics --------------------------------------------------------------------------------------------------- */

/* Causes of migration, indices of the *_by_cause arrays. */
typedef enum hmmrt_cause HMMRT_ENUM {
  HMMRT_CAUSE_FAULT = 0,
  HMMRT_CAUSE_PREFETCH_HEURISTIC = 1,
  HMMRT_CAUSE_PREFETCH_USER = 2,
  HMMRT_CAUSE_EVICTION = 3,
  HMMRT_CAUSE_COHERENCE = 4,
  HMMRT_CAUSE_ACCESS_COUNTER = 5,
  HMMRT_CAUSE_ADVICE = 6,
  HMMRT_CAUSE_COUNT = 7
} hmmrt_cause_t;
HMMRT_API const char* hmmrt_cause_name(hmmrt_cause_t cause);

typedef struct hmmrt_latency {
  uint64_t count, p50_ns, p90_ns, p99_ns, max_ns; /* percentiles within 6 % */
} hmmrt_latency_t;

/* Everything counts since the context was created (or hmmrt_stats_reset). Bytes count copied or moved page contents;
 * a never-touched page migrates 0 bytes. */
typedef struct hmmrt_stats {
  size_t size;
  uint64_t cpu_faults, cpu_write_protect_faults, device_faults;
  uint64_t fault_batches, duplicate_faults, stale_faults, cancelled_faults, fault_buffer_overflows;
  uint64_t pages_to_device, pages_to_host, pages_peer;
  uint64_t bytes_to_device_by_cause[HMMRT_CAUSE_COUNT];
  uint64_t bytes_to_host_by_cause[HMMRT_CAUSE_COUNT];
  uint64_t bytes_peer_by_cause[HMMRT_CAUSE_COUNT];
  uint64_t pages_duplicated, duplicates_collapsed, pages_dropped_clean;
  uint64_t pages_mapped_remote, remote_accesses;
  uint64_t evictions, pages_evicted, refaults;        /* refault: evicted, then faulted back */
  uint64_t ping_pong_blocks, throttles, pins, unpins; /* what was detected and what was done about it */
  uint64_t exclusive_grants, exclusive_revokes;
  uint64_t pages_busy, pages_pinned, pages_gone, pages_forbidden; /* per-page refusals by the kernel */
  uint64_t invalidations, spurious_invalidations, retries;
  uint64_t hints, hints_without_effect;
  uint64_t bytes_resident_device, bytes_managed, bytes_metadata;
  /* Time the fault service spent on device batches, from fetch to the last replay, and the part of it spent copying
   * (summed over the pipeline's threads, so with several it may exceed the whole). Per context only. */
  uint64_t device_service_ns, device_copy_ns;
  hmmrt_latency_t cpu_fault_latency, device_fault_latency, batch_size; /* batch_size: faults, not ns */
} hmmrt_stats_t;

HMMRT_API hmmrt_result_t hmmrt_stats_context(hmmrt_context_t context, hmmrt_stats_t* stats);
/* Faults raised by, and traffic of, one device. */
HMMRT_API hmmrt_result_t hmmrt_stats_device(hmmrt_context_t context, uint32_t device, hmmrt_stats_t* stats);
/* The allocation or registration that contains `ptr`. Latencies are zero here. */
HMMRT_API hmmrt_result_t hmmrt_stats_range(hmmrt_context_t context, const void* ptr, hmmrt_stats_t* stats);
HMMRT_API hmmrt_result_t hmmrt_stats_reset(hmmrt_context_t context);

#ifdef __cplusplus
}
#endif

#endif /* HMMRT_HMMRT_H */
