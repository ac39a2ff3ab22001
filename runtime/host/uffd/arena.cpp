// SPDX-License-Identifier: MIT
#include "host/uffd/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

namespace hmmrt::uffd {

namespace {
void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)
}  // namespace

std::unique_ptr<Arena> Arena::make(std::uintptr_t begin, std::size_t bytes, bool exec, const Uffd* staging,
                                   std::uintptr_t zeros) {
  const std::uintptr_t cover = block_floor(begin);
  const std::size_t cover_bytes = block_ceil(begin + bytes) - cover;
  std::unique_ptr<Arena> arena(new (std::nothrow) Arena);
  if (!arena) {
    (void)fail(HMMRT_ERROR_OUT_OF_MEMORY, "no memory for bookkeeping");
    return nullptr;
  }
  // Under mlockall(MCL_FUTURE) staging must not be filled and locked: nothing could move there.
  const std::uintptr_t base = map_aligned(cover_bytes, PROT_NONE);
  if (base == 0 || munlock(pointer(base), cover_bytes) != 0 ||
      mprotect(pointer(base), cover_bytes, PROT_READ | PROT_WRITE | (exec ? PROT_EXEC : 0)) != 0) {
    (void)fail(HMMRT_ERROR_OUT_OF_MEMORY, "mmap of %zu bytes of staging address space: %s", cover_bytes,
               strerror(errno));
    return nullptr;
  }
  arena->begin_ = begin;
  arena->bytes_ = bytes;
  arena->exec_ = exec;
  arena->cover_ = cover;
  arena->offset_ = base - cover;
  arena->uffd_ = staging;
  arena->zeros_ = zeros;
  arena->block_count_ = cover_bytes >> k_block_shift;
  arena->blocks_.reset(new (std::nothrow) BlockState[arena->block_count_]);
  if (!arena->blocks_) {
    (void)fail(HMMRT_ERROR_OUT_OF_MEMORY, "no memory for the bookkeeping of %zu blocks", arena->block_count_);
    return nullptr;
  }
  madvise(pointer(base), cover_bytes, MADV_DONTFORK);
  if (staging != nullptr) {
    if (const int error = staging->watch(base, cover_bytes, UFFDIO_REGISTER_MODE_WP); error != 0) {
      (void)fail(HMMRT_ERROR_SYSTEM, "UFFDIO_REGISTER of staging: %s", strerror(error));
      return nullptr;
    }
  }
  return arena;
}

Arena::~Arena() {
  if (cover_ + offset_ != 0 && block_count_ != 0) munmap(pointer(cover_ + offset_), block_count_ * k_block_size);
}

void Arena::follow(const Arena& from) {
  // Fallback: `from` may have become protectable after it was moved, so this one asks again.
  protectable_.store(uffd_ != nullptr && from.protectable(), std::memory_order_release);
  armed_.store(from.armed(), std::memory_order_release);  // the kernel has moved its watch along
}

int Arena::watch(const RangeTable& ranges, const Uffd& managed, const ProcMaps& maps, std::uint64_t modes) const {
  std::uintptr_t from = 0;
  std::uintptr_t to = 0;
  int result = 0;
  for (std::uintptr_t at = begin_; ranges.next_solid(this, at, &from, &to); at = to) {
    int error = managed.watch(from, to - from, modes);
    // Else the application is unmapping part of it just now: watch what is left.
    Area area;
    for (std::uintptr_t inner = from; error != 0 && inner < to && maps.next(inner, &area); inner = area.end) {
      const std::uintptr_t begin = std::max(inner, area.begin);
      const std::uintptr_t end = std::min(area.end, to);
      if (begin >= end || area.file || area.shared) continue;
      if (managed.watch(begin, end - begin, modes) == 0) error = 0;
    }
    if (error != 0) result = error;
  }
  return result;
}

// In both: acquire pairs with the release below: whoever sees the flag runs after the kernel did it.
int Arena::arm(const RangeTable& ranges, const Uffd& managed, const ProcMaps& maps) {
  if (armed()) return 0;
  const std::lock_guard lock(arming_);
  if (armed()) return 0;
  const bool protects = uffd_ != nullptr || protectable();
  int error = watch(ranges, managed, maps, UFFDIO_REGISTER_MODE_MISSING | (protects ? UFFDIO_REGISTER_MODE_WP : 0));
  if (error == 0 && uffd_ != nullptr) error = split_huge_zeros(managed, maps);
  if (error != 0) return error;
  protectable_.store(protects, std::memory_order_release);
  armed_.store(true, std::memory_order_release);
  return 0;
}

int Arena::make_protectable(const RangeTable& ranges, const Uffd& managed, const ProcMaps& maps) {
  if (protectable()) return 0;
  const std::lock_guard lock(arming_);
  if (protectable()) return 0;
  if (armed()) {  // otherwise it is, as attached, and arming will keep it so
    const int error = watch(ranges, managed, maps, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
    if (error != 0) return error;
  }
  protectable_.store(true, std::memory_order_release);
  return 0;
}

int Arena::split_huge_zeros(const Uffd& managed, const ProcMaps& maps) const {
  for (std::uintptr_t at = begin_; maps.next_huge_zero(&at, begin_ + bytes_); at += k_block_size) {
    for (const bool on : {true, false}) {
      const int error = managed.write_protect(at, k_page_size, on);  // of one page: splits
      if (error == EAGAIN || error == ENOMEM) return error;          // else it is gone
    }
  }
  return 0;
}

bool Arena::back(std::uintptr_t base, const PageMask& pages) const noexcept {
  bool ok = true;
  pages.for_each_run([&](unsigned first, unsigned count) {
    const std::uintptr_t at = staging_of(base) + first * k_page_size;
    if (uffd_ != nullptr && count < k_block_pages) {
      // Faulting would bring a whole huge page: more than was asked for, and slow to move in part.
      if (uffd_->copy(at, zeros_, count * k_page_size, false).error == 0) return;  // EEXIST: some of it is there
    }
    if (madvise(pointer(at), count * k_page_size, MADV_POPULATE_WRITE) == 0) return;
    if (errno != EINVAL) {
      ok = false;
      return;
    }
    // Before Linux 5.14: touch.
    for (unsigned i = 0; i < count; ++i) *static_cast<volatile char*>(pointer(at + i * k_page_size)) = 0;
  });
  return ok;
}

void Arena::unback(std::uintptr_t base, const PageMask& pages) const noexcept {
  pages.for_each_run([&](unsigned first, unsigned count) {
    madvise(pointer(staging_of(base) + first * k_page_size), count * k_page_size, MADV_DONTNEED);
  });
}

bool RangeTable::insert(std::uintptr_t begin, std::size_t bytes, std::shared_ptr<Arena> arena) {
  const std::unique_lock lock(mutex_);
  auto at = std::upper_bound(pieces_.begin(), pieces_.end(), begin,
                             [](std::uintptr_t a, const Piece& p) { return a < p.end; });
  if (at != pieces_.end() && at->begin < begin + bytes) return false;
  pieces_.insert(at, Piece{begin, begin + bytes, std::move(arena)});
  holes_.reserve(64);
  return true;
}

bool RangeTable::overlaps(std::uintptr_t begin, std::size_t bytes) const {
  std::uintptr_t piece_begin = 0;
  std::uintptr_t piece_end = 0;
  return next(begin, &piece_begin, &piece_end) != nullptr && piece_begin < begin + bytes;
}

void RangeTable::erase(std::uintptr_t begin, std::size_t bytes) {
  const std::uintptr_t end = begin + bytes;
  std::vector<std::shared_ptr<Arena>> dead;  // destroyed after the lock is dropped: unmapping staging is a system call
  std::vector<Piece> kept;
  {
    const std::unique_lock lock(mutex_);
    kept.reserve(pieces_.size() + 1);
    for (Piece& piece : pieces_) {
      if (piece.end <= begin || piece.begin >= end) {
        kept.push_back(std::move(piece));
        continue;
      }
      if (piece.begin < begin) kept.push_back({piece.begin, begin, piece.arena});
      if (piece.end > end) kept.push_back({end, piece.end, piece.arena});
      dead.push_back(std::move(piece.arena));
    }
    pieces_.swap(kept);
    fill_holes(begin, end);
  }
}

void RangeTable::fill_holes(std::uintptr_t begin, std::uintptr_t end) {
  std::vector<Hole> kept;
  for (const Hole& hole : holes_) {
    if (hole.begin < begin) kept.push_back({hole.begin, std::min(hole.end, begin)});
    if (hole.end > end) kept.push_back({std::max(hole.begin, end), hole.end});
  }
  if (!holes_.empty()) holes_.assign(kept.begin(), kept.end());
}

void RangeTable::note_hole(std::uintptr_t begin, std::uintptr_t end) {
  const std::unique_lock lock(mutex_);
  const auto piece = std::upper_bound(pieces_.begin(), pieces_.end(), begin,
                                      [](std::uintptr_t a, const Piece& p) { return a < p.end; });
  if (piece == pieces_.end() || piece->begin >= end) return;
  auto first =
      std::lower_bound(holes_.begin(), holes_.end(), begin, [](const Hole& h, std::uintptr_t a) { return h.end < a; });
  auto last = first;
  for (; last != holes_.end() && last->begin <= end; ++last) {
    begin = std::min(begin, last->begin);
    end = std::max(end, last->end);
  }
  if (first == last) {
    holes_.insert(first, Hole{begin, end});
  } else {
    *first = {begin, end};
    holes_.erase(first + 1, last);
  }
}

bool RangeTable::next_solid(const Arena* arena, std::uintptr_t at, std::uintptr_t* from, std::uintptr_t* to) const {
  const std::shared_lock lock(mutex_);
  for (const Piece& piece : pieces_) {
    if ((arena != nullptr && piece.arena.get() != arena) || piece.end <= at) continue;
    at = std::max(at, piece.begin);
    auto hole =
        std::upper_bound(holes_.begin(), holes_.end(), at, [](std::uintptr_t a, const Hole& h) { return a < h.end; });
    while (hole != holes_.end() && hole->begin <= at) at = (hole++)->end;
    if (at >= piece.end) continue;
    *from = at;
    *to = hole != holes_.end() ? std::min(hole->begin, piece.end) : piece.end;
    return true;
  }
  return false;
}

Arena* RangeTable::next(std::uintptr_t addr, std::uintptr_t* begin, std::uintptr_t* end) const {
  const std::shared_lock lock(mutex_);
  const auto at = std::upper_bound(pieces_.begin(), pieces_.end(), addr,
                                   [](std::uintptr_t a, const Piece& p) { return a < p.end; });
  if (at == pieces_.end()) return nullptr;
  *begin = at->begin;
  *end = at->end;
  return at->arena.get();
}

std::uint64_t RangeTable::metadata_bytes() const {
  const std::shared_lock lock(mutex_);
  std::uint64_t bytes = sizeof(RangeTable) + pieces_.capacity() * sizeof(Piece) + holes_.capacity() * sizeof(Hole);
  for (const Piece& piece : pieces_) bytes += piece.arena->metadata_bytes();  // an arena in two pieces counts twice
  return bytes;
}

}  // namespace hmmrt::uffd
