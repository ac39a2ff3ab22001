// SPDX-License-Identifier: MIT
// A stand-in for libhsakmt.so.1, for machines without an AMD GPU: its symbols, built against its own header, over a
// stand-in for the kernel's driver (svm_driver.hpp) that gives the GPUs of hip.cpp the process's own memory. Node 0 is the
// CPU, node n is HIP's device n - 1. It answers as libhsakmt 5.2.3 does, and as Linux 6.1 does below that.
//
//   HMMRT_TEST_KFD=1              there is a driver; else hsaKmtOpenKFD() fails, as without one
//   HMMRT_TEST_KFD_XNACK=0|1|never  whether GPUs' faults are retried at first (1); never: nor can be
//   HMMRT_TEST_KFD_SVM=0          a kernel without HSA_AMD_SVM
//   HMMRT_TEST_KFD_GRANULARITY=N  of memory that nobody gave one (9): amdgpu.svm_default_granularity
//   HMMRT_TEST_KFD_HIVE=1         the GPUs are linked: each reaches the others' memory
//   HMMRT_TEST_KFD_APU=1          the GPUs' memory is the CPU's: nothing ever moves (Linux 6.10 and later). Only HIP says so
//   HMMRT_TEST_KFD_HIDDEN=1       before the GPUs comes one whose render node this process may not open: the topology has
//                                 it, and this library counts without it
//   HMMRT_TEST_KFD_PARTITIONS=1   each GPU is the first part of one: the topology has another at its place
//   HMMRT_TEST_KFD_MINOR=N        version 1.N of the driver (14)
//   HMMRT_TEST_KFD_SMI_OPEN=0     hsaKmtOpenSMI() fails
//   HMMRT_TEST_KFD_FAIL=NAME[:N]  the call NAME fails: always, or its N-th time only
//   HMMRT_TEST_KFD_SMI..., _FIFO  see smi_lines.hpp; HMMRT_TEST_HIP_DEVICES, _MEMORY: see hip.cpp
// HMMRT_TEST_KFD_TOPOLOGY, unless it is set, is set to a directory like /sys/class/kfd/kfd/topology/nodes.
#include <hsakmt.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <new>
#include <span>
#include <string>

#include "gpu/standin/svm_driver.hpp"

namespace {

using standin::Driver;

std::uint64_t number(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}
bool is_on() { return number("HMMRT_TEST_KFD", 0) != 0; }
bool has_svm() { return number("HMMRT_TEST_KFD_SVM", 1) != 0; }
bool hive() { return number("HMMRT_TEST_KFD_HIVE", 0) != 0; }
std::uint32_t hidden() { return number("HMMRT_TEST_KFD_HIDDEN", 0) != 0; }
bool partitions() { return number("HMMRT_TEST_KFD_PARTITIONS", 0) != 0; }
bool apu() { return number("HMMRT_TEST_KFD_APU", 0) != 0; }
bool xnack_possible() {
  const char* text = std::getenv("HMMRT_TEST_KFD_XNACK");
  return text == nullptr || std::strcmp(text, "never") != 0;
}
std::uint32_t gpus() {
  const std::uint64_t n = number("HMMRT_TEST_HIP_DEVICES", 1);
  return static_cast<std::uint32_t>(n < k_standin_gpus ? n : k_standin_gpus);
}
std::uint64_t memory() { return number("HMMRT_TEST_HIP_MEMORY", std::uint64_t{1} << 30); }

bool fails(const char* name) {
  const char* text = std::getenv("HMMRT_TEST_KFD_FAIL");
  if (text == nullptr) return false;
  const std::string wanted(text);
  const std::size_t colon = wanted.find(':');
  if (wanted.substr(0, colon) != name) return false;
  static std::atomic<std::uint64_t> calls{0};
  const std::uint64_t call = ++calls;
  return colon == std::string::npos || call == std::strtoull(wanted.c_str() + colon + 1, nullptr, 0);
}
#define MAY_FAIL \
  if (fails(__func__)) return HSAKMT_STATUS_ERROR
#define NEEDS_OPEN \
  if (g_open == 0) return HSAKMT_STATUS_KERNEL_IO_CHANNEL_NOT_OPENED

std::mutex g_lock;
std::atomic<unsigned> g_open{0};
std::atomic<bool> g_acquired{false};
constinit std::atomic<Driver*> g_driver{nullptr};

HSA_CAPABILITY capability() {
  HSA_CAPABILITY c{};
  c.ui32.SVMAPISupported = has_svm();
  c.ui32.CoherentHostAccess = 0;
  return c;
}
constexpr std::uint32_t k_gfx = 90010;

// ---- the topology's directory ---------------------------------------------------------------------------------------

char g_topology[256];  // no constructor: written before those of this library have run
pid_t g_owner = 0, g_driver_owner = 0;

// A GPU or the CPU (gpu_id 0), as the directory of this number.
void write_node(std::uint32_t directory, std::uint32_t gpu_id, std::uint32_t location) {
  const std::filesystem::path at = std::filesystem::path(g_topology) / std::to_string(directory);
  const bool gpu = gpu_id != 0;
  std::filesystem::create_directories(at);
  std::ofstream(at / "gpu_id") << gpu_id << '\n';
  std::ofstream(at / "name") << (gpu ? "standin" : "") << '\n';
  std::ofstream(at / "properties") << "cpu_cores_count " << (gpu ? 0 : 2) << "\nsimd_count " << (gpu ? 4 : 0)
                                   << "\nmem_banks_count 1\ncaches_count 0\nio_links_count 0\n"
                                   << "capability " << (gpu ? capability().Value : 0) << "\ngfx_target_version "
                                   << (gpu ? k_gfx : 0) << "\nlocation_id " << location << "\ndomain 0\nhive_id "
                                   << (gpu && hive() ? 77 : 0) << '\n';
}

void at_end() {
  if (getpid() != g_owner) return;
  std::error_code ignored;
  std::filesystem::remove_all(g_topology, ignored);
}

// Nothing is there that the environment does not say; it may say more than at the program's start.
void make_topology() {
  if (g_topology[0] == '\0') {
    const std::string name = (std::filesystem::temp_directory_path() / "hmmrt-kfd-XXXXXX").string();
    if (name.size() >= sizeof g_topology) return;
    std::strcpy(g_topology, name.c_str());
    if (mkdtemp(g_topology) == nullptr) {
      g_topology[0] = '\0';
      return;
    }
    g_owner = getpid();
    std::atexit(&at_end);
  }
  write_node(0, 0, 0);
  if (hidden() != 0) write_node(1, 0x2000, 0xff00);
  for (std::uint32_t node = 1; node <= gpus(); ++node) {
    write_node(hidden() + node, standin::gpu_id(node), node << 8);
    if (partitions()) write_node(hidden() + gpus() + node, 0x3000 + node, 1u << 28 | node << 8);
  }
  setenv("HMMRT_TEST_KFD_TOPOLOGY", g_topology, 0);
}

__attribute__((constructor)) void at_start() {
  if (is_on()) make_topology();
}

// What remains at the end is brought home, and let go of: leak checkers look at all memory, with every other thread stopped,
// and one that was about to end gives its stack back to the kernel, which would wait for our thread to hear of that.
void retire() {
  if (g_driver != nullptr && getpid() == g_driver_owner) g_driver.load()->retire();
}

Driver* make_driver() {
  alignas(Driver) static std::byte place[sizeof(Driver)];  // no destructor: its thread runs until the process ends
  standin::Configuration c;
  c.gpus = gpus();
  c.memory = memory();
  c.xnack = xnack_possible() && number("HMMRT_TEST_KFD_XNACK", 1) != 0;
  c.hive = hive();
  c.apu = apu();
  c.granularity = static_cast<std::uint32_t>(number("HMMRT_TEST_KFD_GRANULARITY", c.granularity));
  auto* const driver = new (place) Driver(standin::own_memory(), c);
  g_driver_owner = getpid();
  std::atexit(&retire);
  if (!driver->start()) std::fputs("stand-in GPU driver: no userfaultfd that moves pages; none will move\n", stderr);
  return driver;
}

HSAKMT_STATUS check_node(HSAuint32 node) {
  return g_acquired && node <= gpus() ? HSAKMT_STATUS_SUCCESS : HSAKMT_STATUS_INVALID_NODE_UNIT;
}

HSAKMT_STATUS check_range(const void* at, HSAuint64 bytes) {
  const bool whole = reinterpret_cast<std::uintptr_t>(at) % standin::k_page == 0 && bytes % standin::k_page == 0;
  return at != nullptr && bytes != 0 && whole ? HSAKMT_STATUS_SUCCESS : HSAKMT_STATUS_INVALID_PARAMETER;
}

bool is_access(HSAuint32 type) {
  return type == HSA_SVM_ATTR_ACCESS || type == HSA_SVM_ATTR_ACCESS_IN_PLACE || type == HSA_SVM_ATTR_NO_ACCESS;
}

}  // namespace

extern "C" {

HSAKMT_STATUS hsaKmtOpenKFD() {
  MAY_FAIL;
  if (!is_on()) return HSAKMT_STATUS_KERNEL_IO_CHANNEL_NOT_OPENED;
  const std::lock_guard guard(g_lock);
  make_topology();
  if (g_driver == nullptr) g_driver = make_driver();
  return g_open++ == 0 ? HSAKMT_STATUS_SUCCESS : HSAKMT_STATUS_KERNEL_ALREADY_OPENED;
}
HSAKMT_STATUS hsaKmtCloseKFD() {
  const std::lock_guard guard(g_lock);
  NEEDS_OPEN;
  --g_open;
  return HSAKMT_STATUS_SUCCESS;
}
HSAKMT_STATUS hsaKmtGetVersion(HsaVersionInfo* out) {
  MAY_FAIL;
  NEEDS_OPEN;
  *out = {1, static_cast<HSAuint32>(number("HMMRT_TEST_KFD_MINOR", 14))};
  return HSAKMT_STATUS_SUCCESS;
}
HSAKMT_STATUS hsaKmtAcquireSystemProperties(HsaSystemProperties* out) {
  MAY_FAIL;
  NEEDS_OPEN;
  if (out == nullptr) return HSAKMT_STATUS_INVALID_PARAMETER;
  *out = {};
  out->NumNodes = 1 + gpus();
  g_acquired = true;
  return HSAKMT_STATUS_SUCCESS;
}
HSAKMT_STATUS hsaKmtReleaseSystemProperties() {
  NEEDS_OPEN;
  g_acquired = false;
  return HSAKMT_STATUS_SUCCESS;
}
HSAKMT_STATUS hsaKmtGetNodeProperties(HSAuint32 node, HsaNodeProperties* out) {
  MAY_FAIL;
  NEEDS_OPEN;
  if (out == nullptr) return HSAKMT_STATUS_INVALID_PARAMETER;
  if (check_node(node) != HSAKMT_STATUS_SUCCESS) return HSAKMT_STATUS_INVALID_NODE_UNIT;
  std::memset(out, 0, sizeof *out);
  out->NumMemoryBanks = 1;
  if (node == 0) {
    out->NumCPUCores = 2;
    return HSAKMT_STATUS_SUCCESS;
  }
  out->NumFComputeCores = 4;
  out->NumSIMDPerCU = 1;
  out->WaveFrontSize = 64;
  out->Capability = capability();
  out->EngineId.ui32.Major = k_gfx / 10000;
  out->EngineId.ui32.Minor = k_gfx / 100 % 100;
  out->EngineId.ui32.Stepping = k_gfx % 100;
  out->VendorId = 0x1002;
  out->LocationId = node << 8;  // HIP's bus is device + 1
  out->LocalMemSize = memory();
  std::strcpy(reinterpret_cast<char*>(out->AMDName), "standin");
  return HSAKMT_STATUS_SUCCESS;
}
HSAKMT_STATUS hsaKmtGetNodeMemoryProperties(HSAuint32 node, HSAuint32 banks, HsaMemoryProperties* out) {
  MAY_FAIL;
  NEEDS_OPEN;
  if (out == nullptr) return HSAKMT_STATUS_INVALID_PARAMETER;
  if (check_node(node) != HSAKMT_STATUS_SUCCESS) return HSAKMT_STATUS_INVALID_NODE_UNIT;
  for (HSAuint32 i = 0; i < banks; ++i) out[i] = {};
  if (banks == 0) return HSAKMT_STATUS_SUCCESS;
  out[0].HeapType = node == 0 ? HSA_HEAPTYPE_SYSTEM : HSA_HEAPTYPE_FRAME_BUFFER_PUBLIC;
  out[0].SizeInBytes = node == 0 ? static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * standin::k_page : memory();
  return HSAKMT_STATUS_SUCCESS;
}

HSAKMT_STATUS hsaKmtSVMSetAttr(void* at, HSAuint64 bytes, unsigned n, HSA_SVM_ATTRIBUTE* attributes) {
  MAY_FAIL;
  NEEDS_OPEN;
  if (const HSAKMT_STATUS wrong = check_range(at, bytes); wrong != HSAKMT_STATUS_SUCCESS) return wrong;
  const std::span<const HSA_SVM_ATTRIBUTE> all(attributes, n);
  for (const HSA_SVM_ATTRIBUTE& a : all) {
    const bool location = a.type == HSA_SVM_ATTR_PREFERRED_LOC || a.type == HSA_SVM_ATTR_PREFETCH_LOC;
    if (!location && !is_access(a.type)) continue;
    if (a.type == HSA_SVM_ATTR_PREFERRED_LOC && a.value == INVALID_NODEID) continue;
    if (check_node(a.value) != HSAKMT_STATUS_SUCCESS) return HSAKMT_STATUS_INVALID_NODE_UNIT;
    if (is_access(a.type) && a.value == 0) return HSAKMT_STATUS_INVALID_NODE_UNIT;
  }
  // What the kernel refuses.
  if (!has_svm() || n == 0) return HSAKMT_STATUS_ERROR;
  for (const HSA_SVM_ATTRIBUTE& a : all) {
    if (a.type > HSA_SVM_ATTR_GRANULARITY) return HSAKMT_STATUS_ERROR;
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(at);
  const int error = g_driver.load()->set(begin, begin + bytes, all);
  if (fails("hsaKmtSVMSetAttr.done")) return HSAKMT_STATUS_ERROR;  // as the kernel fails, with some or all of it done
  return error == 0 ? HSAKMT_STATUS_SUCCESS : HSAKMT_STATUS_ERROR;
}
HSAKMT_STATUS hsaKmtSVMGetAttr(void* at, HSAuint64 bytes, unsigned n, HSA_SVM_ATTRIBUTE* attributes) {
  MAY_FAIL;
  NEEDS_OPEN;
  if (const HSAKMT_STATUS wrong = check_range(at, bytes); wrong != HSAKMT_STATUS_SUCCESS) return wrong;
  const std::span<HSA_SVM_ATTRIBUTE> all(attributes, n);
  for (const HSA_SVM_ATTRIBUTE& a : all) {
    if (!is_access(a.type)) continue;
    if (check_node(a.value) != HSAKMT_STATUS_SUCCESS || a.value == 0) return HSAKMT_STATUS_INVALID_NODE_UNIT;
  }
  if (!has_svm()) return HSAKMT_STATUS_ERROR;
  for (const HSA_SVM_ATTRIBUTE& a : all) {
    if (a.type > HSA_SVM_ATTR_GRANULARITY) return HSAKMT_STATUS_ERROR;
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(at);
  return g_driver.load()->get(begin, begin + bytes, all) == 0 ? HSAKMT_STATUS_SUCCESS : HSAKMT_STATUS_ERROR;
}

HSAKMT_STATUS hsaKmtGetXNACKMode(HSAint32* enable) {
  MAY_FAIL;
  NEEDS_OPEN;
  *enable = g_driver.load()->xnack() ? 1 : 0;
  return HSAKMT_STATUS_SUCCESS;
}
HSAKMT_STATUS hsaKmtSetXNACKMode(HSAint32 enable) {
  MAY_FAIL;
  NEEDS_OPEN;
  if (enable > 0 && !xnack_possible()) return HSAKMT_STATUS_ERROR;
  if (hmmrt_standin_streams() != 0) return HSAKMT_STATUS_ERROR;  // queues
  g_driver.load()->set_xnack(enable > 0);
  return HSAKMT_STATUS_SUCCESS;
}

// Not in libhsakmt 5.2.3.
HSAKMT_STATUS hsaKmtOpenSMI(HSAuint32 node, int* fd) {
  MAY_FAIL;
  NEEDS_OPEN;
  if (number("HMMRT_TEST_KFD_SMI_OPEN", 1) == 0) return HSAKMT_STATUS_ERROR;
  if (check_node(node) != HSAKMT_STATUS_SUCCESS || node == 0) return HSAKMT_STATUS_INVALID_NODE_UNIT;
  const int opened = g_driver.load()->open_smi(node);
  if (opened < 0) return HSAKMT_STATUS_ERROR;
  *fd = opened;
  return HSAKMT_STATUS_SUCCESS;
}

// ---- for kernels and tests ------------------------------------------------------------------------------------------

void hmmrt_standin_hsa_init() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (!is_on() || std::getenv("HSA_XNACK") == nullptr) return;
    (void)hsaKmtOpenKFD();
    (void)hsaKmtSetXNACKMode(number("HSA_XNACK", 0) != 0 ? 1 : 0);
  });
}

bool hmmrt_standin_svm() { return g_driver != nullptr && g_open != 0 && has_svm(); }

bool hmmrt_standin_view(std::uintptr_t at, bool write, StandinView* out) {
  StandinThread* const self = hmmrt_standin_thread();
  if (self->pass.load() % 2 != 0) self->pass.fetch_add(1);
  out->stamp = hmmrt_standin_stamp();
  out->delta = 0;
  out->writable = true;
  if (hmmrt_standin_reachable(at, &out->begin, &out->end)) return true;
  if (!hmmrt_standin_svm() || hmmrt_standin_holds(at)) return false;
  return g_driver.load()->view(at, write, out);
}

StandinCounts hmmrt_standin_counts() { return g_driver != nullptr ? g_driver.load()->counts() : StandinCounts{}; }
std::uint32_t hmmrt_standin_where(const void* at) {
  return g_driver != nullptr ? g_driver.load()->where(reinterpret_cast<std::uintptr_t>(at)) : 0;
}
StandinAttributes hmmrt_standin_attributes(const void* at) {
  if (g_driver == nullptr) return {};
  const standin::Attributes a = g_driver.load()->attributes(reinterpret_cast<std::uintptr_t>(at));
  return {a.preferred, a.prefetch, a.access, a.in_place, a.flags, a.granularity};
}

}  // extern "C"
