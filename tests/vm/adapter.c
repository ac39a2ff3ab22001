/* SPDX-License-Identifier: MIT */
/*
 * Preloaded under the kernel's own hmm-tests, unmodified: turns their calls on /dev/hmm_dmirror<N> into the public ABI
 * of hmmrt_shim on /dev/hmmrt<N> (0 and 1 private, 2 and 3 coherent).
 *
 * What test_hmm promises and our ABI says differently is rebuilt here from our answers, never guessed:
 *  - it moves system memory only: a page that another open device holds, by its SNAPSHOT, stays there (ENOENT);
 *  - TO_DEV and EXCLUSIVE return what the device then sees: read with NO_FAULT, so a page it lost fails;
 *  - a write to a page that may only be read is EPERM, by the page's status from FAULT;
 *  - its mmap() gives pages of the driver: here those of the event ring, made read-only.
 * Where the kernel lacks what a test needs (private device memory, exclusive access), the test fails; with
 * HMMRT_ADAPTER_SKIP=STATUS it says so and exits with STATUS, which its harness takes for a skip (6.1: 255, 6.12: 4).
 * hmm-tests calls from one thread of each process at a time, and so may this.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hmmrt_shim.h"

/* lib/test_hmm_uapi.h */
struct dmirror_cmd {
  uint64_t addr, ptr, npages, cpages, faults;
};
enum { k_read, k_write, k_to_dev, k_to_sys, k_snapshot, k_exclusive, k_check_exclusive, k_release };
#define DMIRROR_MAGIC 'H'

enum { k_files = 1024 };
static struct {
  bool ours, no_memory;
  uint64_t ring_off, ring_bytes;
} files[k_files];

static long page_bytes;

static int call(int fd, unsigned long request, void* argument) {
  return syscall(SYS_ioctl, fd, request, argument) ? -errno : 0;
}

static int open_device(int unit, int flags) {
  char node[32];
  struct hmmrt_shim_query query = {0};
  struct hmmrt_shim_bind bind = {.flags = HMMRT_SHIM_BIND_EVENTS_ALL, .ring_order = 6, .eventfd = -1};

  page_bytes = sysconf(_SC_PAGESIZE);
  snprintf(node, sizeof(node), "/dev/hmmrt%d", unit);
  const int fd = syscall(SYS_openat, AT_FDCWD, node, flags, 0);
  if (fd < 0) return fd;

  int err = fd < k_files ? call(fd, HMMRT_SHIM_QUERY, &query) : -EMFILE;
  const bool coherent = query.mem_type == HMMRT_SHIM_MEM_COHERENT || query.mem_type == HMMRT_SHIM_MEM_COHERENT_BAR;
  if (!err && coherent != (unit >= 2)) {
    fprintf(stderr, "adapter: %s is of type %u: 0 and 1 must be private, 2 and 3 coherent\n", node, query.mem_type);
    err = -ENODEV;
  }
  if (!err) err = call(fd, HMMRT_SHIM_BIND, &bind);
  if (err) {
    fprintf(stderr, "adapter: %s: %s\n", node, strerror(-err));
    close(fd);
    errno = -err;
    return -1;
  }
  files[fd].ours = true;
  files[fd].no_memory = query.mem_type == HMMRT_SHIM_MEM_NONE;
  files[fd].ring_off = bind.ring_mmap_off;
  files[fd].ring_bytes = bind.ring_bytes;
  return fd;
}

/* Ends the test, when so told. */
static void absent(const char* what) {
  const char* status = getenv("HMMRT_ADAPTER_SKIP");
  if (!status) return;
  fprintf(stderr, "adapter: SKIP: this kernel has no %s\n", what);
  _exit(atoi(status));
}

/* One range; `status` gets a byte for each page. */
static int on_range(int fd, unsigned long request, uint64_t addr, uint64_t npages, uint32_t flags, uint8_t* status) {
  struct hmmrt_shim_range range = {.addr = addr, .npages = npages, .flags = flags, .status_ptr = (uintptr_t)status};
  struct hmmrt_shim_ranges ranges = {.ranges_ptr = (uintptr_t)&range, .count = 1};
  return call(fd, request, &ranges);
}

static int device_access(int fd, struct dmirror_cmd* cmd, uint32_t op, uint32_t flags, uint64_t* out) {
  struct hmmrt_shim_access access = {
      .addr = cmd->addr, .buf = cmd->ptr, .len = cmd->npages * page_bytes, .op = op, .flags = flags};
  struct hmmrt_shim_accesses accesses = {.accesses_ptr = (uintptr_t)&access, .count = 1};

  if (op == HMMRT_SHIM_OP_CHECK_EXCLUSIVE) access.buf = 0;
  const int err = call(fd, HMMRT_SHIM_ACCESS, &accesses);
  cmd->cpages = access.done / page_bytes;
  cmd->faults = access.faults;
  if (out) *out = access.out;
  return err ? err : access.err;
}

static int read_or_write(int fd, struct dmirror_cmd* cmd, bool write, uint8_t* status) {
  int err = device_access(fd, cmd, write ? HMMRT_SHIM_OP_WRITE : HMMRT_SHIM_OP_READ, 0, NULL);
  if (err != -EFAULT || !write) return err;
  on_range(fd, HMMRT_SHIM_FAULT, cmd->addr, cmd->npages, HMMRT_SHIM_RANGE_WRITE, status);
  const uint8_t* forbidden = memchr(status, HMMRT_SHIM_FORBIDDEN, cmd->npages);
  if (!forbidden) return err;
  uint8_t reading = HMMRT_SHIM_FORBIDDEN;
  on_range(fd, HMMRT_SHIM_FAULT, cmd->addr + (forbidden - status) * page_bytes, 1, 0, &reading);
  return reading == HMMRT_SHIM_FORBIDDEN ? err : -EPERM;
}

static bool settled(uint8_t status) { return status == HMMRT_SHIM_DONE || status == HMMRT_SHIM_ALREADY; }

/* The error of a migration in test_hmm: EINVAL for a hole or no right to read. */
static int hole(const uint8_t* status, uint64_t npages) {
  return memchr(status, HMMRT_SHIM_GONE, npages) || memchr(status, HMMRT_SHIM_FORBIDDEN, npages) ? -EINVAL : 0;
}

static bool elsewhere(int fd, uint64_t addr) {
  for (int peer = 0; peer < k_files; peer++) {
    uint8_t page = 0;
    if (!files[peer].ours || peer == fd || on_range(peer, HMMRT_SHIM_SNAPSHOT, addr, 1, 0, &page)) continue;
    page &= HMMRT_SHIM_PAGE_WHERE_MASK;
    if (page == HMMRT_SHIM_PAGE_PRIVATE_HERE || page == HMMRT_SHIM_PAGE_COHERENT_HERE) return true;
  }
  return false;
}

static int to_dev(int fd, struct dmirror_cmd* cmd, uint8_t* status) {
  if (files[fd].no_memory) absent("private device memory");
  for (uint64_t first = 0, last; first < cmd->npages; first = last + 1) {
    for (last = first; last < cmd->npages && !elsewhere(fd, cmd->addr + last * page_bytes);) last++;
    if (last < cmd->npages) status[last] = HMMRT_SHIM_UNSUPPORTED;
    if (last == first) continue;
    const int err = on_range(fd, HMMRT_SHIM_TO_DEV, cmd->addr + first * page_bytes, last - first, 0, status + first);
    if (err) return err;
  }
  if (hole(status, cmd->npages)) return -EINVAL;
  for (uint64_t i = 0; i < cmd->npages; i++)
    if (!settled(status[i])) return -ENOENT;
  return device_access(fd, cmd, HMMRT_SHIM_OP_READ, HMMRT_SHIM_ACCESS_NO_FAULT, NULL);
}

static int to_sys(int fd, struct dmirror_cmd* cmd, uint8_t* status) {
  const int err = on_range(fd, HMMRT_SHIM_TO_SYS, cmd->addr, cmd->npages, 0, status);
  for (uint64_t i = 0; i < cmd->npages; i++) cmd->cpages += status[i] == HMMRT_SHIM_DONE;
  return err ? err : hole(status, cmd->npages);
}

/* Both write the same bytes, but test_hmm leaves out READ beside WRITE, and shows nothing of an exclusive page. */
static int snapshot(int fd, struct dmirror_cmd* cmd, uint8_t* page) {
  const int err = on_range(fd, HMMRT_SHIM_SNAPSHOT, cmd->addr, cmd->npages, 0, page);
  for (uint64_t i = 0; i < cmd->npages; i++) {
    if (page[i] == HMMRT_SHIM_PAGE_ERROR) continue;
    if (page[i] & HMMRT_SHIM_PAGE_EXCLUSIVE) page[i] = HMMRT_SHIM_PAGE_NONE;
    if (page[i] & HMMRT_SHIM_PAGE_WRITE) page[i] &= ~HMMRT_SHIM_PAGE_READ;
  }
  memcpy((void*)(uintptr_t)cmd->ptr, page, cmd->npages);
  cmd->cpages = cmd->npages;
  return err;
}

static int exclusive(int fd, struct dmirror_cmd* cmd, uint8_t* status) {
  const int err = on_range(fd, HMMRT_SHIM_EXCLUSIVE, cmd->addr, cmd->npages, 0, status);
  if (err == -EOPNOTSUPP) absent("exclusive access");
  if (err) return err;
  for (uint64_t i = 0; i < cmd->npages; i++)
    if (!settled(status[i])) return -EBUSY;
  return device_access(fd, cmd, HMMRT_SHIM_OP_READ, HMMRT_SHIM_ACCESS_NO_FAULT, NULL);
}

static int check_exclusive(int fd, struct dmirror_cmd* cmd) {
  uint64_t pages = 0;
  const int err = device_access(fd, cmd, HMMRT_SHIM_OP_CHECK_EXCLUSIVE, 0, &pages);
  return err ? err : pages ? -EPERM : 0;
}

static int release(int fd) {
  struct hmmrt_shim_evict evict = {.npages = ~0ull};
  const int err = call(fd, HMMRT_SHIM_EVICT, &evict);
  return err ? err : evict.left ? -EBUSY : 0;
}

static int dmirror(int fd, int number, struct dmirror_cmd* cmd) {
  if (number == k_release) return release(fd);
  if (number == k_check_exclusive) return check_exclusive(fd, cmd);

  // Not from the heap: the test `snapshot` has a page written into seven bytes of it.
  static uint8_t status[1 << 20];
  int err;
  if (cmd->npages > sizeof(status)) return -EINVAL;
  memset(status, HMMRT_SHIM_NOT_REACHED, cmd->npages);
  cmd->cpages = cmd->faults = 0;
  switch (number) {
    case k_read:
    case k_write:
      err = read_or_write(fd, cmd, number == k_write, status);
      break;
    case k_to_dev:
      err = to_dev(fd, cmd, status);
      break;
    case k_to_sys:
      err = to_sys(fd, cmd, status);
      break;
    case k_snapshot:
      err = snapshot(fd, cmd, status);
      break;
    case k_exclusive:
      err = exclusive(fd, cmd, status);
      break;
    default:
      err = -EINVAL;
  }
  return err;
}

/* ---- what is taken over from libc ---- */

int open(const char* path, int flags, ...) {
  va_list rest;
  int unit;

  if (sscanf(path, "/dev/hmm_dmirror%d", &unit) == 1) return open_device(unit, flags);
  va_start(rest, flags);
  const int mode = va_arg(rest, int);
  va_end(rest);
  return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) __attribute__((alias("open")));

int ioctl(int fd, unsigned long request, ...) {
  va_list rest;

  va_start(rest, request);
  void* argument = va_arg(rest, void*);
  va_end(rest);
  if (fd < 0 || fd >= k_files || !files[fd].ours || _IOC_TYPE(request) != DMIRROR_MAGIC)
    return syscall(SYS_ioctl, fd, request, argument);
  const int err = dmirror(fd, _IOC_NR(request), argument);
  errno = err ? -err : errno;
  return err ? -1 : 0;
}

void* mmap(void* addr, size_t length, int prot, int flags, int fd, off_t offset) {
  if (fd < 0 || fd >= k_files || !files[fd].ours)
    return (void*)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
  const size_t ring = files[fd].ring_bytes;
  char* pages = (char*)syscall(SYS_mmap, addr, ring, PROT_READ | PROT_WRITE, MAP_SHARED, fd, files[fd].ring_off);
  if (pages == MAP_FAILED) return MAP_FAILED;
  if (length < ring) munmap(pages + length, ring - length);
  if (mprotect(pages, length < ring ? length : ring, PROT_READ)) return MAP_FAILED;
  return pages;
}
void* mmap64(void* addr, size_t length, int prot, int flags, int fd, off_t offset) __attribute__((alias("mmap")));

int close(int fd) {
  if (fd >= 0 && fd < k_files) files[fd].ours = false;
  return syscall(SYS_close, fd);
}
