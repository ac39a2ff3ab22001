// SPDX-License-Identifier: MIT
#include "gpu/standin/svm_attributes.hpp"

#include <algorithm>
#include <iterator>

namespace standin {

Attributes with(Attributes a, std::span<const HSA_SVM_ATTRIBUTE> set) {
  for (const HSA_SVM_ATTRIBUTE& s : set) {
    const std::uint32_t gpu = s.value < 32 ? 1u << s.value : 0;
    switch (s.type) {
      case HSA_SVM_ATTR_PREFERRED_LOC:
        a.preferred = s.value;
        break;
      case HSA_SVM_ATTR_PREFETCH_LOC:
        a.prefetch = s.value;
        break;
      case HSA_SVM_ATTR_ACCESS:
        a.access |= gpu, a.in_place &= ~gpu;
        break;
      case HSA_SVM_ATTR_ACCESS_IN_PLACE:
        a.in_place |= gpu, a.access &= ~gpu;
        break;
      case HSA_SVM_ATTR_NO_ACCESS:
        a.access &= ~gpu, a.in_place &= ~gpu;
        break;
      case HSA_SVM_ATTR_SET_FLAGS:
        a.flags |= s.value;
        break;
      case HSA_SVM_ATTR_CLR_FLAGS:
        a.flags &= ~s.value;
        break;
      case HSA_SVM_ATTR_GRANULARITY:
        a.granularity = std::min(s.value, 0x3fu);
        break;
      default:
        break;
    }
  }
  return a;
}

AttributeMap::Place AttributeMap::first(std::uintptr_t at) {
  auto it = ranges_.upper_bound(at);
  if (it != ranges_.begin() && std::prev(it)->second.end > at) --it;
  return it;
}

AttributeMap::Place AttributeMap::find(std::uintptr_t at) {
  const auto it = first(at);
  return it != ranges_.end() && it->first <= at ? it : ranges_.end();
}

void AttributeMap::split(std::uintptr_t at) {
  const auto it = find(at);
  if (it == ranges_.end() || it->first == at) return;
  ranges_.emplace(at, it->second);
  it->second.end = at;
}

AttributeMap::Place AttributeMap::make(std::uintptr_t begin, std::uintptr_t end, const Attributes& attributes) {
  return ranges_.emplace(begin, Range{end, attributes}).first;
}

void AttributeMap::set(std::uintptr_t begin, std::uintptr_t end, const Attributes& defaults,
                       std::span<const HSA_SVM_ATTRIBUTE> set) {
  for (std::uintptr_t at = begin; at < end;) {
    auto it = first(at);
    if (it == ranges_.end() || it->first > at) {
      const std::uintptr_t until = it == ranges_.end() ? end : std::min(end, it->first);
      make(at, until, with(defaults, set));
      at = until;
      continue;
    }
    const Attributes wanted = with(it->second.attributes, set);
    if (wanted != it->second.attributes) {
      split(at);
      split(end);
      it = find(at);
      it->second.attributes = wanted;
    }
    at = it->second.end;
  }
}

void AttributeMap::erase(std::uintptr_t begin, std::uintptr_t end) {
  split(begin);
  split(end);
  ranges_.erase(ranges_.lower_bound(begin), ranges_.lower_bound(end));
}

void AttributeMap::get(std::uintptr_t begin, std::uintptr_t end, const Attributes& defaults, std::uint32_t all_gpus,
                       std::span<HSA_SVM_ATTRIBUTE> out) {
  Attributes seen = defaults;
  std::uint32_t flags_or = defaults.flags;
  bool any = false, mixed_preferred = false, mixed_prefetch = false;
  for (auto it = first(begin); it != ranges_.end() && it->first < end; ++it) {
    const Attributes& a = it->second.attributes;
    if (!any) {
      seen = a;
      seen.access &= all_gpus;
      flags_or = a.flags;
      any = true;
      continue;
    }
    mixed_preferred |= a.preferred != seen.preferred;
    mixed_prefetch |= a.prefetch != seen.prefetch;
    seen.access &= a.access;
    seen.in_place &= a.in_place;
    seen.flags &= a.flags;
    flags_or |= a.flags;
    seen.granularity = std::min(seen.granularity, a.granularity);
  }
  for (HSA_SVM_ATTRIBUTE& o : out) {
    switch (o.type) {
      case HSA_SVM_ATTR_PREFERRED_LOC:
        o.value = mixed_preferred ? k_nowhere : seen.preferred;
        break;
      case HSA_SVM_ATTR_PREFETCH_LOC:
        o.value = mixed_prefetch ? k_nowhere : seen.prefetch;
        break;
      case HSA_SVM_ATTR_ACCESS:
      case HSA_SVM_ATTR_ACCESS_IN_PLACE:
      case HSA_SVM_ATTR_NO_ACCESS:
        o.type = (seen.access >> o.value & 1) != 0     ? HSA_SVM_ATTR_ACCESS
                 : (seen.in_place >> o.value & 1) != 0 ? HSA_SVM_ATTR_ACCESS_IN_PLACE
                                                       : HSA_SVM_ATTR_NO_ACCESS;
        break;
      case HSA_SVM_ATTR_SET_FLAGS:
        o.value = seen.flags;
        break;
      case HSA_SVM_ATTR_CLR_FLAGS:
        o.value = ~flags_or;
        break;
      default:
        o.value = seen.granularity;
        break;
    }
  }
}

}  // namespace standin
