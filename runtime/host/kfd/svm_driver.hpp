// SPDX-License-Identifier: MIT
// AMD's kernel driver, as far as shared virtual memory goes: attributes of memory, the XNACK mode, reports. Asked by one of
// two ways:
//
//   Hsakmt      by libhsakmt, where this process has it: HIP's runtime brings it, up to ROCm 6.2
//   KernelSvm   of the kernel directly: newer runtimes have that library built in and keep it to themselves, and a second
//               one beside it would be refused the GPUs (EBUSY)
//
// The driver's object of a process is one, whichever way it is asked. GPUs are gpu_ids here; libhsakmt's own numbers are
// Hsakmt's business.
// Thread: any. Blocks on: the kernel only (an attribute that sends memory somewhere: until the pages have moved).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace hmmrt::kfd {

// The kernel's numbers, and libhsakmt's.
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

// Locations and who has access are gpu_ids.
struct SvmAttribute {
  SvmAttr type;
  std::uint32_t value;
};
constexpr std::uint32_t k_system_memory = 0;     // a location
constexpr std::uint32_t k_nowhere = 0xffffffff;  // no preference
constexpr std::uint32_t k_flag_host_access = 1;
constexpr std::uint32_t k_flag_coherent = 2;
constexpr std::size_t k_most_attributes = 32;  // of one call

// Calls return 0 or errno, which svm_error_text() explains.
class SvmDriver {
 public:
  // The process's, made when it is first asked for and never destroyed: destructors of HIP's may run later than ours. Null,
  // and what is missing, when that fails; the next call tries again. After HIP is initialised.
  static const SvmDriver* open(std::string* why);

  virtual ~SvmDriver() = default;
  SvmDriver(const SvmDriver&) = delete;
  SvmDriver& operator=(const SvmDriver&) = delete;

  // "by libhsakmt", "by the kernel directly"
  virtual const char* way() const noexcept = 0;
  // Of the driver's ABI, 1.x.
  virtual std::uint32_t minor() const noexcept = 0;
  // Whole pages.
  virtual int set(std::uintptr_t addr, std::size_t bytes, std::span<const SvmAttribute> attributes) const noexcept = 0;
  virtual int get(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept = 0;
  virtual int get_xnack(bool* on) const noexcept = 0;
  // Of the whole process; only while it has no queue on a GPU.
  virtual int set_xnack(bool on) const noexcept = 0;
  // A descriptor that gives the lines of smi_events.hpp for one GPU, not blocking, once it was told which (a mask of
  // events).
  virtual int open_smi(std::uint32_t gpu_id, std::uint64_t mask, int* fd) const noexcept = 0;

 protected:
  SvmDriver() = default;
};

// What such an error means here; for people.
const char* svm_error_text(int error) noexcept;

}  // namespace hmmrt::kfd
