// SPDX-License-Identifier: MIT
// Attaching and detaching: which memory the mirror is responsible for, and what it refuses.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "host/uffd/uffd_mirror.hpp"

namespace hmmrt {

namespace {

void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)

}  // namespace

// Clears protection. False: this mirror does not watch that area. EAGAIN is waited for, as nobody else will come back to
// it; the event that causes it is read by another thread, which waits for nothing of ours.
bool UffdMirror::unprotect_watched(std::uintptr_t addr, std::size_t bytes) const {
  int error = EAGAIN;
  while (error == EAGAIN) error = managed_.write_protect(addr, bytes, false);
  if (error != ENOENT || move_) return error == 0;
  // Fallback: what has been armed cannot be protected. But only for its watcher can a page be filled, which is zeros now or
  // there already.
  error = EAGAIN;
  while (error == EAGAIN) error = managed_.copy(addr, zeros_, k_page_size, false).error;
  return error == 0 || error == EEXIST;
}

Status UffdMirror::watch(std::uintptr_t addr, std::size_t bytes, bool exec) {
  auto arena = Arena::make(addr, bytes, exec, move_ ? &staging_ : nullptr, zeros_);
  if (!arena) return HMMRT_ERROR_OUT_OF_MEMORY;
  if (const int error = managed_.watch(addr, bytes, UFFDIO_REGISTER_MODE_WP); error != 0) {
    if (error == EBUSY) {
      return fail(HMMRT_ERROR_BUSY, "[%#zx, +%zu) is already watched by another userfaultfd of this process", addr,
                  bytes);
    }
    if (error == ENOMEM) return fail(HMMRT_ERROR_OUT_OF_MEMORY, "UFFDIO_REGISTER: too many mappings or no memory");
    if (error == EINVAL || error == EPERM) {
      return fail(HMMRT_ERROR_NOT_ANONYMOUS, "userfaultfd cannot watch [%#zx, +%zu): %s", addr, bytes, strerror(error));
    }
    return fail(HMMRT_ERROR_SYSTEM, "UFFDIO_REGISTER of [%#zx, +%zu): %s", addr, bytes, strerror(error));
  }
  if (!ranges_.insert(addr, bytes, std::move(arena))) {
    return fail(HMMRT_ERROR_ALREADY_MANAGED, "[%#zx, +%zu) overlaps memory that is managed already", addr, bytes);
  }
  return {};
}

std::byte* UffdMirror::allocate(std::size_t bytes) {
  if (bytes == 0 || bytes % k_block_size != 0) {
    (void)fail(HMMRT_ERROR_INVALID_VALUE, "allocation of %zu bytes: must be a positive multiple of 2 MiB", bytes);
    return nullptr;
  }
  // The kernel may offer a hole that the application has unmapped in a range of ours: never taken, kept until another
  // place was found.
  std::vector<std::uintptr_t> refused;
  std::uintptr_t addr = map_aligned(bytes, PROT_READ | PROT_WRITE);
  while (addr != 0 && ranges_.overlaps(addr, bytes)) {
    refused.push_back(addr);
    addr = map_aligned(bytes, PROT_READ | PROT_WRITE);
  }
  for (const std::uintptr_t hole : refused) munmap(pointer(hole), bytes);
  if (addr == 0) {
    (void)fail(HMMRT_ERROR_OUT_OF_MEMORY, "mmap of %zu bytes: %s", bytes, strerror(errno));
    return nullptr;
  }
  if (!watch(addr, bytes, false).ok()) {
    munmap(pointer(addr), bytes);
    return nullptr;
  }
  return static_cast<std::byte*>(pointer(addr));
}

// Calls fn(from, to) for each area of memory in [addr, addr + bytes). Some of it may be somebody else's by now.
template <class Fn>
void UffdMirror::for_each_area(std::uintptr_t addr, std::size_t bytes, Fn&& fn) const {
  const std::uintptr_t end = addr + bytes;
  Area area;
  for (std::uintptr_t at = addr; at < end && maps_.next(at, &area) && area.begin < end; at = area.end) {
    fn(std::max(at, area.begin), std::min(area.end, end));
  }
}

void UffdMirror::release(std::byte* addr, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(addr);
  // Unwatch first: our munmap must not raise an event. Forget first: from then on anybody may map something there.
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> ours;
  for_each_area(begin, bytes, [&](std::uintptr_t from, std::uintptr_t to) {
    if (!unprotect_watched(from, k_page_size)) return;
    managed_.unwatch(from, to - from);
    ours.emplace_back(from, to);
  });
  ranges_.erase(begin, bytes);
  for (const auto& [from, to] : ours) munmap(pointer(from), to - from);
}

Status UffdMirror::attach(std::uintptr_t addr, std::size_t bytes) {
  bool exec = false;
  if (const Status s = maps_.check_registrable(addr, bytes, &exec); !s.ok()) return s;
  if (ranges_.overlaps(addr, bytes)) {
    return fail(HMMRT_ERROR_ALREADY_MANAGED, "[%#zx, +%zu) overlaps memory that is managed already", addr, bytes);
  }
  return watch(addr, bytes, exec);
}

void UffdMirror::detach(std::uintptr_t addr, std::size_t bytes) {
  // Protection first: a page left protected would fault for ever.
  for_each_area(addr, bytes, [&](std::uintptr_t from, std::uintptr_t to) {
    if (unprotect_watched(from, to - from)) managed_.unwatch(from, to - from);
  });
  ranges_.erase(addr, bytes);
}

Status UffdMirror::rehome(std::uintptr_t from, std::uintptr_t to, std::size_t bytes) {
  // What is still watched by us at `to` is what the kernel moved there, armed as it was.
  if (ranges_.overlaps(to, bytes)) ranges_.erase(to, bytes);  // mremap onto managed memory unmapped that
  auto made = Arena::make(to, bytes, false, move_ ? &staging_ : nullptr, zeros_);
  if (!made) {
    ranges_.erase(from, bytes);
    return HMMRT_ERROR_OUT_OF_MEMORY;
  }
  Arena& fresh = *made;
  const auto move_pages = [&](std::uintptr_t dst, std::uintptr_t src, std::size_t length) {
    for (std::size_t done = 0; done < length; done += k_page_size) {
      const uffd::Step step = move_ ? staging_.move(dst + done, src + done, length - done) : uffd::Step{0, ENOSYS};
      done += step.bytes;
      if (step.error == 0) return;
      // EEXIST: the new staging is empty, so it has moved (Uffd::move).
      if (step.error != EEXIST) memcpy(pointer(dst + done), pointer(src + done), k_page_size);
    }
  };
  for (std::uintptr_t base = block_floor(from); base < from + bytes; base += k_block_size) {
    const std::uintptr_t first = std::max(base, from);
    const std::uintptr_t last = std::min(base + k_block_size, from + bytes);
    const PageMask range = PageMask::range(page_in_block(first), static_cast<unsigned>((last - first) >> k_page_shift));
    for_each_part(base, range, [&](const Part& part) {
      fresh.follow(part.arena);
      const auto each = [&](const PageMask& pages, PageMask uffd::BlockState::*mask) {
        (pages & part.pages).for_each([&](unsigned page) {
          const std::uintptr_t target = part.at(page) - from + to;
          (fresh.block(block_floor(target)).*mask).set(page_in_block(target));
        });
      };
      each(part.state.staged, &uffd::BlockState::staged);
      each(part.state.protected_, &uffd::BlockState::protected_);
      each(part.state.copied_out, &uffd::BlockState::copied_out);
      (part.state.staged & part.pages).for_each_run([&](unsigned page, unsigned count) {
        move_pages(fresh.staging_of(part.at(page) - from + to), part.staging(page), count * k_page_size);
      });
      if (part.state.large.full() && (to - from) % k_block_size == 0) {
        fresh.block(base - from + to).large = PageMask::all();
      }
      part.state.staged = part.state.staged - part.pages;
      part.state.large = part.state.large - part.pages;
    });
  }
  ranges_.erase(from, bytes);
  if (ranges_.insert(to, bytes, std::move(made))) return {};
  return fail(HMMRT_ERROR_INTERNAL, "mremap target [%#zx, +%zu) could not be watched", to, bytes);
}

void UffdMirror::query_rights(std::uintptr_t addr, std::size_t bytes,
                              void (*fn)(void*, std::uintptr_t, std::size_t, Rights), void* arg) {
  maps_.rights(addr, bytes, fn, arg);
}

Rights UffdMirror::rights_at(std::uintptr_t addr, std::uintptr_t* end, bool* mapped) const {
  Area area;
  *mapped = false;
  *end = ~std::uintptr_t{0};
  if (!maps_.next(addr, &area)) return Rights::none;
  *mapped = area.begin <= addr;
  *end = *mapped ? area.end : area.begin;
  return *mapped ? area.rights() : Rights::none;
}

int UffdMirror::protect(Arena& arena, std::uintptr_t addr, std::size_t bytes, bool on) const {
  if (on && arena.make_protectable(ranges_, managed_, maps_) != 0) return EAGAIN;
  int error = managed_.write_protect(addr, bytes, on);
  if (error != ENOENT) return error;
  const bool refuses = arena.armed() && !arena.protectable();  // where nothing was ever protected
  Area area;
  for (std::uintptr_t at = addr; at < addr + bytes && maps_.next(at, &area); at = area.end) {
    const std::uintptr_t from = std::max(at, area.begin);
    const std::uintptr_t to = std::min(area.end, addr + bytes);
    if (from >= to) break;
    const int part = managed_.write_protect(from, to - from, on);
    if (part == 0 || (part == ENOENT && !on && refuses)) error = 0;
  }
  return error;
}

std::uint64_t UffdMirror::metadata_bytes() const { return sizeof(*this) + ranges_.metadata_bytes(); }

}  // namespace hmmrt
