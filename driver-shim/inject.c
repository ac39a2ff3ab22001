// SPDX-License-Identifier: GPL-2.0-only
/* INJECT: makes chosen steps of a device fail, for tests. Off, it costs a load and a branch. */
#include "shim.h"

bool __shim_inject(struct shim_device *dev, unsigned int kind)
{
	struct shim_fault_point *p = &dev->inject[kind];

	if (atomic64_dec_if_positive(&p->skip) >= 0)
		return false;
	if (atomic64_dec_if_positive(&p->count) < 0)
		return false;
	atomic64_inc(&p->hits);
	return true;
}

int shim_inject_set(struct shim_device *dev, struct hmmrt_shim_inject *arg)
{
	struct shim_fault_point *p;
	unsigned int i;

	if (arg->kind >= HMMRT_SHIM_INJECT_KINDS || arg->skip > S64_MAX || arg->count > S64_MAX)
		return -EINVAL;
	if (arg->kind == HMMRT_SHIM_INJECT_NONE) {
		WRITE_ONCE(dev->inject_on, false);
		for (i = 0; i < HMMRT_SHIM_INJECT_KINDS; i++) {
			atomic64_set(&dev->inject[i].count, 0);
			atomic64_set(&dev->inject[i].skip, 0);
		}
		return 0;
	}
	p = &dev->inject[arg->kind];
	arg->hits = atomic64_read(&p->hits);
	atomic64_set(&p->count, 0);
	atomic64_set(&p->skip, arg->skip);
	atomic64_set(&p->count, arg->count);
	WRITE_ONCE(dev->inject_on, true);
	return 0;
}
