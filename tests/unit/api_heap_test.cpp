// SPDX-License-Identifier: MIT
// The heap, over a model of the house that keeps the rules: memory is plain, and unmanaged pages are zeroed.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "api/heap.hpp"

namespace hmmrt {
namespace {

class ModelHouse final : public HeapBackend {
 public:
  std::byte* allocate_arena(std::size_t bytes) override {
    if (bytes > limit) return (void)fail(HMMRT_ERROR_OUT_OF_MEMORY, "the model has no more memory"), nullptr;
    EXPECT_EQ(bytes % k_block_size, 0u);
    auto* raw = static_cast<std::byte*>(mmap(nullptr, bytes + k_block_size, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    auto* arena = reinterpret_cast<std::byte*>(block_ceil(reinterpret_cast<std::uintptr_t>(raw)));
    raw_[arena] = {raw, bytes + k_block_size};
    return arena;
  }
  void release_arena(std::byte* addr, std::size_t bytes) override {
    released += bytes;
    const auto arena = std::prev(raw_.upper_bound(addr));
    ASSERT_LE(addr + bytes, arena->second.first + arena->second.second);
    munmap(addr, bytes);
    if (addr == arena->first) raw_.erase(arena);
  }
  Status manage(std::uintptr_t addr, std::size_t bytes) override {
    if (fail_manage) return fail(HMMRT_ERROR_OUT_OF_MEMORY, "the model refuses");
    EXPECT_TRUE(ranges.emplace(addr, bytes).second);
    return {};
  }
  Status unmanage(std::uintptr_t addr, std::size_t bytes, bool* reusable) override {
    EXPECT_EQ(ranges[addr], bytes);
    ranges.erase(addr);
    std::memset(reinterpret_cast<void*>(addr), 0, bytes);
    *reusable = !unmapped;
    return {};
  }
  std::size_t arenas() const { return raw_.size(); }
  std::size_t released = 0;  // bytes

  std::map<std::uintptr_t, std::size_t> ranges;
  std::size_t limit = std::size_t{1} << 40;
  bool fail_manage = false;
  bool unmapped = false;

 private:
  std::map<std::byte*, std::pair<std::byte*, std::size_t>> raw_;
};

Status free_now(Heap& heap, void* p) {
  Heap::Freeing freeing;
  if (const Status s = heap.begin_free(p, &freeing); !s.ok()) return s;
  return heap.finish_free(freeing);
}

struct Fixture : ::testing::Test {
  ModelHouse house;
  Heap heap{house, std::size_t{16} << 20};
  void* allocate(std::size_t bytes) {
    void* p = nullptr;
    EXPECT_TRUE(heap.allocate(bytes, &p).ok()) << bytes;
    return p;
  }
};
using ApiHeap = Fixture;

TEST_F(ApiHeap, alignment_follows_the_size) {
  for (const std::size_t bytes :
       {1u, 255u, 256u, 257u, 2048u, 2049u, 4096u, 4097u, 100'000u, 2u << 20, (2u << 20) + 1, 20u << 20}) {
    const auto addr = reinterpret_cast<std::uintptr_t>(allocate(bytes));
    const std::uintptr_t alignment = bytes >= k_block_size ? k_block_size : bytes > 2048 ? k_page_size : 256;
    EXPECT_EQ(addr % alignment, 0u) << bytes;
  }
}

TEST_F(ApiHeap, small_allocations_share_one_range) {
  std::vector<void*> all;
  for (int i = 0; i < 200; ++i) all.push_back(allocate(24));
  EXPECT_EQ(house.ranges.size(), 1u);
  EXPECT_EQ(heap.allocations(), 200u);
  for (void* p : all) EXPECT_TRUE(free_now(heap, p).ok());
  EXPECT_EQ(heap.allocations(), 0u);
  EXPECT_LE(house.ranges.size(), 1u);
}

TEST_F(ApiHeap, recycled_memory_is_zero) {
  for (const std::size_t bytes : {100u, 2000u, 5000u, 3u << 20}) {
    for (int i = 0; i < 3; ++i) {
      auto* p = static_cast<unsigned char*>(allocate(bytes));
      EXPECT_TRUE(std::all_of(p, p + bytes, [](unsigned char c) { return c == 0; })) << bytes;
      std::memset(p, 0xab, bytes);
      EXPECT_TRUE(free_now(heap, p).ok());
    }
  }
}

TEST_F(ApiHeap, double_free_and_foreign_pointers_are_told_apart) {
  int local = 0;
  for (const std::size_t bytes : {100u, 5000u, 3u << 20}) {
    auto* p = static_cast<char*>(allocate(bytes));
    EXPECT_EQ(free_now(heap, p + 8).code(), HMMRT_ERROR_INVALID_VALUE);
    EXPECT_NE(std::strstr(failure_detail(), "inside"), nullptr) << failure_detail();
    EXPECT_TRUE(free_now(heap, p).ok());
    EXPECT_EQ(free_now(heap, p).code(), HMMRT_ERROR_NOT_MANAGED);
    EXPECT_NE(std::strstr(failure_detail(), "freed already"), nullptr) << failure_detail();
  }
  EXPECT_EQ(free_now(heap, &local).code(), HMMRT_ERROR_NOT_MANAGED);
  EXPECT_NE(std::strstr(failure_detail(), "not returned by"), nullptr) << failure_detail();
  EXPECT_EQ(free_now(heap, reinterpret_cast<void*>(1)).code(), HMMRT_ERROR_NOT_MANAGED);
}

TEST_F(ApiHeap, a_second_free_while_the_first_waits_is_refused_and_a_cancelled_one_forgotten) {
  for (const std::size_t bytes : {100u, 5000u}) {
    void* p = allocate(bytes);
    Heap::Freeing first, second;
    ASSERT_TRUE(heap.begin_free(p, &first).ok());
    EXPECT_EQ(heap.begin_free(p, &second).code(), HMMRT_ERROR_NOT_MANAGED);
    heap.cancel_free(first);
    EXPECT_TRUE(free_now(heap, p).ok());
  }
}

TEST_F(ApiHeap, arenas_beyond_the_first_go_back_when_empty) {
  std::vector<void*> all;
  for (int i = 0; i < 20; ++i) all.push_back(allocate(std::size_t{4} << 20));
  all.push_back(allocate(std::size_t{100} << 20));
  EXPECT_GE(house.arenas(), 6u);
  for (void* p : all) EXPECT_TRUE(free_now(heap, p).ok());
  EXPECT_EQ(house.arenas(), 1u);
  EXPECT_TRUE(house.ranges.empty());
}

TEST_F(ApiHeap, failures_leave_nothing_behind) {
  void* p = nullptr;
  house.fail_manage = true;
  EXPECT_EQ(heap.allocate(100, &p).code(), HMMRT_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(heap.allocate(10'000, &p).code(), HMMRT_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(heap.allocations(), 0u);
  house.fail_manage = false;
  house.limit = 0;
  EXPECT_EQ(heap.allocate(std::size_t{64} << 20, &p).code(), HMMRT_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(heap.allocate(~std::size_t{0} / 2, &p).code(), HMMRT_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(p, nullptr);
}

TEST_F(ApiHeap, a_small_request_is_met_when_a_whole_arena_is_not_to_be_had) {
  house.limit = std::size_t{4} << 20;
  EXPECT_NE(allocate(std::size_t{3} << 20), nullptr);
}

TEST_F(ApiHeap, what_the_application_unmapped_is_not_handed_out_again) {
  void* p = allocate(std::size_t{2} << 20);
  house.unmapped = true;
  EXPECT_TRUE(free_now(heap, p).ok());
  house.unmapped = false;
  for (int i = 0; i < 20; ++i) EXPECT_NE(allocate(std::size_t{2} << 20), p);
  heap.release_all();  // of three arenas
  EXPECT_EQ(house.released, std::size_t{46} << 20) << "it may be somebody else's by now";
}

TEST_F(ApiHeap, random_use_never_overlaps_and_always_zeroes) {
  std::mt19937 random(12345);
  std::map<std::uintptr_t, std::size_t> live;
  for (int step = 0; step < 4000; ++step) {
    if (live.size() < 60 && random() % 3 != 0) {
      const std::size_t bytes = 1 + random() % (std::size_t{1} << (random() % 23));
      auto* p = static_cast<unsigned char*>(allocate(bytes));
      const auto addr = reinterpret_cast<std::uintptr_t>(p);
      const auto after = live.lower_bound(addr);
      if (after != live.end()) {
        ASSERT_LE(addr + bytes, after->first);
      }
      if (after != live.begin()) {
        ASSERT_LE(std::prev(after)->first + std::prev(after)->second, addr);
      }
      ASSERT_EQ(p[0], 0);
      ASSERT_EQ(p[bytes - 1], 0);
      ASSERT_EQ(p[bytes / 2], 0);
      p[0] = p[bytes - 1] = p[bytes / 2] = 0xff;
      live.emplace(addr, bytes);
    } else if (!live.empty()) {
      auto it = std::next(live.begin(), static_cast<std::ptrdiff_t>(random() % live.size()));
      ASSERT_TRUE(free_now(heap, reinterpret_cast<void*>(it->first)).ok());
      live.erase(it);
    }
    ASSERT_EQ(heap.allocations(), live.size());
  }
  heap.release_all();
  EXPECT_EQ(house.arenas(), 0u);
  EXPECT_TRUE(house.ranges.empty());
}

}  // namespace
}  // namespace hmmrt
