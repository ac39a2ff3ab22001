/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's interfaces, as the newest kernel has them, on all that we build for. What a kernel has is found by
 * compiling the files of compat/ (see compat/probe.sh), never by version numbers: distributions backport.
 */
#ifndef HMMRT_SHIM_COMPAT_H
#define HMMRT_SHIM_COMPAT_H

#include <linux/eventfd.h>
#include <linux/gfp.h>
#include <linux/kconfig.h>
#include <linux/memremap.h>
#include <linux/mm.h>

#include "compat_probe.h"

/* Exported only with private device memory. */
#define SHIM_HAVE_EXCLUSIVE \
	(IS_ENABLED(CONFIG_DEVICE_PRIVATE) && (SHIM_HAVE_EXCLUSIVE_RANGE || SHIM_HAVE_EXCLUSIVE_ONE))

/* From 6.15 on, as exclusive access to one page: a CPU fault comes with its page locked. */
#define SHIM_FAULT_HAS_LOCK	SHIM_HAVE_EXCLUSIVE_ONE

static inline struct dev_pagemap *shim_page_pgmap(struct page *page)
{
#if SHIM_HAVE_PAGE_PGMAP
	return page_pgmap(page);
#else
	return page->pgmap;
#endif
}

/* Reference one, locked. */
static inline void shim_page_init(struct page *page, struct dev_pagemap *pgmap)
{
#if SHIM_HAVE_PAGE_INIT_ORDER
	zone_device_page_init(page, pgmap, 0);
#else
	zone_device_page_init(page);
#endif
}

#ifndef VM_SHADOW_STACK
#define VM_SHADOW_STACK		0
#endif

#ifndef FOLIO_MAPPING_FLAGS
#define FOLIO_MAPPING_ANON	PAGE_MAPPING_ANON
#define FOLIO_MAPPING_FLAGS	PAGE_MAPPING_FLAGS
#endif

static inline void shim_eventfd_signal(struct eventfd_ctx *ctx)
{
#if SHIM_HAVE_EVENTFD_SIGNAL_ONE
	eventfd_signal(ctx);
#else
	eventfd_signal(ctx, 1);
#endif
}

/* Fills NULL slots of pages[0..n); returns how many slots are filled. */
static inline unsigned long shim_alloc_bulk(gfp_t gfp, unsigned long n, struct page **pages)
{
#if SHIM_HAVE_BULK_ARRAY
	return alloc_pages_bulk_array(gfp, n, pages);
#else
	return alloc_pages_bulk(gfp, n, pages);
#endif
}

static inline void shim_vm_flags_set(struct vm_area_struct *vma, unsigned long flags)
{
#if SHIM_HAVE_VM_FLAGS_SET
	vm_flags_set(vma, flags);
#else
	vma->vm_flags |= flags;
#endif
}

#endif
