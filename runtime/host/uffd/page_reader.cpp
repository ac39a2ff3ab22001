// SPDX-License-Identifier: MIT
#include "host/uffd/page_reader.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace hmmrt::uffd {

namespace {

// Drops the first `n` bytes of a list of buffers.
void consume(iovec*& local, unsigned& pieces, std::size_t n) {
  while (n != 0) {
    const std::size_t part = std::min(n, local->iov_len);
    local->iov_base = static_cast<std::byte*>(local->iov_base) + part;
    local->iov_len -= part;
    n -= part;
    if (local->iov_len == 0) {
      ++local;
      --pieces;
    }
  }
}

}  // namespace

PageReader::~PageReader() {
  for (Pipe& pipe : pipes_) close(pipe);
}

bool PageReader::open(Pipe& pipe) noexcept {
  if (pipe.in >= 0) return true;
  int fds[2];
  if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) return false;
  pipe.out = fds[0];
  pipe.in = fds[1];
  fcntl(pipe.in, F_SETPIPE_SZ, 1 << 20);  // refused beyond the user's limit: then smaller chunks
  const int capacity = fcntl(pipe.in, F_GETPIPE_SZ);
  pipe.capacity = capacity > 0 ? page_floor(static_cast<std::size_t>(capacity)) : k_page_size;
  return true;
}

void PageReader::close(Pipe& pipe) noexcept {
  if (pipe.in < 0) return;
  ::close(pipe.in);
  ::close(pipe.out);
  pipe.in = pipe.out = -1;
}

std::size_t PageReader::through_pipe(Pipe& pipe, std::uintptr_t addr, std::size_t bytes, iovec*& local,
                                     unsigned& pieces) noexcept {
  std::size_t done = 0;
  while (done < bytes) {
    const iovec chunk{reinterpret_cast<void*>(addr + done),  // NOLINT(performance-no-int-to-ptr)
                      std::min(bytes - done, pipe.capacity)};
    const ssize_t spliced = vmsplice(pipe.in, &chunk, 1, SPLICE_F_NONBLOCK);
    if (spliced <= 0) break;
    // What is in the pipe must come out, or the next user of this pipe would find it.
    for (auto left = static_cast<std::size_t>(spliced); left != 0;) {
      const ssize_t n = readv(pipe.out, local, static_cast<int>(pieces));
      if (n <= 0) {
        close(pipe);
        return page_floor(done);
      }
      const std::size_t got = std::min(left, static_cast<std::size_t>(n));
      consume(local, pieces, got);
      done += got;
      left -= got;
    }
  }
  return page_floor(done);
}

std::size_t PageReader::read_run(std::uintptr_t addr, std::size_t bytes, iovec* local, unsigned pieces) noexcept {
  std::size_t done = 0;
  for (Pipe& pipe : pipes_) {
    if (pipe.busy.load(std::memory_order_relaxed) || pipe.busy.exchange(true, std::memory_order_acquire)) continue;
    if (open(pipe)) done = through_pipe(pipe, addr, bytes, local, pieces);
    pipe.busy.store(false, std::memory_order_release);
    break;
  }
  if (done == bytes) return done;
  // The rest: no pipe, or a page that cannot be read; this tells which.
  const iovec remote{reinterpret_cast<void*>(addr + done), bytes - done};  // NOLINT(performance-no-int-to-ptr)
  const ssize_t n = process_vm_readv(getpid(), local, pieces, &remote, 1, 0);
  return done + (n > 0 ? page_floor(static_cast<std::size_t>(n)) : 0);
}

}  // namespace hmmrt::uffd
