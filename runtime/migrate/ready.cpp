// SPDX-License-Identifier: MIT
#include "migrate/ready.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "migrate/coherence.hpp"
#include "migrate/pieces.hpp"

namespace hmmrt {

namespace {

constexpr unsigned k_patience = 3;         // attempts before the CPU is given its way
constexpr unsigned k_emptying_rounds = 8;  // over the device's blocks, to empty it

// What a kernel may use of a block: pages that the CPU's mapping gives no right to are none of its business.
PageMask usable(const Block& block, const PageMask& pages) { return (pages & block.valid) - block.no_access; }

// Those of them that a kernel can use, in memory of the device or (remote) of the system. What the CPU's mapping only lets
// read is there as a copy: nothing stops the kernel from writing to it, but nobody else will see that.
PageMask reached(const Block& block, Processor p, bool remote) {
  const DevicePart* part = block.part(p);
  if (part == nullptr) return {};
  const PageMask mapped = part->mapped & (part->writable | (block.read_only & block.on_cpu));
  return remote ? mapped & part->remote : (mapped & part->resident) - part->remote;
}

// The blocks as they are, each under its claim.
struct Survey {
  std::uintptr_t begin = ~std::uintptr_t{0}, end = 0;
  std::uint64_t pages = 0, ping_pong = 0, pinned = 0, read_only = 0;
  std::vector<Extent> protected_elsewhere;  // to come home first
  std::vector<Piece> away;                  // not as it must be in device memory
  bool remote = true;                       // all is mapped where it is, in system memory
  std::shared_ptr<ReadyPages> ready = std::make_shared<ReadyPages>();
};

Survey survey(House& house, const std::vector<Piece>& pieces, Processor p) {
  Survey out;
  out.ready->unmaps = house.device(p).unmaps();
  out.ready->pages.reserve(pieces.size());
  const std::uint64_t now = house.clock.now_ns();
  for (const Piece& piece : pieces) {
    Block* block = house.space.find(piece.base);
    if (block == nullptr) continue;
    block->claim();
    const PageMask pages = usable(*block, piece.pages);
    if (pages.any()) {
      out.begin = std::min(out.begin, block->base);
      out.end = std::max(out.end, block->base + k_block_size);
      out.pages += pages.count();
      out.pinned += (pages & block->pinned).count();
      out.read_only += (pages & block->read_only).count();
      ((pages & block->read_only) - block->on_cpu).for_each_run([&](unsigned first, unsigned count) {
        out.protected_elsewhere.push_back({block->base + first * k_page_size, count * k_page_size});
      });
      if (house.policy.ping_pong(block->history, now)) out.ping_pong += pages.count();
      const bool here = reached(*block, p, false).contains(pages) && block->on_cpu.contains(pages & block->read_only);
      if (!here) out.away.push_back(piece);
      out.remote = out.remote && reached(*block, p, true).contains(pages);
      out.ready->pages.push_back({piece.base, pages, pages - block->read_only});
    }
    release(house, *block);
  }
  return out;
}

// Puts [begin, end) into the device's window, evicting everything if it has to move. `never`: it cannot be.
Device::Reach reach(House& house, Work& spare, Processor p, std::uintptr_t begin, std::uintptr_t end) {
  Device& device = house.device(p);
  Device::Reach answer = device.reach(begin, end);
  for (unsigned i = 0; answer == Device::Reach::once_empty && i < k_emptying_rounds; ++i) {
    (void)make_room(house, p, device.info().memory_bytes / k_page_size, Cause::prefetch_user, spare);
    answer = device.reach(begin, end);
  }
  return answer;
}

class ReadyJobs final : public Jobs {
 public:
  ReadyJobs(House& house, const std::vector<Piece>& pieces, Processor p, bool remote, bool anew)
      : house_(house), pieces_(pieces), p_(p), remote_(remote), anew_(anew) {}

  bool plan(std::size_t i, Work& work) override {
    Block* block = house_.space.find(pieces_[i].base);
    if (block == nullptr) return false;
    block->claim();
    PageMask missing = usable(*block, pieces_[i].pages);
    if (!anew_) missing = missing - reached(*block, p_, remote_);
    if (missing.none()) {
      release(house_, *block);
      return false;
    }
    work.block = block;
    work.to = p_;
    work.cause = Cause::fault;
    work.started_ns = house_.clock.now_ns();
    if (remote_) {
      work.remote = missing;
    } else {
      work.pages = missing - block->read_only;
      work.duplicate = missing & block->read_only;
    }
    work.write = missing - block->read_only;
    work.faulted = missing;
    return true;
  }
  void done(std::size_t, Work&) override {}

 private:
  House& house_;
  const std::vector<Piece>& pieces_;
  Processor p_;
  bool remote_, anew_;
};

}  // namespace

bool bring_within_reach(House& house, PipelinePool& pool, std::span<const Extent> extents, Processor p) {
  if (!house.device(p).info().caps.placed) return true;
  const Borrowed pipeline(pool);
  std::uintptr_t begin = ~std::uintptr_t{0}, end = 0;
  for (const Extent& e : extents) {
    begin = std::min(begin, e.addr);
    end = std::max(end, e.end());
  }
  return reach(house, pipeline->spare(), p, begin, end) == Device::Reach::now;
}

Status make_ready(House& house, PipelinePool& pool, std::span<const Extent> extents, Processor p, unsigned attempt,
                  std::shared_ptr<const ReadyPages>* out) {
  out->reset();
  Device& device = house.device(p);
  const Borrowed pipeline(pool);
  const std::vector<Piece> pieces = pieces_of(extents);
  Survey found = survey(house, pieces, p);
  Device::Reach where = Device::Reach::now;
  if (found.pages != 0 && found.pinned == 0) where = reach(house, pipeline->spare(), p, found.begin, found.end);
  // What the CPU may only read cannot be pinned for a device, which might write: it is used as a copy there, or not at all.
  const bool can_be_remote = device.info().caps.remote_mapping && found.read_only == 0;
  const bool remote = can_be_remote && (found.pinned != 0 || where == Device::Reach::never ||
                                        found.ping_pong * 2 > found.pages || attempt >= k_patience);
  if (!can_be_remote && (found.pinned != 0 || where == Device::Reach::never)) {
    std::array<char, 160> why{};
    if (device.info().caps.remote_mapping) {
      (void)std::snprintf(why.data(), why.size(),
                          "with %llu pages among them that the CPU may only read, they cannot be mapped",
                          static_cast<unsigned long long>(found.read_only));
    } else {
      (void)std::snprintf(why.data(), why.size(), "this device cannot map them");
    }
    if (found.pinned != 0) {
      return fail(HMMRT_ERROR_PINNED,
                  "%llu of its pages are pinned in system memory, and %s there; unpin them first, or declare what the "
                  "kernel uses (hmmrt_kernel_t.extents)",
                  static_cast<unsigned long long>(found.pinned), why.data());
    }
    return fail(HMMRT_ERROR_DEVICE_FULL,
                "it may touch %llu MiB, from %#zx to %#zx, more than the device's %llu MiB reach, and %s in system "
                "memory; declare what the kernel uses (hmmrt_kernel_t.extents), or raise device_memory",
                static_cast<unsigned long long>(found.pages >> 8), found.begin, found.end,
                static_cast<unsigned long long>(device.info().memory_bytes >> 20), why.data());
  }
  if (!remote && where != Device::Reach::now) return {};

  const bool anew = remote && attempt != 0;
  if (anew || (remote ? !found.remote : !found.away.empty())) {
    if (remote) {
      (void)prefetch(house, pool, extents, k_cpu, Cause::fault);
    } else if (!found.protected_elsewhere.empty()) {
      (void)prefetch(house, pool, found.protected_elsewhere, k_cpu, Cause::fault);
    }
    const std::vector<Piece>& wanted = remote ? pieces : found.away;
    ReadyJobs jobs(house, wanted, p, remote, anew);
    pipeline->run(wanted.size(), jobs);
    const Survey now = survey(house, wanted, p);
    if (remote ? !now.remote : !now.away.empty()) return {};
    for (auto at = found.ready->pages.begin(); const ReadyPages::InBlock& block : now.ready->pages) {
      at = std::find_if(at, found.ready->pages.end(), [&](const auto& before) { return before.base == block.base; });
      if (at == found.ready->pages.end()) return {};  // there since a moment ago: once more
      *at = block;
    }
  }
  found.ready->remote = remote;
  *out = std::move(found.ready);
  return {};
}

}  // namespace hmmrt
