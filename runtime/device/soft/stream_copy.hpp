// SPDX-License-Identifier: MIT
// How a copy engine moves bytes: past the CPU's caches. A copy of a block that goes through them reads every line of the
// destination before it overwrites it, and throws out what the application had cached; measured, memcpy reaches two
// thirds of this one's speed.
#pragma once

#include <cstddef>

namespace hmmrt {

// As memcpy. What was written is visible to whoever sees a release store made after the return. Short copies, and those
// to memory that is not aligned to a cache line, go through the caches.
void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept;

}  // namespace hmmrt
