/* SPDX-License-Identifier: MIT */
/*
 * What every part of the fuzzer uses: numbers from a seed, counters that all processes share, failure reports, faults
 * survived on purpose, and allocation failures in the kernel asked for by one thread for one call.
 */
#ifndef HMMRT_TESTS_VM_FUZZ_BASE_H
#define HMMRT_TESTS_VM_FUZZ_BASE_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hmmrt_shim.h"

enum { k_page = 4096, k_block = 512 * k_page, k_devices = 8 };

/* ---- numbers ---- */

struct rng {
  uint64_t state;
};

static inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
static inline uint64_t number(struct rng* r) { return mix(r->state += 0x9e3779b97f4a7c15ull); }
static inline uint64_t below(struct rng* r, uint64_t n) { return number(r) % n; }
static inline int one_in(struct rng* r, uint64_t n) { return below(r, n) == 0; }
/* 1..max, small ones as likely as large ones. */
static inline uint64_t length(struct rng* r, uint64_t max) {
  uint64_t n = 1 + below(r, 1ull << below(r, 64 - (uint64_t)__builtin_clzll(max) + 1));

  return n < max ? n : max;
}

/* ---- shared by all processes ---- */

enum count {
  k_own_ops,
  k_wild_ops,
  k_pages_checked,
  k_pages_moved,
  k_device_bytes,
  k_atomics,
  k_forks,
  k_execs,
  k_kills,
  k_interrupted,
  k_starved,
  k_unbound,
  k_counts
};
static const char* const k_count_names[k_counts] = {"owned",   "wild",  "pages checked", "pages moved", "device bytes",
                                                    "atomics", "forks", "execs",         "kills",       "interrupted",
                                                    "starved", "devices unbound"};

struct shared {
  atomic_int stop;
  atomic_int failures;
  atomic_ullong counts[k_counts];
  atomic_ullong status[256]; /* pages by status, over all calls */
};
static struct shared* shared;
static uint64_t seed;

static inline void count(enum count what, uint64_t n) {
  atomic_fetch_add_explicit(&shared->counts[what], n, memory_order_relaxed);
}

/* Says what is wrong and ends everything: the first failure is the one that counts. */
static inline __attribute__((format(printf, 1, 2), noreturn)) void fail(const char* format, ...) {
  char text[512];
  int n = snprintf(text, sizeof(text), "fuzz: FAIL (seed %llu, pid %d): ", (unsigned long long)seed, (int)getpid());
  va_list args;

  va_start(args, format);
  n += vsnprintf(text + n, sizeof(text) - (size_t)n - 1, format, args);
  va_end(args);
  if (n > (int)sizeof(text) - 2) n = (int)sizeof(text) - 2;
  text[n++] = '\n';
  if (write(2, text, (size_t)n) < 0) n = 0;
  atomic_fetch_add(&shared->failures, 1);
  atomic_store(&shared->stop, 1);
  _exit(1);
}

/* What any process ends with: 0, or killed by us. */
static inline void check_end(pid_t pid, int status) {
  if ((WIFEXITED(status) && WEXITSTATUS(status)) || (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL))
    fail("process %d ended with %#x", (int)pid, (unsigned)status);
}

/* ---- faults survived ---- */

static __thread sigjmp_buf fault_return;
static __thread volatile sig_atomic_t fault_expected;

static void on_fault(int signal, siginfo_t* info, void* context) {
  (void)context;
  if (fault_expected) siglongjmp(fault_return, 1);
  fail("signal %d at %p (code %d), where memory was mapped", signal, info->si_addr, info->si_code);
}
static void on_poke(int signal) { (void)signal; }

static void catch_signals(void) {
  struct sigaction fault = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  struct sigaction poke = {.sa_handler = on_poke};

  sigaction(SIGSEGV, &fault, NULL);
  sigaction(SIGBUS, &fault, NULL);
  sigaction(SIGUSR1, &poke, NULL);
  signal(SIGPIPE, SIG_IGN);
}

/* Reads or writes a byte that may be unmapped by now. */
static inline void touch(volatile char* at, int write) {
  if (!sigsetjmp(fault_return, 0)) {
    fault_expected = 1;
    if (write)
      *at = (char)(*at + 1);
    else
      (void)*at;
  }
  fault_expected = 0;
}

/* ---- allocation failures in the kernel ---- */

static __thread int fail_nth_fd, make_it_fail_fd; /* 0: not in this kernel */

/* Tries again: a child may have inherited a hunger that makes this fail. */
static int starving_file(const char* path) {
  for (int i = 0; i < 100; i++) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd >= 0) return fd;
    if (errno == ENOENT) break;
  }
  return 0;
}
static void starving_open(void) {
  fail_nth_fd = starving_file("/proc/thread-self/fail-nth");
  make_it_fail_fd = starving_file("/proc/thread-self/make-it-fail");
}
static inline void put_number(int fd, unsigned n) {
  char text[16];
  int bytes = snprintf(text, sizeof(text), "%u", n);

  if (fd && pwrite(fd, text, (size_t)bytes, 0) < 0) return; /* an old process's file after fork: nothing to set */
}
/* For the calls until starving_end(): the nth allocation fails, or now and then one. Returns whether any may. */
static inline int starving_begin(struct rng* r) {
  unsigned how = (unsigned)below(r, 8);

  if (!fail_nth_fd || how > 1) return 0;
  count(k_starved, 1);
  put_number(how ? fail_nth_fd : make_it_fail_fd, how ? (unsigned)length(r, 64) : 1);
  return 1;
}
static inline void starving_end(int was) {
  if (!was) return;
  put_number(fail_nth_fd, 0);
  put_number(make_it_fail_fd, 0);
}

#endif
