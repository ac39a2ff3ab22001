// SPDX-License-Identifier: GPL-2.0-only
// Anything at all compiles.
#include <linux/mm.h>
int probe(void);
int probe(void)
{
	return PAGE_SHIFT;
}
