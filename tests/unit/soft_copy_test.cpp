// SPDX-License-Identifier: MIT
// Copy engines, peers, the link model, injected failures.
#include <cstring>

#include "device/soft/stream_copy.hpp"
#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

CopyRun copy_run(CopyKind kind, Frame frame, std::byte* host, std::uint32_t pages) {
  CopyRun r;
  r.kind = kind;
  r.frame = frame;
  r.host = host;
  r.pages = pages;
  return r;
}

TEST(SoftCopy, bytes_arrive_both_ways) {
  Rig rig;
  Frame frames[512];
  ASSERT_TRUE(rig.device.allocate_frames(0, PageMask::all(), frames));
  std::vector<std::byte> in(k_block_size);
  std::vector<std::byte> out(k_block_size);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::byte>(i * 31 >> 4);
  const CopyRun there[] = {copy_run(CopyKind::host_to_device, frames[0], in.data(), 100),
                           copy_run(CopyKind::host_to_device, frames[100], in.data() + 100 * k_page_size, 412)};
  EXPECT_TRUE(rig.device.wait_copy(rig.device.copy_async(there)));
  const CopyRun back[] = {copy_run(CopyKind::device_to_host, frames[0], out.data(), 512)};
  EXPECT_TRUE(rig.device.wait_copy(rig.device.copy_async(back)));
  EXPECT_EQ(in, out);
}

TEST(SoftCopy, streams_every_size_and_alignment_like_memcpy) {
  constexpr std::size_t k_room = 3 * k_block_size;
  std::vector<std::byte> from(k_room);
  std::vector<std::byte> to(k_room);
  for (std::size_t i = 0; i < k_room; ++i) from[i] = static_cast<std::byte>(i * 131 >> 3);
  auto* const line =
      reinterpret_cast<std::byte*>(reinterpret_cast<std::uintptr_t>(to.data() + 4096) & ~std::uintptr_t{63});
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, k_page_size, 8 * k_page_size, 9 * k_page_size,
                                  8 * k_page_size + 8, k_block_size}) {
    for (const std::size_t shift : {std::size_t{0}, std::size_t{8}, std::size_t{64}}) {
      for (const std::size_t skew : {std::size_t{0}, std::size_t{3}}) {
        std::memset(to.data(), 0x77, k_room);
        std::byte* const at = line + shift;
        stream_copy(at, from.data() + skew, bytes);
        EXPECT_EQ(std::memcmp(at, from.data() + skew, bytes), 0) << bytes << " bytes, shifted by " << shift;
        EXPECT_EQ(at[-1], std::byte{0x77});
        EXPECT_EQ(at[bytes], std::byte{0x77});
      }
    }
  }
}

struct Read {
  gptr<std::uint64_t> from, to;
  void operator()(const item&) const { *to = *from; }
};

TEST(SoftCopy, peers_copy_and_map_each_others_frames) {
  auto peers = std::make_shared<SoftPeers>();
  SoftDeviceConfig a = Rig::small();
  a.peers = peers;
  SoftDeviceConfig b = a;
  b.processor = device_processor(1);
  b.name = "soft:1";
  Rig first(a);
  Rig second(b);
  EXPECT_TRUE(first.device.info().caps.peer);
  EXPECT_TRUE(first.device.info().caps.peer_copy);
  EXPECT_EQ(second.device.info().name, "soft:1");
  const Frame theirs = allocate_one(first.device);
  const Frame ours = allocate_one(second.device);
  *reinterpret_cast<std::uint64_t*>(first.device.frame_address(theirs)) = 42;
  CopyRun r = copy_run(CopyKind::peer_to_device, ours, nullptr, 1);
  r.peer = device_processor(0);
  r.peer_frame = theirs;
  EXPECT_TRUE(second.device.wait_copy(second.device.copy_async(std::span(&r, 1))));
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(second.device.frame_address(ours)), 42u);

  Region region(1);
  MapSpan span = frames_span(0, 1, theirs, Rights::read);
  span.target = Target::peer;
  span.peer = device_processor(0);
  map_one(second.device, region.base(), span);
  map_one(second.device, region.base(), frames_span(1, 1, ours, Rights::write));
  *reinterpret_cast<std::uint64_t*>(first.device.frame_address(theirs)) = 43;
  EXPECT_EQ(second.run({1, 1, 1}, Read{region.at<std::uint64_t>(), region.at<std::uint64_t>(k_page_size)}).result,
            HMMRT_SUCCESS);
  EXPECT_EQ(*reinterpret_cast<std::uint64_t*>(second.device.frame_address(ours)), 43u);
  EXPECT_EQ(second.device.remote_accesses(), 1u);
}

TEST(SoftCopy, injected_failures_are_said_and_touch_no_destination) {
  SoftDeviceConfig c = Rig::small();
  c.inject.copy_fails.every = 3;
  c.inject.allocation_fails.every = 4;
  Rig rig(c);
  const Frame frame = allocate_one(rig.device);
  ASSERT_NE(frame, k_no_frame);
  std::vector<std::byte> in(k_page_size, std::byte{1});
  std::vector<std::byte> out(k_page_size, std::byte{9});
  const CopyRun there = copy_run(CopyKind::host_to_device, frame, in.data(), 1);
  const CopyRun back = copy_run(CopyKind::device_to_host, frame, out.data(), 1);
  EXPECT_TRUE(rig.device.wait_copy(rig.device.copy_async(std::span(&there, 1))));
  EXPECT_TRUE(rig.device.wait_copy(rig.device.copy_async(std::span(&there, 1))));
  EXPECT_FALSE(rig.device.wait_copy(rig.device.copy_async(std::span(&back, 1))));
  EXPECT_EQ(out[0], std::byte{9});
  int full = 0;
  for (int i = 0; i < 40; ++i) full += allocate_one(rig.device) == k_no_frame ? 1 : 0;
  EXPECT_EQ(full, 10);
  EXPECT_EQ(rig.device.injected_failures(), 11u);
}

TEST(SoftCopy, the_link_model_makes_copies_queue_and_lets_the_cpu_go_on) {
  SoftDeviceConfig c = Rig::small();
  c.link.enabled = true;
  c.link.latency_ns = 1'000'000;
  c.link.to_device_bytes_per_ns = 1;
  c.link.map_ns = 3'000'000;
  Rig rig(c);
  const Frame frame = allocate_one(rig.device);
  std::vector<std::byte> in(k_page_size, std::byte{7});
  const CopyRun run = copy_run(CopyKind::host_to_device, frame, in.data(), 1);
  const std::uint64_t start = rig.clock.now_ns();
  CopyTicket tickets[3];
  for (CopyTicket& t : tickets) t = rig.device.copy_async(std::span(&run, 1));
  const std::uint64_t issued = rig.clock.now_ns();
  Region region(1);
  map_one(rig.device, region.base(), frames_span(0, 1, frame, Rights::write));  // 3 ms, beside the copies
  const std::uint64_t mapped = rig.clock.now_ns();
  for (const CopyTicket t : tickets) EXPECT_TRUE(rig.device.wait_copy(t));
  const std::uint64_t end = rig.clock.now_ns();
  EXPECT_GE(mapped - issued, 3'000'000u);
  EXPECT_GE(end - start, 3u * (1'000'000 + k_page_size));  // one engine: one after another
  // Done by then: the waits cost nothing on top of the mapping but what the model still owed.
  EXPECT_LT(end - mapped, end - start - 2'000'000);
}

TEST(SoftCopy, the_link_model_delays_a_replayed_access) {
  SoftDeviceConfig c = Rig::small();
  c.link.enabled = true;
  c.link.fault_ns = 2'000'000;
  Rig rig(c);
  Region region(1);
  Service service(rig.device, rig.bell, region);
  const std::uint64_t start = rig.clock.now_ns();
  EXPECT_EQ(rig.run({1, 1, 1}, Read{region.at<std::uint64_t>(), region.at<std::uint64_t>(8)}).result, HMMRT_SUCCESS);
  EXPECT_GE(rig.clock.now_ns() - start, 4'000'000u);  // a read fault, then a write fault
}

}  // namespace
}  // namespace hmmrt::test
