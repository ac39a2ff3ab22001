// SPDX-License-Identifier: MIT
#include "host/kfd/hsakmt.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "host/kfd/kernel_svm.hpp"
#include "host/kfd/probe.hpp"

namespace hmmrt::kfd {

namespace {

constexpr const char* k_library = "libhsakmt.so.1";

// HSAKMT_STATUS, those that the calls used here give.
enum : int {
  k_success = 0,
  k_error = 1,
  k_invalid_parameter = 3,
  k_invalid_node = 5,
  k_no_memory = 6,
  k_not_implemented = 10,
  k_not_supported = 11,
  k_unavailable = 12,
  k_out_of_resources = 13,
  k_not_opened = 20,
  k_communication = 21,
  k_already_opened = 22
};

struct Version {  // HsaVersionInfo
  std::uint32_t major, minor;
};

struct SystemProperties {  // HsaSystemProperties
  std::uint32_t nodes, oem, id, revision;
};

// The errno that says the same. libhsakmt keeps the kernel's to itself.
int error_of(int status) noexcept {
  switch (status) {
    case k_success:
      return 0;
    case k_invalid_parameter:
      return EINVAL;
    case k_invalid_node:
      return ENODEV;
    case k_no_memory:
    case k_out_of_resources:
      return ENOMEM;
    case k_not_implemented:
    case k_not_supported:
      return EOPNOTSUPP;
    case k_unavailable:
      return EAGAIN;
    case k_not_opened:
      return ENXIO;
    case k_error:
    case k_communication:
    default:
      return EIO;
  }
}

void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)

template <class F>
bool find(void* library, const char* name, F* out) {
  *out = reinterpret_cast<F>(dlsym(library, name));
  return *out != nullptr;
}

bool is_location(SvmAttr type) { return type == SvmAttr::preferred_location || type == SvmAttr::prefetch_location; }
bool names_a_processor(SvmAttr type) { return type <= SvmAttr::no_access; }

}  // namespace

void* Hsakmt::library_here() { return dlopen(k_library, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD); }

std::unique_ptr<Hsakmt> Hsakmt::make(void* library, std::string* why) {
  Functions f{};
  const std::array<bool, 9> found = {
      find(library, "hsaKmtOpenKFD", &f.open_kfd),           find(library, "hsaKmtCloseKFD", &f.close_kfd),
      find(library, "hsaKmtGetVersion", &f.get_version),     find(library, "hsaKmtAcquireSystemProperties", &f.acquire),
      find(library, "hsaKmtGetNodeProperties", &f.get_node), find(library, "hsaKmtSVMSetAttr", &f.set_attr),
      find(library, "hsaKmtSVMGetAttr", &f.get_attr),        find(library, "hsaKmtGetXNACKMode", &f.get_xnack),
      find(library, "hsaKmtSetXNACKMode", &f.set_xnack),
  };
  for (const bool one : found) {
    if (one) continue;
    *why = std::string(k_library) + " has no calls for shared virtual memory: one of ROCm 5.0 or later has";
    return nullptr;
  }
  (void)find(library, "hsaKmtOpenSMI", &f.open_smi);
  if (const int status = f.open_kfd(); status != k_success && status != k_already_opened) {
    *why = std::string("by libhsakmt: the driver does not open: ") + svm_error_text(error_of(status));
    return nullptr;
  }
  std::unique_ptr<Hsakmt> made(new Hsakmt(f));
  if (const std::string missing = made->ask(); !missing.empty()) {
    *why = "by libhsakmt: " + missing;
    (void)f.close_kfd();
    return nullptr;
  }
  return made;
}

std::string Hsakmt::ask() {
  Version version{};
  if (const int status = call_.get_version(&version); status != k_success) {
    return std::string("the driver does not tell its version: ") + svm_error_text(error_of(status));
  }
  minor_ = version.minor;
  // The calls translate numbers of nodes by what this reads.
  SystemProperties properties{};
  if (const int status = call_.acquire(&properties); status != k_success) {
    return std::string("the driver does not tell its topology: ") + svm_error_text(error_of(status));
  }
  // Which GPU a node is: only newer versions give its gpu_id, all give its place, which no two GPUs of the topology share
  // unless they are parts of one that nothing tells apart.
  const std::vector<KfdGpu> known = find_gpus();
  bool has_cpu = false;
  for (std::uint32_t node = 0; node < properties.nodes; ++node) {
    alignas(8) std::array<std::byte, 2048> raw{};  // more than any version's
    if (const int status = call_.get_node(node, raw.data()); status != k_success) {
      return "the driver does not describe node " + std::to_string(node) + ": " + svm_error_text(error_of(status));
    }
    const auto read = [&](std::size_t at) {
      std::uint32_t value = 0;
      std::memcpy(&value, raw.data() + at, sizeof value);
      return value;
    };
    if (read(k_node_simds) == 0) {
      if (!has_cpu) cpu_node_ = node;  // any of them stands for system memory
      has_cpu = true;
      continue;
    }
    const auto here = [&](const KfdGpu& gpu) {
      return gpu.domain == read(k_node_domain) && gpu.location == read(k_node_location);
    };
    const auto it = std::find_if(known.begin(), known.end(), here);
    if (it != known.end() && std::none_of(it + 1, known.end(), here)) gpus_.push_back({node, it->gpu_id});
  }
  return has_cpu ? "" : "it knows no node that is only a CPU";
}

bool Hsakmt::node_of(std::uint32_t gpu_id, std::uint32_t* node) const noexcept {
  const auto it = std::find_if(gpus_.begin(), gpus_.end(), [&](const Node& n) { return n.gpu_id == gpu_id; });
  if (it == gpus_.end()) return false;
  *node = it->node;
  return true;
}

std::uint32_t Hsakmt::gpu_of(std::uint32_t node) const noexcept {
  const auto it = std::find_if(gpus_.begin(), gpus_.end(), [&](const Node& n) { return n.node == node; });
  return it != gpus_.end() ? it->gpu_id : node == k_nowhere ? k_nowhere : k_system_memory;
}

int Hsakmt::translate(std::span<const SvmAttribute> from, SvmAttribute* to) const noexcept {
  if (from.size() > k_most_attributes) return E2BIG;
  for (const SvmAttribute& a : from) {
    SvmAttribute& out = *to++;
    out = a;
    if (!names_a_processor(a.type)) continue;
    if (is_location(a.type) && a.value == k_nowhere) continue;
    if (is_location(a.type) && a.value == k_system_memory) {
      out.value = cpu_node_;
    } else if (!node_of(a.value, &out.value)) {
      return ENODEV;
    }
  }
  return 0;
}

int Hsakmt::set(std::uintptr_t addr, std::size_t bytes, std::span<const SvmAttribute> attributes) const noexcept {
  std::array<SvmAttribute, k_most_attributes> theirs;
  if (const int error = translate(attributes, theirs.data()); error != 0) return error;
  return error_of(call_.set_attr(pointer(addr), bytes, static_cast<unsigned>(attributes.size()), theirs.data()));
}

int Hsakmt::get(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept {
  std::array<SvmAttribute, k_most_attributes> theirs;
  if (attributes.size() > k_most_attributes) return E2BIG;
  for (std::size_t i = 0; i < attributes.size(); ++i) {  // values are asked for, but for whose access
    theirs[i] = attributes[i];
    if (!names_a_processor(attributes[i].type) || is_location(attributes[i].type)) continue;
    if (!node_of(attributes[i].value, &theirs[i].value)) return ENODEV;
  }
  const int status = call_.get_attr(pointer(addr), bytes, static_cast<unsigned>(attributes.size()), theirs.data());
  if (status != k_success) return error_of(status);
  for (std::size_t i = 0; i < attributes.size(); ++i) {
    attributes[i] = theirs[i];
    if (names_a_processor(theirs[i].type)) attributes[i].value = gpu_of(theirs[i].value);
  }
  return 0;
}

int Hsakmt::get_xnack(bool* on) const noexcept {
  std::int32_t value = 0;
  const int status = call_.get_xnack(&value);
  *on = status == k_success && value > 0;
  return error_of(status);
}

int Hsakmt::set_xnack(bool on) const noexcept { return error_of(call_.set_xnack(on ? 1 : 0)); }

int Hsakmt::open_smi(std::uint32_t gpu_id, std::uint64_t mask, int* fd) const noexcept {
  *fd = -1;
  if (call_.open_smi != nullptr) {
    std::uint32_t node = 0;
    if (!node_of(gpu_id, &node)) return ENODEV;
    if (const int status = call_.open_smi(node, fd); status != k_success) return error_of(status);
  } else {
    // The process object that the driver keeps for us is the same whatever descriptor it is asked by.
    const KfdSystem system;
    const int device = system.open(system.device.c_str(), O_RDWR | O_CLOEXEC);
    if (device < 0) return errno;
    const int error = open_kernel_smi(system, device, gpu_id, fd);
    close(device);
    if (error != 0) return error;
  }
  return listen_to(fd, mask);
}

}  // namespace hmmrt::kfd
