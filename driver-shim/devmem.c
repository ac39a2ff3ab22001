// SPDX-License-Identifier: GPL-2.0-only
/*
 * Device memory: its struct pages, the free map, what backs each frame, and who pays for it.
 *
 * A frame's contents are in one of three places: the page itself (coherent), a system page (private, allocated when the
 * frame is taken), or the BAR (private over a BAR): see shim_page_map(). Whose memory cgroup pays is the kernel's
 * business, once: a page on a device is charged as any anonymous page is, its backing is not.
 *
 * Frames are taken in bulk under one lock, lowest first from a cursor, so that a block's frames are contiguous when the
 * device is not fragmented, and their backing is taken in runs as long as the page allocator gives.
 *
 * Frames come back one at a time, from the last put_page(), which may run under a page-table lock or in interrupt: the
 * frame goes on a lock-free list, and a worker (or the next taker who finds the device full) returns whole lists.
 */
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "shim.h"

/* A worker woken for each page costs more than the page. Whoever is short of frames does not wait for it. */
#define SHIM_DRAIN_DELAY	(HZ / 100)

static struct page *shim_frame_page(struct shim_device *dev, unsigned long i)
{
	return pfn_to_page(dev->first_pfn + i);
}

struct shim_frame *shim_page_frame(struct shim_device *dev, struct page *page)
{
	return &dev->frames[page_to_pfn(page) - dev->first_pfn];
}

/* ---- coming back ----------------------------------------------------------------------------- */

static void shim_freed(struct page *page)
{
	struct shim_device *dev = container_of(shim_page_pgmap(page), struct shim_device, pgmap);

	/* munlock() passes device pages by, and what frees them does not look, either. */
	if (unlikely(folio_test_clear_mlocked(page_folio(page))))
		mod_zone_page_state(page_zone(page), NR_MLOCK, -1);
	if (llist_add(&shim_page_frame(dev, page)->freed, &dev->freed))
		queue_delayed_work(system_unbound_wq, &dev->drain, SHIM_DRAIN_DELAY);
}

#if SHIM_HAVE_FOLIO_FREE
static void shim_folio_free(struct folio *folio)
{
	shim_freed(folio_page(folio, 0));
}
#endif

static const struct dev_pagemap_ops shim_pgmap_ops = {
#if SHIM_HAVE_FOLIO_FREE
	.folio_free	= shim_folio_free,
#else
	.page_free	= shim_freed,
#endif
	.migrate_to_ram	= shim_migrate_to_ram,
};

/* The device whose memory a page is, or NULL: not one of this module's. */
struct shim_device *shim_page_device(struct page *page)
{
	struct dev_pagemap *pgmap;

	if (!is_device_private_page(page) && !is_device_coherent_page(page))
		return NULL;
	pgmap = shim_page_pgmap(page);
	return pgmap->ops == &shim_pgmap_ops ? container_of(pgmap, struct shim_device, pgmap) : NULL;
}

/* Returns everything on the freed list. Any process context; may run twice at once. */
void shim_devmem_drain(struct shim_device *dev)
{
	struct llist_node *list = llist_del_all(&dev->freed);
	struct shim_account *acct = NULL;
	struct shim_frame *frame, *next;
	unsigned int owed = 0;
	unsigned long flags;

	/* Everything a frame holds first, then the free map under one lock: from then on it may be taken again. */
	llist_for_each_entry(frame, list, freed) {
		if (frame->backing)
			__free_page(frame->backing);
		frame->backing = NULL;
		if (frame->account != acct) {
			if (acct)
				shim_account_put(acct, owed);
			acct = frame->account;
			owed = 0;
		}
		frame->account = NULL;
		owed++;
	}
	if (acct)
		shim_account_put(acct, owed);

	spin_lock_irqsave(&dev->frame_lock, flags);
	llist_for_each_entry_safe(frame, next, list, freed) {
		__set_bit(frame - dev->frames, dev->free_map);
		dev->nfree++;
	}
	spin_unlock_irqrestore(&dev->frame_lock, flags);
}

static void shim_drain_work(struct work_struct *work)
{
	shim_devmem_drain(container_of(to_delayed_work(work), struct shim_device, drain));
}

/* ---- accounts -------------------------------------------------------------------------------- */

/* The account of mm on dev, made if it has none. */
struct shim_account *shim_account_get(struct shim_device *dev, struct mm_struct *mm)
{
	struct shim_account *acct, *fresh = kzalloc(sizeof(*fresh), GFP_KERNEL_ACCOUNT);

	if (!fresh)
		return NULL;
	spin_lock(&dev->list_lock);
	list_for_each_entry(acct, &dev->accounts, node) {
		if (acct->mm == mm && refcount_inc_not_zero(&acct->ref)) {
			spin_unlock(&dev->list_lock);
			kfree(fresh);
			return acct;
		}
	}
	refcount_set(&fresh->ref, 1);
	kref_get(&dev->ref);
	fresh->dev = dev;
	mmgrab(mm);
	fresh->mm = mm;
	list_add(&fresh->node, &dev->accounts);
	spin_unlock(&dev->list_lock);
	return fresh;
}

/* Gives back n references: those of n pages, which leave the account, or one of a mirror (n == 0). */
void shim_account_put(struct shim_account *acct, unsigned int n)
{
	struct shim_device *dev = acct->dev;

	atomic_long_sub(n, &acct->pages);
	if (!refcount_sub_and_test(n ? n : 1, &acct->ref))
		return;
	spin_lock(&dev->list_lock);
	list_del(&acct->node);
	spin_unlock(&dev->list_lock);
	mmdrop(acct->mm);
	kfree(acct);
	kref_put(&dev->ref, shim_device_release);
}

static bool shim_over_quota(struct shim_account *acct, unsigned int n)
{
	long quota = READ_ONCE(shim_quota_pages);

	return quota && atomic_long_read(&acct->pages) + n > quota;
}

/* Reserves up to n pages of the quota; returns how many. */
static unsigned int shim_account_charge(struct shim_account *acct, unsigned int n)
{
	long quota = READ_ONCE(shim_quota_pages);
	long held = atomic_long_add_return(n, &acct->pages);
	unsigned int over = 0;

	if (quota && held > quota) {
		over = min_t(long, n, held - quota);
		atomic_long_sub(over, &acct->pages);
	}
	if (n > over)
		refcount_add(n - over, &acct->ref);
	return n - over;
}

/* ---- taking ---------------------------------------------------------------------------------- */

/* Backing for n frames, in runs as long as they come. Returns how many. */
static unsigned int shim_backing_alloc(struct page **pages, unsigned int n)
{
	static const unsigned int orders[] = { 9, 4, 2 };
	const gfp_t gfp = GFP_HIGHUSER;
	unsigned int got = 0, o = 0, i;

	while (got < n) {
		struct page *page = NULL;
		unsigned int order = 0;

		while (o < ARRAY_SIZE(orders) && n - got < 1u << orders[o])
			o++;
		if (o < ARRAY_SIZE(orders)) {
			order = orders[o];
			page = alloc_pages((gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_NOWARN | __GFP_NORETRY, order);
			if (!page) {
				o++;
				continue;
			}
			split_page(page, order);
		} else {
			page = alloc_page(gfp | __GFP_NOWARN | __GFP_RETRY_MAYFAIL);
			if (!page)
				break;
		}
		for (i = 0; i < 1u << order; i++)
			pages[got++] = page + i;
	}
	return got;
}

/* Puts frames back that no one has seen. */
static void shim_frames_untake(struct shim_device *dev, struct page **pages, unsigned int n)
{
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&dev->frame_lock, flags);
	for (i = 0; i < n; i++)
		__set_bit(page_to_pfn(pages[i]) - dev->first_pfn, dev->free_map);
	dev->nfree += n;
	spin_unlock_irqrestore(&dev->frame_lock, flags);
}

static unsigned int shim_frames_take(struct shim_device *dev, struct page **out, unsigned int n)
{
	unsigned long block = ULONG_MAX, flags;
	unsigned int got = 0;
	bool wrapped = false;

	spin_lock_irqsave(&dev->frame_lock, flags);
	if (dev->closing)
		n = 0;
	n = min_t(unsigned long, n, dev->nfree);
	while (got < n) {
		unsigned long i = find_next_bit(dev->free_map, dev->nframes, dev->cursor);

		if (i >= dev->nframes) {
			if (wrapped)
				break;
			wrapped = true;
			dev->cursor = 0;
			continue;
		}
		__clear_bit(i, dev->free_map);
		if (i / SHIM_BLOCK_PAGES != block) {
			block = i / SHIM_BLOCK_PAGES;
			dev->block_stamp[block] = ++dev->stamp;
		}
		dev->cursor = i + 1;
		out[got++] = shim_frame_page(dev, i);
	}
	dev->nfree -= got;
	spin_unlock_irqrestore(&dev->frame_lock, flags);
	return got;
}

/*
 * Takes up to n frames for acct: struct pages with one reference, locked, contents undefined. Returns how many; if
 * fewer, *err says why: -ENOSPC device full, -EDQUOT quota used up, -ENOMEM no backing, -ENODEV closing.
 * May sleep; takes no lock of the mm.
 */
unsigned int shim_frames_alloc(struct shim_device *dev, struct shim_account *acct, unsigned int n, u8 granule,
			       struct page **out, int *err)
{
	struct page *backing[64];
	unsigned int allowed, got, i, done = 0;

	*err = 0;
	if (shim_inject(dev, HMMRT_SHIM_INJECT_FRAME)) {
		*err = -ENOSPC;
		return 0;
	}
	/* Short of frames or quota: what others freed counts, also what the worker has in its hands. */
	if (READ_ONCE(dev->nfree) < n || shim_over_quota(acct, n)) {
		shim_devmem_drain(dev);
		flush_delayed_work(&dev->drain);
	}
	allowed = shim_account_charge(acct, n);
	if (allowed < n)
		*err = -EDQUOT;
	got = shim_frames_take(dev, out, allowed);
	if (got < allowed) {
		*err = READ_ONCE(dev->closing) ? -ENODEV : -ENOSPC;
		shim_account_put(acct, allowed - got);
	}

	if (dev->mem_type != HMMRT_SHIM_MEM_PRIVATE) {
		done = got;
		for (i = 0; i < got; i++)
			shim_page_frame(dev, out[i])->backing = NULL;
	}
	while (done < got) {
		struct page **want = backing, **big = NULL;
		unsigned int room = ARRAY_SIZE(backing), have;

		/* A whole block wants one allocation, for which the stack has no room. */
		if (got - done >= SHIM_BLOCK_PAGES) {
			big = kmalloc_array(SHIM_BLOCK_PAGES, sizeof(*big), GFP_KERNEL);
			if (big) {
				want = big;
				room = SHIM_BLOCK_PAGES;
			}
		}
		room = min(room, got - done);
		have = shim_inject(dev, HMMRT_SHIM_INJECT_BACKING) ? 0 : shim_backing_alloc(want, room);
		for (i = 0; i < have; i++)
			shim_page_frame(dev, out[done + i])->backing = want[i];
		kfree(big);
		done += have;
		if (have < room) {
			*err = -ENOMEM;
			shim_frames_untake(dev, out + done, got - done);
			shim_account_put(acct, got - done);
			break;
		}
	}

	for (i = 0; i < done; i++) {
		struct shim_frame *frame = shim_page_frame(dev, out[i]);

		frame->account = acct;
		frame->granule = granule;
		shim_page_init(out[i], &dev->pgmap);
	}
	return done;
}

/* ---- contents -------------------------------------------------------------------------------- */

/*
 * Where the CPU reads and writes a page's contents: any page, device's or not. The page must be held, by a reference or
 * by a span's lock. Mappings nest: unmap in reverse order.
 */
void *shim_page_map(struct page *page)
{
	struct shim_device *dev;

	if (!is_device_private_page(page))
		return kmap_local_page(page);
	dev = container_of(shim_page_pgmap(page), struct shim_device, pgmap);
	if (dev->bar)
		return dev->bar + ((page_to_pfn(page) - dev->first_pfn) << PAGE_SHIFT);
	return kmap_local_page(shim_page_frame(dev, page)->backing);
}

void shim_page_unmap(struct page *page, void *va)
{
	if (is_device_private_page(page) && container_of(shim_page_pgmap(page), struct shim_device, pgmap)->bar)
		return;
	kunmap_local(va);
}

/*
 * The same, where it needs no mapping: an address that pages contiguous with this one continue. NULL when this page
 * must be mapped on its own.
 */
void *shim_page_linear(struct page *page)
{
	struct shim_device *dev;

	if (is_device_private_page(page)) {
		dev = container_of(shim_page_pgmap(page), struct shim_device, pgmap);
		if (dev->bar)
			return dev->bar + ((page_to_pfn(page) - dev->first_pfn) << PAGE_SHIFT);
		page = shim_page_frame(dev, page)->backing;
	}
	return PageHighMem(page) ? NULL : page_address(page);
}

/* ---- beginning and end ----------------------------------------------------------------------- */

static int shim_devmem_range(struct shim_device *dev, phys_addr_t base, u64 bytes)
{
	switch (dev->mem_type) {
	case HMMRT_SHIM_MEM_PRIVATE_BAR:
		dev->bar = memremap(base, bytes, MEMREMAP_WC);
		if (!dev->bar)
			return -ENOMEM;
		fallthrough;
	case HMMRT_SHIM_MEM_PRIVATE:
		/* Addresses that nothing decodes: private pages only need page frame numbers. */
		dev->region = request_free_mem_region(&iomem_resource, bytes, SHIM_NAME);
		if (IS_ERR(dev->region)) {
			int err = PTR_ERR(dev->region);

			dev->region = NULL;
			return err;
		}
		dev->pgmap.type = MEMORY_DEVICE_PRIVATE;
		dev->pgmap.range.start = dev->region->start;
		dev->pgmap.range.end = dev->region->end;
		return 0;
	case HMMRT_SHIM_MEM_COHERENT:
		dev->region = request_mem_region(base, bytes, SHIM_NAME);
		if (!dev->region)
			return -EBUSY;
		fallthrough;
	case HMMRT_SHIM_MEM_COHERENT_BAR:
		dev->pgmap.type = MEMORY_DEVICE_COHERENT;
		dev->pgmap.range.start = base;
		dev->pgmap.range.end = base + bytes - 1;
		return 0;
	}
	return -EINVAL;
}

static void shim_devmem_unrange(struct shim_device *dev)
{
	if (dev->region)
		release_mem_region(dev->region->start, resource_size(dev->region));
	dev->region = NULL;
	if (dev->bar)
		memunmap(dev->bar);
	dev->bar = NULL;
}

/* bytes: a multiple of 2 MiB. base: where the memory is, but for MEM_PRIVATE. */
int shim_devmem_create(struct shim_device *dev, phys_addr_t base, u64 bytes)
{
	void *va;
	int err;

	spin_lock_init(&dev->frame_lock);
	init_rwsem(&dev->fill);
	init_llist_head(&dev->freed);
	INIT_DELAYED_WORK(&dev->drain, shim_drain_work);
	dev->closing = true;
	if (dev->mem_type == HMMRT_SHIM_MEM_NONE)
		return 0;

	err = shim_devmem_range(dev, base, bytes);
	if (err)
		goto out;
	dev->nframes = bytes >> PAGE_SHIFT;
	dev->first_pfn = dev->pgmap.range.start >> PAGE_SHIFT;
	dev->pgmap.nr_range = 1;
	dev->pgmap.ops = &shim_pgmap_ops;
	dev->pgmap.owner = dev;

	err = -ENOMEM;
	dev->frames = vcalloc(dev->nframes, sizeof(*dev->frames));
	dev->free_map = kvcalloc(BITS_TO_LONGS(dev->nframes), sizeof(long), GFP_KERNEL);
	dev->block_stamp = kvcalloc(dev->nframes / SHIM_BLOCK_PAGES, sizeof(u64), GFP_KERNEL);
	if (!dev->frames || !dev->free_map || !dev->block_stamp)
		goto out;

	va = memremap_pages(&dev->pgmap, numa_mem_id());
	if (IS_ERR(va)) {
		err = PTR_ERR(va);
		goto out;
	}
	bitmap_set(dev->free_map, 0, dev->nframes);
	dev->nfree = dev->nframes;
	dev->closing = false;
	return 0;
out:
	vfree(dev->frames);
	kvfree(dev->free_map);
	kvfree(dev->block_stamp);
	dev->frames = NULL;
	shim_devmem_unrange(dev);
	return err;
}

/*
 * Takes the memory down: no new frames, then every page goes to the system, however often it takes (a page may be
 * locked, held by I/O, or the system short of memory), then the struct pages. Pages that outlive the files that put
 * them here are the normal case.
 */
void shim_devmem_destroy(struct shim_device *dev)
{
	unsigned long flags, left, last = jiffies;

	if (!dev->frames)
		return;
	spin_lock_irqsave(&dev->frame_lock, flags);
	dev->closing = true;
	spin_unlock_irqrestore(&dev->frame_lock, flags);
	for (;;) {
		shim_evict(dev, NULL, ULONG_MAX);
		flush_delayed_work(&dev->drain);
		shim_devmem_drain(dev);
		left = dev->nframes - READ_ONCE(dev->nfree);
		if (!left)
			break;
		if (time_after(jiffies, last + 10 * HZ)) {
			pr_warn(SHIM_NAME ": %s: still %lu pages in use, waiting\n", dev->name, left);
			last = jiffies;
		}
		schedule_timeout_uninterruptible(1);
	}
	/* Waits until the last freed page has let go of the pgmap. After that, nothing queues the worker. */
	memunmap_pages(&dev->pgmap);
	cancel_delayed_work_sync(&dev->drain);
	vfree(dev->frames);
	kvfree(dev->free_map);
	kvfree(dev->block_stamp);
	dev->frames = NULL;
	shim_devmem_unrange(dev);
}
