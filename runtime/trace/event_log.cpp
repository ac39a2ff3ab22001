// SPDX-License-Identifier: MIT
#include "trace/event_log.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace hmmrt {

EventLog::EventLog(std::uint32_t entries)
    : ring_(entries != 0 ? std::make_unique<Event[]>(entries) : nullptr), mask_(entries != 0 ? entries - 1u : 0u) {}

EventLog::~EventLog() = default;

void EventLog::store(const Event& event) noexcept {
  const std::uint64_t n = next_.fetch_add(1, std::memory_order_relaxed);
  Event& slot = ring_[n & mask_];
  slot = event;
  slot.sequence = n + 1;
}

Status EventLog::write_file(const char* path) const {
  std::FILE* file = std::fopen(path, "wb");
  if (file == nullptr) return fail(HMMRT_ERROR_SYSTEM, "cannot write trace file %s: %s", path, std::strerror(errno));
  const std::uint64_t total = recorded();
  const std::uint64_t kept = total < mask_ + 1 ? total : mask_ + 1;
  struct {
    char magic[8] = {'H', 'M', 'M', 'R', 'T', 'L', 'O', 'G'};
    std::uint32_t version = 1;
    std::uint32_t event_bytes = sizeof(Event);
    std::uint64_t recorded = 0;
    std::uint64_t kept = 0;
  } header;
  header.recorded = total;
  header.kept = kept;
  bool ok = std::fwrite(&header, sizeof header, 1, file) == 1;
  for (std::uint64_t n = total - kept; ok && n < total; ++n) {
    ok = std::fwrite(&ring_[n & mask_], sizeof(Event), 1, file) == 1;
  }
  ok = std::fclose(file) == 0 && ok;
  if (!ok) return fail(HMMRT_ERROR_SYSTEM, "writing trace file %s failed: %s", path, std::strerror(errno));
  return {};
}

}  // namespace hmmrt
