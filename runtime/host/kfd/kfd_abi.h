/* SPDX-License-Identifier: MIT */
/*
 * The four calls of /dev/kfd that are used here, and their arguments, as linux/kfd_ioctl.h has them: that header includes
 * drm/drm.h, which Debian ships in libdrm-dev and not with the kernel's. kfd_probe_test.cpp compares the two where both
 * are there. C, for tests/vm/kfd.c.
 */
#ifndef HMMRT_KFD_ABI_H
#define HMMRT_KFD_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

enum {
  HMMRT_KFD_MAJOR = 1,
  HMMRT_KFD_SVM_GET_ATTR = 1,         /* hmmrt_kfd_svm.op */
  HMMRT_KFD_SVM_ATTR_GRANULARITY = 7, /* hmmrt_kfd_svm.attr_type */
  HMMRT_KFD_CAP_SVM = 0x08000000      /* in a node's property "capability" */
};

struct hmmrt_kfd_version {
  __u32 abi_major; /* from KFD */
  __u32 abi_minor; /* from KFD: 3 SMI events, 5 SVM, 10 SMI events of faults and migrations */
};

/* Of one GPU. Write a mask of events to fd, then read lines from it (smi_events.hpp). */
struct hmmrt_kfd_smi_events {
  __u32 gpu_id; /* to KFD */
  __u32 fd;     /* from KFD */
};

/* With one attribute. The call takes any number of them, and the size in the request covers all. */
struct hmmrt_kfd_svm {
  __u64 start; /* of whole pages */
  __u64 bytes;
  __u32 op;
  __u32 attributes; /* 1 */
  __u32 attr_type;
  __u32 attr_value;
};

struct hmmrt_kfd_xnack {
  __s32 enabled; /* negative: only ask. From KFD: 0, or positive */
};

#define HMMRT_KFD_GET_VERSION _IOR('K', 0x01, struct hmmrt_kfd_version)
#define HMMRT_KFD_SMI_EVENTS _IOWR('K', 0x1F, struct hmmrt_kfd_smi_events)
#define HMMRT_KFD_SVM _IOWR('K', 0x20, struct hmmrt_kfd_svm)
#define HMMRT_KFD_XNACK _IOWR('K', 0x21, struct hmmrt_kfd_xnack)

#endif
