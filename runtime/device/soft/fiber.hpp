// SPDX-License-Identifier: MIT
// The stack a wave runs on: a Boost.Context fiber on a guarded slice of its unit's stack area, made once and used for
// one wave after another. Switching keeps the C++ runtime's per-thread exception state with its fiber, and tells the
// sanitizers.
//   resume()   unit's scheduler -> fiber; returns when the fiber suspends or its body returns
//   suspend()  fiber -> whoever resumed it
// Thread: one, the unit's; a fiber never changes thread. The body must return before destruction.
#pragma once

#include <boost/context/fiber.hpp>
#include <cstddef>
#include <cstdint>

namespace hmmrt {

// Address space for `count` stacks, each with a guard page below it.
class StackArea {
 public:
  explicit StackArea(std::size_t count);  // throws NoRoom
  ~StackArea();
  StackArea(const StackArea&) = delete;
  StackArea& operator=(const StackArea&) = delete;

  static std::size_t stack_bytes();
  std::byte* top(std::size_t index) const;

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
};

class Fiber {
 public:
  using Body = void (*)(void* argument);

  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(std::byte* stack_top, Body body, void* argument);
  bool started() const { return static_cast<bool>(fiber_); }
  void resume();
  void suspend();

 private:
  struct ExceptionState {  // what __cxa_get_globals() points to
    void* caught = nullptr;
    std::uintptr_t uncaught = 0;
  };

  boost::context::fiber fiber_;
  boost::context::fiber caller_;
  ExceptionState exceptions_;
  std::byte* stack_top_ = nullptr;
  [[maybe_unused]] void* sanitizer_fiber_ = nullptr;  // ThreadSanitizer's handle, or AddressSanitizer's fake stack
  [[maybe_unused]] void* sanitizer_caller_ = nullptr;
  [[maybe_unused]] const void* caller_stack_ = nullptr;
  [[maybe_unused]] std::size_t caller_stack_bytes_ = 0;
};

}  // namespace hmmrt
