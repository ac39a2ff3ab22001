/* SPDX-License-Identifier: MIT */
/*
 * Load for whoever unloads the module meanwhile: rules_churn SEED. Memory of known contents, half of it alike so that KSM
 * merges it where it may, goes to any device that is there, out to swap, home again; a device that is away is no error, wrong contents
 * are. While there is a file /tmp/unloading it opens a device in one turn of eight only, so that the module, which cannot go
 * while it is open, goes soon, under all the rest. Runs until SIGTERM; exits with 0 if every page was whole to the end.
 */
#define _GNU_SOURCE
#include <signal.h>

#include "shim_test.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

enum { k_pages = 512 };
static volatile sig_atomic_t done;
static void finish(int unused) {
  (void)unused;
  done = 1;
}

/* Page i holds word (i % 2 ? i : 0) throughout its first half, so every second page is alike. */
static void write_pages(uint32_t* p) {
  for (size_t i = 0; i < k_pages; i++)
    for (size_t k = 0; k < k_page / 4; k++) p[i * k_page / 4 + k] = i % 2 ? (uint32_t)(i * 1024 + k) : (uint32_t)k;
}
static void check_pages(const uint32_t* p, size_t first, size_t n) {
  for (size_t i = first; i < first + n; i++)
    for (size_t k = 0; k < k_page / 4; k += 31)
      CHECK_EQ(p[i * k_page / 4 + k], i % 2 ? (uint32_t)(i * 1024 + k) : (uint32_t)k);
}

int main(int argc, char** argv) {
  unsigned random = argc > 1 ? (unsigned)atoi(argv[1]) : 1, turns = 0, calls = 0;
  char* p = map_pages(k_pages);
  signal(SIGTERM, finish);
  write_pages((uint32_t*)p);
  while (!done) {
    struct hmmrt_shim_bind bind = {.eventfd = -1};
    char node[32];
    snprintf(node, sizeof(node), "/dev/hmmrt%d", rand_r(&random) % 4);
    const int away = turns % 8 && access("/tmp/unloading", F_OK) == 0;
    const int fd = away ? -1 : open(node, O_RDWR | O_CLOEXEC);
    const int bound = fd >= 0 && ioctl(fd, HMMRT_SHIM_BIND, &bind) == 0;
    for (int i = 0; i < 8; i++) {
      const size_t first = (size_t)rand_r(&random) % k_pages, n = 1 + (size_t)rand_r(&random) % (k_pages - first);
      char* at = p + first * k_page;
      switch (rand_r(&random) % 9) {
        case 0:
        case 1:
          calls += bound && to_dev(fd, at, n) > 0;
          break;
        case 2:
          calls += bound && to_sys(fd, at, n) > 0;
          break;
        case 3:
          madvise(at, n * k_page, MADV_PAGEOUT);
          break;
        case 4:
        case 5:
          madvise(at, n * k_page, MADV_MERGEABLE);
          break;
        case 6:
          madvise(at, n * k_page, MADV_UNMERGEABLE);
          break;
        case 7:
          if (bound) ranged(fd, HMMRT_SHIM_EXCLUSIVE, at, n < 64 ? n : 64, 0, NULL);
          break;
        default:
          check_pages((uint32_t*)p, first, n < 32 ? n : 32);
      }
    }
    if (fd >= 0) close(fd);
    if (!away) usleep(30000);  // with the module free to go
    turns++;
  }
  check_pages((uint32_t*)p, 0, k_pages);
  printf("churn %s: %u turns, %u calls that moved pages, all pages whole\n", argc > 1 ? argv[1] : "", turns, calls);
  return 0;
}
