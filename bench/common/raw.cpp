// SPDX-License-Identifier: MIT
#include "common/raw.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "common/measure.hpp"

namespace bench {

namespace {
[[noreturn]] void refuse(const char* call) { throw Error(std::string(call) + ": " + strerror(errno)); }
std::uint64_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }
}  // namespace

// --- memory --------------------------------------------------------------------------------------------------------

Memory::Memory(std::size_t bytes, bool huge) : bytes_(bytes), mapping_bytes_(bytes + k_block) {
  mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) refuse("mmap");
  data_ = reinterpret_cast<std::byte*>((address(mapping_) + k_block - 1) & ~(k_block - 1));
  madvise(data_, bytes_, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}
Memory::~Memory() { munmap(mapping_, mapping_bytes_); }
void Memory::fill(int value) { std::memset(data_, value, bytes_); }
void Memory::drop() { madvise(data_, bytes_, MADV_DONTNEED); }

// --- team ----------------------------------------------------------------------------------------------------------

Team::Team(unsigned threads) : threads_(threads), start_(threads), end_(threads) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &set)) cores_.push_back(core);
    }
  }
  for (unsigned i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] {
      keep_to_core(i);
      for (;;) {
        start_.arrive_and_wait();
        if (fn_ == nullptr) return;
        take_part(i);
        end_.arrive_and_wait();
      }
    });
  }
}

Team::~Team() {
  fn_ = nullptr;
  start_.arrive_and_wait();
  for (std::thread& t : workers_) t.join();
}

void Team::keep_to_core(unsigned thread) const {
  if (cores_.size() < threads()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cores_[thread], &set);
  sched_setaffinity(0, sizeof set, &set);
}

void Team::take_part(unsigned thread) {
  try {
    (*fn_)(thread);
  } catch (...) {
    const std::lock_guard guard(failed_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void Team::run(const std::function<void(unsigned)>& fn) {
  if (workers_.empty()) return fn(0);
  cpu_set_t before;
  const bool pinned = sched_getaffinity(0, sizeof before, &before) == 0;
  if (pinned) keep_to_core(0);
  fn_ = &fn;
  start_.arrive_and_wait();
  take_part(0);
  end_.arrive_and_wait();
  if (pinned) sched_setaffinity(0, sizeof before, &before);
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Team::for_each(std::size_t count, const std::function<void(std::size_t)>& fn) {
  std::atomic<std::size_t> next{0};
  run([&](unsigned) {
    for (std::size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) fn(i);
  });
}

// --- copying -------------------------------------------------------------------------------------------------------

std::vector<Piece> pieces(std::byte* to, const std::byte* from, std::size_t bytes, std::size_t granule) {
  std::vector<Piece> out;
  for (std::size_t at = 0; at < bytes; at += granule) out.push_back({to + at, from + at, granule});
  return out;
}

double copy_seconds(Team& team, const std::vector<Piece>& pieces) {
  const std::uint64_t start = now_ns();
  team.for_each(pieces.size(), [&](std::size_t i) { std::memcpy(pieces[i].to, pieces[i].from, pieces[i].bytes); });
  return seconds_since(start);
}

// --- userfaultfd ---------------------------------------------------------------------------------------------------

namespace {
// Linux 6.8's, which Debian 12's headers do not have.
constexpr std::uint64_t k_feature_move = 1u << 16;
struct MoveArgs {
  std::uint64_t dst, src, len, mode;
  std::int64_t move;
};
constexpr unsigned long k_move = _IOWR(UFFDIO, 0x05, MoveArgs);
}  // namespace

RawUffd::RawUffd(std::byte* addr, std::size_t bytes, For what) : addr_(addr), what_(what) {
  fd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  if (fd_ < 0) refuse("userfaultfd");
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = what == For::move ? k_feature_move : 0;
  if (ioctl(fd_, UFFDIO_API, &api) != 0) refuse("UFFDIO_API");
  watch(addr, bytes);
}

void RawUffd::watch(std::byte* addr, std::size_t bytes) const {
  uffdio_register range{};
  range.range = {address(addr), bytes};
  range.mode = UFFDIO_REGISTER_MODE_MISSING | (what_ == For::write_protect ? UFFDIO_REGISTER_MODE_WP : 0);
  if (ioctl(fd_, UFFDIO_REGISTER, &range) != 0) refuse("UFFDIO_REGISTER");
}

void RawUffd::move(std::byte* to, std::byte* from, std::size_t bytes) const {
  for (std::size_t done = 0; done < bytes;) {
    MoveArgs m{address(to) + done, address(from) + done, bytes - done, 0, 0};
    if (ioctl(fd_, k_move, &m) == 0) return;
    if (errno != EAGAIN) refuse("UFFDIO_MOVE");
    if (m.move > 0) done += static_cast<std::size_t>(m.move);
  }
}

RawUffd::~RawUffd() {
  if (poller_.joinable()) {
    const std::uint64_t one = 1;
    (void)!write(stop_, &one, sizeof one);
    poller_.join();
    close(stop_);
  }
  close(fd_);
}

void RawUffd::copy(std::byte* to, const std::byte* from, std::size_t bytes) const {
  for (std::size_t done = 0; done < bytes;) {
    uffdio_copy c{};
    c.dst = address(to) + done;
    c.src = address(from) + done;
    c.len = bytes - done;
    if (ioctl(fd_, UFFDIO_COPY, &c) == 0) return;
    if (errno != EAGAIN || c.copy <= 0) refuse("UFFDIO_COPY");
    done += static_cast<std::size_t>(c.copy);
  }
}

void RawUffd::write_protect(std::byte* addr, std::size_t bytes) const {
  uffdio_writeprotect w{};
  w.range = {address(addr), bytes};
  w.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  if (ioctl(fd_, UFFDIO_WRITEPROTECT, &w) != 0) refuse("UFFDIO_WRITEPROTECT");
}

void RawUffd::start_poll_thread(const std::byte* source) {
  stop_ = eventfd(0, EFD_CLOEXEC);
  if (stop_ < 0) refuse("eventfd");
  poller_ = std::thread([this, source] { poll_loop(source); });
}

void RawUffd::poll_loop(const std::byte* source) const {
  for (;;) {
    pollfd waiting[2] = {{fd_, POLLIN, 0}, {stop_, POLLIN, 0}};
    poll(waiting, 2, -1);
    if (waiting[1].revents != 0) return;
    uffd_msg message;
    if (read(fd_, &message, sizeof message) != sizeof message) continue;
    const std::uint64_t page = message.arg.pagefault.address & ~(k_page - 1);
    copy(reinterpret_cast<std::byte*>(page), source + (page - address(addr_)), k_page);
  }
}

}  // namespace bench
