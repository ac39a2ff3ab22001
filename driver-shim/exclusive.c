// SPDX-License-Identifier: GPL-2.0-only
/*
 * Exclusive access: the CPU's entries of a system page are replaced, and the device alone maps it until the CPU touches
 * it again. The kernel does that for ordinary, small, anonymous pages only. Mappings of other kinds are refused, and so
 * is a page of a larger one that is mapped by small entries; for the rest the way there is:
 *
 *   1. coherent device pages in the range go home (private ones do, when faulted), and stay there;
 *   2. a CPU write fault over the range, which undoes sharing and fills holes;
 *   3. a huge page among what step 2 found is split, as migration splits it: setup, then nothing;
 *   4. make_device_exclusive, which gives the pages locked;
 *   5. under the span's lock, if the sequence has not moved, the shadow entries; then the pages are unlocked.
 *
 * Step 5 needs both: the page lock holds off the CPU's touch, the sequence catches everything that needs no page lock
 * (MADV_DONTNEED). Our own notification is filtered by its owner and does not move the sequence.
 */
#include <linux/hash.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>

#include "shim.h"

#define SHIM_EXCLUSIVE_TRIES	16

/*
 * Never on a coherent page, whose device may be evicted meanwhile: the reverse map takes an exclusive entry for one of
 * migration, and eviction would leave a reference behind that no one drops. So while EXCLUSIVE looks at the pages and
 * marks them, no coherent page comes to that address space: TO_DEV holds the gate for reading. Under mmap_lock, since
 * address spaces share gates.
 */
#define SHIM_GATE_BITS	6

static struct rw_semaphore shim_gates[1 << SHIM_GATE_BITS];

void shim_gates_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(shim_gates); i++)
		init_rwsem(&shim_gates[i]);
}

struct rw_semaphore *shim_gate(struct mm_struct *mm)
{
	return &shim_gates[hash_ptr(mm, SHIM_GATE_BITS)];
}

/* Splits the huge page that the CPU maps over addr, if it does. Best effort: what is busy stays huge. */
void shim_split_huge(struct shim_device *dev, struct mm_struct *mm, unsigned long addr)
{
	unsigned long src = 0, dst = 0;
	struct migrate_vma args = {
		.start		= addr,
		.end		= addr + PAGE_SIZE,
		.src		= &src,
		.dst		= &dst,
		.pgmap_owner	= dev,
		.flags		= MIGRATE_VMA_SELECT_SYSTEM,
	};

	mmap_read_lock(mm);
	args.vma = vma_lookup(mm, addr);
	/* Why not where KSM merges: see shim_vma_status(). */
	if (args.vma && !(args.vma->vm_flags & VM_MERGEABLE) && !migrate_vma_setup(&args)) {
		migrate_vma_pages(&args);
		migrate_vma_finalize(&args);
	}
	mmap_read_unlock(mm);
}

#if SHIM_HAVE_EXCLUSIVE

/* Brings coherent pages home, those of one device after the other. */
static void shim_coherent_home(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n)
{
	unsigned int tries, i;

	for (tries = 0; tries < SHIM_EXCLUSIVE_TRIES; tries++) {
		struct shim_span *span = shim_pfns_peek(mirror, batch->pfns, addr, n);
		struct shim_device *dev = NULL;

		if (IS_ERR(span))
			return;
		for (i = 0; i < n && !dev; i++)
			if (batch->pfns[i] & HMM_PFN_VALID && is_device_coherent_page(hmm_pfn_to_page(batch->pfns[i])))
				dev = shim_page_device(hmm_pfn_to_page(batch->pfns[i]));
		/* The page keeps its device there, and so does the reference from now on. */
		if (dev)
			kref_get(&dev->ref);
		up_read(&span->lock);
		if (!dev)
			return;
		shim_home_other(dev, batch, mirror->mm, addr, n, batch->status);
		kref_put(&dev->ref, shim_device_release);
	}
}

/* Pages of mappings that have nothing to be had exclusively: not anonymous, or of huge pages. */
static void shim_exclusive_vmas(struct mm_struct *mm, u8 *status, unsigned long addr, unsigned int n)
{
	unsigned int i;

	mmap_read_lock(mm);
	for (i = 0; i < n; i++, addr += PAGE_SIZE) {
		struct vm_area_struct *vma = status[i] == SHIM_UNKNOWN ? vma_lookup(mm, addr) : NULL;

		if (vma)
			status[i] = shim_vma_kind(vma);
	}
	mmap_read_unlock(mm);
}

/* Marks what it can, pages locked and referenced in pages[], NULL where it could not. mmap_lock held. */
static void shim_mark_run(struct shim_mirror *mirror, struct page **pages, unsigned long addr, unsigned int n)
{
#if SHIM_HAVE_EXCLUSIVE_RANGE
	make_device_exclusive_range(mirror->mm, addr, addr + ((unsigned long)n << PAGE_SHIFT), pages, mirror);
#else
	unsigned int i;

	for (i = 0; i < n; i++, addr += PAGE_SIZE) {
		struct folio *folio;

		pages[i] = make_device_exclusive(mirror->mm, addr, mirror, &folio);
		if (IS_ERR(pages[i]))
			pages[i] = NULL;
	}
#endif
}

/*
 * Whether the kernel gives the page alone. Not a part of a larger one, which it cannot lock as it must, and the huge ones
 * of hugetlb it does not tell from others. The vma has it mapped.
 */
static bool shim_can_mark(struct vm_area_struct *vma, struct page *page)
{
	return vma && shim_vma_kind(vma) == SHIM_UNKNOWN && !is_device_coherent_page(page) &&
	       PageAnon(page) && !PageCompound(page);
}

/*
 * The same, for what is mapped now and can be had; private pages come home for it. pfns says what there is. mmap_lock
 * held; gate, written.
 */
static void shim_mark_exclusive(struct shim_mirror *mirror, struct shim_span *span, struct shim_batch *batch,
				unsigned long addr, unsigned int n, unsigned long seq)
{
	struct hmm_range range = {
		.notifier	= &span->mni,
		.notifier_seq	= seq,
		.start		= addr,
		.end		= addr + ((unsigned long)n << PAGE_SHIFT),
		.hmm_pfns	= batch->pfns,
		.dev_private_owner = mirror->dev,
	};
	unsigned int i, run;

	memset(batch->pages, 0, n * sizeof(*batch->pages));
	if (hmm_range_fault(&range)) {
		memset(batch->pfns, 0, n * sizeof(*batch->pfns));
		return;
	}
	for (i = 0; i < n; i += run) {
		for (run = 0; i + run < n; run++)
			if (!(batch->pfns[i + run] & HMM_PFN_VALID) ||
			    !shim_can_mark(vma_lookup(mirror->mm, addr + ((unsigned long)(i + run) << PAGE_SHIFT)),
					   hmm_pfn_to_page(batch->pfns[i + run])))
				break;
		if (run)
			shim_mark_run(mirror, batch->pages + i, addr + ((unsigned long)i << PAGE_SHIFT), run);
		else
			run = 1;
	}
}

/* A page of a larger one that the CPU maps by small entries: nothing that a module may call splits it. */
static bool shim_small_part(unsigned long pfn)
{
	return pfn & HMM_PFN_VALID && PageCompound(hmm_pfn_to_page(pfn)) &&
	       hmm_pfn_to_map_order(pfn) + PAGE_SHIFT < PMD_SHIFT;
}

/* One attempt at a run. status[i]: DONE, UNSUPPORTED, or left alone. */
static void shim_exclusive_run(struct shim_mirror *mirror, struct shim_span *span, struct shim_batch *batch,
			       unsigned long addr, unsigned int n, u8 *status)
{
	struct rw_semaphore *gate = shim_gate(mirror->mm);
	struct page **pages = batch->pages;
	unsigned int i, done = 0;
	unsigned long *pte, seq;

	if (shim_leaf_make(span, addr))
		return;
	seq = mmu_interval_read_begin(&span->mni);
	mmap_read_lock(mirror->mm);
	down_write(gate);
	shim_mark_exclusive(mirror, span, batch, addr, n, seq);
	down_write(&span->lock);
	pte = shim_pte(span, addr);
	if (pte && !mmu_interval_read_retry(&span->mni, seq)) {
		for (i = 0; i < n; i++) {
			if (!pages[i]) {
				if (shim_small_part(batch->pfns[i]))
					status[i] = HMMRT_SHIM_UNSUPPORTED;
				continue;
			}
			pte[i] = shim_pte_make(pages[i], SHIM_PTE_VALID | SHIM_PTE_WRITE | SHIM_PTE_EXCL);
			status[i] = HMMRT_SHIM_DONE;
			done++;
		}
	}
	if (done)
		atomic64_inc(&mirror->gen);
	up_write(&span->lock);
	/*
	 * Those that were marked but not installed come back with the CPU's next touch. Unlocked while mmap_lock keeps
	 * fork away, which fails when it finds an exclusive entry whose page is locked.
	 */
	for (i = 0; i < n; i++) {
		if (pages[i]) {
			unlock_page(pages[i]);
			put_page(pages[i]);
		}
	}
	up_write(gate);
	mmap_read_unlock(mirror->mm);
}

int shim_exclusive_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
			 u64 cookie, u64 *faults)
{
	struct shim_span *span = shim_span_get(mirror, addr);
	struct hmmrt_shim_event ev = {
		.addr	= addr,
		.type	= HMMRT_SHIM_EVENT_EXCLUSIVE,
		.reason	= HMMRT_SHIM_REASON_REQUEST,
		.src	= HMMRT_SHIM_LOC_SYSTEM,
		.dst	= mirror->dev->id,
		.cookie	= cookie,
	};
	u8 *status = batch->status;
	unsigned int i, run, tries;
	unsigned long *pte;
	int err;

	if (IS_ERR(span)) {
		memset(status, PTR_ERR(span) == -EFAULT ? HMMRT_SHIM_GONE : HMMRT_SHIM_NO_MEMORY, n);
		return 0;
	}
	shim_walks_wait(mirror->mm);
	shim_coherent_home(mirror, batch, addr, n);

	memset(status, SHIM_UNKNOWN, n);
	down_read(&span->lock);
	pte = shim_pte(span, addr);
	for (i = 0; pte && i < n; i++)
		if (READ_ONCE(pte[i]) & SHIM_PTE_EXCL)
			status[i] = HMMRT_SHIM_ALREADY;
	up_read(&span->lock);
	shim_exclusive_vmas(mirror->mm, status, addr, n);

	for (tries = 0; tries < SHIM_EXCLUSIVE_TRIES; tries++) {
		for (i = 0; i < n; i += run) {
			unsigned long at = addr + ((unsigned long)i << PAGE_SHIFT);

			run = 1;
			if (status[i] != SHIM_UNKNOWN)
				continue;
			/* After the first turn one by one, so that a page that cannot be had stops no other. */
			while (!tries && i + run < n && status[i + run] == SHIM_UNKNOWN)
				run++;
			if (fatal_signal_pending(current))
				return -EINTR;
			++*faults;
			err = shim_fault_in(mirror, batch->pfns + i, at, run, true);
			if (err == -EINTR)
				return err;
			if (err && run > 1)
				continue;
			if (err) {
				if (err != -EBUSY)
					status[i] = shim_fault_status(mirror, at, err, true);
				continue;
			}
			if (hmm_pfn_to_map_order(batch->pfns[i]) + PAGE_SHIFT >= PMD_SHIFT)
				shim_split_huge(mirror->dev, mirror->mm, at);
			shim_exclusive_run(mirror, span, batch, at, run, status + i);
		}
		if (!memchr(status, SHIM_UNKNOWN, n))
			break;
		cond_resched();
	}
	for (i = 0; i < n; i++) {
		if (status[i] == SHIM_UNKNOWN)
			status[i] = HMMRT_SHIM_BUSY;
		ev.npages += status[i] == HMMRT_SHIM_DONE;
	}
	if (ev.npages)
		shim_event(mirror, HMMRT_SHIM_BIND_EVENTS_MIGRATE, &ev);
	return 0;
}

#else

int shim_exclusive_block(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned int n,
			 u64 cookie, u64 *faults)
{
	return -EOPNOTSUPP;
}

#endif
