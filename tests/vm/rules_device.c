/* SPDX-License-Identifier: MIT */
/*
 * Device memory: full devices, eviction, quotas, fault-around, failures on demand, the OOM killer; and atomics against
 * whatever else can happen to their page. See rules.h for how to run it.
 */
#define _GNU_SOURCE
#include <sys/stat.h>

#include "rules.h"

static void put(const char* path, const char* text) {
  const int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file < 0 || write(file, text, strlen(text)) < 0) skip("cannot write %s: %s", path, strerror(errno));
  close(file);
}
#define PARAMETER "/sys/module/hmmrt_shim/parameters/"

static char* aligned_block(void) {
  char* area = map_pages(2 * k_block);
  return (char*)(((uintptr_t)area + k_block * k_page - 1) & ~(uintptr_t)(k_block * k_page - 1));
}

/* ---- full devices, eviction, quotas ----------------------------------------------------------- */

static void a_full_device_says_so_and_keeps_every_page(void) {
  const size_t pages = query.devmem_pages + 600;
  uint8_t* status = malloc(pages);
  char* p = map_pages(pages);
  fill(p, pages, 1);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, pages, 0, status), query.devmem_pages);
  for (size_t i = 0; i < pages; i++)
    CHECK_EQ(status[i], i < query.devmem_pages ? HMMRT_SHIM_DONE : HMMRT_SHIM_NO_SPACE);
  CHECK_EQ(query_of(fd).devmem_free, 0);
  CHECK_EQ(on_device(fd, p + query.devmem_pages * k_page, 600), 0);
  CHECK_FILLED(p, pages, 1);
}

static void a_full_device_makes_room_when_asked(void) {
  const size_t pages = query.devmem_pages + 600;
  uint8_t* status = malloc(pages);
  char* p = map_pages(pages);
  fill(p, pages, 2);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, pages, HMMRT_SHIM_RANGE_EVICT, status), pages);
  CHECK(on_device(fd, p + (pages - 600) * k_page, 600) == 600);
  CHECK(on_device(fd, p, k_block) < k_block); /* the oldest went */
  CHECK_FILLED(p, pages, 2);
}

static void a_full_device_evicts_another_process(void) {
  const size_t pages = query.devmem_pages;
  gate g = new_gate();
  const pid_t pid = forked();
  if (pid == 0) {
    const int mine = open_bound(node);
    char* theirs = map_pages(pages);
    fill(theirs, pages, 3);
    CHECK_EQ(to_dev(mine, theirs, pages), pages);
    open_gate(g, 1);
    wait_gate(g, 2);
    CHECK_EQ(query_of(mine).my_pages, 0);
    CHECK_FILLED(theirs, pages, 3);
    _exit(0);
  }
  wait_gate(g, 1);
  char* p = map_pages(pages);
  fill(p, pages, 4);
  CHECK_EQ(to_dev(fd, p, 8), 0);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, pages, HMMRT_SHIM_RANGE_EVICT, NULL), pages);
  open_gate(g, 2);
  expect_exit(pid, 0);
  CHECK_FILLED(p, pages, 4);
}

static void evict_everything(void* unused) {
  struct hmmrt_shim_evict evict = {.npages = ~0ull, .flags = HMMRT_SHIM_EVICT_ALL};
  (void)unused;
  ioctl(fd, HMMRT_SHIM_EVICT, &evict);
}

/* The last mapping of a page may go between eviction's two walks of the reverse map. */
static void owners_exit_under_eviction(void) {
  struct looper evictor;
  const double since = seconds();
  start(&evictor, evict_everything, NULL);
  for (int turn = 0; !enough(since, turn, 200); turn++) {
    pid_t owners[3];
    for (int i = 0; i < 3; i++) {
      if ((owners[i] = forked()) != 0) continue;
      const int own = open_bound(node);
      char* p = map_pages(256);
      memset(p, 1 + i, 256 * k_page);
      to_dev(own, p, 256);
      if (fork() == 0) usleep(turn * 37 % 2000); /* outlives the one who moved the pages */
      _exit(0);
    }
    for (int i = 0; i < 3; i++) expect_exit(owners[i], 0);
  }
  stop(&evictor);
}

/* munmap() takes an area off its anon_vma with mmap_lock held for reading only. */
static void munmap_under_eviction(void) {
  struct looper evictor;
  const double since = seconds();
  start(&evictor, evict_everything, NULL);
  for (int turn = 0; !enough(since, turn, 200); turn++) {
    /* Between two areas without rights: merged with neither, its anon_vma is its own. */
    char* p = mmap(NULL, 1026 * k_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mprotect(p + k_page, 1024 * k_page, PROT_READ | PROT_WRITE) == 0);
    to_dev(fd, p + k_page, 1024);
    munmap(p, 1026 * k_page);
  }
  stop(&evictor);
}

/* Frames that are freed and filled anew while eviction looks whose they are. */
static void churn_under_eviction(void) {
  struct looper evictor;
  pid_t owners[2];
  const double since = seconds();
  for (int i = 0; i < 2; i++) {
    if ((owners[i] = forked()) != 0) continue;
    const int own = open_bound(node);
    for (int turn = 0;; turn++) {
      const size_t pages = 1 << turn % 5;
      char* p = mmap(NULL, (pages + 2) * k_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      mprotect(p + k_page, pages * k_page, PROT_READ | PROT_WRITE);
      to_dev(own, p + k_page, pages);
      munmap(p, (pages + 2) * k_page);
    }
  }
  start(&evictor, evict_everything, NULL);
  while (!enough(since, (int)atomic_load(&evictor.turns), 1000)) usleep(1000);
  stop(&evictor);
  for (int i = 0; i < 2; i++) kill(owners[i], SIGKILL);
  for (int i = 0; i < 2; i++) CHECK(waitpid(owners[i], NULL, 0) == owners[i]);
}

static void map_and_unmap(void* unused) {
  (void)unused;
  void* p = mmap(NULL, k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  munmap(p, k_page);
}
static void evict_gets_every_page_of_a_process_that_maps_and_unmaps(void) {
  struct looper loopers[2];
  const double since = seconds();
  char* p = map_pages(2048);
  fill(p, 2048, 8);
  for (int i = 0; i < 2; i++) start(&loopers[i], map_and_unmap, NULL);
  for (int turn = 0; !enough(since, turn, 10); turn++) {
    struct hmmrt_shim_evict evict = {.npages = ~0ull};
    CHECK_EQ(to_dev(fd, p, 2048), 2048);
    CHECK(ioctl(fd, HMMRT_SHIM_EVICT, &evict) == 0);
    CHECK_EQ(evict.left, 0);
  }
  for (int i = 0; i < 2; i++) stop(&loopers[i]);
  CHECK_FILLED(p, 2048, 8);
}

static void evict_brings_home_what_was_asked_for(void) {
  struct hmmrt_shim_evict evict = {.npages = 100};
  char* p = map_pages(2048);
  fill(p, 2048, 5);
  CHECK_EQ(to_dev(fd, p, 2048), 2048);
  CHECK(ioctl(fd, HMMRT_SHIM_EVICT, &evict) == 0);
  CHECK(evict.evicted >= 100 && evict.evicted <= k_block);
  CHECK_EQ(evict.left, 2048 - evict.evicted);
  CHECK_EQ(on_device(fd, p, 2048), evict.left);
  evict.npages = ~0ull;
  CHECK(ioctl(fd, HMMRT_SHIM_EVICT, &evict) == 0);
  CHECK_EQ(evict.left, 0);
  CHECK_EQ(query_of(fd).my_pages, 0);
  CHECK_FILLED(p, 2048, 5);
}

static void only_the_administrator_evicts_others_and_injects(void) {
  struct hmmrt_shim_evict evict = {.npages = 1, .flags = HMMRT_SHIM_EVICT_ALL};
  struct hmmrt_shim_inject inject = {.kind = HMMRT_SHIM_INJECT_FRAME, .count = 1};
  CHECK(setresuid(65534, 65534, 65534) == 0);
  CHECK(ioctl(fd, HMMRT_SHIM_EVICT, &evict) == -1 && errno == EPERM);
  CHECK(ioctl(fd, HMMRT_SHIM_INJECT, &inject) == -1 && errno == EPERM);
  evict.flags = 0;
  CHECK(ioctl(fd, HMMRT_SHIM_EVICT, &evict) == 0);
}

static void a_quota_holds_for_each_process(void) {
  uint8_t status[200];
  char* p = map_pages(200);
  fill(p, 200, 6);
  put(PARAMETER "quota_pages", "100");
  CHECK_EQ(query_of(fd).my_quota, 100);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 200, 0, status), 100);
  CHECK_EQ(status[199], HMMRT_SHIM_NO_SPACE);
  CHECK_EQ(query_of(fd).my_pages, 100);
  const pid_t pid = forked();
  if (pid == 0) { /* a quota of its own; its parent's pages are its parent's */
    const int mine = open_bound(node);
    char* own = map_pages(200);
    fill(own, 200, 7);
    CHECK_EQ(to_dev(mine, own, 200), 100);
    CHECK_FILLED(own, 200, 7);
    _exit(0);
  }
  expect_exit(pid, 0);
  /* With EVICT, room comes from one's own. */
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p + 100 * k_page, 100, HMMRT_SHIM_RANGE_EVICT, status), 100);
  CHECK_EQ(query_of(fd).my_pages, 100);
  CHECK_EQ(on_device(fd, p + 100 * k_page, 100), 100);
  CHECK(munmap(p + 150 * k_page, 50 * k_page) == 0);
  CHECK_EQ(to_dev(fd, p, 50), 50);
  put(PARAMETER "quota_pages", "0");
  CHECK_EQ(to_dev(fd, p, 150), 150);
  CHECK_FILLED(p, 150, 6);
}

static void a_quota_that_overflows_is_refused(void) {
  const int file = open(PARAMETER "quota_pages", O_WRONLY | O_CLOEXEC);
  CHECK(file >= 0);
  CHECK(write(file, "18446744073709551615", 20) == -1 && errno == EINVAL);
  CHECK_EQ(query_of(fd).my_quota, 0);
}

/* A page inherited by fork is on the account of who moved it. */
static void an_inherited_page_counts_for_who_moved_it(void) {
  char* p = map_pages(64);
  gate g = new_gate();
  fill(p, 64, 9);
  CHECK_EQ(to_dev(fd, p, 64), 64);
  const pid_t pid = forked();
  if (pid == 0) {
    const int mine = open_bound(node);
    CHECK_EQ(query_of(mine).my_pages, 0);
    wait_gate(g, 1);
    CHECK_FILLED(p, 64, 9);
    _exit(0);
  }
  CHECK(munmap(p, 64 * k_page) == 0);
  CHECK_EQ(query_of(fd).my_pages, 64);
  open_gate(g, 1);
  expect_exit(pid, 0);
}

/* ---- what the kernel counts ------------------------------------------------------------------- */

static long number_after(const char* path, const char* key) {
  char line[128];
  long number = -1;
  FILE* file = fopen(path, "re");
  while (file && number < 0 && fgets(line, sizeof(line), file))
    if (!strncmp(line, key, strlen(key))) number = atol(line + strlen(key));
  if (file) fclose(file);
  return number;
}

static void a_page_on_a_device_is_charged_once(void) {
  enum { k_pages = 4096 };
  if (mkdir("/tmp/cgroup/once", 0755) && errno != EEXIST) skip("no memory cgroups: %s", strerror(errno));
  const pid_t pid = forked();
  if (pid == 0) {
    const int mine = open_bound(node);
    char text[16];
    snprintf(text, sizeof(text), "%d", getpid());
    put("/tmp/cgroup/once/cgroup.procs", text);
    char* p = map_pages(k_pages);
    fill(p, k_pages, 10);
    const long before = number_after("/tmp/cgroup/once/memory.current", "");
    CHECK_EQ(to_dev(mine, p, k_pages), k_pages);
    CHECK(number_after("/tmp/cgroup/once/memory.current", "") < before + k_pages * k_page / 4);
    _exit(0);
  }
  expect_exit(pid, 0);
}

static void locked_pages_that_end_on_a_device_leave_no_count(void) {
  const long before = number_after("/proc/meminfo", "Mlocked:");
  for (int turn = 0; turn < 8; turn++) {
    char* p = map_pages(k_block);
    fill(p, k_block, 11);
    CHECK(mlock(p, k_block * k_page) == 0);
    CHECK_EQ(to_dev(fd, p, k_block), k_block);
    if (turn % 2) CHECK(munlock(p, k_block * k_page) == 0);
    CHECK(munmap(p, k_block * k_page) == 0);
  }
  /* The kernel sums what its processors count once a second, and each keeps some pages to unlock. */
  const double until = seconds() + 5;
  long grown;
  while ((grown = number_after("/proc/meminfo", "Mlocked:") - before) >= 4096 && seconds() < until) usleep(10000);
  CHECK(grown < 4096);
}

/* ---- fault-around ----------------------------------------------------------------------------- */

static void a_cpu_fault_brings_its_granule(void) {
  needs_private();
  static const unsigned orders[] = {0, 1, 4, 5, 9};
  for (unsigned i = 0; i < sizeof(orders) / sizeof(orders[0]); i++) {
    const unsigned order = orders[i], size = 1u << order, touched = 261 & ~(size - 1);
    char* p = aligned_block();
    fill(p, k_block, 8);
    CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, k_block, HMMRT_SHIM_RANGE_GRANULE(order), NULL), k_block);
    CHECK_EQ(*(volatile uint32_t*)(p + 261 * k_page), word_of(261 * k_page / 4, 8));
    CHECK_EQ(on_device(fd, p, k_block), k_block - size);
    CHECK_EQ(on_device(fd, p + touched * k_page, size), 0);
    CHECK_FILLED(p, k_block, 8);
  }
}

static void a_granule_ends_with_its_mapping(void) {
  needs_private();
  char* p = aligned_block();
  fill(p, k_block, 9);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 64, HMMRT_SHIM_RANGE_GRANULE(6), NULL), 64);
  CHECK(mprotect(p, 20 * k_page, PROT_READ) == 0);
  CHECK(munmap(p + 40 * k_page, 8 * k_page) == 0);
  CHECK_EQ(*(volatile uint32_t*)(p + 30 * k_page), word_of(30 * k_page / 4, 9));
  CHECK_EQ(on_device(fd, p, 20), 20);
  CHECK_EQ(on_device(fd, p + 20 * k_page, 20), 0);
  CHECK_EQ(on_device(fd, p + 48 * k_page, 16), 16);
  CHECK_FILLED(p, 40, 9);
}

static void to_dev_again_changes_the_granule_and_the_parameter_is_its_default(void) {
  needs_private();
  char* p = aligned_block();
  fill(p, 64, 10);
  put(PARAMETER "cpu_fault_order", "3");
  CHECK_EQ(to_dev(fd, p, 64), 64);
  CHECK_EQ(*(volatile uint32_t*)(p + 17 * k_page), word_of(17 * k_page / 4, 10));
  CHECK_EQ(on_device(fd, p, 64), 56);
  put(PARAMETER "cpu_fault_order", "0");
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 64, HMMRT_SHIM_RANGE_GRANULE(2), NULL), 64);
  CHECK_EQ(*(volatile uint32_t*)(p + 17 * k_page), word_of(17 * k_page / 4, 10));
  CHECK_EQ(on_device(fd, p, 64), 60);
  CHECK_FILLED(p, 64, 10);
}

/* ---- failures ---------------------------------------------------------------------------------- */

static void inject(unsigned kind, uint64_t skip_first, uint64_t count) {
  struct hmmrt_shim_inject arg = {.kind = kind, .skip = skip_first, .count = count};
  CHECK(ioctl(fd, HMMRT_SHIM_INJECT, &arg) == 0);
}

/* TO_DEV of 64 pages while `kind` fails: none goes, each says why, all are whole; afterwards all go. */
static void refused(unsigned kind, uint8_t want) {
  uint8_t status[64];
  char* p = map_pages(64);
  fill(p, 64, 11);
  inject(kind, 0, 1000);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 64, 0, status), 0);
  for (int i = 0; i < 64; i++) CHECK_EQ(status[i], want);
  CHECK_EQ(query_of(fd).my_pages, 0);
  CHECK_FILLED(p, 64, 11);
  inject(0, 0, 0);
  CHECK_EQ(to_dev(fd, p, 64), 64);
  CHECK_FILLED(p, 64, 11);
}
static void no_frame_leaves_pages_where_they_were(void) { refused(HMMRT_SHIM_INJECT_FRAME, HMMRT_SHIM_NO_SPACE); }
static void a_failed_copy_leaves_pages_where_they_were(void) { refused(HMMRT_SHIM_INJECT_COPY, HMMRT_SHIM_FAILED); }
static void no_backing_leaves_pages_where_they_were(void) {
  if (query.mem_type != HMMRT_SHIM_MEM_PRIVATE) skip("only frames of system memory need backing");
  refused(HMMRT_SHIM_INJECT_BACKING, HMMRT_SHIM_NO_MEMORY);
}

static void some_failed_copies_leave_only_those_pages(void) {
  uint8_t status[64];
  char* p = map_pages(64);
  fill(p, 64, 12);
  inject(HMMRT_SHIM_INJECT_COPY, 10, 5);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 64, 0, status), 59);
  inject(0, 0, 0);
  for (int i = 0; i < 64; i++) CHECK_EQ(status[i], i >= 10 && i < 15 ? HMMRT_SHIM_FAILED : HMMRT_SHIM_DONE);
  CHECK_EQ(on_device(fd, p, 64), 59);
  CHECK_FILLED(p, 64, 12);
}

static void no_memory_at_home_leaves_pages_on_the_device(void) {
  uint8_t status[64];
  char* p = map_pages(64);
  fill(p, 64, 13);
  CHECK_EQ(to_dev(fd, p, 64), 64);
  inject(HMMRT_SHIM_INJECT_SYSTEM, 0, 1000);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_SYS, p, 64, 0, status), 0);
  for (int i = 0; i < 64; i++) CHECK_EQ(status[i], HMMRT_SHIM_NO_MEMORY);
  CHECK_EQ(on_device(fd, p, 64), 64);
  inject(HMMRT_SHIM_INJECT_SYSTEM, 0, 3);
  CHECK_FILLED(p, 64, 13); /* private: the CPU's touch finds no memory three times, and tries again */
  inject(0, 0, 0);
  CHECK(to_sys(fd, p, 64) == 64);
  CHECK_FILLED(p, 64, 13);
}

static void a_device_fault_that_keeps_losing_is_busy_and_then_works(void) {
  uint8_t status[8];
  char* p = map_pages(8);
  fill(p, 8, 14);
  inject(HMMRT_SHIM_INJECT_RETRY, 0, 5);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_FAULT, p, 8, HMMRT_SHIM_RANGE_WRITE, status), 8);
  CHECK(munmap(p, 8 * k_page) == 0);
  p = map_pages(8);
  inject(HMMRT_SHIM_INJECT_RETRY, 0, 1ull << 60);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_FAULT, p, 8, HMMRT_SHIM_RANGE_WRITE, status), 0);
  CHECK_EQ(status[0], HMMRT_SHIM_BUSY);
  inject(0, 0, 0);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_FAULT, p, 8, HMMRT_SHIM_RANGE_WRITE, status), 8);
}

/* Every kind fails now and then while a process migrates, faults and touches: nothing is lost. */
static void failures_at_random_lose_nothing(void) {
  enum { k_pages = 256 };
  unsigned random = (unsigned)getpid();
  char *p = map_pages(k_pages), *back = malloc(k_pages * k_page);
  const double since = seconds();
  fill(p, k_pages, 15);
  for (int i = 0; !enough(since, i, 400); i++) {
    const unsigned kind = 1 + (unsigned)rand_r(&random) % (HMMRT_SHIM_INJECT_KINDS - 1);
    const unsigned first = (unsigned)rand_r(&random) % k_pages, n = 1 + (unsigned)rand_r(&random) % (k_pages - first);
    inject(kind, (unsigned)rand_r(&random) % 40, 1 + (unsigned)rand_r(&random) % 20);
    CHECK(to_dev(fd, p + first * k_page, n) >= 0);
    if (i % 3 == 0) CHECK(to_sys(fd, p, k_pages) >= 0);
    if (i % 5 == 0) CHECK(ranged(fd, HMMRT_SHIM_FAULT, p, k_pages, HMMRT_SHIM_RANGE_WRITE, NULL) >= 0);
    CHECK_FILLED(p + first * k_page, 0, 15);
    CHECK_EQ(*(volatile uint32_t*)(p + first * k_page), word_of(first * k_page / 4, 15));
    if (i % 7 == 0) {
      const int err = device_read(fd, p, back, k_pages * k_page);
      CHECK(err == 0 || err == -EBUSY || err == -ENOMEM);
      if (!err) CHECK_FILLED(back, k_pages, 15);
    }
    inject(0, 0, 0);
  }
  CHECK_FILLED(p, k_pages, 15);
}

static char* oom_pages;
static void oom_to_dev(void* unused) {
  (void)unused;
  to_dev(fd, oom_pages, 4096);
}
static void oom_to_sys(void* unused) {
  (void)unused;
  to_sys(fd, oom_pages, 4096);
}

static void the_oom_killer_strikes_in_the_middle_of_migrations(void) {
  char text[32];
  if (mkdir("/tmp/cgroup/oom", 0755) && errno != EEXIST) skip("no memory cgroups: %s", strerror(errno));
  put("/tmp/cgroup/oom/memory.max", "12M");
  (void)!system("echo 0 >/tmp/cgroup/oom/memory.swap.max 2>/dev/null");
  for (int turn = 0; turn < 3; turn++) {
    int status = 0;
    const pid_t pid = forked();
    if (pid == 0) {
      struct looper loopers[3];
      snprintf(text, sizeof(text), "%d", getpid());
      put("/tmp/cgroup/oom/cgroup.procs", text);
      fd = open_bound(node);
      inject(HMMRT_SHIM_INJECT_TRYLOCK, 0, 3);
      oom_pages = map_pages(4096);
      start(&loopers[0], oom_to_dev, NULL);
      start(&loopers[1], oom_to_sys, NULL);
      for (uint32_t i = 0;; i++)
        for (size_t page = 0; page < 4096; page++) ((volatile uint32_t*)(oom_pages + page * k_page))[0] = i;
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  }
  inject(0, 0, 0);
}

/* ---- atomics ----------------------------------------------------------------------------------- */

struct adder {
  int device;
  uint32_t flags;
  uint64_t* word;
  atomic_ulong added;
};
static void add_one(void* argument) {
  struct adder* adder = argument;
  const int err = device_add(adder->device, adder->word, 8, adder->flags, 1);
  if (!err) atomic_fetch_add(&adder->added, 1);
  if (err != 0 && err != -EBUSY && err != -EFAULT) CHECK_EQ(err, 0);
}
static uint32_t exclusive_flag(void) { return query.caps & HMMRT_SHIM_CAP_EXCLUSIVE ? HMMRT_SHIM_ACCESS_EXCLUSIVE : 0; }

static void exclusive_access_ends_with_the_cpus_touch(void) {
  needs_exclusive();
  uint8_t status[16];
  char* p = map_pages(16);
  fill(p, 16, 16);
  CHECK_EQ(to_dev(fd, p, 4), 4);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_EXCLUSIVE, p, 16, 0, status), 16);
  for (int i = 0; i < 16; i++) CHECK(snapshot(fd, p + i * k_page) & HMMRT_SHIM_PAGE_EXCLUSIVE);
  CHECK_EQ(*(uint32_t*)(p + 7 * k_page), word_of(7 * k_page / 4, 16));
  CHECK_EQ(snapshot(fd, p + 7 * k_page) & HMMRT_SHIM_PAGE_EXCLUSIVE, 0);
  CHECK(snapshot(fd, p + 8 * k_page) & HMMRT_SHIM_PAGE_EXCLUSIVE);
  CHECK_FILLED(p, 16, 16);
}

static void atomics_of_two_devices_and_the_cpu_lose_nothing(void) {
  uint64_t* word = (uint64_t*)map_pages(1);
  struct adder here_adder = {.device = fd, .flags = exclusive_flag(), .word = word};
  struct adder there_adder = {.device = open_bound(other_node), .flags = exclusive_flag(), .word = word};
  struct looper loopers[2];
  uint64_t mine = 0;
  const double since = seconds();
  start(&loopers[0], add_one, &here_adder);
  start(&loopers[1], add_one, &there_adder);
  while (!enough(since, (int)mine, 1000000)) {
    __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    mine++;
    if (mine % 64 == 0) sched_yield();
    if (mine % 4096 == 0) to_dev(mine % 8192 ? fd : there_adder.device, word, 1);
  }
  stop(&loopers[0]);
  stop(&loopers[1]);
  CHECK(here_adder.added && there_adder.added);
  CHECK_EQ(*word, mine + here_adder.added + there_adder.added);
}

static void atomics_against_fork_lose_nothing(void) {
  uint64_t* word = (uint64_t*)map_pages(1);
  struct adder adder = {.device = fd, .flags = exclusive_flag(), .word = word};
  struct looper looper;
  uint64_t mine = 0;
  const double since = seconds();
  start(&looper, add_one, &adder);
  for (int i = 0; !enough(since, i, 60); i++) {
    const uint64_t before = __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    mine++;
    const pid_t pid = forked();
    if (pid == 0) {
      const uint64_t seen = *(volatile uint64_t*)word;
      CHECK(seen > before);
      for (int k = 0; k < 100; k++) CHECK_EQ(*(volatile uint64_t*)word, seen);
      *word = 0;
      _exit(0);
    }
    for (int k = 0; k < 20; k++, mine++) __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    expect_exit(pid, 0);
  }
  stop(&looper);
  CHECK(adder.added);
  CHECK_EQ(*word, mine + adder.added);
}

static void atomics_against_mprotect_lose_nothing(void) {
  uint64_t* word = (uint64_t*)map_pages(1);
  struct adder adder = {.device = fd, .flags = exclusive_flag(), .word = word};
  struct looper looper;
  const double since = seconds();
  start(&looper, add_one, &adder);
  for (int i = 0; !enough(since, i, 300); i++) {
    CHECK(mprotect(word, k_page, PROT_READ) == 0);
    const uint64_t frozen = *(volatile uint64_t*)word;
    for (int k = 0; k < 20; k++) {
      sched_yield();
      CHECK_EQ(*(volatile uint64_t*)word, frozen);
    }
    CHECK_EQ(device_add(fd, word, 8, exclusive_flag(), 1), -EFAULT);
    CHECK(mprotect(word, k_page, PROT_READ | PROT_WRITE) == 0);
    if (i % 4 == 0) to_dev(fd, word, 1);
    sched_yield();
  }
  stop(&looper);
  CHECK_EQ(*word, adder.added);
}

static const struct test tests[] = {
    TEST(a_full_device_says_so_and_keeps_every_page),
    TEST(a_full_device_makes_room_when_asked),
    TEST(a_full_device_evicts_another_process),
    TEST(evict_brings_home_what_was_asked_for),
    TEST(only_the_administrator_evicts_others_and_injects),
    TEST(owners_exit_under_eviction),
    TEST(munmap_under_eviction),
    TEST(churn_under_eviction),
    TEST(evict_gets_every_page_of_a_process_that_maps_and_unmaps),
    TEST(a_quota_holds_for_each_process),
    TEST(a_quota_that_overflows_is_refused),
    TEST(an_inherited_page_counts_for_who_moved_it),
    TEST(a_page_on_a_device_is_charged_once),
    TEST(locked_pages_that_end_on_a_device_leave_no_count),
    TEST(a_cpu_fault_brings_its_granule),
    TEST(a_granule_ends_with_its_mapping),
    TEST(to_dev_again_changes_the_granule_and_the_parameter_is_its_default),
    TEST(no_frame_leaves_pages_where_they_were),
    TEST(a_failed_copy_leaves_pages_where_they_were),
    TEST(no_backing_leaves_pages_where_they_were),
    TEST(some_failed_copies_leave_only_those_pages),
    TEST(no_memory_at_home_leaves_pages_on_the_device),
    TEST(a_device_fault_that_keeps_losing_is_busy_and_then_works),
    TEST(failures_at_random_lose_nothing),
    TEST(the_oom_killer_strikes_in_the_middle_of_migrations),
    TEST(exclusive_access_ends_with_the_cpus_touch),
    TEST(atomics_of_two_devices_and_the_cpu_lose_nothing),
    TEST(atomics_against_fork_lose_nothing),
    TEST(atomics_against_mprotect_lose_nothing),
};
RULES_MAIN(tests)
