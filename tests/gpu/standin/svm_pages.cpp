// SPDX-License-Identifier: MIT
#include "gpu/standin/svm_pages.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace standin {

namespace {

// Newer than Debian 12's headers.
struct MoveArgs {
  std::uint64_t dst, src, len, mode;
  std::int64_t move;
};
constexpr unsigned long k_move = _IOWR(0xAA, 0x05, MoveArgs);
constexpr std::uint64_t k_feature_move = std::uint64_t{1} << 16;
constexpr std::uint64_t k_move_asleep = 1;  // who waits for the page is woken later, when all is said
constexpr std::uint64_t k_move_holes = 2;

constexpr std::size_t k_hidden_bytes = std::size_t{64} << 30;

int open_uffd(std::uint64_t features) {
  for (const int flags : {0, UFFD_USER_MODE_ONLY}) {
    const auto fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags));
    if (fd < 0) continue;
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = features;
    if (ioctl(fd, UFFDIO_API, &api) == 0) return fd;
    close(fd);
  }
  return -1;
}

bool enlist(int fd, std::uintptr_t begin, std::uintptr_t end, std::uint64_t modes) {
  uffdio_register args{};
  args.range = {begin, end - begin};
  args.mode = modes;
  return ioctl(fd, UFFDIO_REGISTER, &args) == 0;
}

}  // namespace

Pages::Pages(std::pmr::memory_resource* memory) : blocks_(memory), free_(memory) {}

bool Pages::open() {
  events_ = open_uffd(k_feature_move | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE |
                      UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP);
  into_ = open_uffd(k_feature_move | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
  pagemap_ = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (events_ < 0 || into_ < 0 || pagemap_ < 0) return false;
  void* const all = mmap(nullptr, k_hidden_bytes + k_block, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) return false;
  next_ = (reinterpret_cast<std::uintptr_t>(all) + k_block - 1) & ~(k_block - 1);
  hidden_end_ = next_ + k_hidden_bytes;
  // A huge page there would be in the way of pages that come later.
  madvise(all, k_hidden_bytes + k_block, MADV_NOHUGEPAGE);
  keep_home(reinterpret_cast<std::uintptr_t>(all), hidden_end_);
  return enlist(into_, next_, hidden_end_, UFFDIO_REGISTER_MODE_WP);
}

Block* Pages::find(std::uintptr_t at) {
  const auto it = blocks_.find(at & ~(k_block - 1));
  return it != blocks_.end() ? &it->second : nullptr;
}

std::uint32_t Pages::where(std::uintptr_t at) {
  const Block* const b = find(at);
  return b != nullptr ? b->where[at % k_block / k_page] : 0;
}

std::uintptr_t Pages::hidden() {
  if (!free_.empty()) {
    const std::uintptr_t at = free_.back();
    free_.pop_back();
    return at;
  }
  const std::uintptr_t at = next_;
  next_ += k_block;
  return at;
}

void Pages::set(Block& b, std::size_t page, std::uint32_t node) {
  const std::uint32_t before = b.where[page];
  if (before == node) return;
  if (before != 0) --used_[before], --b.on[before];
  if (node != 0) ++used_[node], ++b.on[node];
  b.where[page] = static_cast<std::uint8_t>(node);
  for (const std::uint32_t n : {before, node}) {
    if (n != 0) hmmrt_standin_svm_bytes[n - 1] = used_[n] * k_page;
  }
}

bool Pages::watch(std::uintptr_t begin, std::uintptr_t end) {
  return enlist(events_, begin, end, UFFDIO_REGISTER_MODE_WP);
}

bool Pages::arm(std::uintptr_t begin, std::uintptr_t end) {
  if (!enlist(events_, begin, end, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)) return false;
  each(begin, end, true, [](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      if (b.armed[i]) continue;
      b.armed.set(i);
      // A GPU that uses the page in place would wait for us if it were missing: let it ask again.
      for (Mask& m : b.mapped) m.reset(i);
    }
  });
  return true;
}

void Pages::close() { ::close(std::exchange(events_, -1)); }

// An operation met a change of mappings under way. False: of these very pages.
bool Pages::again(std::uintptr_t begin, std::uintptr_t end) {
  read_events();
  if (in_doubt(begin, end)) return false;
  sched_yield();
  return true;
}

// For what cannot be moved: because it may only be read now, say. False: in doubt.
bool Pages::copy_home(std::uintptr_t to, std::uintptr_t from) {
  for (;;) {
    uffdio_copy args{};
    args.dst = to;
    args.src = from;
    args.len = k_page;
    args.mode = UFFDIO_COPY_MODE_DONTWAKE;
    if (ioctl(events_, UFFDIO_COPY, &args) == 0 || errno != EAGAIN) break;
    if (!again(to, to + k_page)) return false;
  }
  madvise(reinterpret_cast<void*>(from), k_page, MADV_DONTNEED);
  return true;
}

Mask Pages::transfer(std::uintptr_t base, Block& b, std::size_t first, std::size_t last, bool home) {
  Mask moved;
  unsigned busy = 0;
  for (std::size_t i = first; i < last;) {
    const std::uintptr_t app = base + i * k_page, gpu = b.hidden + i * k_page;
    MoveArgs args{home ? app : gpu, home ? gpu : app, (last - i) * k_page, k_move_holes | k_move_asleep, 0};
    const int error = ioctl(home ? events_ : into_, k_move, &args) == 0 ? 0 : errno;
    if (args.move > 0) {
      const std::size_t n = static_cast<std::size_t>(args.move) / k_page;
      for (std::size_t k = 0; k < n; ++k) moved.set(i + k);
      i += n;
      busy = 0;
      continue;
    }
    if (error == 0) break;
    if (error == EAGAIN) {
      if (!again(app, base + last * k_page)) break;
      continue;
    }
    if (error == EBUSY && ++busy < 4) {
      sched_yield();
      continue;
    }
    // EEXIST: there was nothing, so that Linux 6.18 has moved it, and says so of the second look it took.
    if (error == EEXIST || (home && copy_home(app, gpu))) moved.set(i);
    ++i;
    busy = 0;
  }
  return moved;
}

std::size_t Pages::take(std::uintptr_t base, Block& b, std::size_t first, std::size_t last, std::uint32_t node) {
  if (b.hidden == 0) b.hidden = hidden();
  std::size_t all = 0;
  for (std::size_t i = first; i < last;) {
    std::size_t end = i;
    while (end < last && b.where[end] == 0) ++end;
    const Mask moved = end > i ? transfer(base, b, i, end, false) : Mask();
    for (std::size_t k = i; k < end; ++k) {
      if (moved[k]) set(b, k, node);
    }
    all += moved.count();
    i = end + 1;
  }
  return all;
}

std::size_t Pages::give(std::uintptr_t base, Block& b, std::size_t first, std::size_t last, std::uint32_t node) {
  std::size_t all = 0;
  for (std::size_t i = first; i < last;) {
    std::size_t end = i;
    while (end < last && b.where[end] == node) ++end;
    const Mask moved = end > i ? transfer(base, b, i, end, true) : Mask();
    for (std::size_t k = i; k < end; ++k) {
      if (moved[k]) set(b, k, 0);
    }
    all += moved.count();
    i = end + 1;
  }
  return all;
}

void Pages::drop(Block& b, std::size_t first, std::size_t last) {
  if (b.hidden == 0) return;
  bool any = false;
  for (std::size_t i = first; i < last; ++i) {
    any |= b.where[i] != 0;
    set(b, i, 0);
  }
  if (any) madvise(reinterpret_cast<void*>(b.hidden + first * k_page), (last - first) * k_page, MADV_DONTNEED);
}

void Pages::follow(std::uintptr_t from, std::uintptr_t to, std::size_t bytes) {
  for (std::size_t done = 0; done < bytes; done += k_page) {
    Block* const old = find(from + done);
    if (old == nullptr) continue;
    const std::size_t i = (from + done) % k_block / k_page;
    if (old->where[i] != 0) {
      const std::uintptr_t at = old->hidden + i * k_page;
      bool home = true;
      for (;;) {
        MoveArgs args{to + done, at, k_page, k_move_holes | k_move_asleep, 0};
        if (ioctl(events_, k_move, &args) == 0 || errno == EEXIST) break;
        if (errno == EAGAIN && again(to + done, to + done + k_page)) continue;
        read_events();
        home = !in_doubt(to + done, to + done + k_page) && copy_home(to + done, at);
        break;
      }
      if (!home) {  // it has moved on, perhaps: the GPU's, at the new address, until that event is heeded
        Block& there = block(to + done);
        const std::size_t k = (to + done) % k_block / k_page;
        if (there.hidden == 0) there.hidden = hidden();
        std::memcpy(reinterpret_cast<void*>(there.hidden + k * k_page), reinterpret_cast<void*>(at), k_page);
        set(there, k, old->where[i]);
      }
      madvise(reinterpret_cast<void*>(at), k_page, MADV_DONTNEED);
      set(*old, i, 0);
    }
    for (Mask& m : old->mapped) m.reset(i);
    if (old->armed[i]) {
      old->armed.reset(i);
      block(to + done).armed.set((to + done) % k_block / k_page);
    }
  }
}

void Pages::populate(std::uintptr_t base, Block& b, std::size_t first, std::size_t last) {
  std::array<std::uint64_t, k_block_pages> entries{};
  const auto offset = static_cast<off_t>((base / k_page + first) * sizeof(std::uint64_t));
  if (pread(pagemap_, entries.data(), (last - first) * sizeof(std::uint64_t), offset) < 0) return;
  for (std::size_t i = first; i < last; ++i) {
    constexpr std::uint64_t k_there = std::uint64_t{3} << 62;  // present, or swapped out
    if (b.armed[i] && b.where[i] == 0 && (entries[i - first] & k_there) == 0) zero(base + i * k_page);
  }
}

void Pages::zero(std::uintptr_t at) {
  uffdio_zeropage args{};
  for (;;) {
    args.range = {at, k_page};
    if (ioctl(events_, UFFDIO_ZEROPAGE, &args) == 0) return;
    if (errno != EAGAIN || !again(at, at + k_page)) break;
  }
  wake(at, k_page);
}

void Pages::wake(std::uintptr_t at, std::size_t bytes) {
  uffdio_range args{at, bytes};
  ioctl(events_, UFFDIO_WAKE, &args);
}

}  // namespace standin
