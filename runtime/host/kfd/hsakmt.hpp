// SPDX-License-Identifier: MIT
// libhsakmt, AMD's library over its kernel driver, loaded when it is asked for: neither this library nor its build needs
// it. Of its interface, what is used here; kfd_probe_test.cpp compares these declarations with AMD's header where that is.
// One object a process, made when it is first asked for and never destroyed: the library's snapshot of the topology is the
// process's, HIP's runtime uses it too, and nobody counts who does.
// Thread: any. Blocks on: the kernel only (SetAttr with PREFETCH_LOC: until the pages have moved).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace hmmrt::kfd {

// HSA_SVM_ATTR_TYPE.
enum class SvmAttr : std::uint32_t {
  preferred_location,
  prefetch_location,  // moves the pages at once
  access,
  access_in_place,
  no_access,
  set_flags,
  clear_flags,
  granularity  // log2 of pages
};
constexpr unsigned k_svm_attrs = 8;
const char* attribute_name(SvmAttr type) noexcept;

// HSA_SVM_ATTRIBUTE. Locations and who has access are numbers of nodes, as in the topology.
struct SvmAttribute {
  SvmAttr type;
  std::uint32_t value;
};
constexpr std::uint32_t k_nowhere = 0xffffffff;  // INVALID_NODEID: no preference
constexpr std::uint32_t k_flag_host_access = 1;  // HSA_SVM_FLAG_HOST_ACCESS
constexpr std::uint32_t k_flag_coherent = 2;     // HSA_SVM_FLAG_COHERENT

class Hsakmt {
 public:
  // Loads the library and opens the driver. Null, and what is missing, when that fails; the next call tries again.
  static const Hsakmt* open(std::string* why);
  // Whole pages. 0, or an HSAKMT_STATUS.
  int set(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept;
  int get(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept;
  int get_xnack(bool* on) const noexcept;
  // Of the whole process; only while it has no queue on a GPU.
  int set_xnack(bool on) const noexcept;
  // A descriptor that gives the lines of smi_events.hpp for one GPU, not blocking, once it was told which (a mask of
  // events). By hsaKmtOpenSMI, which libhsakmt has since ROCm 6, or of the kernel. 0, or errno.
  int open_smi(std::uint32_t node, std::uint32_t gpu_id, std::uint64_t mask, int* fd) const noexcept;

  static const char* status_text(int status) noexcept;

 private:
  struct Functions {
    int (*open_kfd)();
    int (*close_kfd)();
    int (*acquire)(void* properties);
    int (*set_attr)(void*, std::uint64_t, unsigned, SvmAttribute*);
    int (*get_attr)(void*, std::uint64_t, unsigned, SvmAttribute*);
    int (*get_xnack)(std::int32_t*);
    int (*set_xnack)(std::int32_t);
    int (*open_smi)(std::uint32_t, int*);  // may be null
  };
  explicit Hsakmt(const Functions& functions) : call_(functions) {}
  Functions call_;
};

}  // namespace hmmrt::kfd
