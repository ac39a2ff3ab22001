// SPDX-License-Identifier: MIT
// BlockHistory: what a policy remembers about one block. Opaque to everyone else.
#pragma once

#include <array>
#include <cstddef>

namespace hmmrt {

// A policy's memory about one block: 256 zero-initialised bytes that live and die with the block.
struct alignas(8) BlockHistory {
  std::array<std::byte, 256> bytes{};
  template <class T>
  T& as() {
    static_assert(sizeof(T) <= sizeof(bytes) && alignof(T) <= 8);
    return *reinterpret_cast<T*>(bytes.data());
  }
};

}  // namespace hmmrt
