// SPDX-License-Identifier: MIT
// The pipeline alone, over models of the two seams.
#include <gtest/gtest.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <thread>

#include "unit/migrate_models.hpp"

namespace hmmrt {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)

const Steps k_to_device = {"plan", "prepare", "copy", "finish", "commit", "map", "replay", "done"};
const Steps k_to_host = {"plan", "unmap", "prepare", "copy", "finish", "commit", "done"};

// With one token, without oneTBB; with many.
class PipelineOf : public testing::TestWithParam<unsigned> {
 protected:
  unsigned tokens() const { return GetParam(); }

 private:
  const tbb::global_control threads_{tbb::global_control::max_allowed_parallelism, 4};  // however few the cores
};
INSTANTIATE_TEST_SUITE_P(Tokens, PipelineOf, testing::Values(1u, 4u, 64u),
                         [](const auto& p) { return std::to_string(p.param) + "_in_flight"; });

TEST_P(PipelineOf, every_block_goes_through_the_stages_in_order_there_and_back) {
  World world(40);
  Pipeline pipeline(world.house, tokens(), 4);
  for (int round = 0; round < 3; ++round) {
    for (const Processor to : {Processor{1}, k_cpu}) {
      world.forget();
      Moves moves(world, to);
      pipeline.run(world.size(), moves);
      EXPECT_LE(moves.most_in_flight(), tokens());
      ASSERT_EQ(moves.planned.size(), world.size());
      EXPECT_TRUE(std::is_sorted(moves.planned.begin(), moves.planned.end()));
      for (std::size_t i = 0; i < world.size(); ++i) {
        EXPECT_EQ(world.records.blocks[i].steps, to == k_cpu ? k_to_host : k_to_device) << i;
        EXPECT_EQ(moves.results[i].satisfied, k_used) << i;
        if (to == k_cpu) {
          world.expect_on_cpu(i, k_used);
        } else {
          world.expect_on_device(i, k_used);
        }
      }
      EXPECT_EQ(world.device.free_frame_count(), to == k_cpu ? world.size() * k_pages : 0);
    }
  }
}

TEST_P(PipelineOf, jobs_with_nothing_to_do_are_passed_over) {
  World world(20);
  Pipeline pipeline(world.house, tokens(), 4);
  Moves moves(world, 1);
  moves.wanted = [](std::size_t i) { return i % 3 == 1; };
  pipeline.run(world.size(), moves);
  EXPECT_EQ(moves.planned.size(), world.size());
  for (std::size_t i = 0; i < world.size(); ++i) {
    EXPECT_EQ(world.records.blocks[i].steps, moves.wanted(i) ? k_to_device : Steps{}) << i;
    EXPECT_FALSE(world.block(i).claimed());
  }
  Moves none(world, 1);
  none.wanted = [](std::size_t) { return false; };
  pipeline.run(world.size(), none);
  pipeline.run(0, none);
}

TEST_P(PipelineOf, failed_copy_leaves_its_block_where_it_was_and_no_other) {
  World world(20);
  Pipeline pipeline(world.house, tokens(), 4);
  const auto fails = [](std::size_t i) { return i % 5 == 2; };
  for (std::size_t i = 0; i < world.size(); ++i) {
    if (fails(i)) world.host.copies_fail.insert(world.base(i));
  }
  Moves there(world, 1);
  pipeline.run(world.size(), there);
  for (std::size_t i = 0; i < world.size(); ++i) {
    if (!fails(i)) {
      world.expect_on_device(i, k_used);
      continue;
    }
    const Steps& steps = world.records.blocks[i].steps;
    EXPECT_EQ(std::count(steps.begin(), steps.end(), "rollback"), 1) << i;
    EXPECT_EQ(std::count(steps.begin(), steps.end(), "map"), 0) << i;
    EXPECT_EQ(there.results[i].refused, k_used) << i;
    EXPECT_TRUE(there.results[i].satisfied.none() && there.results[i].moved.none()) << i;
    world.expect_on_cpu(i, k_used);
  }
  EXPECT_EQ(world.device.free_frame_count(), 4 * k_pages);

  // And on the way home, where the device keeps what could not be copied.
  world.host.copies_fail.clear();
  Moves again(world, 1);
  pipeline.run(world.size(), again);
  world.host.copies_fail.insert(world.base(7));
  Moves back(world, k_cpu);
  pipeline.run(world.size(), back);
  EXPECT_EQ(back.results[7].refused, k_used);
  EXPECT_TRUE(world.part(7).resident.contains(k_used) && (world.block(7).on_cpu & k_used).none());
  world.host.copies_fail.clear();
  Moves retry(world, k_cpu);
  pipeline.run(world.size(), retry);
  for (std::size_t i = 0; i < world.size(); ++i) world.expect_on_cpu(i, k_used);
}

TEST_P(PipelineOf, pages_that_stay_are_told_apart_and_the_rest_moves) {
  World world(6);
  Pipeline pipeline(world.house, tokens(), 4);
  for (std::size_t i = 0; i < world.size(); ++i) {
    for (const auto& [page, answer] : {std::pair{1u, PageStatus::busy},
                                       {2u, PageStatus::pinned},
                                       {3u, PageStatus::gone},
                                       {4u, PageStatus::forbidden},
                                       {5u, PageStatus::not_populated}}) {
      world.host.answers[world.base(i) + page * k_page_size] = answer;
    }
  }
  Moves moves(world, 1);
  pipeline.run(world.size(), moves);
  const PageMask stay = PageMask::range(1, 4);
  for (std::size_t i = 0; i < world.size(); ++i) {
    const Moves::Result& r = moves.results[i];
    EXPECT_EQ(r.refused, PageMask::one(1));
    EXPECT_EQ(r.pinned, PageMask::one(2));
    EXPECT_EQ(r.gone, PageMask::one(3));
    EXPECT_EQ(r.forbidden, PageMask::one(4));
    EXPECT_EQ(r.satisfied, k_used - stay);
    EXPECT_EQ(r.moved, k_used - stay);
    world.expect_on_cpu(i, stay);
    world.expect_on_device(i, k_used - stay - PageMask::one(5));
    EXPECT_EQ(world.device.words[world.part(i).frames[5]], 0u);  // never touched: zeros, without a copy
  }
  EXPECT_EQ(world.device.free_frame_count(), world.size() * stay.count());
}

TEST_P(PipelineOf, time_in_copy_stages_is_counted) {
  World world(10);
  Pipeline pipeline(world.house, tokens(), 4);
  Moves moves(world, 1);
  pipeline.run(world.size(), moves);
  EXPECT_GE(pipeline.copy_ns(), world.size());
}

TEST(Pipeline, one_job_or_one_token_stays_in_the_calling_thread) {
  World world(10);
  Pipeline many(world.house, 4, 4), one(world.house, 1, 4);
  Moves there(world, 1), back(world, k_cpu);
  many.run(1, there);
  one.run(world.size(), back);
  one.run(world.size(), there);
  for (const Records::Of& of : world.records.blocks) {
    EXPECT_EQ(of.threads, std::set{std::this_thread::get_id()});
  }
}

// As it does where a limit lets it start no thread; wherever the blocks in flight are then.
TEST(Pipeline, caller_finishes_alone_what_onetbb_gives_up_with_an_exception) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the exception object goes from thread to thread inside oneTBB, which is not instrumented";
#endif
  for (unsigned when = 0; when < 40; when += 3) {
    World world(40);
    Pipeline pipeline(world.house, 8, 4);
    std::atomic<unsigned> copies{0};
    world.host.while_copying = [&] {
      if (copies++ == when) throw std::runtime_error("no more threads");
    };
    Moves moves(world, 1);
    pipeline.run(world.size(), moves);
    EXPECT_EQ(moves.planned.size(), world.size());
    for (std::size_t i = 0; i < world.size(); ++i) world.expect_on_device(i, k_used);
  }
}

TEST(Pipeline, caller_drives_every_stage_alone_when_there_are_no_workers) {
  const tbb::global_control none(tbb::global_control::max_allowed_parallelism, 1);
  World world(30);
  Pipeline pipeline(world.house, 8, 4);
  Moves moves(world, 1);
  pipeline.run(world.size(), moves);
  for (std::size_t i = 0; i < world.size(); ++i) {
    world.expect_on_device(i, k_used);
    EXPECT_EQ(world.records.blocks[i].threads, std::set{std::this_thread::get_id()});
  }
}

#if defined(__SANITIZE_THREAD__)
#define SKIP_OWN_TBB \
  GTEST_SKIP() << "this test's own parallel_for runs in a oneTBB that ThreadSanitizer cannot see into"
#else
#define SKIP_OWN_TBB static_cast<void>(0)
#endif

TEST(Pipeline, caller_drives_every_stage_alone_when_every_worker_is_blocked) {
  SKIP_OWN_TBB;
  constexpr unsigned k_threads = 4;
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism, k_threads);
  std::atomic<unsigned> blocked{0};
  std::atomic<bool> go_on{false};
  std::thread application([&] {
    tbb::task_arena arena(k_threads);
    arena.execute([&] {
      tbb::parallel_for(
          0u, k_threads,
          [&](unsigned) {
            ++blocked;
            go_on.wait(false);
          },
          tbb::simple_partitioner());
    });
  });
  while (blocked != k_threads) std::this_thread::yield();
  World world(30);
  Pipeline pipeline(world.house, 8, 4);
  Moves moves(world, 1);
  pipeline.run(world.size(), moves);
  EXPECT_EQ(blocked, k_threads);
  go_on = true;
  go_on.notify_all();
  application.join();
  for (std::size_t i = 0; i < world.size(); ++i) {
    world.expect_on_device(i, k_used);
    EXPECT_EQ(world.records.blocks[i].threads, std::set{std::this_thread::get_id()});
  }
}

// The caller lets another thread have a stage, which takes its time, so that the caller has nothing of its own to do while
// the application's arena, where it came from, gets one task after the other.
TEST(Pipeline, caller_takes_up_no_work_of_the_application_while_it_holds_claims) {
  SKIP_OWN_TBB;
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism, 4);
  static thread_local bool t_migrating = false;
  World world(30);
  Pipeline pipeline(world.house, 8, 4);
  tbb::task_arena arena(4);
  std::atomic<unsigned> mixed{0}, left{0};
  std::atomic<bool> helped{false};
  world.host.while_copying = [&] {
    if (!t_migrating) helped = true;
    for (int i = 0; i < 300 && (t_migrating ? !helped : mixed == 0); ++i) {
      std::this_thread::yield();
      if (t_migrating) continue;
      ++left;
      arena.enqueue([&] {
        if (t_migrating) ++mixed;
        --left;
      });
    }
  };
  arena.execute([&] {
    t_migrating = true;
    for (int round = 0; round < 3; ++round) {
      Moves moves(world, round % 2 == 0 ? Processor{1} : k_cpu);
      pipeline.run(world.size(), moves);
    }
    t_migrating = false;
  });
  while (left != 0) std::this_thread::yield();
  EXPECT_EQ(mixed, 0u);
  for (std::size_t i = 0; i < world.size(); ++i) world.expect_on_device(i, k_used);
}

TEST(Pipeline, pool_lends_each_pipeline_once_and_again_when_returned) {
  World world(1);
  PipelinePool pool(world.house, 2, 2);
  auto first = pool.take();
  auto second = pool.take();
  EXPECT_NE(first, second);
  const Pipeline* was = first.get();
  pool.give(std::move(first));
  EXPECT_EQ(pool.take().get(), was);
}

}  // namespace
}  // namespace hmmrt
