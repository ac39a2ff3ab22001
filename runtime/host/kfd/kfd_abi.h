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
  HMMRT_KFD_MINOR_SVM = 5,
  HMMRT_KFD_MINOR_REPORTS = 10,
  HMMRT_KFD_SVM_SET_ATTR = 0,         /* hmmrt_kfd_svm.op */
  HMMRT_KFD_SVM_GET_ATTR = 1,         /* ... */
  HMMRT_KFD_SVM_ATTR_GRANULARITY = 7, /* hmmrt_kfd_svm_attribute.type; the others: svm_driver.hpp */
  HMMRT_KFD_SVM_MOST = 32,            /* attributes of one call; the kernel takes more */
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

struct hmmrt_kfd_svm_attribute {
  __u32 type;
  __u32 value; /* a GPU is its gpu_id; of locations, 0 is system memory and 0xffffffff none */
};

/* The size in the request covers those attributes that there are. */
struct hmmrt_kfd_svm {
  __u64 start; /* of whole pages */
  __u64 bytes;
  __u32 op;
  __u32 attributes; /* how many of these: */
  struct hmmrt_kfd_svm_attribute attribute[HMMRT_KFD_SVM_MOST];
};

struct hmmrt_kfd_xnack {
  __s32 enabled; /* negative: only ask. From KFD: 0, or positive */
};

#define HMMRT_KFD_GET_VERSION _IOR('K', 0x01, struct hmmrt_kfd_version)
#define HMMRT_KFD_SMI_EVENTS _IOWR('K', 0x1F, struct hmmrt_kfd_smi_events)
#define HMMRT_KFD_SVM_WITH(n)             \
  _IOC(_IOC_READ | _IOC_WRITE, 'K', 0x20, \
       sizeof(struct hmmrt_kfd_svm) - (HMMRT_KFD_SVM_MOST - (n)) * sizeof(struct hmmrt_kfd_svm_attribute))
#define HMMRT_KFD_XNACK _IOWR('K', 0x21, struct hmmrt_kfd_xnack)

#endif
