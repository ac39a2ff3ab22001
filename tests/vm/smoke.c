/* SPDX-License-Identifier: MIT */
/*
 * The smallest use of hmmrt_shim: malloc'd pages go to every device, are changed there, and come home changed.
 *   smoke          once for each /dev/hmmrt<N>; fails when there is none
 *   smoke --load   for ever, for whoever unloads the module meanwhile: a device that is away is waited for; pages stay
 *                  on the device after its file is closed, and must come home whole, also when the module goes
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "hmmrt_shim.h"

enum { k_pages = 64 };

#define CHECK(condition)                                                                             \
  do {                                                                                               \
    if (!(condition)) {                                                                              \
      fprintf(stderr, "smoke: %s:%d: %s failed: %s\n", node, __LINE__, #condition, strerror(errno)); \
      exit(1);                                                                                       \
    }                                                                                                \
  } while (0)

static unsigned visits;

/* One visit to `node`. False when it is not there. */
static int visit(const char* node, int may_be_away) {
  struct hmmrt_shim_query query = {0};
  struct hmmrt_shim_bind bind = {.eventfd = -1};
  int fd = open(node, O_RDWR | O_CLOEXEC);

  if (fd < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO)) return 0;
  CHECK(fd >= 0);
  CHECK(ioctl(fd, HMMRT_SHIM_QUERY, &query) == 0);
  CHECK(query.abi_major == HMMRT_SHIM_ABI_MAJOR);
  CHECK(ioctl(fd, HMMRT_SHIM_BIND, &bind) == 0);

  const size_t page = (size_t)1 << query.page_shift, bytes = k_pages * page, words = bytes / sizeof(uint64_t);
  uint64_t *memory = aligned_alloc(page, bytes), value = 0;

  CHECK(memory != NULL);
  for (size_t i = 0; i < words; i++) memory[i] = i;

  struct hmmrt_shim_range range = {.addr = (uintptr_t)memory, .npages = k_pages};
  struct hmmrt_shim_ranges ranges = {.ranges_ptr = (uintptr_t)&range, .count = 1};

  CHECK(ioctl(fd, HMMRT_SHIM_TO_DEV, &ranges) == 0);
  if (!may_be_away)
    printf("smoke: %s: type %u, %llu of %u pages went there\n", node, query.mem_type, (unsigned long long)range.done,
           k_pages);
  /* What is locked in memory leaves a reference behind as it is unmapped: no page may wait for that to go away. */
  if (visits++ & 1) {
    const time_t start = time(NULL);

    CHECK(mlock(memory, bytes) == 0);
    CHECK(may_be_away || time(NULL) - start <= 5);
  }
  if (query.mem_type != HMMRT_SHIM_MEM_NONE && !may_be_away) CHECK(range.done == k_pages);

  struct hmmrt_shim_access access[2] = {
      {.addr = (uintptr_t)&memory[words / 2], .len = 8, .op = HMMRT_SHIM_OP_ADD, .arg0 = 1000},
      {.addr = (uintptr_t)&memory[words - 1], .len = 8, .op = HMMRT_SHIM_OP_READ, .buf = (uintptr_t)&value},
  };
  struct hmmrt_shim_accesses accesses = {.accesses_ptr = (uintptr_t)access, .count = 2};

  CHECK(ioctl(fd, HMMRT_SHIM_ACCESS, &accesses) == 0);
  CHECK(accesses.failed == 0 && access[0].out == words / 2 && value == words - 1);
  close(fd);
  for (size_t i = 0; i < words; i++) CHECK(memory[i] == i + (i == words / 2 ? 1000 : 0));
  free(memory);
  return 1;
}

int main(int argc, char** argv) {
  const int load = argc > 1 && !strcmp(argv[1], "--load");
  int found = 0;

  do {
    for (int i = 0; i < 8; i++) {
      char node[32];

      snprintf(node, sizeof(node), "/dev/hmmrt%d", i);
      found += visit(node, load);
    }
  } while (load);
  if (!found) fprintf(stderr, "smoke: no /dev/hmmrt<N>\n");
  return !found;
}
