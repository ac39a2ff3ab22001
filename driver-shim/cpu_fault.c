// SPDX-License-Identifier: GPL-2.0-only
/*
 * The CPU touches a private page: it comes home, with the granule around it. As in migrate.c, whose steps these are.
 *
 * Up to 6.14 many threads may be in here for one page, each with a reference that keeps the page from migrating. So one
 * of them works, the mover; the others, its followers, give it their references and sleep until it is done and has given
 * them back. The mover's own reference keeps the page theirs meanwhile. It waits for those who are between their reference
 * and the list before the kernel counts: once after the entry is in place (shim_mover_wait(), called by way of the mirror's
 * notifier) and once before the pages change places. Failing instead would put the old entry back and wake all who wait at
 * the migration entry, to collide again.
 *
 * A follower that wakes has not touched the page yet: it must first be let run, among many. Until it has, TO_DEV of this
 * page waits (shim_arrivals_wait()), else some thread would find the page away again and again. Those who came while the
 * page was on its way sleep at its migration entry, where nobody can count them. They need about as long to leave as
 * they took to come; so the page of a mover with followers stays home for as long as the mover was at work.
 */
#include <linux/delay.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "shim.h"

/* Fault-around up to this order needs no allocation. */
#define SHIM_SMALL_ORDER	4

/* How long a mover waits. Only a thread that was preempted between two instructions needs more than some microseconds. */
#define SHIM_ALONE_SPINS	256
#define SHIM_ALONE_NS		(20 * NSEC_PER_MSEC)

/*
 * Waits until only its mappings, the migration, the fault and `others` hold a page whose entry was replaced; and, with
 * `unlocked`, until nobody has its lock.
 */
static void shim_wait_alone(struct page *page, int others, bool unlocked)
{
	unsigned int spins = 0;
	u64 until = 0;

	while (page_count(page) > atomic_read(&page->_mapcount) + 1 + 2 + others || (unlocked && PageLocked(page))) {
		if (++spins < SHIM_ALONE_SPINS) {
			cpu_relax();
			continue;
		}
		/* It may need this very processor. */
		if (!until)
			until = ktime_get_ns() + SHIM_ALONE_NS;
		else if (ktime_get_ns() > until)
			break;
		usleep_range(10, 50);
	}
}

/* The caller is in a migration on dev: if it is a CPU fault's, waits for the others to leave. */
void shim_mover_wait(struct shim_device *dev)
{
	struct shim_mover *mover, *own = NULL;

	if (list_empty_careful(&dev->movers))
		return;
	spin_lock(&dev->list_lock);
	list_for_each_entry(mover, &dev->movers, node)
		if (mover->task == current)
			own = mover;
	spin_unlock(&dev->list_lock);
	if (own)
		shim_wait_alone(own->page, own->locked, false);
}

/* How long TO_DEV waits: threads may be of low priority, or throttled. */
#define SHIM_ARRIVALS_NS	(100 * NSEC_PER_MSEC)

/* How long a page stays home at most, for those who cannot be counted. */
#define SHIM_SETTLE_NS		(20 * NSEC_PER_MSEC)

static bool shim_arriving(struct shim_device *dev, struct mm_struct *mm, unsigned long addr, unsigned int n)
{
	const unsigned long bytes = (unsigned long)n << PAGE_SHIFT;
	struct shim_arrival *arrival;
	bool found = false;

	spin_lock(&dev->list_lock);
	list_for_each_entry(arrival, &dev->arrivals, node)
		found |= arrival->mm == mm && arrival->addr - addr < bytes;
	if (dev->settled && ktime_get_ns() >= dev->settled)
		WRITE_ONCE(dev->settled, 0);
	found |= dev->settled && dev->settling.mm == mm && dev->settling.addr - addr < bytes;
	spin_unlock(&dev->list_lock);
	return found;
}

/* Lets those who waited for one of these pages touch it. Sleeps; 100 ms at most, less when killed. */
void shim_arrivals_wait(struct shim_device *dev, struct mm_struct *mm, unsigned long addr, unsigned int n)
{
	u64 until;

	if (list_empty_careful(&dev->arrivals) && !READ_ONCE(dev->settled))
		return;
	until = ktime_get_ns() + SHIM_ARRIVALS_NS;
	/* Woken by the last of them, this would run in its place. */
	while (shim_arriving(dev, mm, addr, n) && ktime_get_ns() < until && !fatal_signal_pending(current))
		usleep_range(20, 100);
}

static void shim_arrived(struct shim_device *dev, struct shim_arrival *arrival)
{
	spin_lock(&dev->list_lock);
	list_del(&arrival->node);
	spin_unlock(&dev->list_lock);
}

/* A thread that sleeps until a mover is done. On its stack. */
struct shim_follower {
	struct shim_arrival arrival;
	struct shim_follower *next;
	struct task_struct *task;
	bool done;
};

/*
 * Makes the caller the mover of its page and returns true; or, if there is one, sleeps until that one is done. The caller
 * has a reference to the page before and after, and none while it sleeps. Nothing that a mover waits for is held by those
 * who sleep here: they are in a CPU fault like itself.
 */
static bool shim_move_alone(struct shim_device *dev, struct shim_mover *mover)
{
	struct shim_follower self = { .arrival = mover->arrival, .task = current };
	struct shim_mover *other;

	spin_lock(&dev->list_lock);
	list_for_each_entry(other, &dev->movers, node) {
		if (other->page != mover->page)
			continue;
		self.next = other->followers;
		other->followers = &self;
		put_page(mover->page);	/* the mover has its own: never the last */
		spin_unlock(&dev->list_lock);
		for (;;) {
			set_current_state(TASK_UNINTERRUPTIBLE);
			if (smp_load_acquire(&self.done))
				break;
			schedule();
		}
		__set_current_state(TASK_RUNNING);
		shim_arrived(dev, &self.arrival);
		return false;
	}
	list_add(&mover->node, &dev->movers);
	spin_unlock(&dev->list_lock);
	return true;
}

/* The mover is done: gives the followers their references back and wakes them. From now on all of them are arriving. */
static void shim_move_done(struct shim_device *dev, struct shim_mover *mover)
{
	struct shim_follower *follower, *next;

	spin_lock(&dev->list_lock);
	list_del(&mover->node);
	if (mover->followers) {
		u64 now = ktime_get_ns();

		dev->settling.mm = mover->arrival.mm;
		dev->settling.addr = mover->arrival.addr;
		WRITE_ONCE(dev->settled, now + min_t(u64, now - mover->since, SHIM_SETTLE_NS));
	}
	list_add(&mover->arrival.node, &dev->arrivals);
	for (follower = mover->followers; follower; follower = next) {
		struct task_struct *task = get_task_struct(follower->task);

		next = follower->next;
		get_page(mover->page);
		list_add(&follower->arrival.node, &dev->arrivals);
		smp_store_release(&follower->done, true);	/* from here on its stack is its own again */
		wake_up_process(task);
		put_task_struct(task);
	}
	spin_unlock(&dev->list_lock);
}

vm_fault_t shim_migrate_to_ram(struct vm_fault *vmf)
{
	struct page *page = vmf->page;
	struct shim_device *dev = container_of(shim_page_pgmap(page), struct shim_device, pgmap);
	struct shim_frame *frame = shim_page_frame(dev, page);
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = vmf->address & PAGE_MASK, start, end;
	unsigned long small[2][1 << SHIM_SMALL_ORDER];
	struct page *small_pages[1 << SHIM_SMALL_ORDER];
	unsigned int order = READ_ONCE(frame->granule), tries, n, must, moved = 0, i;
	struct shim_mover mover = {
		.arrival	= { .mm = vma->vm_mm, .addr = addr },
		.since		= ktime_get_ns(),
		.task		= current,
		.page		= page,
		.locked		= vma->vm_flags & VM_LOCKED,
	};
	struct shim_batch *batch = NULL;
	vm_fault_t ret = 0;
	struct migrate_vma args = {
		.vma		= vma,
		.pgmap_owner	= dev,
		.fault_page	= page,
		.flags		= MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
		.src		= small[0],
		.dst		= small[1],
	};

	if (!shim_move_alone(dev, &mover))
		return 0;
	if (order > SHIM_SMALL_ORDER) {
		batch = kvmalloc(sizeof(*batch), GFP_NOWAIT | __GFP_NOWARN);
		if (!batch)
			order = SHIM_SMALL_ORDER;
		else
			args.src = batch->src, args.dst = batch->dst;
	}

	for (tries = 0; tries < 16; tries++) {
		bool there, oom, failed;

		start = max(ALIGN_DOWN(addr, PAGE_SIZE << order), vma->vm_start);
		end = min(ALIGN_DOWN(addr, PAGE_SIZE << order) + (PAGE_SIZE << order), vma->vm_end);
		args.start = start;
		args.end = end;
		n = (end - start) >> PAGE_SHIFT;
		must = (addr - start) >> PAGE_SHIFT;
		/*
		 * A page taken out of a locked mapping stays in this processor's list of pages to unlock, with a reference,
		 * until the kernel empties that list, before it counts, on the processor where it is then.
		 */
		if (mover.locked)
			migrate_disable();
		failed = migrate_vma_setup(&args);
		if (mover.locked)
			migrate_enable();
		if (failed) {
			ret = VM_FAULT_SIGBUS;
			break;
		}
		for (i = 0; i < n; i++)
			if (!migrate_pfn_to_page(args.src[i]))
				args.src[i] = 0;
		there = args.src[must] & MIGRATE_PFN_MIGRATE;
		shim_fill_home(dev, args.src, args.dst, batch ? batch->pages : small_pages, n, there ? must : n);
		oom = there && !args.dst[must];
		if (there)
			shim_wait_alone(page, 0, false);
		migrate_vma_pages(&args);
		there = there && args.src[must] & MIGRATE_PFN_MIGRATE;
		for (i = 0; i < n; i++)
			moved += args.dst[i] && args.src[i] & MIGRATE_PFN_MIGRATE;
		migrate_vma_finalize(&args);
		if (there)
			break;
		if (oom) {
			ret = VM_FAULT_OOM;
			break;
		}
		/* Gone from here, or others still hold it: without neighbours next time, and faster. */
		if (!page_mapped(page))
			break;
		order = 0;
		/*
		 * A migration to the device installs the entries before it unlocks the page, and who waited for its entries
		 * may be here before that.
		 */
		shim_wait_alone(page, 0, !SHIM_FAULT_HAS_LOCK);
		cond_resched();
	}
	shim_move_done(dev, &mover);
	kvfree(batch);

	if (moved) {
		struct hmmrt_shim_event ev = {
			.addr	= addr,
			.npages	= moved,
			.type	= HMMRT_SHIM_EVENT_CPU_FAULT,
			.reason	= HMMRT_SHIM_REASON_CPU_FAULT,
			.src	= dev->id,
			.dst	= HMMRT_SHIM_LOC_SYSTEM,
		};

		shim_event_dev(dev, vma->vm_mm, HMMRT_SHIM_BIND_EVENTS_FAULT, &ev);
	}
	shim_arrived(dev, &mover.arrival);
	return ret;
}
