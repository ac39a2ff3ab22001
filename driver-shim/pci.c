// SPDX-License-Identifier: GPL-2.0-only
/*
 * Devices whose memory is a PCI BAR. The table of ids is empty: this driver takes a PCI device only when told to, by
 * its driver_override or by new_id. Which BAR, and whether the CPU may map it (coherent) or not (private), are module
 * parameters. In tests the device is QEMU's ivshmem-plain, BAR 2.
 */
#include <linux/module.h>
#include <linux/pci.h>

#include "shim.h"

static unsigned int pci_bar = 2;
module_param(pci_bar, uint, 0444);
MODULE_PARM_DESC(pci_bar, "BAR that is the memory of a PCI device (default 2)");

static bool pci_private;
module_param(pci_private, bool, 0644);
MODULE_PARM_DESC(pci_private,
		 "a PCI device bound from now on is private: the CPU cannot map it (default: coherent). Needs CONFIG_DEVICE_PRIVATE");

static int shim_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	const bool private = READ_ONCE(pci_private);
	u32 type = private ? HMMRT_SHIM_MEM_PRIVATE_BAR : HMMRT_SHIM_MEM_COHERENT_BAR;
	struct shim_device *dev;
	int err;

	if (pci_bar >= PCI_STD_NUM_BARS || !(pci_resource_flags(pdev, pci_bar) & IORESOURCE_MEM))
		return dev_err_probe(&pdev->dev, -ENODEV, "BAR %u is no memory\n", pci_bar);
	if (private && !IS_ENABLED(CONFIG_DEVICE_PRIVATE))
		return dev_err_probe(&pdev->dev, -EOPNOTSUPP, "this kernel has no private device memory\n");
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	err = pci_request_region(pdev, pci_bar, SHIM_NAME);
	if (err)
		return err;
	dev = shim_device_create(type, pci_resource_start(pdev, pci_bar), pci_resource_len(pdev, pci_bar),
				 &pdev->dev);
	if (IS_ERR(dev)) {
		pci_release_region(pdev, pci_bar);
		return dev_err_probe(&pdev->dev, PTR_ERR(dev), "cannot use BAR %u\n", pci_bar);
	}
	err = shim_device_show(dev);
	if (err) {
		shim_device_destroy(dev);
		pci_release_region(pdev, pci_bar);
		return dev_err_probe(&pdev->dev, err, "no node\n");
	}
	pci_set_drvdata(pdev, dev);
	dev_info(&pdev->dev, "%s: %s memory, %lu pages of BAR %u\n", dev->name, private ? "private" : "coherent",
		 dev->nframes, pci_bar);
	return 0;
}

static void shim_pci_remove(struct pci_dev *pdev)
{
	shim_device_destroy(pci_get_drvdata(pdev));
	pci_release_region(pdev, pci_bar);
}

static const struct pci_device_id shim_pci_ids[] = { {} };

static struct pci_driver shim_pci_driver = {
	.name		= SHIM_NAME,
	.id_table	= shim_pci_ids,
	.probe		= shim_pci_probe,
	.remove		= shim_pci_remove,
};

int shim_pci_register(void)
{
	return pci_register_driver(&shim_pci_driver);
}

void shim_pci_unregister(void)
{
	pci_unregister_driver(&shim_pci_driver);
}
