/* SPDX-License-Identifier: MIT */
/*
 * What the module refuses: bad pads, flags, lengths and pointers, foreign and stale descriptors; and what 32-bit callers
 * get. See rules.h for how to run it.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "rules.h"

static void refused_with(int device, unsigned long call, void* argument, int want) {
  errno = 0;
  const int got = ioctl(device, call, argument) ? errno : 0;
  if (got != want) printf("  call %#lx: errno %d, not %d\n", call & 0xff, got, want);
  CHECK(got == want);
}

/* ---- pads and flags ---------------------------------------------------------------------------- */

/* Sets the 4-byte word at `offset` of a valid argument to `value`: the call must say EINVAL. */
static void bad_word(unsigned long call, const void* valid, size_t bytes, size_t offset, uint32_t value) {
  char* copy = malloc(bytes);
  memcpy(copy, valid, bytes);
  memcpy(copy + offset, &value, 4);
  refused_with(fd, call, copy, EINVAL);
  free(copy);
}
#define BAD_PAD(call, valid, member)                     \
  for (size_t o = 0; o < sizeof((valid).member); o += 4) \
    for (unsigned bit = 0; bit < 32; bit += 31)          \
  bad_word(call, &(valid), sizeof(valid), (size_t)((char*)&(valid).member - (char*)&(valid)) + o, 1u << bit)

static void pads_and_unknown_flags_must_be_zero(void) {
  char* p = map_pages(4);
  struct hmmrt_shim_query q = {0};
  BAD_PAD(HMMRT_SHIM_QUERY, q, pad);
  struct hmmrt_shim_evict evict = {.npages = 1};
  BAD_PAD(HMMRT_SHIM_EVICT, evict, pad0);
  BAD_PAD(HMMRT_SHIM_EVICT, evict, pad1);
  bad_word(HMMRT_SHIM_EVICT, &evict, sizeof(evict), offsetof(struct hmmrt_shim_evict, flags), 2);
  struct hmmrt_shim_wait wait = {0};
  BAD_PAD(HMMRT_SHIM_WAIT, wait, pad0);
  struct hmmrt_shim_inject inject = {0};
  BAD_PAD(HMMRT_SHIM_INJECT, inject, pad0);
  bad_word(HMMRT_SHIM_INJECT, &inject, sizeof(inject), offsetof(struct hmmrt_shim_inject, kind),
           HMMRT_SHIM_INJECT_KINDS);

  static const unsigned long calls[] = {HMMRT_SHIM_FAULT, HMMRT_SHIM_SNAPSHOT, HMMRT_SHIM_TO_DEV, HMMRT_SHIM_TO_SYS,
                                        HMMRT_SHIM_EXCLUSIVE};
  for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
    struct hmmrt_shim_range range = {.addr = (uintptr_t)p, .npages = 4};
    struct hmmrt_shim_ranges ranges = {.ranges_ptr = (uintptr_t)&range, .count = 1};
    if (calls[i] == HMMRT_SHIM_EXCLUSIVE && !(query.caps & HMMRT_SHIM_CAP_EXCLUSIVE)) continue;
    BAD_PAD(calls[i], ranges, flags);
    BAD_PAD(calls[i], ranges, pad0);
    BAD_PAD(calls[i], ranges, pad1);
    range.pad0 = 1;
    refused_with(fd, calls[i], &ranges, EINVAL);
    range.pad0 = 0;
    range.pad1 = 1u << 31;
    refused_with(fd, calls[i], &ranges, EINVAL);
    range.pad1 = 0;
    for (unsigned bit = 0; bit < 32; bit++) {
      const uint32_t to_dev_flags =
          HMMRT_SHIM_RANGE_NO_POPULATE | HMMRT_SHIM_RANGE_EVICT | HMMRT_SHIM_RANGE_GRANULE_MASK;
      const uint32_t known = calls[i] == HMMRT_SHIM_FAULT    ? HMMRT_SHIM_RANGE_WRITE
                             : calls[i] == HMMRT_SHIM_TO_DEV ? to_dev_flags
                                                             : 0;
      range.flags = 1u << bit;
      refused_with(fd, calls[i], &ranges, range.flags & known ? 0 : EINVAL);
    }
    range.flags = 12u << HMMRT_SHIM_RANGE_GRANULE_SHIFT; /* no such order */
    refused_with(fd, calls[i], &ranges, EINVAL);
  }

  struct hmmrt_shim_access access = {.addr = (uintptr_t)p, .buf = (uintptr_t)p + k_page, .len = 8};
  struct hmmrt_shim_accesses accesses = {.accesses_ptr = (uintptr_t)&access, .count = 1};
  BAD_PAD(HMMRT_SHIM_ACCESS, accesses, flags);
  BAD_PAD(HMMRT_SHIM_ACCESS, accesses, pad0);
  access.flags = 1u << 5;
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);
  access.flags = HMMRT_SHIM_ACCESS_EXCLUSIVE; /* reads are not exclusive */
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);
  access.flags = 0;
  access.arg0 = 1;
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);
  access.arg0 = 0;
  access.op = 5;
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);

  const int raw = open(node, O_RDWR | O_CLOEXEC);
  struct hmmrt_shim_bind bind = {.eventfd = -1};
  const int bound = fd;
  fd = raw;
  BAD_PAD(HMMRT_SHIM_BIND, bind, pad0);
  BAD_PAD(HMMRT_SHIM_BIND, bind, pad);
  bad_word(HMMRT_SHIM_BIND, &bind, sizeof(bind), offsetof(struct hmmrt_shim_bind, flags), 8);
  fd = bound;
}

/* ---- lengths and pointers ---------------------------------------------------------------------- */

static void ranges_are_bounded(void) {
  char* p = map_pages(4);
  CHECK_EQ(to_dev(fd, p, 0), -EINVAL);
  CHECK_EQ(to_dev(fd, p + 1, 1), -EINVAL);
  CHECK_EQ(to_dev(fd, p, HMMRT_SHIM_MAX_PAGES + 1), -EINVAL);
  CHECK_EQ(to_dev(fd, p, ~0ull), -EINVAL);
  CHECK_EQ(to_dev(fd, p, 1ull << 52), -EINVAL);
  CHECK_EQ(to_dev(fd, (void*)-(uintptr_t)k_page, 1), -EINVAL);
  CHECK_EQ(to_dev(fd, (void*)-(uintptr_t)k_page, 2), -EINVAL);
  CHECK_EQ(to_dev(fd, (void*)0xffff888000000000, 1), -EINVAL);
  CHECK_EQ(to_dev(fd, (void*)0xfffffffffff000, 1), -EINVAL);
  struct hmmrt_shim_range range = {.addr = (uintptr_t)p, .npages = 4};
  struct hmmrt_shim_ranges ranges = {.ranges_ptr = (uintptr_t)&range};
  refused_with(fd, HMMRT_SHIM_TO_DEV, &ranges, EINVAL);
  ranges.count = HMMRT_SHIM_MAX_BATCH + 1;
  refused_with(fd, HMMRT_SHIM_TO_DEV, &ranges, E2BIG);
  ranges.count = ~0u;
  refused_with(fd, HMMRT_SHIM_TO_DEV, &ranges, E2BIG);
  /* A good range, then a bad one: the first is served, and that is said. */
  struct hmmrt_shim_range two[2] = {range, {.addr = 1, .npages = 1}};
  ranges = (struct hmmrt_shim_ranges){.ranges_ptr = (uintptr_t)two, .count = 2};
  refused_with(fd, HMMRT_SHIM_TO_DEV, &ranges, EINVAL);
  CHECK_EQ(ranges.served, 1);
  CHECK_EQ(two[0].done, 4);
}

static void accesses_are_bounded(void) {
  char* p = map_pages(4);
  struct hmmrt_shim_access good = {.addr = (uintptr_t)p, .buf = (uintptr_t)p + k_page, .len = 8}, access = good;
  struct hmmrt_shim_accesses accesses = {.accesses_ptr = (uintptr_t)&access, .count = 1};
  static const uint64_t lengths[] = {0, HMMRT_SHIM_MAX_ACCESS + 1, ~0ull, 1ull << 63};
  for (int i = 0; i < 4; i++) {
    access.len = lengths[i];
    refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);
  }
  access = good;
  access.addr = ~0ull;
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);
  access = (struct hmmrt_shim_access){.addr = (uintptr_t)p + 4, .len = 8, .op = HMMRT_SHIM_OP_ADD};
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);
  access.addr = (uintptr_t)p;
  access.len = 2;
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, EINVAL);
  accesses.count = HMMRT_SHIM_MAX_BATCH + 1;
  refused_with(fd, HMMRT_SHIM_ACCESS, &accesses, E2BIG);
  /* The buffer is at fault, or the address: said by the access, not by the call. */
  access = good;
  access.buf = 8;
  CHECK_EQ(accessed(fd, &access), -EFAULT);
  access = good;
  access.addr = k_page;
  CHECK_EQ(accessed(fd, &access), -EFAULT);
  /* From the last mapped page into nothing: what could be read was. */
  CHECK(munmap(p + 2 * k_page, 2 * k_page) == 0);
  access = (struct hmmrt_shim_access){
      .addr = (uintptr_t)p + k_page, .buf = (uintptr_t)malloc(2 * k_page), .len = 2 * k_page};
  CHECK_EQ(accessed(fd, &access), -EFAULT);
  CHECK_EQ(access.done, k_page);
}

static void bad_pointers_are_efault(void) {
  static const unsigned long calls[] = {HMMRT_SHIM_QUERY,  HMMRT_SHIM_FAULT,  HMMRT_SHIM_TO_DEV,
                                        HMMRT_SHIM_ACCESS, HMMRT_SHIM_EVICT,  HMMRT_SHIM_WAIT,
                                        HMMRT_SHIM_INJECT, HMMRT_SHIM_TO_SYS, HMMRT_SHIM_SNAPSHOT};
  for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
    refused_with(fd, calls[i], NULL, EFAULT);
    refused_with(fd, calls[i], (void*)0xffff888000000000, EFAULT);
  }
  char* p = map_pages(2);
  struct hmmrt_shim_range range = {.addr = (uintptr_t)p, .npages = 2, .status_ptr = 64};
  struct hmmrt_shim_ranges ranges = {.ranges_ptr = 4096, .count = 1};
  fill(p, 2, 1);
  refused_with(fd, HMMRT_SHIM_TO_DEV, &ranges, EFAULT);
  ranges.ranges_ptr = (uintptr_t)&range;
  refused_with(fd, HMMRT_SHIM_TO_DEV, &ranges, EFAULT);
  CHECK_FILLED(p, 2, 1);
  refused_with(fd, _IO(HMMRT_SHIM_MAGIC, 0x0b), NULL, ENOTTY);
  refused_with(fd, _IOWR('H', 0, struct hmmrt_shim_query), NULL, ENOTTY);
}

static void on_signal(int unused) { (void)unused; }

/* A walk over a terabyte of nothing, which a signal ends. */
static void a_huge_range_is_interrupted_by_a_signal(void) {
  struct hmmrt_shim_range ranges_all[64];
  struct hmmrt_shim_ranges ranges = {.ranges_ptr = (uintptr_t)ranges_all, .count = 64};
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, NULL);
  for (int i = 0; i < 64; i++)
    ranges_all[i] = (struct hmmrt_shim_range){.addr = 1ull << 40, .npages = HMMRT_SHIM_MAX_PAGES};
  const pid_t parent = getpid(), pid = forked();
  if (pid == 0) {
    usleep(300000);
    kill(parent, SIGUSR1);
    _exit(0);
  }
  const double since = seconds();
  const int got = ioctl(fd, HMMRT_SHIM_FAULT, &ranges) ? errno : 0;
  CHECK_EQ(got, EINTR);
  CHECK(seconds() < since + 10);
  CHECK(ranges.served < 64);
  expect_exit(pid, 0);
}

static void a_window_bounds_what_a_file_may_name(void) {
  char* p = map_pages(8);
  const int raw = open(node, O_RDWR | O_CLOEXEC);
  struct hmmrt_shim_bind bind = {.eventfd = -1, .va_start = (uintptr_t)p + 1, .va_len = k_page};
  refused_with(raw, HMMRT_SHIM_BIND, &bind, EINVAL);
  bind.va_start = (uintptr_t)p;
  bind.va_len = ~0ull << 12;
  refused_with(raw, HMMRT_SHIM_BIND, &bind, EINVAL);
  bind.va_start = (uintptr_t)p + 2 * k_page;
  bind.va_len = 4 * k_page;
  CHECK(ioctl(raw, HMMRT_SHIM_BIND, &bind) == 0);
  fill(p, 8, 2);
  char byte = 0;
  CHECK_EQ(to_dev(raw, p, 1), -EINVAL);
  CHECK_EQ(to_dev(raw, p + 2 * k_page, 5), -EINVAL);
  CHECK_EQ(device_read(raw, p + k_page, &byte, 1), -EINVAL);
  CHECK_EQ(device_read(raw, p + 6 * k_page - 1, &byte, 2), -EINVAL);
  CHECK_EQ(to_dev(raw, p + 2 * k_page, 4), 4);
  CHECK_EQ(device_read(raw, p + 6 * k_page - 1, &byte, 1), 0);
}

/* ---- descriptors ------------------------------------------------------------------------------- */

static void calls_before_bind_say_so(void) {
  const int raw = open(node, O_RDWR | O_CLOEXEC);
  char* p = map_pages(1);
  struct hmmrt_shim_evict evict = {.npages = 1};
  struct hmmrt_shim_wait wait = {0};
  CHECK_EQ(to_dev(raw, p, 1), -ENOTCONN);
  CHECK_EQ(device_write(raw, p, "x", 1), -ENOTCONN);
  refused_with(raw, HMMRT_SHIM_EVICT, &evict, ENOTCONN);
  refused_with(raw, HMMRT_SHIM_WAIT, &wait, ENOTCONN);
  CHECK(mmap(NULL, k_page, PROT_READ, MAP_SHARED, raw, 0) == MAP_FAILED && errno == ENOTCONN);
  CHECK_EQ(query_of(raw).my_pages, 0);
}

static void bind_refuses_foreign_descriptors_and_a_second_time(void) {
  const int raw = open(node, O_RDWR | O_CLOEXEC);
  struct hmmrt_shim_bind bind = {.eventfd = raw};
  refused_with(raw, HMMRT_SHIM_BIND, &bind, EINVAL); /* no eventfd */
  bind.eventfd = 0x7ffffff;
  refused_with(raw, HMMRT_SHIM_BIND, &bind, EBADF);
  bind.eventfd = -2;
  refused_with(raw, HMMRT_SHIM_BIND, &bind, EINVAL);
  bind = (struct hmmrt_shim_bind){.eventfd = -1, .ring_order = HMMRT_SHIM_RING_ORDER_MAX + 1};
  refused_with(raw, HMMRT_SHIM_BIND, &bind, EINVAL);
  bind = (struct hmmrt_shim_bind){
      .eventfd = eventfd(0, EFD_CLOEXEC), .ring_order = 4, .flags = HMMRT_SHIM_BIND_EVENTS_ALL};
  refused_with(raw, HMMRT_SHIM_BIND, &bind, 0);
  refused_with(raw, HMMRT_SHIM_BIND, &bind, EBUSY);
}

static void a_descriptor_sent_to_another_process_is_refused(void) {
  int ends[2];
  char room[CMSG_SPACE(sizeof(int))] = {0}, byte = 'x';
  struct iovec iov = {&byte, 1};
  struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
  char* p = map_pages(1);
  fill(p, 1, 3);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const pid_t pid = forked();
  if (pid == 0) {
    CHECK(recvmsg(ends[1], &message, 0) == 1);
    const int got = *(int*)CMSG_DATA(CMSG_FIRSTHDR(&message));
    CHECK_EQ(device_write(got, p, "other", 5), -EPERM);
    CHECK_EQ(device_read(got, p, &byte, 1), -EPERM);
    _exit(0);
  }
  struct cmsghdr* control = CMSG_FIRSTHDR(&message);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof(int));
  *(int*)CMSG_DATA(control) = fd;
  CHECK(sendmsg(ends[0], &message, 0) == 1);
  expect_exit(pid, 0);
  CHECK_FILLED(p, 1, 3);
}

static const char* self;

/* The program again, after execve, with the descriptor of its former address space. */
static int after_exec(int stale) {
  char* p = map_pages(1);
  CHECK_EQ(to_dev(stale, p, 1), -ESRCH);
  CHECK_EQ(device_write(stale, p, "x", 1), -ESRCH);
  CHECK_EQ(query_of(stale).my_pages, 0);
  return 0;
}

static void a_descriptor_kept_over_exec_is_refused(void) {
  const pid_t pid = forked();
  if (pid == 0) {
    char number[16];
    const int kept = open_bound(node);
    char* p = map_pages(64);
    fill(p, 64, 4);
    CHECK_EQ(to_dev(kept, p, 64), 64);
    CHECK(fcntl(kept, F_SETFD, 0) == 0);
    snprintf(number, sizeof(number), "%d", kept);
    execl(self, self, "--after-exec", number, (char*)NULL);
    _exit(9);
  }
  expect_exit(pid, 0);
}

/* ---- 32-bit callers ---------------------------------------------------------------------------- */

/* The 32-bit system call, from a 64-bit program: it takes the module's compat path. */
static long ioctl32(int device, unsigned long call, void* argument) {
  long result = 54;
  __asm__ volatile("int $0x80"
                   : "+a"(result)
                   : "b"((long)device), "c"(call & 0xffffffff), "d"((uintptr_t)argument)
                   : "memory", "r8", "r9", "r10", "r11", "cc");
  return (int)result;
}

/* rules32.c is a real 32-bit program; this one also has pointers above 4 GiB inside its structures. */
static void a_32_bit_call_does_the_same(void) {
  char* low = mmap(NULL, 8 * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  CHECK(low != MAP_FAILED);
  const pid_t pid = forked();
  if (pid == 0) {
    ioctl32(fd, HMMRT_SHIM_QUERY, low);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid);
  if (!WIFEXITED(status)) skip("this kernel takes no 32-bit system calls");

  const int raw = open(node, O_RDWR | O_CLOEXEC);
  struct hmmrt_shim_query* q = (void*)low;
  struct hmmrt_shim_bind* bind = (void*)low;
  struct hmmrt_shim_ranges* ranges = (void*)low;
  struct hmmrt_shim_accesses* accesses = (void*)low;
  char* high = map_pages(32);
  CHECK_EQ(ioctl32(raw, HMMRT_SHIM_QUERY, q), 0);
  CHECK_EQ(q->devmem_pages, query.devmem_pages);
  CHECK_EQ(q->abi_major, HMMRT_SHIM_ABI_MAJOR);
  memset(low, 0, k_page);
  bind->eventfd = -1;
  CHECK_EQ(ioctl32(raw, HMMRT_SHIM_BIND, bind), 0);
  memset(low, 0, k_page);
  fill(high, 32, 5);
  struct hmmrt_shim_range range = {.addr = (uintptr_t)high, .npages = 32};
  *ranges = (struct hmmrt_shim_ranges){.ranges_ptr = (uintptr_t)&range, .count = 1};
  CHECK_EQ(ioctl32(raw, HMMRT_SHIM_TO_DEV, ranges), 0);
  CHECK_EQ(range.done, 32);
  CHECK_EQ(on_device(fd, high, 32), 32);
  struct hmmrt_shim_access access = {.addr = (uintptr_t)high + 16, .len = 4, .op = HMMRT_SHIM_OP_ADD, .arg0 = 7};
  *accesses = (struct hmmrt_shim_accesses){.accesses_ptr = (uintptr_t)&access, .count = 1};
  CHECK_EQ(ioctl32(raw, HMMRT_SHIM_ACCESS, accesses), 0);
  CHECK_EQ(access.err, 0);
  CHECK_EQ(access.out, word_of(4, 5));
  CHECK_EQ(((uint32_t*)high)[4], word_of(4, 5) + 7);
  accesses->pad0 = 1;
  CHECK_EQ(ioctl32(raw, HMMRT_SHIM_ACCESS, accesses), -EINVAL);
  CHECK_EQ(ioctl32(raw, HMMRT_SHIM_ACCESS, (void*)8), -EFAULT);
}

static const struct test tests[] = {
    TEST(pads_and_unknown_flags_must_be_zero),
    TEST(ranges_are_bounded),
    TEST(accesses_are_bounded),
    TEST(bad_pointers_are_efault),
    TEST(a_huge_range_is_interrupted_by_a_signal),
    TEST(a_window_bounds_what_a_file_may_name),
    TEST(calls_before_bind_say_so),
    TEST(bind_refuses_foreign_descriptors_and_a_second_time),
    TEST(a_descriptor_sent_to_another_process_is_refused),
    TEST(a_descriptor_kept_over_exec_is_refused),
    TEST(a_32_bit_call_does_the_same),
};

int main(int argc, char** argv) {
  static char path[256];
  self = realpath("/proc/self/exe", path);
  if (argc == 3 && !strcmp(argv[1], "--after-exec")) return after_exec(atoi(argv[2]));
  return rules_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));
}
