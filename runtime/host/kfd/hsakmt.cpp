// SPDX-License-Identifier: MIT
#include "host/kfd/hsakmt.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>
#include <optional>

#include "host/kfd/kfd_abi.h"
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

struct SystemProperties {  // HsaSystemProperties
  std::uint32_t nodes, oem, id, revision;
};

void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)

template <class F>
bool find(void* library, const char* name, F* out) {
  *out = reinterpret_cast<F>(dlsym(library, name));
  return *out != nullptr;
}

}  // namespace

const char* attribute_name(SvmAttr type) noexcept {
  static constexpr std::array<const char*, k_svm_attrs> names = {"preferred_location", "prefetch_location", "access",
                                                                 "access_in_place",    "no_access",         "set_flags",
                                                                 "clear_flags",        "granularity"};
  return names[static_cast<std::size_t>(type) % k_svm_attrs];
}

const Hsakmt* Hsakmt::open(std::string* why) {
  static std::mutex lock;
  static const Hsakmt* opened = nullptr;
  const std::lock_guard guard(lock);
  if (opened != nullptr) return opened;
  // Never unloaded: HIP's runtime uses it too, and its destructors may run later than ours.
  void* const library = dlopen(k_library, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();
    *why = std::string(error != nullptr ? error : k_library) + " (package libhsakmt1)";
    return nullptr;
  }
  Functions f{};
  const std::array<bool, 7> found = {
      find(library, "hsaKmtOpenKFD", &f.open_kfd),
      find(library, "hsaKmtCloseKFD", &f.close_kfd),
      find(library, "hsaKmtAcquireSystemProperties", &f.acquire),
      find(library, "hsaKmtSVMSetAttr", &f.set_attr),
      find(library, "hsaKmtSVMGetAttr", &f.get_attr),
      find(library, "hsaKmtGetXNACKMode", &f.get_xnack),
      find(library, "hsaKmtSetXNACKMode", &f.set_xnack),
  };
  for (const bool one : found) {
    if (one) continue;
    *why = std::string(k_library) + " has no calls for shared virtual memory: one of ROCm 5.0 or later has";
    return nullptr;
  }
  (void)find(library, "hsaKmtOpenSMI", &f.open_smi);
  if (const int status = f.open_kfd(); status != k_success && status != k_already_opened) {
    *why = std::string("the driver does not open: ") + status_text(status);
    return nullptr;
  }
  // The calls below translate numbers of nodes by what this reads.
  SystemProperties properties{};
  if (const int status = f.acquire(&properties); status != k_success) {
    *why = std::string("the driver does not tell its topology: ") + status_text(status);
    (void)f.close_kfd();
    return nullptr;
  }
  static std::optional<Hsakmt> instance;
  opened = &instance.emplace(Hsakmt(f));
  return opened;
}

int Hsakmt::set(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept {
  return call_.set_attr(pointer(addr), bytes, static_cast<unsigned>(attributes.size()), attributes.data());
}

int Hsakmt::get(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept {
  return call_.get_attr(pointer(addr), bytes, static_cast<unsigned>(attributes.size()), attributes.data());
}

int Hsakmt::get_xnack(bool* on) const noexcept {
  std::int32_t value = 0;
  const int status = call_.get_xnack(&value);
  *on = status == k_success && value > 0;
  return status;
}

int Hsakmt::set_xnack(bool on) const noexcept { return call_.set_xnack(on ? 1 : 0); }

int Hsakmt::open_smi(std::uint32_t node, std::uint32_t gpu_id, std::uint64_t mask, int* fd) const noexcept {
  *fd = -1;
  if (call_.open_smi != nullptr) {
    if (call_.open_smi(node, fd) != k_success) return ENOSYS;
  } else {
    // The process object that the driver keeps for us is the same whatever descriptor it is asked by.
    const KfdSystem system;
    const int device = system.open(system.device.c_str(), O_RDWR | O_CLOEXEC);
    if (device < 0) return errno;
    hmmrt_kfd_smi_events events{};
    events.gpu_id = gpu_id;
    const int error = system.ioctl(device, HMMRT_KFD_SMI_EVENTS, &events) == 0 ? 0 : errno;
    close(device);
    if (error != 0) return error;
    *fd = static_cast<int>(events.fd);
  }
  int error = write(*fd, &mask, sizeof mask) == sizeof mask ? 0 : errno;
  if (error == 0 && (fcntl(*fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(*fd, F_SETFL, O_NONBLOCK) != 0)) error = errno;
  if (error != 0) {
    close(*fd);
    *fd = -1;
  }
  return error;
}

const char* Hsakmt::status_text(int status) noexcept {
  switch (status) {
    case k_success:
      return "no error";
    case k_invalid_parameter:
      return "a parameter is not valid";
    case k_invalid_node:
      return "there is no such node";
    case k_no_memory:
      return "out of memory";
    case k_not_implemented:
    case k_not_supported:
      return "not supported by this kernel or GPU";
    case k_unavailable:
      return "not available now";
    case k_out_of_resources:
      return "out of resources";
    case k_not_opened:
      return "/dev/kfd cannot be opened";
    case k_communication:
      return "the driver does not answer";
    default:
      return "the driver reports an error";
  }
}

}  // namespace hmmrt::kfd
