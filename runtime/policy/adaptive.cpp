// SPDX-License-Identifier: MIT
#include "policy/adaptive.hpp"

#include <algorithm>

#include "policy/advice.hpp"
#include "policy/density_tree.hpp"
#include "policy/ping_pong.hpp"

namespace hmmrt {
namespace {

constexpr unsigned k_crowded_threshold = 60;     // percent, on a device with hardly a free frame
constexpr unsigned k_refaulting_threshold = 75;  // ... in a block that was just evicted
constexpr unsigned k_sparse_percent = 25;        // of a region really used: not worth an eviction

bool is_crowded(const PolicyContext& context) {
  return context.device_frames != 0 && context.device_free_frames * 16 < context.device_frames;
}

// Pages to bring in around `faulted` (both to be migrated), the faulted ones left out.
PageMask prefetch(const BlockView& block, const PageMask& faulted, const PolicyContext& context,
                  const ping_pong::Verdict& v, const PageMask& taken) {
  unsigned threshold = k_density_threshold;
  if (is_crowded(context) && v.sparse) threshold = v.refaulting ? k_refaulting_threshold : k_crowded_threshold;
  const GranuleSet closed = v.narrow | v.held;
  const PageMask barred =
      not_to_prefetch(block, context) | taken | faulted | pages_of((v.warm & ~granules_of(faulted)) | closed);
  // A huge page costs more to split than to copy: where there is room, it comes as a whole.
  const bool roomy =
      context.device_free_frames * 4 >= context.device_frames && context.device_free_frames >= k_block_pages;
  if (block.cpu_huge && context.device_frames != 0 && roomy && closed == 0 && !v.refaulting)
    return block.valid - barred;

  PageMask region = density_region(block.resident_here, faulted, block.valid, threshold, ~closed);
  PageMask extra = region - barred;
  if (context.device_frames == 0 || faulted.count() + extra.count() <= context.device_free_frames) return extra;

  // It would evict: only for what is in real use, growth not counted.
  const unsigned used = (region & (block.resident_here | faulted)).count();
  if (used * 100 >= region.count() * k_sparse_percent) return extra;
  return v.refaulting ? PageMask{} : extra & pages_of(granules_of(faulted));
}

}  // namespace

void AdaptivePolicy::decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context,
                            Plan& plan) const {
  auto& history = block.history->as<ping_pong::History>();
  PageMask open = apply_advice(block, group, context, plan);
  if (plan.duplicate.any()) {  // duplicates come in by density too; they cost no one anything
    const PageMask region = density_region(block.resident_here, plan.duplicate, block.valid, k_density_threshold);
    plan.duplicate |= (region & block.read_mostly & block.populated) - block.resident_here - group.pages();
  }
  const PageMask preferred = (plan.migrate & block.preferred_here) - block.resident_here;
  if (open.none() && preferred.none()) return;

  const ping_pong::Verdict v =
      ping_pong::assess(history, open, block.resident_here, group.processor, context, is_crowded(context));

  PageMask held = open & pages_of(v.pinned | v.thrash);
  if (held.any()) {
    plan.reason = v.pinned != 0 ? Reason::thrash_pin : Reason::capacity_thrash;
    if (group.processor != k_cpu && !context.system_atomics && held.intersects(group.atomic)) {
      plan.migrate |= held & group.atomic;
      plan.reason = Reason::exclusive;
      open &= ~(held & group.atomic);
      held &= ~group.atomic;
    }
    if (context.can_map_remote) {
      plan.pin_ns = v.pin_ns;
      const PageMask dense = density_region(block.mapped_here, held, block.valid, k_density_threshold);
      plan.remote |= held | ((dense & pages_of(v.held) & block.populated) - block.resident_here - block.mapped_here -
                             plan.migrate - plan.duplicate);
      open &= ~held;
    } else if (group.processor == k_cpu) {
      plan.pin_ns = v.pin_ns;  // it comes home below, page by page, and stays
    } else if (const GranuleSet wait = v.throttle & granules_of(held); wait != 0) {
      ping_pong::note_throttle(history, wait);
      plan.throttle_ns = ping_pong::stay_limit_ns(history) / ping_pong::k_stay_factor;
      plan.reason = Reason::thrash_throttle;
      open &= ~pages_of(wait);
    }
  }

  const PageMask coming = open | preferred;
  if (coming.none()) return;
  PageMask extra = prefetch(block, coming, context, v, plan.remote | plan.duplicate | group.pages());
  // The third fault in a held or warm granule shows that it is used as a whole.
  const GranuleSet whole = granules_of(held & open) & ~v.narrow;
  extra |= (pages_of(whole) & block.valid) - not_to_prefetch(block, context) - plan.remote - plan.duplicate - open;
  plan.migrate |= coming | extra;
  if (plan.reason != Reason::none) return;
  if (v.refaulting) {
    plan.reason = Reason::capacity_thrash;
  } else if (context.device_frames != 0 && context.device_free_frames < coming.count()) {
    plan.reason = Reason::device_full;
  } else if (extra.any()) {
    plan.reason = Reason::dense;
  } else {
    plan.reason = block.populated.intersects(coming) ? Reason::sparse : Reason::first_touch;
  }
}

void AdaptivePolicy::on_migrated(BlockHistory& history, const PageMask& pages, Processor from, Processor to,
                                 Cause cause, std::uint64_t now_ns) const {
  (void)from;
  ping_pong::record_move(history.as<ping_pong::History>(), pages, to, cause, now_ns);
}

bool AdaptivePolicy::ping_pong(const BlockHistory& history, std::uint64_t now_ns) const {
  return ping_pong::any_hot(*reinterpret_cast<const ping_pong::History*>(history.bytes.data()), now_ns);
}

}  // namespace hmmrt
