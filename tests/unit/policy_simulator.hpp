// SPDX-License-Identifier: MIT
// A trace-driven model of one block for policy tests: it plays accesses of the CPU and of devices against a policy and
// counts what happens. Plain arrays, virtual time, a simple cost model; independent of the runtime's own service.
//   touch(processor, first, count, access)   an access to each page, one after another: at most one page a group
//   touch_together(...)                       the same pages as one fault batch
//   work(ns)                                  time in which nothing is touched
// The CPU cannot map remotely unless cpu_maps_remote; devices can unless !device_maps_remote.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "policy/policy.hpp"

namespace hmmrt::testing {

struct Recorded {
  BlockView view;
  BlockHistory before;
  BlockHistory after;
  FaultGroup group;
  PolicyContext context;
  Plan plan;
};

class Simulator {
 public:
  static constexpr std::uint64_t k_local_ns = 50;
  static constexpr std::uint64_t k_remote_ns = 400;
  static constexpr std::uint64_t k_fault_ns = 10'000;
  static constexpr std::uint64_t k_copy_ns = 400;  // a page

  explicit Simulator(const char* policy, std::uint64_t device_frames = 1'000'000)
      : policy_(make_policy(policy)), frames_(device_frames), free_(device_frames) {
    view_.valid = PageMask::all();
    populated_ = PageMask::all();
    owner_.fill(k_cpu);
    resident_[k_cpu] = PageMask::all();
  }

  const Policy& policy() const { return *policy_; }
  std::uint64_t now() const { return now_; }
  void work(std::uint64_t ns) { now_ += ns; }
  void touch(Processor who, unsigned first, unsigned count, Access access = Access::write) {
    for (unsigned p = first; p < first + count; ++p) touch_together(who, PageMask::one(p), access);
  }

  void touch_together(Processor who, PageMask pages, Access access = Access::write) {
    pages &= view_.valid;
    for (int tries = 0;; ++tries) {
      ASSERT_LT(tries, 1000) << "no forward progress";
      const PageMask missing = pages - reachable(who);
      if (missing.none()) break;
      fault(who, missing, access);
    }
    pages.for_each([&](unsigned p) { now_ += owner_[p] == who ? k_local_ns : k_remote_ns; });
    remote_accesses += (pages - resident(who)).count();
  }

  // The device gives up its pages.
  void evict(const PageMask& pages, Processor from) {
    const PageMask gone = pages & resident(from);
    move(gone, from, k_cpu, Cause::eviction);
    ++evictions;
    evicted_pages += gone.count();
  }
  void user_prefetch(const PageMask& pages, Processor to) {
    for (Processor from = 0; from < k_max_processors; ++from) {
      if (from != to) move(pages & resident(from), from, to, Cause::prefetch_user);
    }
  }

  PageMask resident(Processor p) const { return resident_[p] & view_.valid; }
  BlockView& advice() { return view_; }

  // Results.
  std::uint64_t faults = 0, pages_to_device = 0, pages_to_host = 0, evictions = 0, evicted_pages = 0, throttles = 0;
  std::uint64_t remote_mapped = 0, remote_accesses = 0;
  std::uint64_t bytes() const { return (pages_to_device + pages_to_host) * k_page_size; }
  std::vector<Recorded> trace;
  bool record = false;
  bool cpu_maps_remote = false, device_maps_remote = true, can_duplicate = false, system_atomics = true;
  PageMask populated_;
  BlockHistory history;

 private:
  PageMask reachable(Processor who) const {
    PageMask m = resident(who);
    if (now_ < remote_until_[who]) m |= remote_[who];
    return m | duplicate_[who];
  }

  void fault(Processor who, const PageMask& pages, Access access) {
    ++faults;
    now_ += k_fault_ns;
    view_.resident_here = resident(who);
    view_.resident_cpu = resident(k_cpu);
    view_.resident_peer = view_.valid - view_.resident_here - view_.resident_cpu;
    view_.mapped_here = reachable(who);
    view_.populated = populated_;
    view_.history = &history;
    FaultGroup group;
    group.processor = who;
    (access == Access::read ? group.read : access == Access::write ? group.write : group.atomic) = pages;
    group.faults = pages.count();
    PolicyContext context;
    context.now_ns = now_;
    context.device_frames = who == k_cpu ? 0 : frames_;
    context.device_free_frames = who == k_cpu ? 0 : free_;
    context.can_map_remote = who == k_cpu ? cpu_maps_remote : device_maps_remote;
    context.can_duplicate = can_duplicate;
    context.system_atomics = who == k_cpu || system_atomics;
    context.fault_ns = k_fault_ns;
    Plan plan;
    Recorded entry{view_, history, {}, group, context, {}};
    policy_->decide(view_, group, context, plan);
    if (record) {
      entry.after = history;
      entry.plan = plan;
      trace.push_back(entry);
    }
    carry_out(who, group, plan, context);
  }

  void carry_out(Processor who, const FaultGroup& group, const Plan& plan, const PolicyContext& context) {
    EXPECT_FALSE(plan.migrate.intersects(plan.remote));
    EXPECT_FALSE(plan.migrate.intersects(plan.duplicate));
    EXPECT_FALSE(plan.remote.intersects(plan.duplicate));
    EXPECT_TRUE(view_.valid.contains(plan.migrate | plan.remote | plan.duplicate));
    if (!context.can_map_remote) {
      EXPECT_TRUE(plan.remote.none());
    }
    const PageMask faulted = group.pages();
    const PageMask decided = plan.migrate | plan.remote | plan.duplicate;
    PageMask migrate = plan.migrate;
    if (plan.throttle_ns == 0) migrate |= faulted - decided;
    if (plan.remote.any()) {
      if (now_ >= remote_until_[who]) remote_[who] = {};
      remote_[who] |= plan.remote;
      remote_until_[who] = plan.pin_ns == 0 ? ~std::uint64_t{0} : now_ + plan.pin_ns;
      remote_mapped += plan.remote.count();
    }
    duplicate_[who] |= plan.duplicate;
    make_room(who, migrate);
    for (Processor from = 0; from < k_max_processors; ++from) {
      if (from == who) continue;
      const PageMask here = migrate & resident(from);
      move(here & faulted, from, who, Cause::fault);
      move(here - faulted, from, who, Cause::prefetch_heuristic);
    }
    if ((faulted - decided - migrate).any()) {
      ++throttles;
      now_ += plan.throttle_ns;
    }
  }

  // One block, so the victim is the least recently arrived granule that is not wanted now.
  void make_room(Processor who, const PageMask& wanted) {
    if (who == k_cpu) return;
    const auto need = [&] { return (wanted - resident(who)).count(); };
    while (free_ < need()) {
      unsigned best = 32;
      for (unsigned g = 0; g < 32; ++g) {
        const PageMask granule = PageMask::range(g * 16, 16);
        if (!(granule & resident(who)).any() || granule.intersects(wanted)) continue;
        if (best == 32 || arrived_[g] < arrived_[best]) best = g;
      }
      ASSERT_LT(best, 32u) << "nothing to evict";
      evict(PageMask::range(best * 16, 16), who);
    }
  }

  void move(const PageMask& pages, Processor from, Processor to, Cause cause) {
    if (pages.none()) return;
    const unsigned n = (pages & populated_).count();
    now_ += n * k_copy_ns;
    (to == k_cpu ? pages_to_host : pages_to_device) += n;
    if (from != k_cpu) free_ += pages.count();
    if (to != k_cpu) free_ -= pages.count();
    pages.for_each([&](unsigned p) {
      owner_[p] = to;
      arrived_[p / 16] = now_;
    });
    populated_ |= pages;
    resident_[from] = resident_[from] - pages;
    resident_[to] |= pages;
    for (auto& r : remote_) r = r - pages;  // the old place is gone
    policy_->on_migrated(history, pages, from, to, cause, now_);
  }

  std::unique_ptr<Policy> policy_;
  std::uint64_t now_ = 1'000'000, frames_, free_;
  BlockView view_;
  std::array<Processor, k_block_pages> owner_{};
  std::array<PageMask, k_max_processors> resident_{};
  std::array<std::uint64_t, 32> arrived_{};
  std::array<PageMask, k_max_processors> remote_{}, duplicate_{};
  std::array<std::uint64_t, k_max_processors> remote_until_{};
};

constexpr Processor k_gpu = device_processor(0);

// CPU and device take turns with the same pages, `period_ns` of other work in each turn.
inline void alternate(Simulator& s, unsigned first, unsigned count, unsigned trips, std::uint64_t period_ns) {
  for (unsigned i = 0; i < trips; ++i) {
    s.touch(k_gpu, first, count);
    s.work(period_ns / 2);
    s.touch(k_cpu, first, count);
    s.work(period_ns / 2);
  }
}

}  // namespace hmmrt::testing
