// SPDX-License-Identifier: MIT
#include "device/gpu/copy_lanes.hpp"

#include <algorithm>
#include <cstring>

namespace hmmrt::gpu {

namespace {

std::size_t bytes_of(const CopyRun& run) { return std::size_t{run.pages} * k_page_size; }

// Until what is on the stream has been done. Failing is not proof that it has not begun, so the whole device is asked next.
bool finish(Stream stream) {
  return GPU(StreamSynchronize)(stream) == k_success || GPU(DeviceSynchronize)() == k_success;
}

}  // namespace

Error CopyLanes::open(const Pool& pool) {
  pool_ = pool;
  if (const Error e = GPU(StreamCreateWithFlags)(&to_device_, k_stream_flags); e != k_success) return e;
  if (const Error e = GPU(StreamCreateWithFlags)(&to_host_, k_stream_flags); e != k_success) return e;
  lanes_.resize(k_lanes);
  for (std::size_t i = 0; i < k_lanes; ++i) {
    void* memory = nullptr;
    if (const Error e = host_allocate(&memory, k_block_size); e != k_success) return e;
    lanes_[i].pinned = static_cast<std::byte*>(memory);
    if (const Error e = GPU(EventCreateWithFlags)(&lanes_[i].done, k_event_flags); e != k_success) return e;
    free_.push_back(i);
  }
  return k_success;
}

CopyLanes::~CopyLanes() {
  for (const Lane& lane : lanes_) {
    if (lane.done != nullptr) (void)GPU(EventDestroy)(lane.done);
    if (lane.pinned != nullptr) (void)host_free(lane.pinned);
  }
  if (to_device_ != nullptr) (void)GPU(StreamDestroy)(to_device_);
  if (to_host_ != nullptr) (void)GPU(StreamDestroy)(to_host_);
}

// Index of a lane, or k_lanes: a thread may hold several tickets, so waiting for a lane could wait for itself.
std::size_t CopyLanes::take_lane() {
  const std::lock_guard guard(lock_);
  if (free_.empty()) return k_lanes;
  const std::size_t lane = free_.back();
  free_.pop_back();
  return lane;
}

void CopyLanes::give_lane(std::size_t lane) {
  const std::lock_guard guard(lock_);
  free_.push_back(lane);
}

// Starts it.
bool CopyLanes::copy_from_peer(const CopyRun& run) {
  const Pool& peer = peers_[run.peer];
  if (peer.first == nullptr) return false;
  const std::byte* from = peer.first + std::size_t{run.peer_frame} * k_page_size;
  return GPU(MemcpyPeerAsync)(address(run.frame), pool_.ordinal, from, peer.ordinal, bytes_of(run), to_device_) ==
         k_success;
}

bool CopyLanes::copy_directly(std::span<const CopyRun> runs) {
  return std::all_of(runs.begin(), runs.end(), [&](const CopyRun& run) {
    switch (run.kind) {
      case CopyKind::host_to_device:  // CUDA may return when it has only read the source
        return GPU(Memcpy)(address(run.frame), run.host, bytes_of(run), k_to_device) == k_success && finish(nullptr);
      case CopyKind::device_to_host:
        return GPU(Memcpy)(run.host, address(run.frame), bytes_of(run), k_to_host) == k_success;
      case CopyKind::peer_to_device:
        return copy_from_peer(run) && finish(to_device_);
    }
    return false;
  });
}

bool CopyLanes::fill(Lane& lane, std::span<const CopyRun> runs) {
  std::size_t offset = 0;
  bool out = false;
  for (const CopyRun& run : runs) {
    std::byte* frame = address(run.frame);
    if (run.kind == CopyKind::peer_to_device) {
      if (!copy_from_peer(run)) return false;
      continue;
    }
    if (run.kind == CopyKind::device_to_host) {
      lane.landings[lane.landing_count++] = {run.host, offset, bytes_of(run)};
      if (GPU(MemcpyAsync)(lane.pinned + offset, frame, bytes_of(run), k_to_host, to_host_) != k_success) return false;
      out = true;
      offset += bytes_of(run);
      continue;
    }
    for (std::size_t at = 0; at < bytes_of(run); at += k_piece) {
      const std::size_t n = std::min(k_piece, bytes_of(run) - at);
      std::memcpy(lane.pinned + offset, run.host + at, n);
      if (GPU(MemcpyAsync)(frame + at, lane.pinned + offset, n, k_to_device, to_device_) != k_success) return false;
      offset += n;
    }
  }
  return GPU(EventRecord)(lane.done, out ? to_host_ : to_device_) == k_success;
}

CopyTicket CopyLanes::start(std::span<const CopyRun> runs) {
  std::size_t total = 0;
  bool one_way = true;
  for (const CopyRun& run : runs) {
    total += bytes_of(run);
    one_way = one_way && run.kind == runs[0].kind;
  }
  if (runs.empty()) return 0;
  const std::size_t index = one_way && total <= k_block_size ? take_lane() : k_lanes;
  if (index == k_lanes) return copy_directly(runs) ? 0 : k_failed;
  Lane& lane = lanes_[index];
  lane.landing_count = 0;
  if (fill(lane, runs)) return index + 1;
  // Some of it may be on its way; then, the slow way.
  (void)finish(to_device_);
  (void)finish(to_host_);
  give_lane(index);
  return copy_directly(runs) ? 0 : k_failed;
}

bool CopyLanes::wait(CopyTicket ticket) {
  if (ticket == 0) return true;
  if (ticket == k_failed) return false;
  Lane& lane = lanes_[ticket - 1];
  const bool ok = GPU(EventSynchronize)(lane.done) == k_success || (finish(to_device_) && finish(to_host_));
  if (ok) {
    for (std::size_t i = 0; i < lane.landing_count; ++i) {
      const Landing& landing = lane.landings[i];
      std::memcpy(landing.host, lane.pinned + landing.offset, landing.bytes);
    }
  }
  give_lane(ticket - 1);
  return ok;
}

bool CopyLanes::zero(const PageMask& pages, const Frame* frames) {
  bool ok = true;
  pages.for_each_run([&](unsigned first, unsigned count) {
    for (unsigned page = first; page < first + count;) {
      unsigned end = page + 1;
      while (end < first + count && frames[end] == frames[end - 1] + 1) ++end;
      const std::size_t bytes = (end - page) * k_page_size;
      ok = GPU(MemsetAsync)(address(frames[page]), 0, bytes, to_device_) == k_success && ok;
      page = end;
    }
  });
  return finish(to_device_) && ok;
}

}  // namespace hmmrt::gpu
