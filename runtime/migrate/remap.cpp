// SPDX-License-Identifier: MIT
// Following mremap: the pages of one range become those of another, wherever they are. Nothing is copied; each page's
// state moves from its old block to its new one. Both ranges' blocks are claimed meanwhile, in ascending order.
#include <algorithm>
#include <vector>

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
  move_bit(from.pinned, old_page, to.pinned, new_page);
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

}  // namespace

void follow_remap(House& house, std::uintptr_t from, std::uintptr_t to, std::size_t bytes,
                  void (*before_release)(void*), void* arg) {
  // What was managed at the new addresses is gone: mremap unmapped it, or something did before.
  std::vector<std::pair<std::uintptr_t, std::size_t>> left;
  house.space.cut(from, bytes, &left);
  house.space.cut(to, bytes, &left);
  Range* range = nullptr;
  if (!house.space.add_range(to, bytes, true, &range).ok()) {  // no memory
    before_release(arg);
    return;
  }

  std::vector<Block*> claimed;
  for (const std::uintptr_t start : {from, to}) {
    house.space.for_each_block(start, bytes, [&](Block& block, const PageMask&) { claimed.push_back(&block); });
  }
  std::sort(claimed.begin(), claimed.end(), [](const Block* a, const Block* b) { return a->base < b->base; });
  claimed.erase(std::unique(claimed.begin(), claimed.end()), claimed.end());
  for (Block* block : claimed) {
    block->claim();
    settle(house, *block);  // what is noticed by now is about what was there before
  }
  house.space.for_each_block(
      from, bytes, [&](Block& block, const PageMask& pages) { untranslate(house, block, pages & block.valid); });
  (void)house.host.rehome(from, to, bytes);
  house.space.for_each_block(to, bytes, [&](Block& block, const PageMask&) { block.range = nullptr; });
  house.space.for_each_block(from, bytes, [&](Block& block, const PageMask& pages) {
    const PageMask mine = pages & block.valid;
    mine.for_each([&](unsigned page) {
      const std::uintptr_t addr = block.base + page * k_page_size - from + to;
      move_page(house, block, page, *house.space.find(addr), page_in_block(addr));
    });
    block.cpu_protected = block.cpu_protected - mine;
    make_invalid(house, block, mine);
  });
  before_release(arg);
  for (Block* block : claimed) release(house, *block);
  // They count for the range that has their addresses: it may have ended since, so none is kept.
  for (const auto& [addr, length] : left) {
    house.space.for_each_block(addr, length, [&](Block& block, const PageMask&) {
      block.claim();
      block.range = nullptr;
      release(house, block);
    });
  }
  house.space.note_change();
}

}  // namespace hmmrt
