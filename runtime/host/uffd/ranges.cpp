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

// Makes [addr, addr + bytes) ordinary memory. False: it is not all there, or some of it is another userfaultfd's.
bool UffdMirror::unwatch(std::uintptr_t addr, std::size_t bytes) const {
  // Asked before anything is done: of what another userfaultfd watches, the kernel lets us clear the protection.
  const int error = managed_.watch(addr, bytes, UFFDIO_REGISTER_MODE_WP);
  if (error != 0 && error != ENOMEM) return false;
  // Protection first, or before Linux 6.1 it is found again by who registers this memory next.
  const int cleared = unprotect_in_storm(addr, bytes);
  managed_.unwatch(addr, bytes);
  return cleared != ENOENT;
}

// Ends the watch over [addr, addr + bytes) and forgets it; returns the areas that were ours. Holes are left alone.
std::vector<std::pair<std::uintptr_t, std::uintptr_t>> UffdMirror::give_up(std::uintptr_t addr, std::size_t bytes) {
  const std::uintptr_t end = addr + bytes;
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> ours;
  std::uintptr_t from = 0;
  std::uintptr_t to = 0;
  for (std::uintptr_t at = addr; at < end && ranges_.next_solid(nullptr, at, &from, &to) && from < end; at = to) {
    to = std::min(to, end);
    Area area;
    unsigned looks = 4;  // at an area that has changed since it was looked up
    for (std::uintptr_t inner = from; inner < to && maps_.next(inner, &area) && area.begin < to;) {
      const std::uintptr_t first = std::max(inner, area.begin);
      const std::uintptr_t last = std::min(area.end, to);
      if (unwatch(first, last - first)) {
        ours.emplace_back(first, last);
      } else if (Area now; looks > 1 && maps_.next(first, &now) && (now.begin != area.begin || now.end != area.end)) {
        --looks;
        continue;
      }
      inner = last;
    }
  }
  ranges_.erase(addr, bytes);
  return ours;
}

void UffdMirror::release(std::uintptr_t addr, std::size_t bytes) {
  // Forgotten first: from then on anybody may map something there. Unwatched first: it must not raise an event.
  for (const auto& [from, to] : give_up(addr, bytes)) munmap(pointer(from), to - from);
}

Status UffdMirror::attach(std::uintptr_t addr, std::size_t bytes) {
  bool exec = false;
  if (const Status s = maps_.check_registrable(addr, bytes, &exec); !s.ok()) return s;
  if (ranges_.overlaps(addr, bytes)) {
    return fail(HMMRT_ERROR_ALREADY_MANAGED, "[%#zx, +%zu) overlaps memory that is managed already", addr, bytes);
  }
  return watch(addr, bytes, exec);
}

void UffdMirror::detach(std::uintptr_t addr, std::size_t bytes) { (void)give_up(addr, bytes); }

Status UffdMirror::rehome(std::uintptr_t from, std::uintptr_t to, std::size_t bytes) {
  // What is still watched by us at `to` is what the kernel moved there, armed as it was.
  if (ranges_.overlaps(to, bytes)) ranges_.erase(to, bytes);  // mremap onto managed memory unmapped that
  std::uintptr_t begin = 0;
  std::uintptr_t end = 0;
  bool exec = false;
  for (std::uintptr_t at = from; at < from + bytes; at = end) {
    const Arena* const arena = ranges_.next(at, &begin, &end);
    if (arena == nullptr || begin >= from + bytes) break;
    exec = exec || arena->exec();
  }
  auto made = Arena::make(to, bytes, exec, move_ ? &staging_ : nullptr, zeros_);
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
