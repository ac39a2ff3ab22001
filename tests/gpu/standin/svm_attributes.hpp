// SPDX-License-Identifier: MIT
// The attributes of shared virtual memory as AMD's kernel driver keeps them: ranges, each with one set. Setting splits the
// ranges at its borders and makes new ones where there are none; ranges are never joined again. Pure: no pages here.
// Locations are libhsakmt's node numbers, and a GPU is the bit of its node.
#pragma once

#include <hsakmttypes.h>

#include <cstdint>
#include <map>
#include <memory_resource>
#include <span>

namespace standin {

constexpr std::uint32_t k_system = 0;
constexpr std::uint32_t k_nowhere = 0xffffffff;

struct Attributes {
  std::uint32_t preferred = k_nowhere;
  std::uint32_t prefetch = k_nowhere;
  std::uint32_t access = 0;    // GPUs to which memory may go
  std::uint32_t in_place = 0;  // GPUs that use it where it is; none of those above
  std::uint32_t flags = HSA_SVM_FLAG_HOST_ACCESS | HSA_SVM_FLAG_COHERENT;
  std::uint32_t granularity = 9;  // log2 of the pages that one fault moves

  bool operator==(const Attributes&) const = default;
};

struct Range {
  std::uintptr_t end;
  Attributes attributes;
};

class AttributeMap {
 public:
  explicit AttributeMap(std::pmr::memory_resource* memory) : ranges_(memory) {}
  using Ranges = std::pmr::map<std::uintptr_t, Range>;
  using Place = Ranges::iterator;

  // The range with `at` in it, or end().
  Place find(std::uintptr_t at);
  // The first range that ends behind `at`.
  Place first(std::uintptr_t at);
  Place end() { return ranges_.end(); }

  // Gives [begin, end) attributes; where there are none, `defaults` come first. Ranges that have them already stay whole.
  void set(std::uintptr_t begin, std::uintptr_t end, const Attributes& defaults,
           std::span<const HSA_SVM_ATTRIBUTE> set);
  // One range where there are no attributes.
  Place make(std::uintptr_t begin, std::uintptr_t end, const Attributes& attributes);
  void erase(std::uintptr_t begin, std::uintptr_t end);

  // What the kernel says of [begin, end): see svm_range_get_attr().
  void get(std::uintptr_t begin, std::uintptr_t end, const Attributes& defaults, std::uint32_t all_gpus,
           std::span<HSA_SVM_ATTRIBUTE> out);

 private:
  void split(std::uintptr_t at);
  Ranges ranges_;
};

Attributes with(Attributes a, std::span<const HSA_SVM_ATTRIBUTE> set);

}  // namespace standin
