// SPDX-License-Identifier: MIT
#include "common/managed.hpp"

#include <numeric>

namespace bench {

namespace {

struct DirtyPages {
  hmmrt::gptr<std::uint64_t> first;
  std::uint64_t value, run, stride;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const std::uint64_t page = i.x / run * stride + i.x % run;
    first[static_cast<std::ptrdiff_t>(page * (k_page / sizeof(std::uint64_t)))] = value + page;
  }
};

// The first lane of each wave reads a word.
struct ReadByWaves {
  hmmrt::gptr<const std::uint64_t> first;
  std::uint64_t wave_size, words;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    if (i.x % wave_size == 0) (void)first[static_cast<std::ptrdiff_t>(i.x / wave_size * words)].load();
  }
};

template <std::size_t N>
std::uint64_t sum(const std::uint64_t (&by_cause)[N]) {
  return std::accumulate(by_cause, by_cause + N, std::uint64_t{0});
}

}  // namespace

void check(hmmrt_result_t result, const char* call) {
  if (result == HMMRT_SUCCESS) return;
  throw Error(std::string(call) + ": " + hmmrt_result_name(result) + ": " + hmmrt_last_error_detail());
}

Context::Context(const Options& options) {
  std::vector<hmmrt_option_t> table;
  for (const auto& [name, value] : options) table.push_back({name.c_str(), value.c_str()});
  hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
  desc.options = table.data();
  desc.option_count = static_cast<std::uint32_t>(table.size());
  check(hmmrt_context_create(&desc, &context_), "hmmrt_context_create");
  if (const hmmrt_result_t r = hmmrt_stream_create(context_, 0, &stream_); r != HMMRT_SUCCESS) {
    hmmrt_context_destroy(context_);
    check(r, "hmmrt_stream_create");
  }
}

Context::~Context() { hmmrt_context_destroy(context_); }

std::string Context::option(const char* name) const {
  const char* value = nullptr;
  check(hmmrt_option_get(context_, name, &value), "hmmrt_option_get");
  return value;
}

unsigned Context::copying_threads() const {
  if (option("pipeline_tokens") == "1") return 1;
  const unsigned long n = std::stoul(option("pipeline_threads"));
  return n != 0 ? static_cast<unsigned>(n) : std::max(1u, std::thread::hardware_concurrency());
}

hmmrt_device_info_t Context::device_info() const {
  hmmrt_device_info_t info{};
  info.size = sizeof info;
  check(hmmrt_device_get_info(context_, 0, &info), "hmmrt_device_get_info");
  return info;
}

unsigned Context::compute_units() const { return device_info().compute_units; }

bool Context::moves() const {
  hmmrt_context_info_t info{};
  info.size = sizeof info;
  check(hmmrt_context_get_info(context_, &info), "hmmrt_context_get_info");
  return info.move != 0;
}

hmmrt_stats_t Context::stats() const {
  hmmrt_stats_t stats{};
  stats.size = sizeof stats;
  check(hmmrt_stats_context(context_, &stats), "hmmrt_stats_context");
  return stats;
}

void Context::reset_stats() const { check(hmmrt_stats_reset(context_), "hmmrt_stats_reset"); }

void Context::synchronize() const { check(hmmrt_stream_synchronize(stream_), "hmmrt_stream_synchronize"); }

std::byte* Context::allocate(std::size_t bytes) const {
  void* p = nullptr;
  check(hmmrt_alloc(context_, bytes, &p), "hmmrt_alloc");
  return static_cast<std::byte*>(p);
}

void Context::free(void* p) const { check(hmmrt_free(context_, p), "hmmrt_free"); }

void Context::prefetch(const void* p, std::size_t bytes, hmmrt_location_t to) const {
  check(hmmrt_prefetch(context_, p, bytes, to, nullptr), "hmmrt_prefetch");
}

void Context::dirty(std::byte* p, std::size_t bytes, std::uint64_t value, std::size_t run, std::size_t stride) const {
  launch("dirty", {bytes / k_page / stride * run, 1, 1},
         DirtyPages{reinterpret_cast<std::uint64_t*>(p), value, run, stride});
  synchronize();
}

void Context::read_by_waves(const std::byte* p, std::size_t bytes, std::size_t stride) const {
  const std::uint64_t wave_size = device_info().wave_size;
  launch("read_by_waves", {bytes / stride * wave_size, 1, 1},
         ReadByWaves{reinterpret_cast<const std::uint64_t*>(p), wave_size, stride / sizeof(std::uint64_t)});
  synchronize();
}

std::uint64_t bytes_to_device(const hmmrt_stats_t& stats) { return sum(stats.bytes_to_device_by_cause); }
std::uint64_t bytes_to_host(const hmmrt_stats_t& stats) { return sum(stats.bytes_to_host_by_cause); }
std::uint64_t bytes_migrated(const hmmrt_stats_t& stats) {
  return bytes_to_device(stats) + bytes_to_host(stats) + sum(stats.bytes_peer_by_cause);
}

void expect_bytes(std::uint64_t moved, std::uint64_t wanted, const char* what) {
  if (moved == wanted) return;
  throw Error(std::string(what) + " moved " + std::to_string(moved) + " bytes, not the " + std::to_string(wanted) +
              " that were asked for");
}

}  // namespace bench
