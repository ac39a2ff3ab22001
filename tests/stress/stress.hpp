// SPDX-License-Identifier: MIT
// What the stress tests share: seeds, how long to go on, the watchdog, and actors (threads that say how far they are).
//   HMMRT_STRESS_SEED=n     repeats a run's choices (its interleaving remains the machine's)
//   HMMRT_STRESS_SECONDS=n  how long all stress tests together try to take; 10 when unset
// Nothing waits for time to pass: tests go on in rounds until their share of the time is over, and the watchdog aborts,
// after saying where every thread is, when an actor finishes no round for a long time.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <hmmrt/hmmrt.hpp>
#include <hmmrt/kernel.hpp>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace stress {

constexpr std::size_t k_page = 4096;
constexpr std::size_t k_page_words = k_page / 8;
constexpr std::size_t k_block = std::size_t{2} << 20;

using Clock = std::chrono::steady_clock;

std::uint64_t seed();  // of this process; printed when first asked for
// When a test that may take `share` of the whole time, starting now, is to stop.
Clock::time_point end_of_share(double share);

// splitmix64. Thread: one.
class Random {
 public:
  explicit Random(std::uint64_t from) : state_(from) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  std::uint64_t below(std::uint64_t n) { return next() % n; }
  bool chance(unsigned percent) { return below(100) < percent; }
  template <class T, std::size_t N>
  T of(const T (&choices)[N]) {
    return choices[below(N)];
  }

 private:
  std::uint64_t state_;
};

// One thread's place in its work, for the watchdog.
class Progress {
 public:
  explicit Progress(std::string who) : who_(std::move(who)) {}
  // Every so often, saying what comes now. `what` is a literal.
  void at(const char* what) {
    what_.store(what, std::memory_order_relaxed);
    steps_.fetch_add(1, std::memory_order_relaxed);
  }
  const std::string& who() const { return who_; }
  const char* what() const { return what_.load(std::memory_order_relaxed); }
  std::uint64_t steps() const { return steps_.load(std::memory_order_relaxed); }

 private:
  std::string who_;
  std::atomic<const char*> what_{"starting"};
  std::atomic<std::uint64_t> steps_{0};
};

// Watches the Progresses handed out until each is given back. One per test; `context` is asked for its statistics in a
// dump.
class Watchdog {
 public:
  explicit Watchdog(hmmrt_context_t context);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  Progress& watch(std::string who);
  void forget(const Progress& progress);

 private:
  void run();
  [[noreturn]] void give_up(const Progress& stuck);

  struct Watched {
    explicit Watched(std::string who) : progress(std::move(who)) {}
    Progress progress;
    std::uint64_t seen = 0;
    Clock::time_point since = Clock::now();
  };
  hmmrt_context_t context_;
  std::mutex mutex_;
  std::condition_variable stopping_;
  bool stop_ = false;
  std::list<Watched> watched_;
  std::thread thread_;
};

// A watched thread; joined at destruction. An exception of the body fails the test.
class Actor {
 public:
  Actor(Watchdog& dog, std::string who, std::function<void(Progress&)> body)
      : thread_([&dog, who = std::move(who), body = std::move(body)] {
          Progress& progress = dog.watch(who);
          try {
            body(progress);
          } catch (const std::exception& e) {
            ADD_FAILURE() << who << ", " << progress.what() << ": " << e.what();
          }
          dog.forget(progress);
        }) {}
  ~Actor() {
    if (thread_.joinable()) thread_.join();
  }
  Actor(Actor&&) = default;

 private:
  std::thread thread_;
};

// The first wrong value seen, by whatever thread or kernel.
class Wrong {
 public:
  void report(const char* who, std::uint64_t where, std::uint64_t got, std::uint64_t want) {
    if (count_.fetch_add(1, std::memory_order_relaxed) != 0) return;
    who_ = who, where_ = where, got_ = got, want_ = want;
  }
  bool any() const { return count_.load(std::memory_order_relaxed) != 0; }
  // After every reporter has finished.
  void expect_none() const {
    EXPECT_EQ(count_.load(), 0u) << "HMMRT_STRESS_SEED=" << seed() << "; the first: " << who_ << " at page " << where_
                                 << std::hex << " got " << got_ << ", should be " << want_;
  }

 private:
  std::atomic<std::uint64_t> count_{0};
  const char* who_ = "";
  std::uint64_t where_ = 0, got_ = 0, want_ = 0;
};

inline std::uint64_t load(const std::uint64_t* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
inline void store(std::uint64_t* p, std::uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
inline std::uint64_t add(std::uint64_t* p, std::uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }

// Makes a context, or skips the test, aloud, where this machine has no such thing.
std::unique_ptr<hmmrt::context> make_context(const std::vector<hmmrt::option>& options);

}  // namespace stress

#define STRESS_CONTEXT(name, ...)                                                 \
  const std::unique_ptr<hmmrt::context> name = stress::make_context(__VA_ARGS__); \
  if (name == nullptr) GTEST_SKIP() << hmmrt_last_error_detail()
