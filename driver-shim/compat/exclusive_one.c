// SPDX-License-Identifier: GPL-2.0-only
// make_device_exclusive(): one page, its folio locked (from 6.15).
#include <linux/mm.h>
#include <linux/rmap.h>
struct page *probe(struct mm_struct *mm, struct folio **folio);
struct page *probe(struct mm_struct *mm, struct folio **folio)
{
	return make_device_exclusive(mm, 0, NULL, folio);
}
