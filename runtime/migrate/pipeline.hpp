// SPDX-License-Identifier: MIT
// Pipeline: carries out many blocks' worth of moving with the stages of different blocks overlapped:
//
//     claim and plan (serial, ascending) -> prepare (parallel) -> copy (parallel) -> commit (parallel)
//
// so that the copy of one block runs beside the page-table work of its neighbours. Tokens bound the blocks in flight;
// their Works are allocated once. With one token, or one job, the stages run in the calling thread, without oneTBB.
//
// Forward progress never depends on a free worker. A Pipeline has an arena of its own with a slot for its caller; the
// caller takes part and can run every stage alone, and the arena holds nothing but these stages, so the caller never
// picks up application work while claims are held.
//
// Thread: one run() at a time. The fault service owns one; API calls borrow one each from a PipelinePool.
#pragma once

#include <tbb/task_arena.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "migrate/work.hpp"

namespace hmmrt {

// What to do, job by job. plan() and done() of different jobs may run on different threads; of one job, in order.
class Jobs {
 public:
  virtual ~Jobs() = default;
  // Claims job `i`'s block and fills in what is wanted (the Work comes reset). False: nothing to do, nothing claimed.
  // Called in order, one at a time.
  virtual bool plan(std::size_t i, Work& work) = 0;
  // The results are in; the claim is still held and is released afterwards.
  virtual void done(std::size_t i, Work& work) = 0;
};

class Pipeline {
 public:
  // tokens >= 1: blocks in flight. threads >= 1: arena size, the caller included.
  Pipeline(House& house, unsigned tokens, unsigned threads);

  void run(std::size_t count, Jobs& jobs);
  Work& spare() { return *spares_[0]; }  // for single steps outside run()
  // Time spent in copy stages so far, summed over threads.
  std::uint64_t copy_ns() const { return copy_ns_.load(std::memory_order_relaxed); }

 private:
  void run_alone(std::size_t count, Jobs& jobs);

  House& house_;
  unsigned tokens_;
  std::vector<std::unique_ptr<Work>> works_;
  std::vector<std::unique_ptr<Work>> spares_;
  tbb::task_arena arena_;
  std::atomic<std::uint64_t> copy_ns_{0};
};

// Pipelines for API calls, reused. Thread: any.
class PipelinePool {
 public:
  PipelinePool(House& house, unsigned tokens, unsigned threads) : house_(house), tokens_(tokens), threads_(threads) {}
  std::unique_ptr<Pipeline> take();
  void give(std::unique_ptr<Pipeline> pipeline);

 private:
  House& house_;
  unsigned tokens_, threads_;
  SpinLock lock_;
  std::vector<std::unique_ptr<Pipeline>> free_;
};

}  // namespace hmmrt
