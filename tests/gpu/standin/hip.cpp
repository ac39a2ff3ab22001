// SPDX-License-Identifier: MIT
// A stand-in for libamdhip64.so.5, for machines without an AMD GPU: HIP's symbols, built against HIP's own header. A GPU is
// some memory, streams are threads, and kernels are functions of the test's (kernels.hpp). It is stricter than a GPU where
// a mistake of the runtime would go unseen: see reachable(). Linked by nobody: it is put in front of the real library by
// LD_LIBRARY_PATH. Beside it stands one for libhsakmt (hsakmt.cpp); with HMMRT_TEST_KFD=1 its GPUs reach all memory.
//
//   HMMRT_TEST_HIP_DEVICES=N     how many GPUs there are (1)
//   HMMRT_TEST_HIP_MEMORY=BYTES  memory of each (1G)
//   HMMRT_TEST_HIP_FAIL=NAME[:N] the call NAME fails: always, or its N-th time only
//   HMMRT_TEST_KFD_APU=1         the GPUs say that they are integrated
#define __HIP_PLATFORM_AMD__
#include <hip/hip_runtime_api.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "gpu/standin/kernels_abi.hpp"

namespace {

constexpr std::size_t k_page = 4096;

// ---- what the environment asks for ----------------------------------------------------------------------------------

std::uint64_t number(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}
int device_count() { return static_cast<int>(number("HMMRT_TEST_HIP_DEVICES", 1)); }
// Memory of a driver's: SVM sees that it is nobody's private memory, and leaves it alone.
int sharing() { return number("HMMRT_TEST_KFD", 0) != 0 ? MAP_SHARED : MAP_PRIVATE; }
std::uint64_t device_memory() { return number("HMMRT_TEST_HIP_MEMORY", std::uint64_t{1} << 30); }

// Whether this call is one that fails.
bool fails(const char* name) {
  const char* text = std::getenv("HMMRT_TEST_HIP_FAIL");
  if (text == nullptr) return false;
  const std::string wanted(text);
  const std::size_t colon = wanted.find(':');
  if (wanted.substr(0, colon) != name) return false;
  static std::atomic<std::uint64_t> calls{0};
  const std::uint64_t call = ++calls;
  return colon == std::string::npos || call == std::strtoull(wanted.c_str() + colon + 1, nullptr, 0);
}
#define MAY_FAIL(error) \
  if (fails(__func__)) return keep(error)

thread_local hipError_t t_last = hipSuccess;
thread_local int t_device = 0;
hipError_t keep(hipError_t e) {
  if (e != hipSuccess) t_last = e;
  return e;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

struct Piece {
  std::size_t bytes;
  int device;  // -1: host memory
  int ring;    // what holds the pages, or -1
};
std::shared_mutex g_lock;
// Device memory, and pinned host memory. Never destroyed: kernels may run until the process ends.
std::map<std::uintptr_t, Piece>& g_memory = *std::make_unique<std::map<std::uintptr_t, Piece>>().release();
std::atomic<std::uint64_t> g_used[k_standin_gpus];  // bytes of each device
std::atomic<std::uint64_t>& used(int device) { return g_used[device % k_standin_gpus]; }

void forget(std::map<std::uintptr_t, Piece>::iterator it) {
  g_memory.erase(it);
  hmmrt_standin_changes.fetch_add(1, std::memory_order_release);
}

// Pins pages as a driver does: a long-term reference for writing, which userfaultfd and migration then meet. io_uring takes
// such. -1: not, for want of means (how much may be locked); -2: such pages cannot be.
int pin(void* at, std::size_t bytes) {
  io_uring_params params{};
  const auto ring = static_cast<int>(syscall(SYS_io_uring_setup, 1, &params));
  if (ring < 0) return -1;
  const iovec whole{at, bytes};
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &whole, 1) == 0) return ring;
  const int error = errno;
  close(ring);
  return error == EFAULT ? -2 : -1;
}

const Piece* find(std::uintptr_t at, std::uintptr_t* begin) {
  auto it = g_memory.upper_bound(at);
  if (it == g_memory.begin()) return nullptr;
  --it;
  *begin = it->first;
  return at - it->first < it->second.bytes ? &it->second : nullptr;
}

bool pinned(const void* at) {
  const std::shared_lock guard(g_lock);
  std::uintptr_t begin = 0;
  const Piece* piece = find(reinterpret_cast<std::uintptr_t>(at), &begin);
  return piece != nullptr && piece->device < 0;
}

// Whether [at, at + bytes) is memory of this device.
bool holds(int device, const void* at, std::size_t bytes) {
  const std::shared_lock guard(g_lock);
  std::uintptr_t begin = 0;
  const auto first = reinterpret_cast<std::uintptr_t>(at);
  const Piece* piece = find(first, &begin);
  return piece != nullptr && piece->device == device && first + bytes <= begin + piece->bytes;
}

// ---- streams and events ---------------------------------------------------------------------------------------------

}  // namespace

struct ihipEvent_t {
  std::mutex lock;
  std::condition_variable changed;
  std::uint64_t recorded = 0, reached = 0;
  void reach(std::uint64_t n) {
    const std::lock_guard guard(lock);
    reached = std::max(reached, n);
    changed.notify_all();
  }
};

struct ihipStream_t {
  explicit ihipStream_t(int on) : device(on), thread([this] { work(); }) {}
  ~ihipStream_t() {
    {
      const std::lock_guard guard(lock);
      stopping = true;
    }
    more.notify_one();
    thread.join();
  }
  void put(std::function<void()> fn) {
    {
      const std::lock_guard guard(lock);
      tasks.push_back(std::move(fn));
    }
    more.notify_one();
  }
  void drain() {
    std::unique_lock guard(lock);
    done.wait(guard, [this] { return tasks.empty() && !busy; });
  }
  bool idle() {
    const std::lock_guard guard(lock);
    return tasks.empty() && !busy;
  }
  void work() {
    std::unique_lock guard(lock);
    for (;;) {
      more.wait(guard, [this] { return stopping || !tasks.empty(); });
      if (tasks.empty()) return;
      const std::function<void()> fn = std::move(tasks.front());
      tasks.pop_front();
      busy = true;
      guard.unlock();
      fn();
      guard.lock();
      busy = false;
      if (tasks.empty()) done.notify_all();
    }
  }

  const int device;
  std::mutex lock;
  std::condition_variable more, done;
  std::deque<std::function<void()>> tasks;
  bool busy = false, stopping = false;
  std::thread thread;
};

namespace {

std::mutex g_streams_lock;
std::set<ihipStream_t*> g_streams;

bool live(hipStream_t stream) {
  const std::lock_guard guard(g_streams_lock);
  return g_streams.count(stream) != 0;
}

}  // namespace

extern "C" {

std::atomic<std::uint64_t> hmmrt_standin_changes{0};
std::atomic<std::uint64_t> hmmrt_standin_svm_bytes[k_standin_gpus];

hipError_t hipGetDeviceCount(int* count) {
  *count = 0;
  MAY_FAIL(hipErrorNoDevice);
  if (hmmrt_standin_hsa_init != nullptr) hmmrt_standin_hsa_init();
  *count = device_count();
  return *count != 0 ? hipSuccess : keep(hipErrorNoDevice);
}
hipError_t hipSetDevice(int device) {
  MAY_FAIL(hipErrorInvalidDevice);
  if (device < 0 || device >= device_count()) return keep(hipErrorInvalidDevice);
  t_device = device;
  return hipSuccess;
}
hipError_t hipGetDevice(int* device) {
  *device = t_device;
  return hipSuccess;
}
hipError_t hipGetDeviceProperties(hipDeviceProp_t* out, int device) {
  MAY_FAIL(hipErrorInvalidDevice);
  if (device < 0 || device >= device_count()) return keep(hipErrorInvalidDevice);
  std::memset(out, 0, sizeof *out);
  std::strcpy(out->name, "stand-in GPU (no hardware)");
  std::strcpy(out->gcnArchName, "gfx000");
  out->totalGlobalMem = device_memory();
  out->multiProcessorCount = 4;
  out->warpSize = 64;
  out->pciBusID = device + 1;  // of domain and device 0
  const char* const apu = std::getenv("HMMRT_TEST_KFD_APU");
  out->integrated = apu != nullptr && std::strcmp(apu, "0") != 0 ? 1 : 0;
  return hipSuccess;
}
hipError_t hipDeviceGetAttribute(int* out, hipDeviceAttribute_t which, int device) {
  MAY_FAIL(hipErrorInvalidValue);
  if (device < 0 || device >= device_count()) return keep(hipErrorInvalidDevice);
  *out = which == hipDeviceAttributeCanMapHostMemory || which == hipDeviceAttributeHostNativeAtomicSupported ? 1 : 0;
  return hipSuccess;
}
hipError_t hipMemGetInfo(size_t* free_bytes, size_t* total) {
  MAY_FAIL(hipErrorInvalidValue);
  const std::shared_lock guard(g_lock);
  *total = device_memory();
  const std::uint64_t taken = used(t_device) + hmmrt_standin_svm_bytes[t_device % k_standin_gpus].load();
  *free_bytes = *total - std::min<std::uint64_t>(taken, *total);
  return hipSuccess;
}
const char* hipGetErrorString(hipError_t e) {
  switch (e) {
    case hipSuccess:
      return "no error";
    case hipErrorNoDevice:
      return "no ROCm-capable device is detected";
    case hipErrorOutOfMemory:
      return "out of memory";
    case hipErrorInvalidDevice:
      return "invalid device ordinal";
    case hipErrorNotReady:
      return "device not ready";
    case hipErrorHostMemoryAlreadyRegistered:
      return "part or all of the requested memory range is already mapped";
    case hipErrorLaunchFailure:
      return "unspecified launch failure";
    default:
      return "invalid argument";
  }
}
hipError_t hipGetLastError() {
  const hipError_t e = t_last;
  t_last = hipSuccess;
  return e;
}

hipError_t hipMalloc(void** out, size_t bytes) {
  MAY_FAIL(hipErrorOutOfMemory);
  const std::unique_lock guard(g_lock);
  if (bytes > device_memory() - used(t_device)) return keep(hipErrorOutOfMemory);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, sharing() | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return keep(hipErrorOutOfMemory);
  g_memory[reinterpret_cast<std::uintptr_t>(memory)] = {bytes, t_device, -1};
  used(t_device) += bytes;
  *out = memory;
  return hipSuccess;
}
hipError_t hipFree(void* memory) {
  const std::unique_lock guard(g_lock);
  const auto it = g_memory.find(reinterpret_cast<std::uintptr_t>(memory));
  if (it == g_memory.end() || it->second.device < 0) return keep(hipErrorInvalidValue);
  used(it->second.device) -= it->second.bytes;
  munmap(memory, it->second.bytes);
  forget(it);
  return hipSuccess;
}
hipError_t hipHostMalloc(void** out, size_t bytes, unsigned) {
  MAY_FAIL(hipErrorOutOfMemory);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, sharing() | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return keep(hipErrorOutOfMemory);
  const std::unique_lock guard(g_lock);
  g_memory[reinterpret_cast<std::uintptr_t>(memory)] = {bytes, -1, -1};
  *out = memory;
  return hipSuccess;
}
hipError_t hipHostFree(void* memory) {
  const std::unique_lock guard(g_lock);
  const auto it = g_memory.find(reinterpret_cast<std::uintptr_t>(memory));
  if (it == g_memory.end()) return keep(hipErrorInvalidValue);
  munmap(memory, it->second.bytes);
  forget(it);
  return hipSuccess;
}
hipError_t hipHostRegister(void* memory, size_t bytes, unsigned) {
  MAY_FAIL(hipErrorInvalidValue);
  const auto at = reinterpret_cast<std::uintptr_t>(memory);
  if (memory == nullptr || bytes == 0 || at % k_page != 0 || bytes % k_page != 0) return keep(hipErrorInvalidValue);
  {
    const std::shared_lock guard(g_lock);
    auto next = g_memory.lower_bound(at + bytes);
    if (next != g_memory.begin() && (--next)->first + next->second.bytes > at) {
      return keep(hipErrorHostMemoryAlreadyRegistered);
    }
  }
  const int ring = pin(memory, bytes);
  if (ring == -2) return keep(hipErrorInvalidValue);
  const std::unique_lock guard(g_lock);
  g_memory[at] = {bytes, -1, ring};
  return hipSuccess;
}
hipError_t hipHostUnregister(void* memory) {
  MAY_FAIL(hipErrorInvalidValue);
  int ring = -1;
  {
    const std::unique_lock guard(g_lock);
    const auto it = g_memory.find(reinterpret_cast<std::uintptr_t>(memory));
    if (it == g_memory.end() || it->second.device >= 0) return keep(hipErrorHostMemoryNotRegistered);
    ring = it->second.ring;
    forget(it);
  }
  if (ring >= 0) {
    syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, nullptr, 0);
    close(ring);
  }
  return hipSuccess;
}
hipError_t hipHostGetDevicePointer(void** out, void* host, unsigned) {
  MAY_FAIL(hipErrorInvalidValue);
  if (!pinned(host)) return keep(hipErrorInvalidValue);
  *out = host;
  return hipSuccess;
}

hipError_t hipStreamCreateWithFlags(hipStream_t* out, unsigned) {
  MAY_FAIL(hipErrorOutOfMemory);
  *out = new ihipStream_t(t_device);
  const std::lock_guard guard(g_streams_lock);
  g_streams.insert(*out);
  return hipSuccess;
}
hipError_t hipStreamDestroy(hipStream_t stream) {
  {
    const std::lock_guard guard(g_streams_lock);
    if (g_streams.erase(stream) == 0) return keep(hipErrorInvalidHandle);
  }
  delete stream;
  return hipSuccess;
}
hipError_t hipStreamSynchronize(hipStream_t stream) {
  MAY_FAIL(hipErrorLaunchFailure);
  if (!live(stream)) return keep(hipErrorInvalidHandle);
  stream->drain();
  return hipSuccess;
}
hipError_t hipStreamQuery(hipStream_t stream) {
  if (!live(stream)) return keep(hipErrorInvalidHandle);
  return stream->idle() ? hipSuccess : hipErrorNotReady;
}
hipError_t hipDeviceSynchronize() {
  MAY_FAIL(hipErrorLaunchFailure);
  std::vector<ihipStream_t*> streams;
  {
    const std::lock_guard guard(g_streams_lock);
    for (ihipStream_t* s : g_streams) {
      if (s->device == t_device) streams.push_back(s);
    }
  }
  for (ihipStream_t* s : streams) s->drain();
  return hipSuccess;
}

hipError_t hipEventCreateWithFlags(hipEvent_t* out, unsigned) {
  MAY_FAIL(hipErrorOutOfMemory);
  *out = new ihipEvent_t;
  return hipSuccess;
}
hipError_t hipEventDestroy(hipEvent_t event) {
  delete event;
  return hipSuccess;
}
hipError_t hipEventRecord(hipEvent_t event, hipStream_t stream) {
  MAY_FAIL(hipErrorInvalidHandle);
  if (!live(stream)) return keep(hipErrorInvalidHandle);
  std::uint64_t n = 0;
  {
    const std::lock_guard guard(event->lock);
    n = ++event->recorded;
  }
  stream->put([event, n] { event->reach(n); });
  return hipSuccess;
}
hipError_t hipEventQuery(hipEvent_t event) {
  const std::lock_guard guard(event->lock);
  return event->reached >= event->recorded ? hipSuccess : hipErrorNotReady;
}
hipError_t hipEventSynchronize(hipEvent_t event) {
  MAY_FAIL(hipErrorLaunchFailure);
  std::unique_lock guard(event->lock);
  event->changed.wait(guard, [&] { return event->reached >= event->recorded; });
  return hipSuccess;
}

hipError_t hipMemcpyAsync(void* to, const void* from, size_t bytes, hipMemcpyKind kind, hipStream_t stream) {
  MAY_FAIL(hipErrorInvalidValue);
  if (!live(stream)) return keep(hipErrorInvalidHandle);
  stream->put([=] { std::memcpy(to, from, bytes); });
  // Pageable memory: HIP has copied it, or out of it, when it returns.
  if (!pinned(kind == hipMemcpyHostToDevice ? from : to)) stream->drain();
  return hipSuccess;
}
hipError_t hipMemcpy(void* to, const void* from, size_t bytes, hipMemcpyKind) {
  MAY_FAIL(hipErrorInvalidValue);
  std::memcpy(to, from, bytes);
  return hipSuccess;
}
hipError_t hipDeviceCanAccessPeer(int* out, int device, int peer) {
  MAY_FAIL(hipErrorInvalidDevice);
  if (device < 0 || device >= device_count() || peer < 0 || peer >= device_count()) return keep(hipErrorInvalidDevice);
  *out = device != peer ? 1 : 0;
  return hipSuccess;
}
// As if another part of the program had done so: for the runtime that must make no difference.
hipError_t hipDeviceEnablePeerAccess(int, unsigned) { return keep(hipErrorPeerAccessAlreadyEnabled); }
hipError_t hipMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t bytes,
                              hipStream_t stream) {
  MAY_FAIL(hipErrorInvalidValue);
  if (!live(stream)) return keep(hipErrorInvalidHandle);
  if (!holds(to_device, to, bytes) || !holds(from_device, from, bytes)) return keep(hipErrorInvalidValue);
  stream->put([=] { std::memcpy(to, from, bytes); });
  return hipSuccess;
}
hipError_t hipMemsetAsync(void* to, int value, size_t bytes, hipStream_t stream) {
  MAY_FAIL(hipErrorInvalidValue);
  if (!live(stream)) return keep(hipErrorInvalidHandle);
  stream->put([=] { std::memset(to, value, bytes); });
  return hipSuccess;
}

// args[0] is a StandinLaunch: what hipcc's code objects say of a kernel's arguments, it says itself.
hipError_t hipLaunchKernel(const void* function, dim3, dim3, void** args, size_t, hipStream_t stream) {
  MAY_FAIL(hipErrorLaunchFailure);
  if (!live(stream)) return keep(hipErrorInvalidHandle);
  const auto* block = static_cast<const StandinLaunch*>(args[0]);
  auto copy = std::shared_ptr<std::byte[]>(new std::byte[block->bytes]);
  std::memcpy(copy.get(), block, block->bytes);
  const auto run = reinterpret_cast<void (*)(void*)>(const_cast<void*>(function));
  stream->put([copy, run, device = stream->device] {
    t_device = device;
    run(copy.get());
  });
  return hipSuccess;
}

// Whether the kernel running in this thread can reach `at`: memory of its GPU, or pinned host memory. [*begin, *end) is all
// that it can reach around it, until pages are pinned or unpinned. A real GPU would fault on anything else, and so does
// the test; the CPU, which runs the kernel here, would not.
bool hmmrt_standin_reachable(std::uintptr_t at, std::uintptr_t* begin, std::uintptr_t* end) {
  const std::shared_lock guard(g_lock);
  const Piece* piece = find(at, begin);
  if (piece == nullptr || (piece->device >= 0 && piece->device != t_device)) return false;
  *end = *begin + piece->bytes;
  return true;
}
bool hmmrt_standin_holds(std::uintptr_t at) {
  const std::shared_lock guard(g_lock);
  std::uintptr_t begin = 0;
  return find(at, &begin) != nullptr;
}
int hmmrt_standin_device() { return t_device; }
std::size_t hmmrt_standin_streams() {
  const std::lock_guard guard(g_streams_lock);
  return g_streams.size();
}
std::uint64_t hmmrt_standin_used(int device) { return used(device); }

}  // extern "C"
