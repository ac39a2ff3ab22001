/* SPDX-License-Identifier: MIT */
/*
 * For the set `pci`:
 *   pci type NODE TYPE          NODE's memory is of that type, and its capacity is the BAR's 256 MiB
 *   pci stall NODE READY        makes the file READY and calls with an argument in memory that never answers
 *   pci stay NODE READY GO      puts pages on NODE, makes the file READY, waits for GO: by then the device is gone. The
 *                               pages must be whole, at home, and every call on the open file refused
 */
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#include "shim_test.h"

enum { k_pages = 3000 };

static int stay(const char* node, const char* ready, const char* go) {
  struct hmmrt_shim_query query = {0};
  char* p = map_pages(k_pages);
  const int fd = open_bound(node);
  fill(p, k_pages, 1);
  CHECK_EQ(to_dev(fd, p, k_pages), k_pages);
  CHECK_EQ(on_device(fd, p, k_pages), k_pages);
  CHECK_EQ(device_write(fd, p + 100 * k_page, p + 100 * k_page, 1), 0);
  CHECK(creat(ready, 0600) >= 0);
  while (access(go, F_OK)) usleep(1000);
  CHECK(ioctl(fd, HMMRT_SHIM_QUERY, &query) == -1 && errno == ENODEV);
  CHECK_EQ(to_dev(fd, p, 1), -ENODEV);
  CHECK_EQ(device_write(fd, p, "x", 1), -ENODEV);
  CHECK_FILLED(p, k_pages, 1);
  fill(p, k_pages, 2);
  CHECK_FILLED(p, k_pages, 2);
  return 0;
}

static int stall(const char* node, const char* ready) {
  char* p = map_pages(1);
  const int fd = open_bound(node), faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register range = {.range = {(uintptr_t)p, k_page}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  CHECK(ioctl(faults, UFFDIO_API, &api) == 0 && ioctl(faults, UFFDIO_REGISTER, &range) == 0);
  CHECK(creat(ready, 0600) >= 0);
  return ioctl(fd, HMMRT_SHIM_QUERY, p);
}

int main(int argc, char** argv) {
  if (argc == 5 && !strcmp(argv[1], "stay")) return stay(argv[2], argv[3], argv[4]);
  if (argc == 4 && !strcmp(argv[1], "stall")) return stall(argv[2], argv[3]);
  if (argc != 4 || strcmp(argv[1], "type")) return 2;
  const int fd = open_bound(argv[2]);
  const struct hmmrt_shim_query query = query_of(fd);
  CHECK_EQ(query.mem_type, atoi(argv[3]));
  CHECK_EQ(query.devmem_pages, (256 << 20) / k_page);
  CHECK(query.caps & HMMRT_SHIM_CAP_BAR);
  return 0;
}
