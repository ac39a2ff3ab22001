// SPDX-License-Identifier: MIT
#include "device/gpu_modules.hpp"

#include <dlfcn.h>

#include <array>
#include <cstring>

namespace hmmrt {

namespace {

// Beside this library (or program, if linked into it), then wherever the system looks.
void* open_module(const std::string& file) {
  Dl_info self{};
  if (dladdr(reinterpret_cast<void*>(&gpu_modules), &self) != 0 && self.dli_fname != nullptr) {
    const std::string path = self.dli_fname;
    const std::size_t slash = path.rfind('/');
    const std::string beside = slash == std::string::npos ? file : path.substr(0, slash + 1) + file;
    if (void* handle = dlopen(beside.c_str(), RTLD_NOW | RTLD_LOCAL); handle != nullptr) return handle;
    // Not there at all, or there and not loadable: then dlerror() has the better reason.
    if (const char* why = dlerror(); why != nullptr && std::strstr(why, beside.c_str()) != why) {
      throw std::string(why);
    }
  }
  return dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
}

GpuModule load(const char* file) {
  GpuModule out;
  out.file = file;
  void* handle = nullptr;
  try {
    handle = open_module(out.file);
  } catch (const std::string& why) {
    out.why = why;
    return out;
  }
  if (handle == nullptr) {
    const char* why = dlerror();
    out.why = why != nullptr ? why : "cannot be loaded";
    return out;
  }
  const auto get = reinterpret_cast<const gpu::Module* (*)()>(dlsym(handle, gpu::k_module_symbol));
  const gpu::Module* module = get != nullptr ? get() : nullptr;
  if (module == nullptr || module->abi != gpu::k_module_abi || std::strcmp(module->build, HMMRT_BUILD) != 0) {
    out.why = out.file + " is of another version than this library (" HMMRT_BUILD "); install both together";
    return out;
  }
  out.module = module;
  out.count = module->count(&out.why);
  return out;
}

const GpuModule* first_with_gpus() {
  for (const GpuModule& m : gpu_modules()) {
    if (m.count > 0) return &m;
  }
  return nullptr;
}

}  // namespace

std::span<const GpuModule> gpu_modules() {
  static const std::array<GpuModule, 2> modules{load("libhmmrt-hip.so"), load("libhmmrt-cuda.so")};
  return modules;
}

unsigned gpu_count() {
  const GpuModule* m = first_with_gpus();
  return m != nullptr ? static_cast<unsigned>(m->count) : 0;
}

namespace {

// The module of GPU `ordinal`.
const gpu::Module* module_of(unsigned ordinal, Status* status) {
  const GpuModule* m = first_with_gpus();
  if (m == nullptr) {
    std::string why;
    for (const GpuModule& module : gpu_modules()) why += (why.empty() ? "" : "; ") + module.file + ": " + module.why;
    *status = fail(HMMRT_ERROR_NOT_SUPPORTED, "no GPU can be used: %s; hmmrt-info says more", why.c_str());
    return nullptr;
  }
  if (ordinal >= static_cast<unsigned>(m->count)) {
    *status = fail(HMMRT_ERROR_INVALID_DEVICE, "there is no GPU %u: %s finds %d, counted from 0", ordinal,
                   m->module->vendor, m->count);
    return nullptr;
  }
  return m->module;
}

}  // namespace

Status gpu_place(unsigned ordinal, gpu::Place* out) {
  Status status;
  const gpu::Module* module = module_of(ordinal, &status);
  if (module == nullptr) return status;
  if (module->place(ordinal, out)) return {};
  return fail(HMMRT_ERROR_SYSTEM, "%s does not say where GPU %u is", module->vendor, ordinal);
}

std::unique_ptr<Device> make_gpu_device(const gpu::DeviceConfig& config, void (*warn)(const char*), Status* status) {
  const gpu::Module* module = module_of(config.ordinal, status);
  if (module == nullptr) return nullptr;
  const gpu::Services services{[](hmmrt_result_t code, const char* text) { return fail(code, "%s", text); }, warn};
  std::unique_ptr<Device> device = module->make(config, services);
  *status = device != nullptr ? Status{} : Status{HMMRT_ERROR_SYSTEM};
  return device;
}

}  // namespace hmmrt
