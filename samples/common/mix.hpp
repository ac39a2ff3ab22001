// SPDX-License-Identifier: MIT
// A small, seeded, portable generator (splitmix64): the same numbers everywhere, on the CPU and in kernels.
#pragma once

#include <cstdint>
#include <hmmrt/kernel.hpp>

namespace samples {

HMMRT_KERNEL inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace samples
