// SPDX-License-Identifier: MIT
#include "host/kfd/svm_attributes.hpp"

#include <algorithm>
#include <chrono>

#include "space/extent.hpp"

namespace hmmrt::kfd {

namespace {

constexpr std::size_t k_most = k_max_devices + 3;  // attributes of one change

std::uint64_t steady_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

// At most k_most attributes, without a heap.
class List {
 public:
  void add(SvmAttr type, std::uint32_t value) { all_[n_++] = {type, value}; }
  std::span<SvmAttribute> span() { return {all_.data(), n_}; }

 private:
  std::array<SvmAttribute, k_most> all_{};
  std::size_t n_ = 0;
};

// Where private anonymous memory is mapped: there can be nothing else of ours. All of it, where that cannot be told.
std::vector<Extent> mapped_parts(const ProcMaps& maps, std::uintptr_t addr, std::size_t bytes) {
  std::vector<Extent> parts;
  const std::uintptr_t end = addr + bytes;
  Area area;
  for (std::uintptr_t at = addr; at < end; at = area.end) {
    if (!maps.next(at, &area)) return {{addr, bytes}};  // the stack, at least, lies above
    const std::uintptr_t from = std::max(at, area.begin), to = std::min(end, area.end);
    if (from >= to) break;
    if (area.file || area.shared) continue;
    append(parts, from, to - from);
  }
  return parts;
}

}  // namespace

SvmAttributes::SvmAttributes(const SvmDriver& driver, const ProcMaps& maps, std::vector<Gpu> gpus, bool xnack,
                             unsigned granularity, bool whole_ranges,
                             std::function<void(const AttributeChange&)> report)
    : driver_(driver),
      maps_(maps),
      gpus_(std::move(gpus)),
      xnack_(xnack),
      whole_ranges_(whole_ranges),
      granularity_(granularity),
      report_(std::move(report)) {}

bool SvmAttributes::allowed(Wish wish, unsigned changes) {
  if (!may_be_refused(wish)) return true;
  const std::uint64_t now = steady_ns();
  const std::lock_guard guard(limit_lock_);
  constexpr std::uint64_t k_token_ns = 1'000'000'000u / k_per_second;
  if (const std::uint64_t earned = (now - refilled_ns_) / k_token_ns; earned != 0) {
    tokens_ = std::min(k_burst, tokens_ + std::min(earned, k_burst));
    refilled_ns_ += earned * k_token_ns;
  }
  if (tokens_ < changes) return false;
  tokens_ -= changes;
  return true;
}

int SvmAttributes::set_mapped(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes) const {
  constexpr unsigned k_looks = 4;  // threads may be unmapping more of it
  int status = driver_.set(addr, bytes, attributes);
  for (unsigned look = 0; status != 0 && look < k_looks; ++look) {
    const std::vector<Extent> parts = mapped_parts(maps_, addr, bytes);
    if (parts.size() == 1 && parts[0].bytes == bytes) break;  // it is about something else
    status = 0;
    for (const Extent& part : parts) {
      if (const int error = driver_.set(part.addr, part.bytes, attributes); error != 0) status = error;
    }
  }
  return status;
}

bool SvmAttributes::set(std::uintptr_t addr, std::size_t bytes, std::span<SvmAttribute> attributes, Wish wish,
                        bool is_allowed) {
  AttributeChange change{addr, bytes, attributes.front(), wish, Outcome::done, 0};
  if (!is_allowed) {
    change.outcome = Outcome::limited;
    (void)fail(HMMRT_ERROR_BUSY, "too many changes of attributes: at most %llu a second for the policy",
               static_cast<unsigned long long>(k_per_second));
  } else if ((change.status = set_mapped(addr, bytes, attributes)) != 0) {
    change.outcome = Outcome::refused;
    (void)fail(HMMRT_ERROR_SYSTEM, "attributes of [%#zx, +%zu) for %s: %s", addr, bytes, wish_name(wish),
               svm_error_text(change.status));
  }
  report_(change);
  return change.outcome == Outcome::done;
}

bool SvmAttributes::manage(std::uintptr_t addr, std::size_t bytes) {
  List list;
  for (const Gpu& gpu : gpus_) list.add(SvmAttr::access, gpu.gpu_id);
  list.add(SvmAttr::set_flags, k_flag_host_access | k_flag_coherent);
  const std::uintptr_t end = addr + bytes;
  for (std::uintptr_t at = addr; at < end;) {
    const std::uintptr_t to = whole_ranges_ ? std::min(end, block_floor(at) + k_block_size) : end;
    if (!set(at, to - at, list.span(), Wish::managed)) return false;
    at = to;
  }
  return true;
}

bool SvmAttributes::send(std::uintptr_t addr, std::size_t bytes, Processor to, Wish wish, unsigned order) {
  List list;
  list.add(SvmAttr::prefetch_location, location_of(to));
  if (order != 0) {
    list.add(SvmAttr::granularity, order);
    const std::lock_guard guard(lock_);
    for (std::uintptr_t at = addr; at < addr + bytes; at = block_floor(at) + k_block_size) {
      const std::uintptr_t end = std::min(addr + bytes, block_floor(at) + k_block_size);
      known(block_floor(at)).coarse |=
          PageMask::range(page_in_block(at), static_cast<unsigned>((end - at) >> k_page_shift));
    }
  }
  return set(addr, bytes, list.span(), wish);
}

SvmAttributes::Known& SvmAttributes::known(std::uintptr_t base) {
  std::unique_ptr<Known>& known = known_[base];
  if (known == nullptr) known = std::make_unique<Known>();
  return *known;
}

bool SvmAttributes::tie(std::uintptr_t base, const PageMask& pages, Wish wish) {
  const PageMask fresh = pages - tied(base);
  if (fresh.none()) return true;
  unsigned runs = 0;
  fresh.for_each_run([&](unsigned, unsigned) { ++runs; });
  const bool is_allowed = allowed(wish, runs);  // all or none of it
  bool all = true;
  fresh.for_each_run([&](unsigned first, unsigned count) {
    if (!all) return;
    List list;
    list.add(SvmAttr::preferred_location, k_system_memory);
    for (const Gpu& gpu : gpus_) list.add(SvmAttr::access_in_place, gpu.gpu_id);
    list.add(SvmAttr::prefetch_location, k_system_memory);
    all = set(base + first * k_page_size, count * k_page_size, list.span(), wish, is_allowed);
  });
  if (!all && !is_allowed) return false;
  Known copy;
  {
    const std::lock_guard guard(lock_);
    Known& block = known(base);
    if (all) {
      if (block.tied.none()) ties_.fetch_add(1, std::memory_order_relaxed);
      block.tied |= fresh;
      return true;
    }
    copy = block;
  }
  (void)restore(base, fresh, copy, k_cpu, Wish::over);  // also of what was refused: part of it may be done
  return false;
}

PageMask SvmAttributes::tied(std::uintptr_t base) const {
  if (ties_.load(std::memory_order_relaxed) == 0) return {};
  const std::lock_guard guard(lock_);
  const auto it = known_.find(base);
  return it != known_.end() ? it->second->tied : PageMask{};
}

PageMask SvmAttributes::kept_home(std::uintptr_t base, Processor to) const {
  if (to == k_cpu) return {};
  if (gpus_[to - 1u].apu) return PageMask::all();
  ProcessorSet others = 0;
  for (unsigned d = 0; d < gpus_.size(); ++d) others |= set_of(device_processor(d));
  others &= static_cast<ProcessorSet>(~(gpus_[to - 1u].linked | set_of(to)));
  if (others == 0) return {};
  if (!xnack_) return PageMask::all();
  const std::lock_guard guard(lock_);
  const auto it = known_.find(base);
  if (it == known_.end()) return {};
  PageMask kept = it->second->tied;
  for (unsigned page = 0; page < k_block_pages; ++page) {
    if ((it->second->accessed_by[page] & others) != 0) kept.set(page);
  }
  return kept;
}

bool SvmAttributes::restore(std::uintptr_t base, const PageMask& pages, const Known& known, Processor where,
                            Wish wish) {
  bool all = true;
  pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned page = first; page < first + count;) {
      unsigned end = page + 1;
      while (end < first + count && known.preferred[end] == known.preferred[page] &&
             known.accessed_by[end] == known.accessed_by[page]) {
        ++end;
      }
      List list;
      const Processor preferred = known.preferred[page];
      list.add(SvmAttr::preferred_location, preferred == k_no_processor ? k_nowhere : location_of(preferred));
      for (unsigned d = 0; d < gpus_.size(); ++d) {
        const bool in_place = (known.accessed_by[page] & set_of(device_processor(d))) != 0;
        list.add(in_place ? SvmAttr::access_in_place : SvmAttr::access, gpus_[d].gpu_id);
      }
      list.add(SvmAttr::prefetch_location, location_of(where));
      all = set(base + page * k_page_size, (end - page) * k_page_size, list.span(), wish) && all;
      page = end;
    }
  });
  return all;
}

void SvmAttributes::let_go(std::uintptr_t base, const PageMask& pages) {
  if (ties_.load(std::memory_order_relaxed) == 0) return;
  Known copy;
  PageMask loose;
  {
    const std::lock_guard guard(lock_);
    const auto it = known_.find(base);
    if (it == known_.end()) return;
    loose = it->second->tied & pages;
    if (loose.none()) return;
    it->second->tied = it->second->tied - loose;
    if (it->second->tied.none()) ties_.fetch_sub(1, std::memory_order_relaxed);
    copy = *it->second;
  }
  (void)restore(base, loose, copy, k_cpu, Wish::over);
}

bool SvmAttributes::advise(std::uintptr_t base, const PageMask& pages, hmmrt_advice_t advice, Processor p,
                           Processor where) {
  if (pages.none()) return true;
  Known copy;
  PageMask now = pages;
  {
    const std::lock_guard guard(lock_);
    Known& block = known(base);
    switch (advice) {
      case HMMRT_ADVISE_SET_PREFERRED_LOCATION:
      case HMMRT_ADVISE_UNSET_PREFERRED_LOCATION:
        pages.for_each([&](unsigned page) {
          block.preferred[page] = advice == HMMRT_ADVISE_SET_PREFERRED_LOCATION ? p : k_no_processor;
        });
        break;
      case HMMRT_ADVISE_SET_ACCESSED_BY:
        if (p == k_cpu) return true;  // the CPU has access to everything
        pages.for_each([&](unsigned page) { block.accessed_by[page] |= set_of(p); });
        break;
      case HMMRT_ADVISE_UNSET_ACCESSED_BY:
        pages.for_each([&](unsigned page) { block.accessed_by[page] &= static_cast<ProcessorSet>(~set_of(p)); });
        break;
      case HMMRT_ADVISE_SET_READ_MOSTLY:
      case HMMRT_ADVISE_UNSET_READ_MOSTLY:
        return false;  // the driver has a flag of that name, and does nothing with it
    }
    now = pages - block.tied;
    copy = block;
  }
  return restore(base, now, copy, where, Wish::user_advice);
}

void SvmAttributes::reset(std::uintptr_t base, const PageMask& pages, bool gone) {
  PageMask changed;
  {
    const std::lock_guard guard(lock_);
    const auto it = known_.find(base);
    if (it == known_.end()) return;
    Known& block = *it->second;
    changed = (block.tied | block.coarse) & pages;
    pages.for_each([&](unsigned page) {
      if (block.preferred[page] != k_no_processor || block.accessed_by[page] != 0) changed.set(page);
      block.preferred[page] = k_no_processor;
      block.accessed_by[page] = 0;
    });
    if (block.tied.any() && (block.tied - pages).none()) ties_.fetch_sub(1, std::memory_order_relaxed);
    block.tied = block.tied - pages;
    block.coarse = block.coarse - pages;
    const bool bare =
        block.tied.none() && block.coarse.none() &&
        std::all_of(block.preferred.begin(), block.preferred.end(), [](Processor p) { return p == k_no_processor; }) &&
        std::all_of(block.accessed_by.begin(), block.accessed_by.end(), [](ProcessorSet s) { return s == 0; });
    if (bare) known_.erase(it);
  }
  if (gone) return;
  changed.for_each_run([&](unsigned first, unsigned count) {
    List list;
    list.add(SvmAttr::preferred_location, k_nowhere);
    for (const Gpu& gpu : gpus_) list.add(SvmAttr::access, gpu.gpu_id);
    list.add(SvmAttr::granularity, granularity_);
    list.add(SvmAttr::prefetch_location, k_system_memory);
    (void)set(base + first * k_page_size, count * k_page_size, list.span(), Wish::managed);
  });
}

std::uint64_t SvmAttributes::metadata_bytes() const {
  const std::lock_guard guard(lock_);
  return sizeof(*this) + known_.size() * (sizeof(Known) + sizeof(*known_.begin()));
}

}  // namespace hmmrt::kfd
