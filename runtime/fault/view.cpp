// SPDX-License-Identifier: MIT
#include "fault/view.hpp"

#include <algorithm>

namespace hmmrt {

BlockView view_of(const House& house, Block& block, Processor p) {
  BlockView v;
  v.base = block.base;
  v.valid = block.valid - block.no_access;
  v.resident_cpu = block.on_cpu;
  const DevicePart* own = p != k_cpu ? block.part(p) : nullptr;
  if (p == k_cpu) {
    v.resident_here = block.on_cpu;
    v.mapped_here = block.on_cpu;
  } else if (own != nullptr) {
    v.resident_here = own->resident;
    v.mapped_here = own->mapped;
  }
  for (Processor q = 1; q <= house.device_count; ++q) {
    if (const DevicePart* part = block.part(q); q != p && part != nullptr) v.resident_peer |= part->resident;
  }
  v.populated = block.resident_on_devices() | block.on_cpu;
  v.cpu_huge = p != k_cpu && block.on_cpu.full() && block.valid.full() && block.cpu_protected.none() &&
               house.host.huge(block.base);
  v.pinned_until_ns = block.held.any() ? block.held_until_ns : 0;
  v.history = &block.history;
  if (const BlockAdvice* a = block.advice; a != nullptr) {
    v.read_mostly = a->read_mostly;
    for (unsigned page = 0; page < k_block_pages; ++page) {
      if ((a->accessed_by[page] & set_of(p)) != 0) v.accessed_by.set(page);
      if (a->preferred[page] == p) v.preferred_here.set(page);
      if (a->preferred[page] != p && a->preferred[page] != k_no_processor) v.preferred_elsewhere.set(page);
    }
  }
  return v;
}

PolicyContext context_of(const House& house, Processor p, std::uint64_t now_ns) {
  PolicyContext c;
  c.now_ns = now_ns;
  c.can_duplicate = house.host.info().write_protect;
  if (p != k_cpu) {
    const Device& device = house.device(p);
    c.device_frames = device.info().memory_bytes / k_page_size;
    c.device_free_frames = device.free_frame_count();
    c.can_map_remote = device.info().caps.remote_mapping;
    c.system_atomics = device.info().caps.system_atomics;
  }
  return c;
}

PageMask ask_policy(House& house, Block& block, const FaultGroup& group, const PageMask& pages, Work& work,
                    Plan& plan) {
  const Processor p = group.processor;
  const std::uint64_t now = house.clock.now_ns();
  const BlockView view = view_of(house, block, p);
  FaultGroup asked = group;
  asked.read = group.read & pages;
  asked.write = group.write & pages;
  asked.atomic = group.atomic & pages;
  house.policy.decide(view, asked, context_of(house, p, now), plan);

  const PageMask usable = block.valid - block.no_access;
  work.to = plan.to == k_no_processor ? p : plan.to;
  work.pages |= plan.migrate & usable;
  work.duplicate |= (plan.duplicate & usable) - work.pages;
  if (p != k_cpu) work.remote |= (plan.remote & usable) - work.pages - work.duplicate;
  work.reason = plan.reason;
  const PageMask answered = work.pages | work.duplicate | work.remote;
  PageMask waiting = pages - answered;
  if (plan.throttle_ns == 0) {
    work.pages |= waiting;
    waiting = PageMask{};
  }

  const Tally tally = house.tally(block, p, block.base);
  if (plan.throttle_ns != 0) tally.add(Count::throttles);
  if (plan.pin_ns != 0) {
    block.held |= answered;
    block.held_until_ns = std::max(block.held_until_ns, now + plan.pin_ns);
    tally.add(Count::pins);
  }
  const bool ping_pong = house.policy.ping_pong(block.history, now);
  if (ping_pong && !block.ping_pong) tally.add(Count::ping_pong_detections);
  block.ping_pong = ping_pong;
  if (house.log.on()) {
    house.log.record({.time_ns = now,
                      .base = block.base,
                      .a = work.pages.count(),
                      .b = work.remote.count(),
                      .c = work.duplicate.count(),
                      .pages = pages.count(),
                      .kind = EventKind::decision,
                      .processor = p,
                      .peer = work.to,
                      .detail = static_cast<std::uint8_t>(plan.reason)});
  }
  return waiting;
}

}  // namespace hmmrt
