// SPDX-License-Identifier: GPL-2.0-only
// alloc_pages_bulk_array(), later called alloc_pages_bulk().
#include <linux/gfp.h>
unsigned long probe(struct page **pages);
unsigned long probe(struct page **pages)
{
	return alloc_pages_bulk_array(GFP_KERNEL, 8, pages);
}
