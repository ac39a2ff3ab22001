// SPDX-License-Identifier: MIT
#include "host/kfd/smi_reader.hpp"

#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <mutex>

namespace hmmrt::kfd {

namespace {

// Of linux/kfd_ioctl.h: KFD_MIGRATE_TRIGGERS, KFD_SVM_UNMAP_TRIGGERS.
enum : std::int32_t { k_prefetch = 0, k_gpu_fault = 1, k_cpu_fault = 2, k_ttm_eviction = 3 };
enum : std::int32_t { k_unmap_from_cpu = 2 };

std::uint64_t boottime_ns() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(now.tv_nsec);
}

Cause cause_of(std::int32_t trigger) {
  switch (trigger) {
    case k_prefetch:
      return Cause::prefetch_user;
    case k_ttm_eviction:
      return Cause::eviction;
    default:
      return Cause::fault;
  }
}

}  // namespace

SmiReader::SmiReader(std::vector<int> fds, std::vector<Gpu> gpus)
    : fds_(std::move(fds)), gpus_(std::move(gpus)), parsers_(fds_.size()), ring_(k_ring) {
  unmapped_.reserve(k_ring);
  made_.reserve(k_ring);
}

SmiReader::~SmiReader() {
  for (const int fd : fds_) {
    if (fd >= 0) close(fd);
  }
}

Processor SmiReader::processor_of(std::uint32_t gpu_id) const {
  if (gpu_id == 0) return k_cpu;
  const auto it = std::find_if(gpus_.begin(), gpus_.end(), [&](const Gpu& g) { return g.gpu_id == gpu_id; });
  return it != gpus_.end() ? it->processor : k_no_processor;
}

bool SmiReader::read() {
  constexpr std::size_t k_bytes = 8192;
  std::array<char, k_bytes> bytes;
  std::array<SmiEvent, 64> events;
  made_.clear();
  for (std::size_t i = 0; i < fds_.size(); ++i) {
    if (fds_[i] < 0) continue;
    for (;;) {
      const ssize_t n = ::read(fds_[i], bytes.data(), bytes.size());
      if (n <= 0) break;
      note_full(static_cast<std::size_t>(n));
      std::string_view text(bytes.data(), static_cast<std::size_t>(n));
      for (std::size_t made = events.size(); made == events.size();) {
        made = parsers_[i].parse(&text, events);
        for (std::size_t k = 0; k < made; ++k) understand(events[k]);
      }
    }
  }
  // Each GPU's are in order.
  if (fds_.size() > 1) {
    std::stable_sort(made_.begin(), made_.end(),
                     [](const DriverRecord& a, const DriverRecord& b) { return a.time_ns < b.time_ns; });
  }
  const std::lock_guard guard(lock_);
  const std::size_t fit = std::min(made_.size(), k_ring - (head_ - tail_));
  for (std::size_t i = 0; i < fit; ++i) ring_[head_++ % k_ring] = made_[i];
  stats_.overflowed += made_.size() - fit;
  SmiCounts counts;
  for (const SmiParser& p : parsers_) counts.malformed += p.counts().malformed;
  stats_.damaged = counts.malformed;
  stats_.unpaired = pairs_.ends_without_start() + pairs_.starts_without_end();
  stats_.loss = stats_.overflowed + stats_.full != 0 ? SmiLoss::likely : smi_loss(counts, pairs_);
  rounds_.fetch_add(1, std::memory_order_acq_rel);
  return fit != 0;
}

// A line has at most 96 bytes, and one that does not fit is dropped.
void SmiReader::note_full(std::size_t bytes) {
  constexpr std::size_t k_line = 96, k_larger = 8192;
  if (bytes > buffer_bytes_) buffer_bytes_ = k_larger;
  if (bytes + k_line <= buffer_bytes_) return;
  const std::lock_guard guard(lock_);
  ++stats_.full;
}

void SmiReader::note_open(SmiKind kind, std::uint32_t gpu, std::uint64_t addr, std::uint64_t time_ns) {
  if (open_count_ == k_open) {  // the oldest never ended, or its end was lost
    std::move(open_.begin() + 1, open_.end(), open_.begin());
    --open_count_;
  }
  open_[open_count_++] = {kind, gpu, addr, time_ns};
}

bool SmiReader::close_open(SmiKind kind, std::uint32_t gpu, std::uint64_t addr, std::uint64_t* time_ns) {
  for (std::size_t i = open_count_; i-- != 0;) {
    const Open& o = open_[i];
    if (o.kind != kind || o.gpu != gpu || o.addr != addr) continue;
    *time_ns = o.time_ns;
    open_[i] = open_[--open_count_];
    return true;
  }
  return false;
}

void SmiReader::understand(const SmiEvent& e) {
  pairs_.add(e);
  {
    const std::lock_guard guard(lock_);
    ++stats_.events;
    if (e.kind == SmiKind::queue_eviction) ++stats_.queue_evictions;
  }
  std::uint64_t began = 0;
  DriverRecord r;
  r.time_ns = e.time_ns;
  switch (e.kind) {
    case SmiKind::page_fault_start:
      note_open(e.kind, e.gpu, e.addr, e.time_ns);
      r.kind = DriverRecord::Kind::fault;
      r.access = e.write ? Access::write : Access::read;
      r.to = processor_of(e.gpu);
      r.addr = e.addr;
      r.bytes = k_page_size;
      if (r.to != k_no_processor && r.to != k_cpu) put(r);
      break;
    case SmiKind::page_fault_end:
      r.to = processor_of(e.gpu);
      if (r.to == k_no_processor || r.to == k_cpu) break;
      r.addr = e.addr;
      r.bytes = k_page_size;
      if (close_open(SmiKind::page_fault_start, e.gpu, e.addr, &began)) {
        r.took_ns = e.time_ns - began;
      } else {  // its start was lost
        r.kind = DriverRecord::Kind::fault;
        put(r);
      }
      r.kind = DriverRecord::Kind::served;
      put(r);
      break;
    case SmiKind::migrate_start:
      note_open(e.kind, e.from, e.addr, e.time_ns);
      break;
    case SmiKind::migrate_end:
      put_moved(e, close_open(SmiKind::migrate_start, e.from, e.addr, &began) ? e.time_ns - began : 0);
      break;
    case SmiKind::unmap:
      if (e.trigger != k_unmap_from_cpu) break;
      if (asked(e.addr, e.addr + e.bytes, e.time_ns, true) != When::never) break;
      if (unmapped_.size() == unmapped_.capacity()) {
        const std::lock_guard guard(lock_);
        ++stats_.overflowed;
        break;
      }
      unmapped_.push_back({.kind = HostEventKind::unmap, .addr = e.addr, .bytes = e.bytes, .time_ns = e.time_ns});
      break;
    default:
      break;
  }
}

// One record a block: what was asked since may be part of it.
void SmiReader::put_moved(const SmiEvent& e, std::uint64_t took_ns) {
  const Processor from = processor_of(e.from), to = processor_of(e.to);
  if (e.error != 0 || from == k_no_processor || to == k_no_processor || from == to) return;
  constexpr std::uint64_t k_largest = std::uint64_t{1} << 44;
  const std::uintptr_t end = e.addr + std::min(e.bytes, k_largest);
  for (std::uintptr_t at = e.addr; at < end; at = block_floor(at) + k_block_size) {
    const std::uintptr_t part_end = std::min(end, block_floor(at) + k_block_size);
    DriverRecord r;
    r.time_ns = e.time_ns;
    r.alone = at == e.addr && part_end == end;
    r.kind = DriverRecord::Kind::moved;
    r.cause = cause_of(e.trigger);
    r.cpu_fault = e.trigger == k_cpu_fault && to == k_cpu && at == e.addr;
    r.from = from;
    r.to = to;
    r.addr = at;
    r.bytes = part_end - at;
    r.took_ns = at == e.addr ? took_ns : 0;
    put(r);
  }
}

void SmiReader::put(const DriverRecord& record) {
  if (made_.size() < made_.capacity()) {
    made_.push_back(record);
    return;
  }
  const std::lock_guard guard(lock_);
  ++stats_.overflowed;
}

std::size_t SmiReader::take(std::span<DriverRecord> out) {
  const std::lock_guard guard(lock_);
  std::size_t n = 0;
  for (; n < out.size() && tail_ != head_; ++tail_) {
    const DriverRecord& r = ring_[tail_ % k_ring];
    if (r.kind == DriverRecord::Kind::moved) {
      const When when = asked(r.addr, r.addr + r.bytes, r.time_ns);
      if (when == When::now) break;
      if (when == When::since) continue;
    }
    out[n++] = r;
  }
  return n;
}

bool SmiReader::has_records() const {
  const std::lock_guard guard(lock_);
  return tail_ != head_;
}

std::size_t SmiReader::take_unmapped(std::span<HostEvent> out) {
  const std::size_t n = std::min(out.size(), unmapped_.size());
  std::copy_n(unmapped_.begin(), n, out.begin());
  unmapped_.erase(unmapped_.begin(), unmapped_.begin() + static_cast<std::ptrdiff_t>(n));
  return n;
}

SmiStats SmiReader::stats() const {
  const std::lock_guard guard(lock_);
  return stats_;
}

SmiReader::When SmiReader::asked(std::uintptr_t begin, std::uintptr_t end, std::uint64_t time_ns, bool fresh) {
  const std::lock_guard guard(asked_lock_);
  When when = When::never;
  for (const Asked& a : asked_) {
    if (a.begin >= end || begin >= a.end || (fresh && !a.fresh)) continue;
    if (a.open) return When::now;
    if (time_ns <= a.until_ns) when = When::since;
  }
  return when;
}

SmiReader::Asking::Asking(SmiReader& reader, std::uintptr_t addr, std::size_t bytes, bool fresh) : reader_(reader) {
  const std::lock_guard guard(reader.asked_lock_);
  // The oldest that is over; with k_asked callers at once, the last is not kept apart.
  std::size_t slot = reader.next_asked_;
  for (std::size_t i = 0; i < k_asked && reader.asked_[slot].open; ++i) slot = (slot + 1) % k_asked;
  reader.next_asked_ = (slot + 1) % k_asked;
  reader.asked_[slot] = {addr, addr + bytes, 0, true, fresh};
  slot_ = slot;
}

SmiReader::Asking::~Asking() {
  const std::uint64_t now = boottime_ns();
  const std::lock_guard guard(reader_.asked_lock_);
  reader_.asked_[slot_].until_ns = refused_ ? 0 : now;
  reader_.asked_[slot_].open = false;
}

}  // namespace hmmrt::kfd
