// SPDX-License-Identifier: MIT
// The words of the house as types: pages, blocks, processors, accesses, rights, causes. No behaviour lives here.
// Included by every room.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hmmrt {

constexpr unsigned k_page_shift = 12;
constexpr std::size_t k_page_size = std::size_t{1} << k_page_shift;  // the unit of state
constexpr unsigned k_block_shift = 21;
constexpr std::size_t k_block_size = std::size_t{1} << k_block_shift;  // the unit of locking, policy and pipelining
constexpr unsigned k_block_pages = 512;

// A processor: the CPU is 0, device d is d + 1.
using Processor = std::uint8_t;
using ProcessorSet = std::uint16_t;  // bit p = processor p
constexpr Processor k_cpu = 0;
constexpr unsigned k_max_devices = 8;
constexpr unsigned k_max_processors = k_max_devices + 1;
constexpr Processor k_no_processor = 0xff;

constexpr ProcessorSet set_of(Processor p) { return static_cast<ProcessorSet>(1u << p); }
constexpr Processor device_processor(unsigned device) { return static_cast<Processor>(device + 1); }

// What an access wants. Ordered by the rights it needs: atomic needs write.
enum class Access : std::uint8_t { read, write, atomic };

// What a mapping allows. Ordered: each includes those before it.
enum class Rights : std::uint8_t { none, read, write };

constexpr Rights rights_for(Access a) { return a == Access::read ? Rights::read : Rights::write; }

// Why pages moved.
enum class Cause : std::uint8_t {
  fault,
  prefetch_heuristic,
  prefetch_user,
  eviction,
  coherence,
  access_counter,
  advice
};
constexpr unsigned k_causes = 7;

// One frame: index of a 4 KiB page in one device's memory.
using Frame = std::uint32_t;
constexpr Frame k_no_frame = 0xffffffffu;

constexpr std::uintptr_t page_floor(std::uintptr_t a) { return a & ~(k_page_size - 1); }
constexpr std::uintptr_t page_ceil(std::uintptr_t a) { return page_floor(a + k_page_size - 1); }
constexpr std::uintptr_t block_floor(std::uintptr_t a) { return a & ~(k_block_size - 1); }
constexpr std::uintptr_t block_ceil(std::uintptr_t a) { return block_floor(a + k_block_size - 1); }
constexpr unsigned page_in_block(std::uintptr_t a) {
  return static_cast<unsigned>((a >> k_page_shift) & (k_block_pages - 1));
}

}  // namespace hmmrt
