// SPDX-License-Identifier: MIT
#include "migrate/pipeline.hpp"

#include <tbb/parallel_pipeline.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include "migrate/coherence.hpp"
#include "space/tsan.hpp"

namespace hmmrt {

namespace {

constexpr unsigned k_max_tokens = 64;

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
  std::array<unsigned, k_max_tokens> slots_{};
};

void copy_and_finish(House& house, Work& work, std::atomic<std::uint64_t>& spent_ns) {
  const std::uint64_t begin = house.clock.now_ns();
  copy(house, work);
  finish_copy(house, work);
  spent_ns.fetch_add(house.clock.now_ns() - begin, std::memory_order_relaxed);
}

// A block in flight. oneTBB passes pointers from stage to stage as they are; anything larger it would allocate.
struct Token {
  std::size_t job = 0;
  unsigned slot = 0;
};

// One run(): what the stages share, and the stages. oneTBB orders the stages of one token, the calls of the serial stage,
// and the whole between its caller's entry and return; each of these orders is also told to ThreadSanitizer.
class Run {
 public:
  Run(House& house, Jobs& jobs, std::size_t count, std::vector<std::unique_ptr<Work>>& works,
      std::vector<std::unique_ptr<Work>>& spares, std::atomic<std::uint64_t>& copy_ns)
      : house_(house),
        jobs_(jobs),
        count_(count),
        works_(works),
        spares_(spares),
        copy_ns_(copy_ns),
        slots_(static_cast<unsigned>(works.size())) {}

  Token* claim_and_plan(tbb::flow_control& control) {
    tsan_acquire(this);
    tsan_acquire(&next_);
    Token* token = plan_next();
    if (token != nullptr) {
      tsan_release(token);
    } else {
      control.stop();
    }
    tsan_release(&next_);
    tsan_release(this);  // the last call has no token
    return token;
  }
  Token* prepare(Token* t) {
    const Ordered ordered(t);
    hmmrt::prepare(house_, *works_[t->slot], *spares_[t->slot]);
    at_[t->slot] = At::prepared;
    return t;
  }
  Token* copy(Token* t) {
    const Ordered ordered(t);
    copy_and_finish(house_, *works_[t->slot], copy_ns_);
    at_[t->slot] = At::copied;
    return t;
  }
  void commit(Token* t) {
    tsan_acquire(t);
    Work& work = *works_[t->slot];
    hmmrt::commit(house_, work);
    jobs_.done(t->job, work);
    release(house_, *work.block);
    at_[t->slot] = At::free;
    slots_.give(t->slot);
    tsan_release(this);
  }
  // What is left, in the calling thread, when oneTBB has given up: it throws where it may not start a thread.
  void finish_alone() {
    for (unsigned slot = 0; slot < works_.size(); ++slot) {
      Token* const t = &tokens_[slot];
      tsan_acquire(t);
      switch (at_[slot]) {
        case At::free:
          break;
        case At::planned:
          prepare(t);
          [[fallthrough]];
        case At::prepared:
          copy(t);
          [[fallthrough]];
        case At::copied:
          commit(t);
      }
    }
    while (Token* t = plan_next()) commit(copy(prepare(t)));
  }

 private:
  // One stage of a token after the other, also when one ends with an exception.
  struct Ordered {
    explicit Ordered(Token* token) : t(token) { tsan_acquire(t); }
    ~Ordered() { tsan_release(t); }
    Token* t;
  };
  enum class At : std::uint8_t { free, planned, prepared, copied };

  Token* plan_next() {
    const unsigned slot = slots_.take();
    Work& work = *works_[slot];
    while (next_ < count_) {
      const std::size_t job = next_++;
      reset(work);
      if (jobs_.plan(job, work)) {
        tokens_[slot] = {job, slot};
        at_[slot] = At::planned;
        return &tokens_[slot];
      }
    }
    slots_.give(slot);
    return nullptr;
  }

  House& house_;
  Jobs& jobs_;
  std::size_t count_;
  std::size_t next_ = 0;
  std::vector<std::unique_ptr<Work>>& works_;
  std::vector<std::unique_ptr<Work>>& spares_;
  std::atomic<std::uint64_t>& copy_ns_;
  Slots slots_;
  std::array<Token, k_max_tokens> tokens_{};
  std::array<At, k_max_tokens> at_{};  // how far each token has come; its own stage writes it
};

// A filter's body. Its one member is read before anything has been acquired, in memory of oneTBB's own.
template <auto k_stage>
struct Stage {
  Run* run;
  template <class Argument>
  [[gnu::no_sanitize_thread]] auto operator()(Argument&& argument) const {
    return (run->*k_stage)(std::forward<Argument>(argument));
  }
};

}  // namespace

Pipeline::Pipeline(House& house, unsigned tokens, unsigned threads)
    : house_(house), tokens_(std::min(tokens, k_max_tokens)), arena_(static_cast<int>(threads), 1) {
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
    prepare(house_, work, *spares_[0]);
    copy_and_finish(house_, work, copy_ns_);
    commit(house_, work);
    jobs.done(i, work);
    release(house_, *work.block);
  }
}

void Pipeline::run(std::size_t count, Jobs& jobs) {
  if (count <= 1 || tokens_ == 1) {
    run_alone(count, jobs);
    return;
  }
  Run run(house_, jobs, count, works_, spares_, copy_ns_);
  tsan_release(&run);
  const auto in_parallel = [&] {
    using tbb::filter_mode;
    tbb::parallel_pipeline(
        tokens_, tbb::make_filter<void, Token*>(filter_mode::serial_in_order, Stage<&Run::claim_and_plan>{&run}) &
                     tbb::make_filter<Token*, Token*>(filter_mode::parallel, Stage<&Run::prepare>{&run}) &
                     tbb::make_filter<Token*, Token*>(filter_mode::parallel, Stage<&Run::copy>{&run}) &
                     tbb::make_filter<Token*, void>(filter_mode::parallel, Stage<&Run::commit>{&run}));
  };
  try {
    arena_.execute(in_parallel);
    tsan_acquire(&run);
  } catch (...) {
    tsan_acquire(&run);
    run.finish_alone();
  }
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
