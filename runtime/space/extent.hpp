// SPDX-License-Identifier: MIT
// Extent: a run of addresses, in bytes.
// Thread: a value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hmmrt {

struct Extent {
  std::uintptr_t addr = 0;
  std::size_t bytes = 0;
  std::uintptr_t end() const { return addr + bytes; }
  bool operator==(const Extent&) const = default;
};

// In ascending order: what begins where the last run ends becomes part of it.
inline void append(std::vector<Extent>& runs, std::uintptr_t addr, std::size_t bytes) {
  if (runs.empty() || runs.back().end() != addr) runs.push_back({addr, 0});
  runs.back().bytes += bytes;
}

}  // namespace hmmrt
