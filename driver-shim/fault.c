// SPDX-License-Identifier: GPL-2.0-only
/*
 * Device faults: the CPU's page table, faulted in and mirrored, a block at a time.
 *
 * The loop is the one that the kernel's documentation prescribes: read the notifier's sequence, walk with
 * hmm_range_fault() under mmap_lock, then, under the span's lock, install only if the sequence has not moved.
 *
 * One case that hmm_range_fault() leaves to the caller: a private page of this device that fork() made read-only is
 * reported valid and without write permission, whatever was asked for. It goes home first; the write fault then copies.
 */
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/magic.h>
#include <linux/sched/signal.h>

#include "shim.h"

/*
 * How long one block may lose races before it is reported busy, and how often it must have: on an emulated machine, where
 * a TLB shootdown may take milliseconds and a migration half a second, the time alone is soon over.
 */
#define SHIM_FAULT_PATIENCE	msecs_to_jiffies(HMM_RANGE_DEFAULT_TIMEOUT)
#define SHIM_FAULT_LOSSES	16

/*
 * A walk that meets an invalidation waits until none is at work anywhere in the address space, and counts only if none
 * came to its span meanwhile. Two threads that move pages without pause seldom leave such a moment: one is at it while
 * the other waits for a processor. So walks are listed while they last, and calls that move pages let a late one pass: one
 * that has lost, or waits to begin. (Not one that only takes long, because of a disk.)
 */
#define SHIM_WALK_LATE		msecs_to_jiffies(10)

/* How long they wait: it may take long besides. */
#define SHIM_WALK_PASS_NS	(100 * NSEC_PER_MSEC)

#define SHIM_WALKS_BITS		6

/* By address space, hashed. */
static struct shim_walks {
	spinlock_t lock;
	struct list_head list;
} shim_walks[1 << SHIM_WALKS_BITS];

/* On the walking thread's stack. */
struct shim_walker {
	struct list_head node;
	struct mm_struct *mm;
	unsigned long since;		/* jiffies */
	bool losing;			/* has lost, or waits to begin */
};

void shim_walks_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(shim_walks); i++) {
		spin_lock_init(&shim_walks[i].lock);
		INIT_LIST_HEAD(&shim_walks[i].list);
	}
}

static struct shim_walks *shim_walks_of(struct mm_struct *mm)
{
	return &shim_walks[hash_ptr(mm, SHIM_WALKS_BITS)];
}

static void shim_walk_begin(struct shim_walker *walker, struct mm_struct *mm)
{
	struct shim_walks *walks = shim_walks_of(mm);

	walker->mm = mm;
	walker->losing = false;
	spin_lock(&walks->lock);
	walker->since = jiffies;
	list_add(&walker->node, &walks->list);
	spin_unlock(&walks->lock);
}

static void shim_walk_end(struct shim_walker *walker)
{
	struct shim_walks *walks = shim_walks_of(walker->mm);

	spin_lock(&walks->lock);
	list_del(&walker->node);
	spin_unlock(&walks->lock);
}

static bool shim_walk_is_late(struct shim_walks *walks, struct mm_struct *mm)
{
	struct shim_walker *walker;
	bool late = false;

	spin_lock(&walks->lock);
	list_for_each_entry(walker, &walks->list, node)
		late |= walker->mm == mm && READ_ONCE(walker->losing) &&
			time_after(jiffies, walker->since + SHIM_WALK_LATE);
	spin_unlock(&walks->lock);
	return late;
}

/* Lets a late walk of mm pass. Sleeps; 100 ms at most, less when killed. Not by one who walks. */
void shim_walks_wait(struct mm_struct *mm)
{
	struct shim_walks *walks = shim_walks_of(mm);
	u64 until;

	if (list_empty_careful(&walks->list))
		return;
	until = ktime_get_ns() + SHIM_WALK_PASS_NS;
	while (shim_walk_is_late(walks, mm) && ktime_get_ns() < until && !fatal_signal_pending(current))
		usleep_range(20, 100);
}

/*
 * memfd_secret(): not even the kernel may see it. Its pages are not in the direct map, by which the device works;
 * get_user_pages() refuses them, hmm_range_fault() does not know them.
 */
static bool shim_vma_secret(struct vm_area_struct *vma)
{
	return vma->vm_file && file_inode(vma->vm_file)->i_sb->s_magic == SECRETMEM_MAGIC;
}

/* A shadow stack's pages are writable by calls and returns only. hmm_range_fault() does not know that, either. */
bool shim_vma_writable(struct vm_area_struct *vma)
{
	return vma->vm_flags & VM_WRITE && !(vma->vm_flags & VM_SHADOW_STACK);
}

/* hmm_range_fault(), and what it does not know. mmap_lock held. */
static int shim_walk_range(struct mm_struct *mm, struct hmm_range *range)
{
	unsigned long addr, want = range->default_flags;
	struct vm_area_struct *vma;
	int err;

	for (vma = find_vma(mm, range->start); want && vma && vma->vm_start < range->end;
	     vma = find_vma(mm, vma->vm_end))
		if (shim_vma_secret(vma) || (want & HMM_PFN_REQ_WRITE && !shim_vma_writable(vma)))
			return -EFAULT;
	err = hmm_range_fault(range);
	if (err)
		return err;
	for (vma = find_vma(mm, range->start); vma && vma->vm_start < range->end; vma = find_vma(mm, vma->vm_end)) {
		if (shim_vma_writable(vma) && !shim_vma_secret(vma))
			continue;
		for (addr = max(vma->vm_start, range->start); addr < min(vma->vm_end, range->end); addr += PAGE_SIZE) {
			unsigned long *pfn = &range->hmm_pfns[(addr - range->start) >> PAGE_SHIFT];

			*pfn = shim_vma_secret(vma) ? HMM_PFN_ERROR : *pfn & ~HMM_PFN_WRITE;
		}
	}
	return 0;
}

/* One walk after the other, until one counts. */
static int shim_walk_until(struct shim_mirror *mirror, struct shim_span *span, struct hmm_range *range,
			   struct shim_walker *walker)
{
	unsigned long until = jiffies + SHIM_FAULT_PATIENCE;
	unsigned int losses;
	int err;

	for (losses = 0;; losses++) {
		if (fatal_signal_pending(current))
			return -EINTR;
		if (losses >= SHIM_FAULT_LOSSES && time_after(jiffies, until))
			return -EBUSY;
		WRITE_ONCE(walker->losing, true);
		range->notifier_seq = mmu_interval_read_begin(range->notifier);
		WRITE_ONCE(walker->losing, losses > 0);
		if (mmap_read_lock_killable(mirror->mm))
			return -EINTR;
		err = shim_walk_range(mirror->mm, range);
		mmap_read_unlock(mirror->mm);
		if (err == -EBUSY) {
			cond_resched();
			continue;
		}
		if (err)
			return err;
		down_read(&span->lock);
		if (!mmu_interval_read_retry(range->notifier, range->notifier_seq) &&
		    !shim_inject(mirror->dev, HMMRT_SHIM_INJECT_RETRY))
			return 0;
		up_read(&span->lock);
		cond_resched();
	}
}

/* Walks [addr, addr + n); on 0, the span is locked for reading and pfns are what the CPU has. */
static int shim_walk(struct shim_mirror *mirror, struct shim_span *span, unsigned long *pfns, unsigned long addr,
		     unsigned int n, unsigned long want)
{
	struct hmm_range range = {
		.notifier		= &span->mni,
		.start			= addr,
		.end			= addr + ((unsigned long)n << PAGE_SHIFT),
		.hmm_pfns		= pfns,
		.default_flags		= want,
		.dev_private_owner	= mirror->dev,
	};
	struct shim_walker walker;
	int err;

	memset(pfns, 0, n * sizeof(*pfns));	/* from 6.16 on, some of their flags are input */
	shim_walk_begin(&walker, mirror->mm);
	err = shim_walk_until(mirror, span, &range, &walker);
	shim_walk_end(&walker);
	return err;
}

/*
 * What the CPU has at [addr, addr + n), within one block, without changing it. Returns the span, locked for reading: as
 * long as it is, the pages are where pfns says. Or an error.
 */
struct shim_span *shim_pfns_peek(struct shim_mirror *mirror, unsigned long *pfns, unsigned long addr, unsigned int n)
{
	struct shim_span *span = shim_span_get(mirror, addr);
	int err;

	if (IS_ERR(span))
		return span;
	err = shim_walk(mirror, span, pfns, addr, n, 0);
	return err ? ERR_PTR(err) : span;
}

/* Faults the CPU's page table in, and mirrors nothing. pfns is what it had for a moment: a hint. */
int shim_fault_in(struct shim_mirror *mirror, unsigned long *pfns, unsigned long addr, unsigned int n, bool write)
{
	struct shim_span *span = shim_span_get(mirror, addr);
	int err;

	if (IS_ERR(span))
		return PTR_ERR(span);
	err = shim_walk(mirror, span, pfns, addr, n, HMM_PFN_REQ_FAULT | (write ? HMM_PFN_REQ_WRITE : 0));
	if (!err)
		up_read(&span->lock);
	return err;
}

/* Index of the first page that may not be written, or n. */
static unsigned int shim_first_readonly(const unsigned long *pfns, unsigned int from, unsigned int n)
{
	while (from < n && pfns[from] & HMM_PFN_WRITE)
		from++;
	return from;
}

/*
 * Mirrors what pfns has, or only what of it is on dev. The span's lock is held, for reading: nothing was invalidated
 * since the walk, so whoever else stores here stores the same page, and what is there keeps its rights. Two who store
 * at once may lose a right, which costs one of them another fault.
 */
static void shim_install(unsigned long *pte, const unsigned long *pfns, unsigned int n, struct shim_device *only)
{
	unsigned int i;

	for (i = 0; i < n; i++) {
		unsigned long flags = SHIM_PTE_VALID, was = READ_ONCE(pte[i]);
		struct page *page;

		if (!(pfns[i] & HMM_PFN_VALID))
			continue;
		page = hmm_pfn_to_page(pfns[i]);
		if (only && shim_page_device(page) != only)
			continue;
		if (pfns[i] & HMM_PFN_WRITE)
			flags |= SHIM_PTE_WRITE;
		flags = shim_pte_make(page, flags | (was & (SHIM_PTE_WRITE | SHIM_PTE_EXCL)));
		if (was != flags)
			WRITE_ONCE(pte[i], flags);
	}
}

/*
 * Mirrors the pages of [addr, addr + n) that are on the device, without faults: after a migration, before the device
 * asks. What is lost on the way, the device faults in.
 */
void shim_map_moved(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n)
{
	struct shim_span *span = shim_span_get(mirror, addr);
	unsigned long *pte;

	if (IS_ERR(span) || shim_leaf_make(span, addr) || shim_walk(mirror, span, batch->pfns, addr, n, 0))
		return;
	pte = shim_pte(span, addr);
	if (pte) {
		shim_install(pte, batch->pfns, n, mirror->dev);
		atomic64_inc(&mirror->gen);
	}
	up_read(&span->lock);
}

/*
 * A device write found pages of its own that the CPU's page table has read-only. Brings them home, unless the mapping
 * itself forbids writing.
 */
static int shim_home_readonly(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n)
{
	struct vm_area_struct *vma;
	u8 scratch[SHIM_BLOCK_PAGES];	/* batch->status holds the caller's results */
	int err = 0;

	mmap_read_lock(mirror->mm);
	vma = vma_lookup(mirror->mm, addr);
	if (!vma)
		err = -EFAULT;
	else if (!shim_vma_writable(vma))
		err = -EPERM;
	else
		shim_home_vma(mirror->dev, batch, vma, addr,
			      min_t(unsigned long, n, (vma->vm_end - addr) >> PAGE_SHIFT), scratch);
	mmap_read_unlock(mirror->mm);
	return err;
}

/*
 * Faults in and mirrors [addr, addr + n) all or nothing. 0, or -EINTR, -EBUSY (kept losing), -ENOMEM, -EFAULT, -EPERM.
 */
static int shim_fault_run(struct shim_mirror *mirror, struct shim_span *span, struct shim_batch *batch,
			  unsigned long addr, unsigned int n, bool write)
{
	unsigned long want = HMM_PFN_REQ_FAULT | (write ? HMM_PFN_REQ_WRITE : 0);
	unsigned long *pte, *pfns = batch->pfns;
	unsigned long until = jiffies + SHIM_FAULT_PATIENCE;
	unsigned int first;
	int err;

	/* Each turn but the last undid something that another thread keeps doing, or met one that is at it. */
	do {
		err = shim_leaf_make(span, addr);
		if (err)
			return err;
		err = shim_walk(mirror, span, pfns, addr, n, want);
		if (err)
			return err;
		first = write ? shim_first_readonly(pfns, 0, n) : n;
		pte = shim_pte(span, addr);
		if (first == n && pte) {
			shim_install(pte, pfns, n, NULL);
			atomic64_inc(&mirror->gen);
			up_read(&span->lock);
			return 0;
		}
		up_read(&span->lock);
		while (first < n) {
			unsigned int last = first;

			while (last < n && !(pfns[last] & HMM_PFN_WRITE))
				last++;
			err = shim_home_readonly(mirror, batch, addr + ((unsigned long)first << PAGE_SHIFT),
						 last - first);
			if (err)
				return err;
			first = shim_first_readonly(pfns, last, n);
		}
		cond_resched();
	} while (!time_after(jiffies, until));
	return -EBUSY;
}

/* What to tell about a page that could not be faulted in. */
u8 shim_fault_status(struct shim_mirror *mirror, unsigned long addr, int err, bool write)
{
	struct vm_area_struct *vma;
	u8 status;

	if (err == -EBUSY)
		return HMMRT_SHIM_BUSY;
	if (err == -ENOMEM)
		return HMMRT_SHIM_NO_MEMORY;
	mmap_read_lock(mirror->mm);
	vma = vma_lookup(mirror->mm, addr);
	if (!vma)
		status = HMMRT_SHIM_GONE;
	else if (!(vma->vm_flags & VM_READ) || (write && !shim_vma_writable(vma)) || shim_vma_secret(vma))
		status = HMMRT_SHIM_FORBIDDEN;
	else if (vma->vm_flags & (VM_IO | VM_PFNMAP))
		status = HMMRT_SHIM_UNSUPPORTED;
	else
		status = HMMRT_SHIM_FAILED;
	mmap_read_unlock(mirror->mm);
	return status;
}

/* Whether the device has every page already, with the rights asked for. */
static bool shim_all_mapped(struct shim_span *span, unsigned long addr, unsigned int n, bool write)
{
	unsigned long need = SHIM_PTE_VALID | (write ? SHIM_PTE_WRITE : 0);
	unsigned long *pte;
	unsigned int i = 0;

	down_read(&span->lock);
	pte = shim_pte(span, addr);
	while (pte && i < n && (READ_ONCE(pte[i]) & need) == need)
		i++;
	up_read(&span->lock);
	return i == n;
}

int shim_fault_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
		     bool write, u64 *faults)
{
	struct shim_span *span = shim_span_get(mirror, addr);
	struct hmmrt_shim_event ev = {
		.addr	= addr,
		.npages	= n,
		.type	= HMMRT_SHIM_EVENT_DEVICE_FAULT,
		.reason	= HMMRT_SHIM_REASON_DEVICE_FAULT,
		.src	= HMMRT_SHIM_LOC_UNKNOWN,
		.dst	= mirror->dev->id,
	};
	unsigned int i;
	int err;

	if (IS_ERR(span)) {
		++*faults;
		ev.err = PTR_ERR(span);
		memset(batch->status, ev.err == -EFAULT ? HMMRT_SHIM_GONE : HMMRT_SHIM_NO_MEMORY, n);
		shim_event(mirror, HMMRT_SHIM_BIND_EVENTS_FAULT, &ev);
		return 0;
	}
	if (shim_all_mapped(span, addr, n, write)) {
		memset(batch->status, HMMRT_SHIM_ALREADY, n);
		return 0;
	}
	++*faults;
	err = shim_fault_run(mirror, span, batch, addr, n, write);
	if (err == -EINTR)
		return err;
	if (!err) {
		memset(batch->status, HMMRT_SHIM_DONE, n);
	} else {
		/* Something in the block cannot be faulted in: find out page by page what can. */
		for (i = 0; i < n; i++) {
			unsigned long page = addr + ((unsigned long)i << PAGE_SHIFT);

			/* Kept losing as a whole: a page at a time would cost that long each. */
			if (err != -EBUSY || !i || batch->status[i - 1] != HMMRT_SHIM_BUSY)
				err = shim_fault_run(mirror, span, batch, page, 1, write);
			if (err == -EINTR)
				return err;
			batch->status[i] = err ? shim_fault_status(mirror, page, err, write) : HMMRT_SHIM_DONE;
			ev.err = ev.err ? : err;
			cond_resched();
		}
	}
	shim_event(mirror, HMMRT_SHIM_BIND_EVENTS_FAULT, &ev);
	return 0;
}

static u8 shim_snapshot_byte(struct shim_mirror *mirror, unsigned long pfn, unsigned long pte)
{
	struct shim_device *owner;
	struct page *page;
	unsigned int order;
	u8 byte;

	if (pte & SHIM_PTE_EXCL)
		return HMMRT_SHIM_PAGE_READ | HMMRT_SHIM_PAGE_WRITE | HMMRT_SHIM_PAGE_EXCLUSIVE;
	if (pfn & HMM_PFN_ERROR)
		return HMMRT_SHIM_PAGE_ERROR;
	if (!(pfn & HMM_PFN_VALID))
		return HMMRT_SHIM_PAGE_NONE;

	byte = HMMRT_SHIM_PAGE_READ | (pfn & HMM_PFN_WRITE ? HMMRT_SHIM_PAGE_WRITE : 0);
	order = hmm_pfn_to_map_order(pfn);
	if (order + PAGE_SHIFT == PMD_SHIFT)
		byte |= HMMRT_SHIM_PAGE_SIZE_PMD;
	else if (order + PAGE_SHIFT == PUD_SHIFT)
		byte |= HMMRT_SHIM_PAGE_SIZE_PUD;

	page = hmm_pfn_to_page(pfn);
	owner = shim_page_device(page);
	if (is_device_private_page(page))
		byte |= HMMRT_SHIM_PAGE_PRIVATE_HERE;
	else if (is_device_coherent_page(page))
		byte |= owner == mirror->dev ? HMMRT_SHIM_PAGE_COHERENT_HERE : HMMRT_SHIM_PAGE_COHERENT_OTHER;
	else if (is_zero_pfn(page_to_pfn(page)))
		byte |= HMMRT_SHIM_PAGE_ZERO;
	return byte;
}

int shim_snapshot_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n)
{
	struct shim_span *span = shim_pfns_peek(mirror, batch->pfns, addr, n);
	unsigned long *pte;
	unsigned int i;

	if (IS_ERR(span)) {
		memset(batch->status, HMMRT_SHIM_PAGE_ERROR, n);
		return PTR_ERR(span) == -EINTR ? -EINTR : 0;
	}
	pte = shim_pte(span, addr);
	for (i = 0; i < n; i++)
		batch->status[i] = shim_snapshot_byte(mirror, batch->pfns[i], pte ? READ_ONCE(pte[i]) : 0);
	up_read(&span->lock);
	return 0;
}
