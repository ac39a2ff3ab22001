// SPDX-License-Identifier: MIT
#include "host/maps.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

namespace hmmrt {

namespace {

void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)

// linux/fs.h, Linux 6.11.
struct ProcmapQuery {
  std::uint64_t size, query_flags, query_addr;
  std::uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
  std::uint32_t dev_major, dev_minor;
  std::uint32_t vma_name_size, build_id_size;
  std::uint64_t vma_name_addr, build_id_addr;
};
constexpr unsigned long k_procmap_query = _IOWR('f', 17, ProcmapQuery);
constexpr std::uint64_t k_query_read = 1, k_query_write = 2, k_query_exec = 4, k_query_shared = 8;
constexpr std::uint64_t k_query_covering_or_next = 0x10;

// linux/fs.h, Linux 6.7.
struct PageRegion {
  std::uint64_t start, end, categories;
};
struct PmScanArg {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
constexpr unsigned long k_pagemap_scan = _IOWR('f', 16, PmScanArg);
constexpr std::uint64_t k_page_is_zero = 1u << 5;
constexpr std::uint64_t k_page_is_huge = 1u << 6;

constexpr std::uint64_t k_pagemap_present = std::uint64_t{1} << 63;
constexpr std::uint64_t k_pagemap_write_protected = std::uint64_t{1} << 57;
constexpr std::uint64_t k_pagemap_exclusive = std::uint64_t{1} << 56;
constexpr std::uint64_t k_pagemap_swapped = std::uint64_t{1} << 62;

constexpr const char* k_maps = "/proc/self/maps";
constexpr const char* k_pagemap = "/proc/self/pagemap";

// "55d0c8a00000-55d0c8a21000 rw-p 00000000 00:00 0   [heap]"
bool parse_line(const char* p, const char* end, Area* area) {
  const auto hex = [&](std::uintptr_t* value) {
    const char* start = p;
    for (*value = 0; p < end; ++p) {
      const char c = *p;
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
      if (digit < 0) break;
      *value = *value * 16 + static_cast<unsigned>(digit);
    }
    return p != start;
  };
  const auto skip = [&](char c) { return p < end && *p++ == c; };
  std::uintptr_t ignored = 0;
  if (!hex(&area->begin) || !skip('-') || !hex(&area->end) || !skip(' ') || end - p < 5) return false;
  area->read = p[0] == 'r';
  area->write = p[1] == 'w';
  area->exec = p[2] == 'x';
  area->shared = p[3] == 's';
  p += 5;
  if (!hex(&ignored) || !skip(' ') || !hex(&ignored) || !skip(':') || !hex(&ignored) || !skip(' ')) return false;
  area->file = p < end && *p != '0';
  return true;
}

}  // namespace

ProcMaps::ProcMaps()
    : maps_(open(k_maps, O_RDONLY | O_CLOEXEC)),
      maps_error_(maps_ < 0 ? errno : 0),
      pagemap_(open(k_pagemap, O_RDONLY | O_CLOEXEC)),
      pagemap_error_(pagemap_ < 0 ? errno : 0) {}

Status ProcMaps::status() const {
  if (maps_ >= 0 && (pagemap_ >= 0 || pagemap_error_ == EACCES)) return {};
  const int error = maps_ < 0 ? maps_error_ : pagemap_error_;
  return fail(HMMRT_ERROR_SYSTEM, "%s: %s%s", maps_ < 0 ? k_maps : k_pagemap, strerror(error), hint(error));
}

ProcMaps::~ProcMaps() {
  if (maps_ >= 0) close(maps_);
  if (pagemap_ >= 0) close(pagemap_);
}

bool ProcMaps::query(std::uintptr_t addr, Area* out, bool* found) const noexcept {
  ProcmapQuery q{};
  q.size = sizeof q;
  q.query_flags = k_query_covering_or_next;
  q.query_addr = addr;
  if (ioctl(maps_, k_procmap_query, &q) != 0) {
    *found = false;
    return errno == ENOENT;
  }
  *found = true;
  *out = {q.vma_start,
          q.vma_end,
          (q.vma_flags & k_query_read) != 0,
          (q.vma_flags & k_query_write) != 0,
          (q.vma_flags & k_query_exec) != 0,
          (q.vma_flags & k_query_shared) != 0,
          q.inode != 0};
  return true;
}

bool ProcMaps::parse(std::uintptr_t addr, Area* out) const noexcept {
  // Its own descriptor: the position of a seq file is shared state.
  const int fd = open(k_maps, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  std::array<char, 8192> buffer;  // longer than any line; a longer path loses its tail, which nobody reads
  std::size_t have = 0;
  bool found = false;
  while (!found) {
    const ssize_t n = read(fd, buffer.data() + have, buffer.size() - have);
    if (n <= 0) break;
    have += static_cast<std::size_t>(n);
    char* line = buffer.data();
    char* const end = buffer.data() + have;
    for (;;) {
      char* const newline = static_cast<char*>(memchr(line, '\n', static_cast<std::size_t>(end - line)));
      if (newline == nullptr) break;
      if (parse_line(line, newline, out) && out->end > addr) {
        found = true;
        break;
      }
      line = newline + 1;
    }
    have = static_cast<std::size_t>(end - line);
    memmove(buffer.data(), line, have);
  }
  close(fd);
  return found;
}

bool ProcMaps::next(std::uintptr_t addr, Area* out) const noexcept {
  bool found = false;
  if (query(addr, out, &found)) return found;
  return parse(addr, out);
}

namespace {

// The pages [first, first + count) of the block at `base` whose pagemap entry has any of `bits`.
bool read_pagemap(int pagemap, std::uintptr_t base, unsigned first, unsigned count, std::uint64_t bits, PageMask* out) {
  std::array<std::uint64_t, k_block_pages> entries;
  const std::size_t bytes = count * sizeof(std::uint64_t);
  const auto at = static_cast<off_t>(((base >> k_page_shift) + first) * sizeof(std::uint64_t));
  if (pread(pagemap, entries.data(), bytes, at) != static_cast<ssize_t>(bytes)) return false;
  for (unsigned i = 0; i < count;) {
    const unsigned bit = (first + i) % 64;
    const unsigned n = std::min(count - i, 64 - bit);
    std::uint64_t word = 0;
    for (unsigned k = 0; k < n; ++k) word |= static_cast<std::uint64_t>((entries[i + k] & bits) != 0) << (bit + k);
    out->set_word((first + i) / 64, out->word((first + i) / 64) | word);
    i += n;
  }
  return true;
}

}  // namespace

PageMask ProcMaps::populated(std::uintptr_t base, const PageMask& pages) const noexcept {
  unsigned words = PageMask::k_words;
  while (words != 0 && pages.word(words - 1) == 0) --words;
  if (words == 0) return {};
  const unsigned first = pages.next(0);
  const unsigned count = words * 64 - static_cast<unsigned>(std::countl_zero(pages.word(words - 1))) - first;
  // The common answer in a tenth of the time. (Not resident may still be swapped out.)
  constexpr unsigned k_worth_asking = 32;
  std::array<unsigned char, k_block_pages> resident;
  void* const begin = reinterpret_cast<void*>(base + first * k_page_size);  // NOLINT(performance-no-int-to-ptr)
  if (count >= k_worth_asking && mincore(begin, count * k_page_size, resident.data()) == 0 &&
      std::all_of(resident.begin(), resident.begin() + count, [](unsigned char r) { return (r & 1) != 0; })) {
    return pages;
  }
  PageMask mask;
  return read_pagemap(pagemap_, base, first, count, k_pagemap_present | k_pagemap_swapped, &mask) ? mask & pages
                                                                                                  : pages;
}

PageMask ProcMaps::write_protected(std::uintptr_t base) const noexcept {
  PageMask mask;
  return read_pagemap(pagemap_, base, 0, k_block_pages, k_pagemap_write_protected, &mask) ? mask : PageMask{};
}

bool ProcMaps::shared(std::uintptr_t addr) const noexcept {
  std::uint64_t entry = 0;
  const auto at = static_cast<off_t>((addr >> k_page_shift) * sizeof entry);
  if (pread(pagemap_, &entry, sizeof entry, at) != static_cast<ssize_t>(sizeof entry)) return false;
  return (entry & k_pagemap_present) != 0 && (entry & k_pagemap_exclusive) == 0;
}

bool ProcMaps::scan(std::uintptr_t begin, std::uintptr_t end, std::uint64_t categories, std::uintptr_t* from,
                    std::uintptr_t* to) const noexcept {
  PageRegion region{};
  PmScanArg arg{};
  arg.size = sizeof arg;
  arg.start = begin;
  arg.end = end;
  arg.vec = reinterpret_cast<std::uintptr_t>(&region);
  arg.vec_len = 1;
  arg.category_mask = categories;
  arg.return_mask = categories;
  if (ioctl(pagemap_, k_pagemap_scan, &arg) != 1) return false;
  *from = region.start;
  *to = region.end;
  return true;
}

bool ProcMaps::huge(std::uintptr_t base) const noexcept {
  std::uintptr_t from = 0;
  std::uintptr_t to = 0;
  return scan(base, base + k_block_size, k_page_is_huge, &from, &to) && from == base && to == base + k_block_size;
}

bool ProcMaps::next_huge_zero(std::uintptr_t* at, std::uintptr_t end) const noexcept {
  std::uintptr_t to = 0;
  return *at < end && scan(*at, end, k_page_is_huge | k_page_is_zero, at, &to);
}

Status ProcMaps::check_registrable(std::uintptr_t addr, std::size_t bytes, bool* exec) const {
  if (addr == 0 || bytes == 0 || addr + bytes < addr) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "[%#zx, +%zu) is empty or wraps around", addr, bytes);
  }
  if (addr % k_page_size != 0 || bytes % k_page_size != 0) {
    return fail(HMMRT_ERROR_MISALIGNED, "[%#zx, +%zu): address and size must be multiples of 4096", addr, bytes);
  }
  Area area;
  for (std::uintptr_t at = addr; at < addr + bytes; at = area.end) {
    if (!containing(at, &area)) {
      return fail(HMMRT_ERROR_NOT_MANAGED, "nothing is mapped at %#zx, inside [%#zx, +%zu)", at, addr, bytes);
    }
    if (area.file || area.shared) {
      return fail(HMMRT_ERROR_NOT_ANONYMOUS,
                  "the mapping at %#zx is a file, shared or hugetlb mapping; register private anonymous memory", at);
    }
    if (area.rights() != Rights::write) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "the mapping at %#zx must be readable and writable", at);
    }
    *exec = *exec || area.exec;
  }
  return {};
}

void ProcMaps::rights(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, std::uintptr_t, std::size_t, Rights),
                      void* arg) const noexcept {
  const std::uintptr_t end = addr + bytes;
  Area area;
  while (addr < end) {
    if (!next(addr, &area) || area.begin >= end) {
      fn(arg, addr, end - addr, Rights::none);
      return;
    }
    if (area.begin > addr) fn(arg, addr, area.begin - addr, Rights::none);
    const std::uintptr_t from = std::max(addr, area.begin);
    const std::uintptr_t to = std::min(end, area.end);
    fn(arg, from, to - from, area.rights());
    addr = to;
  }
}

std::uintptr_t map_aligned(std::size_t bytes, int protection) {
  const std::size_t reserve = bytes + k_block_size;
  if (reserve < bytes) {
    errno = ENOMEM;
    return 0;
  }
  void* raw = mmap(nullptr, reserve, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return 0;
  const auto first = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t begin = block_ceil(first);
  if (begin != first) munmap(raw, begin - first);
  if (const std::size_t tail = first + reserve - (begin + bytes); tail != 0) munmap(pointer(begin + bytes), tail);
  madvise(pointer(begin), bytes, MADV_HUGEPAGE);  // a hint: without THP everything still works, in small pages
  return begin;
}

const char* hint(int error) {
  switch (error) {
    case EMFILE:
      return "; a context needs some ten file descriptors: raise RLIMIT_NOFILE (ulimit -n)";
    case ENFILE:
      return "; raise the sysctl fs.file-max";
    case EPERM:
    case EACCES:
      return "; a container's seccomp filter or a security module may forbid it";
    default:
      return "";
  }
}

}  // namespace hmmrt
