// SPDX-License-Identifier: MIT
#include "device/soft/stall_table.hpp"

#include "device/soft/launch_board.hpp"

namespace hmmrt {

bool Wave::add_fault(std::uintptr_t addr, Access access) {
  if (fault_count == k_stall_faults) return false;
  const std::uintptr_t block = block_floor(addr);
  unsigned n = 0;
  while (n < node_count && nodes[n].block != block) ++n;
  if (n == k_stall_blocks) return false;
  if (n == node_count) {
    nodes[n].wave = this;
    nodes[n].block = block;
    nodes[n].pages = PageMask();
    ++node_count;
  }
  nodes[n].pages.set(page_in_block(addr));
  faults[fault_count++] = {addr, access};
  return true;
}

bool StallTable::enter(Wave& wave) {
  const std::lock_guard lock(mutex_);
  // Under the mutex: cancel() raises the flag before it sweeps this table.
  if (wave.launch->cancelled.load(std::memory_order_relaxed)) return false;
  for (unsigned i = 0; i < wave.node_count; ++i) {
    StallNode& node = wave.nodes[i];
    const unsigned b = bucket(node.block);
    node.next = heads_[b];
    node.link = &heads_[b];
    if (node.next != nullptr) node.next->link = &node.next;
    heads_[b] = &node;
    filter_.store(filter_.load(std::memory_order_relaxed) | std::uint64_t{1} << b, std::memory_order_release);
  }
  wave.stalled = true;
  stalled_.store(stalled_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  return true;
}

void StallTable::unlink(Wave& wave) {
  for (unsigned i = 0; i < wave.node_count; ++i) {
    StallNode& node = wave.nodes[i];
    *node.link = node.next;
    if (node.next != nullptr) node.next->link = node.link;
    const unsigned b = bucket(node.block);
    if (heads_[b] == nullptr) {
      filter_.store(filter_.load(std::memory_order_relaxed) & ~(std::uint64_t{1} << b), std::memory_order_release);
    }
  }
  wave.stalled = false;
  stalled_.store(stalled_.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
}

void StallTable::ready(Wave& wave) {
  unlink(wave);
  wave.next = nullptr;
  *ready_tail_ = &wave;
  ready_tail_ = &wave.next;
  has_ready_.store(true, std::memory_order_release);
}

bool StallTable::leave(Wave& wave) {
  const std::lock_guard lock(mutex_);
  if (!wave.stalled) return false;
  unlink(wave);
  return true;
}

bool StallTable::replay(std::uintptr_t base, const PageMask& pages) {
  const unsigned b = bucket(base);
  if ((filter_.load(std::memory_order_acquire) >> b & 1) == 0) return false;
  const std::lock_guard lock(mutex_);
  bool moved = false;
  for (StallNode* node = heads_[b]; node != nullptr;) {
    StallNode* next = node->next;
    if (node->block == base && node->pages.intersects(pages)) {
      // Moving the wave also unlinks its nodes of other blocks; none of those may be where we go on.
      while (next != nullptr && next->wave == node->wave) next = next->next;
      ready(*node->wave);
      moved = true;
    }
    node = next;
  }
  return moved;
}

template <class Want>
bool StallTable::move_if(Want&& want) {
  bool moved = false;
  for (unsigned b = 0; b < k_buckets; ++b) {
    for (StallNode* node = heads_[b]; node != nullptr;) {
      if (want(*node->wave)) {
        ready(*node->wave);
        moved = true;
        node = heads_[b];  // what came before is not wanted, and few
      } else {
        node = node->next;
      }
    }
  }
  return moved;
}

bool StallTable::replay_all() {
  if (filter_.load(std::memory_order_acquire) == 0) return false;
  const std::lock_guard lock(mutex_);
  return move_if([](const Wave&) { return true; });
}

bool StallTable::release(const LaunchState* launch) {
  const std::lock_guard lock(mutex_);
  return move_if([launch](const Wave& wave) { return wave.launch == launch; });
}

Wave* StallTable::take_ready() {
  const std::lock_guard lock(mutex_);
  Wave* list = ready_head_;
  ready_head_ = nullptr;
  ready_tail_ = &ready_head_;
  has_ready_.store(false, std::memory_order_relaxed);
  return list;
}

}  // namespace hmmrt
