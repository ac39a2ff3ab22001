// SPDX-License-Identifier: MIT
// What stands between libhmmrt and a vendor's module (libhmmrt-hip.so, libhmmrt-cuda.so), which is loaded at run time so
// that the library itself needs no vendor's packages. Both are built together: the table below is checked by its build
// string and has no other promise of stability.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "device/device.hpp"

namespace hmmrt::gpu {

inline constexpr const char k_module_symbol[] = "hmmrt_gpu_module";
inline constexpr std::uint32_t k_module_abi = 3;

// What the library lends to a module: a module has copies of the lower rooms, and so texts of its own.
struct Services {
  Status (*fail)(hmmrt_result_t code, const char* text);
  void (*warn)(const char* text);
};

struct DeviceConfig {
  unsigned ordinal = 0;            // as the vendor counts
  std::string name;                // "gpu:0"
  unsigned index = 0;              // of the context's devices
  std::uint64_t memory_bytes = 0;  // of it to manage; 0: three quarters of what is free
  bool remote_mapping = true;
  bool driven = false;          // the vendor's driver moves pages (svm_device.hpp)
  bool xnack = false;           // ... and serves faults
  const void* peers = nullptr;  // GPUs with the same value here, one context's, copy from each other; null: from none
};

struct Place {
  std::uint32_t domain = 0, location = 0;  // PCI: domain, and bus << 8 | device << 3
  bool integrated = false;                 // its memory is the CPU's
};

struct Module {
  std::uint32_t abi = k_module_abi;
  const char* build = "";   // version of the project that built it
  const char* vendor = "";  // "HIP"
  // How many GPUs there are; `why` says what is missing when there are none.
  int (*count)(std::string* why) = nullptr;
  // One line about a GPU: name, architecture, memory.
  std::string (*describe)(unsigned ordinal) = nullptr;
  // Where it is. False: the vendor does not say.
  bool (*place)(unsigned ordinal, Place* out) = nullptr;
  // Null: the services' fail() has been called.
  std::unique_ptr<Device> (*make)(const DeviceConfig& config, const Services& services) = nullptr;
};

}  // namespace hmmrt::gpu
