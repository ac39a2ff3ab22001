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
 * Conventions; a function's comment says only what is particular to it
 *   - Results. Functions return hmmrt_result_t; HMMRT_SUCCESS is 0. On failure nothing has changed, nothing was written
 *     through the caller's pointers, and hmmrt_last_error_detail() says, for the calling thread, what was wrong and
 *     what would be right. "Errors:" names codes without HMMRT_ERROR_. Any function with a result may also return
 *     INVALID_HANDLE (a handle is null, destroyed, or of another kind), INVALID_VALUE (a pointer is null that may not
 *     be, or a struct's `size` is wrong), OUT_OF_MEMORY (for bookkeeping), IN_KERNEL, FORKED and INTERNAL.
 *   - Threads. Every function is safe to call from any thread, on any handles. A handle destroyed while another thread
 *     uses it is reported (INVALID_HANDLE), not undefined: calls in progress end first, new ones are refused, on a
 *     context's streams and events too as soon as its destruction begins. No function may be called from inside a
 *     kernel or a stream's host function.
 *   - Exit. When the process exits (main returns, exit()), work in flight gets two seconds to end, and all pages come
 *     home. Destructors and exit handlers that run after that can use managed memory and read statistics; every other
 *     call returns INVALID_HANDLE at once and does nothing, as there is nothing left to wait for or to free.
 *   - Cost. Unless said otherwise a call takes less than some microseconds and waits only for short internal locks.
 *     "Blocks on migration" means: on other threads' moves of the same 2 MiB blocks, which take microseconds to
 *     milliseconds, and never on kernels. Figures are orders of magnitude, for the software GPU on one desktop core.
 *   - Ranges. [ptr, ptr + bytes), `bytes` > 0, lies in one allocation or registration of the context; otherwise
 *     NOT_MANAGED, or INVALID_VALUE if it is empty or wraps around. It is rounded outwards to whole pages:
 *     allocations of up to 2 KiB share pages, so what is asked for one happens to its neighbours too.
 *   - Streams. Where `stream` may be null, the work is done in the calling thread before the call returns; otherwise it
 *     is enqueued, and what fails later is reported by hmmrt_stream_synchronize(). The stream belongs to the context
 *     (otherwise INVALID_HANDLE); its device does not matter.
 *   - Structs whose first member is `size` are versioned: set it to sizeof the struct (the _INIT macros do), also when
 *     the library is to fill it in. Members beyond a smaller size take their defaults, or are not written; nonzero
 *     members beyond what this library knows are an error.
 *   - In parentheses: the counterpart in HIP; CUDA's has the same name with `cuda` for `hip`, unless given.
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
  HMMRT_ERROR_NOT_MANAGED = 5,      /* the range is not (wholly) managed memory; registering: not mapped */
  HMMRT_ERROR_ALREADY_MANAGED = 6,  /* registering memory that is managed already, by this context or another */
  HMMRT_ERROR_MISALIGNED = 7,       /* address or size is not a multiple of what is required */
  HMMRT_ERROR_NOT_ANONYMOUS = 8,    /* registering memory that is not a private anonymous mapping */
  HMMRT_ERROR_OUT_OF_MEMORY = 9,    /* system memory or address space */
  HMMRT_ERROR_DEVICE_FULL = 10,     /* no device memory left and nothing may be evicted or mapped remotely */
  HMMRT_ERROR_BUSY = 11,            /* in use by a launch, another call or the kernel: try again later */
  HMMRT_ERROR_PINNED = 12,          /* the pages are pinned */
  HMMRT_ERROR_ILLEGAL_ADDRESS = 13, /* a kernel touched unmanaged memory */
  HMMRT_ERROR_ACCESS_DENIED = 14,   /* a kernel needed rights that the CPU's mapping does not give */
  HMMRT_ERROR_NOT_READY = 15,       /* query: work is still running */
  HMMRT_ERROR_NOT_SUPPORTED = 16,   /* this platform, device or kernel cannot do it */
  HMMRT_ERROR_FORKED = 17,          /* this process is a fork of one that has, or had, a context: exec first */
  HMMRT_ERROR_IN_KERNEL = 18,       /* API called from inside a kernel or a host function */
  HMMRT_ERROR_SYSTEM = 19,          /* the operating system refused; the detail text names the call and errno */
  HMMRT_ERROR_INTERNAL = 20,        /* a bug in this library */
  HMMRT_ERROR_EXCEPTION = 21        /* a kernel or host function of the application threw an exception */
} hmmrt_result_t;

/* The enumerator's name ("HMMRT_ERROR_PINNED"); "HMMRT_ERROR_UNKNOWN" for other values. Static string.
 * (hipGetErrorName) */
HMMRT_API const char* hmmrt_result_name(hmmrt_result_t result);
/* What the calling thread's latest failure was about, as a sentence of at most 511 bytes; "" if none. Not cleared by
 * success. Never null; valid until the thread's next failure or end. (hipGetErrorString; hipGetLastError is per thread
 * too) */
HMMRT_API const char* hmmrt_last_error_detail(void);
/* Version of the library in use, as major * 10000 + minor * 100 + patch; HMMRT_VERSION_* is the header's.
 * (hipRuntimeGetVersion) */
HMMRT_API uint32_t hmmrt_version(void);

/* ---- handles and locations ---------------------------------------------------------------------------------------- */

typedef struct hmmrt_context_s* hmmrt_context_t;
typedef struct hmmrt_stream_s* hmmrt_stream_t;
typedef struct hmmrt_event_s* hmmrt_event_t;

/* A location is a device index (0, 1, ...) or one of these. Values as in HIP: hipCpuDeviceId, hipInvalidDeviceId. As an
 * argument it is HMMRT_CPU or a device of the context (otherwise INVALID_DEVICE); HMMRT_INVALID_LOCATION only
 * answers. */
typedef int32_t hmmrt_location_t;
#define HMMRT_CPU ((hmmrt_location_t)-1)
#define HMMRT_INVALID_LOCATION ((hmmrt_location_t)-2)

/* ---- options ------------------------------------------------------------------------------------------------------ */

/* Options come, later ones winning, from: the table's default; the environment (HMMRT_POLICY=uvm); the context
 * description. An unknown name or a value out of range is an error, wherever it comes from; so is an unknown variable
 * that begins with HMMRT_ (HMMRT_TEST_*, HMMRT_STRESS_*, HMMRT_SIM_* and HMMRT_BENCH_* are left alone). */
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

/* How many options there are: the table is the same in every context and needs none. Counterpart: none. */
HMMRT_API uint32_t hmmrt_option_count(void);
/* Describes option `index`, 0 to hmmrt_option_count() - 1, in the table's order. The strings are static. Errors:
 * INVALID_VALUE (index). Counterpart: none. */
HMMRT_API hmmrt_result_t hmmrt_option_get_info(uint32_t index, hmmrt_option_info_t* info);
/* The value in force in a context, as text, with what the library decided itself filled in. The string lives as long as
 * the context. Errors: INVALID_OPTION (the detail text names a similar one). (hipDeviceGetLimit) */
HMMRT_API hmmrt_result_t hmmrt_option_get(hmmrt_context_t context, const char* name, const char** value);

/* ---- contexts ----------------------------------------------------------------------------------------------------- */

typedef struct hmmrt_context_desc {
  size_t size;
  const hmmrt_option_t* options;
  uint32_t option_count;
} hmmrt_context_desc_t;
#define HMMRT_CONTEXT_DESC_INIT \
  { sizeof(hmmrt_context_desc_t), NULL, 0 }

/* Creates a context: makes the devices, starts the host mirror and the fault service. `desc` may be null: defaults and
 * the environment. A process may have several; they share nothing but the machine. Forked children cannot use the
 * library. Errors: INVALID_OPTION; INVALID_VALUE (an option without name or value); NOT_SUPPORTED (the kernel has no
 * userfaultfd with write protection, or no UFFDIO_MOVE and option host_path asks for it, or no kernel module and option
 * host_mirror does); SYSTEM (userfaultfd is
 * forbidden; a file descriptor or thread could not be had); OUT_OF_MEMORY (address space or mappings: the detail text
 * names the limit). Cost: about a millisecond; some ten file descriptors, two threads and some per device, two mappings
 * per wave (option waves_per_unit), so that with the usual vm.max_map_count about 120 contexts fit a process.
 * Counterpart: none in HIP (implicit); cuCtxCreate. */
HMMRT_API hmmrt_result_t hmmrt_context_create(const hmmrt_context_desc_t* desc, hmmrt_context_t* context);
/* Invalidates the handle, waits for calls in progress and all work enqueued, destroys the context's streams and events
 * (launch errors nobody asked for are lost), brings registered memory home, frees what hmmrt_alloc gave, writes the
 * trace file. Pointers from hmmrt_alloc are invalid afterwards. At exit contexts may be left alive.
 * Cost: milliseconds, and the time of what it waits for and moves. Counterpart: none in HIP; cuCtxDestroy. */
HMMRT_API hmmrt_result_t hmmrt_context_destroy(hmmrt_context_t context);
/* Waits until every stream that exists at the call is empty, then reports as hmmrt_stream_synchronize() the error of
 * the first stream that has one; those of others stay with their streams. (hipDeviceSynchronize, over all devices) */
HMMRT_API hmmrt_result_t hmmrt_context_synchronize(hmmrt_context_t context);

typedef struct hmmrt_context_info {
  size_t size;
  char policy[32];
  char host_mirror[32]; /* "uffd", "shim", "kfd" */
  char host_path[160];  /* uffd: "move", or "fallback: why" */
  char host_note[512];  /* what is missing on this machine and what it costs; "" when nothing */
  uint32_t device_count;
  uint32_t kernel_faults; /* 1: system calls given device-resident buffers work */
  uint32_t write_protect; /* 1: read-only duplicates possible */
  uint32_t move;          /* 1: UFFDIO_MOVE in use */
  uint64_t page_bytes, block_bytes;
  uint32_t any_pointer; /* 1: memory needs no registration, kernels and hmmrt_prefetch take any pointer */
  uint32_t reserved;
} hmmrt_context_info_t;
/* Says what the context runs on. Nothing in it changes while the context lives. (hipGetDeviceProperties) */
HMMRT_API hmmrt_result_t hmmrt_context_get_info(hmmrt_context_t context, hmmrt_context_info_t* info);

/* ---- devices ------------------------------------------------------------------------------------------------------ */

#define HMMRT_DEVICE_RETRYABLE_FAULTS (1u << 0) /* an access to a page that is elsewhere waits for it */
#define HMMRT_DEVICE_REMOTE_MAPPING (1u << 1)   /* can use pages of system memory where they are */
#define HMMRT_DEVICE_ACCESS_COUNTERS (1u << 2)  /* counts remote accesses, so that hot regions can migrate */
#define HMMRT_DEVICE_COHERENT (1u << 3)         /* the CPU can address its memory directly */
#define HMMRT_DEVICE_SYSTEM_ATOMICS (1u << 4)   /* its atomics on system memory are atomic to the CPU */
#define HMMRT_DEVICE_PEER (1u << 5)             /* can use pages of other devices' memory where they are */
#define HMMRT_DEVICE_PEER_COPY (1u << 6)        /* copies pages of other devices itself, not by way of system memory */

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

/* Devices of the context, at least 1; indices are 0 to count - 1. (hipGetDeviceCount) */
HMMRT_API hmmrt_result_t hmmrt_device_count(hmmrt_context_t context, uint32_t* count);
/* Describes a device. Only memory_free_bytes changes. Errors: INVALID_DEVICE. (hipGetDeviceProperties,
 * hipMemGetInfo) */
HMMRT_API hmmrt_result_t hmmrt_device_get_info(hmmrt_context_t context, uint32_t device, hmmrt_device_info_t* info);

/* ---- managed memory ----------------------------------------------------------------------------------------------- */

/* Allocates `bytes` (1 to 2^46) of managed memory, zero filled, 256-byte aligned at least (4 KiB from 2 KiB + 1 up,
 * 2 MiB from 2 MiB up). Errors: OUT_OF_MEMORY (address space; physical memory is taken at first touch).
 * Cost: under a microsecond up to 2 KiB, then microseconds and some 0.5 us per 2 MiB; no page is touched, but a reused
 * allocation of up to 2 KiB is cleared by the CPU and may fault for it. (hipMallocManaged) */
HMMRT_API hmmrt_result_t hmmrt_alloc(hmmrt_context_t context, size_t bytes, void** ptr);
/* Frees what hmmrt_alloc returned; null is allowed. Waits for all streams' work enqueued before, so that no kernel
 * still uses it; the contents are not brought home. Errors: NOT_MANAGED (not from hmmrt_alloc of this context, or
 * freed); INVALID_VALUE (inside an allocation, or registered memory); PINNED (one of its pages, by whomever).
 * Cost: 0.1 us up to 2 KiB, 10 us and more above; blocks on kernels and migration. (hipFree) */
HMMRT_API hmmrt_result_t hmmrt_free(hmmrt_context_t context, void* ptr);

/* Makes existing memory managed, where it is: `ptr` and `bytes` are multiples of 4096, and all of it is mapped private,
 * anonymous, readable and writable. The application keeps owning the mapping and may still munmap, mremap or madvise
 * it (host mirrors "shim" and "kfd": what mremap moves away is registered no more). Errors: MISALIGNED; INVALID_VALUE (beyond 47 bits, or not readable and writable); NOT_MANAGED (nothing is mapped
 * in part of it); NOT_ANONYMOUS (file, shared, hugetlb); ALREADY_MANAGED (overlaps a registration or hmmrt_alloc's
 * memory of this context, or of another one, which the detail text names); BUSY (a userfaultfd that is not this
 * library's watches it, and has to let go of it first); OUT_OF_MEMORY; SYSTEM. Never register what this library or the
 * system needs while a page is away: malloc's heap, a thread's live stack, a loaded library's data.
 * Cost: some 10 us and 1 us per 2 MiB; no page is touched. (hipHostRegister; under HMM any pointer) */
HMMRT_API hmmrt_result_t hmmrt_register(hmmrt_context_t context, void* ptr, size_t bytes);
/* Waits for all streams' work enqueued before, brings every page home and forgets the range, which is ordinary memory
 * again; `ptr` is what was registered. Errors: NOT_MANAGED; INVALID_VALUE (inside a registration, or from hmmrt_alloc);
 * PINNED; BUSY (the kernel held some page back for milliseconds: it stays managed, try again).
 * Cost: as hmmrt_prefetch to the CPU; blocks on kernels and migration. (hipHostUnregister) */
HMMRT_API hmmrt_result_t hmmrt_unregister(hmmrt_context_t context, void* ptr);

/* Moves a range to `location`. Pages advised read-mostly are copied read-only instead when it is a device. Pages that
 * cannot move (pinned, held by the kernel, no frame to be had even by eviction) are left where they are: success, and
 * counted in hints_without_effect. All of the range is moved, in ascending order: where it is larger than the device's
 * memory, its end evicts its beginning. Errors: INVALID_DEVICE.
 * Cost: 0.1 to 1 ms per 2 MiB moved, 0.3 us per 2 MiB that is there already; pages still busy are tried again for some
 * 3 ms. Blocks on migration; with a stream, the stream does. (hipMemPrefetchAsync) */
HMMRT_API hmmrt_result_t hmmrt_prefetch(hmmrt_context_t context, const void* ptr, size_t bytes,
                                        hmmrt_location_t location, hmmrt_stream_t stream);
/* hmmrt_prefetch of `count` ranges at once, count >= 1. Ranges location_index[k] up to location_index[k + 1] (the last:
 * up to count) go to locations[k], 1 <= location_count <= count; location_index starts at 0 and strictly rises. The
 * arrays are copied. Errors: INVALID_DEVICE; INVALID_VALUE (counts, indices); any range's. One hint is counted per
 * location. Cost: as hmmrt_prefetch; ranges of one location move together. Counterpart: cudaMemPrefetchBatchAsync. */
HMMRT_API hmmrt_result_t hmmrt_prefetch_batch(hmmrt_context_t context, const void* const* ptrs, const size_t* bytes,
                                              size_t count, const hmmrt_location_t* locations,
                                              const size_t* location_index, size_t location_count,
                                              hmmrt_stream_t stream);
/* The contents are no longer needed: pages wholly inside the range (rounded inwards) read as undefined (here: zero)
 * until written, move nowhere, and give their memory back. Pinned pages keep their contents; that, or a range without a
 * whole page, counts as a hint without effect. Errors: SYSTEM (madvise refused, e.g. unmapped meanwhile; part may be
 * discarded). Cost: 10 us per 2 MiB that was in use; blocks on migration. Counterpart: cudaMemDiscardBatchAsync. */
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
/* Gives or takes back advice about a range; later faults and prefetches heed it, nothing moves now (but
 * UNSET_READ_MOSTLY drops the read-only copies). `location` is ignored by (UN)SET_READ_MOSTLY and
 * UNSET_PREFERRED_LOCATION. Advice that changes nothing, or that this platform cannot follow, counts as a hint without
 * effect. Errors: INVALID_VALUE (no such advice); INVALID_DEVICE. Cost: 1 us per 2 MiB; blocks on migration.
 * (hipMemAdvise) */
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
/* Writes an attribute of a range, `data_bytes` bytes at `data` (any alignment): 4, or for ACCESSED_BY a positive
 * multiple of 4; locations that do not fit are left out. Residency is of the moment: it may change before the call
 * returns; pages never touched count as the CPU's, and a page with read-only copies is where its CPU copy is. Errors:
 * INVALID_VALUE (no such attribute, wrong data_bytes). Cost: 0.1 us per 2 MiB, ACCESSED_BY and PREFERRED_LOCATION 1 us;
 * blocks on migration. (hipMemRangeGetAttribute) */
HMMRT_API hmmrt_result_t hmmrt_range_get_attribute(hmmrt_context_t context, void* data, size_t data_bytes,
                                                   hmmrt_range_attribute_t attribute, const void* ptr, size_t bytes);

/* Brings a range home and holds it in system memory until as many unpins, at most 65535 deep; devices map it remotely,
 * or fail their launch with PINNED if they cannot. For I/O, RDMA and other long-term users of the physical page.
 * Errors: BUSY (some page could not come home within milliseconds; then none is pinned by this call).
 * Cost: as hmmrt_prefetch to the CPU; blocks on migration. (hipHostRegister, of managed memory; FOLL_LONGTERM) */
HMMRT_API hmmrt_result_t hmmrt_pin(hmmrt_context_t context, void* ptr, size_t bytes);
/* Ends one hmmrt_pin of every page of a range, which need not be one that was pinned as a whole. Nothing moves.
 * Errors: INVALID_VALUE (some page is not pinned). Cost: 2 us per 2 MiB; blocks on migration. (hipHostUnregister) */
HMMRT_API hmmrt_result_t hmmrt_unpin(hmmrt_context_t context, void* ptr, size_t bytes);

/* ---- streams, events, launches ------------------------------------------------------------------------------------ */

/* Creates an in-order queue of `device`. Errors: INVALID_DEVICE; OUT_OF_MEMORY (2^20 live handles in the process).
 * A stream's first host function, prefetch, discard or event starts a thread (some 30 us). (hipStreamCreate) */
HMMRT_API hmmrt_result_t hmmrt_stream_create(hmmrt_context_t context, uint32_t device, hmmrt_stream_t* stream);
/* Invalidates the handle and waits for the stream's work; a launch error not yet reported is lost. (hipStreamDestroy,
 * which does not wait) */
HMMRT_API hmmrt_result_t hmmrt_stream_destroy(hmmrt_stream_t stream);
/* Waits until the stream is empty. Reports, once, the first thing enqueued that failed since the last call: its result,
 * and in the detail text the kernel, address and access. The context stays usable, and what was enqueued after it ran.
 * Errors of kernels: ILLEGAL_ADDRESS; ACCESS_DENIED; DEVICE_FULL; PINNED; INVALID_VALUE (with_spans misused); EXCEPTION
 * (it threw). Of other work: SYSTEM (hmmrt_discard); OUT_OF_MEMORY; EXCEPTION (a host function threw).
 * Cost: 10 us after an empty kernel; blocks on kernels. (hipStreamSynchronize) */
HMMRT_API hmmrt_result_t hmmrt_stream_synchronize(hmmrt_stream_t stream);
/* HMMRT_SUCCESS when empty, NOT_READY otherwise; reports no launch error. Never blocks. (hipStreamQuery) */
HMMRT_API hmmrt_result_t hmmrt_stream_query(hmmrt_stream_t stream);
/* Later work of `stream` waits for the event's latest record at the time of the call; none: it waits for nothing. The
 * event may be of another context, recorded again, or destroyed meanwhile. (hipStreamWaitEvent) */
HMMRT_API hmmrt_result_t hmmrt_stream_wait_event(hmmrt_stream_t stream, hmmrt_event_t event);
/* Runs fn(arg) on a host thread in stream order, `arg` as it is. `fn` may use managed memory, but must not call this
 * library (IN_KERNEL), nor wait for a thread that does: that call may be waiting for this stream. It should not throw:
 * what it throws becomes the stream's error, EXCEPTION. Errors: SYSTEM (the stream's thread cannot be started).
 * (hipLaunchHostFunc) */
HMMRT_API hmmrt_result_t hmmrt_stream_host_function(hmmrt_stream_t stream, void (*fn)(void*), void* arg);

/* Creates an event, not yet recorded. Errors: OUT_OF_MEMORY (2^20 live handles in the process). (hipEventCreate) */
HMMRT_API hmmrt_result_t hmmrt_event_create(hmmrt_context_t context, hmmrt_event_t* event);
/* Invalidates the handle. Who waits for a record of it goes on waiting, and is served. (hipEventDestroy) */
HMMRT_API hmmrt_result_t hmmrt_event_destroy(hmmrt_event_t event);
/* Enqueues a record of the event: it is reached, and its time taken, when everything enqueued before is done. Replaces
 * the record before. Errors: INVALID_HANDLE (event and stream of different contexts). (hipEventRecord) */
HMMRT_API hmmrt_result_t hmmrt_event_record(hmmrt_event_t event, hmmrt_stream_t stream);
/* Waits for the latest record at the time of the call; none: returns at once. Reports no launch error. Blocks on
 * kernels. (hipEventSynchronize) */
HMMRT_API hmmrt_result_t hmmrt_event_synchronize(hmmrt_event_t event);
/* HMMRT_SUCCESS when the latest record has been reached or there is none, NOT_READY otherwise. Never blocks.
 * (hipEventQuery) */
HMMRT_API hmmrt_result_t hmmrt_event_query(hmmrt_event_t event);
/* Milliseconds from the latest record of `start` to that of `stop`, on the CPU's monotonic clock; negative if it was
 * the other way round. Errors: INVALID_VALUE (never recorded); NOT_READY (not reached). Never blocks.
 * (hipEventElapsedTime) */
HMMRT_API hmmrt_result_t hmmrt_event_elapsed(hmmrt_event_t start, hmmrt_event_t stop, float* milliseconds);

/* Declares what later launches on `stream` may touch: they touch nothing else than what is attached to it, unless a launch
 * declares its own extents (hmmrt_kernel_t). A GPU without retryable faults has all of it brought within reach before a
 * kernel starts, and all managed memory of the context where nothing is declared; other devices need no declaration, and
 * for them it changes nothing. Rounded outwards to pages; `bytes` 0 with `ptr` null attaches nothing any more. An access
 * beyond is undefined on such a GPU. Errors: INVALID_VALUE; NOT_MANAGED. Thread safety: as any call on the stream. Cost:
 * below a microsecond. (hipStreamAttachMemAsync, cudaStreamAttachMemAsync) */
HMMRT_API hmmrt_result_t hmmrt_stream_attach(hmmrt_stream_t stream, const void* ptr, size_t bytes);

/* A grid of work items, x fastest. Every extent > 0; the product fits 63 bits. (dim3, with grid and block in one) */
typedef struct hmmrt_grid {
  uint64_t x, y, z;
} hmmrt_grid_t;

/* Managed memory that a kernel uses. */
typedef struct hmmrt_extent {
  const void* ptr;
  size_t bytes;
} hmmrt_extent_t;

/* A kernel for hmmrt_launch. C++ code uses hmmrt::launch (kernel.hpp), which fills this in.
 * `run` executes work items [first, first + count) of the linearised grid; it reaches managed memory only through
 * kernel.hpp's accessors. */
typedef struct hmmrt_kernel {
  size_t size;
  const char* name; /* copied, 63 bytes of it; for errors and traces */
  void (*run)(const void* functor, const hmmrt_grid_t* grid, uint64_t first, uint64_t count);
  const void* functor; /* copied at the call; at most 4096 bytes */
  size_t functor_bytes;
  /* Since 0.2. Starts the kernel on a real GPU: on `native_stream` (a hipStream_t or cudaStream_t), with managed memory
   * `offset` bytes from where it is for the CPU; returns the vendor's error code. Null: `run` only. */
  int (*run_gpu)(const void* functor, const hmmrt_grid_t* grid, ptrdiff_t offset, void* native_stream);
  const hmmrt_extent_t* extents; /* what it may touch, at most 4096; copied. None: what hmmrt_stream_attach says */
  size_t extent_count;
} hmmrt_kernel_t;
/* Enqueues the kernel and returns; `kernel` and its functor are copied. What the application did to its mappings before
 * (munmap, madvise, mprotect) holds for it. Errors: INVALID_VALUE (no name or run; a functor of more than 4096 bytes,
 * or of some at null; the grid); what it does wrong when it runs is reported by hmmrt_stream_synchronize().
 * Cost: some microseconds, more with many arenas or registrations, whose rights are looked up; blocks on the event
 * thread and, when rights changed, on migration; never on kernels. (hipLaunchKernel) */
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
/* The cause in words ("prefetch (user)"); "unknown" for other values. Static string. Counterpart: none. */
HMMRT_API const char* hmmrt_cause_name(hmmrt_cause_t cause);

/* A distribution. The percentiles are of the value at or below which 50, 90, 99 % lie, at most 6 % too high. */
typedef struct hmmrt_latency {
  uint64_t count, p50_ns, p90_ns, p99_ns, max_ns;
} hmmrt_latency_t;

/* What happened since the context was created (or hmmrt_stats_reset), for the context, one device, or one range. Pages
 * are 4 KiB. Each counter is exact; together they are a recent picture, not a snapshot. */
typedef struct hmmrt_stats {
  size_t size;

  /* CPU accesses to pages that are not there; CPU writes to pages that are there read-only. Context; a range counts
   * both kinds, and those tried again, as cpu_faults. Device accesses that found no fitting translation, one an
   * access. */
  uint64_t cpu_faults, cpu_write_protect_faults, device_faults;
  /* Non-empty fetches of a device's fault buffer. Of the faults: on a page already in the same batch (CPU's and
   * devices'); pages that were translated when their turn came (devices); those that failed their launch; those dropped
   * by a full buffer, which fault again. Duplicates, cancelled, batches and overflows: not for ranges. */
  uint64_t fault_batches, duplicate_faults, stale_faults, cancelled_faults, fault_buffer_overflows;

  /* Pages that moved from the CPU to a device, never-touched ones (0 bytes) included; from a device to the CPU, also
   * without a copy; pages copied from device to device, read-only copies included (counted for the receiver). */
  uint64_t pages_to_device, pages_to_host, pages_peer;
  /* Bytes copied, read-only copies included, by cause of migration. Pages that a fault's migration brought along beyond
   * those faulted on are HMMRT_CAUSE_PREFETCH_HEURISTIC. */
  uint64_t bytes_to_device_by_cause[HMMRT_CAUSE_COUNT];
  uint64_t bytes_to_host_by_cause[HMMRT_CAUSE_COUNT];
  uint64_t bytes_peer_by_cause[HMMRT_CAUSE_COUNT];

  /* Pages copied read-only between CPU and device, the owner keeping its own. Pages whose read-only copies ended
   * because somebody may write again (collapsed). Pages that left a device without a copy, because system memory still
   * had the contents: brought home unwritten since they came, or read-only copies evicted. */
  uint64_t pages_duplicated, duplicates_collapsed, pages_left_clean;
  /* Pages translated where they are, each time. Accesses through such translations: one a scalar access, one a 64-byte
   * line of a span; not for ranges. */
  uint64_t pages_mapped_remote, remote_accesses;

  /* Blocks that a device out of memory gave up some pages of, each time; the pages. Pages faulted back after that. */
  uint64_t evictions, pages_evicted, refaults;
  /* Times a block turned from quiet to ping-ponging, as the policy sees it at the block's faults (a block that calms
   * down and starts again counts again). Decisions of the policy: to delay faults of a block; to hold a block's
   * residency for a time; such times that ended (not for devices). Not hmmrt_pin. */
  uint64_t ping_pong_detections, throttles, pins, unpins;
  /* Pages lent to one device alone, in system memory, for its system-scope atomics; given back to the CPU. */
  uint64_t exclusive_grants, exclusive_revokes;

  /* Pages that the kernel would not let go of or take back, each time: in a race or under I/O; under a kernel pin (on
   * the way home: counted as busy); unmapped; without the rights. */
  uint64_t pages_busy, pages_pinned, pages_gone, pages_forbidden;
  /* Blocks in which the application dropped or unmapped pages, each time: some were on a device; none was. Not for
   * devices. Faulted pages that a round could not serve and that were tried again. */
  uint64_t invalidations, spurious_invalidations, retries;
  /* Calls of prefetch (a batch: one a location), discard and advise carried out; those that changed nothing, or not
   * every page. Not for devices. */
  uint64_t hints, hints_without_effect;

  /* Now, not since: device memory in use; bytes under management (rounded to pages; a range: its own, and allocations
   * of up to 2 KiB are counted in chunks of 64 KiB); the library's bookkeeping, kept staging memory included (0 for
   * ranges). */
  uint64_t bytes_resident_device, bytes_managed, bytes_metadata;
  /* Time the fault service spent on device batches, from fetch to the last replay, and the part of it spent copying
   * (summed over the pipeline's threads, so with several it may exceed the whole). Per context only. */
  uint64_t device_service_ns, device_copy_ns;
  /* Per context only. One sample a block of a batch: from its first fault until the block was served (CPU: all of it).
   * batch_size: faults in a device batch, not ns. */
  hmmrt_latency_t cpu_fault_latency, device_fault_latency, batch_size;

  /* Where a driver moves pages by itself (host mirror "kfd"); per context only. Attributes of memory that it was asked to
   * change; of these, what it refused; what the policy wanted beyond the limit of changes a second, and did not get. What
   * it reported of faults and moves; reports that must have been lost (it drops them silently: 0 proves nothing). */
  uint64_t attribute_changes, attribute_changes_refused, attribute_changes_limited;
  uint64_t driver_reports, driver_reports_lost;
} hmmrt_stats_t;

/* Statistics of the whole context. Waits for the event thread's current round, so that faults of threads that have gone
 * on are counted. Cost: microseconds. Counterpart: none; CUPTI's unified memory counters come near. */
HMMRT_API hmmrt_result_t hmmrt_stats_context(hmmrt_context_t context, hmmrt_stats_t* stats);
/* Faults raised by, and traffic of, one device. Errors: INVALID_DEVICE. Counterpart: none. */
HMMRT_API hmmrt_result_t hmmrt_stats_device(hmmrt_context_t context, uint32_t device, hmmrt_stats_t* stats);
/* The allocation or registration that contains `ptr`. Exact for ranges that fill their 2 MiB blocks; in a block with
 * several ranges what happens to it is counted for the range at the block's start, if there is one. Errors:
 * NOT_MANAGED. Cost: 0.1 us per 2 MiB; blocks on migration. Counterpart: none. */
HMMRT_API hmmrt_result_t hmmrt_stats_range(hmmrt_context_t context, const void* ptr, hmmrt_stats_t* stats);
/* Everything that counts starts from zero, for the context, its devices and its ranges; what happens during the call
 * may be counted or not. Cost: microseconds and more with many ranges. Counterpart: none. */
HMMRT_API hmmrt_result_t hmmrt_stats_reset(hmmrt_context_t context);

#ifdef __cplusplus
}
#endif

#endif /* HMMRT_HMMRT_H */
