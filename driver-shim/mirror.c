// SPDX-License-Identifier: GPL-2.0-only
/*
 * A mirror: what one device knows of one address space. There is one per (mm, device), shared by all open files of that
 * process: two would let one serve stale data after the other wrote.
 *
 * The shadow page table has three levels: spans of 1 GiB, found by an xarray, each with its own interval notifier and
 * its own lock, so that changes in one part of a process disturb the device in that part only; leaves of 512 entries;
 * entries. Spans stay until the mirror goes; leaves go when their addresses are unmapped.
 *
 * The mirror never keeps the address space alive (mmgrab, not mmget): when it ends, the kernel tells every span to let
 * go, and shim_mn_release() marks the mirror dead.
 */
#include <linux/slab.h>

#include "shim.h"

static u16 shim_reason(const struct mmu_notifier_range *range)
{
	switch (range->event) {
	case MMU_NOTIFY_UNMAP:
		return HMMRT_SHIM_REASON_UNMAP;
	case MMU_NOTIFY_CLEAR:
		return HMMRT_SHIM_REASON_CLEAR;
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_PROTECTION_PAGE:
	case MMU_NOTIFY_SOFT_DIRTY:
		return HMMRT_SHIM_REASON_PROTECT;
	case MMU_NOTIFY_MIGRATE:
		return HMMRT_SHIM_REASON_MIGRATE;
	case MMU_NOTIFY_EXCLUSIVE:
		return HMMRT_SHIM_REASON_EXCLUSIVE;
	default:
		return HMMRT_SHIM_REASON_OTHER;
	}
}

/* Zaps [start, end) of a span, held for writing; returns how many entries there were. */
static unsigned long shim_zap(struct shim_span *span, unsigned long start, unsigned long end, bool drop_leaves)
{
	unsigned long zapped = 0, addr, next;

	for (addr = start; addr < end; addr = next) {
		unsigned long **leaf = &span->leaf[(addr - span->start) >> SHIM_BLOCK_SHIFT];
		unsigned long i, first = (addr >> PAGE_SHIFT) & (SHIM_BLOCK_PAGES - 1);
		unsigned long last;

		next = min(ALIGN(addr + 1, 1ul << SHIM_BLOCK_SHIFT), end);
		if (!*leaf)
			continue;
		last = first + ((next - addr) >> PAGE_SHIFT);
		for (i = first; i < last; i++) {
			zapped += !!(*leaf)[i];
			(*leaf)[i] = 0;
		}
		if (drop_leaves && last - first == SHIM_BLOCK_PAGES) {
			kfree(*leaf);
			*leaf = NULL;
		}
	}
	return zapped;
}

/*
 * The kernel is about to change the CPU's mappings of a range. On return the device has none of them and no access to
 * them in flight: accesses hold the span's lock. Returns false only where it may not sleep and the lock is taken.
 * Context: mmap_lock, i_mmap or anon_vma locks, perhaps a folio lock. Sleeps for the span's lock and for nothing else.
 */
static bool shim_invalidate(struct mmu_interval_notifier *mni, const struct mmu_notifier_range *range,
			    unsigned long seq)
{
	struct shim_span *span = container_of(mni, struct shim_span, mni);
	struct shim_mirror *mirror = span->mirror;
	unsigned long start, end, zapped;

	/* Our own request for exclusive access: the page stays, only the CPU loses it. */
	if (range->event == MMU_NOTIFY_EXCLUSIVE && range->owner == mirror)
		return true;

	if (mmu_notifier_range_blockable(range))
		down_write(&span->lock);
	else if (shim_inject(mirror->dev, HMMRT_SHIM_INJECT_TRYLOCK) || !down_write_trylock(&span->lock))
		return false;
	mmu_interval_set_seq(mni, seq);
	start = max(range->start, span->start);
	end = min(range->end, span->start + (1ul << SHIM_SPAN_SHIFT));
	zapped = start < end ? shim_zap(span, start, end, range->event == MMU_NOTIFY_UNMAP ||
					range->event == MMU_NOTIFY_RELEASE) : 0;
	if (zapped)
		atomic64_inc(&mirror->gen);
	up_write(&span->lock);

	if (zapped) {
		struct hmmrt_shim_event ev = {
			.addr	= start,
			.npages	= (end - start) >> PAGE_SHIFT,
			.type	= HMMRT_SHIM_EVENT_INVALIDATE,
			.reason	= shim_reason(range),
			.src	= HMMRT_SHIM_LOC_UNKNOWN,
			.dst	= HMMRT_SHIM_LOC_UNKNOWN,
		};

		shim_event(mirror, HMMRT_SHIM_BIND_EVENTS_INVALIDATE, &ev);
	}
	return true;
}

static const struct mmu_interval_notifier_ops shim_mni_ops = {
	.invalidate = shim_invalidate,
};

/* The address space ends. The spans were told by themselves, before or after. */
static void shim_mn_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct shim_mirror *mirror = container_of(mn, struct shim_mirror, mn);
	struct hmmrt_shim_event ev = {
		.type	= HMMRT_SHIM_EVENT_DEAD,
		.src	= HMMRT_SHIM_LOC_UNKNOWN,
		.dst	= HMMRT_SHIM_LOC_UNKNOWN,
	};

	WRITE_ONCE(mirror->dead, true);
	shim_event(mirror, 0, &ev);
}

/* A migration of ours has replaced the CPU's entries, and not yet looked who else holds the pages. */
static void shim_mn_range_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	struct shim_mirror *mirror = container_of(mn, struct shim_mirror, mn);

	if (range->event == MMU_NOTIFY_MIGRATE && range->owner && range->owner == READ_ONCE(mirror->dev))
		shim_mover_wait(mirror->dev);
}

static struct mmu_notifier *shim_mn_alloc(struct mm_struct *mm)
{
	struct shim_mirror *mirror = kzalloc(sizeof(*mirror), GFP_KERNEL_ACCOUNT);

	if (!mirror)
		return ERR_PTR(-ENOMEM);
	mutex_init(&mirror->binding);
	mutex_init(&mirror->grow);
	spin_lock_init(&mirror->files_lock);
	INIT_LIST_HEAD(&mirror->file_list);
	xa_init(&mirror->spans);
	atomic64_set(&mirror->gen, 1);
	return &mirror->mn;
}

static void shim_mn_free(struct mmu_notifier *mn)
{
	struct shim_mirror *mirror = container_of(mn, struct shim_mirror, mn);

	/* Release may look at the device until now. Not set when registration failed. */
	if (mirror->dev)
		kref_put(&mirror->dev->ref, shim_device_release);
	kfree(mirror);
}

void shim_mirror_init_ops(struct shim_device *dev)
{
	dev->mn_ops = (struct mmu_notifier_ops) {
		.release		= shim_mn_release,
		.invalidate_range_end	= shim_mn_range_end,
		.alloc_notifier		= shim_mn_alloc,
		.free_notifier		= shim_mn_free,
	};
}

/* The first file of a mirror: new, or left by its last one a moment ago. */
static int shim_mirror_begin(struct shim_mirror *mirror, struct shim_device *dev, struct mm_struct *mm)
{
	if (!mirror->dev) {
		kref_get(&dev->ref);
		WRITE_ONCE(mirror->dev, dev);
	}
	mirror->account = shim_account_get(dev, mm);
	if (!mirror->account)
		return -ENOMEM;
	mmgrab(mm);
	mirror->mm = mm;
	spin_lock(&dev->list_lock);
	list_add(&mirror->node, &dev->mirrors);
	spin_unlock(&dev->list_lock);
	return 0;
}

static void shim_mirror_end(struct shim_mirror *mirror)
{
	struct shim_device *dev = mirror->dev;
	struct shim_span *span;
	unsigned long key;
	unsigned int i;

	spin_lock(&dev->list_lock);
	list_del(&mirror->node);
	spin_unlock(&dev->list_lock);
	xa_for_each(&mirror->spans, key, span) {
		mmu_interval_notifier_remove(&span->mni);
		for (i = 0; i < SHIM_SPAN_LEAVES; i++)
			kfree(span->leaf[i]);
		kvfree(span);
	}
	xa_destroy(&mirror->spans);
	shim_account_put(mirror->account, 0);
	mmdrop(mirror->mm);
}

/*
 * The mirror of mm (the caller's own) on dev, made if there is none. The kernel keeps them unique: for the same ops and
 * mm it counts and returns the notifier that there is. Sleeps; takes mmap_lock, so no lock that another mm needs is held.
 */
struct shim_mirror *shim_mirror_get(struct shim_device *dev, struct mm_struct *mm)
{
	struct mmu_notifier *mn = mmu_notifier_get(&dev->mn_ops, mm);
	struct shim_mirror *mirror;
	int err = 0;

	if (IS_ERR(mn))
		return ERR_CAST(mn);
	mirror = container_of(mn, struct shim_mirror, mn);
	mutex_lock(&mirror->binding);
	if (!mirror->files)
		err = shim_mirror_begin(mirror, dev, mm);
	if (!err)
		mirror->files++;
	mutex_unlock(&mirror->binding);
	if (!err)
		return mirror;
	mmu_notifier_put(mn);
	return ERR_PTR(err);
}

/* A file goes; with the last, the mirror. Pages on the device stay: they belong to the process, not to the mirror. */
void shim_mirror_put(struct shim_mirror *mirror)
{
	mutex_lock(&mirror->binding);
	if (!--mirror->files)
		shim_mirror_end(mirror);
	mutex_unlock(&mirror->binding);
	mmu_notifier_put(&mirror->mn);	/* frees the mirror, in time */
}

struct shim_span *shim_span_find(struct shim_mirror *mirror, unsigned long addr)
{
	return xa_load(&mirror->spans, addr >> SHIM_SPAN_SHIFT);
}

/* Whether anything is mapped in the span of addr, from addr on. */
static bool shim_span_used(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma;
	bool used;

	mmap_read_lock(mm);
	vma = find_vma(mm, addr);
	used = vma && vma->vm_start < ALIGN(addr + 1, 1ul << SHIM_SPAN_SHIFT);
	mmap_read_unlock(mm);
	return used;
}

/*
 * The span of addr, made if there is none, or an error: -EFAULT where nothing is mapped, for which nothing is kept.
 * Not under mmap_lock.
 */
struct shim_span *shim_span_get(struct shim_mirror *mirror, unsigned long addr)
{
	struct shim_span *span = shim_span_find(mirror, addr);
	int err;

	if (span)
		return span;
	if (!shim_span_used(mirror->mm, addr))
		return ERR_PTR(-EFAULT);
	mutex_lock(&mirror->grow);
	span = shim_span_find(mirror, addr);
	if (span)
		goto out;
	span = kvzalloc(sizeof(*span), GFP_KERNEL_ACCOUNT);
	if (!span) {
		span = ERR_PTR(-ENOMEM);
		goto out;
	}
	span->mirror = mirror;
	span->start = ALIGN_DOWN(addr, 1ul << SHIM_SPAN_SHIFT);
	init_rwsem(&span->lock);
	err = xa_reserve(&mirror->spans, addr >> SHIM_SPAN_SHIFT, GFP_KERNEL_ACCOUNT);
	if (!err)
		err = mmu_interval_notifier_insert(&span->mni, mirror->mm, span->start, 1ul << SHIM_SPAN_SHIFT,
						   &shim_mni_ops);
	if (err) {
		kvfree(span);
		span = ERR_PTR(err);
		goto out;
	}
	/* Reserved: needs no memory. */
	xa_store(&mirror->spans, addr >> SHIM_SPAN_SHIFT, span, GFP_KERNEL);
out:
	mutex_unlock(&mirror->grow);
	return span;
}

/* Makes sure that addr has a leaf. An unmap may take it away again before the caller has the span's lock. */
int shim_leaf_make(struct shim_span *span, unsigned long addr)
{
	unsigned long **slot = &span->leaf[(addr - span->start) >> SHIM_BLOCK_SHIFT];
	unsigned long *leaf;

	if (READ_ONCE(*slot))
		return 0;
	leaf = kcalloc(SHIM_BLOCK_PAGES, sizeof(*leaf), GFP_KERNEL_ACCOUNT);
	if (!leaf)
		return -ENOMEM;
	down_write(&span->lock);
	if (!*slot) {
		*slot = leaf;
		leaf = NULL;
	}
	up_write(&span->lock);
	kfree(leaf);
	return 0;
}
