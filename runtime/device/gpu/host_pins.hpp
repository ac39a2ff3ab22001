// SPDX-License-Identifier: MIT
// Host memory that the vendor's runtime has pinned and mapped for its GPUs, process-wide. What is pinned is pinned for all
// GPUs, and cannot be pinned twice: so they share it, in whole pieces as they were pinned. Whoever had a piece pinned maps
// all of it, and whoever unmaps a page of it makes all of them let go (GpuDevice::unmap): so no page stays pinned that
// nobody maps. It could not move, or the application could have dropped it and find another in its place.
// Thread: any. Blocks on: the vendor, which may touch the pages: no lock held that serving a CPU fault takes.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace hmmrt::gpu {

struct HostPin {
  std::byte* host;
  std::size_t bytes;
};

// What pins [host, host + bytes), and perhaps more. Empty, and why, when it cannot all be pinned.
std::vector<std::shared_ptr<HostPin>> take_pins(std::byte* host, std::size_t bytes, std::string* why);
// Unpins it if nobody else has it.
void give_pin(std::shared_ptr<HostPin>& pin);

}  // namespace hmmrt::gpu
