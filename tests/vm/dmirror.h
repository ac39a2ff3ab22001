/* SPDX-License-Identifier: MIT */
/* The calls of the kernel's own test_hmm module, beside which ours is measured: /dev/hmm_dmirror0 is a private device. */
#ifndef DMIRROR_H
#define DMIRROR_H

#include "shim_test.h"

struct dmirror_cmd {
  uint64_t addr;
  uint64_t ptr; /* READ, TO_DEV: where the device's data goes */
  uint64_t pages;
  uint64_t done;
  uint64_t faults;
};
#define DMIRROR_READ _IOWR('H', 0x00, struct dmirror_cmd)
#define DMIRROR_TO_DEV _IOWR('H', 0x02, struct dmirror_cmd)
#define DMIRROR_TO_SYS _IOWR('H', 0x03, struct dmirror_cmd)
#define DMIRROR_SNAPSHOT _IOWR('H', 0x04, struct dmirror_cmd) /* ptr: a byte a page */

static const char* const k_dmirror_node = "/dev/hmm_dmirror0";

/* Pages done, or -errno. */
static inline long dmirror(int fd, unsigned long call, const void* at, uint64_t pages, void* data) {
  struct dmirror_cmd cmd = {.addr = (uintptr_t)at, .pages = pages, .ptr = (uintptr_t)data};
  return ioctl(fd, call, &cmd) ? -errno : (long)cmd.done;
}

#endif
