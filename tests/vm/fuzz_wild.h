/* SPDX-License-Identifier: MIT */
/*
 * Wild memory: a region that all threads of a process map, unmap, move, protect, advise and touch without asking each
 * other, with every kind of mapping in it, and calls on the devices whose arguments are right, nearly right or random.
 * Nothing is known about its contents; the machine must survive.
 *
 * Descriptors used here are bound to this region, so that no random device write lands in owned memory; and what the
 * kernel writes back (results, statuses, data read) goes into this region or nowhere.
 */
#ifndef HMMRT_TESTS_VM_FUZZ_WILD_H
#define HMMRT_TESTS_VM_FUZZ_WILD_H

#include <poll.h>
#include <stddef.h>

#include "fuzz_base.h"

enum { k_wild_pages = 4096, k_wild_fds = 12 };

struct wild {
  char* base; /* k_wild_pages, 2 MiB aligned */
  int devices;
  char nodes[k_devices][32];
  atomic_int fds[k_wild_fds]; /* -1: closed */
  int file;                   /* a memfd as large as the region */
};

static inline char* wild_page(struct wild* w, struct rng* r) { return w->base + below(r, k_wild_pages) * k_page; }
static size_t wild_length(struct wild* w, struct rng* r, const char* at) {
  size_t n = length(r, 2048), rest = (size_t)(w->base + (size_t)k_wild_pages * k_page - at) / k_page;

  return n < rest ? n : rest;
}

/* An address or a length that is wrong in some way. */
static uint64_t odd_number(struct rng* r) {
  static const uint64_t edges[] = {0, 1, 7, 8, 4095, 4096, 4097, 1ull << 31, 1ull << 32, 1ull << 28, (1ull << 28) + 1,
                                   1ull << 47, (1ull << 47) - 4096, ~0ull, ~0ull - 4095, 1ull << 63, 1ull << 40};

  return one_in(r, 3) ? number(r) : edges[below(r, sizeof(edges) / sizeof(*edges))];
}
static uint64_t wild_address(struct wild* w, struct rng* r) {
  uint64_t at = (uintptr_t)wild_page(w, r);

  if (one_in(r, 20)) return odd_number(r);
  return one_in(r, 10) ? at + below(r, k_page) : at;
}
/* Where the kernel may write: the region, nowhere, or past the end of user space. */
static uint64_t wild_buffer(struct wild* w, struct rng* r) {
  if (one_in(r, 20)) return one_in(r, 2) ? below(r, 4096) : 0x8000000000000000ull | number(r);
  return (uintptr_t)wild_page(w, r) + (one_in(r, 2) ? below(r, k_page) : 0);
}
/* A field that is nearly always what it should be. */
static uint64_t field(struct rng* r, uint64_t right) { return one_in(r, 40) ? odd_number(r) : right; }

/* Writes into the region, if it is there. */
static __attribute__((noinline)) void put_wild(void* to, const void* from, size_t bytes) {
  if (!sigsetjmp(fault_return, 0)) {
    fault_expected = 1;
    memcpy(to, from, bytes);
  }
  fault_expected = 0;
}

/* ---- calls ---- */

/* The argument of a call, put into `arg` (256 bytes); lists of ranges and accesses into the region. */
static void wild_argument(struct wild* w, struct rng* r, unsigned long command, void* arg) {
  char* list = wild_page(w, r);
  uint32_t many = (uint32_t)length(r, one_in(r, 50) ? 5000 : 8);

  memset(arg, 0, 256);
  switch (command) {
    case HMMRT_SHIM_BIND: {
      struct hmmrt_shim_bind* b = arg;

      b->flags = (uint32_t)field(r, below(r, 8));
      b->ring_order = (uint32_t)field(r, below(r, 8));
      b->eventfd = one_in(r, 2) ? -1 : (int)field(r, below(r, 64));
      b->va_start = field(r, (uintptr_t)w->base);
      b->va_len = field(r, (uint64_t)k_wild_pages * k_page);
      /* A window that is not the region's would let this file write anywhere. */
      if (b->va_start != (uintptr_t)w->base || b->va_len != (uint64_t)k_wild_pages * k_page) b->pad0 = 1;
      break;
    }
    case HMMRT_SHIM_FAULT:
    case HMMRT_SHIM_SNAPSHOT:
    case HMMRT_SHIM_TO_DEV:
    case HMMRT_SHIM_TO_SYS:
    case HMMRT_SHIM_EXCLUSIVE: {
      struct hmmrt_shim_ranges* a = arg;

      *a = (struct hmmrt_shim_ranges){.ranges_ptr = one_in(r, 40) ? wild_buffer(w, r) : (uintptr_t)list,
                                      .count = (uint32_t)field(r, many), .flags = (uint32_t)field(r, 0),
                                      .pad1 = field(r, 0)};
      for (uint32_t i = 0; i < many && i < 8; i++) {
        char* at = wild_page(w, r);
        struct hmmrt_shim_range range = {.addr = one_in(r, 40) ? wild_address(w, r) : (uintptr_t)at,
                                         .npages = field(r, wild_length(w, r, at)),
                                         .flags = (uint32_t)field(r, 0), .pad0 = (uint32_t)field(r, 0),
                                         .cookie = number(r),
                                         .status_ptr = one_in(r, 3) ? 0 : wild_buffer(w, r)};

        if (command == HMMRT_SHIM_TO_DEV && one_in(r, 2)) range.flags = (uint32_t)below(r, 16) << 8 | (uint32_t)below(r, 4) << 1;
        if (command == HMMRT_SHIM_FAULT && one_in(r, 2)) range.flags = 1;
        put_wild(list + i * sizeof(range), &range, sizeof(range));
      }
      break;
    }
    case HMMRT_SHIM_ACCESS: {
      *(struct hmmrt_shim_accesses*)arg = (struct hmmrt_shim_accesses){
          .accesses_ptr = one_in(r, 40) ? wild_buffer(w, r) : (uintptr_t)list,
          .count = (uint32_t)field(r, many), .flags = (uint32_t)field(r, 0)};
      for (uint32_t i = 0; i < many && i < 8; i++) {
        struct hmmrt_shim_access a = {.addr = wild_address(w, r), .op = (uint32_t)field(r, below(r, 5)),
                                      .flags = (uint32_t)field(r, below(r, 4)), .buf = wild_buffer(w, r)};

        a.len = field(r, length(r, 1u << 20));
        if (a.op == HMMRT_SHIM_OP_ADD || a.op == HMMRT_SHIM_OP_CAS) a.len = field(r, one_in(r, 2) ? 4 : 8);
        if (a.op >= HMMRT_SHIM_OP_ADD && !one_in(r, 20)) {
          a.buf = 0;
          a.addr &= ~7ull;
          a.arg0 = below(r, 4);
          a.arg1 = a.op == HMMRT_SHIM_OP_CAS ? below(r, 4) : 0;
        }
        put_wild(list + i * sizeof(a), &a, sizeof(a));
      }
      break;
    }
    case HMMRT_SHIM_EVICT:
      *(struct hmmrt_shim_evict*)arg = (struct hmmrt_shim_evict){.npages = one_in(r, 4) ? ~0ull : length(r, 4096),
                                                                 .flags = (uint32_t)field(r, below(r, 2)),
                                                                 .pad1 = field(r, 0)};
      break;
    case HMMRT_SHIM_WAIT:
      *(struct hmmrt_shim_wait*)arg = (struct hmmrt_shim_wait){
          .seq = field(r, below(r, 200)), .timeout_ns = one_in(r, 20) ? -1 : (int64_t)below(r, 3000000),
          .pad0 = field(r, 0)};
      break;
    case HMMRT_SHIM_INJECT:
      *(struct hmmrt_shim_inject*)arg = (struct hmmrt_shim_inject){
          .kind = (uint32_t)field(r, below(r, HMMRT_SHIM_INJECT_KINDS)), .skip = field(r, length(r, 512)),
          .count = length(r, 32)};
      break;
    default: break;
  }
}

static void wild_call(struct wild* w, struct rng* r) {
  static const unsigned long commands[] = {
      HMMRT_SHIM_QUERY,  HMMRT_SHIM_BIND,   HMMRT_SHIM_FAULT, HMMRT_SHIM_FAULT,    HMMRT_SHIM_SNAPSHOT,
      HMMRT_SHIM_TO_DEV, HMMRT_SHIM_TO_DEV, HMMRT_SHIM_TO_DEV, HMMRT_SHIM_TO_DEV,  HMMRT_SHIM_TO_SYS,
      HMMRT_SHIM_ACCESS, HMMRT_SHIM_ACCESS, HMMRT_SHIM_ACCESS, HMMRT_SHIM_EXCLUSIVE, HMMRT_SHIM_EVICT,
      HMMRT_SHIM_WAIT,   HMMRT_SHIM_INJECT};
  unsigned long command = commands[below(r, sizeof(commands) / sizeof(*commands))];
  uint64_t arg[32];
  int fd = atomic_load(&w->fds[below(r, k_wild_fds)]), starved;

  if (fd < 0) return;
  wild_argument(w, r, command, arg);
  /* Some in the region, where it may vanish during the call; some full of nonsense; some of another size or number. */
  void* at = arg;
  if (one_in(r, 8)) {
    at = wild_page(w, r) + (one_in(r, 2) ? k_page - 24 : 0);
    put_wild(at, arg, 64);
  }
  if (one_in(r, 100)) command = 0xc000b700ul | below(r, 64) | below(r, 256) << 16;
  if (one_in(r, 100)) at = (void*)(uintptr_t)(one_in(r, 2) ? 8 : 0xffff800000000000ull);
  starved = starving_begin(r);
  if (ioctl(fd, command, at) && errno == EINTR) count(k_interrupted, 1);
  starving_end(starved);
}

/* ---- descriptors ---- */

static void wild_descriptor(struct wild* w, struct rng* r) {
  atomic_int* slot = &w->fds[below(r, k_wild_fds)];
  int fd, none = -1;

  switch (below(r, 4)) {
    case 0:
      fd = atomic_exchange(slot, -1);
      if (fd >= 0) close(fd);
      break;
    case 1:
    case 2: {
      struct hmmrt_shim_bind bind;
      uint64_t room[32];
      int starved = starving_begin(r);

      fd = open(w->nodes[below(r, (uint64_t)w->devices)], O_RDWR | (one_in(r, 2) ? O_CLOEXEC : 0));
      if (fd >= 0 && !one_in(r, 8)) {
        wild_argument(w, r, HMMRT_SHIM_BIND, room);
        memcpy(&bind, room, sizeof(bind));
        ioctl(fd, HMMRT_SHIM_BIND, &bind);
      }
      starving_end(starved);
      if (fd >= 0 && !atomic_compare_exchange_strong(slot, &none, fd)) close(fd);
      break;
    }
    default: {
      struct pollfd p = {.fd = atomic_load(slot), .events = POLLIN};

      if (p.fd >= 0) poll(&p, 1, (int)below(r, 3));
      break;
    }
  }
}

/* The ring: mapped, read and written as nonsense. Its mapping stays in the region until something else comes there. */
static void wild_ring(struct wild* w, struct rng* r) {
  int fd = atomic_load(&w->fds[below(r, k_wild_fds)]);
  char* at = wild_page(w, r);
  size_t n = wild_length(w, r, at);

  if (n > 8) n = 8;
  if (fd < 0 || mmap(at, n * k_page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                     one_in(r, 10) ? k_page : 0) == MAP_FAILED)
    return;
  touch(at, 0);
  touch(at + offsetof(struct hmmrt_shim_ring, tail) + below(r, 8), 1);
}

/* ---- mappings ---- */

static void wild_map(struct wild* w, struct rng* r) {
  static const int protections[] = {PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ,
                                    PROT_NONE, PROT_WRITE, PROT_READ | PROT_EXEC};
  char* at = wild_page(w, r);
  size_t bytes = wild_length(w, r, at) * k_page;
  int prot = protections[below(r, 7)], flags = MAP_FIXED | MAP_NORESERVE, fd = -1;

  if (one_in(r, 2)) { /* whole blocks, so that huge pages have a chance */
    at = w->base + below(r, k_wild_pages / 512) * k_block;
    bytes = k_block;
  }
  switch (below(r, 10)) {
    case 0: flags |= MAP_SHARED | MAP_ANONYMOUS; break;
    case 1: fd = w->file, flags |= MAP_SHARED; break;
    case 2: fd = w->file, flags |= MAP_PRIVATE; break;
    case 3:
      if (one_in(r, 4)) flags |= MAP_HUGETLB;
      flags |= MAP_PRIVATE | MAP_ANONYMOUS;
      break;
    default: flags |= MAP_PRIVATE | MAP_ANONYMOUS | (one_in(r, 8) ? MAP_POPULATE : 0); break;
  }
  if (mmap(at, bytes, prot, flags, fd, 0) != MAP_FAILED && prot & PROT_WRITE && one_in(r, 2))
    madvise(at, bytes, MADV_HUGEPAGE);
}

static void wild_memory(struct wild* w, struct rng* r) {
  static const int advice[] = {MADV_DONTNEED, 8, MADV_COLD, MADV_PAGEOUT, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
                               MADV_MERGEABLE, 13, 22, 23, 25, MADV_WILLNEED, 9 /* REMOVE */, MADV_DONTFORK,
                               MADV_DOFORK, 18 /* WIPEONFORK */, 19 /* KEEPONFORK */, MADV_SEQUENTIAL};
  char *at = wild_page(w, r), *to = wild_page(w, r);
  size_t bytes = wild_length(w, r, at) * k_page;
  int starved = starving_begin(r);

  switch (below(r, 10)) {
    case 0: munmap(at, bytes); break;
    case 1:
    case 2:
    case 3: wild_map(w, r); break;
    case 4: mprotect(at, bytes, (int)below(r, 4)); break;
    case 5:
      if (to + bytes <= w->base + (size_t)k_wild_pages * k_page)
        mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | (one_in(r, 8) ? 4 /* DONTUNMAP */ : 0), to);
      break;
    case 6:
      if (one_in(r, 2))
        mlock(at, bytes < 64 * k_page ? bytes : 64 * k_page);
      else
        munlock(at, bytes);
      break;
    default: madvise(at, bytes, advice[below(r, sizeof(advice) / sizeof(*advice))]); break;
  }
  starving_end(starved);
}

static void wild_touch(struct wild* w, struct rng* r) {
  size_t n = length(r, 256);
  char* at = wild_page(w, r);

  for (; n-- && at < w->base + (size_t)k_wild_pages * k_page; at += k_page) touch(at + below(r, k_page), one_in(r, 2));
}

/* ---- one step ---- */

static void wild_step(struct wild* w, struct rng* r) {
  count(k_wild_ops, 1);
  switch (below(r, 16)) {
    case 0 ... 7: wild_call(w, r); break;
    case 8: wild_descriptor(w, r); break;
    case 9:
      if (one_in(r, 4)) wild_ring(w, r);
      break;
    case 10 ... 12: wild_touch(w, r); break;
    default: wild_memory(w, r); break;
  }
}

static void wild_start(struct wild* w, int devices, char (*nodes)[32]) {
  size_t bytes = (size_t)k_wild_pages * k_page;
  char* at = mmap(NULL, bytes + k_block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  w->devices = devices;
  memcpy(w->nodes, nodes, sizeof(w->nodes));
  for (int i = 0; i < k_wild_fds; i++) atomic_store(&w->fds[i], -1);
  w->file = memfd_create("wild", MFD_CLOEXEC);
  if (at == MAP_FAILED || w->file < 0 || ftruncate(w->file, (off_t)bytes)) fail("no memory to start");
  w->base = (char*)(((uintptr_t)at + k_block - 1) / k_block * k_block);
  if (mmap(w->base, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) ==
      MAP_FAILED)
    fail("no memory to start");
}

#endif
