// SPDX-License-Identifier: MIT
// Scheduler: actors on fibers, one thread, and a seed that decides who runs next. Whatever would block in the runtime
// (park()) yields here instead, so a schedule is a pure function of its seed and any interleaving of the actors' steps
// at the seams can happen.
#pragma once

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "space/clock.hpp"
#include "space/park.hpp"

namespace hmmrt::sim {

// splitmix64: small, seedable, the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t n) { return next() % n; }
  bool chance(unsigned percent) { return below(100) < percent; }

 private:
  std::uint64_t state_;
};

class Scheduler {
 public:
  Scheduler(std::uint64_t seed, VirtualClock& clock) : random_(seed), clock_(clock) { current() = this; }
  ~Scheduler() {
    actors_.clear();  // unwinds what did not finish
    current() = nullptr;
  }
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Daemons serve; the schedule ends when every other actor has finished.
  void add(std::string name, bool daemon, std::function<void()> body) {
    auto actor = std::make_unique<Actor>();
    Actor* a = actor.get();
    a->name = std::move(name);
    a->daemon = daemon;
    a->body = std::move(body);
    a->fiber = boost::context::fiber(std::allocator_arg, boost::context::protected_fixedsize_stack(256 << 10),
                                     [this, a](boost::context::fiber&& back) {
                                       back_ = std::move(back);
                                       try {
                                         a->body();
                                       } catch (const boost::context::detail::forced_unwind&) {
                                         throw;
                                       } catch (const std::exception& e) {
                                         failure_ = a->name + ": " + e.what();
                                       }
                                       a->done = true;
                                       return std::move(back_);
                                     });
    actors_.push_back(std::move(actor));
  }

  // Runs until every non-daemon is done, a failure, or `limit` steps. Calls check() after every step.
  void run(std::uint64_t limit, const std::function<void()>& check) {
    for (steps_ = 0; steps_ < limit; ++steps_) {
      bool left = false;
      for (const auto& a : actors_) left |= !a->done && !a->daemon;
      if (!left || !failure_.empty()) return;
      Actor* chosen = nullptr;
      do chosen = actors_[random_.below(actors_.size())].get();
      while (chosen->done);
      clock_.advance(1 + random_.below(2'000));
      running_ = chosen;
      chosen->fiber = std::move(chosen->fiber).resume();
      running_ = nullptr;
      check();
    }
    failure_ = "no end after " + std::to_string(limit) + " steps: livelock or deadlock; unfinished:";
    for (const auto& a : actors_) {
      if (!a->done && !a->daemon) failure_ += " " + a->name;
    }
  }

  // Lets others run. Only from within an actor; elsewhere nothing happens.
  void yield() {
    if (running_ == nullptr) return;
    Actor* self = running_;
    back_ = std::move(back_).resume();
    running_ = self;
  }
  // At a seam: sometimes.
  void maybe_yield() {
    if (random_.chance(40)) yield();
  }

  // HMMRT_SIM_TRACE=1 prints what happens at the seams, step by step.
  bool tracing() const { return tracing_; }
  void trace(const char* what, std::uintptr_t addr, std::uint64_t detail = 0) const {
    if (tracing_) {
      std::printf("%6lu %-14s %-22s %#lx %#lx\n", static_cast<unsigned long>(steps_), running(), what,
                  static_cast<unsigned long>(addr), static_cast<unsigned long>(detail));
    }
  }

  // Mappings of the page changed: rule 2 is looked at there after this step.
  void changed(std::uintptr_t addr) { changed_.push_back(addr); }
  std::vector<std::uintptr_t>& changes() { return changed_; }

  Random& random() { return random_; }
  const std::string& failure() const { return failure_; }
  void fail(std::string why) {
    if (failure_.empty()) failure_ = std::move(why);
  }
  std::uint64_t steps() const { return steps_; }
  const char* running() const { return running_ != nullptr ? running_->name.c_str() : "none"; }

  static Scheduler*& current() {
    static Scheduler* scheduler = nullptr;
    return scheduler;
  }
  static void park_hook(const Word&, std::uint32_t) noexcept {
    if (current() != nullptr) current()->yield();
  }

 private:
  struct Actor {
    std::string name;
    bool daemon = false;
    bool done = false;
    std::function<void()> body;
    boost::context::fiber fiber;
  };

  Random random_;
  VirtualClock& clock_;
  std::vector<std::unique_ptr<Actor>> actors_;
  boost::context::fiber back_;
  Actor* running_ = nullptr;
  std::uint64_t steps_ = 0;
  std::string failure_;
  std::vector<std::uintptr_t> changed_;
  bool tracing_ = std::getenv("HMMRT_SIM_TRACE") != nullptr;
};

}  // namespace hmmrt::sim
