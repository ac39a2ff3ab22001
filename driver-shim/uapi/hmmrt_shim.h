/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * hmmrt_shim - the one interface between the kernel module and user space.
 *
 * A node /dev/hmmrt<N> is one device with memory of its own. A process opens it, BINDs, and from then on the device
 * sees the process's address space: any address that the process may read or write, the device may read or write
 * (ACCESS), under the same protections, wherever the page is.
 *
 * Rules that hold for every call:
 *  - The layouts are the same for 32 and 64 bit callers: fixed-size fields, 8 byte aligned, pointers as __u64.
 *  - Every field named pad* and every flag bit not defined here must be zero, else EINVAL. Output fields are ignored
 *    on input. A later minor version only adds flags and gives meaning to pads.
 *  - Addresses are byte addresses, page aligned unless the field says otherwise; lengths of ranges are in pages of
 *    (1 << page_shift) bytes. A range never wraps and never leaves the window given to BIND (EINVAL).
 *  - A bound descriptor works only in the address space that bound it. After fork() the child's copy fails with EPERM,
 *    after execve() or exit of that address space with ESRCH. The child opens the node itself.
 *  - Partial success is normal. A call returns 0 when it went through its work, and says per page what came of it;
 *    it fails only when its arguments are wrong, the device ends (ENODEV), or it was interrupted (EINTR, with the
 *    counts of what was done written back, so that the rest can be asked for again).
 *  - A page whose status is not DONE or ALREADY was left as it was.
 *  - All open files of one process on one device share one mirror: page tables, exclusivity, generation and quota are
 *    per (address space, device). Rings are per open file.
 *
 * Errors shared by all: EFAULT unreadable or unwritable argument, EINVAL see above, ENOTTY unknown call, ENODEV the
 * device is going away, ENOTCONN not yet bound, EPERM / ESRCH foreign or dead address space, E2BIG batch too long.
 */
#ifndef HMMRT_SHIM_H
#define HMMRT_SHIM_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define HMMRT_SHIM_ABI_MAJOR	1	/* another major: refuse to talk */
#define HMMRT_SHIM_ABI_MINOR	0	/* a higher minor only adds */

#define HMMRT_SHIM_MAGIC	0xB7

#define HMMRT_SHIM_MAX_BATCH	4096u		/* ranges or accesses in one call */
#define HMMRT_SHIM_MAX_PAGES	(1ull << 28)	/* pages in one range: 1 TiB of 4 KiB pages */
#define HMMRT_SHIM_MAX_ACCESS	(1ull << 30)	/* bytes in one access */

/* ---- QUERY ----------------------------------------------------------------------------------- */

/* caps: what this device can do on the kernel that runs. */
#define HMMRT_SHIM_CAP_PRIVATE		(1ull << 0)	/* memory the CPU cannot map: its touch brings a page home */
#define HMMRT_SHIM_CAP_COHERENT		(1ull << 1)	/* device memory that the CPU maps in place */
#define HMMRT_SHIM_CAP_EXCLUSIVE	(1ull << 2)	/* EXCLUSIVE works on pages in system memory */
#define HMMRT_SHIM_CAP_FAULT_PAGE	(1ull << 3)	/* the kernel tells migration which page faulted */
#define HMMRT_SHIM_CAP_BAR		(1ull << 4)	/* device memory is a PCI BAR */
#define HMMRT_SHIM_CAP_INJECT		(1ull << 5)	/* INJECT is compiled in */
#define HMMRT_SHIM_CAP_KERNEL_PRIVATE	(1ull << 6)	/* this kernel supports private devices at all */

enum hmmrt_shim_mem_type {
	HMMRT_SHIM_MEM_NONE = 0,		/* mirrors only: no memory of its own */
	HMMRT_SHIM_MEM_PRIVATE = 1,		/* private, backed by system pages allocated as used */
	HMMRT_SHIM_MEM_COHERENT = 2,		/* coherent, over a reserved physical range */
	HMMRT_SHIM_MEM_COHERENT_BAR = 3,	/* coherent, over a PCI BAR */
	HMMRT_SHIM_MEM_PRIVATE_BAR = 4,		/* private, contents in a PCI BAR */
};

/* QUERY works before BIND; my_pages is then 0. All fields are outputs, except pads. */
struct hmmrt_shim_query {
	__u32 abi_major;
	__u32 abi_minor;
	__u64 caps;
	__u32 page_shift;
	__u32 mem_type;		/* enum hmmrt_shim_mem_type */
	__u32 device;		/* N of /dev/hmmrt<N> */
	__u32 block_pages;	/* pages of one migration step: ask for aligned multiples to go fastest */
	__u64 devmem_pages;	/* capacity */
	__u64 devmem_free;	/* free now, over all processes */
	__u64 my_pages;		/* on the account of the calling address space: what it moved here, until it leaves,
				 * even if only a child of its still has it
				 */
	__u64 my_quota;		/* most it may have there; 0: no limit but the capacity */
	__u64 generation;	/* of the caller's mirror, see struct hmmrt_shim_range; 0 before BIND */
	__u64 pad[2];
};

/* ---- BIND ------------------------------------------------------------------------------------ */

#define HMMRT_SHIM_BIND_EVENTS_MIGRATE		(1u << 0)	/* ring: migrations, in both directions */
#define HMMRT_SHIM_BIND_EVENTS_INVALIDATE	(1u << 1)	/* ring: invalidations of pages the device had mapped */
#define HMMRT_SHIM_BIND_EVENTS_FAULT		(1u << 2)	/* ring: device faults, CPU faults on its pages */
#define HMMRT_SHIM_BIND_EVENTS_ALL		7u

#define HMMRT_SHIM_RING_ORDER_MAX	16u

/*
 * Ties the file to the calling address space. Once per file; EBUSY the second time. The window [va_start,
 * va_start + va_len) bounds what this file may name; va_len 0 means all of it.
 */
struct hmmrt_shim_bind {
	__u32 flags;		/* HMMRT_SHIM_BIND_* */
	__u32 ring_order;	/* ring of 1 << ring_order events; 0: no ring */
	__s32 eventfd;		/* signalled when events were added; -1: none */
	__u32 pad0;
	__u64 va_start;		/* page aligned */
	__u64 va_len;		/* bytes, page aligned */
	__u64 ring_mmap_off;	/* out: offset for mmap(), PROT_READ | PROT_WRITE, MAP_SHARED */
	__u64 ring_bytes;	/* out: length for mmap(): header page and events */
	__u64 pad[2];
};

/* ---- page status ----------------------------------------------------------------------------- */

/* One byte per page, from FAULT, TO_DEV, TO_SYS, EXCLUSIVE. */
enum hmmrt_shim_status {
	HMMRT_SHIM_DONE = 0,
	HMMRT_SHIM_ALREADY = 1,		/* was so before: on this device, in system memory, mapped, exclusive */
	HMMRT_SHIM_BUSY = 2,		/* lost a race, or held by someone for a moment: try again later */
	HMMRT_SHIM_PINNED = 3,		/* held by I/O or a long-term pin: stays in system memory */
	HMMRT_SHIM_GONE = 4,		/* nothing is mapped there */
	HMMRT_SHIM_FORBIDDEN = 5,	/* the mapping does not allow it: its protection, a shadow stack, memfd_secret() */
	HMMRT_SHIM_NOT_POPULATED = 6,	/* mapped, never touched, and the call does not populate */
	HMMRT_SHIM_NO_SPACE = 7,	/* device full, or quota used up */
	HMMRT_SHIM_UNSUPPORTED = 8,	/* this kind of memory cannot. TO_DEV, EXCLUSIVE: file, shared, hugetlb; TO_DEV:
					 * what KSM may merge; EXCLUSIVE: parts of larger pages mapped small; any: I/O
					 */
	HMMRT_SHIM_NO_MEMORY = 9,	/* the system had no memory for the other side */
	HMMRT_SHIM_FAILED = 10,		/* poisoned page, failed copy, injected failure */
	HMMRT_SHIM_NOT_REACHED = 255,	/* interrupted, or the device ended, before this page */
};

/*
 * SNAPSHOT writes one byte per page of the CPU's page table as the device may see it, changing nothing:
 * bits 0-1 rights, 2-3 size of the CPU's entry, 4-6 where the page is, 7 exclusive to this device. 0: nothing that the
 * device could use without a fault (never touched, swapped out, private to another device, or exclusive to one).
 */
#define HMMRT_SHIM_PAGE_NONE		0x00u
#define HMMRT_SHIM_PAGE_READ		0x01u
#define HMMRT_SHIM_PAGE_WRITE		0x02u	/* READ is set too */
#define HMMRT_SHIM_PAGE_SIZE_MASK	0x0cu
#define HMMRT_SHIM_PAGE_SIZE_PMD	0x04u	/* part of a 2 MiB entry (x86) */
#define HMMRT_SHIM_PAGE_SIZE_PUD	0x08u	/* part of a 1 GiB entry (x86) */
#define HMMRT_SHIM_PAGE_WHERE_MASK	0x70u
#define HMMRT_SHIM_PAGE_SYSTEM		0x00u
#define HMMRT_SHIM_PAGE_ZERO		0x10u	/* the shared page of zeroes */
#define HMMRT_SHIM_PAGE_PRIVATE_HERE	0x20u	/* this device's private memory */
#define HMMRT_SHIM_PAGE_PRIVATE_OTHER	0x30u	/* reserved: no kernel shows another device's private page */
#define HMMRT_SHIM_PAGE_COHERENT_HERE	0x40u	/* this device's coherent memory */
#define HMMRT_SHIM_PAGE_COHERENT_OTHER	0x50u	/* coherent memory of another device */
#define HMMRT_SHIM_PAGE_EXCLUSIVE	0x80u	/* the CPU's entry is withdrawn in favour of this device */
#define HMMRT_SHIM_PAGE_ERROR		0xffu	/* a fault there would fail: no mapping, or none that may be read;
						 * I/O, secret or poisoned memory
						 */

/* ---- FAULT, SNAPSHOT, TO_DEV, TO_SYS, EXCLUSIVE ---------------------------------------------- */

/* flags of one range */
#define HMMRT_SHIM_RANGE_WRITE		(1u << 0)	/* FAULT: for writing. Others: must be 0 */
#define HMMRT_SHIM_RANGE_NO_POPULATE	(1u << 1)	/* TO_DEV: leave never-touched pages alone; in a file's private
							 * mapping also swapped-out ones, which look the same
							 */
#define HMMRT_SHIM_RANGE_EVICT		(1u << 2)	/* TO_DEV: when full, evict the oldest pages, anyone's;
							 * when the quota is full, the caller's
							 */
#define HMMRT_SHIM_RANGE_GRANULE_SHIFT	8		/* TO_DEV: bits 8-11, see below */
#define HMMRT_SHIM_RANGE_GRANULE_MASK	(0xfu << HMMRT_SHIM_RANGE_GRANULE_SHIFT)

/*
 * Fault-around: how much comes home when the CPU touches a page on the device. order + 1, order 0..9: the aligned
 * granule of 1 << order pages around the touched one (those of it that are on this device, in the same mapping).
 * 0: the module's default (parameter cpu_fault_order). Remembered by the pages; TO_DEV again changes it.
 */
#define HMMRT_SHIM_RANGE_GRANULE(order)	(((order) + 1u) << HMMRT_SHIM_RANGE_GRANULE_SHIFT)

/*
 * FAULT      mirrors the CPU's entries, faulting in what is missing: as a device fault, for npages at once.
 * SNAPSHOT   see above; the bytes are HMMRT_SHIM_PAGE_*. done counts the pages with any right.
 * TO_DEV     moves pages to this device's memory, from the system or another device, and mirrors them.
 * TO_SYS     moves this device's pages to system memory.
 * EXCLUSIVE  makes pages resident in system memory and withdraws the CPU's entries, until the CPU touches them: the
 *            device's atomics are then atomic to everyone. EOPNOTSUPP without HMMRT_SHIM_CAP_EXCLUSIVE.
 */
struct hmmrt_shim_range {
	__u64 addr;		/* page aligned */
	__u64 npages;		/* 1 .. HMMRT_SHIM_MAX_PAGES */
	__u32 flags;		/* HMMRT_SHIM_RANGE_* */
	__u32 pad0;
	__u64 cookie;		/* appears in the events this range causes */
	__u64 status_ptr;	/* npages bytes, or 0: only the counts are wanted */
	/* outputs */
	__u64 gen;		/* mirror's generation afterwards: grows with every change of the device's page table */
	__u64 done;		/* pages DONE or ALREADY */
	__u64 busy;		/* pages BUSY or PINNED */
	__u64 skipped;		/* all others that were reached */
	__u64 faults;		/* times the CPU's page table was faulted in */
	__s32 first_err;	/* 0, or -errno of the first page that was not done */
	__u32 pad1;
};

/* A batch. Ranges are served in order; each gets its outputs. */
struct hmmrt_shim_ranges {
	__u64 ranges_ptr;	/* struct hmmrt_shim_range[count] */
	__u32 count;		/* 1 .. HMMRT_SHIM_MAX_BATCH */
	__u32 flags;		/* must be zero */
	__u32 served;		/* out: ranges gone through; less than count only when the call fails */
	__u32 pad0;
	__u64 pad1;
};

/* ---- ACCESS ---------------------------------------------------------------------------------- */

/*
 * The device reads or writes the process's memory, faulting as a device does. Atomics are naturally aligned, 4 or 8
 * bytes by len, and atomic against the CPU and every other device of this module.
 */
enum hmmrt_shim_op {
	HMMRT_SHIM_OP_READ = 0,			/* [addr, addr+len) -> buf */
	HMMRT_SHIM_OP_WRITE = 1,		/* buf -> [addr, addr+len) */
	HMMRT_SHIM_OP_ADD = 2,			/* out = *addr; *addr += arg0 */
	HMMRT_SHIM_OP_CAS = 3,			/* out = *addr; if (out == arg0) *addr = arg1 */
	HMMRT_SHIM_OP_CHECK_EXCLUSIVE = 4,	/* out = pages of [addr, addr+len) now exclusive to this device */
};

#define HMMRT_SHIM_ACCESS_EXCLUSIVE	(1u << 0)	/* ADD, CAS: take exclusive access of a system page first */
#define HMMRT_SHIM_ACCESS_NO_FAULT	(1u << 1)	/* stop at the first page not mapped: err -ENOENT */

struct hmmrt_shim_access {
	__u64 addr;		/* device side; any byte address */
	__u64 buf;		/* READ, WRITE: the caller's buffer (may itself be on a device). Others: 0 */
	__u64 len;		/* READ, WRITE, CHECK: 1 .. HMMRT_SHIM_MAX_ACCESS. Atomics: 4 or 8 */
	__u32 op;		/* enum hmmrt_shim_op */
	__u32 flags;		/* HMMRT_SHIM_ACCESS_* */
	__u64 arg0;
	__u64 arg1;
	/* outputs */
	__u64 out;
	__u64 done;		/* bytes */
	__u32 faults;		/* device faults taken: each faults in everything still missing of this access */
	__s32 err;		/* 0, or -errno: EFAULT no such right or bad buf, ENOENT, EBUSY (lost races), ENOMEM,
				 * EOPNOTSUPP (I/O memory; not to be had exclusively), EINTR, ENODEV
				 */
};

/* A batch: in order, each with its own err. Fails as a whole only on bad arguments, EINTR, ENODEV. */
struct hmmrt_shim_accesses {
	__u64 accesses_ptr;	/* struct hmmrt_shim_access[count] */
	__u32 count;		/* 1 .. HMMRT_SHIM_MAX_BATCH */
	__u32 flags;		/* must be zero */
	__u32 served;		/* out */
	__u32 failed;		/* out: accesses with err != 0 */
	__u64 pad0;
};

/* ---- EVICT ----------------------------------------------------------------------------------- */

#define HMMRT_SHIM_EVICT_ALL	(1u << 0)	/* pages of every process, not only the caller's. CAP_SYS_ADMIN */

/*
 * Moves device pages to system memory until npages went or none is left that can go: by blocks of block_pages, the one
 * longest without a new page first (in order of address, if npages covers the device); the last may go whole. What stays
 * is locked or held by someone at the moment, or finds no memory. Waits for mmap_locks. EINTR.
 */
struct hmmrt_shim_evict {
	__u64 npages;		/* ~0: as many as there are */
	__u32 flags;		/* HMMRT_SHIM_EVICT_* */
	__u32 pad0;
	__u64 evicted;		/* out */
	__u64 left;		/* out: pages still there, on the caller's account or (ALL) on anyone's */
	__u64 pad1;
};

/* ---- WAIT ------------------------------------------------------------------------------------ */

/*
 * Waits until an event with seq >= `seq` was added to this file's ring or dropped. ETIMEDOUT, EINTR; ENOENT without a
 * ring; ESRCH when the address space died. poll() says POLLIN when the ring is not empty.
 */
struct hmmrt_shim_wait {
	__u64 seq;
	__s64 timeout_ns;	/* relative; negative: for ever; 0: look only */
	__u64 next_seq;		/* out: seq of the next event to come */
	__u64 dropped;		/* out: events lost to overflow so far */
	__u64 pad0;
};

/* ---- INJECT ---------------------------------------------------------------------------------- */

/* Makes the next steps of a kind fail, on this device, for any process. CAP_SYS_ADMIN. */
enum hmmrt_shim_inject_kind {
	HMMRT_SHIM_INJECT_NONE = 0,		/* clears all */
	HMMRT_SHIM_INJECT_FRAME = 1,		/* no device frame */
	HMMRT_SHIM_INJECT_BACKING = 2,		/* no system page to back a frame */
	HMMRT_SHIM_INJECT_SYSTEM = 3,		/* no system page to bring a device page home */
	HMMRT_SHIM_INJECT_COPY = 4,		/* the copy of one page to the device fails */
	HMMRT_SHIM_INJECT_RETRY = 5,		/* a device fault finds its sequence changed */
	HMMRT_SHIM_INJECT_TRYLOCK = 6,		/* a non-blockable invalidation finds the mirror locked */
	HMMRT_SHIM_INJECT_KINDS = 7,
};

struct hmmrt_shim_inject {
	__u32 kind;		/* enum hmmrt_shim_inject_kind */
	__u32 pad0;
	__u64 skip;		/* let this many go first */
	__u64 count;		/* then fail this many */
	__u64 hits;		/* out: failures of this kind injected so far */
};

/* ---- events ---------------------------------------------------------------------------------- */

enum hmmrt_shim_event_type {
	HMMRT_SHIM_EVENT_NONE = 0,
	HMMRT_SHIM_EVENT_MIGRATE = 1,		/* npages moved from src to dst */
	HMMRT_SHIM_EVENT_INVALIDATE = 2,	/* the device lost its mappings there */
	HMMRT_SHIM_EVENT_DEVICE_FAULT = 3,	/* the device faulted npages in; err when that failed */
	HMMRT_SHIM_EVENT_CPU_FAULT = 4,		/* the CPU touched addr while on the device; npages came home */
	HMMRT_SHIM_EVENT_EXCLUSIVE = 5,		/* npages became exclusive to this device */
	HMMRT_SHIM_EVENT_DEAD = 6,		/* the address space is gone; the last event */
};

enum hmmrt_shim_event_reason {
	HMMRT_SHIM_REASON_NONE = 0,
	HMMRT_SHIM_REASON_REQUEST = 1,		/* an ioctl asked */
	HMMRT_SHIM_REASON_CPU_FAULT = 2,
	HMMRT_SHIM_REASON_DEVICE_FAULT = 3,	/* brought home for a device write after fork, or from another device */
	HMMRT_SHIM_REASON_EVICT = 4,
	HMMRT_SHIM_REASON_UNMAP = 5,		/* invalidations: munmap or mremap */
	HMMRT_SHIM_REASON_CLEAR = 6,		/* MADV_DONTNEED, reclaim, a page replaced (also copy on write) */
	HMMRT_SHIM_REASON_PROTECT = 7,		/* mprotect, fork */
	HMMRT_SHIM_REASON_MIGRATE = 8,		/* someone else's migration */
	HMMRT_SHIM_REASON_EXCLUSIVE = 9,	/* another device's exclusive access */
	HMMRT_SHIM_REASON_OTHER = 10,
};

/* src and dst */
#define HMMRT_SHIM_LOC_SYSTEM	0xffffu		/* otherwise the N of /dev/hmmrt<N> */
#define HMMRT_SHIM_LOC_UNKNOWN	0xfffeu

/* 64 bytes */
struct hmmrt_shim_event {
	__u64 seq;		/* from 1, without gaps but for dropped events, which keep their number */
	__u64 ts_ns;		/* CLOCK_MONOTONIC */
	__u64 gen;		/* mirror's generation */
	__u64 addr;
	__u64 npages;
	__u16 type;		/* enum hmmrt_shim_event_type */
	__u16 reason;		/* enum hmmrt_shim_event_reason */
	__u16 src;
	__u16 dst;
	__s32 err;
	__u32 pad0;		/* zero */
	__u64 cookie;		/* of the range that caused it, or 0 */
};

/*
 * The ring: one page holding this header, then 1 << ring_order events. The kernel writes head, the consumer tail; both
 * only grow, the event with number n since BIND (from 0) is at events[n & mask]. Consumer: load head (acquire), read
 * events [tail, head), store tail (release). When head - tail would exceed the size, or the tail makes no sense, the
 * event is dropped and counted: resynchronise with SNAPSHOT. Events never wait for the consumer.
 */
struct hmmrt_shim_ring {
	__u32 magic;		/* HMMRT_SHIM_RING_MAGIC */
	__u32 abi_major;
	__u32 events_off;	/* bytes from the start of the mapping */
	__u32 event_bytes;	/* sizeof(struct hmmrt_shim_event) */
	__u64 mask;		/* number of events - 1 */
	__u64 pad0[5];
	__u64 head;		/* kernel; own cache line */
	__u64 dropped;		/* kernel */
	__u64 pad1[6];
	__u64 tail;		/* consumer; own cache line */
	__u64 pad2[7];
};

#define HMMRT_SHIM_RING_MAGIC	0x52545248u	/* "HRTR" */

/* ---- calls ----------------------------------------------------------------------------------- */

#define HMMRT_SHIM_QUERY	_IOWR(HMMRT_SHIM_MAGIC, 0x00, struct hmmrt_shim_query)
#define HMMRT_SHIM_BIND		_IOWR(HMMRT_SHIM_MAGIC, 0x01, struct hmmrt_shim_bind)
#define HMMRT_SHIM_FAULT	_IOWR(HMMRT_SHIM_MAGIC, 0x02, struct hmmrt_shim_ranges)
#define HMMRT_SHIM_SNAPSHOT	_IOWR(HMMRT_SHIM_MAGIC, 0x03, struct hmmrt_shim_ranges)
#define HMMRT_SHIM_TO_DEV	_IOWR(HMMRT_SHIM_MAGIC, 0x04, struct hmmrt_shim_ranges)
#define HMMRT_SHIM_TO_SYS	_IOWR(HMMRT_SHIM_MAGIC, 0x05, struct hmmrt_shim_ranges)
#define HMMRT_SHIM_EXCLUSIVE	_IOWR(HMMRT_SHIM_MAGIC, 0x06, struct hmmrt_shim_ranges)
#define HMMRT_SHIM_ACCESS	_IOWR(HMMRT_SHIM_MAGIC, 0x07, struct hmmrt_shim_accesses)
#define HMMRT_SHIM_EVICT	_IOWR(HMMRT_SHIM_MAGIC, 0x08, struct hmmrt_shim_evict)
#define HMMRT_SHIM_WAIT		_IOWR(HMMRT_SHIM_MAGIC, 0x09, struct hmmrt_shim_wait)
#define HMMRT_SHIM_INJECT	_IOWR(HMMRT_SHIM_MAGIC, 0x0a, struct hmmrt_shim_inject)

#endif /* HMMRT_SHIM_H */
