// SPDX-License-Identifier: GPL-2.0-only
/*
 * Moving pages: to the device, home to the system (cpu_fault.c: because the CPU touched them; evict.c: because the device
 * is full or goes away). Always a batch at a time, up to a block of 512 pages: one walk, one TLB flush, one bulk allocation, and one
 * copy per contiguous run.
 *
 * From migrate_vma_setup() to migrate_vma_finalize() the pages are locked and have migration entries: whoever touches
 * them waits. Nothing here returns to user space, touches user memory or takes a span's lock in between. The kernel
 * tells the mirrors (MMU_NOTIFY_MIGRATE) before it changes the page table, so the shadow tables let go by themselves.
 * New entries come afterwards, from a walk checked against the notifier's sequence like any other: installing them in
 * between would race with MADV_DONTNEED, which also holds mmap_lock for reading.
 */
#include <linux/highmem.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "shim.h"

/* How often TO_DEV goes back for pages that could not be collected at first. */
#define SHIM_TO_DEV_ROUNDS	4

/* ---- copies ---------------------------------------------------------------------------------- */

static void shim_copy_one(struct page *dst, struct page *src)
{
	void *from = shim_page_map(src);
	void *to = shim_page_map(dst);

	copy_page(to, from);
	shim_page_unmap(dst, to);
	shim_page_unmap(src, from);
}

/* Copies src[i] to dst[i] (migration entries) wherever both name a page, as long runs of adjacent memory. */
static void shim_copy_pages(const unsigned long *dst, const unsigned long *src, unsigned int n)
{
	unsigned int i, k, run;

	for (i = 0; i < n; i += run) {
		struct page *d = migrate_pfn_to_page(dst[i]), *s = migrate_pfn_to_page(src[i]);
		void *to, *from;

		run = 1;
		if (!d || !s)
			continue;
		to = shim_page_linear(d);
		from = shim_page_linear(s);
		if (!to || !from) {
			shim_copy_one(d, s);
			continue;
		}
		while (i + run < n) {
			d = migrate_pfn_to_page(dst[i + run]);
			s = migrate_pfn_to_page(src[i + run]);
			if (!d || !s || shim_page_linear(d) != to + run * PAGE_SIZE ||
			    shim_page_linear(s) != from + run * PAGE_SIZE)
				break;
			run++;
		}
		/* By words: memcpy() may go by bytes, which not every processor (and no emulator) makes fast. */
		for (k = 0; k < run; k++)
			copy_page(to + k * PAGE_SIZE, from + k * PAGE_SIZE);
		cond_resched();
	}
}

static void shim_clear_page(struct page *page)
{
	void *va = shim_page_map(page);

	clear_page(va);
	shim_page_unmap(page, va);
}

/* ---- home ------------------------------------------------------------------------------------ */

/*
 * Gives every migrating page of dev in src[0..n) a new system page, locked, with its contents. pages: n slots of room.
 * `must`: index of the page that matters most (a CPU fault's), or n; for it alone the OOM killer may be called.
 * Returns how many got one; dst of the others is 0.
 */
unsigned int shim_fill_home(struct shim_device *dev, unsigned long *src, unsigned long *dst, struct page **pages,
			    unsigned int n, unsigned int must)
{
	const gfp_t gfp = GFP_HIGHUSER_MOVABLE | __GFP_NOWARN;
	unsigned int i, want = 0, got = 0, used = 0;
	gfp_t bulk = gfp | (must < n ? __GFP_NORETRY : __GFP_RETRY_MAYFAIL);

	memset(dst, 0, n * sizeof(*dst));
	for (i = 0; i < n; i++)
		want += migrate_pfn_to_page(src[i]) && src[i] & MIGRATE_PFN_MIGRATE;
	if (!want)
		return 0;
	memset(pages, 0, want * sizeof(*pages));
	if (!shim_inject(dev, HMMRT_SHIM_INJECT_SYSTEM)) {
		while (got < want) {
			unsigned int now = shim_alloc_bulk(bulk, want, pages);

			if (now <= got)
				break;
			got = now;
		}
		if (!got) {
			pages[0] = alloc_page(must < n ? gfp : bulk);
			got = !!pages[0];
		}
	}
	if (must < n && src[must] & MIGRATE_PFN_MIGRATE && got)
		dst[must] = migrate_pfn(page_to_pfn(pages[used++]));
	for (i = 0; i < n && used < got; i++)
		if (migrate_pfn_to_page(src[i]) && src[i] & MIGRATE_PFN_MIGRATE && !dst[i])
			dst[i] = migrate_pfn(page_to_pfn(pages[used++]));
	for (i = 0; i < used; i++)
		lock_page(pages[i]);
	while (used < got)
		__free_page(pages[--got]);
	shim_copy_pages(dst, src, n);
	return used;
}

static unsigned long shim_select_of(struct shim_device *dev)
{
	return shim_is_coherent(dev) ? MIGRATE_VMA_SELECT_DEVICE_COHERENT : MIGRATE_VMA_SELECT_DEVICE_PRIVATE;
}

/*
 * Brings pages of dev in [start, start + n pages) of one vma home. status[i]: DONE; NO_MEMORY; or left alone when the
 * page is not on dev or could not be taken. mmap_lock held.
 */
void shim_home_vma(struct shim_device *dev, struct shim_batch *batch, struct vm_area_struct *vma, unsigned long start,
		   unsigned int n, u8 *status)
{
	struct migrate_vma args = {
		.vma		= vma,
		.start		= start,
		.end		= start + ((unsigned long)n << PAGE_SHIFT),
		.src		= batch->src,
		.dst		= batch->dst,
		.pgmap_owner	= dev,
		.flags		= shim_select_of(dev),
	};
	unsigned int i;

	if (!dev->frames || migrate_vma_setup(&args))
		return;
	/* Never-touched pages are collected too. They stay as they are. */
	for (i = 0; i < n; i++)
		if (!migrate_pfn_to_page(args.src[i]))
			args.src[i] = 0;
	shim_fill_home(dev, args.src, args.dst, batch->pages, n, n);
	for (i = 0; i < n; i++)
		if (args.src[i] & MIGRATE_PFN_MIGRATE && !args.dst[i])
			status[i] = HMMRT_SHIM_NO_MEMORY;
	migrate_vma_pages(&args);
	for (i = 0; i < n; i++)
		if (args.src[i] & MIGRATE_PFN_MIGRATE && args.dst[i])
			status[i] = HMMRT_SHIM_DONE;
	migrate_vma_finalize(&args);
}

/* The same over whatever mappings there are, within one block. Takes mmap_lock. */
void shim_home_range(struct shim_device *dev, struct shim_batch *batch, struct mm_struct *mm, unsigned long start,
		     unsigned int n, u8 *status)
{
	unsigned long addr = start, end = start + ((unsigned long)n << PAGE_SHIFT);

	mmap_read_lock(mm);
	while (addr < end) {
		struct vm_area_struct *vma = find_vma(mm, addr);
		unsigned long stop;

		if (!vma || vma->vm_start >= end)
			break;
		addr = max(addr, vma->vm_start);
		stop = min(end, vma->vm_end);
		shim_home_vma(dev, batch, vma, addr, (stop - addr) >> PAGE_SHIFT,
			      status + ((addr - start) >> PAGE_SHIFT));
		addr = stop;
	}
	mmap_read_unlock(mm);
}

/* The same from a device that is not the caller's. One that ends meanwhile brings its pages home by itself. */
void shim_home_other(struct shim_device *other, struct shim_batch *batch, struct mm_struct *mm, unsigned long start,
		     unsigned int n, u8 *status)
{
	if (!down_read_trylock(&other->life))
		return;
	if (!other->gone)
		shim_home_range(other, batch, mm, start, n, status);
	up_read(&other->life);
}

/* Tells of every run of DONE pages. */
static void shim_tell_moved(struct shim_mirror *mirror, const u8 *status, unsigned long addr, unsigned int n, u16 src,
			    u16 dst, u16 reason, u64 cookie)
{
	struct hmmrt_shim_event ev = {
		.type	= HMMRT_SHIM_EVENT_MIGRATE,
		.reason	= reason,
		.src	= src,
		.dst	= dst,
		.cookie	= cookie,
	};
	unsigned int i, j;

	if (!(READ_ONCE(mirror->event_mask) & HMMRT_SHIM_BIND_EVENTS_MIGRATE))
		return;
	for (i = 0; i < n; i = j) {
		j = i + 1;
		if (status[i] != HMMRT_SHIM_DONE)
			continue;
		while (j < n && status[j] == HMMRT_SHIM_DONE)
			j++;
		ev.addr = addr + ((unsigned long)i << PAGE_SHIFT);
		ev.npages = j - i;
		shim_event(mirror, HMMRT_SHIM_BIND_EVENTS_MIGRATE, &ev);
	}
}

/*
 * Why a page that is mapped was not moved to dev, or what it is if not on dev. SHIM_UNKNOWN: no reason seen, or the
 * CPU's page table has nothing to see. The span's lock is held, so the page is mapped.
 */
static u8 shim_explain(struct shim_device *dev, unsigned long pfn)
{
	struct page *page;

	if (pfn & HMM_PFN_ERROR)
		return HMMRT_SHIM_FAILED;
	if (!(pfn & HMM_PFN_VALID))
		return SHIM_UNKNOWN;
	page = hmm_pfn_to_page(pfn);
	if (shim_page_device(page) == dev)
		return HMMRT_SHIM_ALREADY;
	if (is_zero_pfn(page_to_pfn(page)) || shim_page_device(page))
		return SHIM_UNKNOWN;
	if (is_zone_device_page(page) || !PageAnon(page))
		return HMMRT_SHIM_UNSUPPORTED;
	return folio_maybe_dma_pinned(page_folio(page)) ? HMMRT_SHIM_PINNED : SHIM_UNKNOWN;
}

/* A mapping that has nothing to move or to have exclusively. SHIM_UNKNOWN: it may have. */
u8 shim_vma_kind(struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_READ))
		return HMMRT_SHIM_FORBIDDEN;
	if (vma->vm_flags & (VM_IO | VM_PFNMAP | VM_SPECIAL | VM_HUGETLB | VM_SHARED))
		return HMMRT_SHIM_UNSUPPORTED;
	return SHIM_UNKNOWN;
}

/*
 * A mapping that cannot go to a device at all. One of them is what KSM may merge: migrate_vma_setup() puts its entry in place
 * before it asks who else maps the page, and the way back is by the page's reverse map. KSM maps a merged page first and
 * adds it to the page's reverse map afterwards; an entry made in between would never be found again, and whoever touches
 * it would wait for a page that is not locked. MADV_MERGEABLE takes mmap_lock for writing, and MADV_UNMERGEABLE undoes
 * all merging.
 */
static u8 shim_vma_status(struct vm_area_struct *vma)
{
	return vma->vm_flags & VM_MERGEABLE ? HMMRT_SHIM_UNSUPPORTED : shim_vma_kind(vma);
}

/* Gives each page that has no mapping, or an unfit one, its status. What failed in a fit one did fail: it holds poison. */
static void shim_mark_vmas(struct mm_struct *mm, u8 *status, unsigned long addr, unsigned int n)
{
	unsigned int i;

	mmap_read_lock(mm);
	for (i = 0; i < n; i++, addr += PAGE_SIZE) {
		struct vm_area_struct *vma;
		u8 fit;

		if (status[i] != SHIM_UNKNOWN && status[i] != HMMRT_SHIM_GONE && status[i] != HMMRT_SHIM_FAILED)
			continue;
		vma = vma_lookup(mm, addr);
		fit = vma ? shim_vma_status(vma) : HMMRT_SHIM_GONE;
		if (fit != SHIM_UNKNOWN || status[i] != HMMRT_SHIM_FAILED)
			status[i] = fit;
	}
	mmap_read_unlock(mm);
}

static u8 shim_errno_status(int err)
{
	switch (err) {
	case -ENOMEM:
		return HMMRT_SHIM_NO_MEMORY;
	case -ENOSPC:
	case -EDQUOT:
	case -ENODEV:
		return HMMRT_SHIM_NO_SPACE;
	case -EFAULT:
		return HMMRT_SHIM_GONE;
	default:
		return HMMRT_SHIM_BUSY;
	}
}

int shim_to_sys_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
		      u64 cookie)
{
	struct shim_device *dev = mirror->dev;
	struct shim_span *span;
	unsigned int i;

	memset(batch->status, SHIM_UNKNOWN, n);
	shim_walks_wait(mirror->mm);
	shim_home_range(dev, batch, mirror->mm, addr, n, batch->status);
	shim_tell_moved(mirror, batch->status, addr, n, dev->id, HMMRT_SHIM_LOC_SYSTEM, HMMRT_SHIM_REASON_REQUEST,
			cookie);
	if (!memchr(batch->status, SHIM_UNKNOWN, n))
		return 0;

	span = shim_pfns_peek(mirror, batch->pfns, addr, n);
	if (PTR_ERR_OR_ZERO(span) == -EINTR)
		return -EINTR;
	for (i = 0; i < n; i++) {
		if (batch->status[i] != SHIM_UNKNOWN)
			continue;
		if (IS_ERR(span)) {
			batch->status[i] = shim_errno_status(PTR_ERR(span));
		} else if (batch->pfns[i] & HMM_PFN_ERROR) {
			batch->status[i] = HMMRT_SHIM_FAILED;
		} else if (shim_explain(dev, batch->pfns[i]) == HMMRT_SHIM_ALREADY) {
			/* Still on the device. */
			batch->status[i] = folio_maybe_dma_pinned(page_folio(hmm_pfn_to_page(batch->pfns[i]))) ?
				HMMRT_SHIM_PINNED : HMMRT_SHIM_BUSY;
		} else {
			batch->status[i] = HMMRT_SHIM_ALREADY;
		}
	}
	if (!IS_ERR(span))
		up_read(&span->lock);
	if (memchr(batch->status, HMMRT_SHIM_FAILED, n))
		shim_mark_vmas(mirror->mm, batch->status, addr, n);
	return 0;
}

/* ---- to the device --------------------------------------------------------------------------- */

/*
 * One attempt at [start, start + n pages) of one vma. status[i]: DONE, NO_SPACE, NO_MEMORY, FAILED, NOT_POPULATED, or
 * left alone when the page was not collected or lost. mmap_lock held. Returns the frame allocator's last word.
 */
static int shim_to_dev_vma(struct shim_mirror *mirror, struct shim_batch *batch, struct vm_area_struct *vma,
			   unsigned long start, unsigned int n, u32 flags, u8 granule, u8 *status)
{
	struct shim_device *dev = mirror->dev;
	struct migrate_vma args = {
		.vma		= vma,
		.start		= start,
		.end		= start + ((unsigned long)n << PAGE_SHIFT),
		.src		= batch->src,
		.dst		= batch->dst,
		.pgmap_owner	= dev,
		.flags		= MIGRATE_VMA_SELECT_SYSTEM,
	};
	unsigned int i, want = 0, got, used = 0;
	int err;

	if (migrate_vma_setup(&args)) {
		memset(status, HMMRT_SHIM_UNSUPPORTED, n);
		return 0;
	}
	for (i = 0; i < n; i++) {
		struct page *page = migrate_pfn_to_page(args.src[i]);

		if (!(args.src[i] & MIGRATE_PFN_MIGRATE))
			continue;
		if (!page && (flags & HMMRT_SHIM_RANGE_NO_POPULATE || !vma_is_anonymous(vma))) {
			status[i] = HMMRT_SHIM_NOT_POPULATED;
			args.src[i] = 0;
		} else if (shim_inject(dev, HMMRT_SHIM_INJECT_COPY) || (page && PageHWPoison(page))) {
			status[i] = HMMRT_SHIM_FAILED;
		} else {
			status[i] = SHIM_UNKNOWN;
			args.dst[i] = 1;	/* wants a frame */
			want++;
		}
	}
	down_read(&dev->fill);
	got = want ? shim_frames_alloc(dev, mirror->account, want, granule, batch->pages, &err) : 0;
	if (!want)
		err = 0;
	for (i = 0; i < n; i++) {
		if (!args.dst[i])
			continue;
		if (used == got) {
			args.dst[i] = 0;
			status[i] = shim_errno_status(err);
			continue;
		}
		args.dst[i] = migrate_pfn(page_to_pfn(batch->pages[used]));
		if (!migrate_pfn_to_page(args.src[i]))
			shim_clear_page(batch->pages[used]);
		used++;
	}
	shim_copy_pages(args.dst, args.src, n);
	migrate_vma_pages(&args);
	for (i = 0; i < n; i++)
		if (args.dst[i] && args.src[i] & MIGRATE_PFN_MIGRATE)
			status[i] = HMMRT_SHIM_DONE;
	migrate_vma_finalize(&args);
	up_read(&dev->fill);
	return err;
}

/*
 * Pages that KSM has merged stay: their way back may be unknown even in a mapping that is not mergeable. One that was
 * swapped out while MADV_UNMERGEABLE undid the merging comes back merged, and is forgotten by KSM; so is the parent's
 * mapping of a page that only its child lets merge. Between this look and the migration KSM would have to find the page
 * twice.
 */
static int shim_refuse_merged(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n)
{
	struct shim_span *span;
	unsigned int i;

	if (!IS_ENABLED(CONFIG_KSM))
		return 0;
	span = shim_pfns_peek(mirror, batch->pfns, addr, n);
	if (IS_ERR(span))
		return PTR_ERR(span);
	for (i = 0; i < n; i++)
		if (batch->status[i] == SHIM_UNKNOWN && batch->pfns[i] & HMM_PFN_VALID &&
		    PageKsm(hmm_pfn_to_page(batch->pfns[i])))
			batch->status[i] = HMMRT_SHIM_UNSUPPORTED;
	up_read(&span->lock);
	return 0;
}

/* One attempt at every page of the block that is SHIM_UNKNOWN. */
static int shim_to_dev_round(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
			     u32 flags, u8 granule)
{
	struct rw_semaphore *gate = SHIM_HAVE_EXCLUSIVE && shim_is_coherent(mirror->dev) ? shim_gate(mirror->mm) : NULL;
	unsigned int i, run;
	int err = 0;

	if (shim_refuse_merged(mirror, batch, addr, n) == -EINTR)
		return -EINTR;
	mmap_read_lock(mirror->mm);
	if (gate)
		down_read(gate);
	for (i = 0; i < n; i += run) {
		unsigned long at = addr + ((unsigned long)i << PAGE_SHIFT);
		struct vm_area_struct *vma;
		u8 fit;
		int e;

		run = 1;
		if (batch->status[i] != SHIM_UNKNOWN)
			continue;
		vma = vma_lookup(mirror->mm, at);
		fit = vma ? shim_vma_status(vma) : HMMRT_SHIM_GONE;
		if (fit != SHIM_UNKNOWN) {
			batch->status[i] = fit;
			continue;
		}
		while (i + run < n && batch->status[i + run] == SHIM_UNKNOWN &&
		       at + ((unsigned long)run << PAGE_SHIFT) < vma->vm_end)
			run++;
		e = shim_to_dev_vma(mirror, batch, vma, at, run, flags, granule, &batch->status[i]);
		err = err ? : e;
	}
	if (gate)
		up_read(gate);
	mmap_read_unlock(mirror->mm);
	return err;
}

/*
 * Pages of a file's private mapping that the CPU has not mapped: a fault would populate. Never touched, or swapped out:
 * that cannot be told apart. (In anonymous memory, migrate_vma_setup() does.)
 */
static void shim_mark_file_holes(struct mm_struct *mm, struct shim_batch *batch, unsigned long addr, unsigned int n)
{
	unsigned int i;

	mmap_read_lock(mm);
	for (i = 0; i < n; i++, addr += PAGE_SIZE) {
		struct vm_area_struct *vma;

		if (batch->status[i] != SHIM_UNKNOWN || batch->pfns[i] & HMM_PFN_VALID)
			continue;
		vma = vma_lookup(mm, addr);
		if (vma && !vma_is_anonymous(vma))
			batch->status[i] = HMMRT_SHIM_NOT_POPULATED;
	}
	mmap_read_unlock(mm);
}

/*
 * Finds out about the pages still SHIM_UNKNOWN, and removes what stood in the way where that is possible: swapped out,
 * private to another device (both: faulted in), coherent memory of another device (brought home).
 */
static int shim_to_dev_clear_way(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr,
				 unsigned int n, u32 flags, u8 granule, u64 *faults)
{
	struct shim_device *other = NULL;
	struct shim_span *span;
	unsigned int i, run;
	u8 scratch[SHIM_BLOCK_PAGES];

	span = shim_pfns_peek(mirror, batch->pfns, addr, n);
	if (IS_ERR(span))
		return PTR_ERR(span) == -EINTR ? -EINTR : 0;
	for (i = 0; i < n; i++) {
		if (batch->status[i] != SHIM_UNKNOWN)
			continue;
		batch->status[i] = shim_explain(mirror->dev, batch->pfns[i]);
		if (batch->status[i] == HMMRT_SHIM_ALREADY)
			shim_page_frame(mirror->dev, hmm_pfn_to_page(batch->pfns[i]))->granule = granule;
		else if (batch->status[i] == SHIM_UNKNOWN && batch->pfns[i] & HMM_PFN_VALID)
			other = shim_page_device(hmm_pfn_to_page(batch->pfns[i])) ? : other;
	}
	/* The page keeps its device there, and so does the reference from now on. */
	if (other)
		kref_get(&other->ref);
	up_read(&span->lock);

	if (other) {
		shim_home_other(other, batch, mirror->mm, addr, n, scratch);
		kref_put(&other->ref, shim_device_release);
	}
	if (flags & HMMRT_SHIM_RANGE_NO_POPULATE)
		shim_mark_file_holes(mirror->mm, batch, addr, n);
	for (i = 0; i < n; i += run) {
		run = 1;
		if (batch->status[i] != SHIM_UNKNOWN || batch->pfns[i] & HMM_PFN_VALID)
			continue;
		while (i + run < n && batch->status[i + run] == SHIM_UNKNOWN && !(batch->pfns[i + run] & HMM_PFN_VALID))
			run++;
		++*faults;
		if (shim_fault_in(mirror, batch->pfns + i, addr + ((unsigned long)i << PAGE_SHIFT), run, false) ==
		    -EINTR)
			return -EINTR;
		/* pfns now say what was faulted in; the next round looks for itself. */
	}
	return 0;
}

int shim_to_dev_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
		      u32 flags, u64 cookie, u64 *faults)
{
	struct shim_device *dev = mirror->dev;
	unsigned int field = (flags & HMMRT_SHIM_RANGE_GRANULE_MASK) >> HMMRT_SHIM_RANGE_GRANULE_SHIFT;
	u8 granule = min_t(unsigned int, field ? field - 1 : READ_ONCE(shim_cpu_fault_order), SHIM_BLOCK_ORDER);
	unsigned int round, i;
	int err;

	memset(batch->status, SHIM_UNKNOWN, n);
	for (round = 0; round < SHIM_TO_DEV_ROUNDS; round++) {
		shim_walks_wait(mirror->mm);
		shim_arrivals_wait(dev, mirror->mm, addr, n);
		err = shim_to_dev_round(mirror, batch, addr, n, flags, granule);
		if (err && flags & HMMRT_SHIM_RANGE_EVICT && (err == -ENOSPC || err == -EDQUOT)) {
			unsigned long room = 0;

			for (i = 0; i < n; i++)
				room += batch->status[i] == HMMRT_SHIM_NO_SPACE;
			if (shim_evict(dev, err == -EDQUOT ? mirror->account : NULL, room)) {
				for (i = 0; i < n; i++)
					if (batch->status[i] == HMMRT_SHIM_NO_SPACE)
						batch->status[i] = SHIM_UNKNOWN;
				continue;
			}
		}
		if (!memchr(batch->status, SHIM_UNKNOWN, n))
			break;
		if (fatal_signal_pending(current))
			return -EINTR;
		err = shim_to_dev_clear_way(mirror, batch, addr, n, flags, granule, faults);
		if (err)
			return err;
		if (!memchr(batch->status, SHIM_UNKNOWN, n))
			break;
	}
	if (memchr(batch->status, HMMRT_SHIM_GONE, n) || memchr(batch->status, HMMRT_SHIM_FAILED, n))
		shim_mark_vmas(mirror->mm, batch->status, addr, n);
	for (i = 0; i < n; i++)
		if (batch->status[i] == SHIM_UNKNOWN)
			batch->status[i] = HMMRT_SHIM_BUSY;
	if (memchr(batch->status, HMMRT_SHIM_DONE, n) || memchr(batch->status, HMMRT_SHIM_ALREADY, n))
		shim_map_moved(mirror, batch, addr, n);
	shim_tell_moved(mirror, batch->status, addr, n, HMMRT_SHIM_LOC_SYSTEM, dev->id, HMMRT_SHIM_REASON_REQUEST,
			cookie);
	return 0;
}
