// SPDX-License-Identifier: GPL-2.0-only
/*
 * Open files: who may call, what arguments may say, and the loops over batches. The work is elsewhere.
 *
 * The work of a call runs between shim_enter() and shim_leave(), its copies from and to user memory outside of them. A
 * bound call runs only in the address space that bound the file, so that address space is alive for as long as the call.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "shim.h"

#define RANGE_FLAGS_TO_DEV (HMMRT_SHIM_RANGE_NO_POPULATE | HMMRT_SHIM_RANGE_EVICT | HMMRT_SHIM_RANGE_GRANULE_MASK)

/* ---- workspace ------------------------------------------------------------------------------- */

static struct shim_work *shim_work_get(struct shim_file *file)
{
	struct shim_work *work = xchg(&file->spare, NULL);

	return work ? : kvmalloc(sizeof(*work), GFP_KERNEL_ACCOUNT);
}

static void shim_work_put(struct shim_file *file, struct shim_work *work)
{
	kvfree(xchg(&file->spare, work));
}

/* ---- who may call ---------------------------------------------------------------------------- */

static struct shim_mirror *shim_mirror_of(struct shim_file *file)
{
	/* With it come the window and the ring: pairs with the release in BIND. */
	return smp_load_acquire(&file->mirror);
}

/* The mirror, if the caller is in its address space. */
static struct shim_mirror *shim_file_mirror(struct shim_file *file)
{
	struct shim_mirror *mirror = shim_mirror_of(file);

	if (!mirror)
		return ERR_PTR(-ENOTCONN);
	if (READ_ONCE(mirror->dead))
		return ERR_PTR(-ESRCH);
	if (current->mm != mirror->mm)
		return ERR_PTR(-EPERM);
	return mirror;
}

static bool shim_pages_ok(struct shim_file *file, u64 addr, u64 npages)
{
	return !(addr & ~PAGE_MASK) && npages && npages <= HMMRT_SHIM_MAX_PAGES && addr >= file->va_start &&
	       addr < file->va_end && npages <= (file->va_end - addr) >> PAGE_SHIFT;
}

/* ---- QUERY and BIND -------------------------------------------------------------------------- */

static int shim_ioctl_query(struct shim_file *file, void __user *argp)
{
	struct shim_mirror *mirror = shim_mirror_of(file);
	struct shim_device *dev = file->dev;
	struct hmmrt_shim_query q;
	int err;

	if (copy_from_user(&q, argp, sizeof(q)))
		return -EFAULT;
	if (q.pad[0] || q.pad[1])
		return -EINVAL;
	err = shim_enter(dev);
	if (err)
		return err;
	memset(&q, 0, sizeof(q));
	q.abi_major = HMMRT_SHIM_ABI_MAJOR;
	q.abi_minor = HMMRT_SHIM_ABI_MINOR;
	q.caps = HMMRT_SHIM_CAP_FAULT_PAGE | HMMRT_SHIM_CAP_INJECT;
	if (shim_is_coherent(dev))
		q.caps |= HMMRT_SHIM_CAP_COHERENT;
	else if (dev->frames)
		q.caps |= HMMRT_SHIM_CAP_PRIVATE;
	if (dev->mem_type == HMMRT_SHIM_MEM_COHERENT_BAR || dev->mem_type == HMMRT_SHIM_MEM_PRIVATE_BAR)
		q.caps |= HMMRT_SHIM_CAP_BAR;
	if (SHIM_HAVE_EXCLUSIVE)
		q.caps |= HMMRT_SHIM_CAP_EXCLUSIVE;
	if (IS_ENABLED(CONFIG_DEVICE_PRIVATE))
		q.caps |= HMMRT_SHIM_CAP_KERNEL_PRIVATE;
	q.page_shift = PAGE_SHIFT;
	q.mem_type = dev->mem_type;
	q.device = dev->id;
	q.block_pages = SHIM_BLOCK_PAGES;
	q.devmem_pages = dev->nframes;
	shim_devmem_drain(dev);
	q.devmem_free = READ_ONCE(dev->nfree);
	q.my_quota = READ_ONCE(shim_quota_pages);
	if (mirror && current->mm == mirror->mm) {
		q.my_pages = atomic_long_read(&mirror->account->pages);
		q.generation = atomic64_read(&mirror->gen);
	}
	shim_leave(dev);
	return copy_to_user(argp, &q, sizeof(q)) ? -EFAULT : 0;
}

static int shim_ioctl_bind(struct shim_file *file, void __user *argp)
{
	struct shim_mirror *mirror;
	struct shim_file *other;
	struct hmmrt_shim_bind b;
	u32 mask = 0;
	int err;

	if (copy_from_user(&b, argp, sizeof(b)))
		return -EFAULT;
	if (b.flags & ~HMMRT_SHIM_BIND_EVENTS_ALL || b.ring_order > HMMRT_SHIM_RING_ORDER_MAX || b.eventfd < -1 ||
	    b.pad0 || b.pad[0] || b.pad[1])
		return -EINVAL;
	if ((b.va_start | b.va_len) & ~PAGE_MASK || b.va_start >= TASK_SIZE || b.va_len > TASK_SIZE - b.va_start)
		return -EINVAL;
	if (!current->mm)
		return -EPERM;

	if (mutex_lock_killable(&file->bind_lock))
		return -EINTR;
	err = -EBUSY;
	if (file->mirror)
		goto out;
	err = shim_ring_create(&file->ring, b.ring_order, b.eventfd);
	if (err)
		goto out;
	b.ring_mmap_off = 0;
	b.ring_bytes = file->ring.bytes;
	err = -EFAULT;
	if (copy_to_user(argp, &b, sizeof(b)))
		goto out_ring;
	err = shim_enter(file->dev);
	if (err)
		goto out_ring;
	mirror = shim_mirror_get(file->dev, current->mm);
	shim_leave(file->dev);
	err = PTR_ERR_OR_ZERO(mirror);
	if (err)
		goto out_ring;
	file->va_start = b.va_start;
	file->va_end = b.va_len ? b.va_start + b.va_len : ALIGN_DOWN(TASK_SIZE, PAGE_SIZE);
	file->events = b.ring_order || b.eventfd >= 0 ? b.flags : 0;
	spin_lock(&mirror->files_lock);
	list_add(&file->node, &mirror->file_list);
	list_for_each_entry(other, &mirror->file_list, node)
		mask |= other->events;
	WRITE_ONCE(mirror->event_mask, mask);
	spin_unlock(&mirror->files_lock);
	/* Window and ring before the mirror that makes them visible. */
	smp_store_release(&file->mirror, mirror);
	mutex_unlock(&file->bind_lock);
	return 0;

out_ring:
	shim_ring_destroy(&file->ring);
	memset(&file->ring, 0, sizeof(file->ring));
out:
	mutex_unlock(&file->bind_lock);
	return err;
}

/* ---- ranges ---------------------------------------------------------------------------------- */

static int shim_status_to_errno(u8 status)
{
	switch (status) {
	case HMMRT_SHIM_DONE:
	case HMMRT_SHIM_ALREADY:
		return 0;
	case HMMRT_SHIM_BUSY:
	case HMMRT_SHIM_PINNED:
		return -EBUSY;
	case HMMRT_SHIM_FORBIDDEN:
		return -EPERM;
	case HMMRT_SHIM_NOT_POPULATED:
		return -ENOENT;
	case HMMRT_SHIM_NO_SPACE:
		return -ENOSPC;
	case HMMRT_SHIM_UNSUPPORTED:
		return -EOPNOTSUPP;
	case HMMRT_SHIM_NO_MEMORY:
		return -ENOMEM;
	case HMMRT_SHIM_FAILED:
		return -EIO;
	default:
		return -EFAULT;
	}
}

static void shim_count(struct hmmrt_shim_range *r, const u8 *status, unsigned int n, bool snapshot)
{
	unsigned int i;

	for (i = 0; i < n; i++) {
		int err = snapshot ? 0 : shim_status_to_errno(status[i]);

		if (snapshot)
			*(status[i] && status[i] != HMMRT_SHIM_PAGE_ERROR ? &r->done : &r->skipped) += 1;
		else if (!err)
			r->done++;
		else if (err == -EBUSY)
			r->busy++;
		else
			r->skipped++;
		if (!r->first_err)
			r->first_err = err;
	}
}

static int shim_range_block(struct shim_mirror *mirror, unsigned int cmd, struct shim_batch *batch,
			    struct hmmrt_shim_range *r, unsigned long addr, unsigned int n)
{
	u64 faults = 0;
	int err;

	switch (cmd) {
	case HMMRT_SHIM_FAULT:
		err = shim_fault_block(mirror, batch, addr, n, r->flags & HMMRT_SHIM_RANGE_WRITE, &faults);
		break;
	case HMMRT_SHIM_SNAPSHOT:
		err = shim_snapshot_block(mirror, batch, addr, n);
		break;
	case HMMRT_SHIM_TO_DEV:
		err = shim_to_dev_block(mirror, batch, addr, n, r->flags, r->cookie, &faults);
		break;
	case HMMRT_SHIM_TO_SYS:
		err = shim_to_sys_block(mirror, batch, addr, n, r->cookie);
		break;
	default:
		err = shim_exclusive_block(mirror, batch, addr, n, r->cookie, &faults);
		break;
	}
	r->faults += faults;
	return err;
}

/* One range, block by block. Its outputs are good whatever is returned. */
static int shim_range(struct shim_mirror *mirror, unsigned int cmd, struct shim_batch *batch,
		      struct hmmrt_shim_range *r)
{
	u8 __user *status = u64_to_user_ptr(r->status_ptr);
	unsigned long addr = r->addr;
	u64 left = r->npages;
	unsigned int n;
	int err = 0;

	r->done = 0;
	r->busy = 0;
	r->skipped = 0;
	r->faults = 0;
	r->first_err = 0;
	for (; left; left -= n, addr += (unsigned long)n << PAGE_SHIFT) {
		if (signal_pending(current)) {
			err = -EINTR;
			break;
		}
		n = shim_block_rest(addr, left);
		err = shim_enter(mirror->dev);
		if (err)
			break;
		err = shim_range_block(mirror, cmd, batch, r, addr, n);
		shim_leave(mirror->dev);
		if (err)
			break;
		shim_count(r, batch->status, n, cmd == HMMRT_SHIM_SNAPSHOT);
		if (r->status_ptr) {
			if (copy_to_user(status, batch->status, n)) {
				err = -EFAULT;
				break;
			}
			status += n;
		}
		cond_resched();
	}
	/* What was not reached says so, as far as that can be written. */
	memset(batch->status, HMMRT_SHIM_NOT_REACHED, sizeof(batch->status));
	while ((err == -EINTR || err == -ENODEV) && left && r->status_ptr && !fatal_signal_pending(current)) {
		n = min_t(u64, left, SHIM_BLOCK_PAGES);
		if (copy_to_user(status, batch->status, n))
			break;
		status += n;
		left -= n;
	}
	r->gen = atomic64_read(&mirror->gen);
	return err;
}

static u32 shim_range_flags(unsigned int cmd)
{
	switch (cmd) {
	case HMMRT_SHIM_FAULT:
		return HMMRT_SHIM_RANGE_WRITE;
	case HMMRT_SHIM_TO_DEV:
		return RANGE_FLAGS_TO_DEV;
	default:
		return 0;
	}
}

static bool shim_range_ok(struct shim_file *file, unsigned int cmd, const struct hmmrt_shim_range *r)
{
	u32 field = (r->flags & HMMRT_SHIM_RANGE_GRANULE_MASK) >> HMMRT_SHIM_RANGE_GRANULE_SHIFT;

	return !(r->flags & ~shim_range_flags(cmd)) && field <= SHIM_GRANULE_MAX + 1 && !r->pad0 && !r->pad1 &&
	       shim_pages_ok(file, r->addr, r->npages);
}

static int shim_ioctl_ranges(struct shim_file *file, unsigned int cmd, void __user *argp)
{
	struct shim_mirror *mirror = shim_file_mirror(file);
	struct hmmrt_shim_range __user *ranges;
	struct hmmrt_shim_ranges arg;
	struct shim_work *work;
	u32 i;
	int err = 0;

	if (IS_ERR(mirror))
		return PTR_ERR(mirror);
	if (cmd == HMMRT_SHIM_EXCLUSIVE && !SHIM_HAVE_EXCLUSIVE)
		return -EOPNOTSUPP;
	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (!arg.count || arg.flags || arg.pad0 || arg.pad1)
		return -EINVAL;
	if (arg.count > HMMRT_SHIM_MAX_BATCH)
		return -E2BIG;
	work = shim_work_get(file);
	if (!work)
		return -ENOMEM;
	ranges = u64_to_user_ptr(arg.ranges_ptr);
	for (i = 0; i < arg.count && !err; i++) {
		struct hmmrt_shim_range r;

		if (copy_from_user(&r, &ranges[i], sizeof(r)))
			err = -EFAULT;
		else if (!shim_range_ok(file, cmd, &r))
			err = -EINVAL;
		if (err)
			break;
		err = shim_range(mirror, cmd, &work->batch, &r);
		if (copy_to_user(&ranges[i], &r, sizeof(r)))
			err = -EFAULT;
		if (err)
			break;
	}
	shim_work_put(file, work);
	arg.served = i;
	if (copy_to_user(argp, &arg, sizeof(arg)))
		return -EFAULT;
	return err;
}

/* ---- ACCESS ---------------------------------------------------------------------------------- */

static bool shim_access_ok(struct shim_file *file, const struct hmmrt_shim_access *a)
{
	if (a->addr < file->va_start || a->addr >= file->va_end || !a->len || a->len > HMMRT_SHIM_MAX_ACCESS ||
	    a->len > file->va_end - a->addr)
		return false;
	switch (a->op) {
	case HMMRT_SHIM_OP_READ:
	case HMMRT_SHIM_OP_WRITE:
		return !(a->flags & ~HMMRT_SHIM_ACCESS_NO_FAULT) && !a->arg0 && !a->arg1;
	case HMMRT_SHIM_OP_ADD:
	case HMMRT_SHIM_OP_CAS:
		return !(a->flags & ~(HMMRT_SHIM_ACCESS_NO_FAULT | HMMRT_SHIM_ACCESS_EXCLUSIVE)) && !a->buf &&
		       (a->len == 4 || a->len == 8) && !(a->addr & (a->len - 1)) &&
		       (a->op == HMMRT_SHIM_OP_CAS || !a->arg1);
	case HMMRT_SHIM_OP_CHECK_EXCLUSIVE:
		return !a->flags && !a->buf && !a->arg0 && !a->arg1;
	}
	return false;
}

static int shim_ioctl_access(struct shim_file *file, void __user *argp)
{
	struct shim_mirror *mirror = shim_file_mirror(file);
	struct hmmrt_shim_access __user *list;
	struct hmmrt_shim_accesses arg;
	struct shim_work *work;
	int err = 0;
	u32 i;

	if (IS_ERR(mirror))
		return PTR_ERR(mirror);
	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (!arg.count || arg.flags || arg.pad0)
		return -EINVAL;
	if (arg.count > HMMRT_SHIM_MAX_BATCH)
		return -E2BIG;
	work = shim_work_get(file);
	if (!work)
		return -ENOMEM;
	list = u64_to_user_ptr(arg.accesses_ptr);
	arg.failed = 0;
	for (i = 0; i < arg.count; i++) {
		struct hmmrt_shim_access a;

		err = -EFAULT;
		if (copy_from_user(&a, &list[i], sizeof(a)))
			break;
		err = -EINVAL;
		if (!shim_access_ok(file, &a))
			break;
		a.err = shim_access_one(mirror, &a, work);
		err = -EFAULT;
		if (copy_to_user(&list[i], &a, sizeof(a)))
			break;
		err = a.err == -EINTR || a.err == -ENODEV ? a.err : 0;
		if (err)
			break;
		arg.failed += !!a.err;
		if (signal_pending(current) && i + 1 < arg.count) {
			i++;
			err = -EINTR;
			break;
		}
	}
	shim_work_put(file, work);
	arg.served = i;
	if (copy_to_user(argp, &arg, sizeof(arg)))
		return -EFAULT;
	return err;
}

/* ---- EVICT, WAIT, INJECT --------------------------------------------------------------------- */

static int shim_ioctl_evict(struct shim_file *file, void __user *argp)
{
	struct shim_mirror *mirror = shim_file_mirror(file);
	struct shim_device *dev = file->dev;
	struct shim_account *only;
	struct hmmrt_shim_evict e;
	unsigned long want, now;
	int err;

	if (IS_ERR(mirror))
		return PTR_ERR(mirror);
	if (copy_from_user(&e, argp, sizeof(e)))
		return -EFAULT;
	if (e.flags & ~HMMRT_SHIM_EVICT_ALL || e.pad0 || e.pad1)
		return -EINVAL;
	if (e.flags & HMMRT_SHIM_EVICT_ALL && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	only = e.flags & HMMRT_SHIM_EVICT_ALL ? NULL : mirror->account;
	want = min_t(u64, e.npages, dev->nframes);
	e.evicted = 0;
	err = shim_enter(dev);
	if (err)
		return err;
	while (e.evicted < want) {
		if (signal_pending(current)) {
			err = -EINTR;
			break;
		}
		now = shim_evict(dev, only, want - e.evicted);
		if (!now)
			break;
		e.evicted += now;
	}
	flush_delayed_work(&dev->drain);
	e.left = only ? atomic_long_read(&only->pages) : dev->nframes - READ_ONCE(dev->nfree);
	shim_leave(dev);
	return copy_to_user(argp, &e, sizeof(e)) ? -EFAULT : err;
}

static int shim_ioctl_wait(struct shim_file *file, void __user *argp)
{
	struct shim_mirror *mirror = shim_file_mirror(file);
	struct shim_device *dev = file->dev;
	struct hmmrt_shim_wait w;
	ktime_t limit;
	long ret = 0;

	if (IS_ERR(mirror))
		return PTR_ERR(mirror);
	if (copy_from_user(&w, argp, sizeof(w)))
		return -EFAULT;
	if (w.pad0)
		return -EINVAL;
	if (!file->ring.hdr)
		return -ENOENT;
	limit = w.timeout_ns < 0 ? KTIME_MAX : ns_to_ktime(w.timeout_ns);
	if (READ_ONCE(file->ring.seq) < w.seq)
		ret = w.timeout_ns ? wait_event_interruptible_hrtimeout(dev->wait,
									READ_ONCE(file->ring.seq) >= w.seq ||
									READ_ONCE(dev->gone), limit) : -ETIME;
	if (READ_ONCE(dev->gone))
		ret = -ENODEV;
	spin_lock(&mirror->files_lock);
	w.next_seq = file->ring.seq + 1;
	w.dropped = file->ring.dropped;
	spin_unlock(&mirror->files_lock);
	if (copy_to_user(argp, &w, sizeof(w)))
		return -EFAULT;
	return ret == -ETIME ? -ETIMEDOUT : ret == -ERESTARTSYS ? -EINTR : ret;
}

static int shim_ioctl_inject(struct shim_file *file, void __user *argp)
{
	struct hmmrt_shim_inject arg;
	int err;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.pad0)
		return -EINVAL;
	err = shim_inject_set(file->dev, &arg);
	if (!err && copy_to_user(argp, &arg, sizeof(arg)))
		err = -EFAULT;
	return err;
}

/* ---- file operations ------------------------------------------------------------------------- */

static long shim_ioctl(struct file *filp, unsigned int cmd, unsigned long argl)
{
	struct shim_file *file = filp->private_data;
	void __user *argp = (void __user *)argl;

	if (READ_ONCE(file->dev->gone))
		return -ENODEV;
	switch (cmd) {
	case HMMRT_SHIM_QUERY:
		return shim_ioctl_query(file, argp);
	case HMMRT_SHIM_BIND:
		return shim_ioctl_bind(file, argp);
	case HMMRT_SHIM_FAULT:
	case HMMRT_SHIM_SNAPSHOT:
	case HMMRT_SHIM_TO_DEV:
	case HMMRT_SHIM_TO_SYS:
	case HMMRT_SHIM_EXCLUSIVE:
		return shim_ioctl_ranges(file, cmd, argp);
	case HMMRT_SHIM_ACCESS:
		return shim_ioctl_access(file, argp);
	case HMMRT_SHIM_EVICT:
		return shim_ioctl_evict(file, argp);
	case HMMRT_SHIM_WAIT:
		return shim_ioctl_wait(file, argp);
	case HMMRT_SHIM_INJECT:
		return shim_ioctl_inject(file, argp);
	}
	return -ENOTTY;
}

static int shim_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct shim_file *file = filp->private_data;
	struct shim_mirror *mirror = shim_file_mirror(file);
	unsigned long off;
	int err = 0;

	if (IS_ERR(mirror))
		return PTR_ERR(mirror);
	if (!file->ring.hdr)
		return -ENOENT;
	if (vma->vm_pgoff || vma->vm_end - vma->vm_start > file->ring.bytes || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	/* A child neither gets it nor may map it: events are about the parent's addresses. */
	shim_vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND);
	for (off = 0; off < vma->vm_end - vma->vm_start && !err; off += PAGE_SIZE)
		err = vm_insert_page(vma, vma->vm_start + off, vmalloc_to_page((void *)file->ring.hdr + off));
	return err;
}

static __poll_t shim_poll(struct file *filp, poll_table *wait)
{
	struct shim_file *file = filp->private_data;
	struct shim_mirror *mirror = shim_mirror_of(file);

	poll_wait(filp, &file->dev->wait, wait);
	if (!mirror || !file->ring.hdr || READ_ONCE(file->dev->gone))
		return EPOLLERR;
	return READ_ONCE(file->ring.head) != READ_ONCE(file->ring.hdr->tail) ? EPOLLIN | EPOLLRDNORM : 0;
}

static int shim_open(struct inode *inode, struct file *filp)
{
	struct shim_device *dev = container_of(filp->private_data, struct shim_device, misc);
	struct shim_file *file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);

	if (!file)
		return -ENOMEM;
	/* The node still exists: misc_deregister() waits for us, and the device goes after it. */
	kref_get(&dev->ref);
	file->dev = dev;
	mutex_init(&file->bind_lock);
	filp->private_data = file;
	return nonseekable_open(inode, filp);
}

static int shim_close(struct inode *inode, struct file *filp)
{
	struct shim_file *file = filp->private_data, *other;
	struct shim_mirror *mirror = file->mirror;
	struct shim_device *dev = file->dev;
	u32 mask = 0;

	if (mirror) {
		spin_lock(&mirror->files_lock);
		list_del(&file->node);
		list_for_each_entry(other, &mirror->file_list, node)
			mask |= other->events;
		WRITE_ONCE(mirror->event_mask, mask);
		spin_unlock(&mirror->files_lock);
		shim_mirror_put(mirror);
	}
	shim_ring_destroy(&file->ring);
	kvfree(file->spare);
	kfree(file);
	kref_put(&dev->ref, shim_device_release);
	return 0;
}

const struct file_operations shim_fops = {
	.owner		= THIS_MODULE,
	.open		= shim_open,
	.release	= shim_close,
	.unlocked_ioctl	= shim_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,	/* same layouts: only the argument's pointer differs */
	.mmap		= shim_mmap,
	.poll		= shim_poll,
};
