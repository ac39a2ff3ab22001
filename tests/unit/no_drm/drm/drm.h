/* SPDX-License-Identifier: MIT */
/* linux/kfd_ioctl.h wants the types of drm/drm.h, which Debian's linux-libc-dev leaves out. Taken only where there is none. */
#include <linux/types.h>
