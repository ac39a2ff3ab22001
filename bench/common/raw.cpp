// SPDX-License-Identifier: MIT
#include "common/raw.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

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

Team::Team(unsigned threads) : start_(threads), end_(threads) {
  for (unsigned i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] {
      for (;;) {
        start_.arrive_and_wait();
        if (fn_ == nullptr) return;
        (*fn_)(i);
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

void Team::run(const std::function<void(unsigned)>& fn) {
  fn_ = &fn;
  start_.arrive_and_wait();
  fn(0);
  end_.arrive_and_wait();
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

RawUffd::RawUffd(std::byte* addr, std::size_t bytes, bool write_protect) : addr_(addr) {
  fd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  if (fd_ < 0) refuse("userfaultfd");
  uffdio_api api{};
  api.api = UFFD_API;
  if (ioctl(fd_, UFFDIO_API, &api) != 0) refuse("UFFDIO_API");
  uffdio_register range{};
  range.range = {address(addr), bytes};
  range.mode = UFFDIO_REGISTER_MODE_MISSING | (write_protect ? UFFDIO_REGISTER_MODE_WP : 0);
  if (ioctl(fd_, UFFDIO_REGISTER, &range) != 0) refuse("UFFDIO_REGISTER");
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
