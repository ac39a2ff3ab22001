/* SPDX-License-Identifier: MIT
 *
 * Policies from outside: a plug-in is a table of C functions that answers, for the faults of one batch in one 2 MiB
 * block, what to do about them. Register it, then choose it by name (option "policy") when creating a context.
 *
 * What must hold
 *   - decide() is a pure function of its arguments: whatever a policy wants to remember about a block it keeps in that
 *     block's history (256 bytes, zero at first). The same object decides live and in offline replay.
 *   - The functions are called on several threads at once for different blocks, and the fault path waits for them: no
 *     allocation, no locks, no logging, no system calls, no managed memory, no call into this library.
 *   - A plan that makes no sense (pages outside the block's valid ones, overlapping masks, mappings that the platform
 *     cannot make) is corrected, never obeyed.
 */
#ifndef HMMRT_POLICY_H
#define HMMRT_POLICY_H

#include <hmmrt/hmmrt.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HMMRT_POLICY_ABI_VERSION 1u

/* Processors are numbered here: the CPU is 0, device d is d + 1. */
#define HMMRT_POLICY_CPU 0u
#define HMMRT_POLICY_FAULTING_PROCESSOR 0xffu

/* One bit per 4 KiB page of a block: page p is bit p % 64 of words[p / 64]. */
typedef struct hmmrt_page_mask {
  uint64_t words[8];
} hmmrt_page_mask_t;

/* A policy's memory about one block; lives and dies with the block. 8-byte aligned. */
typedef union hmmrt_policy_history {
  unsigned char bytes[256];
  uint64_t words[32];
} hmmrt_policy_history_t;

/* The block, as seen from the processor that faulted ("here"). `size` is what this library fills in; later versions
 * append members. */
typedef struct hmmrt_policy_block {
  size_t size;
  uint64_t base;            /* address, 2 MiB aligned */
  uint64_t pinned_until_ns; /* residency is held until then; 0: not held */
  hmmrt_page_mask_t valid;  /* pages that are managed memory */
  hmmrt_page_mask_t resident_here;
  hmmrt_page_mask_t resident_cpu;        /* in system memory, never-touched pages included */
  hmmrt_page_mask_t resident_peer;       /* on some other device */
  hmmrt_page_mask_t mapped_here;         /* any translation here, remote ones too */
  hmmrt_page_mask_t populated;           /* has contents somewhere, as far as is known */
  hmmrt_page_mask_t read_mostly;         /* advice */
  hmmrt_page_mask_t accessed_by;         /* advice: here wants a mapping rather than faults */
  hmmrt_page_mask_t preferred_here;      /* advice */
  hmmrt_page_mask_t preferred_elsewhere; /* advice */
  uint64_t cpu_huge;                     /* 1: all on the CPU in one huge page, cheap to move only as a whole */
} hmmrt_policy_block_t;

/* The faults: each page is in the mask of its strongest access. */
typedef struct hmmrt_policy_faults {
  size_t size;
  uint32_t processor;
  uint32_t faults; /* entries in the batch for this block, duplicates counted */
  hmmrt_page_mask_t read, write, atomic;
} hmmrt_policy_faults_t;

#define HMMRT_POLICY_CAN_MAP_REMOTE (1u << 0) /* the faulting processor can map pages resident elsewhere */
#define HMMRT_POLICY_CAN_DUPLICATE (1u << 1)  /* read-only copies beside the owner's are possible */
#define HMMRT_POLICY_SYSTEM_ATOMICS (1u << 2) /* the faulting processor's atomics reach host memory */

typedef struct hmmrt_policy_context {
  size_t size;
  uint64_t now_ns;
  uint64_t device_frames; /* of the faulting device, in pages; 0 when the CPU faults */
  uint64_t device_free_frames;
  uint32_t fault_ns; /* what one fault costs here, measured; 0: unknown */
  uint32_t flags;    /* HMMRT_POLICY_* */
} hmmrt_policy_context_t;

/* The answer; comes zeroed, with `to` the faulting processor. Faulted pages in no mask are throttled when throttle_ns is
 * not 0, and migrated otherwise. Pages beyond the faulted ones are prefetch. */
typedef struct hmmrt_policy_plan {
  size_t size;
  hmmrt_page_mask_t migrate;   /* to `to` */
  hmmrt_page_mask_t duplicate; /* read-only copy here, the owner keeps reading */
  hmmrt_page_mask_t remote;    /* map here where it is resident */
  uint64_t throttle_ns;        /* look at the throttled pages again after this long */
  uint64_t pin_ns;             /* hold the residency this leaves; remote mappings end with it */
  uint32_t to;
  uint32_t reason; /* leave as it is */
} hmmrt_policy_plan_t;

typedef struct hmmrt_policy_ops {
  size_t size;          /* sizeof(hmmrt_policy_ops_t) */
  uint32_t abi_version; /* HMMRT_POLICY_ABI_VERSION */
  const char* name;     /* 1 to 31 characters of a-z, 0-9 and _; not a name that exists */
  void* user;           /* first argument of every function; must live as long as the process */
  void (*decide)(void* user, const hmmrt_policy_block_t* block, const hmmrt_policy_faults_t* faults,
                 const hmmrt_policy_context_t* context, hmmrt_policy_history_t* history, hmmrt_policy_plan_t* plan);
  /* Pages of the block moved, for whatever cause, in order. May be null. */
  void (*on_migrated)(void* user, hmmrt_policy_history_t* history, const hmmrt_page_mask_t* pages, uint32_t from,
                      uint32_t to, hmmrt_cause_t cause, uint64_t now_ns);
  /* Nonzero when the history marks the block as ping-ponging. For statistics. May be null. */
  int (*ping_pong)(void* user, const hmmrt_policy_history_t* history, uint64_t now_ns);
} hmmrt_policy_ops_t;

/* Makes a policy known to every context created afterwards, until the process ends. The table and the name are copied.
 * Errors: INVALID_VALUE (null, a size or version this library does not know, no decide(), a bad or taken name),
 * OUT_OF_MEMORY (16 are registered); IN_KERNEL, FORKED. Thread: any, also while contexts live; those that do keep their
 * policy. Cost: microseconds, blocks on nothing. Counterpart: none. */
HMMRT_API hmmrt_result_t hmmrt_policy_register(const hmmrt_policy_ops_t* ops);

#ifdef __cplusplus
}
#endif

#endif /* HMMRT_POLICY_H */
