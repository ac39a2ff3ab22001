// SPDX-License-Identifier: GPL-2.0-only
/*
 * Event rings: one per open file, mapped by its process. Adding an event never sleeps, never allocates and never waits
 * for the consumer; invalidations add from wherever the kernel is. Everything in the shared header may be overwritten
 * by the process at any time, so the kernel keeps its own head and only reads the tail.
 */
#include <linux/mm.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>

#include "shim.h"

/* order 0: no ring. eventfd -1: none. */
int shim_ring_create(struct shim_ring *ring, unsigned int order, int eventfd)
{
	if (eventfd >= 0) {
		ring->eventfd = eventfd_ctx_fdget(eventfd);
		if (IS_ERR(ring->eventfd)) {
			int err = PTR_ERR(ring->eventfd);

			ring->eventfd = NULL;
			return err;
		}
	}
	if (!order)
		return 0;
	ring->mask = (1ull << order) - 1;
	ring->bytes = PAGE_ALIGN(PAGE_SIZE + ((ring->mask + 1) * sizeof(*ring->events)));
	/* A process may have many files: charged to it. */
	ring->hdr = __vmalloc(ring->bytes, GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN);
	if (!ring->hdr) {
		shim_ring_destroy(ring);
		return -ENOMEM;
	}
	ring->events = (void *)ring->hdr + PAGE_SIZE;
	ring->hdr->magic = HMMRT_SHIM_RING_MAGIC;
	ring->hdr->abi_major = HMMRT_SHIM_ABI_MAJOR;
	ring->hdr->events_off = PAGE_SIZE;
	ring->hdr->event_bytes = sizeof(*ring->events);
	ring->hdr->mask = ring->mask;
	return 0;
}

void shim_ring_destroy(struct shim_ring *ring)
{
	vfree(ring->hdr);
	ring->hdr = NULL;
	if (ring->eventfd)
		eventfd_ctx_put(ring->eventfd);
	ring->eventfd = NULL;
}

/* Under files_lock. */
static void shim_ring_add(struct shim_ring *ring, const struct hmmrt_shim_event *ev)
{
	u64 used;

	ring->seq++;
	if (ring->hdr) {
		/* A tail ahead of the head is nonsense, and shows as a huge number: dropped like an overflow. */
		used = ring->head - smp_load_acquire(&ring->hdr->tail);
		if (used > ring->mask) {
			WRITE_ONCE(ring->hdr->dropped, ++ring->dropped);
		} else {
			struct hmmrt_shim_event *slot = &ring->events[ring->head & ring->mask];

			*slot = *ev;
			slot->seq = ring->seq;
			/* The event before the head that announces it; pairs with the consumer's acquire. */
			smp_store_release(&ring->hdr->head, ++ring->head);
		}
	}
	if (ring->eventfd)
		shim_eventfd_signal(ring->eventfd);
}

/* Adds an event to every ring of the mirror that wants its kind (HMMRT_SHIM_BIND_EVENTS_*; 0: all). Never sleeps. */
void shim_event(struct shim_mirror *mirror, u32 want, const struct hmmrt_shim_event *event)
{
	struct hmmrt_shim_event ev;
	struct shim_file *file;

	if (want && !(READ_ONCE(mirror->event_mask) & want))
		return;
	ev = *event;
	ev.ts_ns = ktime_get_ns();
	ev.gen = atomic64_read(&mirror->gen);
	spin_lock(&mirror->files_lock);
	list_for_each_entry(file, &mirror->file_list, node)
		if (!want || file->events & want)
			shim_ring_add(&file->ring, &ev);
	spin_unlock(&mirror->files_lock);
	wake_up_all(&mirror->dev->wait);
}

/* The same, by address space, for those who hold no mirror. */
void shim_event_dev(struct shim_device *dev, struct mm_struct *mm, u32 want, const struct hmmrt_shim_event *ev)
{
	struct shim_mirror *mirror;

	if (list_empty_careful(&dev->mirrors))
		return;
	spin_lock(&dev->list_lock);
	list_for_each_entry(mirror, &dev->mirrors, node) {
		if (mirror->mm == mm) {
			shim_event(mirror, want, ev);
			break;
		}
	}
	spin_unlock(&dev->list_lock);
}
