// SPDX-License-Identifier: MIT
// Following mremap: the pages of one range become those of another, wherever they are. Nothing is copied; each page's
// state moves from its old block to its new one. Both ranges' blocks are claimed meanwhile, in ascending order.
#include <vector>

#include "migrate/claims.hpp"
#include "migrate/coherence.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

namespace {

void move_bit(PageMask& from, unsigned old_page, PageMask& to, unsigned new_page) {
  if (!from.test(old_page)) return;
  from.clear(old_page);
  to.set(new_page);
}

// Advice and pins are about the memory, not the address.
void move_advice(House& house, Block& from, unsigned old_page, Block& to, unsigned new_page) {
  if (from.advice == nullptr) return;
  BlockAdvice* const advice = house.space.obtain_advice(to);
  if (advice == nullptr) return;  // no memory: as never advised
  advice->take(*from.advice, old_page, new_page);
  if (advice->pins[new_page] != 0) to.pinned.set(new_page);  // else it was marked only while it was to come home
}

// The state of one page goes to its new place. No device translates it.
void move_page(House& house, Block& from, unsigned old_page, Block& to, unsigned new_page) {
  const PageMask one = PageMask::one(old_page);
  for (Processor p = 1; p <= house.device_count; ++p) {
    DevicePart* old_part = from.part(p);
    if (old_part == nullptr) continue;
    if (from.on_cpu.test(old_page)) drop_frames(house, from, p, one);  // a copy: the CPU has it
    const bool here = old_part->resident.test(old_page);
    if (!here && !old_part->exclusive.test(old_page)) continue;
    DevicePart* new_part = house.space.obtain_part(to, p);
    if (new_part == nullptr) continue;  // no memory for bookkeeping: the page is lost with its frame
    move_bit(old_part->exclusive, old_page, new_part->exclusive, new_page);
    if (!here) continue;
    std::array<Frame, k_block_pages> frames;
    frames[new_page] = old_part->frames[old_page];
    old_part->frames[old_page] = k_no_frame;
    old_part->resident.clear(old_page);
    if (old_part->resident.none()) house.resident[p - 1u].remove(*old_part);
    add_resident(house, to, p, PageMask::one(new_page), frames.data());
    move_bit(old_part->staged, old_page, new_part->staged, new_page);
  }
  to.set_on_cpu(PageMask::one(new_page), from.on_cpu.test(old_page));
  move_advice(house, from, old_page, to, new_page);
  to.valid.set(new_page);
}

// One range goes, with all claims held.
void move_range(House& house, const Extent& from, std::uintptr_t to) {
  house.space.for_each_block(from.addr, from.bytes, [&](Block& block, const PageMask& pages) {
    untranslate(house, block, pages & block.valid);
  });
  Range* range = nullptr;
  if (!house.host.rehome(from.addr, to, from.bytes).ok() || !house.space.add_range(to, from.bytes, true, &range).ok()) {
    // No memory: managed no more, and what is not in system memory is lost.
    house.space.for_each_block(from.addr, from.bytes,
                               [&](Block& block, const PageMask& pages) { make_invalid(house, block, pages); });
    return;
  }
  house.space.for_each_block(to, from.bytes, [&](Block& block, const PageMask&) { block.range = nullptr; });
  house.space.for_each_block(from.addr, from.bytes, [&](Block& block, const PageMask& pages) {
    const PageMask mine = pages & block.valid;
    mine.for_each([&](unsigned page) {
      const std::uintptr_t addr = block.base + page * k_page_size - from.addr + to;
      move_page(house, block, page, *house.space.find(addr), page_in_block(addr));
    });
    block.cpu_protected = block.cpu_protected - mine;
    make_invalid(house, block, mine);
  });
}

}  // namespace

void follow_remap(House& house, std::uintptr_t from, std::uintptr_t to, std::size_t bytes,
                  void (*before_release)(void*), void* arg) {
  std::vector<Extent> left;
  const bool room = house.space.make_blocks(to, bytes).ok();
  {
    const Claims all(house, {{from, bytes}, {to, bytes}});
    for (Block* block : all.blocks()) settle(house, *block);  // what is noticed by now is about what was there before
    // What was managed at the new addresses is gone: mremap unmapped it, or something did before.
    (void)house.space.cut(to, bytes, &left);
    std::vector<Extent> moved = house.space.cut(from, bytes, &left);
    if (!room) {  // no memory: managed no more, and what devices have is lost
      house.space.for_each_block(from, bytes,
                                 [&](Block& block, const PageMask& pages) { make_invalid(house, block, pages); });
      house.host.detach(from, bytes);
      moved.clear();
    }
    // What was unregistered before this call stays so. The kernel has taken its watch along, and by now somebody else's memory
    // may be there: it is left watched, as a stranger's.
    for (const Extent& e : moved) move_range(house, e, e.addr - from + to);
    before_release(arg);
  }
  // They count for the range that has their addresses: it may have ended since, so none is kept.
  for (const Extent& e : left) {
    house.space.for_each_block(e.addr, e.bytes, [&](Block& block, const PageMask&) {
      block.claim();
      block.range = nullptr;
      release(house, block);
    });
  }
  house.space.note_change();
}

}  // namespace hmmrt
