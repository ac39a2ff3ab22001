// SPDX-License-Identifier: MIT
#include "migrate/claims.hpp"

#include <algorithm>

namespace hmmrt {

Claims::Claims(House& house, std::initializer_list<Extent> extents) : house_(house) {
  for (const Extent& e : extents) {
    house.space.for_each_block(e.addr, e.bytes, [&](Block& block, const PageMask&) { blocks_.push_back(&block); });
  }
  std::sort(blocks_.begin(), blocks_.end(), [](const Block* a, const Block* b) { return a->base < b->base; });
  blocks_.erase(std::unique(blocks_.begin(), blocks_.end()), blocks_.end());
  for (Block* block : blocks_) block->claim();
}

Claims::~Claims() {
  for (Block* block : blocks_) release(house_, *block);
}

}  // namespace hmmrt
