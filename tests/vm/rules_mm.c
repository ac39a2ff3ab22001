/* SPDX-License-Identifier: MIT */
/*
 * What a reviewer of Linux's memory management would try: sharing, copy on write, the ends of processes, races with the
 * system calls that change mappings, pins, huge pages. See rules.h for how to run it.
 */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "rules.h"

/* ---- copy on write and sharing --------------------------------------------------------------- */

/* P1: a private page that fork made read-only is reported to a device as valid, without write, whatever it asks. */
static void device_write_after_fork_stays_in_the_writer(void) {
  char* p = map_pages(8);
  gate g = new_gate();
  fill(p, 8, 1);
  CHECK_EQ(to_dev(fd, p, 8), 8);
  const pid_t pid = forked();
  if (pid == 0) {
    wait_gate(g, 1);
    CHECK_FILLED(p, 8, 1);
    _exit(0);
  }
  CHECK_EQ(device_write(fd, p, "parent", 6), 0);
  CHECK_EQ(device_write(fd, p + 3 * k_page, "parent", 6), 0);
  open_gate(g, 1);
  expect_exit(pid, 0);
  CHECK(!memcmp(p, "parent", 6) && !memcmp(p + 3 * k_page, "parent", 6));
  memcpy(p, "PARENT", 6);
  char back[6];
  CHECK_EQ(device_read(fd, p, back, 6), 0);
  CHECK(!memcmp(back, "PARENT", 6));
}

static void device_write_in_a_child_stays_in_the_child(void) {
  char* p = map_pages(8);
  fill(p, 8, 2);
  CHECK_EQ(to_dev(fd, p, 8), 8);
  const pid_t pid = forked();
  if (pid == 0) {
    const int mine = open_bound(node);
    char back[5];
    CHECK_EQ(device_write(mine, p + 2 * k_page, "child", 5), 0);
    CHECK_EQ(device_read(mine, p + 2 * k_page, back, 5), 0);
    CHECK(!memcmp(back, "child", 5) && !memcmp(p + 2 * k_page, "child", 5));
    CHECK_EQ(to_dev(mine, p, 8), 8);
    CHECK(!memcmp(p + 2 * k_page, "child", 5));
    _exit(0);
  }
  expect_exit(pid, 0);
  CHECK_FILLED(p, 8, 2);
  char* back = malloc(8 * k_page);
  CHECK_EQ(device_read(fd, p, back, 8 * k_page), 0);
  CHECK_FILLED(back, 8, 2);
}

static void parent_and_child_write_one_page_each_sees_its_own(void) {
  enum { k_rounds = 40 };
  char* p = map_pages(4);
  for (int round = 0; round < k_rounds; round++) {
    fill(p, 4, 3);
    CHECK_EQ(to_dev(fd, p, 4), 4);
    const pid_t pid = forked();
    const int mine = pid ? fd : open_bound(node);
    const uint64_t me = (uint64_t)round * 2 + !pid;
    uint64_t back = 0;
    for (int i = 0; i < 4; i++) CHECK_EQ(device_write(mine, p + i * k_page + 8, &me, 8), 0);
    for (int i = 0; i < 4; i++) {
      CHECK_EQ(*(uint64_t*)(p + i * k_page + 8), me);
      CHECK_EQ(device_read(mine, p + i * k_page + 8, &back, 8), 0);
      CHECK_EQ(back, me);
      CHECK_EQ(*(uint32_t*)(p + i * k_page), word_of((size_t)i * k_page / 4, 3));
    }
    if (pid == 0) _exit(0);
    expect_exit(pid, 0);
  }
}

static void a_page_of_two_processes_moves_under_both(void) {
  char* p = map_pages(16);
  gate g = new_gate();
  fill(p, 16, 4);
  CHECK_EQ(to_dev(fd, p, 16), 16);
  const pid_t pid = forked();
  if (pid == 0) {
    const int mine = open_bound(node);
    char* back = malloc(16 * k_page);
    open_gate(g, 1);
    while (atomic_load(g) < 2) {
      CHECK_FILLED(p, 16, 4);
      CHECK_EQ(device_read(mine, p, back, 16 * k_page), 0);
      CHECK_FILLED(back, 16, 4);
    }
    _exit(0);
  }
  wait_gate(g, 1);
  const double since = seconds();
  for (int i = 0; !enough(since, i, 200); i++) {
    CHECK(to_dev(fd, p, 16) >= 0);
    CHECK(to_sys(fd, p, 16) >= 0);
  }
  open_gate(g, 2);
  expect_exit(pid, 0);
  CHECK_FILLED(p, 16, 4);
}

static void shared_memory_stays_and_both_devices_see_it(void) {
  uint8_t status[4];
  char* p = mmap(NULL, 4 * k_page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  fill(p, 4, 5);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 4, 0, status), 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(status[i], HMMRT_SHIM_UNSUPPORTED);
  const pid_t pid = forked();
  if (pid == 0) {
    const int mine = open_bound(other_node);
    CHECK_EQ(device_write(mine, p + k_page, "seen", 4), 0);
    _exit(0);
  }
  expect_exit(pid, 0);
  char back[4];
  CHECK_EQ(device_read(fd, p + k_page, back, 4), 0);
  CHECK(!memcmp(back, "seen", 4) && !memcmp(p + k_page, "seen", 4));
}

static void all_say(unsigned long call, void* at, uint32_t flags, uint8_t want) {
  uint8_t status[4] = {0};
  CHECK(ranged(fd, call, at, 4, flags, status) >= 0);
  for (int i = 0; i < 4; i++) CHECK_EQ(status[i], want);
}

/* memfd_secret(): not in the kernel's own mapping of memory. */
static void secret_memory_stays_secret(void) {
  const int file = (int)syscall(447, 0);
  char byte = 'x';
  if (file < 0) skip("no memfd_secret: %s", strerror(errno));
  CHECK(ftruncate(file, 4 * k_page) == 0);
  char* p = mmap(NULL, 4 * k_page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  CHECK(p != MAP_FAILED);
  memset(p, 7, 4 * k_page);
  all_say(HMMRT_SHIM_FAULT, p, 0, HMMRT_SHIM_FORBIDDEN);
  all_say(HMMRT_SHIM_SNAPSHOT, p, 0, HMMRT_SHIM_PAGE_ERROR);
  all_say(HMMRT_SHIM_TO_DEV, p, 0, HMMRT_SHIM_UNSUPPORTED);
  CHECK_EQ(device_read(fd, p, &byte, 1), -EFAULT);
  CHECK_EQ(device_write(fd, p, &byte, 1), -EFAULT);
  CHECK_EQ(p[0], 7);
}

static void exclusive_access_says_what_cannot_be_had(void) {
  needs_exclusive();
  char* p = mmap(NULL, 4 * k_page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  fill(p, 4, 6);
  const double since = seconds();
  all_say(HMMRT_SHIM_EXCLUSIVE, p, 0, HMMRT_SHIM_UNSUPPORTED);
  CHECK_EQ(device_add(fd, p, 4, HMMRT_SHIM_ACCESS_EXCLUSIVE, 1), -EOPNOTSUPP);
  CHECK(seconds() < since + 1);
  CHECK_FILLED(p, 4, 6);
  p = map_pages(4);
  fill(p, 4, 6);
  CHECK(mprotect(p, 4 * k_page, PROT_READ) == 0);
  all_say(HMMRT_SHIM_EXCLUSIVE, p, 0, HMMRT_SHIM_FORBIDDEN);
  CHECK(mprotect(p, 4 * k_page, PROT_NONE) == 0);
  all_say(HMMRT_SHIM_EXCLUSIVE, p, 0, HMMRT_SHIM_FORBIDDEN);
  CHECK(munmap(p, 4 * k_page) == 0);
  all_say(HMMRT_SHIM_EXCLUSIVE, p, 0, HMMRT_SHIM_GONE);
  p = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (p == MAP_FAILED) return;
  memset(p, 1, k_page);
  all_say(HMMRT_SHIM_EXCLUSIVE, p, 0, HMMRT_SHIM_UNSUPPORTED);
  all_say(HMMRT_SHIM_TO_DEV, p, 0, HMMRT_SHIM_UNSUPPORTED);
  CHECK_EQ(p[0], 1);
}

/* A device never reads what the process may not, so such memory does not go there; what is there comes home. */
static void memory_without_rights_is_forbidden(void) {
  char* p = map_pages(4);
  fill(p, 4, 7);
  CHECK_EQ(to_dev(fd, p, 4), 4);
  CHECK(mprotect(p, 4 * k_page, PROT_NONE) == 0);
  all_say(HMMRT_SHIM_TO_DEV, p, 0, HMMRT_SHIM_FORBIDDEN);
  all_say(HMMRT_SHIM_TO_SYS, p, 0, HMMRT_SHIM_DONE);
  all_say(HMMRT_SHIM_TO_SYS, p, 0, HMMRT_SHIM_FORBIDDEN);
  CHECK(mprotect(p, 4 * k_page, PROT_WRITE) == 0);
  all_say(HMMRT_SHIM_TO_DEV, p, 0, HMMRT_SHIM_FORBIDDEN);
  CHECK(mprotect(p, 4 * k_page, PROT_READ) == 0);
  CHECK_FILLED(p, 4, 7);
}

static void no_populate_leaves_a_file_mapping_alone(void) {
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  char* p = mmap(NULL, 4 * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  CHECK(p != MAP_FAILED);
  all_say(HMMRT_SHIM_TO_DEV, p, HMMRT_SHIM_RANGE_NO_POPULATE, HMMRT_SHIM_NOT_POPULATED);
  all_say(HMMRT_SHIM_SNAPSHOT, p, 0, HMMRT_SHIM_PAGE_NONE);
  p[k_page] = 'x';
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 4, HMMRT_SHIM_RANGE_NO_POPULATE, NULL), 1);
  CHECK_EQ(on_device(fd, p, 4), 1);
  CHECK_EQ(p[k_page], 'x');
}

/* P2: two files of one device in one process are one mirror. */
static void two_descriptors_of_one_process_agree(void) {
  const int second = open_bound(node);
  char* p = map_pages(1);
  for (int i = 0; i < 20; i++) {
    uint32_t value = 0;
    if (i % 5 == 0) CHECK_EQ(to_dev(i % 2 ? second : fd, p, 1), 1);
    CHECK_EQ(device_read(second, p, &value, 4), 0);
    CHECK_EQ(value, i);
    value = (uint32_t)i + 1;
    CHECK_EQ(device_write(fd, p, &value, 4), 0);
    CHECK_EQ(device_read(second, p, &value, 4), 0);
    CHECK_EQ(value, i + 1);
  }
  CHECK_EQ(query_of(fd).my_pages, query_of(second).my_pages);
}

/* P3: a child may not use what it inherited, and cannot reach its parent's memory through it. */
static void an_inherited_descriptor_is_refused(void) {
  char* p = map_pages(4);
  fill(p, 4, 6);
  const pid_t pid = forked();
  if (pid == 0) {
    struct hmmrt_shim_evict evict = {.npages = 1};
    struct hmmrt_shim_wait wait = {0};
    struct hmmrt_shim_bind bind = {.eventfd = -1};
    char byte = 0;
    CHECK_EQ(device_write(fd, p, "child", 5), -EPERM);
    CHECK_EQ(device_read(fd, p, &byte, 1), -EPERM);
    CHECK_EQ(to_dev(fd, p, 4), -EPERM);
    CHECK_EQ(to_sys(fd, p, 4), -EPERM);
    CHECK_EQ(ranged(fd, HMMRT_SHIM_FAULT, p, 4, 0, NULL), -EPERM);
    CHECK_EQ(ranged(fd, HMMRT_SHIM_SNAPSHOT, p, 4, 0, NULL), -EPERM);
    const long exclusive = ranged(fd, HMMRT_SHIM_EXCLUSIVE, p, 4, 0, NULL);
    CHECK(exclusive == -EPERM || exclusive == -EOPNOTSUPP);
    CHECK(ioctl(fd, HMMRT_SHIM_EVICT, &evict) == -1 && errno == EPERM);
    CHECK(ioctl(fd, HMMRT_SHIM_WAIT, &wait) == -1 && errno == EPERM);
    CHECK(ioctl(fd, HMMRT_SHIM_BIND, &bind) == -1 && errno == EBUSY);
    CHECK_EQ(query_of(fd).my_pages, 0);
    CHECK(mmap(NULL, k_page, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED);
    _exit(0);
  }
  expect_exit(pid, 0);
  CHECK_FILLED(p, 4, 6);
}

/* ---- the ends of processes ------------------------------------------------------------------- */

/* A middle process puts pages on the device, forks, and ends by `how`; the child then goes on with them. */
static void survive_parent(int how) {
  char* p = map_pages(64);
  int wait_for_death[2], report[2];
  char byte = 0;
  CHECK(pipe2(wait_for_death, O_CLOEXEC) == 0 && pipe2(report, O_CLOEXEC) == 0);
  const pid_t middle = forked();
  if (middle == 0) {
    const int mine = open_bound(node);
    fill(p, 64, 7);
    CHECK_EQ(to_dev(mine, p, 64), 64);
    fflush(stdout);
    if (fork() == 0) {
      close(wait_for_death[1]);
      close(mine);
      CHECK_EQ(read(wait_for_death[0], &byte, 1), 0);
      const int own = open_bound(node);
      char* back = malloc(64 * k_page);
      CHECK_EQ(device_read(own, p, back, 64 * k_page), 0);
      CHECK_FILLED(back, 64, 7);
      CHECK_FILLED(p, 64, 7);
      CHECK_EQ(device_write(own, p + 5 * k_page, "alive", 5), 0);
      CHECK_EQ(to_dev(own, p, 64), 64);
      CHECK(!memcmp(p + 5 * k_page, "alive", 5));
      CHECK_EQ(write(report[1], "x", 1), 1);
      _exit(0);
    }
    if (how == 0) _exit(0);
    if (how == 1) execl("/bin/true", "true", (char*)NULL);
    raise(SIGKILL);
  }
  close(wait_for_death[1]);
  close(report[1]);
  CHECK(waitpid(middle, NULL, 0) == middle);
  CHECK_EQ(read(report[0], &byte, 1), 1);
}
static void a_child_keeps_pages_when_its_parent_exits(void) { survive_parent(0); }
static void a_child_keeps_pages_when_its_parent_execs(void) { survive_parent(1); }
static void a_child_keeps_pages_when_its_parent_is_killed(void) { survive_parent(2); }

/* Threads move pages to and fro on two devices until someone kills, execs or exits. */
static char* busy_pages;
static void go_to_device(void* device) { to_dev(*(int*)device, busy_pages, 256); }
static void go_home(void* device) { to_sys(*(int*)device, busy_pages, 256); }
static void make_exclusive(void* device) { ranged(*(int*)device, HMMRT_SHIM_EXCLUSIVE, busy_pages, 64, 0, NULL); }
static void evict_some(void* device) {
  struct hmmrt_shim_evict evict = {.npages = 64};
  ioctl(*(int*)device, HMMRT_SHIM_EVICT, &evict);
}
static void read_some(void* device) {
  static _Thread_local char buf[64 * k_page];
  device_read(*(int*)device, busy_pages + 32 * k_page, buf, sizeof(buf));
}

static void end_at_any_point(int how) {
  const double since = seconds();
  unsigned random = (unsigned)getpid();
  for (int turn = 0; !enough(since, turn, 60); turn++) {
    gate g = new_gate();
    const pid_t pid = forked();
    if (pid == 0) {
      struct looper loopers[5];
      int mine = open_bound(node), other = open_bound(other_node);
      busy_pages = map_pages(256);
      fill(busy_pages, 256, 8);
      start(&loopers[0], go_to_device, &mine);
      start(&loopers[1], turn % 2 ? go_home : go_to_device, turn % 2 ? &mine : &other);
      start(&loopers[2], turn % 3 ? read_some : evict_some, &mine);
      start(&loopers[3], make_exclusive, &mine);
      open_gate(g, 1);
      usleep(rand_r(&random) % 20000);
      if (how == 0) _exit(0);
      if (how == 1) execl("/bin/true", "true", (char*)NULL);
      for (;;) CHECK_EQ(first_wrong(busy_pages, 256, 8), 256);
    }
    wait_gate(g, 1);
    if (how == 2) {
      usleep(rand_r(&random) % 20000);
      kill(pid, SIGKILL);
    }
    CHECK(waitpid(pid, NULL, 0) == pid);
    munmap(g, k_page);
  }
}
static void exit_at_any_point(void) { end_at_any_point(0); }
static void exec_at_any_point(void) { end_at_any_point(1); }
static void kill_at_any_point(void) { end_at_any_point(2); }

/* An exclusive entry on a coherent page would leak the page when that is evicted: there must be none. */
static void exclusive_access_races_migration_and_eviction(void) {
  struct looper loopers[4];
  const double since = seconds();
  busy_pages = map_pages(256);
  fill(busy_pages, 256, 8);
  start(&loopers[0], go_to_device, &fd);
  start(&loopers[1], evict_some, &fd);
  start(&loopers[2], make_exclusive, &fd);
  start(&loopers[3], read_some, &fd);
  for (int i = 0; !enough(since, i, 1000); i++) CHECK_FILLED(busy_pages, 256, 8);
  for (int i = 0; i < 4; i++) stop(&loopers[i]);
  CHECK_FILLED(busy_pages, 256, 8);
  CHECK(munmap(busy_pages, 256 * k_page) == 0);
}

/* ---- races with the system calls that change mappings ----------------------------------------- */

enum { k_race = 64 };
static char* race_pages;
static void migrate_race(void* unused) {
  (void)unused;
  to_dev(fd, race_pages, k_race);
  ranged(fd, HMMRT_SHIM_FAULT, race_pages, k_race, HMMRT_SHIM_RANGE_WRITE, NULL);
  to_sys(fd, race_pages, k_race);
}
static void to_device_race(void* unused) {
  (void)unused;
  to_dev(fd, race_pages, k_race);
}

static void to_dev_races_dontneed(void) {
  struct looper movers[2];
  const double since = seconds();
  race_pages = map_pages(k_race);
  start(&movers[0], migrate_race, NULL);
  start(&movers[1], to_device_race, NULL);
  for (uint32_t i = 1; !enough(since, (int)i, 3000); i++) {
    char* page = race_pages + i % k_race * k_page;
    uint32_t back = 0;
    fill(page, 1, i);
    CHECK_FILLED(page, 1, i);
    CHECK_EQ(device_read(fd, page + 64, &back, 4), 0);
    CHECK_EQ(back, word_of(16, i));
    CHECK(madvise(page, k_page, MADV_DONTNEED) == 0);
    for (int k = 0; k < k_page / 8; k++) CHECK_EQ(((uint64_t*)page)[k], 0);
    CHECK_EQ(device_read(fd, page + 64, &back, 4), 0);
    CHECK_EQ(back, 0);
  }
  stop(&movers[0]);
  stop(&movers[1]);
}

/* Somebody always migrates: a device fault must find its moment all the same. */
static void a_device_fault_gets_past_threads_that_migrate(void) {
  struct looper movers[4];
  race_pages = map_pages(k_race);
  fill(race_pages, k_race, 3);
  for (int i = 0; i < 4; i++) start(&movers[i], i % 2 ? migrate_race : to_device_race, NULL);
  const double since = seconds();
  for (uint32_t i = 0; !enough(since, (int)i, 3000); i++) {
    uint32_t* page = (uint32_t*)(race_pages + i % k_race * k_page);
    uint32_t back = 0;
    CHECK_EQ(device_read(fd, page + 16, &back, 4), 0);
    CHECK_EQ(back, word_of(i % k_race * k_page / 4 + 16, 3));
    CHECK_EQ(device_write(fd, page + 1, &i, 4), 0);
    CHECK_EQ(page[1], i);
  }
  for (int i = 0; i < 4; i++) stop(&movers[i]);
}

static void to_dev_races_munmap(void) {
  struct looper mover;
  const double since = seconds();
  race_pages = map_pages(k_race);
  start(&mover, migrate_race, NULL);
  for (uint32_t i = 1; !enough(since, (int)i, 1000); i++) {
    char* hole = race_pages + 16 * k_page;
    char byte = 0;
    fill(hole, 16, i);
    CHECK_FILLED(hole, 16, i);
    CHECK(munmap(hole, 16 * k_page) == 0);
    CHECK_EQ(device_read(fd, hole, &byte, 1), -EFAULT);
    CHECK(mmap(hole, 16 * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == hole);
    for (int k = 0; k < 16; k++) CHECK_EQ(hole[k * k_page], 0);
  }
  stop(&mover);
}

static void to_dev_races_mremap(void) {
  struct looper mover;
  const double since = seconds();
  char* area = map_pages(3 * k_race);
  char* at = area;
  CHECK(munmap(area + k_race * k_page, 2ul * k_race * k_page) == 0);
  fill(at, k_race, 9);
  race_pages = area;
  start(&mover, migrate_race, NULL);
  for (int i = 0; !enough(since, i, 400); i++) {
    char* to = at == area ? area + 2 * k_race * k_page : area;
    char* old = at;
    uint32_t back = 0;
    at = mremap(at, k_race * k_page, k_race * k_page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    CHECK(at == to);
    CHECK_EQ(device_read(fd, at + 4096, &back, 4), 0);
    CHECK_EQ(back, word_of(1024, 9));
    CHECK_EQ(device_read(fd, old + 4096, &back, 4), -EFAULT);
    if (i % 8 == 0) CHECK_FILLED(at, k_race, 9);
    race_pages = at;
  }
  stop(&mover);
  CHECK_FILLED(at, k_race, 9);
}

static void to_dev_races_first_touch(void) {
  struct looper movers[2];
  const double since = seconds();
  race_pages = map_pages(k_race);
  start(&movers[0], migrate_race, NULL);
  start(&movers[1], to_device_race, NULL);
  for (uint32_t i = 1; !enough(since, (int)i, 400); i++) {
    CHECK(mmap(race_pages, k_race * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          race_pages);
    for (uint32_t k = 0; k < k_race; k++) {
      uint32_t* word = (uint32_t*)(race_pages + (k * 7 + i) % k_race * k_page);
      CHECK_EQ(word[1], 0);
      word[0] = i + k;
    }
    for (uint32_t k = 0; k < k_race; k++) CHECK_EQ(*(uint32_t*)(race_pages + (k * 7 + i) % k_race * k_page), i + k);
  }
  stop(&movers[0]);
  stop(&movers[1]);
}

static void count_on_device(void* word) { device_add(fd, word, 8, 0, 1); }

/* After mprotect(PROT_READ) returned, no device write may land until writing is allowed again. */
static void to_dev_races_mprotect(void) {
  struct looper mover, writer;
  const double since = seconds();
  race_pages = map_pages(k_race);
  fill(race_pages, k_race, 10);
  volatile uint64_t* word = (volatile uint64_t*)(race_pages + 5 * k_page);
  *word = 0;
  start(&mover, migrate_race, NULL);
  start(&writer, count_on_device, (void*)word);
  for (int i = 0; !enough(since, i, 300); i++) {
    CHECK(mprotect(race_pages, k_race * k_page, PROT_READ) == 0);
    const uint64_t frozen = *word;
    for (int k = 0; k < 50; k++) {
      sched_yield();
      CHECK_EQ(*word, frozen);
    }
    CHECK_EQ(device_add(fd, (void*)word, 8, 0, 1), -EFAULT);
    CHECK(mprotect(race_pages, k_race * k_page, PROT_READ | PROT_WRITE) == 0);
    sched_yield();
  }
  stop(&writer);
  stop(&mover);
  CHECK_FILLED(race_pages, 5, 10);
}

/* With pauses: where spinlocks are unfair (a stock kernel that knows it is a guest), this starved the child of its own
 * page-table lock for a minute. */
static void migrate_with_pauses(void* unused) {
  migrate_race(unused);
  usleep(200);
}

static void to_dev_races_fork(void) {
  struct looper mover;
  const double since = seconds();
  race_pages = map_pages(k_race);
  fill(race_pages, k_race, 11);
  start(&mover, migrate_with_pauses, NULL);
  for (int i = 0; !enough(since, i, 40); i++) {
    const pid_t pid = forked();
    if (pid == 0) {
      CHECK_FILLED(race_pages, k_race, 11);
      fill(race_pages, k_race, 12);
      CHECK_FILLED(race_pages, k_race, 12);
      _exit(0);
    }
    CHECK_EQ(device_write(fd, race_pages, race_pages, 4), 0);
    expect_exit(pid, 0);
    CHECK_FILLED(race_pages, k_race, 11);
  }
  stop(&mover);
}

/* ---- many threads on one page ------------------------------------------------------------------ */

static pthread_barrier_t together;
static void* add_once_a_round(void* word) {
  for (int round = 0; round < 20; round++) {
    pthread_barrier_wait(&together);
    atomic_fetch_add((atomic_int*)word, 1);
    pthread_barrier_wait(&together);
  }
  return NULL;
}

/* The set `race` measures this; here, no update may be lost. */
static void many_threads_touch_one_device_page(void) {
  pthread_t threads[16];
  int* word = (int*)map_pages(1);
  pthread_barrier_init(&together, NULL, 17);
  for (int i = 0; i < 16; i++) CHECK(pthread_create(&threads[i], NULL, add_once_a_round, word) == 0);
  for (int round = 0; round < 20; round++) {
    CHECK_EQ(to_dev(fd, word, 1), 1);
    pthread_barrier_wait(&together);
    pthread_barrier_wait(&together);
  }
  for (int i = 0; i < 16; i++) pthread_join(threads[i], NULL);
  CHECK_EQ(*word, 16 * 20);
}

/* ---- pins -------------------------------------------------------------------------------------- */

/* A block device of RAM, made by the set; its driver reads and writes through references to the user's pages. */
static int open_disk(void) {
  const int disk = open("/dev/loop1", O_RDWR | O_DIRECT | O_CLOEXEC);
  if (disk < 0) skip("no block device for O_DIRECT: %s", strerror(errno));
  if (lseek(disk, 0, SEEK_END) <= 0) skip("no disk in /dev/loop1 for O_DIRECT");
  return disk;
}

static void direct_io_from_and_to_device_pages(void) {
  const int disk = open_disk();
  char* p = map_pages(64);
  for (uint32_t round = 0; round < 4; round++) {
    fill(p, 64, 20 + round);
    CHECK_EQ(to_dev(fd, p, 64), 64);
    CHECK_EQ(pwrite(disk, p, 64 * k_page, 0), 64 * k_page);
    fill(p, 64, 1);
    CHECK_EQ(to_dev(fd, p, 64), 64);
    CHECK_EQ(pread(disk, p, 64 * k_page, 0), 64 * k_page);
    CHECK_FILLED(p, 64, 20 + round);
  }
}

static void direct_io_races_to_dev(void) {
  const int disk = open_disk();
  struct looper mover;
  const double since = seconds();
  race_pages = map_pages(k_race);
  fill(race_pages, k_race, 30);
  CHECK_EQ(pwrite(disk, race_pages, k_race * k_page, 1 << 20), k_race * k_page);
  start(&mover, migrate_race, NULL);
  for (int i = 0; !enough(since, i, 200); i++) {
    memset(race_pages, i, k_race * k_page);
    CHECK_EQ(pread(disk, race_pages, k_race * k_page, 1 << 20), k_race * k_page);
    CHECK_FILLED(race_pages, k_race, 30);
  }
  stop(&mover);
}

/* While held, pages [0, 8) of p stay in system memory and say why; the others go. */
static void pinned_pages_stay(char* p) {
  uint8_t status[16];
  CHECK_EQ(on_device(fd, p, 8), 0);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, 16, 0, status), 8);
  for (int i = 0; i < 16; i++) CHECK_EQ(status[i], i < 8 ? HMMRT_SHIM_PINNED : status[i] & 1);
  CHECK_EQ(device_write(fd, p + 100, "dev", 3), 0);
  CHECK(!memcmp(p + 100, "dev", 3));
}

struct pin_longterm {
  uint64_t addr, size;
  uint32_t flags;
};
struct gup_benchmark {
  uint64_t get_us, put_us, addr, size;
  uint32_t pages_per_call, gup_flags, test_flags, dump[8];
};
#define PIN_LONGTERM_BENCHMARK _IOWR('g', 3, struct gup_benchmark)
#define PIN_LONGTERM_START _IOW('g', 7, struct pin_longterm)
#define PIN_LONGTERM_STOP _IO('g', 8)
#define PIN_LONGTERM_READ _IOW('g', 9, uint64_t)

static void a_long_term_pin_brings_pages_home_and_keeps_them(void) {
  const int gup = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);
  if (gup < 0) skip("no gup_test: %s", strerror(errno));
  char* p = map_pages(16);
  char* seen = map_pages(8);
  for (uint32_t flags = 0; flags < 4; flags++) { /* for writing, and by the fast path */
    struct pin_longterm pin = {.addr = (uintptr_t)p, .size = 8 * k_page, .flags = flags};
    uint64_t seen_at = (uintptr_t)seen;
    fill(p, 16, 31);
    CHECK_EQ(to_dev(fd, p, 16), 16);
    if (ioctl(gup, PIN_LONGTERM_START, &pin)) {
      /* Before 6.2 it only pins and lets go at once. */
      struct gup_benchmark bench = {
          .addr = (uintptr_t)p, .size = 8 * k_page, .pages_per_call = 8, .gup_flags = flags & 1};
      CHECK(ioctl(gup, PIN_LONGTERM_BENCHMARK, &bench) == 0);
      CHECK_EQ(on_device(fd, p, 8), 0);
      CHECK_FILLED(p, 16, 31);
      if (flags == 3) skip("pins brought pages home; this kernel's gup_test cannot hold them");
      continue;
    }
    pinned_pages_stay(p);
    CHECK(ioctl(gup, PIN_LONGTERM_READ, &seen_at) == 0);
    CHECK(!memcmp(p, seen, 8 * k_page));
    CHECK(ioctl(gup, PIN_LONGTERM_STOP, 0) == 0);
    CHECK_EQ(to_dev(fd, p, 16), 16);
    CHECK(!memcmp(p + 100, "dev", 3));
  }
}

static void io_uring_registered_buffers_stay(void) {
  char params[120] = {0};
  struct iovec iov;
  const int ring = (int)syscall(425, 4, params);
  if (ring < 0) skip("no io_uring: %s", strerror(errno));
  char* p = map_pages(16);
  fill(p, 16, 32);
  CHECK_EQ(to_dev(fd, p, 16), 16);
  iov = (struct iovec){p, 8 * k_page};
  CHECK(syscall(427, ring, 0 /* IORING_REGISTER_BUFFERS */, &iov, 1) == 0);
  pinned_pages_stay(p);
  CHECK(syscall(427, ring, 1 /* IORING_UNREGISTER_BUFFERS */, NULL, 0) == 0);
  close(ring);
  const double until = seconds() + 5; /* let go of by a worker */
  while (to_dev(fd, p, 16) != 16) CHECK(seconds() < until);
}

static void pages_in_a_pipe_stay_whole(void) {
  char *p = map_pages(8), *back = map_pages(8);
  uint8_t status[8];
  int ends[2];
  struct iovec iov = {p, 8 * k_page};
  fill(p, 8, 33);
  CHECK_EQ(to_dev(fd, p, 8), 8);
  CHECK(pipe2(ends, O_CLOEXEC) == 0);
  CHECK_EQ(vmsplice(ends[1], &iov, 1, 0), 8 * k_page);
  const long done = ranged(fd, HMMRT_SHIM_TO_DEV, p, 8, 0, status);
  CHECK(is_private() ? done == 0 : done >= 0); /* a coherent page may sit in the pipe where it is */
  CHECK_EQ(device_write(fd, p + 4, "dev", 4), 0);
  for (size_t got = 0; got < 8 * k_page;) {
    const ssize_t now = read(ends[0], back + got, 8 * k_page - got);
    CHECK(now > 0);
    got += (size_t)now;
  }
  CHECK(!memcmp(p, back, 8 * k_page)); /* the pipe holds the very pages, so it saw the device's write */
  CHECK_EQ(to_dev(fd, p, 8), 8);
  CHECK(!memcmp(p, back, 8 * k_page));
}

/* ---- merged pages ------------------------------------------------------------------------------ */

static int write_file(const char* path, const char* text) {
  const int file = open(path, O_WRONLY | O_CLOEXEC);
  const int ok = file >= 0 && write(file, text, strlen(text)) > 0;
  if (file >= 0) close(file);
  return ok;
}
static long number_in(const char* path) {
  char text[32] = "0";
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file >= 0) (void)!read(file, text, sizeof(text) - 1);
  if (file >= 0) close(file);
  return atol(text);
}

/* KSM and private memory must never meet. What went before it was advised stays where it is, and KSM leaves it alone. */
static void merged_pages_stay_and_say_so(void) {
  enum { k_alike = 64 };
  char *p = map_pages(k_alike), *before = map_pages(k_alike);
  uint8_t status[k_alike];
  for (int i = 0; i < k_alike; i++) {
    fill(p + i * k_page, 1, 50);
    fill(before + i * k_page, 1, 50);
  }
  CHECK_EQ(to_dev(fd, before, k_alike), k_alike);
  if (madvise(p, k_alike * k_page, MADV_MERGEABLE)) skip("no KSM: %s", strerror(errno));
  CHECK(madvise(before, k_alike * k_page, MADV_MERGEABLE) == 0);
  if (!write_file("/sys/kernel/mm/ksm/pages_to_scan", "2000") || !write_file("/sys/kernel/mm/ksm/run", "1"))
    skip("KSM cannot be started");
  const double until = seconds() + 20;
  while (number_in("/sys/kernel/mm/ksm/pages_sharing") < k_alike - 1 && seconds() < until) usleep(10000);
  CHECK_EQ(number_in("/sys/kernel/mm/ksm/pages_sharing"), k_alike - 1);
  CHECK_EQ(on_device(fd, before, k_alike), k_alike);
  CHECK_EQ(ranged(fd, HMMRT_SHIM_TO_DEV, p, k_alike, 0, status), 0);
  for (int i = 0; i < k_alike; i++) CHECK_EQ(status[i], HMMRT_SHIM_UNSUPPORTED);
  CHECK_EQ(device_write(fd, p + 3 * k_page, "changed", 7), 0);
  CHECK_EQ(madvise(p, k_alike * k_page, MADV_UNMERGEABLE), 0);
  CHECK_EQ(to_dev(fd, p, k_alike), k_alike);
  for (int i = 0; i < k_alike; i++) {
    CHECK_EQ(memcmp(p + i * k_page, "changed", 7) == 0, i == 3);
    if (i != 3) CHECK_FILLED(p + i * k_page, 1, 50);
    CHECK_FILLED(before + i * k_page, 1, 50);
  }
  write_file("/sys/kernel/mm/ksm/run", "2");
  write_file("/sys/kernel/mm/ksm/run", "0");
}

/* ---- huge pages -------------------------------------------------------------------------------- */

/* A block of 2 MiB that the CPU maps as one page, if the kernel will. */
static char* huge_block(int write) {
  char* area = map_pages(2 * k_block);
  char* p = (char*)(((uintptr_t)area + k_block * k_page - 1) & ~(uintptr_t)(k_block * k_page - 1));
  if (madvise(p, k_block * k_page, MADV_HUGEPAGE)) skip("no huge pages: %s", strerror(errno));
  if (write)
    fill(p, k_block, 40);
  else
    (void)*(volatile char*)p;
  if (write && (snapshot(fd, p) & HMMRT_SHIM_PAGE_SIZE_MASK) != HMMRT_SHIM_PAGE_SIZE_PMD)
    skip("the kernel gave no huge page");
  return p;
}

static void a_huge_page_goes_and_comes_back(void) {
  char* p = huge_block(1);
  CHECK_EQ(to_dev(fd, p, k_block), k_block);
  CHECK_EQ(on_device(fd, p, k_block), k_block);
  CHECK_FILLED(p, k_block, 40);
  CHECK(to_dev(fd, p, k_block) == k_block);
  CHECK_EQ(to_sys(fd, p, k_block), k_block);
  CHECK_EQ(on_device(fd, p, k_block), 0);
  CHECK_FILLED(p, k_block, 40);
}

static void a_part_of_a_huge_page_goes(void) {
  char* p = huge_block(1);
  CHECK_EQ(to_dev(fd, p + 100 * k_page, 200), 200);
  CHECK_EQ(on_device(fd, p, k_block), 200);
  char* back = malloc((size_t)k_block * k_page);
  CHECK_EQ(device_read(fd, p, back, (size_t)k_block * k_page), 0);
  CHECK_FILLED(back, k_block, 40);
  CHECK_FILLED(p, k_block, 40);
}

static void a_huge_page_of_two_processes_goes(void) {
  char* p = huge_block(1);
  gate g = new_gate();
  const pid_t pid = forked();
  if (pid == 0) {
    wait_gate(g, 1);
    CHECK_FILLED(p, k_block, 40);
    fill(p, k_block, 41);
    CHECK_FILLED(p, k_block, 41);
    _exit(0);
  }
  CHECK(to_dev(fd, p, k_block) >= 0);
  CHECK_EQ(device_write(fd, p, p, 4), 0);
  open_gate(g, 1);
  expect_exit(pid, 0);
  CHECK_FILLED(p, k_block, 40);
  CHECK_EQ(to_dev(fd, p, k_block), k_block);
  CHECK_FILLED(p, k_block, 40);
}

static void parts_of_a_block_on_the_device_are_unmapped_moved_and_protected(void) {
  char* p = huge_block(1);
  char* other = map_pages(64);
  char byte = 'x';
  CHECK_EQ(to_dev(fd, p, k_block), k_block);
  CHECK(munmap(p + 64 * k_page, 64 * k_page) == 0);
  CHECK(mremap(p, 64 * k_page, 64 * k_page, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other);
  CHECK(mprotect(p + 128 * k_page, 64 * k_page, PROT_READ) == 0);
  CHECK_EQ(device_read(fd, p, &byte, 1), -EFAULT);
  CHECK_EQ(device_read(fd, p + 100 * k_page, &byte, 1), -EFAULT);
  CHECK_EQ(device_write(fd, p + 130 * k_page, &byte, 1), -EFAULT);
  CHECK_EQ(device_write(fd, p + 200 * k_page, p + 200 * k_page, 1), 0);
  CHECK_FILLED(other, 64, 40);
  for (size_t page = 128; page < k_block; page++)
    CHECK_EQ(*(uint32_t*)(p + page * k_page), word_of(page * k_page / 4, 40));
}

static void the_huge_zero_page_becomes_zeroed_frames(void) {
  char* p = huge_block(0);
  CHECK_EQ(to_dev(fd, p, k_block), k_block);
  CHECK_EQ(on_device(fd, p, k_block), k_block);
  CHECK_EQ(device_write(fd, p + 300 * k_page, "nonzero", 7), 0);
  for (size_t page = 0; page < k_block; page++) CHECK_EQ(p[page * k_page], page == 300 ? 'n' : 0);
}

static void the_zero_page_becomes_zeroed_frames(void) {
  char* p = map_pages(32);
  uint32_t sum = 0;
  CHECK(madvise(p, 32 * k_page, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
  for (int i = 0; i < 32; i++) sum += ((volatile char*)p)[i * k_page];
  CHECK_EQ(sum, 0);
  CHECK_EQ(snapshot(fd, p) & HMMRT_SHIM_PAGE_WHERE_MASK, HMMRT_SHIM_PAGE_ZERO);
  CHECK_EQ(to_dev(fd, p, 32), 32);
  CHECK_EQ(device_write(fd, p + 7 * k_page, "x", 1), 0);
  for (int i = 0; i < 32; i++) CHECK_EQ(p[i * k_page], i == 7 ? 'x' : 0);
}

static const struct test tests[] = {
    TEST(device_write_after_fork_stays_in_the_writer),
    TEST(device_write_in_a_child_stays_in_the_child),
    TEST(parent_and_child_write_one_page_each_sees_its_own),
    TEST(a_page_of_two_processes_moves_under_both),
    TEST(shared_memory_stays_and_both_devices_see_it),
    TEST(secret_memory_stays_secret),
    TEST(exclusive_access_says_what_cannot_be_had),
    TEST(memory_without_rights_is_forbidden),
    TEST(no_populate_leaves_a_file_mapping_alone),
    TEST(two_descriptors_of_one_process_agree),
    TEST(an_inherited_descriptor_is_refused),
    TEST(a_child_keeps_pages_when_its_parent_exits),
    TEST(a_child_keeps_pages_when_its_parent_execs),
    TEST(a_child_keeps_pages_when_its_parent_is_killed),
    TEST(exit_at_any_point),
    TEST(exec_at_any_point),
    TEST(kill_at_any_point),
    TEST(exclusive_access_races_migration_and_eviction),
    TEST(to_dev_races_dontneed),
    TEST(a_device_fault_gets_past_threads_that_migrate),
    TEST(to_dev_races_munmap),
    TEST(to_dev_races_mremap),
    TEST(to_dev_races_first_touch),
    TEST(to_dev_races_mprotect),
    TEST(to_dev_races_fork),
    TEST(many_threads_touch_one_device_page),
    TEST(direct_io_from_and_to_device_pages),
    TEST(direct_io_races_to_dev),
    TEST(a_long_term_pin_brings_pages_home_and_keeps_them),
    TEST(io_uring_registered_buffers_stay),
    TEST(pages_in_a_pipe_stay_whole),
    TEST(merged_pages_stay_and_say_so),
    TEST(a_huge_page_goes_and_comes_back),
    TEST(a_part_of_a_huge_page_goes),
    TEST(a_huge_page_of_two_processes_goes),
    TEST(parts_of_a_block_on_the_device_are_unmapped_moved_and_protected),
    TEST(the_huge_zero_page_becomes_zeroed_frames),
    TEST(the_zero_page_becomes_zeroed_frames),
};
RULES_MAIN(tests)
