// SPDX-License-Identifier: MIT
// Pages move between frames, two devices and system memory while kernels increment: no update may be lost, and what
// unmap() calls clean must be unchanged.
#include <random>

#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

struct AddAll {  // every item adds 1 to one counter on each of `pages` pages
  gptr<std::uint32_t> base;
  std::uint32_t pages;
  bool spans;
  void operator()(const item& i) const {
    for (std::uint32_t k = 0; k < pages; ++k) {
      const std::uint32_t p = static_cast<std::uint32_t>((k + i.x) % pages);
      const gptr<std::uint32_t> c = base + static_cast<std::ptrdiff_t>(p * (k_page_size / 4));
      if (spans) {
        with_spans([](std::uint32_t* x, std::size_t, std::size_t) { __atomic_fetch_add(x, 1u, __ATOMIC_RELAXED); },
                   read_write(c, 1));
      } else {
        atomic_fetch_add(c, 1u);
      }
    }
  }
};

// Moves pages at random among frames and the host array, checking dirty masks, and serves faults.
class Mover {
 public:
  Mover(SoftDevice& device, Region& region, unsigned pages, unsigned seed)
      : device_(device), region_(region), pages_(pages), rng_(seed) {
    frames_.resize(region.pages(), k_no_frame);
    mapped_.resize(region.pages(), false);
  }
  void step() {
    DeviceFault faults[64];
    const std::size_t n = device_.fetch_faults(faults);
    for (std::size_t i = 0; i < n; ++i) {
      const unsigned p = region_.page(faults[i].addr);
      if (!mapped_[p]) map(p);
      device_.replay(block_floor(faults[i].addr), PageMask::one(page_in_block(faults[i].addr)));
    }
    if (n == 0) std::this_thread::yield();
    const unsigned p = rng_() % pages_;
    if (mapped_[p]) move(p);
  }
  std::uint64_t moves() const { return moves_; }
  std::uint32_t value(unsigned p) {
    if (frames_[p] == k_no_frame) return *region_.contents<std::uint32_t>(p * k_page_size);
    return *reinterpret_cast<std::uint32_t*>(device_.frame_address(frames_[p]));
  }

 private:
  void map(unsigned p) {
    if (frames_[p] == k_no_frame) {  // from the host array into a frame
      frames_[p] = allocate_one(device_);
      std::memcpy(device_.frame_address(frames_[p]), region_.contents(p * k_page_size), k_page_size);
    }
    const std::uintptr_t a = region_.address(p);
    map_one(device_, a, frames_span(page_in_block(a), 1, frames_[p], Rights::write));
    mapped_[p] = true;
  }
  void move(unsigned p) {
    const std::uintptr_t a = region_.address(p);
    const bool dirty = device_.unmap(block_floor(a), PageMask::one(page_in_block(a))).any();
    ASSERT_TRUE(device_.quiesce(0));
    mapped_[p] = false;
    ++moves_;
    std::byte* old = device_.frame_address(frames_[p]);
    if (dirty) {
      std::memcpy(region_.contents(p * k_page_size), old, k_page_size);
    } else {
      EXPECT_EQ(std::memcmp(old, region_.contents(p * k_page_size), k_page_size), 0);
    }
    std::memset(old, 0xee, k_page_size);  // whoever still reads it is found out
    device_.free_frames(PageMask::one(0), &frames_[p]);
    frames_[p] = k_no_frame;
    if (rng_() % 2 == 0) map(p);
  }

  SoftDevice& device_;
  Region& region_;
  unsigned pages_;  // the first ones only
  std::mt19937 rng_;
  std::vector<Frame> frames_;
  std::vector<bool> mapped_;
  std::uint64_t moves_ = 0;
};

void no_update_is_lost(SoftDeviceConfig config, bool spans) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Rig rig(config);
  Region region(1);
  constexpr std::uint32_t pages = 8;
  Mover mover(rig.device, region, pages, seed);
  constexpr std::uint32_t items = 500;
  for (int round = 0; round < 4; ++round) {
    ASSERT_TRUE(launch(rig.device, rig.queue, {items, 1, 1}, AddAll{region.at<std::uint32_t>(), pages, spans}).ok());
  }
  while (!rig.device.idle(rig.queue)) mover.step();
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
  for (unsigned p = 0; p < pages; ++p) EXPECT_EQ(mover.value(p), 4 * items);
  EXPECT_GT(mover.moves(), 0u);
}

TEST(SoftQuiesce, moving_pages_under_atomics_loses_no_update) { no_update_is_lost(Rig::small(), false); }
TEST(SoftQuiesce, moving_pages_under_spans_loses_no_update) { no_update_is_lost(Rig::small(), true); }
TEST(SoftQuiesce, moving_pages_without_membarrier_loses_no_update) {
  SoftDeviceConfig c = Rig::small();
  c.use_membarrier = false;
  no_update_is_lost(c, false);
}
TEST(SoftQuiesce, a_slow_quiesce_is_only_slow) {
  SoftDeviceConfig c = Rig::small();
  c.inject.quiesce_slow.every = 50;
  c.inject.slow_quiesce_ns = 20'000;
  no_update_is_lost(c, false);
}

TEST(SoftQuiesce, does_not_wait_for_stalled_waves) {
  Rig rig;
  Region region(1);
  ASSERT_TRUE(launch(rig.device, rig.queue, {64 * 8, 1, 1}, AddAll{region.at<std::uint32_t>(), 4, false}).ok());
  while (rig.device.stalled_waves() < 8) std::this_thread::yield();
  EXPECT_TRUE(rig.device.quiesce(0));
  Service service(rig.device, rig.bell, region);
  rig.device.replay_all();
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
}

TEST(SoftQuiesce, gives_up_in_time_on_an_access_that_does_not_end) {
  Rig rig;
  Region region(1);
  map_one(rig.device, region.base(), frames_span(0, 1, allocate_one(rig.device), Rights::write));
  struct Gate {
    std::atomic<bool> inside{false}, open{false};
  } gate;
  struct Hold {
    gptr<int> p;
    Gate* gate;
    void operator()(const item&) const {
      with_spans(
          [this](int*, std::size_t, std::size_t) {
            gate->inside.store(true);
            while (!gate->open.load()) {
            }
          },
          read_write(p, 1));
    }
  };
  ASSERT_TRUE(launch(rig.device, rig.queue, {1, 1, 1}, Hold{region.at<int>(), &gate}).ok());
  while (!gate.inside.load()) std::this_thread::yield();
  EXPECT_FALSE(rig.device.quiesce(100'000));
  gate.open.store(true);
  EXPECT_TRUE(rig.device.quiesce(0));
  EXPECT_EQ(rig.device.synchronize(rig.queue).result, HMMRT_SUCCESS);
}

}  // namespace
}  // namespace hmmrt::test
