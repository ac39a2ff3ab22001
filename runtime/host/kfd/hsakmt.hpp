// SPDX-License-Identifier: MIT
// The driver's SVM calls by libhsakmt, AMD's library over its kernel driver, where this process has it: neither this library
// nor its build needs it. Of its interface, what is used here; kfd_probe_test.cpp compares these declarations with AMD's
// header where that is.
// The library's snapshot of the topology is the process's, HIP's runtime uses it too, and nobody counts who does: it is
// taken and never given back. It counts the nodes that it may use, so its numbers are the topology's only where it may use
// all: a container with some of the GPUs has others.
// Thread: any.
#pragma once

#include <memory>
#include <vector>

#include "host/kfd/svm_driver.hpp"

namespace hmmrt::kfd {

// HsaNodeProperties, which has grown at its end: where in it is what is used here.
constexpr std::size_t k_node_simds = 4, k_node_location = 76, k_node_domain = 324;

class Hsakmt final : public SvmDriver {
 public:
  // Null: no part of this process has loaded it. Never unloaded: its destructors may run later than ours.
  static void* library_here();
  static std::unique_ptr<Hsakmt> make(void* library, std::string* why);

  const char* way() const noexcept override { return "by libhsakmt"; }
  std::uint32_t minor() const noexcept override { return minor_; }
  int set(std::uintptr_t addr, std::size_t bytes, std::span<const SvmAttribute> attributes) const noexcept override;
  int get(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const noexcept override;
  int get_xnack(bool* on) const noexcept override;
  int set_xnack(bool on) const noexcept override;
  // By hsaKmtOpenSMI, which newer versions have, or of the kernel.
  int open_smi(std::uint32_t gpu_id, std::uint64_t mask, int* fd) const noexcept override;

 private:
  struct Functions {
    int (*open_kfd)();
    int (*close_kfd)();
    int (*get_version)(void* version);
    int (*acquire)(void* properties);
    int (*get_node)(std::uint32_t node, void* properties);
    int (*set_attr)(void*, std::uint64_t, unsigned, SvmAttribute*);
    int (*get_attr)(void*, std::uint64_t, unsigned, SvmAttribute*);
    int (*get_xnack)(std::int32_t*);
    int (*set_xnack)(std::int32_t);
    int (*open_smi)(std::uint32_t, int*);  // may be null
  };
  struct Node {
    std::uint32_t node, gpu_id;
  };
  explicit Hsakmt(const Functions& functions) : call_(functions) {}
  // Version and nodes, of the open library. What it lacks, or "".
  std::string ask();
  bool node_of(std::uint32_t gpu_id, std::uint32_t* node) const noexcept;
  std::uint32_t gpu_of(std::uint32_t node) const noexcept;
  // The attributes with libhsakmt's numbers. 0 or errno.
  int translate(std::span<const SvmAttribute> from, SvmAttribute* to) const noexcept;

  Functions call_;
  std::uint32_t minor_ = 0;
  std::uint32_t cpu_node_ = 0;
  std::vector<Node> gpus_;
};

}  // namespace hmmrt::kfd
