// SPDX-License-Identifier: MIT
// The copy engines of a real GPU, both directions at once. Managed memory is pageable, which a GPU copies slowly and one
// piece at a time, so bytes go by way of pinned lanes: while one piece crosses the bus, the CPU fills or empties the next.
// Frames of other GPUs come through no lane's memory: the vendor's runtime copies them, over what connects the two or by
// staging them itself.
// Thread: any; set_peer() only while nothing is copied.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "device/device.hpp"
#include "device/gpu/gpu_api.hpp"

namespace hmmrt::gpu {

class CopyLanes {
 public:
  static constexpr std::size_t k_lanes = 16;  // blocks on their way at once, each way; more are copied without
  static constexpr std::size_t k_piece = std::size_t{512} << 10;

  struct Pool {                  // of a GPU's frames
    std::byte* first = nullptr;  // frame 0
    int ordinal = -1;            // as the vendor counts
  };

  Error open(const Pool& pool);
  ~CopyLanes();

  const Pool& pool() const { return pool_; }
  // Where frames of `peer` are; no Pool{}: nowhere any more.
  void set_peer(Processor peer, const Pool& pool) { peers_[peer] = pool; }

  CopyTicket start(std::span<const CopyRun> runs);
  bool wait(CopyTicket ticket);
  // Clears frames, and waits for it.
  bool zero(const PageMask& pages, const Frame* frames);

 private:
  struct Landing {  // of bytes that came into the lane
    std::byte* host;
    std::size_t offset, bytes;
  };
  struct Lane {
    std::byte* pinned = nullptr;
    Event done{};
    std::array<Landing, k_block_pages> landings;
    std::size_t landing_count = 0;
  };
  static constexpr CopyTicket k_failed = ~CopyTicket{0};

  std::size_t take_lane();
  void give_lane(std::size_t lane);
  bool copy_directly(std::span<const CopyRun> runs);
  bool fill(Lane& lane, std::span<const CopyRun> runs);
  bool copy_from_peer(const CopyRun& run);
  std::byte* address(Frame frame) const { return pool_.first + std::size_t{frame} * k_page_size; }

  Pool pool_;
  std::array<Pool, k_max_processors> peers_;
  Stream to_device_{}, to_host_{};
  std::vector<Lane> lanes_;
  std::mutex lock_;
  std::vector<std::size_t> free_;
};

}  // namespace hmmrt::gpu
