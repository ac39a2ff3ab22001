// SPDX-License-Identifier: MIT
// The page table: what unmap() says was written, huge translations and their splitting, rights, recency, its size.
#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

struct Touch {  // writes the pages whose bit is set, reads the others
  gptr<std::uint64_t> base;
  PageMask write;
  std::uint32_t pages;
  void operator()(const item& i) const {
    const auto at = static_cast<std::ptrdiff_t>(i.x * (k_page_size / 8));
    if (i.x >= pages) return;
    if (write.test(static_cast<unsigned>(i.x))) {
      base[at] = i.x;
    } else {
      const std::uint64_t v = base[at];
      (void)v;
    }
  }
};
struct TouchSpan {  // writes elements [first, first + n)
  gptr<std::uint64_t> base;
  std::size_t first, n;
  void operator()(const item&) const {
    with_spans(
        [](std::uint64_t* p, std::size_t, std::size_t k) {
          for (std::size_t i = 0; i < k; ++i) p[i] = 1;
        },
        write(base + static_cast<std::ptrdiff_t>(first), n));
  }
};

class SoftPageTable : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(rig.device.allocate_frames(0, PageMask::all(), frames)); }
  void map_all(Rights rights) { map_one(rig.device, region.base(), frames_span(0, 512, frames[0], rights)); }
  void map_in_pieces() {
    for (unsigned i = 0; i < 512; ++i)
      map_one(rig.device, region.base(), frames_span(i, 1, frames[511 - i], Rights::write));
  }
  Rig rig;
  Region region{1};
  Frame frames[512];
};

PageMask scattered() {
  PageMask m;
  for (unsigned i = 0; i < 512; i += 1 + i % 7) m.set(i);
  return m;
}

TEST_F(SoftPageTable, unmap_reports_exactly_the_written_pages) {
  for (const bool huge : {true, false}) {
    if (huge) {
      map_all(Rights::write);
    } else {
      map_in_pieces();
    }
    const PageMask written = scattered();
    EXPECT_EQ(rig.run({512, 1, 1}, Touch{region.at<std::uint64_t>(), written, 512}).result, HMMRT_SUCCESS);
    const PageMask half = PageMask::range(100, 200);
    EXPECT_EQ(rig.device.unmap(region.base(), half), written & half);
    EXPECT_EQ(rig.device.unmap(region.base(), half), PageMask());  // once
    EXPECT_EQ(rig.device.unmap(region.base(), PageMask::all()), written - half);
    EXPECT_TRUE(rig.device.quiesce(0));
  }
}

TEST_F(SoftPageTable, spans_dirty_exactly_the_pages_they_write) {
  for (const bool huge : {true, false}) {
    if (huge) {
      map_all(Rights::write);
    } else {
      map_in_pieces();
    }
    EXPECT_EQ(rig.run({1, 1, 1}, TouchSpan{region.at<std::uint64_t>(), 511, 2 + 40 * 512}).result, HMMRT_SUCCESS);
    EXPECT_EQ(rig.device.unmap(region.base(), PageMask::all()), PageMask::range(0, 42));
    EXPECT_TRUE(rig.device.quiesce(0));
  }
}

TEST_F(SoftPageTable, a_page_mapped_again_starts_clean) {
  map_all(Rights::write);
  EXPECT_EQ(rig.run({1, 1, 1}, TouchSpan{region.at<std::uint64_t>(), 0, 10}).result, HMMRT_SUCCESS);
  rig.device.unmap(region.base(), PageMask::range(1, 511));
  map_one(rig.device, region.base(), frames_span(1, 511, frames[1], Rights::write));
  EXPECT_EQ(rig.device.unmap(region.base(), PageMask::all()), PageMask::one(0));
}

TEST_F(SoftPageTable, narrowing_keeps_the_written_pages_known) {
  map_all(Rights::write);
  EXPECT_EQ(rig.run({1, 1, 1}, TouchSpan{region.at<std::uint64_t>(), 0, 10}).result, HMMRT_SUCCESS);
  map_all(Rights::read);
  EXPECT_TRUE(rig.device.quiesce(0));
  EXPECT_EQ(rig.device.unmap(region.base(), PageMask::all()), PageMask::one(0));
}

TEST_F(SoftPageTable, a_translation_filled_for_reading_does_not_serve_a_write) {
  map_all(Rights::read);
  Service service(rig.device, rig.bell, region, [&](const DeviceFault& f) {
    EXPECT_EQ(f.access, Access::write);
    map_one(rig.device, region.base(),
            frames_span(page_in_block(f.addr), 1, frames[page_in_block(f.addr)], Rights::write));
    return true;
  });
  struct ReadThenWrite {
    gptr<std::uint64_t> p;
    void operator()(const item&) const { p[1] = p[0] + 1; }
  };
  EXPECT_EQ(rig.run({1, 1, 1}, ReadThenWrite{region.at<std::uint64_t>()}).result, HMMRT_SUCCESS);
  service.stop();
  EXPECT_EQ(service.faults(), 1u);
  EXPECT_EQ(rig.device.unmap(region.base(), PageMask::all()), PageMask::one(0));
}

TEST_F(SoftPageTable, recency_follows_use) {
  Region other(2);
  EXPECT_EQ(rig.device.last_use(region.base()), 0u);
  map_all(Rights::write);
  EXPECT_EQ(rig.device.last_use(region.base()), 0u);
  EXPECT_EQ(rig.run({512, 1, 1}, Touch{region.at<std::uint64_t>(), {}, 512}).result, HMMRT_SUCCESS);
  const std::uint64_t first = rig.device.last_use(region.base());
  EXPECT_GT(first, 0u);
  Frame more[512];
  ASSERT_TRUE(rig.device.allocate_frames(0, PageMask::all(), more));
  map_one(rig.device, other.base(), frames_span(0, 512, more[0], Rights::write));
  EXPECT_EQ(rig.run({512, 1, 1}, Touch{other.at<std::uint64_t>(), {}, 512}).result, HMMRT_SUCCESS);
  EXPECT_GT(rig.device.last_use(other.base()), first);
}

TEST_F(SoftPageTable, metadata_stays_below_half_a_percent) {
  const std::uint64_t before = rig.device.metadata_bytes();
  Region big(64);
  for (unsigned b = 0; b < 64; ++b) {
    map_one(rig.device, big.base() + b * k_block_size, frames_span(0, 512, frames[0], Rights::read));
  }
  EXPECT_LT(rig.device.metadata_bytes() - before, big.bytes() / 400);
}

}  // namespace
}  // namespace hmmrt::test
