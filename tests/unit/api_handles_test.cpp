// SPDX-License-Identifier: MIT
// The handle table: stale, foreign and garbage handles are reported; taking waits for users.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "api/handles.hpp"

namespace hmmrt {
namespace {

class Thing final : public HandleObject {
 public:
  static constexpr HandleKind k_kind = HandleKind::stream;
  explicit Thing(int v, std::atomic<int>* alive = nullptr) : HandleObject(k_kind), value(v), alive_(alive) {
    if (alive_ != nullptr) ++*alive_;
  }
  ~Thing() override {
    if (alive_ != nullptr) --*alive_;
  }
  int value;

 private:
  std::atomic<int>* alive_;
};

class Other final : public HandleObject {
 public:
  static constexpr HandleKind k_kind = HandleKind::event;
  Other() : HandleObject(k_kind) {}
};

TEST(ApiHandles, a_handle_finds_its_object) {
  HandleTable table;
  const std::uintptr_t a = table.put(std::make_unique<Thing>(1));
  const std::uintptr_t b = table.put(std::make_unique<Thing>(2));
  ASSERT_NE(a, 0u);
  ASSERT_NE(a, b);
  Use<Thing> use;
  ASSERT_TRUE(table.use(a, &use).ok());
  EXPECT_EQ(use->value, 1);
  ASSERT_TRUE(table.use(b, &use).ok());
  EXPECT_EQ(use->value, 2);
}

TEST(ApiHandles, a_destroyed_handle_stays_invalid_when_its_slot_is_reused) {
  HandleTable table;
  std::set<std::uintptr_t> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::uintptr_t h = table.put(std::make_unique<Thing>(i));
    EXPECT_TRUE(seen.insert(h).second);
    std::unique_ptr<Thing> taken;
    ASSERT_TRUE(table.take(h, &taken).ok());
    EXPECT_EQ(taken->value, i);
    Use<Thing> use;
    EXPECT_EQ(table.use(h, &use).code(), HMMRT_ERROR_INVALID_HANDLE);
    EXPECT_NE(std::strstr(failure_detail(), "destroyed"), nullptr) << failure_detail();
    EXPECT_EQ(table.take(h, &taken).code(), HMMRT_ERROR_INVALID_HANDLE);
  }
  EXPECT_EQ(table.live(), 0u);
}

TEST(ApiHandles, a_handle_of_another_kind_is_named) {
  HandleTable table;
  const std::uintptr_t h = table.put(std::make_unique<Other>());
  Use<Thing> use;
  EXPECT_EQ(table.use(h, &use).code(), HMMRT_ERROR_INVALID_HANDLE);
  EXPECT_NE(std::strstr(failure_detail(), "event handle"), nullptr) << failure_detail();
  EXPECT_EQ(table.use(0, &use).code(), HMMRT_ERROR_INVALID_HANDLE);
  EXPECT_NE(std::strstr(failure_detail(), "null"), nullptr) << failure_detail();
}

TEST(ApiHandles, garbage_is_never_followed) {
  HandleTable table;
  const std::uintptr_t good = table.put(std::make_unique<Thing>(7));
  std::mt19937_64 random(1);
  for (int i = 0; i < 100000; ++i) {
    const std::uintptr_t h = i % 2 == 0 ? random() : good ^ (std::uintptr_t{1} << random() % 64);
    if (h == good) continue;
    Use<Thing> use;
    EXPECT_EQ(table.use(h, &use).code(), HMMRT_ERROR_INVALID_HANDLE);
  }
}

TEST(ApiHandles, wait_unused_returns_after_the_last_user) {
  HandleTable table;
  std::atomic<int> alive{0};
  for (int round = 0; round < 200; ++round) {
    const std::uintptr_t h = table.put(std::make_unique<Thing>(round, &alive));
    std::atomic<bool> go{false};
    std::atomic<int> wrong{0};
    std::thread user([&] {
      while (!go) std::this_thread::yield();
      for (;;) {
        Use<Thing> use;
        if (!table.use(h, &use).ok()) return;
        if (use->value != round || alive != 1) ++wrong;
      }
    });
    go = true;
    std::unique_ptr<Thing> taken;
    ASSERT_TRUE(table.take(h, &taken).ok());
    ASSERT_NE(taken, nullptr);
    taken->wait_unused();
    taken.reset();
    user.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(alive, 0);
  }
}

TEST(ApiHandles, an_object_that_is_waited_for_lends_no_further_use_through_its_children) {
  HandleTable table;
  const std::uintptr_t h = table.put(std::make_unique<Thing>(1));
  const std::uintptr_t child = table.put(std::make_unique<Other>());
  std::unique_ptr<Thing> taken;
  ASSERT_TRUE(table.take(h, &taken).ok());
  EXPECT_EQ(taken->handle(), h);
  ASSERT_TRUE(taken->try_begin_use());
  taken->end_use();
  taken->wait_unused();
  const auto of_owner = [&](Other&) {
    return taken->try_begin_use() ? Status() : fail(HMMRT_ERROR_INVALID_HANDLE, "its owner is going");
  };
  Use<Other> use;
  EXPECT_EQ(table.use(child, &use, of_owner).code(), HMMRT_ERROR_INVALID_HANDLE);
  EXPECT_FALSE(use);
  std::unique_ptr<Other> gone;
  EXPECT_EQ(table.take(child, &gone, of_owner).code(), HMMRT_ERROR_INVALID_HANDLE);
  EXPECT_EQ(gone, nullptr);
  EXPECT_TRUE(table.take(child, &gone).ok());  // who destroys the owner takes it
}

}  // namespace
}  // namespace hmmrt
