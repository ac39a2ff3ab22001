// SPDX-License-Identifier: GPL-2.0-only
/*
 * Eviction: pages go home because the device is full, somebody asked, or the device goes away. It works on frames, not
 * on addresses: whose pages they are does not matter, and their processes need not be mirrored any more.
 *
 * migrate_device_range() finds the mappings of a page by its reverse map and puts migration entries there;
 * migrate_device_finalize() walks the same reverse map again. In between the page counts as unmapped, so that the last
 * process that had it may exit, and free the anon_vma which the second walk is about to lock. Whoever migrates without
 * an mmap_lock must keep the anon_vma (mm/rmap.c, rmap_walk_anon_lock()); migrate_device_range() does not, and what
 * takes a reference is not exported. So we hold one of the areas on its tree, any one, by the mmap_lock of its process:
 * an anon_vma lives as long as it has an area that its process still has. From the look whose frames they are until
 * they are locked, dev->fill keeps TO_DEV from filling a free one, which would then go unkept.
 */
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "shim.h"

/* What keeps anon_vma alive: the mmap_lock of mm, for reading, and a user of it. Both NULL: nothing needs keeping. */
struct shim_keep {
	struct anon_vma *anon_vma;
	struct mm_struct *mm;
};

/* The anon_vma of a page as it says; NULL for a free frame. Only to be compared, unless the page is known to be mapped. */
static struct anon_vma *shim_anon_vma(struct page *page)
{
	unsigned long mapping = (unsigned long)READ_ONCE(page_folio(page)->mapping);

	if ((mapping & FOLIO_MAPPING_FLAGS) != FOLIO_MAPPING_ANON)
		return NULL;
	return (void *)(mapping - FOLIO_MAPPING_ANON);
}

/* Keeps the anon_vma of a mapped page. False when it cannot be had now. Waits for nothing. */
static bool shim_keep_anon_vma(struct page *page, struct shim_keep *keep)
{
	struct anon_vma *anon_vma;
	struct rw_semaphore *lock;
	struct rb_node *node;

	/* The memory of an anon_vma is one until the RCU readers are gone; a mapped page says that it is still its own. */
	rcu_read_lock();
	anon_vma = shim_anon_vma(page);
	lock = anon_vma && page_mapped(page) ? &READ_ONCE(anon_vma->root)->rwsem : NULL;
	if (!lock || !down_read_trylock(lock)) {
		rcu_read_unlock();
		return false;
	}
	if (!page_mapped(page) || shim_anon_vma(page) != anon_vma) {
		up_read(lock);
		rcu_read_unlock();
		return false;
	}
	rcu_read_unlock();

	keep->mm = NULL;
	for (node = rb_first_cached(&anon_vma->rb_root); node; node = rb_next(node)) {
		struct vm_area_struct *vma = rb_entry(node, struct anon_vma_chain, rb)->vma;
		struct mm_struct *mm = vma->vm_mm;

		if (!mmget_not_zero(mm))
			continue;
		if (mmap_read_trylock(mm)) {
			/* munmap() takes an area off this tree with mmap_lock downgraded: it must still be in its mm. */
			if (vma_lookup(mm, vma->vm_start) == vma) {
				keep->mm = mm;
				keep->anon_vma = anon_vma;
				break;
			}
			mmap_read_unlock(mm);
		}
		mmput_async(mm);
	}
	up_read(lock);
	return keep->mm;
}

static void shim_keep_end(struct shim_keep *keep)
{
	if (!keep->mm)
		return;
	mmap_read_unlock(keep->mm);
	mmput_async(keep->mm);	/* the last user's mmput() would tell our notifiers */
}

/*
 * How many frames from first on, at most n, have one anon_vma or none; keeps it. 0: the first cannot be kept now.
 * dev->fill is held for writing.
 */
static unsigned int shim_keep_run(struct shim_device *dev, unsigned long first, unsigned int n, struct shim_keep *keep)
{
	unsigned int i;

	*keep = (struct shim_keep){};
	for (i = 0; i < n; i++) {
		struct page *page = pfn_to_page(dev->first_pfn + first + i);
		struct anon_vma *anon_vma = shim_anon_vma(page);

		if (!anon_vma || anon_vma == keep->anon_vma)
			continue;
		if (keep->mm || !shim_keep_anon_vma(page, keep))
			break;
	}
	return i;
}

/* Brings home what it can of frames [first, first + n), within one block. Returns how many pages went. */
static unsigned long shim_evict_frames(struct shim_device *dev, struct shim_batch *batch, unsigned long first,
				       unsigned int n)
{
	unsigned long moved = 0;
	unsigned int i, run, done;

	for (done = 0; done < n; done += max(run, 1u)) {
		struct shim_keep keep;

		/* No frame is filled anew between the look and the migration, by which it would go unkept. */
		down_write(&dev->fill);
		run = shim_keep_run(dev, first + done, n - done, &keep);
		if (run)
			migrate_device_range(batch->src, dev->first_pfn + first + done, run);
		up_write(&dev->fill);
		if (!run)
			continue;
		shim_fill_home(dev, batch->src, batch->dst, batch->pages, run, run);
		migrate_device_pages(batch->src, batch->dst, run);
		for (i = 0; i < run; i++)
			moved += batch->dst[i] && batch->src[i] & MIGRATE_PFN_MIGRATE;
		migrate_device_finalize(batch->src, batch->dst, run);
		shim_keep_end(&keep);
	}
	return moved;
}

static unsigned long shim_evict_block(struct shim_device *dev, struct shim_batch *batch, struct shim_account *only,
				      unsigned long first)
{
	unsigned long moved = 0;
	unsigned int i, run;

	if (!only)
		return shim_evict_frames(dev, batch, first, SHIM_BLOCK_PAGES);
	/* Whose a frame is may change meanwhile: someone else's page evicted by mistake is a loss of time only. */
	for (i = 0; i < SHIM_BLOCK_PAGES; i += run) {
		run = 1;
		if (READ_ONCE(dev->frames[first + i].account) != only)
			continue;
		while (i + run < SHIM_BLOCK_PAGES && READ_ONCE(dev->frames[first + i + run].account) == only)
			run++;
		moved += shim_evict_frames(dev, batch, first + i, run);
	}
	return moved;
}

/* The block longest without a new page, later than `after`. Returns false when there is none. */
static bool shim_oldest_block(struct shim_device *dev, u64 *after, unsigned long *block)
{
	unsigned long i, blocks = dev->nframes / SHIM_BLOCK_PAGES;
	u64 best = U64_MAX, stamp;

	for (i = 0; i < blocks; i++) {
		stamp = READ_ONCE(dev->block_stamp[i]);
		if (stamp > *after && stamp < best) {
			best = stamp;
			*block = i;
		}
	}
	*after = best;
	return best != U64_MAX;
}

/*
 * Brings at least `want` pages home, of one account or (NULL) of all; returns how many went. Fewer: the rest is locked,
 * held, or the system has no memory. Takes page locks and mmap_locks by trylock only; sleeps.
 */
unsigned long shim_evict(struct shim_device *dev, struct shim_account *only, unsigned long want)
{
	unsigned long moved = 0, block = 0, blocks = dev->nframes / SHIM_BLOCK_PAGES;
	struct shim_batch *batch = kvmalloc(sizeof(*batch), GFP_KERNEL);
	u64 after = 0;

	if (!batch)
		return 0;
	/* All of it: in order of address, and by whoever takes the device down, signal or not. Else by age. */
	if (want >= dev->nframes) {
		for (block = 0; block < blocks; block++) {
			if (want != ULONG_MAX && fatal_signal_pending(current))
				break;
			moved += shim_evict_block(dev, batch, only, block * SHIM_BLOCK_PAGES);
			cond_resched();
		}
	} else {
		while (moved < want && !fatal_signal_pending(current) && shim_oldest_block(dev, &after, &block)) {
			moved += shim_evict_block(dev, batch, only, block * SHIM_BLOCK_PAGES);
			cond_resched();
		}
	}
	kvfree(batch);
	shim_devmem_drain(dev);
	return moved;
}
