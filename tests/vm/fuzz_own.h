/* SPDX-License-Identifier: MIT */
/*
 * Owned memory: an arena that one thread alone changes, beside a model of what must be in it. Everything else may happen
 * to it at any time (eviction, merging, swapping, a fork's copy), and none of that may show.
 *
 * Of each page 8 words are followed, one in each 512 bytes, all made from the page's value, and a counter for atomics.
 * A page whose value is 0 holds zeroes. After MADV_FREE a page holds its value or zeroes, until it is written again.
 * A call that could not report how far it came (it was starved of memory, or interrupted) leaves old or new words.
 */
#ifndef HMMRT_TESTS_VM_FUZZ_OWN_H
#define HMMRT_TESTS_VM_FUZZ_OWN_H

#include <poll.h>
#include <sys/uio.h>

#include "fuzz_base.h"

enum { k_own_pages = 1536, k_words = 8, k_counter_word = 9, k_buffer_pages = 32, k_batch = 4, k_hot_pages = 8 };

struct page_model {
  uint32_t value;
  uint32_t count;
  uint8_t prot;
  uint8_t maybe; /* zeroes will do as well */
};

struct own {
  struct rng r;
  char* base;
  int fds[k_devices]; /* bound to this arena only; -1: closed */
  int devices;
  int pipe[2];
  char nodes[k_devices][32];
  uint8_t* status;
  uint64_t* buffer; /* k_buffer_pages */
  struct hmmrt_shim_range ranges[k_batch];
  struct page_model model[k_own_pages];
};

static inline uint64_t word_of(uint32_t value, unsigned k) { return value ? mix(value * 64ull + k) | 1 : 0; }
static inline volatile uint64_t* words(struct own* o, size_t page) {
  return (volatile uint64_t*)(o->base + page * k_page);
}
static inline size_t word_at(unsigned k) { return k * 64 + (k == 7 ? 63 : k); }

/* An eighth of the values is the same for many pages, so that KSM finds something. */
static uint32_t new_value(struct own* o) {
  return one_in(&o->r, 8) ? 1 + (uint32_t)below(&o->r, 3) : 4 + (uint32_t)below(&o->r, 1u << 30);
}

/* ---- checks ---- */

/* Whether `got` (a page's words) is the page with `value` and `counter`. */
static int holds(const volatile uint64_t* got, uint32_t value, uint32_t counter) {
  for (unsigned k = 0; k < k_words; k++)
    if (got[word_at(k)] != word_of(value, k)) return 0;
  return got[k_counter_word] == counter;
}

static void check_words(struct own* o, size_t page, const volatile uint64_t* got, const char* by) {
  struct page_model* m = &o->model[page];

  if (holds(got, m->value, m->count)) return;
  if (m->maybe && holds(got, 0, 0)) {
    *m = (struct page_model){.prot = m->prot};
    return;
  }
  uint64_t seen[k_words];
  for (unsigned k = 0; k < k_words; k++) seen[k] = got[word_at(k)];
  fail(
      "page %zu at %p, read by %s: value %u count %u%s expected (word 0 %llx); found %llx %llx %llx ... %llx, count "
      "%llu",
      page, (void*)words(o, page), by, m->value, m->count, m->maybe ? " or zeroes" : "",
      (unsigned long long)word_of(m->value, 0), (unsigned long long)seen[0], (unsigned long long)seen[1],
      (unsigned long long)seen[2], (unsigned long long)seen[7], (unsigned long long)got[k_counter_word]);
}

static void own_check(struct own* o, size_t page, size_t n) {
  count(k_pages_checked, n);
  for (; n--; page++)
    if (o->model[page].prot & PROT_READ) check_words(o, page, words(o, page), "the CPU");
}

static void set_words(uint64_t* to, uint32_t value) {
  for (unsigned k = 0; k < k_words; k++) to[word_at(k)] = word_of(value, k);
  to[k_counter_word] = 0;
}

static void own_cpu_write(struct own* o, size_t page, size_t n) {
  for (; n--; page++) {
    if (!(o->model[page].prot & PROT_WRITE)) continue;
    uint32_t value = new_value(o);

    set_words((uint64_t*)words(o, page), value);
    o->model[page] = (struct page_model){.value = value, .prot = o->model[page].prot};
  }
}

/* A write of `value` may have happened, or a part of it. Zeroes where a freed page was. */
static void own_settle(struct own* o, size_t page, uint32_t value) {
  struct page_model* m = &o->model[page];
  volatile uint64_t* w = words(o, page);

  if (!(m->prot & PROT_READ)) return; /* nothing can have been written */
  if (holds(w, value, 0)) {           /* where old and new are alike, it may still be the old page */
    *m = (struct page_model){.value = value, .prot = m->prot, .maybe = m->maybe && m->value == value};
    return;
  }
  for (unsigned k = 0; k < k_words; k++) {
    uint64_t got = w[word_at(k)];

    if (got != word_of(m->value, k) && got != word_of(value, k) && !(m->maybe && !got))
      fail("page %zu word %u: neither the old %u nor the new %u: %llx", page, k, m->value, value,
           (unsigned long long)got);
  }
  if (holds(w, m->value, m->count)) return;
  if (m->prot & PROT_WRITE) {
    own_cpu_write(o, page, 1);
  } else if (m->maybe) {
    check_words(o, page, w, "the CPU");
  } else {
    fail("page %zu is read-only, and changed", page);
  }
}

/* ---- the device ---- */

static int own_open(struct own* o, int d, int window) {
  struct hmmrt_shim_bind bind = {
      .flags = (uint32_t)below(&o->r, 8), .ring_order = (uint32_t)below(&o->r, 7), .eventfd = -1};
  int fd = open(o->nodes[d], O_RDWR | (one_in(&o->r, 2) ? O_CLOEXEC : 0));

  if (fd < 0) return -1;
  if (window) {
    bind.va_start = (uintptr_t)o->base;
    bind.va_len = (uint64_t)k_own_pages * k_page;
  }
  if (ioctl(fd, HMMRT_SHIM_BIND, &bind)) {
    close(fd);
    return -1;
  }
  return fd;
}

/* A device's descriptor, opened if need be; -1 when the device is away. */
static int own_fd(struct own* o) {
  int d = (int)below(&o->r, (uint64_t)o->devices);

  if (o->fds[d] >= 0 && one_in(&o->r, 100)) {
    close(o->fds[d]);
    o->fds[d] = -1;
  }
  if (o->fds[d] < 0) o->fds[d] = own_open(o, d, 1);
  return o->fds[d];
}

/* What a call that failed may say; anything else is a failure. Returns whether the outputs count. */
static int call_ok(struct own* o, int fd, int ret, int err, int starved, const char* what) {
  if (!ret) return 1;
  if (err == EINTR) {
    count(k_interrupted, 1);
    return 1;
  }
  if (err == ENODEV || err == EBADF) { /* the device ended */
    for (int d = 0; d < o->devices; d++)
      if (o->fds[d] == fd) o->fds[d] = -1;
    close(fd);
  } else if (!(starved && (err == ENOMEM || err == EFAULT))) {
    fail("%s: errno %d", what, err);
  }
  return 0;
}

static void check_range(const struct hmmrt_shim_range* r, const uint8_t* status, int snapshot, int whole) {
  uint64_t done = 0, busy = 0, rest = 0;

  if (r->done + r->busy + r->skipped > r->npages) fail("range: more pages served than asked for");
  if (!whole) return;
  if (r->done + r->busy + r->skipped != r->npages)
    fail("range: %llu pages unaccounted for", (unsigned long long)(r->npages - r->done - r->busy - r->skipped));
  for (uint64_t i = 0; i < r->npages; i++) {
    uint8_t s = status[i];

    if (snapshot) {
      *(s && s != HMMRT_SHIM_PAGE_ERROR ? &done : &rest) += 1;
      continue;
    }
    if (s > HMMRT_SHIM_FAILED) fail("range: status %u at %llu", s, (unsigned long long)i);
    *(s <= HMMRT_SHIM_ALREADY ? &done : s <= HMMRT_SHIM_PINNED ? &busy : &rest) += 1;
    atomic_fetch_add_explicit(&shared->status[s], 1, memory_order_relaxed);
  }
  if (done != r->done || busy != r->busy || rest != r->skipped) fail("range: counts and statuses differ");
}

static void own_range(struct own* o) {
  static const unsigned long commands[] = {HMMRT_SHIM_TO_DEV,   HMMRT_SHIM_TO_DEV, HMMRT_SHIM_TO_DEV,
                                           HMMRT_SHIM_TO_SYS,   HMMRT_SHIM_FAULT,  HMMRT_SHIM_SNAPSHOT,
                                           HMMRT_SHIM_EXCLUSIVE};
  struct hmmrt_shim_ranges batch = {.ranges_ptr = (uintptr_t)o->ranges, .count = (uint32_t)length(&o->r, k_batch)};
  unsigned long command = commands[below(&o->r, 7)];
  int fd = own_fd(o), ret, err, starved;
  uint8_t* status = o->status;

  if (fd < 0) return;
  for (uint32_t i = 0; i < batch.count; i++) {
    size_t page = below(&o->r, k_own_pages), n = length(&o->r, k_own_pages / batch.count);
    struct hmmrt_shim_range* range = &o->ranges[i];

    if (page + n > k_own_pages) n = k_own_pages - page;
    *range = (struct hmmrt_shim_range){
        .addr = (uintptr_t)words(o, page), .npages = n, .cookie = number(&o->r), .status_ptr = (uintptr_t)status};
    status += n;
    if (command == HMMRT_SHIM_FAULT) range->flags = (uint32_t)below(&o->r, 2);
    if (command == HMMRT_SHIM_TO_DEV)
      range->flags = (one_in(&o->r, 2) ? HMMRT_SHIM_RANGE_EVICT : 0) |
                     (one_in(&o->r, 4) ? HMMRT_SHIM_RANGE_NO_POPULATE : 0) |
                     (one_in(&o->r, 2) ? HMMRT_SHIM_RANGE_GRANULE((uint32_t)below(&o->r, 10)) : 0);
  }
  starved = starving_begin(&o->r);
  ret = ioctl(fd, command, &batch);
  err = errno;
  starving_end(starved);
  if (ret && err == EOPNOTSUPP && command == HMMRT_SHIM_EXCLUSIVE) return;
  if (!call_ok(o, fd, ret, err, starved, "range call")) return;
  for (uint32_t i = 0; i < batch.count; i++) {
    check_range(&o->ranges[i], (uint8_t*)(uintptr_t)o->ranges[i].status_ptr, command == HMMRT_SHIM_SNAPSHOT,
                i < batch.served);
    if (command == HMMRT_SHIM_TO_DEV || command == HMMRT_SHIM_TO_SYS) count(k_pages_moved, o->ranges[i].done);
  }
}

static void own_device_write(struct own* o, size_t page, size_t n) {
  struct hmmrt_shim_access a = {.addr = (uintptr_t)words(o, page),
                                .buf = (uintptr_t)o->buffer,
                                .op = HMMRT_SHIM_OP_WRITE,
                                .flags = one_in(&o->r, 8) ? HMMRT_SHIM_ACCESS_NO_FAULT : 0};
  struct hmmrt_shim_accesses batch = {.accesses_ptr = (uintptr_t)&a, .count = 1};
  int fd = own_fd(o), starved, ret, err, known;
  uint32_t value[k_buffer_pages];

  if (fd < 0) return;
  if (n > k_buffer_pages) n = k_buffer_pages;
  memset(o->buffer, 0, n * k_page);
  for (size_t i = 0; i < n; i++) {
    value[i] = new_value(o);
    set_words(o->buffer + i * k_page / 8, value[i]);
  }
  a.len = n * k_page;
  starved = starving_begin(&o->r);
  ret = ioctl(fd, HMMRT_SHIM_ACCESS, &batch);
  err = errno;
  starving_end(starved);
  known = call_ok(o, fd, ret, err, starved, "device write") && (!ret || err == EINTR);
  if (known && a.done > a.len)
    fail("device write: %llu of %llu bytes", (unsigned long long)a.done, (unsigned long long)a.len);
  if (known && !ret && !a.err && a.done != a.len) fail("device write: short without an error");
  count(k_device_bytes, known ? a.done : 0);
  for (size_t i = 0; i < n; i++) {
    struct page_model* m = &o->model[page + i];

    if (known && (i + 1) * k_page <= a.done) {
      if (!(m->prot & PROT_WRITE)) fail("device wrote page %zu, which has protection %d", page + i, m->prot);
      *m = (struct page_model){.value = value[i], .prot = m->prot};
    } else if (!known || i * k_page < a.done) {
      own_settle(o, page + i, value[i]);
    }
  }
}

static void own_device_read(struct own* o, size_t page, size_t n) {
  struct hmmrt_shim_access a = {
      .addr = (uintptr_t)words(o, page), .buf = (uintptr_t)o->buffer, .op = HMMRT_SHIM_OP_READ};
  struct hmmrt_shim_accesses batch = {.accesses_ptr = (uintptr_t)&a, .count = 1};
  int fd = own_fd(o), starved, ret, err;

  if (fd < 0) return;
  if (n > k_buffer_pages) n = k_buffer_pages;
  a.len = n * k_page;
  starved = starving_begin(&o->r);
  ret = ioctl(fd, HMMRT_SHIM_ACCESS, &batch);
  err = errno;
  starving_end(starved);
  if (!call_ok(o, fd, ret, err, starved, "device read")) return;
  for (size_t i = 0; (i + 1) * k_page <= a.done; i++) {
    if (!(o->model[page + i].prot & PROT_READ)) fail("device read page %zu, which has no access", page + i);
    check_words(o, page + i, o->buffer + i * k_page / 8, "the device");
  }
  count(k_device_bytes, a.done);
}

static void own_atomic(struct own* o, size_t page) {
  struct page_model* m = &o->model[page];
  struct hmmrt_shim_access a = {.addr = (uintptr_t)(words(o, page) + k_counter_word),
                                .len = one_in(&o->r, 2) ? 4 : 8,
                                .op = one_in(&o->r, 2) ? HMMRT_SHIM_OP_ADD : HMMRT_SHIM_OP_CAS,
                                .flags = one_in(&o->r, 2) ? HMMRT_SHIM_ACCESS_EXCLUSIVE : 0};
  struct hmmrt_shim_accesses batch = {.accesses_ptr = (uintptr_t)&a, .count = 1};
  int fd = own_fd(o), starved, ret, err;
  uint32_t next = m->count + 1, wrong = one_in(&o->r, 4);

  if (m->maybe || fd < 0) return;
  if (one_in(&o->r, 4)) { /* the CPU's turn */
    if (!(m->prot & PROT_WRITE)) return;
    if (__atomic_fetch_add((uint64_t*)words(o, page) + k_counter_word, 1, __ATOMIC_SEQ_CST) != m->count)
      fail("page %zu: the CPU's atomic found another count than %u", page, m->count);
    m->count = next;
    return;
  }
  if (a.op == HMMRT_SHIM_OP_ADD) {
    a.arg0 = 1;
  } else {
    a.arg0 = m->count + wrong;
    a.arg1 = next;
    if (wrong) next = m->count;
  }
  starved = starving_begin(&o->r);
  ret = ioctl(fd, HMMRT_SHIM_ACCESS, &batch);
  err = errno;
  starving_end(starved);
  count(k_atomics, 1);
  if (!call_ok(o, fd, ret, err, starved, "device atomic") || (ret && err != EINTR)) {
    if (!(m->prot & PROT_READ)) return;
    uint64_t now = words(o, page)[k_counter_word];

    if (now != m->count && now != next) fail("page %zu: count %llu, not %u", page, (unsigned long long)now, m->count);
    m->count = (uint32_t)now;
  } else if (a.done) {
    if (a.err || !(m->prot & PROT_WRITE)) fail("page %zu: atomic done, err %d, protection %d", page, a.err, m->prot);
    if (a.out != m->count)
      fail("page %zu: the device's atomic found %llu, not %u", page, (unsigned long long)a.out, m->count);
    m->count = next;
  }
}

/* ---- the mapping ---- */

static void own_reset(struct own* o, size_t page, size_t n) {
  if (mmap(o->base + page * k_page, n * k_page, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
    fail("mmap of %zu pages: %d", n, errno);
  for (size_t i = 0; i < n; i++) o->model[page + i] = (struct page_model){.prot = PROT_READ | PROT_WRITE};
}

static void own_madvise(struct own* o, size_t page, size_t n) {
  static const int advice[] = {
      MADV_DONTNEED,     8 /* FREE */,         MADV_COLD, MADV_PAGEOUT, MADV_HUGEPAGE,          MADV_NOHUGEPAGE,
      MADV_MERGEABLE,    13 /* UNMERGEABLE */, 13,        13,           22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */,
      25 /* COLLAPSE */, MADV_WILLNEED};
  int what = advice[below(&o->r, sizeof(advice) / sizeof(*advice))];
  int starved = starving_begin(&o->r), ret = madvise(o->base + page * k_page, n * k_page, what);

  starving_end(starved);
  for (size_t i = page; i < page + n; i++) {
    struct page_model* m = &o->model[i];

    if (what == MADV_DONTNEED && !ret)
      *m = (struct page_model){.prot = m->prot};
    else if (what == MADV_DONTNEED || what == 8)
      m->maybe = 1;
  }
}

static void own_mprotect(struct own* o, size_t page, size_t n) {
  static const int protections[] = {PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE};
  int prot = protections[below(&o->r, 4)], starved = starving_begin(&o->r);
  int ret = mprotect(o->base + page * k_page, n * k_page, prot);

  starving_end(starved);
  if (ret) { /* done for a part, perhaps */
    prot = PROT_READ | PROT_WRITE;
    page = 0;
    n = k_own_pages;
    if (mprotect(o->base, n * k_page, prot)) fail("mprotect: %d", errno);
  }
  for (size_t i = 0; i < n; i++) o->model[page + i].prot = (uint8_t)prot;
}

static void own_move(struct own* o, size_t from, size_t n) {
  size_t to = below(&o->r, k_own_pages);

  if (to + n > k_own_pages || (to < from + n && from < to + n)) return;
  int starved = starving_begin(&o->r);
  void* at =
      mremap(o->base + from * k_page, n * k_page, n * k_page, MREMAP_MAYMOVE | MREMAP_FIXED, o->base + to * k_page);

  starving_end(starved);
  if (at == MAP_FAILED) {
    own_reset(o, to, n); /* gone, or still there */
    return;
  }
  memcpy(&o->model[to], &o->model[from], n * sizeof(*o->model));
  own_reset(o, from, n);
}

/* A system call reads the pages; a pipe holds references to them for a while. */
static void own_syscall(struct own* o, size_t page) {
  char drain[256];

  if (one_in(&o->r, 2)) {
    struct iovec v = {.iov_base = o->base + page * k_page, .iov_len = k_page};

    if (o->model[page].prot & PROT_READ && vmsplice(o->pipe[1], &v, 1, SPLICE_F_NONBLOCK) < 0 && errno != EAGAIN &&
        errno != EINTR && errno != ENOMEM)
      fail("vmsplice: %d", errno);
  } else {
    while (read(o->pipe[0], drain, sizeof(drain)) > 0 && !one_in(&o->r, 64)) continue;
  }
}

/* ---- fork ---- */

/* The device writes what MADV_FREE gave up; reclaim must see that the page is dirty. */
static void own_revive(struct own* o, size_t page, size_t n) {
  if (n > k_buffer_pages) n = k_buffer_pages;
  own_cpu_write(o, page, n);
  own_device_read(o, page, n);
  for (size_t i = page; i < page + n; i++) o->model[i].maybe = 1;
  madvise(o->base + page * k_page, n * k_page, 8 /* FREE */);
  own_device_write(o, page, n);
  madvise(o->base + page * k_page, n * k_page, MADV_PAGEOUT);
  own_check(o, page, n);
}

/* In the child, which has a copy of the arena that must not change any more, whatever the parent does. */
static void own_child(struct own* o, const char* self, size_t hot) {
  struct hmmrt_shim_query query = {0};
  int d = (int)below(&o->r, (uint64_t)o->devices), inherited = o->fds[d];

  starving_open();
  starving_end(1);
  if (one_in(&o->r, 2)) {
    poll(NULL, 0, 5);
    own_check(o, hot, k_hot_pages);
  }
  if (inherited >= 0) {
    struct hmmrt_shim_ranges batch = {.ranges_ptr = (uintptr_t)o->ranges, .count = 1};

    if (ioctl(inherited, HMMRT_SHIM_FAULT, &batch) != -1 ||
        (errno != EPERM && errno != ESRCH && errno != ENODEV && errno != EINTR))
      fail("a child used its parent's descriptor: errno %d", errno);
    if (!ioctl(inherited, HMMRT_SHIM_QUERY, &query) && query.my_pages) fail("a child sees its parent's account");
  }
  if (!one_in(&o->r, 3)) {
    for (int i = 0; i < k_devices; i++) {
      if (o->fds[i] >= 0 && one_in(&o->r, 2)) close(o->fds[i]);
      o->fds[i] = -1;
    }
    for (int i = 0; i < 12; i++) {
      size_t page = below(&o->r, k_own_pages), n = length(&o->r, 64);

      if (page + n > k_own_pages) n = k_own_pages - page;
      switch (below(&o->r, 5)) {
        case 0:
          own_range(o);
          break;
        case 1:
          own_device_write(o, page, n);
          break;
        case 2:
          own_device_read(o, page, n);
          break;
        case 3:
          own_cpu_write(o, page, n);
          break;
        default:
          own_check(o, page, n);
          break;
      }
    }
    own_check(o, 0, k_own_pages);
  }
  if (one_in(&o->r, 3)) {
    char* argv[] = {(char*)self, (char*)"--after-exec", NULL};

    count(k_execs, 1);
    execv(self, argv);
  }
  _exit(0);
}

static void own_fork(struct own* o, const char* self) {
  uint64_t next = number(&o->r);
  size_t hot = below(&o->r, k_own_pages - k_hot_pages);

  own_device_write(o, hot, k_hot_pages); /* mapped for writing, until the fork */
  int starved = starving_begin(&o->r), status;
  pid_t pid = fork();

  if (!pid) {
    o->r.state = next;
    own_child(o, self, hot);
  }
  starving_end(starved);
  if (pid < 0) return;
  own_device_write(o, hot, k_hot_pages); /* into pages of its own */
  count(k_forks, 1);
  if (one_in(&o->r, 4)) {
    count(k_kills, 1);
    kill(pid, SIGKILL);
  }
  if (one_in(&o->r, 2)) return; /* it goes on beside us */
  for (;;) {
    if (waitpid(pid, &status, 0) == pid) {
      check_end(pid, status);
      break;
    }
    if (errno != EINTR) break; /* another thread was told */
  }
}

/* ---- one step ---- */

static void own_step(struct own* o, const char* self) {
  size_t page = below(&o->r, k_own_pages), n = length(&o->r, 512);

  if (page + n > k_own_pages) n = k_own_pages - page;
  count(k_own_ops, 1);
  switch (below(&o->r, 40)) {
    case 0 ... 9:
      own_range(o);
      break;
    case 10 ... 14:
      own_cpu_write(o, page, n);
      break;
    case 15 ... 19:
      own_check(o, page, n);
      break;
    case 20 ... 22:
      own_device_write(o, page, n);
      break;
    case 23 ... 25:
      own_device_read(o, page, n);
      break;
    case 26 ... 29:
      own_atomic(o, page);
      break;
    case 30 ... 33:
      own_madvise(o, page, n);
      break;
    case 34:
      own_mprotect(o, page, n);
      break;
    case 35:
      own_move(o, page, n);
      break;
    case 36:
      own_reset(o, page, n);
      break;
    case 37:
      if (one_in(&o->r, 2))
        own_revive(o, page, n);
      else
        own_syscall(o, page);
      break;
    case 38:
      if (one_in(&o->r, 4)) own_fork(o, self);
      break;
    default: {
      int status;
      pid_t pid;

      while ((pid = waitpid(-1, &status, WNOHANG)) > 0) check_end(pid, status);
      break;
    }
  }
}

static void own_start(struct own* o, int devices, char (*nodes)[32], uint64_t from) {
  size_t bytes = (size_t)k_own_pages * k_page;
  char* at;

  memset(o, 0, sizeof(*o));
  o->r.state = from;
  o->devices = devices;
  memcpy(o->nodes, nodes, sizeof(o->nodes));
  for (int d = 0; d < k_devices; d++) o->fds[d] = -1;
  at = mmap(NULL, bytes + k_block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  o->status =
      mmap(NULL, k_own_pages + k_buffer_pages * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED || o->status == MAP_FAILED || pipe2(o->pipe, O_NONBLOCK | O_CLOEXEC)) fail("no memory to start");
  o->buffer = (uint64_t*)(o->status + k_own_pages / k_page * k_page + k_page);
  o->base = (char*)(((uintptr_t)at + k_block - 1) / k_block * k_block);
  own_reset(o, 0, k_own_pages);
}

#endif
