// SPDX-License-Identifier: MIT
// Models of the two seams to move pages between: a page's contents are one word, and every block has a record of what was
// done to it. Neither is locked: of one block, the pipeline orders everything.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "migrate/coherence.hpp"
#include "migrate/pipeline.hpp"
#include "migrate/requests.hpp"
#include "unit/idle_device.hpp"

namespace hmmrt::test {

constexpr std::uintptr_t k_base = 0x100000000000;
constexpr unsigned k_pages = 8;  // used of each block
constexpr std::uint64_t k_junk = 0xbad;

using Steps = std::vector<std::string>;

inline std::size_t index(std::uintptr_t addr) { return (addr - k_base) >> k_block_shift; }
inline std::uint64_t contents(std::size_t block, unsigned page) { return block * 1000 + page + 1; }

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

class ModelDevice final : public IdleDevice {
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

inline const PageMask k_used = PageMask::range(0, k_pages);

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

}  // namespace hmmrt::test
