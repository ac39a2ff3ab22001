/* SPDX-License-Identifier: MIT */
/*
 * vm-flags: -l:libhsakmt.so.1
 *
 * AMD's real libhsakmt over a real /dev/kfd without a GPU: it opens, reads a topology of CPU nodes, and refuses what needs a
 * GPU. The stand-in for it answers likewise. Declared here, so that no header is needed.
 */
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
  uint32_t nodes, oem, id, revision;
} SystemProperties;
typedef struct {
  uint32_t type, value;
} SvmAttribute;

int hsaKmtOpenKFD(void);
int hsaKmtCloseKFD(void);
int hsaKmtAcquireSystemProperties(SystemProperties*);
int hsaKmtSVMSetAttr(void*, uint64_t, unsigned, SvmAttribute*);
int hsaKmtSVMGetAttr(void*, uint64_t, unsigned, SvmAttribute*);
int hsaKmtGetXNACKMode(int32_t*);
int hsaKmtSetXNACKMode(int32_t);

static int bad;

static void expect(const char* what, int status, int works) {
  const int right = (status == 0) == works;
  printf("libhsakmt: %s: status %d%s\n", what, status, right ? "" : "   UNEXPECTED");
  bad |= !right;
}

int main(void) {
  SystemProperties properties = {0};
  SvmAttribute granularity = {7, 9}, prefetch = {1, 0}, access = {2, 1};
  int32_t xnack = 0;
  const long page = sysconf(_SC_PAGESIZE);
  void* memory = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  expect("OpenKFD", hsaKmtOpenKFD(), 1);
  expect("AcquireSystemProperties", hsaKmtAcquireSystemProperties(&properties), 1);
  printf("libhsakmt: %u nodes\n", properties.nodes);
  bad |= properties.nodes < 1;
  expect("SVMGetAttr, in a kernel without HSA_AMD_SVM", hsaKmtSVMGetAttr(memory, page, 1, &granularity), 0);
  expect("SVMSetAttr, prefetch to the CPU's node, likewise", hsaKmtSVMSetAttr(memory, page, 1, &prefetch), 0);
  expect("SVMSetAttr, access for a node that is not there", hsaKmtSVMSetAttr(memory, page, 1, &access), 0);
  expect("GetXNACKMode", hsaKmtGetXNACKMode(&xnack), 0);
  expect("SetXNACKMode", hsaKmtSetXNACKMode(1), 0);
  expect("CloseKFD", hsaKmtCloseKFD(), 1);
  return bad;
}
