// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device at work: reads, writes and atomics on the process's memory through the shadow page table. What a real
 * device does with its own page-table walker, this one does with the CPU, a span's lock held for reading: that is the
 * access in flight for which an invalidation waits.
 *
 * User memory is never touched under that lock, nor between shim_enter() and shim_leave(). Data goes through a bounce
 * buffer of 64 KiB.
 */
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "shim.h"

/* Turns without progress before an access gives up: each lost a race with an invalidation right after its fault. */
#define SHIM_ACCESS_TRIES	64

/* Moves up to len bytes, within one span; stops at the first page that the device has not, or may not write. */
static size_t shim_move(struct shim_mirror *mirror, unsigned long addr, void *buf, size_t len, bool write)
{
	unsigned long need = SHIM_PTE_VALID | (write ? SHIM_PTE_WRITE : 0);
	struct shim_span *span = shim_span_find(mirror, addr);
	size_t done = 0;

	if (!span)
		return 0;
	down_read(&span->lock);
	while (done < len) {
		unsigned long *slot = shim_pte(span, addr + done);
		unsigned long pte = slot ? READ_ONCE(*slot) : 0;
		size_t at = offset_in_page(addr + done);
		size_t n = min_t(size_t, len - done, PAGE_SIZE - at);
		struct page *page;
		void *va;

		if ((pte & need) != need)
			break;
		page = shim_pte_page(pte);
		va = shim_page_map(page);
		if (write) {
			memcpy(va + at, buf + done, n);
			/* A clean page may be dropped (MADV_FREE), and the CPU's entry knows nothing of this write. */
			if (!PageDirty(page))
				set_page_dirty(page);
		} else {
			memcpy(buf + done, va + at, n);
		}
		shim_page_unmap(page, va);
		done += n;
	}
	up_read(&span->lock);
	return done;
}

/* Returns false when the device may not write there now, or not exclusively. */
static bool shim_atomic(struct shim_mirror *mirror, struct hmmrt_shim_access *a)
{
	struct shim_span *span = shim_span_find(mirror, a->addr);
	unsigned long *slot, pte;
	struct page *page;
	bool ok = false;
	void *va, *p;

	if (!span)
		return false;
	down_read(&span->lock);
	slot = shim_pte(span, a->addr);
	pte = slot ? READ_ONCE(*slot) : 0;
	if (!(pte & SHIM_PTE_WRITE))
		goto out;
	page = shim_pte_page(pte);
	if (a->flags & HMMRT_SHIM_ACCESS_EXCLUSIVE && !(pte & SHIM_PTE_EXCL) && !shim_page_device(page))
		goto out;

	/* The CPU's own atomics: atomic to its threads, and to every device that does as this one. */
	va = shim_page_map(page);
	p = va + offset_in_page(a->addr);
	if (a->len == 4 && a->op == HMMRT_SHIM_OP_ADD)
		a->out = (u32)atomic_fetch_add((int)a->arg0, (atomic_t *)p);
	else if (a->len == 4)
		a->out = (u32)atomic_cmpxchg((atomic_t *)p, (int)a->arg0, (int)a->arg1);
	else if (a->op == HMMRT_SHIM_OP_ADD)
		a->out = atomic64_fetch_add((s64)a->arg0, (atomic64_t *)p);
	else
		a->out = atomic64_cmpxchg((atomic64_t *)p, (s64)a->arg0, (s64)a->arg1);
	if (!PageDirty(page))
		set_page_dirty(page);
	shim_page_unmap(page, va);
	ok = true;
out:
	up_read(&span->lock);
	return ok;
}

static u64 shim_count_exclusive(struct shim_mirror *mirror, unsigned long addr, unsigned long end)
{
	u64 count = 0;

	for (addr &= PAGE_MASK; addr < end; addr += PAGE_SIZE) {
		struct shim_span *span = shim_span_find(mirror, addr);
		unsigned long *slot;

		if (span) {
			down_read(&span->lock);
			slot = shim_pte(span, addr);
			count += slot && READ_ONCE(*slot) & SHIM_PTE_EXCL;
			up_read(&span->lock);
		}
		if (!(addr & ((1ul << SHIM_BLOCK_SHIFT) - 1))) {
			if (fatal_signal_pending(current))
				break;
			cond_resched();
		}
	}
	return count;
}

static int shim_status_errno(u8 status)
{
	switch (status) {
	case HMMRT_SHIM_DONE:
	case HMMRT_SHIM_ALREADY:
		return 0;
	case HMMRT_SHIM_BUSY:
		return -EBUSY;
	case HMMRT_SHIM_NO_MEMORY:
		return -ENOMEM;
	case HMMRT_SHIM_UNSUPPORTED:
		return -EOPNOTSUPP;
	default:
		return -EFAULT;
	}
}

/*
 * One device fault: everything from addr to end that is missing, up to the first page that cannot be had. An error only
 * when that is the first.
 */
static int shim_fault_tail(struct shim_mirror *mirror, struct shim_batch *batch, unsigned long addr, unsigned long end,
			   bool write)
{
	unsigned long start = addr & PAGE_MASK;
	u64 left = (PAGE_ALIGN(end) - start) >> PAGE_SHIFT;
	u64 faults = 0;
	unsigned int i, n;
	int err;

	for (addr = start; left; addr += (unsigned long)n << PAGE_SHIFT, left -= n) {
		n = shim_block_rest(addr, left);
		err = shim_fault_block(mirror, batch, addr, n, write, &faults);
		if (err)
			return err;
		for (i = 0; i < n; i++) {
			err = shim_status_errno(batch->status[i]);
			if (err)
				return addr == start && !i ? err : 0;
		}
		if (signal_pending(current))
			return 0;
		cond_resched();
	}
	return 0;
}

static int shim_access_atomic(struct shim_mirror *mirror, struct hmmrt_shim_access *a, struct shim_batch *batch)
{
	unsigned long page = a->addr & PAGE_MASK;
	unsigned int tries;
	u64 faults = 0;
	int err;

	for (tries = 0; tries < SHIM_ACCESS_TRIES; tries++) {
		if (shim_atomic(mirror, a)) {
			a->done = a->len;
			return 0;
		}
		if (a->flags & HMMRT_SHIM_ACCESS_NO_FAULT)
			return -ENOENT;
		if (signal_pending(current))
			return -EINTR;
		a->faults++;
		err = shim_fault_tail(mirror, batch, page, page + PAGE_SIZE, true);
		if (err)
			return err;
		/* A page on a device needs no exclusive access, and says so here: tried now, it must not be tried again. */
		if (!(a->flags & HMMRT_SHIM_ACCESS_EXCLUSIVE))
			continue;
		if (shim_atomic(mirror, a)) {
			a->done = a->len;
			return 0;
		}
		err = shim_exclusive_block(mirror, batch, page, 1, 0, &faults);
		if (err)
			return err;
		err = shim_status_errno(batch->status[0]);
		if (err && err != -EBUSY)
			return err;
	}
	return -EBUSY;
}

static int shim_access_data(struct shim_mirror *mirror, struct hmmrt_shim_access *a, struct shim_work *work)
{
	bool write = a->op == HMMRT_SHIM_OP_WRITE;
	unsigned long end = a->addr + a->len;
	unsigned int tries = 0;
	int err;

	while (a->done < a->len) {
		unsigned long addr = a->addr + a->done;
		void __user *buf = u64_to_user_ptr(a->buf + a->done);
		size_t n, moved;

		n = min_t(u64, a->len - a->done, SHIM_BOUNCE);
		n = min_t(u64, n, ALIGN(addr + 1, 1ul << SHIM_SPAN_SHIFT) - addr);
		if (write && copy_from_user(work->bounce, buf, n))
			return -EFAULT;
		err = shim_enter(mirror->dev);
		if (err)
			return err;
		moved = shim_move(mirror, addr, work->bounce, n, write);
		shim_leave(mirror->dev);
		if (!write && moved && copy_to_user(buf, work->bounce, moved))
			return -EFAULT;
		a->done += moved;
		if (moved == n) {
			tries = 0;
			cond_resched();
			if (signal_pending(current) && a->done < a->len)
				return -EINTR;
			continue;
		}
		if (a->flags & HMMRT_SHIM_ACCESS_NO_FAULT)
			return -ENOENT;
		if (moved)
			tries = 0;
		if (tries++ == SHIM_ACCESS_TRIES)
			return -EBUSY;
		if (signal_pending(current))
			return -EINTR;
		a->faults++;
		err = shim_enter(mirror->dev);
		if (err)
			return err;
		err = shim_fault_tail(mirror, &work->batch, addr + moved, end, write);
		shim_leave(mirror->dev);
		if (err)
			return err;
	}
	return 0;
}

/* Arguments are checked. Returns what becomes of a->err; -EINTR and -ENODEV also end the batch. */
int shim_access_one(struct shim_mirror *mirror, struct hmmrt_shim_access *a, struct shim_work *work)
{
	int err;

	a->out = 0;
	a->done = 0;
	a->faults = 0;
	if (a->flags & HMMRT_SHIM_ACCESS_EXCLUSIVE && !SHIM_HAVE_EXCLUSIVE)
		return -EOPNOTSUPP;
	if (a->op == HMMRT_SHIM_OP_READ || a->op == HMMRT_SHIM_OP_WRITE)
		return shim_access_data(mirror, a, work);
	err = shim_enter(mirror->dev);
	if (err)
		return err;
	if (a->op == HMMRT_SHIM_OP_CHECK_EXCLUSIVE) {
		a->out = shim_count_exclusive(mirror, a->addr, a->addr + a->len);
		a->done = a->len;
	} else {
		err = shim_access_atomic(mirror, a, &work->batch);
	}
	shim_leave(mirror->dev);
	return err;
}
