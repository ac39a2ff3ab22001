// SPDX-License-Identifier: MIT
// The library as its users see it: a context, memory, a stream and launches over the C ABI. Errors are thrown as Error.
#pragma once

#include <hmmrt/kernel.hpp>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "common/raw.hpp"

namespace bench {

// Throws Error with the call's name and the library's sentence, unless `result` is success.
void check(hmmrt_result_t result, const char* call);

using Options = std::vector<std::pair<std::string, std::string>>;

// A context with one stream on device 0.
class Context {
 public:
  explicit Context(const Options& options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  hmmrt_context_t get() const { return context_; }
  hmmrt_stream_t stream() const { return stream_; }
  std::string option(const char* name) const;
  // Threads that a pipeline uses, its caller included.
  unsigned copying_threads() const;
  unsigned compute_units() const;
  bool moves() const;  // UFFDIO_MOVE in use

  hmmrt_stats_t stats() const;
  void reset_stats() const;
  void synchronize() const;

  std::byte* allocate(std::size_t bytes) const;
  void free(void* p) const;
  // Returns when done.
  void prefetch(const void* p, std::size_t bytes, hmmrt_location_t to) const;

  template <class F>
  void launch(const char* name, hmmrt_grid_t grid, const F& f) const {
    check(hmmrt::launch(stream_, name, grid, f), "hmmrt::launch");
  }
  // Device 0 writes the first word of pages of [p, p + bytes): page k gets `value` + k. Of every `stride` pages the first
  // `run` are written. What the device holds is then newer than what the host kept.
  void dirty(std::byte* p, std::size_t bytes, std::uint64_t value = 0, std::size_t run = 1,
             std::size_t stride = 1) const;
  // Device 0 reads a word at each multiple of `stride`, each in a wave of its own, so that a device full of waves faults
  // on as many pages at once.
  void read_by_waves(const std::byte* p, std::size_t bytes, std::size_t stride) const;

 private:
  hmmrt_device_info_t device_info() const;
  hmmrt_context_t context_ = nullptr;
  hmmrt_stream_t stream_ = nullptr;
};

// Bytes moved each way, all causes.
std::uint64_t bytes_to_device(const hmmrt_stats_t& stats);
std::uint64_t bytes_to_host(const hmmrt_stats_t& stats);
std::uint64_t bytes_migrated(const hmmrt_stats_t& stats);

// Throws when a measured run did not move what it was meant to move: a fast answer to another question.
void expect_bytes(std::uint64_t moved, std::uint64_t wanted, const char* what);

inline std::string mib(std::size_t n) { return std::to_string(n * k_mib); }  // for options: bytes of n MiB

}  // namespace bench
