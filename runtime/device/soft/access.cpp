// SPDX-License-Identifier: MIT
// The slow way of an access: everything the inline code of kernel_soft.hpp does not do in a few loads. Runs on the
// unit's thread, in the wave's fiber. No lock is held across an access, and a section is always closed before the wave
// stalls, yields or throws. Spans read the page table itself, block by block, rather than the TLB, so they are never
// stale beyond their own section.
#include <algorithm>
#include <cassert>
#include <cstring>

#include "device/soft/unit.hpp"

namespace hmmrt {

namespace {

// A section longer than this would make quiesce() wait; memory speed is reached well below.
constexpr std::size_t k_span_bytes = 64 << 10;
constexpr std::uint64_t k_line = 64;  // bytes of one remote transaction

void spin_for(const Clock& clock, std::uint64_t ns) {
  const std::uint64_t end = clock.now_ns() + ns;
  while (clock.now_ns() < end) __builtin_ia32_pause();
}

Unit& as_unit(detail::unit* u) { return *static_cast<Unit*>(u); }

}  // namespace

void Unit::check_cancelled() {
  if (current_->launch->cancelled.load(std::memory_order_acquire)) throw WaveCancelled{};
}

void Unit::fail_kernel(std::uintptr_t addr, const char* text) {
  end_section();
  LaunchError error;
  error.result = HMMRT_ERROR_INVALID_VALUE;
  error.addr = addr;
  shared_.cancel(shared_.cancel_context, current_->launch->id, error, text);
  throw WaveCancelled{};
}

void Unit::refuse_nesting(std::uintptr_t addr) {
  if (!in_span_) return;
  fail_kernel(addr, "an access was made inside with_spans(); use the pointers it passes");
}

// Opens a section: U1 and U2 of quiesce.hpp.
void Unit::begin_section() {
  busy.store(1, std::memory_order_relaxed);
  if (shared_.fast_path) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
  } else {
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  accept_flush();
}

// Empties the TLB if asked to, and says so. With no translation of before in use: at the start of a section, or
// outside one.
void Unit::accept_flush() {
  const std::uint32_t requested = flush_requested.load(std::memory_order_acquire);
  if (requested != flush_seen.load(std::memory_order_relaxed)) {
    tag += k_generation;
    if (tag < k_generation) {  // wrapped: old generations could match again
      std::fill(entries_.begin(), entries_.end(), detail::tlb_entry{});
      tag = k_generation;
    }
    flush_seen.store(requested, std::memory_order_release);
  }
}

// Leaves never move, so what is cached here is true for ever.
PageTableLeaf* Unit::leaf_of(std::uintptr_t addr) {
  const std::uintptr_t block = addr >> k_block_shift;
  LeafSlot& slot = leaves_[block % leaves_.size()];
  if (slot.block == block) return slot.leaf;
  PageTableLeaf* leaf = shared_.pages.find(addr);
  if (leaf != nullptr) slot = {block, leaf};
  return leaf;
}

bool Unit::satisfies(Pte entry, Access access) const {
  if (!pte_allows(entry, access)) return false;
  return access != Access::atomic || (entry & k_pte_host) == 0 || shared_.config.system_atomics;
}

// The entry that serves the access, its page marked dirty if it writes; 0 when none does. Inside a section.
Pte Unit::translate(std::uintptr_t addr, Access access) {
  PageTableLeaf* leaf = leaf_of(addr);
  if (leaf == nullptr) return 0;
  const unsigned page = page_in_block(addr);
  for (;;) {
    const Pte entry = leaf->entry(page);
    if (entry == 0 || !satisfies(entry, access)) return 0;
    if (access != Access::read && leaf->mark_dirty(page, 1) && leaf->entry(page) != entry) continue;
    if ((entry & k_pte_remote) != 0) count_remote(*leaf, addr, entry, 1);
    return entry;
  }
}

void Unit::count_remote(PageTableLeaf& leaf, std::uintptr_t addr, Pte entry, std::uint64_t transactions) {
  remote_accesses_.store(remote_accesses_.load(std::memory_order_relaxed) + transactions, std::memory_order_relaxed);
  if (shared_.config.link.enabled && !shared_.config.deterministic) {
    spin_for(shared_.clock, shared_.config.link.remote_access_ns);
  }
  if (!shared_.config.access_counters) return;
  const auto n = static_cast<std::uint32_t>(transactions);
  const std::uint32_t threshold = shared_.config.access_counter_threshold;
  const std::uint32_t count = leaf.remote_count.fetch_add(n, std::memory_order_relaxed) + n;
  if (count < threshold || count - n >= threshold) return;  // who crosses the threshold reports
  AccessCount report;
  report.base = block_floor(addr);
  report.count = leaf.remote_count.exchange(0, std::memory_order_relaxed);
  report.resident = static_cast<Processor>((entry >> k_pte_processor_shift) & 15);
  shared_.counts.push(report);  // when full: lost and counted; the block reports again after another threshold
}

void Unit::fill(std::uintptr_t addr, Pte entry, Access access) {
  PageTableLeaf* leaf = leaf_of(addr);
  if ((++fills_ & 63) == 0) shared_.tick.fetch_add(1, std::memory_order_relaxed);
  leaf->last_use.store(shared_.tick.load(std::memory_order_relaxed), std::memory_order_relaxed);
  if ((entry & k_pte_remote) != 0) return;  // each remote access is counted: it must come this way
  const std::uint64_t page = addr >> k_page_shift;
  const std::uint64_t tagged = page + tag;
  detail::tlb_entry& e = entries_[page & (entries_.size() - 1)];
  const bool same = e.read_tag == tagged;
  e.read_tag = tagged;
  e.write_tag = access != Access::read ? tagged : (same ? e.write_tag : 0);
  e.delta = (entry & k_pte_address) - (page << k_page_shift);
}

void* Unit::enter(std::uintptr_t addr, Access access) {
  end_section();  // the inline code's, which missed
  refuse_nesting(addr);
  if (turn_is_over()) yield_wave();
  for (;;) {
    check_cancelled();
    begin_section();
    if (!shared_.fast_path) {  // the TLB, stale entries and all, as the inline code would have used it
      const detail::tlb_entry& e = entries_[(addr >> k_page_shift) & (entries_.size() - 1)];
      if ((access == Access::read ? e.read_tag : e.write_tag) == (addr >> k_page_shift) + tag) {
        return reinterpret_cast<void*>(addr + e.delta);
      }
    }
    if (const Pte entry = translate(addr, access); entry != 0) {
      fill(addr, entry, access);
      return reinterpret_cast<void*>((entry & k_pte_address) + (addr & (k_page_size - 1)));
    }
    end_section();
    current_->clear_faults();
    current_->add_fault(addr, access);
    stall();
  }
}

// Waits until one of the wave's pages is replayed, or its launch is cancelled (then the next check throws).
void Unit::stall() {
  Wave& wave = *current_;
  wave.not_before_ns = 0;
  if (!stalls_.enter(wave)) return;
  // Another wave's fault may have brought the pages meanwhile: then there is nothing to report.
  begin_section();
  bool missing = false;
  for (unsigned i = 0; i < wave.fault_count && !missing; ++i) {
    const PageTableLeaf* leaf = leaf_of(wave.faults[i].addr);
    missing = leaf == nullptr || !satisfies(leaf->entry(page_in_block(wave.faults[i].addr)), wave.faults[i].access);
  }
  end_section();
  if (!missing && stalls_.leave(wave)) return;
  if (missing) {
    DeviceFault fault;
    fault.time_ns = shared_.clock.now_ns();
    fault.launch = wave.launch->id;
    fault.wave = static_cast<std::uint32_t>(wave.number);
    if (shared_.config.link.enabled && !shared_.config.deterministic) {
      wave.not_before_ns = fault.time_ns + shared_.config.link.fault_ns;
    }
    for (unsigned i = 0; i < wave.fault_count; ++i) {
      fault.addr = wave.faults[i].addr;
      fault.access = wave.faults[i].access;
      if (shared_.drop_fault.strike()) {
        shared_.faults.drop();
      } else {
        shared_.faults.push(fault);  // when full: counted; replay_all() makes the wave miss, and push, again
      }
    }
  }
  wave.fiber.suspend();
}

// ---- spans ----------------------------------------------------------------------------------------------------------

// Bytes at `addr`, at most `want`, that one entry or a run of adjoining entries translates contiguously; 0 on a miss.
std::size_t Unit::contiguous(std::uintptr_t addr, std::size_t want, Access access, Pte* entry) {
  PageTableLeaf* leaf = leaf_of(addr);
  if (leaf == nullptr) return 0;
  unsigned page = page_in_block(addr);
  const std::size_t in_block = k_block_size - (addr & (k_block_size - 1));
  want = std::min(want, in_block);
  if (const Pte huge = leaf->huge.load(std::memory_order_acquire); huge != 0) {
    *entry = huge + Pte{page} * k_page_size;
    return satisfies(huge, access) ? want : 0;
  }
  const Pte first = leaf->entry(page);
  if (first == 0 || !satisfies(first, access)) return 0;
  *entry = first;
  std::size_t run = k_page_size - (addr & (k_page_size - 1));
  for (Pte next = first + k_page_size; run < want && leaf->entry(page + 1) == next; next += k_page_size) {
    ++page;
    run += k_page_size;
  }
  return std::min(run, want);
}

// Marks the operand's pages dirty. False when an entry changed meanwhile: translate again.
bool Unit::mark_span_dirty(const detail::span_operand& operand, std::size_t bytes) {
  const std::uintptr_t end = operand.addr + bytes;
  for (std::uintptr_t at = operand.addr; at < end;) {
    const std::uintptr_t stop = std::min(end, block_floor(at) + k_block_size);
    const unsigned first = page_in_block(at);
    const unsigned count = page_in_block(stop - 1) - first + 1;
    if (leaf_of(at)->mark_dirty(first, count)) return false;
    at = stop;
  }
  return true;
}

// Translates all operands for as many elements as all of them have contiguous. 0 on a miss. Inside a section.
std::size_t Unit::translate_spans(std::span<detail::span_operand> operands, std::size_t elements) {
  if ((++fills_ & 63) == 0) shared_.tick.fetch_add(1, std::memory_order_relaxed);
  const std::uint64_t tick = shared_.tick.load(std::memory_order_relaxed);
  for (;;) {
    std::size_t n = elements;
    std::array<Pte, detail::k_max_operands> entries;
    for (std::size_t i = 0; i < operands.size(); ++i) {
      detail::span_operand& o = operands[i];
      const auto access = static_cast<Access>(o.kind);
      const std::size_t size = o.element_bytes;
      if (n * size > k_span_bytes) n = std::max<std::size_t>(k_span_bytes / size, 1);
      const std::size_t run = contiguous(o.addr, n * size, access, &entries[i]);
      if (run == 0) return 0;
      o.host = o.head = reinterpret_cast<void*>((entries[i] & k_pte_address) + (o.addr & (k_page_size - 1)));
      o.head_bytes = 0;
      if (run >= n * size) continue;
      if (run >= size) {
        n = run / size;
        continue;
      }
      Pte second = 0;  // the element straddles two frames that do not adjoin
      if (contiguous(o.addr + run, size - run, access, &second) == 0) return 0;
      o.tail = reinterpret_cast<void*>(second & k_pte_address);
      o.head_bytes = run;
      n = 1;
    }
    bool stable = true;
    for (const detail::span_operand& o : operands) {
      PageTableLeaf* leaf = leaf_of(o.addr);
      leaf->last_use.store(tick, std::memory_order_relaxed);
      if (o.kind != detail::k_read) stable &= mark_span_dirty(o, n * o.element_bytes);
    }
    if (!stable) continue;
    for (std::size_t i = 0; i < operands.size(); ++i) {
      detail::span_operand& o = operands[i];
      if ((entries[i] & k_pte_remote) != 0) {
        count_remote(*leaf_of(o.addr), o.addr, entries[i], (n * o.element_bytes + k_line - 1) / k_line);
      }
      if (o.head_bytes == 0) continue;
      std::memcpy(o.bounce, o.head, o.head_bytes);
      std::memcpy(static_cast<std::byte*>(o.bounce) + o.head_bytes, o.tail, o.element_bytes - o.head_bytes);
      o.host = o.bounce;
    }
    return n;
  }
}

// Lists every page the operands miss, so that one batch brings them all: an even share for each operand.
void Unit::collect_faults(std::span<detail::span_operand> operands, std::size_t elements) {
  Wave& wave = *current_;
  wave.clear_faults();
  const std::size_t share = k_stall_faults / operands.size();
  for (const detail::span_operand& o : operands) {
    const auto access = static_cast<Access>(o.kind);
    const std::uintptr_t end = o.addr + std::min(elements * o.element_bytes, share * k_page_size);
    for (std::uintptr_t at = o.addr; at < end; at = page_floor(at) + k_page_size) {
      const PageTableLeaf* leaf = leaf_of(at);
      if (leaf != nullptr && satisfies(leaf->entry(page_in_block(at)), access)) continue;
      if (!wave.add_fault(at, access)) return;
    }
  }
}

std::size_t Unit::open_spans(std::span<detail::span_operand> operands, std::size_t elements) {
  refuse_nesting(operands[0].addr);
  elements = std::min(elements, std::size_t{1} << 40);  // whatever a kernel asks for, byte counts do not overflow
  if (turn_is_over()) yield_wave();
  if (far != 0) return open_far_spans(operands, elements);
  for (;;) {
    check_cancelled();
    begin_section();
    if (const std::size_t n = translate_spans(operands, elements); n != 0) {
      saved_tag_ = tag;
      tag = k_no_tag;  // a nested access then misses, and is refused
      in_span_ = true;
      return n;
    }
    collect_faults(operands, elements);
    end_section();
    if (current_->fault_count != 0) stall();
  }
}

void Unit::close_spans(std::span<detail::span_operand> operands) {
  if (!in_span_) return;
  if (far != 0) {
    close_far_spans(operands);
    return;
  }
  // After a refused nested access the section is closed already: drop what bounced, the launch has failed.
  if (busy.load(std::memory_order_relaxed) != 0) {
    for (const detail::span_operand& o : operands) {
      if (o.head_bytes == 0 || o.kind == detail::k_read) continue;
      std::memcpy(o.head, o.bounce, o.head_bytes);
      std::memcpy(o.tail, static_cast<std::byte*>(o.bounce) + o.head_bytes, o.element_bytes - o.head_bytes);
    }
  }
  tag = saved_tag_;
  in_span_ = false;
  end_section();
}

}  // namespace hmmrt

extern "C" {

std::uint32_t hmmrt_detail_abi() { return hmmrt::detail::k_abi; }

void* hmmrt_detail_enter(hmmrt::detail::unit* unit, std::uintptr_t addr, std::uint32_t kind) {
  return hmmrt::as_unit(unit).enter(addr, static_cast<hmmrt::Access>(kind));
}

void hmmrt_detail_copy_in(hmmrt::detail::unit* unit, void* local, std::uintptr_t addr, std::size_t bytes) {
  if (unit->far != 0) {
    hmmrt::FarAccess access{.op = hmmrt::FarAccess::Op::read, .addr = addr, .buffer = local, .bytes = bytes};
    hmmrt::as_unit(unit).far_access(access);
    return;
  }
  for (auto* to = static_cast<std::byte*>(local); bytes != 0;) {
    const std::size_t n = std::min(bytes, hmmrt::k_page_size - (addr & (hmmrt::k_page_size - 1)));
    std::memcpy(to, hmmrt::as_unit(unit).enter(addr, hmmrt::Access::read), n);
    hmmrt::detail::leave(unit);
    to += n, addr += n, bytes -= n;
  }
}

void hmmrt_detail_copy_out(hmmrt::detail::unit* unit, const void* local, std::uintptr_t addr, std::size_t bytes) {
  if (unit->far != 0) {
    hmmrt::FarAccess access{
        .op = hmmrt::FarAccess::Op::write, .addr = addr, .buffer = const_cast<void*>(local), .bytes = bytes};
    hmmrt::as_unit(unit).far_access(access);
    return;
  }
  for (const auto* from = static_cast<const std::byte*>(local); bytes != 0;) {
    const std::size_t n = std::min(bytes, hmmrt::k_page_size - (addr & (hmmrt::k_page_size - 1)));
    std::memcpy(hmmrt::as_unit(unit).enter(addr, hmmrt::Access::write), from, n);
    hmmrt::detail::leave(unit);
    from += n, addr += n, bytes -= n;
  }
}

std::uint64_t hmmrt_detail_far_compare_exchange(hmmrt::detail::unit* unit, std::uintptr_t addr, std::size_t bytes,
                                                std::uint64_t expected, std::uint64_t desired, bool system) {
  hmmrt::FarAccess access{.op = hmmrt::FarAccess::Op::compare_exchange,
                          .system = system,
                          .addr = addr,
                          .bytes = bytes,
                          .expected = expected,
                          .desired = desired};
  hmmrt::as_unit(unit).far_access(access);
  return access.before;
}

std::uint64_t hmmrt_detail_far_add(hmmrt::detail::unit* unit, std::uintptr_t addr, std::size_t bytes,
                                   std::uint64_t value, bool system) {
  hmmrt::FarAccess access{
      .op = hmmrt::FarAccess::Op::add, .system = system, .addr = addr, .bytes = bytes, .desired = value};
  hmmrt::as_unit(unit).far_access(access);
  return access.before;
}

std::size_t hmmrt_detail_open_spans(hmmrt::detail::unit* unit, hmmrt::detail::span_operand* operands, std::size_t count,
                                    std::size_t elements) {
  return hmmrt::as_unit(unit).open_spans({operands, count}, elements);
}

void hmmrt_detail_close_spans(hmmrt::detail::unit* unit, hmmrt::detail::span_operand* operands, std::size_t count) {
  hmmrt::as_unit(unit).close_spans({operands, count});
}

void hmmrt_detail_fail(hmmrt::detail::unit* unit, std::uintptr_t addr, const char* text) {
  if (unit == nullptr) std::abort();
  hmmrt::as_unit(unit).fail_kernel(addr, text);
}

}  // extern "C"
