// SPDX-License-Identifier: MIT
#include "device/soft/fiber.hpp"

#include <cxxabi.h>
#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "device/soft/no_room.hpp"
#include "space/page.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace hmmrt {

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::size_t k_stack_bytes = 256 << 10;
#else
constexpr std::size_t k_stack_bytes = 64 << 10;
#endif

// Gives the fiber a slice of the unit's stack area; freeing it is the area's business.
struct AreaStack {
  std::byte* top;
  boost::context::stack_context allocate() const {
    boost::context::stack_context s;
    s.sp = top;
    s.size = k_stack_bytes;
    return s;
  }
  void deallocate(boost::context::stack_context&) noexcept {}
};

NoRoom no_stacks(std::size_t bytes) {
  return {"the stacks of a compute unit's waves (two mappings each)", bytes,
          "option waves_per_unit or compute_units, or the number of contexts"};
}

}  // namespace

StackArea::StackArea(std::size_t count) : bytes_(count * (k_stack_bytes + k_page_size)) {
  void* m = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) throw no_stacks(bytes_);
  base_ = static_cast<std::byte*>(m);
  for (std::size_t i = 0; i < count; ++i) {
    if (mprotect(top(i) - k_stack_bytes, k_stack_bytes, PROT_READ | PROT_WRITE) != 0) {
      const NoRoom error = no_stacks(bytes_);  // before errno is gone
      munmap(base_, bytes_);
      throw error;
    }
  }
  madvise(base_, bytes_, MADV_NOHUGEPAGE);
}

StackArea::~StackArea() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base_, bytes_);  // frames that were unwound by switching away for good
#endif
  munmap(base_, bytes_);
}

std::size_t StackArea::stack_bytes() { return k_stack_bytes; }

std::byte* StackArea::top(std::size_t index) const { return base_ + (index + 1) * (k_stack_bytes + k_page_size); }

#if defined(__SANITIZE_THREAD__)
Fiber::~Fiber() {
  if (sanitizer_fiber_ != nullptr) __tsan_destroy_fiber(sanitizer_fiber_);
}
#else
Fiber::~Fiber() = default;
#endif

void Fiber::start(std::byte* stack_top, Body body, void* argument) {
  stack_top_ = stack_top;
#if defined(__SANITIZE_THREAD__)
  sanitizer_fiber_ = __tsan_create_fiber(0);
#endif
  fiber_ = boost::context::fiber(std::allocator_arg, AreaStack{stack_top},
                                 [this, body, argument](boost::context::fiber&& caller) {
                                   caller_ = std::move(caller);
#if defined(__SANITIZE_ADDRESS__)
                                   __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_stack_bytes_);
#endif
                                   body(argument);
#if defined(__SANITIZE_ADDRESS__)
                                   __sanitizer_start_switch_fiber(nullptr, caller_stack_, caller_stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
                                   __tsan_switch_to_fiber(sanitizer_caller_, 0);
#endif
                                   return std::move(caller_);
                                 });
}

void Fiber::resume() {
  // The runtime keeps its caught exceptions per thread; each fiber has its own.
  void* globals = static_cast<void*>(abi::__cxa_get_globals());
  ExceptionState mine;
  std::memcpy(&mine, globals, sizeof mine);
  std::memcpy(globals, &exceptions_, sizeof exceptions_);
#if defined(__SANITIZE_THREAD__)
  sanitizer_caller_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(sanitizer_fiber_, 0);
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_top_ - k_stack_bytes, k_stack_bytes);
#endif
  fiber_ = std::move(fiber_).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  std::memcpy(&exceptions_, globals, sizeof exceptions_);
  std::memcpy(globals, &mine, sizeof mine);
}

void Fiber::suspend() {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(sanitizer_caller_, 0);
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, caller_stack_, caller_stack_bytes_);
#endif
  caller_ = std::move(caller_).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &caller_stack_, &caller_stack_bytes_);
#endif
}

}  // namespace hmmrt
