/* SPDX-License-Identifier: MIT */
/*
 * Runs named tests against one kind of device, each in a process group of its own that has an address space, an alarm
 * and, in `fd`, a bound descriptor:
 *   PROGRAM KIND NODE OTHER [TEST...]        OTHER: a second device, of the same kind or not
 * After each test the whole group is killed and both devices must become empty again: no test may leave a page behind,
 * however it ended. A test that cannot run here calls skip() and says why. Exit status: 1 if any failed.
 */
#ifndef RULES_H
#define RULES_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "shim_test.h"

struct test {
  const char* name;
  void (*run)(void);
};
#define TEST(name) \
  { #name, name }

enum { k_skipped = 77, k_patience = 60 };

static const char *node, *other_node;
static int fd;                        /* bound to node */
static struct hmmrt_shim_query query; /* of node, before the test */

static inline void skip(const char* why, ...) {
  va_list args;
  va_start(args, why);
  printf("  SKIP: ");
  vprintf(why, args);
  printf("\n");
  va_end(args);
  fflush(stdout);
  _exit(k_skipped);
}

static inline int is_private(void) { return !!(query.caps & HMMRT_SHIM_CAP_PRIVATE); }
static inline void needs_private(void) {
  if (!is_private()) skip("only a private device has it");
}
static inline void needs_exclusive(void) {
  if (!(query.caps & HMMRT_SHIM_CAP_EXCLUSIVE)) skip("this kernel has no exclusive access");
}

/* ---- processes and threads ------------------------------------------------------------------- */

static inline void expect_exit(pid_t pid, int want) {
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid);
  if (WIFSIGNALED(status)) printf("  a child died of signal %d\n", WTERMSIG(status));
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), want);
}

static inline pid_t forked(void) {
  fflush(stdout);
  const pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
  return pid;
}

/* A gate that processes pass in order: everyone who waits for n passes once someone has opened it to n. In shared memory. */
typedef atomic_int* gate;
static inline gate new_gate(void) {
  gate g = mmap(NULL, k_page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(g != MAP_FAILED);
  return g;
}
static inline void open_gate(gate g, int n) { atomic_store(g, n); }
static inline void wait_gate(gate g, int n) {
  while (atomic_load(g) < n) sched_yield();
}

/* Calls step(argument) in a thread until stopped. */
struct looper {
  pthread_t thread;
  void (*step)(void*);
  void* argument;
  atomic_bool stop;
  atomic_ulong turns;
};
static inline void* loop_thread(void* argument) {
  struct looper* looper = argument;
  while (!atomic_load(&looper->stop)) {
    looper->step(looper->argument);
    atomic_fetch_add(&looper->turns, 1);
  }
  return NULL;
}
static inline void start(struct looper* looper, void (*step)(void*), void* argument) {
  memset(looper, 0, sizeof(*looper));
  looper->step = step;
  looper->argument = argument;
  CHECK(pthread_create(&looper->thread, NULL, loop_thread, looper) == 0);
  while (!atomic_load(&looper->turns)) sched_yield();
}
static inline void stop(struct looper* looper) {
  atomic_store(&looper->stop, 1);
  CHECK(pthread_join(looper->thread, NULL) == 0);
}

/* Whether the loops of a race are over: `turns` of them, or two seconds on a slow kernel. */
static inline int enough(double since, int turn, int turns) { return turn >= turns || seconds() > since + 2; }

/* ---- running --------------------------------------------------------------------------------- */

static inline void run_one(const struct test* test) {
  setpgid(0, 0);
  alarm(k_patience);
  fd = open_bound(node);
  query = query_of(fd);
  if (!query.devmem_pages) skip("%s has no memory on this kernel: CONFIG_DEVICE_PRIVATE is off", node);
  test->run();
  fflush(stdout);
  _exit(0);
}

/* Pages of processes that are gone come back by a worker, soon. */
static inline int becomes_empty(const char* device) {
  const int raw = open(device, O_RDWR | O_CLOEXEC);
  const double until = seconds() + 10;
  if (raw < 0) return 1;
  for (;;) {
    const struct hmmrt_shim_query now = query_of(raw);
    if (now.devmem_free == now.devmem_pages || seconds() > until) {
      close(raw);
      if (now.devmem_free != now.devmem_pages)
        printf("  %s keeps %llu pages of dead processes\n", device,
               (unsigned long long)(now.devmem_pages - now.devmem_free));
      return now.devmem_free == now.devmem_pages;
    }
    usleep(1000);
  }
}

static inline int rules_main(int argc, char** argv, const struct test* tests, size_t count) {
  unsigned ran = 0, failed = 0, skipped = 0;
  if (argc < 4) {
    fprintf(stderr, "usage: %s KIND NODE OTHER [TEST...]\n", argv[0]);
    return 2;
  }
  node = argv[2];
  other_node = argv[3];
  for (size_t i = 0; i < count; i++) {
    int wanted = argc == 4, status = 0;
    for (int a = 4; a < argc; a++) wanted |= !strcmp(argv[a], tests[i].name);
    if (!wanted) continue;
    const double since = seconds();
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) run_one(&tests[i]);
    waitpid(pid, &status, 0);
    kill(-pid, SIGKILL);
    while (waitpid(-pid, NULL, 0) > 0) {
    }
    const int ok = WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == k_skipped);
    const int skip_it = ok && WEXITSTATUS(status) == k_skipped;
    const int empty = becomes_empty(node) & becomes_empty(other_node);
    if (WIFSIGNALED(status))
      printf("  %s\n", WTERMSIG(status) == SIGALRM ? "took too long" : strsignal(WTERMSIG(status)));
    printf("%s %s %s (%.2f s)\n",
           !ok || !empty ? "FAIL"
           : skip_it     ? "skip"
                         : "ok  ",
           argv[1], tests[i].name, seconds() - since);
    ran++;
    failed += !ok || !empty;
    skipped += skip_it;
  }
  const char* base = strrchr(argv[0], '/');
  printf("table: %s, %s: %u tests, %u passed, %u skipped, %u failed\n", base ? base + 1 : argv[0], argv[1], ran,
         ran - failed - skipped, skipped, failed);
  fflush(stdout);
  return failed != 0;
}

#define RULES_MAIN(tests) \
  int main(int argc, char** argv) { return rules_main(argc, argv, tests, sizeof(tests) / sizeof((tests)[0])); }

#endif
