// SPDX-License-Identifier: MIT
// The vendors' modules, as this process has them: found and loaded once, when somebody first asks.
// Thread: any.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "device/gpu/module.hpp"

namespace hmmrt {

struct GpuModule {
  std::string file;                     // "libhmmrt-hip.so"
  const gpu::Module* module = nullptr;  // null: not loaded
  int count = 0;                        // GPUs
  std::string why;                      // what is missing, if it is not loaded or finds no GPU
};

// All that this version knows, HIP first.
std::span<const GpuModule> gpu_modules();

// GPU `ordinal` of the first module that finds any. Errors: HMMRT_ERROR_NOT_SUPPORTED says of each module what is missing;
// HMMRT_ERROR_INVALID_DEVICE: fewer GPUs; HMMRT_ERROR_SYSTEM: the vendor's runtime refuses.
// `warn` is called, from any thread, with what users should know.
std::unique_ptr<Device> make_gpu_device(const gpu::DeviceConfig& config, void (*warn)(const char*), Status* status);
// Where that GPU is. The same errors.
Status gpu_place(unsigned ordinal, gpu::Place* out);
// How many there are.
unsigned gpu_count();

}  // namespace hmmrt
