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
 * an anon_vma lives as long as it has an area that its process still has. Where all those locks are busy, eviction waits
 * for one, with nothing else held. From the look whose frames they are until they are locked, dev->fill keeps TO_DEV
 * from filling a free one, which would then go unkept.
 */
#include <linux/delay.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "shim.h"

/* How often to look at a page whose keepers are busy: each time one of them was waited for, and lost the page. */
#define SHIM_KEEP_TRIES	16

/* What keeps anon_vmas alive. A user of each mm, too: with it, exit waits. */
struct shim_keep {
	struct mm_struct *mm;		/* its mmap_lock is held for reading; or NULL */
	struct anon_vma *anon_vma;	/* kept by mm; NULL: none needs keeping */
	struct mm_struct *busy;		/* could keep one, but its mmap_lock is taken; or NULL */
};

/* The anon_vma of a page as it says; NULL for a free frame. Only to be compared, unless the page is known to be mapped. */
static struct anon_vma *shim_anon_vma(struct page *page)
{
	unsigned long mapping = (unsigned long)READ_ONCE(page_folio(page)->mapping);

	if ((mapping & FOLIO_MAPPING_FLAGS) != FOLIO_MAPPING_ANON)
		return NULL;
	return (void *)(mapping - FOLIO_MAPPING_ANON);
}

/* The last user's mmput() would tell our notifiers, hence the worker. */
static void shim_keep_put(struct mm_struct **mm)
{
	if (*mm)
		mmput_async(*mm);
	*mm = NULL;
}

static void shim_keep_end(struct shim_keep *keep)
{
	if (keep->mm)
		mmap_read_unlock(keep->mm);
	shim_keep_put(&keep->mm);
	shim_keep_put(&keep->busy);
}

/*
 * Keeps the anon_vma of a mapped page; waits for nothing. -EAGAIN: try again; -EBUSY: wait for keep->busy first;
 * -ENOENT: whoever has the page is about to let go.
 */
static int shim_keep_anon_vma(struct page *page, struct shim_keep *keep)
{
	struct anon_vma *anon_vma;
	struct rw_semaphore *lock;
	struct rb_node *node;
	int err = -ENOENT;

	/* The memory of an anon_vma is one until the RCU readers are gone; a mapped page says that it is still its own. */
	rcu_read_lock();
	anon_vma = shim_anon_vma(page);
	if (!anon_vma || !page_mapped(page)) {
		rcu_read_unlock();
		return -ENOENT;
	}
	lock = &READ_ONCE(anon_vma->root)->rwsem;
	if (!down_read_trylock(lock)) {
		rcu_read_unlock();
		return -EAGAIN;
	}
	if (!page_mapped(page) || shim_anon_vma(page) != anon_vma) {
		up_read(lock);
		rcu_read_unlock();
		return -EAGAIN;
	}
	rcu_read_unlock();

	shim_keep_put(&keep->busy);
	for (node = rb_first_cached(&anon_vma->rb_root); node && err; node = rb_next(node)) {
		struct vm_area_struct *vma = rb_entry(node, struct anon_vma_chain, rb)->vma;
		struct mm_struct *mm = vma->vm_mm;
		bool mine = mm == keep->mm;	/* tried again, it may fail: a writer waits */

		if (!mine && !mmget_not_zero(mm))
			continue;
		if (!mine && !mmap_read_trylock(mm)) {
			if (keep->busy)
				mmput_async(mm);
			else
				keep->busy = mm;
			continue;
		}
		/* munmap() takes an area off this tree with mmap_lock downgraded: it must still be in its mm. */
		if (vma_lookup(mm, vma->vm_start) == vma) {
			if (!mine)
				shim_keep_end(keep);
			keep->mm = mm;
			keep->anon_vma = anon_vma;
			err = 0;
		} else if (!mine) {
			mmap_read_unlock(mm);
			mmput_async(mm);
		}
	}
	up_read(lock);
	return err && keep->busy ? -EBUSY : err;
}

/* Waits for what made a look fail. False: in vain, or the caller was killed. */
static bool shim_keep_wait(struct shim_keep *keep, int err)
{
	struct mm_struct *mm = keep->busy;

	if (err == -EAGAIN)
		usleep_range(20, 100);
	if (err != -EBUSY)
		return err == -EAGAIN;
	keep->busy = NULL;
	shim_keep_end(keep);
	if (mmap_read_lock_killable(mm)) {
		mmput_async(mm);
		return false;
	}
	keep->mm = mm;
	return true;
}

/*
 * How many frames from first on, at most n, have one anon_vma or none; keeps it. 0: the first cannot be kept, *err says
 * why. dev->fill is held for writing.
 */
static unsigned int shim_keep_run(struct shim_device *dev, unsigned long first, unsigned int n, struct shim_keep *keep,
				  int *err)
{
	unsigned int i;

	*err = 0;
	keep->anon_vma = NULL;
	for (i = 0; i < n; i++) {
		struct page *page = pfn_to_page(dev->first_pfn + first + i);
		struct anon_vma *anon_vma = shim_anon_vma(page);

		if (!anon_vma || anon_vma == keep->anon_vma)
			continue;
		if (keep->anon_vma)
			break;
		*err = shim_keep_anon_vma(page, keep);
		if (*err)
			break;
	}
	return i;
}

/* Brings home what it can of frames [first, first + n), within one block. Returns how many pages went. */
static unsigned long shim_evict_frames(struct shim_device *dev, struct shim_batch *batch, unsigned long first,
				       unsigned int n)
{
	unsigned int i, run, done, tries = 0;
	struct shim_keep keep = {};
	unsigned long moved = 0;
	int err;

	for (done = 0; done < n; done += run) {
		down_write(&dev->fill);
		run = shim_keep_run(dev, first + done, n - done, &keep, &err);
		if (run)
			migrate_device_range(batch->src, dev->first_pfn + first + done, run);
		up_write(&dev->fill);
		if (!run) {
			/* The page stays when that was in vain. */
			if (tries++ == SHIM_KEEP_TRIES || !shim_keep_wait(&keep, err)) {
				tries = 0;
				run = 1;
			}
			continue;
		}
		tries = 0;
		shim_fill_home(dev, batch->src, batch->dst, batch->pages, run, run);
		migrate_device_pages(batch->src, batch->dst, run);
		for (i = 0; i < run; i++)
			moved += batch->dst[i] && batch->src[i] & MIGRATE_PFN_MIGRATE;
		migrate_device_finalize(batch->src, batch->dst, run);
	}
	shim_keep_end(&keep);
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
 * held, or the system has no memory. Waits for the mmap_lock of any process: the caller holds none, nor anything that
 * is taken under one.
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
