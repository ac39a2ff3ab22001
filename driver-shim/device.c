// SPDX-License-Identifier: GPL-2.0-only
/*
 * One device: its node, its memory, its end. The struct lives until the last open file and the last account are gone;
 * the device itself ends with shim_device_destroy(), at module unload or when its PCI device is unbound, files or not.
 */
#include <linux/idr.h>
#include <linux/slab.h>

#include "shim.h"

LIST_HEAD(shim_devices);
DEFINE_MUTEX(shim_devices_lock);	/* the list; a device on it has its memory */
static DEFINE_IDA(shim_ids);

void shim_device_release(struct kref *ref)
{
	struct shim_device *dev = container_of(ref, struct shim_device, ref);

	ida_free(&shim_ids, dev->id);
	kfree(dev);
}

/* With its memory, and without a node yet. bytes is rounded down to 2 MiB. parent: the PCI device, or NULL. */
struct shim_device *shim_device_create(u32 mem_type, phys_addr_t base, u64 bytes, struct device *parent)
{
	struct shim_device *dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	int err;

	if (!dev)
		return ERR_PTR(-ENOMEM);
	dev->id = ida_alloc(&shim_ids, GFP_KERNEL);
	if (dev->id < 0) {
		err = dev->id;
		kfree(dev);
		return ERR_PTR(err);
	}
	kref_init(&dev->ref);
	dev->mem_type = mem_type;
	snprintf(dev->name, sizeof(dev->name), "hmmrt%d", dev->id);
	init_rwsem(&dev->life);
	init_waitqueue_head(&dev->wait);
	spin_lock_init(&dev->list_lock);
	INIT_LIST_HEAD(&dev->mirrors);
	INIT_LIST_HEAD(&dev->accounts);
	INIT_LIST_HEAD(&dev->movers);
	INIT_LIST_HEAD(&dev->arrivals);
	shim_mirror_init_ops(dev);
	dev->misc.minor = MISC_DYNAMIC_MINOR;
	dev->misc.name = dev->name;
	dev->misc.fops = &shim_fops;
	dev->misc.mode = 0660;
	dev->misc.parent = parent;

	bytes = ALIGN_DOWN(bytes, 1ull << SHIM_BLOCK_SHIFT);
	err = !bytes && mem_type != HMMRT_SHIM_MEM_NONE ? -EINVAL : shim_devmem_create(dev, base, bytes);
	if (err) {
		kref_put(&dev->ref, shim_device_release);
		return ERR_PTR(err);
	}
	mutex_lock(&shim_devices_lock);
	list_add_tail(&dev->node, &shim_devices);
	mutex_unlock(&shim_devices_lock);
	return dev;
}

/* Its node. Whoever opens it may use our code until the file is closed, so loading must not fail any more. */
int shim_device_show(struct shim_device *dev)
{
	int err = misc_register(&dev->misc);

	dev->shown = !err;
	return err;
}

/* No new opens; no new calls, and those that run finish; every page goes home; the memory goes. */
void shim_device_destroy(struct shim_device *dev)
{
	if (dev->shown)
		misc_deregister(&dev->misc);
	WRITE_ONCE(dev->gone, true);
	wake_up_all(&dev->wait);
	down_write(&dev->life);
	up_write(&dev->life);
	mutex_lock(&shim_devices_lock);
	list_del(&dev->node);
	mutex_unlock(&shim_devices_lock);
	shim_devmem_destroy(dev);
	kref_put(&dev->ref, shim_device_release);
}
