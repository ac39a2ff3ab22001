// SPDX-License-Identifier: MIT
// The vendor's runtime under one set of names, so that one source serves both: GPU(MemcpyAsync) is hipMemcpyAsync or
// cudaMemcpyAsync. Only what the two name differently is spelled out here.
#pragma once

#ifdef HMMRT_GPU_CUDA
#include <cuda_runtime_api.h>

#define GPU(name) cuda##name
#define HMMRT_GPU_VENDOR "CUDA"
#else
#ifndef __HIP_PLATFORM_AMD__
#define __HIP_PLATFORM_AMD__
#endif
#include <hip/hip_runtime_api.h>

#define GPU(name) hip##name
#define HMMRT_GPU_VENDOR "HIP"
#endif

namespace hmmrt::gpu {

using Error = GPU(Error_t);
using Stream = GPU(Stream_t);
using Event = GPU(Event_t);
#ifdef HMMRT_GPU_CUDA
using DeviceProperties = cudaDeviceProp;
#else
using DeviceProperties = hipDeviceProp_t;
#endif
constexpr Error k_success = GPU(Success);
constexpr Error k_not_ready = GPU(ErrorNotReady);
constexpr unsigned k_event_flags = GPU(EventDisableTiming);
constexpr unsigned k_stream_flags = GPU(StreamNonBlocking);
constexpr auto k_to_device = GPU(MemcpyHostToDevice);
constexpr auto k_to_host = GPU(MemcpyDeviceToHost);

#ifdef HMMRT_GPU_CUDA
inline Error host_allocate(void** out, std::size_t bytes) { return cudaHostAlloc(out, bytes, cudaHostAllocDefault); }
inline Error host_free(void* memory) { return cudaFreeHost(memory); }
inline constexpr auto k_can_map_host = cudaDevAttrCanMapHostMemory;
inline constexpr auto k_native_atomics = cudaDevAttrHostNativeAtomicSupported;
#else
inline Error host_allocate(void** out, std::size_t bytes) { return hipHostMalloc(out, bytes, hipHostMallocDefault); }
inline Error host_free(void* memory) { return hipHostFree(memory); }
inline constexpr auto k_can_map_host = hipDeviceAttributeCanMapHostMemory;
inline constexpr auto k_native_atomics = hipDeviceAttributeHostNativeAtomicSupported;
#endif

}  // namespace hmmrt::gpu
