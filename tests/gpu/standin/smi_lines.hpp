// SPDX-License-Identifier: MIT
// The lines that the kernel's driver tells its listeners (AMDKFD_IOC_SMI_EVENTS), in the kernel's words: formats of
// drivers/gpu/drm/amd/amdkfd/kfd_smi_events.c. A listener's buffer is small, and a line that does not fit is lost.
//
//   HMMRT_TEST_KFD_SMI=6.1|7.2    whose lines and whose buffer (6.1: 1 KiB; 7.2: 8 KiB)
//   HMMRT_TEST_KFD_FIFO=BYTES     another buffer
//   HMMRT_TEST_KFD_SMI_DROP=N     every N-th line is lost
//   HMMRT_TEST_KFD_MINOR=N        below 10: takes any mask, and has none of these lines
//   HMMRT_TEST_KFD_SMI_NOISE=N    before every N-th line comes one that is damaged or unknown
// Thread: one at a time; the driver's lock is held.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace standin {

enum class Trigger { prefetch, gpu_fault, cpu_fault, eviction };  // of a migration
enum class Unmap { notify, notify_migrate, unmap_from_cpu };

class SmiLines {
 public:
  void configure();  // reads the environment

  // A listener to the GPU of `node`: a socket to write a mask of events to and to read lines from. Negative: -errno.
  int open(std::uint32_t node);

  // Processors are nodes, 0 is system memory; addresses are bytes.
  void fault_start(std::uint32_t node, std::uintptr_t at, bool write);
  void fault_end(std::uint32_t node, std::uintptr_t at, bool migrated);
  // `node`: the GPU of the two.
  void migrate_start(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, std::uint32_t from, std::uint32_t to,
                     std::uint32_t prefetch, std::uint32_t preferred, Trigger trigger);
  // `error`: a migration that moved nothing, whose end 6.1 keeps to itself.
  void migrate_end(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, std::uint32_t from, std::uint32_t to,
                   Trigger trigger, int error);
  void queue_eviction(std::uint32_t node);
  void queue_restore(std::uint32_t node);
  void unmap(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, Unmap trigger);

  std::uint64_t lines() const { return lines_; }
  std::uint64_t lost() const { return lost_; }

 private:
  struct Listener {
    int fd = -1;      // ours
    int theirs = -1;  // a duplicate, to see how much waits there
    int given = -1;   // their number for it, until they close it
    std::uint64_t inode = 0;
    std::uint64_t mask = 0;
    std::uint32_t node = 0;
  };

  void say(std::uint32_t event, std::uint32_t node, const char* format, ...) __attribute__((format(printf, 4, 5)));
  void send(Listener* to, const char* line, std::size_t bytes);
  static bool closed(Listener* listener);

  std::array<Listener, 32> listeners_;
  bool new_ = false, silent_ = false;
  std::size_t fifo_ = 1024;
  std::uint64_t drop_ = 0, noise_ = 0;
  std::uint64_t lines_ = 0, lost_ = 0;
};

// What lines call a node.
constexpr std::uint32_t gpu_id(std::uint32_t node) { return node == 0 || node == 0xffffffff ? node : 0x1000 + node; }

}  // namespace standin
