// SPDX-License-Identifier: MIT
// The kernel driver behind the stand-in for libhsakmt: serves faults of GPUs and of the CPU, moves pages, and tells of it
// as amdkfd does (kfd_svm.c and kfd_migrate.c of Linux 6.1 to 6.12).
//
// How a page leaves a GPU that may be using it. Kernels reach memory through views (kernels_abi.hpp) that hold while
// hmmrt_standin_moves does not change. Who is about to change places makes it odd, and waits for every kernel that was in
// the middle of an access; each one's next access comes here and waits for the lock. The lock's end makes it even. So no
// kernel runs while places change or while userfaultfd's events are read (which lets munmap, mremap and madvise go on).
// With the lock held, nothing may be touched that could be on a GPU: see own_memory.hpp.
#pragma once

#include <hsakmttypes.h>

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "gpu/standin/kmt_hooks.hpp"
#include "gpu/standin/smi_lines.hpp"
#include "gpu/standin/svm_attributes.hpp"
#include "gpu/standin/svm_pages.hpp"

namespace standin {

struct Configuration {
  std::uint32_t gpus = 1;
  std::uint64_t memory = 0;  // of each
  bool xnack = true;
  bool hive = false, apu = false;
  std::uint32_t granularity = 9;
};

// First come, first served. Whoever takes it again at once, for the next event, would not let others have it.
class FairLock {
 public:
  void lock() {
    const std::uint32_t mine = next_.fetch_add(1);
    for (std::uint32_t now = turn_.load(); now != mine; now = turn_.load()) turn_.wait(now);
  }
  void unlock() {
    turn_.fetch_add(1);
    turn_.notify_all();
  }

 private:
  std::atomic<std::uint32_t> next_{0}, turn_{0};
};

class Driver {
 public:
  // Once for a process; lives until its end.
  Driver(std::pmr::memory_resource* memory, const Configuration& configuration);
  // Without userfaultfd: false, and memory stays where it is.
  bool start();
  // Brings everything home and lets go of the process's memory; from then on it stays.
  void retire();

  // Errors as errno. The attributes are known to be valid, and the range to be of whole pages.
  int set(std::uintptr_t begin, std::uintptr_t end, std::span<const HSA_SVM_ATTRIBUTE> attributes);
  int get(std::uintptr_t begin, std::uintptr_t end, std::span<HSA_SVM_ATTRIBUTE> attributes);
  bool xnack();
  void set_xnack(bool on);
  int open_smi(std::uint32_t node);

  // Of the kernel in this thread; see hmmrt_standin_view().
  bool view(std::uintptr_t at, bool write, StandinView* out);

  // What tests ask (kmt_hooks.hpp).
  StandinCounts counts();
  std::uint32_t where(std::uintptr_t at);
  Attributes attributes(std::uintptr_t at);

 private:
  class Locked;
  friend class Locked;

  void serve_events();
  void stop();
  void resume();
  void read_events();
  void settle();
  void heed(const uffd_msg& event);
  void cpu_fault(std::uintptr_t at);
  void gone(std::uintptr_t begin, std::uintptr_t end, Unmap trigger);

  Attributes defaults() const;
  std::uint32_t bit(std::uint32_t node) const { return 1u << node; }
  AttributeMap::Place range_for_fault(std::uintptr_t at, const Vma& vma);
  std::uint32_t best_for_fault(const Attributes& a, std::uintptr_t at, std::uint32_t node);
  std::uint32_t best_for_prefetch(const Attributes& a) const;
  bool gpu_fault(std::uintptr_t at, bool write, std::uint32_t node, const Vma& vma);
  void prefetch(std::uintptr_t begin, std::uintptr_t end, const Attributes& a);

  bool to_gpu(std::uintptr_t begin, std::uintptr_t end, std::uint32_t node, const Attributes& a, Trigger trigger);
  void to_system(std::uintptr_t begin, std::uintptr_t end, const Attributes& a, Trigger trigger);
  void to_system_from(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, const Attributes& a,
                      Trigger trigger);
  bool make_room(std::uint32_t node, std::uint64_t pages, std::uintptr_t begin, std::uintptr_t end);
  std::uint64_t room(std::uint32_t node) const;
  // Takes the range away from all GPUs' page tables; says from whose (bits), for restore_queues().
  std::uint32_t unmap(std::uintptr_t begin, std::uintptr_t end, Unmap trigger);
  void restore_queues(std::uint32_t gpus);
  void map(std::uintptr_t begin, std::uintptr_t end, std::uint32_t node);
  bool build_view(std::uintptr_t at, std::uint32_t node, const Vma& vma, StandinView* out);

  FairLock lock_;
  Configuration config_;
  bool moves_ = false;  // pages can move
  int retired_ = -1;    // eventfd: its thread is to end
  std::atomic<bool> ended_{false};
  std::array<std::uint64_t, k_standin_gpus> hip_used_{};
  AttributeMap attributes_;
  Pages pages_;
  SmiLines smi_;
  std::pmr::vector<uffd_msg> pending_;  // read, not yet heeded; with the lock free, none
  std::uint64_t clock_ = 0;
  StandinCounts counts_{};
};

}  // namespace standin
