// SPDX-License-Identifier: MIT
// The driver's decisions and moves: where a page goes at a fault, how it gets there, and what is said of it. All of it with
// the driver's lock.
#include <algorithm>
#include <cerrno>
#include <iterator>

#include "gpu/standin/svm_driver.hpp"

namespace standin {

namespace {

std::uintptr_t granule_bytes(const Attributes& a) { return k_page << std::min(a.granularity, 40u); }

}  // namespace

Attributes Driver::defaults() const {
  Attributes a;
  a.granularity = config_.granularity;
  if (config_.xnack) a.access = ((2u << config_.gpus) - 1) & ~1u;
  return a;
}

// ---- decisions ------------------------------------------------------------------------------------------------------

// Memory that nobody gave attributes gets a range when a GPU faults on it, of 2 MiB at most.
AttributeMap::Place Driver::range_for_fault(std::uintptr_t at, const Vma& vma) {
  const auto known = attributes_.find(at);
  if (known != attributes_.end()) return known;
  std::uintptr_t begin = std::max(vma.begin, at & ~(k_block - 1));
  std::uintptr_t end = std::min(vma.end, (at & ~(k_block - 1)) + k_block);
  const auto next = attributes_.first(at);
  if (next != attributes_.end()) end = std::min(end, next->first);
  const auto before = attributes_.first(begin);
  for (auto it = before; it != next; ++it) begin = std::max(begin, it->second.end);
  if (vma.movable && moves_) pages_.watch(begin, end);
  Attributes a = defaults();
  if (vma.heap_or_stack) a.preferred = k_system;
  return attributes_.make(begin, end, a);
}

// k_nowhere: it may not use the page.
std::uint32_t Driver::best_for_fault(const Attributes& a, std::uintptr_t, std::uint32_t node) {
  if (a.preferred == k_system) return k_system;
  if (a.preferred == node) return config_.apu ? k_system : node;
  if ((a.access & bit(node)) != 0) return config_.apu ? k_system : node;
  if ((a.in_place & bit(node)) != 0) return k_system;
  return k_nowhere;
}

// k_nowhere: it stays.
std::uint32_t Driver::best_for_prefetch(const Attributes& a) const {
  if (a.prefetch == k_system || a.prefetch == k_nowhere) return a.prefetch;
  if (config_.apu || ((a.access | a.in_place) & bit(a.prefetch)) == 0) return k_system;
  // Those that would use it there and cannot.
  const std::uint32_t others = (config_.xnack ? a.in_place : a.access | a.in_place) & ~bit(a.prefetch);
  return others != 0 && !config_.hive ? k_system : a.prefetch;
}

// False: no GPU could make this access.
bool Driver::gpu_fault(std::uintptr_t at, bool write, std::uint32_t node, const Vma& vma) {
  if (config_.xnack) {
    ++counts_.gpu_faults;
    smi_.fault_start(node, at, write);
  } else if (attributes_.find(at) == attributes_.end()) {
    return false;
  }
  const auto range = range_for_fault(at, vma);
  const Attributes a = range->second.attributes;
  const std::uintptr_t granule = at & ~(granule_bytes(a) - 1);
  const std::uintptr_t begin = std::max({granule, range->first, vma.begin});
  const std::uintptr_t end = std::min({granule + granule_bytes(a), range->second.end, vma.end});
  bool migrated = false;
  const auto elsewhere = [&](std::uint32_t best) {
    bool any = false;
    pages_.each(begin, end, true, [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
      for (std::size_t i = first; i < last; ++i) any |= b.where[i] != best;
    });
    return any;
  };
  if (!config_.xnack) {
    if (((a.access | a.in_place) & bit(node)) == 0) return false;
    const std::uint32_t has = pages_.where(at);
    if (has != 0 && has != node) to_system(begin, end, a, Trigger::gpu_fault);
    map(begin, end, node);
    return true;
  }
  const std::uint32_t best = best_for_fault(a, at, node);
  if (best == k_nowhere) return false;
  if (elsewhere(best)) {
    migrated = true;
    if (best == k_system) {
      to_system(begin, end, a, Trigger::gpu_fault);
    } else if (!to_gpu(begin, end, node, a, Trigger::gpu_fault)) {
      migrated = pages_.where(at) == node;
    }
  }
  map(begin, end, node);
  smi_.fault_end(node, at, migrated);
  return true;
}

void Driver::prefetch(std::uintptr_t begin, std::uintptr_t end, const Attributes& a) {
  const std::uint32_t best = best_for_prefetch(a);
  if (best == k_nowhere) return;
  Vma v;
  for (std::uintptr_t at = begin; at < end; at = v.end) {
    if (!vma_at(at, &v)) return;
    const std::uintptr_t until = std::min(end, v.end);
    if (best == k_system) {
      to_system(at, until, a, Trigger::prefetch);
      continue;
    }
    std::uint64_t missing = 0;
    pages_.each(at, until, true, [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
      for (std::size_t i = first; i < last; ++i) missing += b.where[i] != best;
    });
    if (missing == 0 || !to_gpu(at, until, best, a, Trigger::prefetch)) continue;
    const std::uint32_t may = config_.xnack ? a.access : a.access | a.in_place;
    if ((may & bit(best)) != 0) map(at, until, best);
  }
}

// ---- moves ----------------------------------------------------------------------------------------------------------

std::uint64_t Driver::room(std::uint32_t node) const {
  const std::uint64_t used = hip_used_[node - 1] + pages_.pages_on(node) * k_page;
  return used < config_.memory ? (config_.memory - used) / k_page : 0;
}

bool Driver::make_room(std::uint32_t node, std::uint64_t pages, std::uintptr_t begin, std::uintptr_t end) {
  while (room(node) < pages) {
    auto victim = pages_.blocks().end();
    for (auto it = pages_.blocks().begin(); it != pages_.blocks().end(); ++it) {
      const bool wanted = it->first < end && it->first + k_block > begin;
      if (wanted || it->second.on[node] == 0) continue;
      if (victim == pages_.blocks().end() || it->second.age < victim->second.age) victim = it;
    }
    if (victim == pages_.blocks().end()) return false;
    const std::uint64_t before = pages_.pages_on(node);
    Block& b = victim->second;
    const auto first = std::find(b.where.begin(), b.where.end(), node) - b.where.begin();
    const auto range = attributes_.find(victim->first + static_cast<std::size_t>(first) * k_page);
    const Attributes a = range != attributes_.end() ? range->second.attributes : defaults();
    std::size_t last = k_block_pages;
    while (b.where[last - 1] != node) --last;
    ++counts_.evictions;
    to_system_from(node, victim->first + static_cast<std::size_t>(first) * k_page, victim->first + last * k_page, a,
                   Trigger::eviction);
    if (pages_.pages_on(node) == before) return false;  // in doubt
  }
  return true;
}

// Moves what is not there of a range of one mapping. At a fault what others have there makes room, and it is all or
// nothing; a prefetch brings as much as fits. Says whether anything moved.
bool Driver::to_gpu(std::uintptr_t begin, std::uintptr_t end, std::uint32_t node, const Attributes& a,
                    Trigger trigger) {
  stop();
  for (std::uint32_t other = 1; other <= config_.gpus; ++other) {
    bool any = false;
    pages_.each(begin, end, false, [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
      for (std::size_t i = first; i < last && b.on[other] != 0; ++i) any |= b.where[i] == other;
    });
    if (any && other != node) to_system_from(other, begin, end, a, trigger);
  }
  std::uint64_t want = (end - begin) / k_page;
  pages_.each(begin, end, false, [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) want -= b.where[i] == node;
  });
  if (trigger != Trigger::prefetch && !make_room(node, want, begin, end)) return false;
  std::uint64_t left = std::min(want, room(node));
  if (left == 0) return false;
  std::uint64_t moved = 0;
  smi_.migrate_start(node, begin, end, k_system, node, a.prefetch, a.preferred, trigger);
  ++counts_.migrations;
  Vma v;
  std::uint32_t gpus = 0;
  if (moves_ && vma_at(begin, &v) && v.movable && v.write) {
    gpus = unmap(begin, end, Unmap::notify_migrate);
    if (!pages_.arm(begin, end)) left = 0;
    pages_.each(begin, end, true, [&](std::uintptr_t base, Block& b, std::size_t first, std::size_t last) {
      std::size_t until = first;
      for (std::uint64_t n = 0; until < last && n < left - moved; ++until) n += b.where[until] != node;
      if (until == first) return;
      b.age = ++clock_;
      moved += pages_.take(base, b, first, until, node);
    });
  }
  counts_.pages_moved += moved;
  smi_.migrate_end(node, begin, end, k_system, node, trigger, moved != 0 ? 0 : -EBUSY);
  restore_queues(gpus);
  return moved != 0;
}

void Driver::to_system(std::uintptr_t begin, std::uintptr_t end, const Attributes& a, Trigger trigger) {
  for (std::uint32_t node = 1; node <= config_.gpus; ++node) {
    bool any = false;
    pages_.each(begin, end, false, [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
      for (std::size_t i = first; i < last && b.on[node] != 0; ++i) any |= b.where[i] == node;
    });
    if (any) to_system_from(node, begin, end, a, trigger);
  }
}

void Driver::to_system_from(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, const Attributes& a,
                            Trigger trigger) {
  stop();
  smi_.migrate_start(node, begin, end, node, k_system, a.prefetch, a.preferred, trigger);
  ++counts_.migrations;
  const std::uint32_t gpus = unmap(begin, end, Unmap::notify_migrate);
  std::uint64_t moved = 0;
  pages_.each(begin, end, false, [&](std::uintptr_t base, Block& b, std::size_t first, std::size_t last) {
    if (b.on[node] != 0) moved += pages_.give(base, b, first, last, node);
  });
  counts_.pages_moved += moved;
  smi_.migrate_end(node, begin, end, node, k_system, trigger, moved != 0 ? 0 : -EBUSY);
  restore_queues(gpus);
}

// ---- page tables of GPUs --------------------------------------------------------------------------------------------

std::uint32_t Driver::unmap(std::uintptr_t begin, std::uintptr_t end, Unmap trigger) {
  stop();
  std::uint32_t gpus = 0;
  for (std::uint32_t node = 1; node <= config_.gpus; ++node) {
    bool any = false;
    pages_.each(begin, end, false, [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
      for (std::size_t i = first; i < last; ++i) any |= b.mapped[node][i];
      for (std::size_t i = first; i < last; ++i) b.mapped[node].reset(i);
    });
    if (!any) continue;
    gpus |= bit(node);
    if (!config_.xnack) smi_.queue_eviction(node);
    if (config_.xnack || trigger == Unmap::unmap_from_cpu) smi_.unmap(node, begin, end, trigger);
  }
  return gpus;
}

void Driver::restore_queues(std::uint32_t gpus) {
  for (std::uint32_t node = 1; node <= config_.gpus && !config_.xnack; ++node) {
    if ((gpus & bit(node)) != 0) smi_.queue_restore(node);
  }
}

void Driver::map(std::uintptr_t begin, std::uintptr_t end, std::uint32_t node) {
  pages_.each(begin, end, true, [&](std::uintptr_t base, Block& b, std::size_t first, std::size_t last) {
    pages_.populate(base, b, first, last);
    for (std::size_t i = first; i < last; ++i) {
      if (b.where[i] == 0 || b.where[i] == node) b.mapped[node].set(i);
    }
  });
}

// All around `at` that is one constant away, as the GPU has it now. False: it does not have it.
bool Driver::build_view(std::uintptr_t at, std::uint32_t node, const Vma& vma, StandinView* out) {
  const Block* const b = pages_.find(at);
  const std::uintptr_t base = at & ~(k_block - 1);
  const std::size_t i = (at - base) / k_page;
  if (b == nullptr || !b->mapped[node][i]) return false;
  const bool here = b->where[i] == 0;
  const auto same = [&](std::size_t k) { return b->mapped[node][k] && (b->where[k] == 0) == here; };
  std::size_t first = i, last = i + 1;
  while (first > 0 && same(first - 1)) --first;
  while (last < k_block_pages && same(last)) ++last;
  out->begin = std::max(vma.begin, base + first * k_page);
  out->end = std::min(vma.end, base + last * k_page);
  out->delta = here ? 0 : static_cast<std::ptrdiff_t>(b->hidden - base);
  out->writable = vma.write;
  return true;
}

}  // namespace standin
