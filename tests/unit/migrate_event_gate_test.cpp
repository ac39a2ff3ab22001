// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <vector>

#include "migrate/event_gate.hpp"

namespace hmmrt {
namespace {

// Gives others the chance to do what they must not.
void give_way() {
  for (int i = 0; i < 200; ++i) std::this_thread::yield();
}

TEST(EventGate, deliveries_go_on_together) {
  EventGate gate;
  const DeliveryGuard mine(gate);
  std::thread([&] { const DeliveryGuard another(gate); }).join();
}

TEST(EventGate, reading_waits_for_every_delivery_under_way) {
  EventGate gate;
  gate.begin_delivery();
  gate.begin_delivery();
  std::atomic<bool> reading{false};
  std::thread reader([&] {
    gate.begin_reading();
    reading = true;
    gate.end_reading();
  });
  give_way();
  EXPECT_FALSE(reading);
  gate.end_delivery();
  give_way();
  EXPECT_FALSE(reading);
  gate.end_delivery();
  reader.join();
  EXPECT_TRUE(reading);
}

TEST(EventGate, delivery_waits_for_the_reader) {
  EventGate gate;
  gate.begin_reading();
  std::atomic<bool> delivering{false};
  std::thread other([&] {
    const DeliveryGuard guard(gate);
    delivering = true;
  });
  give_way();
  EXPECT_FALSE(delivering);
  gate.end_reading();
  other.join();
  EXPECT_TRUE(delivering);
  gate.begin_reading();  // and left nothing behind
  gate.end_reading();
}

TEST(EventGate, nobody_waits_for_a_reader_who_does_not_read) {
  EventGate gate;
  gate.wait_for_reader();
  gate.begin_reading();
  gate.end_reading();
  gate.wait_for_reader();
}

TEST(EventGate, waiting_for_the_reader_ends_with_a_reading_though_the_next_has_begun) {
  EventGate gate;
  std::uint64_t noticed = 0;  // plain: written while reading, read after the wait
  std::atomic<bool> begun{false}, over{false};
  gate.begin_reading();
  std::thread waiter([&] {
    begun = true;
    gate.wait_for_reader();
    EXPECT_GE(noticed, 1u);
    over = true;
  });
  while (!begun) std::this_thread::yield();
  give_way();
  EXPECT_FALSE(over);
  noticed = 1;
  do {
    gate.end_reading();
    gate.begin_reading();
    give_way();
  } while (!over);
  waiter.join();
  gate.end_reading();
}

// Both sides use plain memory that the other writes, which only the gate keeps apart.
TEST(EventGate, deliveries_and_readings_never_overlap) {
  constexpr unsigned k_threads = 4, k_deliveries = 2'000;
  EventGate gate;
  std::uint64_t readings = 0;
  std::array<std::uint64_t, k_threads> delivered{};
  std::atomic<unsigned> left{k_threads};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < k_threads; ++t) {
    threads.emplace_back([&, t] {
      std::uint64_t last = 0;
      for (unsigned i = 0; i < k_deliveries; ++i) {
        const DeliveryGuard guard(gate);
        const std::uint64_t before = readings;
        ++delivered[t];
        if (i % 64 == 0) std::this_thread::yield();
        EXPECT_EQ(readings, before);
        EXPECT_GE(before, last);
        last = before;
      }
      --left;
    });
  }
  while (left != 0) {
    gate.begin_reading();
    const auto before = delivered;
    ++readings;
    if (readings % 64 == 0) std::this_thread::yield();
    EXPECT_EQ(delivered, before);
    gate.end_reading();
    std::this_thread::yield();
  }
  for (std::thread& t : threads) t.join();
  for (const std::uint64_t n : delivered) EXPECT_EQ(n, k_deliveries);
}

}  // namespace
}  // namespace hmmrt
