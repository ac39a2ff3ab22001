/* SPDX-License-Identifier: MIT */
/*
 * Random calls on hmmrt_shim from several processes and threads, among random changes of the memory they are about, with
 * allocations failing, processes forking, executing and being killed, and devices ending.
 *   fuzz [--seed N] [--seconds N] [--processes N] [--threads N]        as root
 *
 * Two kinds of memory: owned (fuzz_own.h), whose contents are known and compared, so that lost data is caught; and wild
 * (fuzz_wild.h), where anything goes and only the machine must survive. At the end every device must be empty again.
 *
 * The seed makes each thread's sequence of steps; how they interleave is the machine's. Exits with 1 at the first failure.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "fuzz_own.h"
#include "fuzz_wild.h"

enum { k_max_processes = 16, k_max_threads = 8 };

static int processes = 3, threads = 3, devices;
static double seconds = 130;
static char nodes[k_devices][32];
static char self[256];

static double now(void) {
  struct timespec t;

  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
static void nap(uint64_t us) {
  struct timespec t = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};

  nanosleep(&t, NULL);
}
static int put(const char* path, const char* text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC), ok;

  if (fd < 0) return 0;
  ok = write(fd, text, strlen(text)) >= 0;
  close(fd);
  return ok;
}

/* ---- one process ---- */

struct worker {
  pthread_t thread;
  struct own own;
  struct wild* wild;
  atomic_int* stop;
};

static void* work(void* arg) {
  struct worker* me = arg;

  starving_open();
  while (!atomic_load(me->stop) && !atomic_load(&shared->stop)) {
    if (one_in(&me->own.r, 2))
      own_step(&me->own, self);
    else
      wild_step(me->wild, &me->own.r);
  }
  /* However the arena was treated, it is as the model says. */
  own_check(&me->own, 0, k_own_pages);
  return NULL;
}

/* Lives for a while, and ends in one of several ways. */
static void __attribute__((noreturn)) process(uint64_t from) {
  static struct worker workers[k_max_threads];
  static struct wild wild;
  static atomic_int stop;
  struct rng r = {from};
  double end = now() + 0.3 + (double)length(&r, 12000) * 1e-3;

  prctl(PR_SET_PDEATHSIG, SIGKILL);
  catch_signals();
  wild_start(&wild, devices, nodes);
  for (int i = 0; i < threads; i++) {
    workers[i].wild = &wild;
    workers[i].stop = &stop;
    own_start(&workers[i].own, devices, nodes, number(&r));
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i])) fail("pthread_create");
  }
  while (now() < end && !atomic_load(&shared->stop)) {
    nap(200 + below(&r, 20000));
    pthread_kill(workers[below(&r, (uint64_t)threads)].thread, SIGUSR1);
  }
  switch (atomic_load(&shared->stop) ? 0 : below(&r, 6)) {
    case 0 ... 2:
      atomic_store(&stop, 1);
      for (int i = 0; i < threads; i++) { /* pokes: one may be in a WAIT without an end */
        struct timespec soon;

        do {
          pthread_kill(workers[i].thread, SIGUSR1);
          clock_gettime(CLOCK_REALTIME, &soon);
          soon.tv_nsec += 50 * 1000 * 1000;
          if (soon.tv_nsec >= 1000000000) soon.tv_sec++, soon.tv_nsec -= 1000000000;
        } while (pthread_timedjoin_np(workers[i].thread, NULL, &soon));
      }
      _exit(0);
    case 3: {
      char* argv[] = {self, (char*)"--after-exec", NULL};

      count(k_execs, 1);
      execv(self, argv);
      fail("exec: %d", errno);
    }
    case 4: kill(getpid(), SIGKILL); break;
    default: break;
  }
  _exit(0);
}

/* In a new address space, with descriptors of the old one. */
static int after_exec(void) {
  struct hmmrt_shim_range range = {.npages = 1};
  struct hmmrt_shim_ranges batch = {.ranges_ptr = (uintptr_t)&range, .count = 1};
  struct hmmrt_shim_query query;

  put("/proc/self/make-it-fail", "0");
  for (int fd = 3; fd < 64; fd++) {
    memset(&query, 0, sizeof(query));
    if (ioctl(fd, HMMRT_SHIM_QUERY, &query)) continue;
    range.addr = (uintptr_t)self / k_page * k_page;
    if (!ioctl(fd, HMMRT_SHIM_TO_DEV, &batch) || (errno != ESRCH && errno != EPERM && errno != ENOTCONN &&
                                                   errno != ENODEV)) {
      fprintf(stderr, "fuzz: FAIL: a descriptor works after exec: errno %d\n", errno);
      return 1;
    }
  }
  return 0;
}

/* ---- the machine ---- */

static int find_devices(void) {
  devices = 0;
  for (int i = 0; i < 16 && devices < k_devices; i++) {
    snprintf(nodes[devices], sizeof(nodes[0]), "/dev/hmmrt%d", i);
    devices += !access(nodes[devices], R_OK | W_OK);
  }
  return devices;
}

/* Allocations fail for those who ask for it (starving_begin()), one in 30. */
static void allow_starving(void) {
  static const char* const points[] = {"failslab", "fail_page_alloc"};
  static const char* const settings[][2] = {{"verbose", "0"},         {"task-filter", "Y"}, {"times", "-1"},
                                            {"interval", "1"},        {"space", "0"},       {"ignore-gfp-wait", "N"},
                                            {"ignore-gfp-highmem", "N"}, {"min-order", "0"},   {"probability", "3"}};
  char path[128];
  int points_set = 0;

  for (unsigned p = 0; p < 2; p++)
    for (unsigned i = 0; i < sizeof(settings) / sizeof(*settings); i++) {
      snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", points[p], settings[i][0]);
      points_set += put(path, settings[i][1]);
    }
  printf("fuzz: %s\n", points_set ? "allocations fail now and then" : "this kernel has no failing allocations");
}

/* Ends a PCI device under load, and begins it again. In a process of its own: it waits for every page. */
static void rebind(struct rng* r) {
  static const char driver[] = "/sys/bus/pci/drivers/hmmrt_shim";
  char names[4][64], path[128];
  struct dirent* entry;
  DIR* dir = opendir(driver);
  unsigned n = 0, which;

  while (dir && (entry = readdir(dir)) && n < 4)
    if (strchr(entry->d_name, ':')) snprintf(names[n++], sizeof(names[0]), "%.63s", entry->d_name);
  if (dir) closedir(dir);
  if (!n) return;
  which = (unsigned)below(r, n);
  snprintf(path, sizeof(path), "%s/unbind", driver);
  if (put(path, names[which])) count(k_unbound, 1);
  put("/sys/module/hmmrt_shim/parameters/pci_private", one_in(r, 2) ? "1" : "0");
  snprintf(path, sizeof(path), "%s/bind", driver);
  for (int i = 0; i < 100 && !put(path, names[which]); i++) nap(10000);
}

static void turn_knobs(struct rng* r) {
  char text[32];

  snprintf(text, sizeof(text), "%d", one_in(r, 2) ? 0 : (int)length(r, 6000));
  put("/sys/module/hmmrt_shim/parameters/quota_pages", text);
  snprintf(text, sizeof(text), "%d", (int)below(r, 10));
  put("/sys/module/hmmrt_shim/parameters/cpu_fault_order", text);
}

/* Everyone is gone: so is every page on a device, a little later. */
static int empty(void) {
  struct hmmrt_shim_inject none = {0};
  double until = now() + 30;
  int held = 0;

  find_devices();
  for (int d = 0; d < devices; d++) {
    struct hmmrt_shim_query query;
    int fd = open(nodes[d], O_RDWR | O_CLOEXEC);

    ioctl(fd, HMMRT_SHIM_INJECT, &none);
    do {
      nap(10000);
      memset(&query, 0, sizeof(query));
      ioctl(fd, HMMRT_SHIM_QUERY, &query);
    } while (query.devmem_free != query.devmem_pages && now() < until);
    printf("fuzz: %s: type %u, %llu of %llu pages free\n", nodes[d], query.mem_type,
           (unsigned long long)query.devmem_free, (unsigned long long)query.devmem_pages);
    held += query.devmem_free != query.devmem_pages;
    close(fd);
  }
  return !held;
}

static void report(double start) {
  static const char* const names[] = {"done", "already", "busy", "pinned", "gone", "forbidden", "not populated",
                                      "no space", "unsupported", "no memory", "failed"};

  printf("fuzz: %.0f s", now() - start);
  for (int i = 0; i < k_counts; i++) printf(", %s %llu", k_count_names[i], (unsigned long long)shared->counts[i]);
  printf("\nfuzz: statuses");
  for (int i = 0; i <= HMMRT_SHIM_FAILED; i++)
    printf(", %s %llu", names[i], (unsigned long long)shared->status[i]);
  printf("\n");
}

static int supervise(void) {
  struct rng r = {seed};
  pid_t pids[k_max_processes] = {0}, rebinder = 0, pid = 0;
  double start = now(), end = start + seconds, next_report = start + 20, next_rebind = start + 5;
  int status;

  while (now() < end && !atomic_load(&shared->stop)) {
    for (int i = 0; i < processes; i++) {
      uint64_t from = number(&r);

      if (pids[i]) continue;
      fflush(stdout);
      pids[i] = fork();
      if (!pids[i]) process(from);
      if (pids[i] < 0) fail("fork: %d", errno);
    }
    nap(1000 + below(&r, 40000));
    if (one_in(&r, 100)) {
      count(k_kills, 1);
      kill(pids[below(&r, (uint64_t)processes)], SIGKILL);
    }
    if (one_in(&r, 50)) turn_knobs(&r);
    if (!rebinder && now() > next_rebind) {
      rebinder = fork();
      if (!rebinder) {
        rebind(&r);
        _exit(0);
      }
      next_rebind = now() + 3 + (double)below(&r, 10);
    }
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
      if (pid == rebinder) rebinder = 0;
      for (int i = 0; i < processes; i++)
        if (pids[i] == pid) pids[i] = 0;
      check_end(pid, status);
    }
    if (now() > next_report) {
      report(start);
      next_report += 20;
    }
  }
  atomic_store(&shared->stop, 1);
  for (end = now() + 90; now() < end; nap(10000)) {
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
      if (!atomic_load(&shared->failures)) check_end(pid, status);
    if (pid < 0 && errno == ECHILD) break;
  }
  report(start);
  if (pid != -1) fail("processes do not end");
  if (!atomic_load(&shared->failures) && !empty()) fail("pages stay on a device, and nobody has them");
  return atomic_load(&shared->failures) != 0;
}

int main(int argc, char** argv) {
  seed = (uint64_t)time(NULL) % 1000000;
  if (argc > 1 && !strcmp(argv[1], "--after-exec")) return after_exec();
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--seed")) seed = strtoull(argv[i + 1], NULL, 0);
    if (!strcmp(argv[i], "--seconds")) seconds = atof(argv[i + 1]);
    if (!strcmp(argv[i], "--processes")) processes = atoi(argv[i + 1]);
    if (!strcmp(argv[i], "--threads")) threads = atoi(argv[i + 1]);
  }
  if (processes < 1 || processes > k_max_processes || threads < 1 || threads > k_max_threads) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) < 0) return 2;
  shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 2;
  if (!find_devices()) {
    fprintf(stderr, "fuzz: no /dev/hmmrt<N>\n");
    return 2;
  }
  printf("fuzz: seed %llu, %.0f s, %d processes of %d threads, %d devices\n", (unsigned long long)seed, seconds,
         processes, threads, devices);
  allow_starving();
  /* Orphans of killed processes come to us, so that all have ended when we say so. */
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  return supervise();
}
