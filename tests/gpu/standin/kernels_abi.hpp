// SPDX-License-Identifier: MIT
// Between the stand-ins for HIP and libhsakmt and kernels that are compiled for them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

// The head of what a stand-in's kernel is given; `bytes` is all of it.
struct StandinLaunch {
  std::size_t bytes;
};

// Where a kernel finds [begin, end): `delta` bytes further on, for as long as hmmrt_standin_stamp() is `stamp`.
struct StandinView {
  std::uintptr_t begin, end;
  std::ptrdiff_t delta;
  std::uint64_t stamp;
  bool writable;
};

// A thread that runs kernels, as who takes pages away sees it. `pass` is odd while the thread may be using an address that
// a view gave it, and another odd number when it has done with that one.
struct alignas(64) StandinThread {
  std::atomic<std::uint64_t> pass;
  std::atomic<bool> taken;
};

extern "C" {

// ---- the stand-in for HIP -------------------------------------------------------------------------------------------

// Counts what changes the answer of hmmrt_standin_reachable().
extern std::atomic<std::uint64_t> hmmrt_standin_changes;
bool hmmrt_standin_reachable(std::uintptr_t at, std::uintptr_t* begin, std::uintptr_t* end);
// Whether HIP has given this memory out, whatever for.
bool hmmrt_standin_holds(std::uintptr_t at);
// The current device of this thread; in a kernel, whose it is.
int hmmrt_standin_device();
std::size_t hmmrt_standin_streams();
// Bytes of a device's memory that hipMalloc gave out, and those that SVM has, which hipMemGetInfo also takes off. Asked by
// the driver while pages move: no lock, no memory of the heap.
std::uint64_t hmmrt_standin_used(int device);
constexpr int k_standin_gpus = 8;
extern std::atomic<std::uint64_t> hmmrt_standin_svm_bytes[k_standin_gpus];

// ---- the stand-in for libhsakmt -------------------------------------------------------------------------------------

// What HIP's runtime does when it is initialised, and where: there is a driver, and HSA_XNACK says something.
void hmmrt_standin_hsa_init() __attribute__((weak));
// Whether GPUs reach all of the process's memory: hsaKmtOpenKFD() was called with HMMRT_TEST_KFD=1.
bool hmmrt_standin_svm();
// Counts what changes pages' places, and is odd while they change.
extern std::atomic<std::uint64_t> hmmrt_standin_moves;
// Of this thread, until it ends.
StandinThread* hmmrt_standin_thread();
// Makes `at` accessible to the kernel that runs in this thread, by a fault if need be, or says that no GPU could access it.
// Blocks; the thread is of no concern to others meanwhile (pass even), and has pass odd when this returns true.
bool hmmrt_standin_view(std::uintptr_t at, bool write, StandinView* out);

}  // extern "C"

inline std::uint64_t hmmrt_standin_stamp() { return hmmrt_standin_changes.load() + hmmrt_standin_moves.load(); }
