// SPDX-License-Identifier: MIT
#include "migrate/pipeline.hpp"

#include <tbb/parallel_pipeline.h>

#include <array>
#include <mutex>

#include "migrate/coherence.hpp"

namespace hmmrt {

namespace {

// A block in flight.
struct Token {
  std::size_t job = 0;
  unsigned slot = 0;
};

// Free slots, a stack under a spin lock.
class Slots {
 public:
  explicit Slots(unsigned n) : free_(n) {
    for (unsigned i = 0; i < n; ++i) slots_[i] = i;
  }
  unsigned take() {
    const std::lock_guard guard(lock_);
    return slots_[--free_];
  }
  void give(unsigned slot) {
    const std::lock_guard guard(lock_);
    slots_[free_++] = slot;
  }

 private:
  SpinLock lock_;
  unsigned free_;
  std::array<unsigned, 64> slots_{};
};

}  // namespace

Pipeline::Pipeline(House& house, unsigned tokens, unsigned threads)
    : house_(house),
      tokens_(tokens < 64 ? tokens : 64),
      arena_(static_cast<int>(threads), 1) {
  for (unsigned i = 0; i < tokens_; ++i) {
    works_.push_back(std::make_unique<Work>());
    spares_.push_back(std::make_unique<Work>());
  }
}

void Pipeline::run_alone(std::size_t count, Jobs& jobs) {
  Work& work = *works_[0];
  for (std::size_t i = 0; i < count; ++i) {
    reset(work);
    if (!jobs.plan(i, work)) continue;
    carry_out(house_, work, *spares_[0]);
    jobs.done(i, work);
    release(house_, *work.block);
  }
}

void Pipeline::run(std::size_t count, Jobs& jobs) {
  if (count <= 1 || tokens_ == 1) {
    run_alone(count, jobs);
    return;
  }
  Slots slots(tokens_);
  std::size_t next = 0;
  const auto claim_and_plan = [&](tbb::flow_control& control) {
    const unsigned slot = slots.take();
    Work& work = *works_[slot];
    while (next < count) {
      const std::size_t job = next++;
      reset(work);
      if (jobs.plan(job, work)) return Token{job, slot};
    }
    slots.give(slot);
    control.stop();
    return Token{};
  };
  const auto prepare_stage = [&](Token t) {
    prepare(house_, *works_[t.slot], *spares_[t.slot]);
    return t;
  };
  const auto copy_stage = [&](Token t) {
    copy(house_, *works_[t.slot]);
    finish_copy(house_, *works_[t.slot]);
    return t;
  };
  const auto commit_stage = [&](Token t) {
    Work& work = *works_[t.slot];
    commit(house_, work);
    jobs.done(t.job, work);
    release(house_, *work.block);
    slots.give(t.slot);
  };
  arena_.execute([&] {
    tbb::parallel_pipeline(tokens_,
                           tbb::make_filter<void, Token>(tbb::filter_mode::serial_in_order, claim_and_plan) &
                               tbb::make_filter<Token, Token>(tbb::filter_mode::parallel, prepare_stage) &
                               tbb::make_filter<Token, Token>(tbb::filter_mode::parallel, copy_stage) &
                               tbb::make_filter<Token, void>(tbb::filter_mode::parallel, commit_stage));
  });
}

std::unique_ptr<Pipeline> PipelinePool::take() {
  {
    const std::lock_guard guard(lock_);
    if (!free_.empty()) {
      auto pipeline = std::move(free_.back());
      free_.pop_back();
      return pipeline;
    }
  }
  return std::make_unique<Pipeline>(house_, tokens_, threads_);
}

void PipelinePool::give(std::unique_ptr<Pipeline> pipeline) {
  const std::lock_guard guard(lock_);
  free_.push_back(std::move(pipeline));
}

}  // namespace hmmrt
