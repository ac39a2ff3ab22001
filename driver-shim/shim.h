/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * hmmrt_shim, internal. One file per subject:
 *
 *   main.c       parameters, load and unload, the list of devices
 *   device.c     one device: node, life and end
 *   pci.c        devices whose memory is a PCI BAR
 *   file.c       open files, ioctl dispatch, argument checks
 *   ring.c       event rings
 *   mirror.c     (address space, device): notifiers, shadow page table, generation
 *   fault.c      mirroring the CPU's page table: FAULT, SNAPSHOT
 *   access.c     the device touches memory: ACCESS
 *   exclusive.c  EXCLUSIVE
 *   devmem.c     frames of device memory, their backing, accounts
 *   migrate.c    to the device, to the system, CPU faults
 *   evict.c      home, whoever's they are, because the device is full or goes away
 *   inject.c     INJECT
 *
 * Locks, outermost first:
 *
 *   shim_file.bind_lock     BIND happens once
 *   shim_device.life        read: the work of a call; write: the end of the device; another device's by trylock only
 *   shim_mirror.binding     its files come and go
 *   shim_devices_lock       the list of devices
 *   shim_mirror.grow        new spans
 *   mmap_lock               the kernel's
 *   shim_gate()             of an mm: read: TO_DEV to coherent memory; written: EXCLUSIVE
 *   folio locks             the kernel's
 *   shim_device.fill        read: TO_DEV, from taking frames to mapping them; written: eviction, from looking whose they
 *                           are to having them locked. Under it folio locks and mmap_lock by trylock only
 *   mmu notifiers           the kernel's
 *   shim_span.lock          "the mirror lock" of 1 GiB of addresses
 *   shim_device.list_lock, and in it shim_mirror.files_lock      spinlocks
 *   shim_device.frame_lock  spinlock, with interrupts off; a leaf
 *   shim_walks.lock         spinlock; a leaf
 *
 * Under a span's lock: no user copies, no GFP_KERNEL allocation, no hmm_range_fault, no migrate_vma_*.
 */
#ifndef HMMRT_SHIM_INTERNAL_H
#define HMMRT_SHIM_INTERNAL_H

#include <linux/eventfd.h>
#include <linux/hmm.h>
#include <linux/kref.h>
#include <linux/llist.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "compat.h"
#include "uapi/hmmrt_shim.h"

#define SHIM_NAME		"hmmrt_shim"
#define SHIM_BLOCK_SHIFT	21	/* 2 MiB: one migration step, one leaf of the shadow table */
#define SHIM_BLOCK_ORDER	(SHIM_BLOCK_SHIFT - PAGE_SHIFT)
#define SHIM_BLOCK_PAGES	(1u << SHIM_BLOCK_ORDER)
#define SHIM_SPAN_SHIFT		30	/* 1 GiB: one interval notifier, one lock */
#define SHIM_SPAN_LEAVES	(1u << (SHIM_SPAN_SHIFT - SHIM_BLOCK_SHIFT))
#define SHIM_GRANULE_MAX	9	/* in the ABI; what is larger than a block is a block */

/* ---- devices --------------------------------------------------------------------------------- */

/*
 * One page of device memory. Owned by the free map, by a process's page table (through the struct page), or by the
 * `freed` list on its way from the second to the first.
 */
struct shim_frame {
	struct page *backing;		/* private: the system page with the contents */
	struct shim_account *account;	/* who pays; counted reference while in use */
	struct llist_node freed;
	u8 granule;			/* fault-around order of CPU faults */
};

/* What one address space holds of one device. Outlives the mirror while pages are out there. */
struct shim_account {
	refcount_t ref;			/* mirror, and each page */
	struct shim_device *dev;
	struct mm_struct *mm;		/* mmgrab */
	struct list_head node;		/* dev->accounts, under list_lock */
	atomic_long_t pages;
};

struct shim_fault_point {
	atomic64_t skip, count, hits;
};

/* A thread that found its page away and has yet to touch it. On its stack. */
struct shim_arrival {
	struct list_head node;		/* dev->arrivals, once the page is home */
	struct mm_struct *mm;
	unsigned long addr;
};

/* A CPU fault at work: one for a page at a time. On the stack of the thread that faulted. */
struct shim_mover {
	struct shim_arrival arrival;
	struct list_head node;		/* dev->movers */
	u64 since;			/* when it began, ns */
	struct task_struct *task;
	struct page *page;
	bool locked;			/* in memory: the mapping is VM_LOCKED */
	struct shim_follower *followers;	/* list_lock: others who touched the page, asleep */
};

struct shim_device {
	struct kref ref;		/* module list, each open file */
	struct list_head node;		/* shim_devices */
	int id;
	char name[16];
	u32 mem_type;			/* enum hmmrt_shim_mem_type */
	struct miscdevice misc;
	bool shown;			/* has its node */
	struct rw_semaphore life;
	bool gone;
	wait_queue_head_t wait;		/* WAIT sleeps here; woken by events and by the end */

	spinlock_t list_lock;		/* the lists, for short looks */
	struct list_head mirrors;	/* list_lock; those with files */
	struct list_head accounts;	/* list_lock */
	struct list_head movers;	/* list_lock */
	struct list_head arrivals;	/* list_lock */
	struct shim_arrival settling;	/* list_lock; the page that many have waited for last, not in the list */
	u64 settled;			/* list_lock; when that is over, or 0 */
	struct mmu_notifier_ops mn_ops;	/* own copy: makes mirrors unique per (mm, device) */

	/* devmem.c */
	struct dev_pagemap pgmap;
	struct resource *region;	/* claimed address range, or NULL */
	void *bar;			/* private BAR: contents of frame i at bar + i * PAGE_SIZE */
	unsigned long first_pfn;
	unsigned long nframes;
	struct shim_frame *frames;
	struct rw_semaphore fill;	/* written: no frame becomes somebody's */
	spinlock_t frame_lock;		/* below */
	unsigned long *free_map;	/* set: free */
	unsigned long nfree;
	unsigned long cursor;
	u64 *block_stamp;		/* last allocation from each 512 frames, for eviction */
	u64 stamp;
	bool closing;			/* no new frames */
	/* end of frame_lock */
	struct llist_head freed;
	struct delayed_work drain;

	bool inject_on;
	struct shim_fault_point inject[HMMRT_SHIM_INJECT_KINDS];
};

extern const struct file_operations shim_fops;
extern struct list_head shim_devices;
extern struct mutex shim_devices_lock;
extern unsigned int shim_cpu_fault_order;
extern unsigned long shim_quota_pages;

struct shim_device *shim_device_create(u32 mem_type, phys_addr_t base, u64 bytes, struct device *parent);
int shim_device_show(struct shim_device *dev);
void shim_device_destroy(struct shim_device *dev);
void shim_device_release(struct kref *ref);
int shim_pci_register(void);
void shim_pci_unregister(void);

static inline bool shim_is_coherent(const struct shim_device *dev)
{
	return dev->mem_type == HMMRT_SHIM_MEM_COHERENT || dev->mem_type == HMMRT_SHIM_MEM_COHERENT_BAR;
}

/* ---- devmem.c -------------------------------------------------------------------------------- */

int shim_devmem_create(struct shim_device *dev, phys_addr_t base, u64 bytes);
void shim_devmem_destroy(struct shim_device *dev);
struct shim_device *shim_page_device(struct page *page);
struct shim_frame *shim_page_frame(struct shim_device *dev, struct page *page);
unsigned int shim_frames_alloc(struct shim_device *dev, struct shim_account *acct, unsigned int n, u8 granule,
			       struct page **out, int *err);
void *shim_page_map(struct page *page);
void shim_page_unmap(struct page *page, void *va);
void *shim_page_linear(struct page *page);
struct shim_account *shim_account_get(struct shim_device *dev, struct mm_struct *mm);
void shim_account_put(struct shim_account *acct, unsigned int n);
void shim_devmem_drain(struct shim_device *dev);

/* ---- mirror.c -------------------------------------------------------------------------------- */

/* Shadow page table entry: pfn << SHIM_PTE_SHIFT | flags; 0: the device faults. */
#define SHIM_PTE_VALID	1ul
#define SHIM_PTE_WRITE	2ul
#define SHIM_PTE_EXCL	4ul
#define SHIM_PTE_SHIFT	3

/*
 * 1 GiB of a mirror. An entry in a leaf may be used only under `lock`, and installed only under it after
 * mmu_interval_read_retry() said that nothing changed since the lookup. Invalidation takes it for writing.
 */
struct shim_span {
	struct mmu_interval_notifier mni;
	struct shim_mirror *mirror;
	struct rw_semaphore lock;
	unsigned long start;
	unsigned long *leaf[SHIM_SPAN_LEAVES];	/* 512 entries each; NULL: none */
};

struct shim_mirror {
	struct mmu_notifier mn;		/* for the end of the address space; owns this memory */
	struct shim_device *dev;
	struct mm_struct *mm;
	struct shim_account *account;
	struct list_head node;		/* dev->mirrors */
	struct mutex binding;
	unsigned int files;		/* binding; each also counts in mn */
	bool dead;			/* the address space is gone */
	atomic64_t gen;
	struct xarray spans;		/* by address >> SHIM_SPAN_SHIFT */
	struct mutex grow;		/* new spans */
	spinlock_t files_lock;		/* file_list and the rings of its files */
	struct list_head file_list;
	u32 event_mask;			/* what any file wants */
};

struct shim_mirror *shim_mirror_get(struct shim_device *dev, struct mm_struct *mm);
void shim_mirror_put(struct shim_mirror *mirror);
struct shim_span *shim_span_get(struct shim_mirror *mirror, unsigned long addr);
struct shim_span *shim_span_find(struct shim_mirror *mirror, unsigned long addr);
int shim_leaf_make(struct shim_span *span, unsigned long addr);
void shim_mirror_init_ops(struct shim_device *dev);

static inline unsigned long *shim_pte(struct shim_span *span, unsigned long addr)
{
	unsigned long *leaf = span->leaf[(addr - span->start) >> SHIM_BLOCK_SHIFT];

	return leaf ? &leaf[(addr >> PAGE_SHIFT) & (SHIM_BLOCK_PAGES - 1)] : NULL;
}

static inline unsigned long shim_pte_make(struct page *page, unsigned long flags)
{
	return page_to_pfn(page) << SHIM_PTE_SHIFT | flags;
}

static inline struct page *shim_pte_page(unsigned long pte)
{
	return pfn_to_page(pte >> SHIM_PTE_SHIFT);
}

/* Pages from addr to the end of its block, at most n. */
static inline unsigned int shim_block_rest(unsigned long addr, u64 n)
{
	return min_t(u64, n, SHIM_BLOCK_PAGES - ((addr >> PAGE_SHIFT) & (SHIM_BLOCK_PAGES - 1)));
}

/* ---- files and rings ------------------------------------------------------------------------- */

struct shim_ring {
	struct hmmrt_shim_ring *hdr;	/* shared with the consumer: never trusted */
	struct hmmrt_shim_event *events;
	u64 mask;
	u64 bytes;
	u64 head;			/* the truth; hdr->head is a copy */
	u64 seq;			/* of the last event */
	u64 dropped;
	struct eventfd_ctx *eventfd;
};

struct shim_file {
	struct shim_device *dev;
	struct mutex bind_lock;		/* BIND happens once */
	struct shim_mirror *mirror;	/* set once, with release semantics */
	unsigned long va_start, va_end;
	u32 events;
	struct shim_ring ring;		/* under mirror->files_lock */
	struct list_head node;		/* mirror->file_list */
	struct shim_work *spare;	/* taken with xchg() */
};

int shim_ring_create(struct shim_ring *ring, unsigned int order, int eventfd);
void shim_ring_destroy(struct shim_ring *ring);
void shim_event(struct shim_mirror *mirror, u32 want, const struct hmmrt_shim_event *ev);
void shim_event_dev(struct shim_device *dev, struct mm_struct *mm, u32 want, const struct hmmrt_shim_event *ev);

/* ---- work of the ioctls ---------------------------------------------------------------------- */

/* Room for one block, so that no step on the way allocates. */
struct shim_batch {
	unsigned long src[SHIM_BLOCK_PAGES];
	unsigned long dst[SHIM_BLOCK_PAGES];
	unsigned long pfns[SHIM_BLOCK_PAGES];
	struct page *pages[SHIM_BLOCK_PAGES];
	u8 status[SHIM_BLOCK_PAGES];
};

#define SHIM_BOUNCE	65536u

/* All that one ioctl needs besides its arguments. Each file keeps one for the next call. */
struct shim_work {
	struct shim_batch batch;
	u8 bounce[SHIM_BOUNCE];
};

/*
 * Around the work of a call on its device: none begins once that is gone, and its end waits for what has begun. Not
 * nested. User memory is touched outside only: it may answer late, or never.
 */
static inline int shim_enter(struct shim_device *dev)
{
	/* Not behind the writer. */
	if (READ_ONCE(dev->gone))
		return -ENODEV;
	if (down_read_killable(&dev->life))
		return -EINTR;
	if (!dev->gone)
		return 0;
	up_read(&dev->life);
	return -ENODEV;
}

static inline void shim_leave(struct shim_device *dev)
{
	up_read(&dev->life);
}

/* Status inside only: not yet known. */
#define SHIM_UNKNOWN	0xfe

/*
 * Each works on pages [addr, addr + n) within one block, leaves a status for each in batch->status, and returns
 * 0 or -EINTR. *faults grows by one if the CPU's page table had to be faulted in.
 */
int shim_fault_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
		     bool write, u64 *faults);
int shim_snapshot_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n);
int shim_to_dev_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
		      u32 flags, u64 cookie, u64 *faults);
int shim_to_sys_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
		      u64 cookie);
int shim_exclusive_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
			 u64 cookie, u64 *faults);

struct shim_span *shim_pfns_peek(struct shim_mirror *mirror, unsigned long *pfns, unsigned long addr, unsigned int n);
bool shim_vma_writable(struct vm_area_struct *vma);
u8 shim_vma_kind(struct vm_area_struct *vma);
u8 shim_fault_status(struct shim_mirror *mirror, unsigned long addr, int err, bool write);
int shim_fault_in(struct shim_mirror *mirror, unsigned long *pfns, unsigned long addr, unsigned int n, bool write);
void shim_map_moved(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n);
void shim_home_vma(struct shim_device *dev, struct shim_batch *batch, struct vm_area_struct *vma, unsigned long start,
		   unsigned int n, u8 *status);
void shim_home_range(struct shim_device *dev, struct shim_batch *batch, struct mm_struct *mm, unsigned long start,
		     unsigned int n, u8 *status);
void shim_home_other(struct shim_device *other, struct shim_batch *batch, struct mm_struct *mm, unsigned long start,
		     unsigned int n, u8 *status);
void shim_walks_init(void);
void shim_walks_wait(struct mm_struct *mm);
void shim_gates_init(void);
struct rw_semaphore *shim_gate(struct mm_struct *mm);
void shim_split_huge(struct shim_device *dev, struct mm_struct *mm, unsigned long addr);
unsigned int shim_fill_home(struct shim_device *dev, unsigned long *src, unsigned long *dst, struct page **pages,
			    unsigned int n, unsigned int must);
unsigned long shim_evict(struct shim_device *dev, struct shim_account *only, unsigned long want);
int shim_access_one(struct shim_mirror *mirror, struct hmmrt_shim_access *a, struct shim_work *work);

/* ---- cpu_fault.c ----------------------------------------------------------------------------- */

vm_fault_t shim_migrate_to_ram(struct vm_fault *vmf);
void shim_mover_wait(struct shim_device *dev);
void shim_arrivals_wait(struct shim_device *dev, struct mm_struct *mm, unsigned long addr, unsigned int n);

/* ---- inject.c -------------------------------------------------------------------------------- */

bool __shim_inject(struct shim_device *dev, unsigned int kind);
int shim_inject_set(struct shim_device *dev, struct hmmrt_shim_inject *arg);

static inline bool shim_inject(struct shim_device *dev, unsigned int kind)
{
	return unlikely(READ_ONCE(dev->inject_on)) && __shim_inject(dev, kind);
}

#endif
