// SPDX-License-Identifier: MIT
// What AMD's kernel driver (KFD) offers here, asked of the kernel alone: no part of ROCm is needed or loaded. The answer
// is a rung of the ladder and one sentence for people: what is missing and what to do about it.
//
// Asking opens /dev/kfd, which gives this process a KFD process object for as long as it lives, and changes nothing else:
// no attribute is set, no queue made, the XNACK mode only read.
// Thread: any. Blocks on: the kernel only. Not for hot paths: it reads files and formats text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hmmrt::kfd {

// From nothing to everything; each rung has all of those below it, except that `unusable` stands beside.
enum class Rung : std::uint8_t {
  absent,         // no driver
  no_permission,  // there, but not for this user or container
  unusable,       // there, but it does not answer as KFD does
  cpu_only,       // works, and knows no GPU
  no_svm,         // GPUs, but this kernel or these GPUs have no shared virtual memory
  svm,            // SVM, without retryable faults (XNACK off): an invalidation stops the process's queues
  svm_xnack       // SVM with retryable faults: any pointer works on the GPU
};

// For programs: absent, no_permission, ...
const char* rung_name(Rung rung) noexcept;

struct KfdGpu {
  std::uint32_t node = 0;         // the topology's number; libhsakmt may count otherwise
  std::uint32_t gpu_id = 0;       // the driver's number, in SVM attributes and SMI events
  std::uint32_t gfx_version = 0;  // as in gfx_target_version: 90402 for gfx942
  std::uint32_t domain = 0;       // of its PCI address
  std::uint32_t location = 0;     // ... bus << 8 | device << 3 | function; bits 28 to 31: which partition of one GPU
  std::uint64_t hive = 0;         // GPUs of one hive reach each other's memory; 0: of none
  bool svm = false;
  bool apu = false;  // one node with a CPU, whose memory it has; an APU may also look like any other GPU (MI300A)
};

struct Probe {
  Rung rung = Rung::absent;
  std::string says;                                    // one sentence, no full stop
  std::uint32_t version_major = 0, version_minor = 0;  // of the driver's ABI; from cpu_only on
  std::uint32_t cpu_nodes = 0;
  std::uint32_t hidden_nodes = 0;  // GPUs that this container may not use
  std::vector<KfdGpu> gpus;        // by node
};

// Where to ask; tests put made-up ones here, or in the environment (HMMRT_TEST_KFD_TOPOLOGY). The functions are the system calls of the same names.
struct KfdSystem {
  std::string device = "/dev/kfd";
  std::string nodes = "/sys/class/kfd/kfd/topology/nodes";
  std::string module = "/sys/module/amdgpu";
  int (*open)(const char* path, int flags);
  int (*ioctl)(int fd, unsigned long request, void* argument);

  KfdSystem();
};

Probe probe(const KfdSystem& system = {});
// The kernel's release, as in uname(2); and whether a GPU fault moves all of a driver's range there, of up to 1 GiB, not just
// the 2 MiB around it: so it was before Linux 6.8. (A driver from elsewhere may be newer than the kernel; then this is
// careful for nothing.)
std::string release();
bool moves_whole_ranges(const std::string& release);
// The GPUs of the topology alone, by node; empty where there is none or it cannot be read.
std::vector<KfdGpu> find_gpus(const KfdSystem& system = {});

}  // namespace hmmrt::kfd
