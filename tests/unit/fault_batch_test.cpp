// SPDX-License-Identifier: MIT
#include "fault/fault_batch.hpp"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>

namespace hmmrt {
namespace {

TEST(FaultBatch, groups_by_block_in_order_and_the_strongest_access_wins) {
  std::mt19937 random(11);
  auto batch = std::make_unique<FaultBatch>();
  for (int round = 0; round < 200; ++round) {
    batch->clear();
    std::map<std::uintptr_t, Access> strongest;
    std::map<std::uintptr_t, std::uint64_t> oldest;
    std::uint32_t duplicates = 0;
    const unsigned n = 1 + random() % FaultBatch::k_capacity;
    for (unsigned i = 0; i < n; ++i) {
      const std::uintptr_t addr = (1 + random() % 6) * k_block_size + random() % 40 * k_page_size + random() % 4096;
      const auto access = static_cast<Access>(random() % 3);
      const std::uint64_t time = 1 + random() % 1000;
      ASSERT_TRUE(batch->add(1, addr, access, time));
      const auto [at, fresh] = strongest.emplace(page_floor(addr), access);
      if (!fresh) ++duplicates;
      at->second = std::max(at->second, access);
      const auto [t, first] = oldest.emplace(block_floor(addr), time);
      if (!first) t->second = std::min(t->second, time);
    }
    batch->sort();
    EXPECT_EQ(batch->faults(), n);
    EXPECT_EQ(batch->duplicates(), duplicates);
    ASSERT_EQ(batch->size(), oldest.size());
    std::uintptr_t last = 0;
    std::size_t pages = 0;
    for (std::size_t g = 0; g < batch->size(); ++g) {
      const BatchGroup& group = batch->group(g);
      EXPECT_GT(group.base, last);
      last = group.base;
      EXPECT_EQ(group.oldest_ns, oldest.at(group.base));
      const FaultGroup& f = group.faults;
      EXPECT_FALSE(f.read.intersects(f.write) || f.read.intersects(f.atomic) || f.write.intersects(f.atomic));
      f.pages().for_each([&](unsigned page) {
        const Access access = f.atomic.test(page) ? Access::atomic : f.write.test(page) ? Access::write : Access::read;
        EXPECT_EQ(access, strongest.at(group.base + page * k_page_size));
        ++pages;
      });
    }
    EXPECT_EQ(pages, strongest.size());
  }
}

TEST(FaultBatch, takes_as_many_blocks_as_it_has_faults) {
  auto batch = std::make_unique<FaultBatch>();
  for (std::size_t i = 0; i < FaultBatch::k_capacity; ++i) {
    ASSERT_TRUE(batch->add(1, (i * 37 % 1000 + 1) * k_block_size, Access::read, 1));
  }
  EXPECT_FALSE(batch->add(1, std::uintptr_t{5000} * k_block_size, Access::read, 1));
  EXPECT_EQ(batch->size(), FaultBatch::k_capacity);
}

}  // namespace
}  // namespace hmmrt
