// SPDX-License-Identifier: MIT
// The pipeline alone, over models of the two seams: a page's contents are one word, and every block has a record of what
// was done to it. Neither is locked: of one block, the pipeline orders everything.
#include <gtest/gtest.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "migrate/coherence.hpp"
#include "migrate/pipeline.hpp"
#include "migrate/requests.hpp"
#include "unit/idle_device.hpp"

namespace hmmrt {
namespace {

constexpr std::uintptr_t k_base = 0x100000000000;
constexpr unsigned k_pages = 8;  // used of each block
constexpr std::uint64_t k_junk = 0xbad;

using Steps = std::vector<std::string>;
const Steps k_to_device = {"plan", "prepare", "copy", "finish", "commit", "map", "replay", "done"};
const Steps k_to_host = {"plan", "unmap", "prepare", "copy", "finish", "commit", "done"};

std::size_t index(std::uintptr_t addr) { return (addr - k_base) >> k_block_shift; }
std::uint64_t contents(std::size_t block, unsigned page) { return block * 1000 + page + 1; }

// What was done to each block, and by whom.
struct Records {
  struct Of {
    Steps steps;
    std::set<std::thread::id> threads;
  };
  std::vector<Of> blocks;
  void add(std::uintptr_t base, const char* step) {
    Of& of = blocks[index(base)];
    of.steps.emplace_back(step);
    of.threads.insert(std::this_thread::get_id());
    std::this_thread::yield();  // to another block's stages
  }
};

class ModelDevice final : public test::IdleDevice {
 public:
  ModelDevice(unsigned frames, Records& records) : words(frames), records_(records) {
    info_.memory_bytes = frames * k_page_size;
    for (Frame f = 0; f < frames; ++f) free_.push_back(f);
  }
  std::vector<std::uint64_t> words;  // of each frame

  bool allocate_frames(std::uintptr_t /*base*/, const PageMask& pages, Frame* frames) override {
    const std::lock_guard guard(lock_);
    if (free_.size() < pages.count()) return false;
    pages.for_each([&](unsigned page) {
      frames[page] = free_.back();
      free_.pop_back();
    });
    return true;
  }
  void free_frames(const PageMask& pages, const Frame* frames) override {
    const std::lock_guard guard(lock_);
    pages.for_each([&](unsigned page) { free_.push_back(frames[page]); });
  }
  std::uint64_t free_frame_count() const override {
    const std::lock_guard guard(lock_);
    return free_.size();
  }
  bool zero_frames(const PageMask& pages, const Frame* frames) override {
    pages.for_each([&](unsigned page) { words[frames[page]] = 0; });
    return true;
  }
  void map(std::uintptr_t base, std::span<const MapSpan>) override { records_.add(base, "map"); }
  PageMask unmap(std::uintptr_t base, const PageMask& pages) override { return records_.add(base, "unmap"), pages; }
  void replay(std::uintptr_t base, const PageMask&) override { records_.add(base, "replay"); }

  std::byte* frame_address(Frame) override { return nullptr; }
  CopyTicket copy_async(std::span<const CopyRun>) override { return 0; }
  bool wait_copy(CopyTicket) override { return true; }

 private:
  Records& records_;
  mutable std::mutex lock_;
  std::vector<Frame> free_;
};

class ModelMirror final : public HostMirror {
 public:
  explicit ModelMirror(Records& records) : pages(records.blocks.size() * k_pages), records_(records) {}
  struct Page {
    bool present = true;
    std::uint64_t word = 0, staged = k_junk;
  };
  std::vector<Page> pages;                       // the first k_pages of each block
  std::map<std::uintptr_t, PageStatus> answers;  // by address, to prepare(); others are done
  std::set<std::uintptr_t> copies_fail;          // blocks

  std::function<void()> while_copying = [] {};

  Page& page(std::uintptr_t base, unsigned i) { return pages[index(base) * k_pages + i]; }

  void prepare(Transfer& t) override {
    records_.add(t.base, "prepare");
    const std::array<PageMask*, 6> masks = {&t.outcome.done,   &t.outcome.not_populated, &t.outcome.busy,
                                            &t.outcome.pinned, &t.outcome.gone,          &t.outcome.forbidden};
    t.pages.for_each([&](unsigned i) {
      const auto answer = answers.find(t.base + i * k_page_size);
      masks[static_cast<std::size_t>(answer != answers.end() ? answer->second : PageStatus::done)]->set(i);
    });
    if (t.direction == Direction::to_host) return;
    t.outcome.taken().for_each([&](unsigned i) {
      Page& p = page(t.base, i);
      p.present = false;
      p.staged = std::exchange(p.word, k_junk);
    });
  }
  void copy(Transfer& t) override {
    records_.add(t.base, "copy");
    while_copying();
    auto& frames = static_cast<ModelDevice*>(t.device)->words;
    const bool fails = copies_fail.contains(t.base);
    t.outcome.done.for_each([&](unsigned i) {
      std::uint64_t& staged = page(t.base, i).staged;
      if (t.direction == Direction::to_device) {
        frames[t.frames[i]] = fails ? k_junk : staged;
      } else {
        staged = fails ? k_junk : frames[t.frames[i]];
      }
    });
    t.copied = t.outcome.done;
    t.ticket = 1;
  }
  bool finish_copy(Transfer& t) override {
    records_.add(t.base, "finish");
    return !copies_fail.contains(t.base);
  }
  void commit(Transfer& t) override {
    records_.add(t.base, "commit");
    if (t.direction == Direction::to_host) restore(t);
  }
  void rollback(Transfer& t) override {
    records_.add(t.base, "rollback");
    if (t.direction == Direction::to_device) restore(t);
  }

  const HostMirrorInfo& info() const override { return info_; }
  void release(std::uintptr_t, std::size_t) override {}
  Status attach(std::uintptr_t, std::size_t) override { return {}; }
  void detach(std::uintptr_t, std::size_t) override {}
  Status rehome(std::uintptr_t, std::uintptr_t, std::size_t) override { return {}; }
  void query_rights(std::uintptr_t, std::size_t, void (*)(void*, std::uintptr_t, std::size_t, Rights), void*) override {
  }
  void wait(std::int64_t) override {}
  std::size_t fetch(std::span<HostEvent>) override { return 0; }
  void interrupt() override {}
  void wake(std::uintptr_t, const PageMask&) override {}
  PageOutcome populate(std::uintptr_t, const PageMask& p) override { return all_done(p); }
  void populate_unclaimed(std::uintptr_t) override {}
  PageOutcome write_protect(std::uintptr_t, const PageMask& p, bool) override { return all_done(p); }
  PageOutcome give_back(std::uintptr_t, const PageMask& p) override { return all_done(p); }
  void drop(std::uintptr_t, const PageMask&) override {}
  void watch_drop(std::uintptr_t, const PageMask&) override {}
  PageMask drop_pending(std::uintptr_t, const PageMask&) override { return {}; }
  PageOutcome map_remote(std::uintptr_t, const PageMask& p) override { return all_done(p); }
  std::byte* remote_address(std::uintptr_t) override { return nullptr; }
  PageOutcome make_exclusive(std::uintptr_t, const PageMask& p) override { return all_done(p); }
  std::byte* exclusive_address(std::uintptr_t) override { return nullptr; }
  std::uint64_t metadata_bytes() const override { return 0; }

 private:
  void restore(const Transfer& t) {
    t.outcome.taken().for_each([&](unsigned i) {
      Page& p = page(t.base, i);
      p.present = true;
      p.word = std::exchange(p.staged, k_junk);
    });
  }
  static PageOutcome all_done(const PageMask& pages) {
    PageOutcome o;
    o.done = pages;
    return o;
  }

  HostMirrorInfo info_;
  Records& records_;
};

// Every reading is a nanosecond after the one before.
class CountingClock final : public Clock {
 public:
  std::uint64_t now_ns() const noexcept override { return now_.fetch_add(1, std::memory_order_relaxed); }

 private:
  mutable std::atomic<std::uint64_t> now_{1};
};

struct World {
  explicit World(unsigned blocks)
      : records{std::vector<Records::Of>(blocks)}, host(records), device(blocks * k_pages, records) {
    house.device_count = 1;
    house.devices[0] = &device;
    Range* range = nullptr;
    EXPECT_TRUE(manage(house, k_base, blocks * k_block_size, false, &range).ok());
    for (std::size_t i = 0; i < host.pages.size(); ++i) host.pages[i].word = contents(i / k_pages, i % k_pages);
  }
  std::size_t size() const { return records.blocks.size(); }
  std::uintptr_t base(std::size_t block) const { return k_base + block * k_block_size; }
  Block& block(std::size_t i) const { return *space.find(base(i)); }
  const DevicePart& part(std::size_t i) const { return *block(i).part(1); }
  void forget() { std::fill(records.blocks.begin(), records.blocks.end(), Records::Of{}); }

  // Whether pages of a block are on the device alone, or on the CPU alone, with their contents, and nobody is at it.
  void expect_on_device(std::size_t i, const PageMask& pages) const {
    EXPECT_FALSE(block(i).claimed()) << i;
    EXPECT_TRUE(part(i).resident.contains(pages) && part(i).mapped.contains(pages)) << i;
    EXPECT_FALSE(block(i).on_cpu.intersects(pages)) << i;
    pages.for_each([&](unsigned p) { EXPECT_EQ(device.words[part(i).frames[p]], contents(i, p)) << i << ", " << p; });
  }
  void expect_on_cpu(std::size_t i, const PageMask& pages) const {
    EXPECT_FALSE(block(i).claimed()) << i;
    EXPECT_FALSE(part(i).resident.intersects(pages) || part(i).mapped.intersects(pages)) << i;
    EXPECT_TRUE(block(i).on_cpu.contains(pages)) << i;
    pages.for_each([&](unsigned p) {
      const ModelMirror::Page& page = host.pages[i * k_pages + p];
      EXPECT_TRUE(page.present && page.word == contents(i, p)) << i << ", " << p;
    });
  }

  Records records;
  ModelMirror host;
  ModelDevice device;
  std::unique_ptr<Policy> policy = make_policy("first_touch_4k");
  CountingClock clock;
  EventLog log;
  Counters counters;
  AddressSpace space;
  House house{space, host, *policy, clock, log, counters};
};

const PageMask k_used = PageMask::range(0, k_pages);

// Moves the used pages of every block, or of those that `wanted` says.
class Moves final : public Jobs {
 public:
  Moves(World& world, Processor to) : results(world.size()), world_(world), to_(to) {}
  struct Result {
    PageMask satisfied, moved, refused, pinned, gone, forbidden;
  };
  std::vector<Result> results;
  std::vector<std::size_t> planned;
  bool (*wanted)(std::size_t) = [](std::size_t) { return true; };
  unsigned most_in_flight() const { return most_.load(); }

  bool plan(std::size_t i, Work& w) override {
    planned.push_back(i);
    if (!wanted(i)) return false;
    w.block = &world_.block(i);
    w.block->claim();
    w.to = to_;
    w.pages = w.faulted = k_used;
    const unsigned now = in_flight_.fetch_add(1, std::memory_order_relaxed) + 1;
    if (now > most_.load(std::memory_order_relaxed)) most_.store(now, std::memory_order_relaxed);  // only here
    world_.records.add(w.block->base, "plan");
    return true;
  }
  void done(std::size_t i, Work& w) override {
    EXPECT_EQ(w.block, &world_.block(i));
    EXPECT_TRUE(w.block->claimed());
    results[i] = {w.satisfied, w.moved, w.refused, w.pinned, w.gone, w.forbidden};
    world_.records.add(w.block->base, "done");
    in_flight_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  World& world_;
  Processor to_;
  std::atomic<unsigned> in_flight_{0}, most_{0};
};

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

// A range of two blocks; the first one's pages are on the device.
class Remap : public testing::Test {
 protected:
  Remap() : world(2), pipeline(world.house, 1, 1) {
    Moves moves(world, 1);
    moves.wanted = [](std::size_t i) { return i == 0; };
    pipeline.run(world.size(), moves);
  }
  void follow(std::uintptr_t from, std::uintptr_t to, std::size_t bytes) {
    follow_remap(
        world.house, from, to, bytes, [](void*) {}, nullptr);
  }
  World world;
  Pipeline pipeline;
};

// In both: the event thread had noticed it, and not come to settle it, when the pages came.
TEST_F(Remap, what_was_noticed_at_the_new_addresses_is_not_about_what_comes_there) {
  notice(world.house, world.block(1), PageMask::all(), true);
  follow(world.base(0), world.base(1), k_block_size);
  EXPECT_EQ(world.house.unsettled, 0u);
  EXPECT_TRUE(world.block(0).valid.none());
  EXPECT_TRUE(world.block(1).valid.full());
  ASSERT_EQ(world.part(1).resident, k_used);
  k_used.for_each([&](unsigned p) { EXPECT_EQ(world.device.words[world.part(1).frames[p]], contents(0, p)) << p; });
}

TEST_F(Remap, what_was_dropped_before_is_dropped_at_the_new_addresses) {
  notice(world.house, world.block(0), PageMask::one(3), false);
  notice(world.house, world.block(1), PageMask::all(), true);
  follow(world.base(0), world.base(1), k_block_size);
  EXPECT_EQ(world.house.unsettled, 0u);
  EXPECT_EQ(world.part(1).resident, k_used - PageMask::one(3));
  EXPECT_TRUE(world.block(1).on_cpu.test(3));
}

TEST_F(Remap, registrations_that_move_together_stay_two_and_what_was_unregistered_before_stays_so) {
  PipelinePool pool(world.house, 1, 1);
  ASSERT_TRUE(unmanage(world.house, pool, world.space.find_range(world.base(0)), false).ok());
  Range* range = nullptr;
  ASSERT_TRUE(manage(world.house, world.base(0), k_block_size, true, &range).ok());
  const std::uintptr_t third = world.base(1) + k_page_size;
  ASSERT_TRUE(manage(world.house, third, k_page_size, true, &range).ok());
  const std::uintptr_t to = world.base(0) + (std::uintptr_t{1} << 40);
  follow(world.base(0), to, 2 * k_block_size);
  EXPECT_EQ(world.space.find_range(world.base(0)), nullptr);
  const Range* const first = world.space.find_range(to);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->bytes, k_block_size);
  EXPECT_EQ(world.space.find_range(to + k_block_size), nullptr);
  const Range* const second = world.space.find_range(third - world.base(0) + to);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->bytes, k_page_size);
  EXPECT_TRUE(world.space.find(to)->valid.full());
  EXPECT_EQ(world.space.find(to + k_block_size)->valid, PageMask::one(1));
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
