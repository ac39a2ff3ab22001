// SPDX-License-Identifier: MIT
// What libhmmrt-hip.so and libhmmrt-cuda.so export: one function, found by name.
#include "device/gpu/module.hpp"

#include "device/gpu/gpu_device.hpp"
#include "device/gpu/svm_device.hpp"

namespace hmmrt::gpu {

namespace {

int count(std::string* why) {
  int n = 0;
  const Error e = GPU(GetDeviceCount)(&n);
  if (e != k_success) {
    (void)GPU(GetLastError)();
    *why = std::string(HMMRT_GPU_VENDOR " finds no GPU: ") + GPU(GetErrorString)(e);
    return 0;
  }
  if (n == 0) *why = HMMRT_GPU_VENDOR " finds no GPU";
  return n;
}

std::string describe(unsigned ordinal) {
  DeviceProperties properties{};
  if (GPU(GetDeviceProperties)(&properties, static_cast<int>(ordinal)) != k_success) return "does not describe itself";
  std::string text = properties.name;
#ifndef HMMRT_GPU_CUDA
  text += std::string(" (") + properties.gcnArchName + ")";
#endif
  return text + ", " + std::to_string(properties.totalGlobalMem >> 20) + " MiB";
}

bool place(unsigned ordinal, Place* out) {
  DeviceProperties properties{};
  if (GPU(GetDeviceProperties)(&properties, static_cast<int>(ordinal)) != k_success) return false;
  out->domain = static_cast<std::uint32_t>(properties.pciDomainID);
  out->location =
      static_cast<std::uint32_t>(properties.pciBusID) << 8 | static_cast<std::uint32_t>(properties.pciDeviceID) << 3;
  out->integrated = properties.integrated != 0;
  return true;
}

std::unique_ptr<hmmrt::Device> make(const DeviceConfig& config, const Services& services) {
  return config.driven ? SvmDevice::make(config, services) : GpuDevice::make(config, services);
}

constexpr Module k_module{k_module_abi, HMMRT_BUILD, HMMRT_GPU_VENDOR, &count, &describe, &place, &make};

}  // namespace

}  // namespace hmmrt::gpu

extern "C" __attribute__((visibility("default"))) const hmmrt::gpu::Module* hmmrt_gpu_module() {
  return &hmmrt::gpu::k_module;
}
