// SPDX-License-Identifier: MIT
#include "gpu/standin/smi_lines.hpp"

#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace standin {

namespace {

std::uint64_t number(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 0) : otherwise;
}

long long now() {
  timespec t{};
  clock_gettime(CLOCK_BOOTTIME, &t);
  return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

unsigned long page(std::uintptr_t at) { return at >> 12; }
unsigned long pages(std::uintptr_t begin, std::uintptr_t end) { return (end - begin) >> 12; }

// By the system call itself: the descriptor is not ours, and may be closed, or something else, by now. That is what is
// asked, but ThreadSanitizer would call it a race.
std::uint64_t inode_of(int fd) {
  struct stat s {};
  return syscall(SYS_fstat, fd, &s) == 0 ? s.st_ino : 0;
}

}  // namespace

void SmiLines::configure() {
  const char* kernel = std::getenv("HMMRT_TEST_KFD_SMI");
  new_ = kernel != nullptr && std::strcmp(kernel, "7.2") == 0;
  fifo_ = number("HMMRT_TEST_KFD_FIFO", new_ ? 8192 : 1024);
  drop_ = number("HMMRT_TEST_KFD_SMI_DROP", 0);
  silent_ = number("HMMRT_TEST_KFD_MINOR", 14) < 10;
  noise_ = number("HMMRT_TEST_KFD_SMI_NOISE", 0);
}

int SmiLines::open(std::uint32_t node) {
  for (Listener& l : listeners_) {
    if (l.fd >= 0 && !closed(&l)) continue;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) return -errno;
    l = {pair[0], dup(pair[1]), pair[1], inode_of(pair[1]), 0, node};
    return pair[1];
  }
  return -EMFILE;
}

bool SmiLines::closed(Listener* l) {
  if (inode_of(l->given) == l->inode) return false;
  close(l->fd);
  close(l->theirs);
  *l = {};
  return true;
}

void SmiLines::send(Listener* to, const char* line, std::size_t bytes) {
  int waiting = 0;
  if (ioctl(to->theirs, FIONREAD, &waiting) != 0 || static_cast<std::size_t>(waiting) + bytes > fifo_ ||
      ::send(to->fd, line, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) != static_cast<ssize_t>(bytes)) {
    ++lost_;
  }
}

void SmiLines::say(std::uint32_t event, std::uint32_t node, const char* format, ...) {
  if (silent_) return;
  char line[96];  // KFD_SMI_EVENT_MSG_SIZE
  int n = std::snprintf(line, sizeof line, "%x ", event);
  va_list arguments;
  va_start(arguments, format);
  n += std::vsnprintf(line + n, sizeof line - static_cast<std::size_t>(n), format, arguments);
  va_end(arguments);
  const std::size_t bytes = std::min<std::size_t>(static_cast<std::size_t>(n), sizeof line - 1);
  for (Listener& l : listeners_) {
    if (l.fd < 0 || l.node != node || closed(&l)) continue;
    std::uint64_t mask = 0;
    while (read(l.fd, &mask, sizeof mask) == sizeof mask) l.mask = mask;
    if ((l.mask >> (event - 1) & 1) == 0) continue;
    ++lines_;
    if (noise_ != 0 && lines_ % noise_ == 0) {
      const char* const noise = lines_ / noise_ % 2 == 0 ? "6 what is this\n" : "2f 1 2 3\n";
      send(&l, noise, std::strlen(noise));
    }
    if (drop_ != 0 && lines_ % drop_ == 0) {
      ++lost_;
      continue;
    }
    send(&l, line, bytes);
  }
}

void SmiLines::fault_start(std::uint32_t node, std::uintptr_t at, bool write) {
  say(7, node, "%lld -%d @%lx(%x) %c\n", now(), getpid(), page(at), gpu_id(node), write ? 'W' : 'R');
}
void SmiLines::fault_end(std::uint32_t node, std::uintptr_t at, bool migrated) {
  say(8, node, "%lld -%d @%lx(%x) %c\n", now(), getpid(), page(at), gpu_id(node), migrated ? 'M' : 'U');
}
void SmiLines::migrate_start(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, std::uint32_t from,
                             std::uint32_t to, std::uint32_t prefetch, std::uint32_t preferred, Trigger trigger) {
  say(5, node, "%lld -%d @%lx(%lx) %x->%x %x:%x %d\n", now(), getpid(), page(begin), pages(begin, end), gpu_id(from),
      gpu_id(to), gpu_id(prefetch), gpu_id(preferred), static_cast<int>(trigger));
}
void SmiLines::migrate_end(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, std::uint32_t from,
                           std::uint32_t to, Trigger trigger, int error) {
  if (new_) {
    say(6, node, "%lld -%d @%lx(%lx) %x->%x %d %d\n", now(), getpid(), page(begin), pages(begin, end), gpu_id(from),
        gpu_id(to), static_cast<int>(trigger), error);
  } else if (error == 0) {
    say(6, node, "%lld -%d @%lx(%lx) %x->%x %d\n", now(), getpid(), page(begin), pages(begin, end), gpu_id(from),
        gpu_id(to), static_cast<int>(trigger));
  }
}
void SmiLines::queue_eviction(std::uint32_t node) {
  say(9, node, "%lld -%d %x %d\n", now(), getpid(), gpu_id(node), 0);
}
void SmiLines::queue_restore(std::uint32_t node) {
  if (new_) {
    say(10, node, "%lld -%d %x %c\n", now(), getpid(), gpu_id(node), '0');
  } else {
    say(10, node, "%lld -%d %x\n", now(), getpid(), gpu_id(node));
  }
}
void SmiLines::unmap(std::uint32_t node, std::uintptr_t begin, std::uintptr_t end, Unmap trigger) {
  say(11, node, "%lld -%d @%lx(%lx) %x %d\n", now(), getpid(), page(begin), pages(begin, end), gpu_id(node),
      static_cast<int>(trigger));
}

}  // namespace standin
