/* SPDX-License-Identifier: MIT */
/*
 * What a real /dev/kfd without a GPU answers, call by call: its version, and how it refuses SMI events, SVM and the XNACK
 * mode. The runtime's probe and the stand-ins of the tests count on these answers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../runtime/host/kfd/kfd_abi.h"

static int bad;

static void expect(const char* what, int error, int wanted) {
  printf("kfd: %s: %s%s\n", what, error ? strerror(error) : "done", error == wanted ? "" : "   UNEXPECTED");
  bad |= error != wanted;
}

static int call(int fd, unsigned long request, void* argument) { return ioctl(fd, request, argument) ? errno : 0; }

int main(void) {
  struct hmmrt_kfd_version version = {0};
  struct hmmrt_kfd_smi_events events = {0};
  struct hmmrt_kfd_xnack xnack = {.enabled = -1};
  struct hmmrt_kfd_svm svm = {
      .op = HMMRT_KFD_SVM_GET_ATTR, .attributes = 1, .attribute = {{.type = HMMRT_KFD_SVM_ATTR_GRANULARITY}}};
  long page = sysconf(_SC_PAGESIZE);
  void* memory = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int fd = open("/dev/kfd", O_RDWR | O_CLOEXEC);

  if (fd < 0 || memory == MAP_FAILED) {
    perror("kfd: /dev/kfd");
    return 1;
  }
  expect("GET_VERSION", call(fd, HMMRT_KFD_GET_VERSION, &version), 0);
  printf("kfd: version %u.%u\n", version.abi_major, version.abi_minor);
  bad |= version.abi_major != HMMRT_KFD_MAJOR;
  expect("SMI_EVENTS of gpu_id 0, the CPU node", call(fd, HMMRT_KFD_SMI_EVENTS, &events), EINVAL);
  events.gpu_id = 4242;
  expect("SMI_EVENTS of a gpu_id that nobody has", call(fd, HMMRT_KFD_SMI_EVENTS, &events), EINVAL);
  svm.start = (unsigned long)memory;
  svm.bytes = page;
  expect("SVM get, in a kernel without HSA_AMD_SVM", call(fd, HMMRT_KFD_SVM_WITH(1), &svm), EPERM);
  expect("XNACK mode, likewise", call(fd, HMMRT_KFD_XNACK, &xnack), EPERM);
  return bad;
}
