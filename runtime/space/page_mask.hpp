// SPDX-License-Identifier: MIT
// PageMask: one bit per page of a block. The runtime speaks of sets of pages in masks, never in lists, so that every
// set operation is eight word operations and nothing allocates.
// Thread: a value; callers synchronise.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "space/page.hpp"

namespace hmmrt {

class PageMask {
 public:
  static constexpr unsigned k_words = k_block_pages / 64;

  constexpr PageMask() = default;

  static constexpr PageMask all() {
    PageMask m;
    m.words_.fill(~std::uint64_t{0});
    return m;
  }

  // Pages [first, first + count). Requires first + count <= 512.
  static constexpr PageMask range(unsigned first, unsigned count) {
    PageMask m;
    m.set(first, count);
    return m;
  }

  static constexpr PageMask one(unsigned page) { return range(page, 1); }

  constexpr bool test(unsigned page) const { return (words_[page / 64] >> (page % 64)) & 1; }
  constexpr void set(unsigned page) { words_[page / 64] |= std::uint64_t{1} << (page % 64); }
  constexpr void clear(unsigned page) { words_[page / 64] &= ~(std::uint64_t{1} << (page % 64)); }

  constexpr void set(unsigned first, unsigned count) {
    while (count != 0) {
      const unsigned bit = first % 64;
      const unsigned n = count < 64 - bit ? count : 64 - bit;
      words_[first / 64] |= ones(n) << bit;
      first += n;
      count -= n;
    }
  }

  constexpr bool any() const {
    std::uint64_t x = 0;
    for (auto w : words_) x |= w;
    return x != 0;
  }
  constexpr bool none() const { return !any(); }
  constexpr bool full() const {
    std::uint64_t x = ~std::uint64_t{0};
    for (auto w : words_) x &= w;
    return x == ~std::uint64_t{0};
  }
  constexpr unsigned count() const {
    unsigned n = 0;
    for (auto w : words_) n += static_cast<unsigned>(std::popcount(w));
    return n;
  }

  // Number of set pages in [first, first + count).
  constexpr unsigned count(unsigned first, unsigned count) const { return (*this & range(first, count)).count(); }

  // First set page at or after `from`; 512 when none.
  constexpr unsigned next(unsigned from) const { return scan(from, 0); }
  // First clear page at or after `from`; 512 when none.
  constexpr unsigned next_clear(unsigned from) const { return scan(from, ~std::uint64_t{0}); }

  // Calls fn(first, count) for each maximal run of set pages, in ascending order.
  template <class Fn>
  constexpr void for_each_run(Fn&& fn) const {
    for (unsigned first = next(0); first < k_block_pages;) {
      const unsigned end = next_clear(first);
      fn(first, end - first);
      first = end < k_block_pages ? next(end) : k_block_pages;
    }
  }

  // Calls fn(page) for each set page, in ascending order.
  template <class Fn>
  constexpr void for_each(Fn&& fn) const {
    for (unsigned w = 0; w < k_words; ++w) {
      for (std::uint64_t x = words_[w]; x != 0; x &= x - 1) fn(w * 64 + static_cast<unsigned>(std::countr_zero(x)));
    }
  }

  constexpr bool contains(const PageMask& other) const { return (other & ~*this).none(); }
  constexpr bool intersects(const PageMask& other) const { return (*this & other).any(); }

  constexpr PageMask& operator|=(const PageMask& o) {
    for (unsigned i = 0; i < k_words; ++i) words_[i] |= o.words_[i];
    return *this;
  }
  constexpr PageMask& operator&=(const PageMask& o) {
    for (unsigned i = 0; i < k_words; ++i) words_[i] &= o.words_[i];
    return *this;
  }
  friend constexpr PageMask operator|(PageMask a, const PageMask& b) { return a |= b; }
  friend constexpr PageMask operator&(PageMask a, const PageMask& b) { return a &= b; }
  friend constexpr PageMask operator~(PageMask a) {
    for (auto& w : a.words_) w = ~w;
    return a;
  }
  friend constexpr PageMask operator-(const PageMask& a, const PageMask& b) { return a & ~b; }
  friend constexpr bool operator==(const PageMask&, const PageMask&) = default;

  constexpr std::uint64_t word(unsigned i) const { return words_[i]; }
  constexpr void set_word(unsigned i, std::uint64_t w) { words_[i] = w; }

 private:
  static constexpr std::uint64_t ones(unsigned n) { return n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1; }

  constexpr unsigned scan(unsigned from, std::uint64_t flip) const {
    for (unsigned w = from / 64; w < k_words; ++w) {
      std::uint64_t x = words_[w] ^ flip;
      if (w == from / 64) x &= ~std::uint64_t{0} << (from % 64);
      if (x != 0) return w * 64 + static_cast<unsigned>(std::countr_zero(x));
    }
    return k_block_pages;
  }

  std::array<std::uint64_t, k_words> words_{};
};

}  // namespace hmmrt
