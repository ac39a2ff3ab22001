// SPDX-License-Identifier: GPL-2.0-only
// page_pgmap() instead of page->pgmap.
#include <linux/memremap.h>
#include <linux/mmzone.h>
struct dev_pagemap *probe(struct page *page);
struct dev_pagemap *probe(struct page *page)
{
	return page_pgmap(page);
}
