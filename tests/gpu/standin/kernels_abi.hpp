// SPDX-License-Identifier: MIT
// Between the stand-in for HIP and kernels that are compiled for it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

// The head of what a stand-in's kernel is given; `bytes` is all of it.
struct StandinLaunch {
  std::size_t bytes;
};

// Counts what changes the answer of hmmrt_standin_reachable().
extern "C" std::atomic<std::uint64_t> hmmrt_standin_changes;
extern "C" bool hmmrt_standin_reachable(std::uintptr_t at, std::uintptr_t* begin, std::uintptr_t* end);
