// SPDX-License-Identifier: MIT
#include "device/soft/stream_copy.hpp"

#include <cstdint>
#include <cstring>

// The sanitizers know memcpy, and do not see what streaming stores touch.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define HMMRT_STREAMS 1
#include <immintrin.h>
#else
#define HMMRT_STREAMS 0
#endif

namespace hmmrt {

#if HMMRT_STREAMS
namespace {

constexpr std::size_t k_shortest = std::size_t{32} * 1024;  // bytes worth streaming
constexpr std::size_t k_step = 256;
constexpr std::uintptr_t k_alignment = 64;  // of the destination

[[gnu::target("avx512f")]] void copy_by_64(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes; at += k_step) {
    for (std::size_t i = at; i < at + k_step; i += 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
    }
  }
}

[[gnu::target("avx2")]] void copy_by_32(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes; at += k_step) {
    for (std::size_t i = at; i < at + k_step; i += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    }
  }
}

void copy_by_16(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  for (std::size_t at = 0; at < bytes; at += k_step) {
    for (std::size_t i = at; i < at + k_step; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    }
  }
}

using Copy = void (*)(std::byte*, const std::byte*, std::size_t) noexcept;

Copy widest() {
  if (__builtin_cpu_supports("avx512f")) return copy_by_64;
  if (__builtin_cpu_supports("avx2")) return copy_by_32;
  return copy_by_16;
}

}  // namespace
#endif

void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
#if HMMRT_STREAMS
  static const Copy copy = widest();
  if (bytes >= k_shortest && bytes % k_step == 0 && reinterpret_cast<std::uintptr_t>(to) % k_alignment == 0) {
    copy(to, from, bytes);
    _mm_sfence();  // streaming stores are not ordered with the stores that follow
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

}  // namespace hmmrt
