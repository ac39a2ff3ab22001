// SPDX-License-Identifier: GPL-2.0-only
/* Loading and unloading: which devices there are, and what this kernel cannot do, said once. */
#include <linux/module.h>

#include "shim.h"

#define SHIM_MAX_DEVICES	16

static unsigned int private_devices = 1;
module_param(private_devices, uint, 0444);
MODULE_PARM_DESC(private_devices,
		 "private devices to make (default 1). Without CONFIG_DEVICE_PRIVATE they mirror but have no memory");

static unsigned long private_mb = 256;
module_param(private_mb, ulong, 0444);
MODULE_PARM_DESC(private_mb, "capacity of each private device in MiB (default 256); system memory is taken as it is used");

static unsigned long long coherent_addr[SHIM_MAX_DEVICES];
static unsigned int coherent_devices;
module_param_array(coherent_addr, ullong, &coherent_devices, 0444);
MODULE_PARM_DESC(coherent_addr,
		 "physical addresses, 2 MiB aligned, of memory kept from the kernel (memmap=SIZE$ADDR): a coherent device each");

static unsigned long coherent_size = 256;
module_param(coherent_size, ulong, 0444);
MODULE_PARM_DESC(coherent_size, "capacity of each coherent_addr device in MiB (default 256)");

unsigned int shim_cpu_fault_order;
module_param_named(cpu_fault_order, shim_cpu_fault_order, uint, 0644);
MODULE_PARM_DESC(cpu_fault_order,
		 "log2 of the pages brought home around a CPU fault, 0..9 (default 0); TO_DEV may say otherwise per range");

/* Sums with counts of pages must not overflow. */
static int shim_quota_set(const char *text, const struct kernel_param *param)
{
	unsigned long pages;
	int err = kstrtoul(text, 0, &pages);

	if (err)
		return err;
	if (pages > LONG_MAX / 2)
		return -EINVAL;
	WRITE_ONCE(shim_quota_pages, pages);
	return 0;
}

static const struct kernel_param_ops shim_quota_ops = {
	.set	= shim_quota_set,
	.get	= param_get_ulong,
};

unsigned long shim_quota_pages;
module_param_cb(quota_pages, &shim_quota_ops, &shim_quota_pages, 0644);
__MODULE_PARM_TYPE(quota_pages, "ulong");
MODULE_PARM_DESC(quota_pages, "most pages of one device that one address space may hold (default 0: no limit)");

/* Made while loading, until they are shown. */
static struct shim_device *shim_made[2 * SHIM_MAX_DEVICES] __initdata;
static unsigned int shim_made_count __initdata;

static void shim_destroy_all(void)
{
	struct shim_device *dev;

	for (;;) {
		mutex_lock(&shim_devices_lock);
		dev = list_first_entry_or_null(&shim_devices, struct shim_device, node);
		mutex_unlock(&shim_devices_lock);
		if (!dev)
			break;
		shim_device_destroy(dev);
	}
	/* Mirrors are freed by the kernel, some time after their last file: with our code. */
	mmu_notifier_synchronize();
}

static int __init shim_make(u32 type, phys_addr_t base, u64 mb)
{
	struct shim_device *dev = shim_device_create(type, base, mb << 20, NULL);

	if (IS_ERR(dev)) {
		pr_err(SHIM_NAME ": cannot make a device of %llu MiB: %ld\n", mb, PTR_ERR(dev));
		return PTR_ERR(dev);
	}
	shim_made[shim_made_count++] = dev;
	return 0;
}

static int __init shim_init(void)
{
	u32 type = IS_ENABLED(CONFIG_DEVICE_PRIVATE) ? HMMRT_SHIM_MEM_PRIVATE : HMMRT_SHIM_MEM_NONE;
	unsigned int i;
	int err = 0;

	if (private_devices > SHIM_MAX_DEVICES || private_mb > 1ul << 22 || coherent_size > 1ul << 22) {
		pr_err(SHIM_NAME ": at most %u devices of 4 TiB\n", SHIM_MAX_DEVICES);
		return -EINVAL;
	}
	if (!IS_ENABLED(CONFIG_DEVICE_PRIVATE))
		pr_info(SHIM_NAME ": this kernel has CONFIG_DEVICE_PRIVATE off: no private device memory and no exclusive access; coherent devices work\n");
	else if (!SHIM_HAVE_EXCLUSIVE)
		pr_info(SHIM_NAME ": this kernel's exclusive access is of a kind unknown to this module: EXCLUSIVE is off\n");

	shim_gates_init();
	shim_walks_init();
	for (i = 0; i < private_devices && !err; i++)
		err = shim_make(type, 0, private_mb);
	for (i = 0; i < coherent_devices && !err; i++) {
		if (!coherent_addr[i] || coherent_addr[i] & ((1ull << SHIM_BLOCK_SHIFT) - 1)) {
			pr_err(SHIM_NAME ": coherent_addr %#llx is not 2 MiB aligned\n", coherent_addr[i]);
			err = -EINVAL;
			break;
		}
		err = shim_make(HMMRT_SHIM_MEM_COHERENT, coherent_addr[i], coherent_size);
	}
#ifdef CONFIG_PCI
	if (!err)
		err = shim_pci_register();
#endif
	if (err) {
		shim_destroy_all();
		return err;
	}
	for (i = 0; i < shim_made_count; i++) {
		err = shim_device_show(shim_made[i]);
		if (!err)
			continue;
		pr_err(SHIM_NAME ": no node for %s, which is given up: %d\n", shim_made[i]->name, err);
		shim_device_destroy(shim_made[i]);
	}
	return 0;
}

static void __exit shim_exit(void)
{
#ifdef CONFIG_PCI
	shim_pci_unregister();
#endif
	shim_destroy_all();
}

module_init(shim_init);
module_exit(shim_exit);
MODULE_DESCRIPTION("Thin memory-mirroring driver of libhmmrt: device memory, migration, mirroring");
MODULE_AUTHOR("The libhmmrt authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
