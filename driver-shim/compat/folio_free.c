// SPDX-License-Identifier: GPL-2.0-only
// Device memory is freed by folio, not by page.
#include <linux/memremap.h>
static void freed(struct folio *folio)
{
}
const struct dev_pagemap_ops probe = { .folio_free = freed };
