/* SPDX-License-Identifier: MIT */
/*
 * A 32-bit program against hmmrt_shim.ko: rules32 NODE. Exits with 0, or with the number of the step that failed; 77 if
 * the device has no memory. It needs no 32-bit C library: only the compiler's -m32.
 * vm-flags: -m32 -nostdlib -static -ffreestanding -fno-builtin -fno-stack-protector -fno-pie -no-pie -idirafter /usr/include/x86_64-linux-gnu
 */
#include "hmmrt_shim.h"

_Static_assert(sizeof(void*) == 4, "build with -m32");

enum { k_open = 5, k_exit = 1, k_ioctl = 54, k_munmap = 91, k_mmap2 = 192, k_page = 4096, k_pages = 600 };

static long call(long number, long a, long b, long c, long d, long e) {
  long result = number;
  __asm__ volatile("int $0x80" : "+a"(result) : "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
  return result;
}

static unsigned char status[k_pages];

static int steps(const char* node) {
  struct hmmrt_shim_query query = {0};
  struct hmmrt_shim_bind bind = {.eventfd = -1};
  const long fd = call(k_open, (long)node, 2, 0, 0, 0);
  if (fd < 0) return 1;
  if (call(k_ioctl, fd, (long)HMMRT_SHIM_QUERY, (long)&query, 0, 0)) return 2;
  if (query.abi_major != HMMRT_SHIM_ABI_MAJOR || query.page_shift != 12) return 3;
  if (call(k_ioctl, fd, (long)HMMRT_SHIM_BIND, (long)&bind, 0, 0)) return 4;
  if (!query.devmem_pages) return 77;

  char* memory = (char*)call(k_mmap2, 0, k_pages * k_page, 3, 0x22, -1);
  if ((unsigned long)memory > -4096ul) return 5;
  for (int i = 0; i < k_pages; i++) *(int*)(memory + i * k_page) = i;
  struct hmmrt_shim_range range = {
      .addr = (unsigned long)memory, .npages = k_pages, .status_ptr = (unsigned long)status};
  struct hmmrt_shim_ranges ranges = {.ranges_ptr = (unsigned long)&range, .count = 1};
  if (call(k_ioctl, fd, (long)HMMRT_SHIM_TO_DEV, (long)&ranges, 0, 0) || range.done != k_pages) return 6;
  for (int i = 0; i < k_pages; i++)
    if (status[i] != HMMRT_SHIM_DONE) return 7;

  unsigned value = 0;
  struct hmmrt_shim_access access[2] = {
      {.addr = (unsigned long)memory + 9 * k_page, .len = 4, .op = HMMRT_SHIM_OP_ADD, .arg0 = 1000},
      {.addr = (unsigned long)memory + 10 * k_page, .buf = (unsigned long)&value, .len = 4, .op = HMMRT_SHIM_OP_READ},
  };
  struct hmmrt_shim_accesses accesses = {.accesses_ptr = (unsigned long)access, .count = 2};
  if (call(k_ioctl, fd, (long)HMMRT_SHIM_ACCESS, (long)&accesses, 0, 0) || accesses.failed) return 8;
  if (value != 10 || access[0].out != 9) return 9;
  for (int i = 0; i < k_pages; i++)
    if (*(volatile int*)(memory + i * k_page) != i + (i == 9 ? 1000 : 0)) return 10;

  /* Beyond what a 32-bit process can have; a pad; a pointer with bits that a 32-bit one has not. */
  range = (struct hmmrt_shim_range){.addr = 1ull << 32, .npages = 1};
  if (call(k_ioctl, fd, (long)HMMRT_SHIM_TO_DEV, (long)&ranges, 0, 0) != -22) return 11;
  range = (struct hmmrt_shim_range){.addr = (unsigned long)memory, .npages = 1, .pad1 = 1};
  if (call(k_ioctl, fd, (long)HMMRT_SHIM_TO_DEV, (long)&ranges, 0, 0) != -22) return 12;
  ranges.ranges_ptr |= 1ull << 32;
  if (call(k_ioctl, fd, (long)HMMRT_SHIM_TO_DEV, (long)&ranges, 0, 0) != -14) return 13;
  if (call(k_munmap, (long)memory, k_pages * k_page, 0, 0, 0)) return 14;
  return 0;
}

/* Called by _start with the arguments, as the kernel left them. */
__attribute__((used)) static void begin(long* stack) {
  call(k_exit, stack[0] < 2 ? 99 : steps((const char*)stack[2]), 0, 0, 0, 0);
}
__asm__(".globl _start\n_start:\n mov %esp, %eax\n push %eax\n call begin\n");

void* memset(void* at, int byte, __SIZE_TYPE__ n) {
  for (__SIZE_TYPE__ i = 0; i < n; i++) ((volatile char*)at)[i] = (char)byte;
  return at;
}
void* memcpy(void* to, const void* from, __SIZE_TYPE__ n) {
  for (__SIZE_TYPE__ i = 0; i < n; i++) ((volatile char*)to)[i] = ((const char*)from)[i];
  return to;
}
