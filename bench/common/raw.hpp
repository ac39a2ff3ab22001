// SPDX-License-Identifier: MIT
// The ceilings, in bare Linux and without the library: memory, copying by a team of threads, and userfaultfd as its
// manual page shows it. Nothing here knows about hmmrt.
#pragma once

#include <atomic>
#include <barrier>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace bench {

constexpr std::size_t k_page = 4096;
constexpr std::size_t k_block = std::size_t{2} << 20;
constexpr std::size_t k_mib = std::size_t{1} << 20;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Private anonymous memory, 2 MiB aligned, huge pages asked for or refused.
class Memory {
 public:
  explicit Memory(std::size_t bytes, bool huge = true);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  void fill(int value);  // every byte
  void drop();           // MADV_DONTNEED

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_;
  void* mapping_ = nullptr;
  std::size_t mapping_bytes_;
};

// Threads that run one function together and wait for each other; the caller is one of them. Each keeps to a core of its
// own meanwhile, so that a ceiling is never the speed of two threads on one core.
class Team {
 public:
  explicit Team(unsigned threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  unsigned threads() const { return threads_; }
  // Throws what one of them threw, once all are done.
  void run(const std::function<void(unsigned thread)>& fn);
  // fn(i) for i in [0, count), handed out one at a time.
  void for_each(std::size_t count, const std::function<void(std::size_t i)>& fn);

 private:
  void keep_to_core(unsigned thread) const;
  void take_part(unsigned thread);
  unsigned threads_;
  std::vector<int> cores_;  // that this process may use
  const std::function<void(unsigned)>* fn_ = nullptr;
  std::mutex failed_;
  std::exception_ptr failure_;  // the first
  std::barrier<> start_;
  std::barrier<> end_;
  std::vector<std::thread> workers_;
};

// One contiguous copy.
struct Piece {
  std::byte* to;
  const std::byte* from;
  std::size_t bytes;
};
// Seconds that the team takes for all pieces, one memcpy each.
double copy_seconds(Team& team, const std::vector<Piece>& pieces);
std::vector<Piece> pieces(std::byte* to, const std::byte* from, std::size_t bytes, std::size_t granule);

// A userfaultfd over one range. Member functions throw Error where the kernel refuses.
class RawUffd {
 public:
  enum class For { missing, write_protect, move };
  RawUffd(std::byte* addr, std::size_t bytes, For what);
  ~RawUffd();
  RawUffd(const RawUffd&) = delete;
  RawUffd& operator=(const RawUffd&) = delete;

  void watch(std::byte* addr, std::size_t bytes) const;                      // one more range
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) const;  // UFFDIO_COPY
  void move(std::byte* to, std::byte* from, std::size_t bytes) const;        // UFFDIO_MOVE, into a watched range
  void write_protect(std::byte* addr, std::size_t bytes) const;
  // Serves missing faults page by page with UFFDIO_COPY: poll, read, copy from `source`, from a thread of its own.
  void start_poll_thread(const std::byte* source);

 private:
  void poll_loop(const std::byte* source) const;
  std::byte* addr_;
  For what_;
  int fd_ = -1;
  int stop_ = -1;
  std::thread poller_;
};

}  // namespace bench
