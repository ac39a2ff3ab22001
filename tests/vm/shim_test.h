/* SPDX-License-Identifier: MIT */
/*
 * What the programs of tests/vm share: calls of hmmrt_shim.ko on one range or one access, and memory with contents that
 * can be recomputed. Everything here works from any thread; a failed CHECK ends the process.
 */
#ifndef SHIM_TEST_H
#define SHIM_TEST_H

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

enum { k_page = 4096, k_block = 512 /* pages */ };

#define CHECK(condition)                                                                                      \
  do {                                                                                                        \
    if (!(condition)) {                                                                                       \
      printf("  %s:%d: failed: %s (errno %d, %s)\n", __func__, __LINE__, #condition, errno, strerror(errno)); \
      fflush(stdout);                                                                                         \
      _exit(1);                                                                                               \
    }                                                                                                         \
  } while (0)

/* CHECK(a == b) that says both. */
#define CHECK_EQ(a, b)                                                                                    \
  do {                                                                                                    \
    const long long left_ = (long long)(a), right_ = (long long)(b);                                      \
    if (left_ != right_) {                                                                                \
      printf("  %s:%d: failed: %s is %lld, not %lld\n", __func__, __LINE__, #a " == " #b, left_, right_); \
      fflush(stdout);                                                                                     \
      _exit(1);                                                                                           \
    }                                                                                                     \
  } while (0)

static inline double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- calls ----------------------------------------------------------------------------------- */

static inline int open_bound(const char* node) {
  struct hmmrt_shim_bind bind = {.eventfd = -1};
  const int fd = open(node, O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  CHECK(ioctl(fd, HMMRT_SHIM_BIND, &bind) == 0);
  return fd;
}

static inline struct hmmrt_shim_query query_of(int fd) {
  struct hmmrt_shim_query query = {0};
  CHECK(ioctl(fd, HMMRT_SHIM_QUERY, &query) == 0);
  return query;
}

/* FAULT, SNAPSHOT, TO_DEV, TO_SYS, EXCLUSIVE over one range: how many pages are done, or -errno of the call. */
static inline long ranged(int fd, unsigned long call, const void* at, uint64_t pages, uint32_t flags, uint8_t* status) {
  struct hmmrt_shim_range range = {
      .addr = (uintptr_t)at, .npages = pages, .flags = flags, .status_ptr = (uintptr_t)status};
  struct hmmrt_shim_ranges ranges = {.ranges_ptr = (uintptr_t)&range, .count = 1};
  return ioctl(fd, call, &ranges) ? -errno : (long)range.done;
}
static inline long to_dev(int fd, const void* at, uint64_t pages) {
  return ranged(fd, HMMRT_SHIM_TO_DEV, at, pages, 0, NULL);
}
static inline long to_sys(int fd, const void* at, uint64_t pages) {
  return ranged(fd, HMMRT_SHIM_TO_SYS, at, pages, 0, NULL);
}

/* One access: 0 or -errno, of the call or of the access. */
static inline int accessed(int fd, struct hmmrt_shim_access* access) {
  struct hmmrt_shim_accesses accesses = {.accesses_ptr = (uintptr_t)access, .count = 1};
  return ioctl(fd, HMMRT_SHIM_ACCESS, &accesses) ? -errno : access->err;
}
static inline int device_read(int fd, const void* at, void* buf, size_t len) {
  struct hmmrt_shim_access access = {
      .addr = (uintptr_t)at, .buf = (uintptr_t)buf, .len = len, .op = HMMRT_SHIM_OP_READ};
  return accessed(fd, &access);
}
static inline int device_write(int fd, void* at, const void* buf, size_t len) {
  struct hmmrt_shim_access access = {
      .addr = (uintptr_t)at, .buf = (uintptr_t)buf, .len = len, .op = HMMRT_SHIM_OP_WRITE};
  return accessed(fd, &access);
}
static inline int device_add(int fd, void* at, uint32_t len, uint32_t flags, uint64_t value) {
  struct hmmrt_shim_access access = {
      .addr = (uintptr_t)at, .len = len, .op = HMMRT_SHIM_OP_ADD, .flags = flags, .arg0 = value};
  return accessed(fd, &access);
}

/* SNAPSHOT's byte of one page. */
static inline uint8_t snapshot(int fd, const void* at) {
  uint8_t byte = 0;
  CHECK(ranged(fd, HMMRT_SHIM_SNAPSHOT, at, 1, 0, &byte) >= 0);
  return byte;
}
static inline int here(uint8_t byte) {
  const uint8_t where = byte & HMMRT_SHIM_PAGE_WHERE_MASK;
  return byte != HMMRT_SHIM_PAGE_ERROR &&
         (where == HMMRT_SHIM_PAGE_PRIVATE_HERE || where == HMMRT_SHIM_PAGE_COHERENT_HERE);
}
/* How many of the pages are on the device of fd; -1 for none would be no answer, so errors end the test. */
static inline unsigned on_device(int fd, const void* at, unsigned pages) {
  uint8_t* bytes = calloc(pages, 1);
  unsigned count = 0;
  CHECK(ranged(fd, HMMRT_SHIM_SNAPSHOT, at, pages, 0, bytes) >= 0);
  for (unsigned i = 0; i < pages; i++) count += here(bytes[i]);
  free(bytes);
  return count;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static inline char* map_pages(size_t pages) {
  char* at = mmap(NULL, pages * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  return at;
}

static inline uint32_t word_of(size_t i, uint32_t seed) { return (uint32_t)i * 2654435761u + seed * 40503u + 1; }

static inline void fill(void* at, size_t pages, uint32_t seed) {
  uint32_t* words = at;
  for (size_t i = 0; i < pages * k_page / 4; i++) words[i] = word_of(i, seed);
}

/* The index of the first page that is not as filled, or `pages`. */
static inline size_t first_wrong(const void* at, size_t pages, uint32_t seed) {
  const uint32_t* words = at;
  for (size_t i = 0; i < pages * k_page / 4; i++)
    if (words[i] != word_of(i, seed)) return i * 4 / k_page;
  return pages;
}
#define CHECK_FILLED(at, pages, seed) CHECK_EQ(first_wrong(at, pages, seed), pages)

#endif
