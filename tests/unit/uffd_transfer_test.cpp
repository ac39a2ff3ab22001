// SPDX-License-Identifier: MIT
// Withdrawing and delivering, on both paths and with devices the CPU can and cannot address.
#include "uffd_fixture.hpp"

namespace hmmrt::test {
namespace {

class UffdTransfer : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Paths, UffdTransfer, testing::ValuesIn(k_variants), variant_name);

TEST_P(UffdTransfer, contents_survive_the_round_trip_at_every_granule) {
  for (const unsigned granule : {1u, 16u, 512u}) {
    World w(GetParam(), 1);
    ASSERT_NE(w.memory, nullptr) << failure_detail();
    w.fill(3);
    for (unsigned round = 0; round < 3; ++round) {
      for (unsigned at = 0; at < k_block_pages; at += granule) {
        const PageMask pages = PageMask::range(at, granule);
        ASSERT_EQ(w.to_device(pages).done, pages) << granule << " at " << at << " round " << round;
        pages.for_each([&](unsigned i) { ASSERT_TRUE(all_bytes(w.frame(i), 3 + i + round)) << i; });
        pages.for_each([&](unsigned i) { memset(w.frame(i), static_cast<int>((4 + i + round) & 0xff), k_page_size); });
      }
      for (unsigned at = 0; at < k_block_pages; at += granule) {
        const PageMask pages = PageMask::range(at, granule);
        ASSERT_EQ(w.to_host(pages).done, pages) << granule << " at " << at << " round " << round;
      }
      for (unsigned i = 0; i < k_block_pages; ++i) ASSERT_TRUE(all_bytes(w.page(i), 4 + i + round)) << i;
    }
    EXPECT_EQ(w.fault_count(), 0u);
    EXPECT_EQ(w.count(HostEventKind::remove), 0u) << "our own removals must not be reported";
  }
}

TEST_P(UffdTransfer, mixed_granules_keep_contents) {
  World w(GetParam(), 1);
  w.fill(9);
  std::array<unsigned, k_block_pages> model;
  for (unsigned i = 0; i < k_block_pages; ++i) model[i] = 9 + i;
  unsigned seed = 12345;
  PageMask away;
  for (unsigned step = 0; step < 200; ++step) {
    seed = seed * 1664525u + 1013904223u;
    const unsigned size = 1u << ((seed >> 8) % 10);
    const unsigned first = ((seed >> 16) % (k_block_pages / size)) * size;
    const PageMask range = PageMask::range(first, size);
    if ((seed & 64) != 0) {
      const PageMask pages = range - away;
      ASSERT_EQ(w.to_device(pages).done, pages) << step;
      pages.for_each([&](unsigned i) {
        ASSERT_TRUE(all_bytes(w.frame(i), model[i])) << step << " page " << i;
        memset(w.frame(i), static_cast<int>(++model[i] & 0xff), k_page_size);
      });
      away |= pages;
    } else {
      const PageMask pages = range & away;
      ASSERT_EQ(w.to_host(pages).done, pages) << step;
      pages.for_each([&](unsigned i) { ASSERT_TRUE(all_bytes(w.page(i), model[i])) << step << " page " << i; });
      away = away - pages;
    }
  }
}

TEST_P(UffdTransfer, touch_of_a_withdrawn_page_faults_and_resumes_with_the_devices_contents) {
  World w(GetParam(), 1);
  w.fill(1);
  ASSERT_TRUE(w.to_device(PageMask::all()).done.full());
  memset(w.frame(7), 0x5a, k_page_size);
  EXPECT_TRUE(all_bytes(w.page(7), 0x5a));
  w.page(8)[0] = std::byte{0x11};
  EXPECT_EQ(w.page(8)[0], std::byte{0x11});
  EXPECT_EQ(w.page(8)[1], static_cast<std::byte>(1 + 8));
  const HostEvent read = w.await([&](const HostEvent& e) { return page_in_block(e.addr) == 7; });
  const HostEvent write = w.await([&](const HostEvent& e) { return page_in_block(e.addr) == 8; });
  EXPECT_EQ(read.access, Access::read);
  EXPECT_EQ(write.access, Access::write);
  EXPECT_FALSE(write.write_protected);
  EXPECT_EQ(read.thread, static_cast<std::uint32_t>(gettid()));
}

TEST_P(UffdTransfer, never_touched_pages_are_not_populated_and_read_as_zero_afterwards) {
  World w(GetParam(), 1);
  memset(w.page(4), 4, k_page_size);  // may be a huge page: then everything is populated
  madvise(w.page(8), k_page_size, MADV_DONTNEED);
  const PageOutcome out = w.to_device(PageMask::range(0, 16));
  EXPECT_EQ(out.taken(), PageMask::range(0, 16));
  EXPECT_TRUE(out.not_populated.test(8));
  EXPECT_TRUE(out.done.test(4));
  EXPECT_EQ(w.to_host(PageMask::range(0, 16)).done, PageMask::range(0, 16));
  EXPECT_TRUE(all_bytes(w.page(8), 0));
  EXPECT_TRUE(all_bytes(w.page(4), 4));
}

TEST_P(UffdTransfer, wholly_untouched_block_copies_nothing) {
  World w(GetParam(), 1);
  Transfer t = w.transfer(Direction::to_device, PageMask::all());
  ASSERT_TRUE(w.run_transfer(t));
  EXPECT_TRUE(t.outcome.not_populated.full());
  EXPECT_TRUE(t.copied.none());
  ASSERT_TRUE(w.device.zero_frames(PageMask::all(), w.frames()));
  memset(w.frame(3), 0x33, k_page_size);
  EXPECT_TRUE(w.to_host(PageMask::all()).done.full());
  EXPECT_TRUE(all_bytes(w.page(3), 0x33));
  EXPECT_TRUE(all_bytes(w.page(511), 0));
}

TEST_P(UffdTransfer, native_first_touch_makes_no_events_before_the_first_withdrawal) {
  World w(GetParam(), 2);
  w.fill(1);
  EXPECT_EQ(w.fault_count(), 0u);
  w.to_device(PageMask::one(0));
  w.page(0, 1)[0] = std::byte{1};  // now it is armed: served by populate()
  EXPECT_EQ(w.fault_count(), 1u);
}

TEST_P(UffdTransfer, duplicate_keeps_the_cpu_reading_and_a_write_collapses_it) {
  World w(GetParam(), 1);
  w.fill(2);
  ASSERT_TRUE(w.to_device(PageMask::all(), true).done.full());
  for (unsigned i = 0; i < k_block_pages; ++i) {
    ASSERT_TRUE(all_bytes(w.frame(i), 2 + i));
    ASSERT_TRUE(all_bytes(w.page(i), 2 + i));
  }
  EXPECT_EQ(w.fault_count(), 0u);
  w.page(5)[0] = std::byte{0x77};
  const HostEvent e = w.await(HostEventKind::fault);
  EXPECT_TRUE(e.write_protected);
  EXPECT_EQ(e.access, Access::write);
  EXPECT_EQ(w.page(5)[0], std::byte{0x77});
  w.page(5)[1] = std::byte{0x78};
  EXPECT_EQ(w.fault_count(), 1u);
}

TEST_P(UffdTransfer, duplicate_of_an_untouched_page_is_populated_first_and_then_guarded) {
  World w(GetParam(), 1);
  ASSERT_EQ(w.to_device(PageMask::range(0, 4), true).done, PageMask::range(0, 4));
  EXPECT_TRUE(all_bytes(w.frame(2), 0));
  EXPECT_TRUE(all_bytes(w.page(2), 0));
  w.page(2)[0] = std::byte{1};
  EXPECT_TRUE(w.await(HostEventKind::fault).write_protected);
}

TEST_P(UffdTransfer, read_only_delivery_lets_the_cpu_read_and_reports_its_write) {
  World w(GetParam(), 1);
  w.fill(2);
  w.to_device(PageMask::all());
  ASSERT_EQ(w.to_host(PageMask::range(0, 32), true).done, PageMask::range(0, 32));
  for (unsigned i = 0; i < 32; ++i) ASSERT_TRUE(all_bytes(w.page(i), 2 + i));
  EXPECT_EQ(w.fault_count(), 0u);
  w.page(9)[0] = std::byte{1};
  EXPECT_TRUE(w.await(HostEventKind::fault).write_protected);
  // And such a page can be withdrawn again.
  EXPECT_EQ(w.to_device(PageMask::range(0, 32)).done, PageMask::range(0, 32));
  EXPECT_TRUE(all_bytes(w.frame(10), 12));
}

TEST_P(UffdTransfer, failed_copy_rolls_back_to_device) {
  World w(GetParam(), 1);
  w.fill(6);
  Transfer t = w.transfer(Direction::to_device, PageMask::all());
  w.mirror->prepare(t);
  w.mirror->copy(t);
  w.mirror->rollback(t);
  for (unsigned i = 0; i < k_block_pages; ++i) ASSERT_TRUE(all_bytes(w.page(i), 6 + i));
  w.page(0)[0] = std::byte{1};
  EXPECT_EQ(w.fault_count(), 0u);
}

TEST_P(UffdTransfer, failed_copy_rolls_back_to_host) {
  World w(GetParam(), 1);
  w.fill(6);
  w.to_device(PageMask::all());
  Transfer t = w.transfer(Direction::to_host, PageMask::range(0, 100));
  w.mirror->prepare(t);
  w.mirror->copy(t);
  w.mirror->rollback(t);
  EXPECT_TRUE(w.to_host(PageMask::all()).done.full());
  for (unsigned i = 0; i < k_block_pages; ++i) ASSERT_TRUE(all_bytes(w.page(i), 6 + i));
}

TEST_P(UffdTransfer, clean_pages_come_back_without_copying_where_staging_kept_them) {
  World w(GetParam(), 1);
  w.fill(6);
  w.to_device(PageMask::all());
  Transfer t = w.transfer(Direction::to_host, PageMask::all());
  t.clean = PageMask::all();
  ASSERT_TRUE(w.run_transfer(t));
  EXPECT_TRUE(t.outcome.done.full());
  EXPECT_EQ(t.copied.none(), w.move());
  for (unsigned i = 0; i < k_block_pages; ++i) ASSERT_TRUE(all_bytes(w.page(i), 6 + i));
}

TEST_P(UffdTransfer, give_back_returns_kept_pages_and_says_which_it_has_not) {
  World w(GetParam(), 1);
  w.fill(6);
  madvise(w.page(100), k_page_size, MADV_DONTNEED);
  w.to_device(PageMask::all());
  const PageOutcome out = w.claimed()->give_back(w.base(), PageMask::all());
  EXPECT_TRUE(out.not_populated.test(100));
  if (w.move()) {
    EXPECT_EQ(out.done.count(), 511u);
    EXPECT_TRUE(all_bytes(w.page(99), 6 + 99));
  } else {
    EXPECT_EQ(out.forbidden.count(), 511u);
    EXPECT_EQ(w.to_host(PageMask::all()).done.count(), 512u);
    EXPECT_TRUE(all_bytes(w.page(99), 6 + 99));
  }
}

TEST_P(UffdTransfer, exclusive_pages_are_reachable_only_by_their_exclusive_address) {
  World w(GetParam(), 1);
  w.fill(6, 2);
  w.hold_faults(true);
  const PageMask pages = PageMask::range(0, 3);
  const PageOutcome out = w.claimed()->make_exclusive(w.base(), pages);
  ASSERT_EQ(out.done, pages);
  std::byte* const p = w.mirror->exclusive_address(w.base());
  ASSERT_NE(p, nullptr);
  EXPECT_TRUE(all_bytes(p, 6));
  EXPECT_TRUE(all_bytes(p + 2 * k_page_size, 0));
  memset(p, 0x66, k_page_size);
  std::thread toucher([&] { EXPECT_TRUE(all_bytes(w.page(0), 0x66)); });
  w.await(HostEventKind::fault);
  EXPECT_EQ(w.claimed()->give_back(w.base(), pages).done, pages);
  toucher.join();
  EXPECT_TRUE(all_bytes(w.page(1), 7));
}

TEST_P(UffdTransfer, populate_gives_zeros_and_leaves_present_pages) {
  World w(GetParam(), 2);
  w.to_device(PageMask::one(0));
  EXPECT_TRUE(w.claimed()->populate(w.base(1), PageMask::all()).done.full());
  w.page(3, 1)[0] = std::byte{3};
  EXPECT_TRUE(w.claimed()->populate(w.base(1), PageMask::all()).done.full());
  EXPECT_EQ(w.page(3, 1)[0], std::byte{3});
  EXPECT_EQ(w.page(511, 1)[0], std::byte{0});
  EXPECT_EQ(w.fault_count(), 0u);
}

TEST_P(UffdTransfer, a_watched_drop_is_pending_until_the_kernel_has_cleared_the_page) {
  World w(GetParam(), 1);
  w.fill(1);
  const PageMask pages = PageMask::range(0, 4);
  w.claimed()->watch_drop(w.base(), pages);
  EXPECT_EQ(w.claimed()->drop_pending(w.base(), pages), pages);
  ASSERT_EQ(madvise(w.page(0), 2 * k_page_size, MADV_DONTNEED), 0);
  EXPECT_TRUE(all_bytes(w.page(0), 0));  // touched again: not the old page
  EXPECT_EQ(w.claimed()->drop_pending(w.base(), pages), PageMask::range(2, 2));
}

// The fallback watches a range for missing pages only until one of it has to be write-protected.
TEST_P(UffdTransfer, whole_blocks_duplicates_and_watched_drops_follow_each_other) {
  World w(GetParam(), 2);
  w.fill(1, 2 * k_block_pages);
  const auto goes_and_returns = [&](unsigned block) {
    ASSERT_TRUE(w.to_device(PageMask::all(), false, block).taken().full());
    ASSERT_TRUE(w.to_host(PageMask::all(), false, {}, block).done.full());
  };
  goes_and_returns(0);
  ASSERT_TRUE(w.to_device(PageMask::all(), false, 1).done.full());  // away while the range changes
  ASSERT_TRUE(w.to_device(PageMask::all(), true, 0).done.full());
  w.page(7)[0] = std::byte{0x42};
  EXPECT_TRUE(w.await(HostEventKind::fault).write_protected);
  goes_and_returns(0);
  ASSERT_TRUE(w.to_host(PageMask::all(), true, {}, 1).done.full());
  w.forget_events();
  w.page(3, 1)[0] = std::byte{0x43};
  EXPECT_TRUE(w.await(HostEventKind::fault).write_protected);
  w.claimed()->watch_drop(w.base(), PageMask::one(9));
  ASSERT_EQ(madvise(w.page(9), k_page_size, MADV_DONTNEED), 0);
  EXPECT_TRUE(w.claimed()->drop_pending(w.base(), PageMask::one(9)).none());
  goes_and_returns(0);
  for (unsigned i = 0; i < 2 * k_block_pages; ++i) {
    const auto first = static_cast<std::byte>(i == 7                   ? 0x42
                                              : i == k_block_pages + 3 ? 0x43
                                              : i == 9                 ? 0
                                                                       : (1 + i) & 0xff);
    EXPECT_EQ(w.page(i)[0], first) << "page " << i;
    EXPECT_EQ(w.page(i)[k_page_size - 1], static_cast<std::byte>(i == 9 ? 0 : (1 + i) & 0xff)) << "page " << i;
  }
}

TEST_P(UffdTransfer, pieces_leave_a_huge_page_and_come_back_in_any_order) {
  World w(GetParam(), 1);
  w.fill(1);
  const bool was_huge = w.mirror->huge(w.base());
  PageMask away;
  for (unsigned i = 0; i < 24; ++i) {
    const PageMask piece = PageMask::range((i * 7 + 3) % 32 * 16, 1 + i % 16);
    EXPECT_EQ(w.to_device(piece).done, piece);
    EXPECT_FALSE(was_huge && w.mirror->huge(w.base()));
    away |= piece;
    if (i % 4 == 3) {
      EXPECT_EQ(w.to_host(piece).done, piece);
      away = away - piece;
      EXPECT_EQ(w.to_device(piece).done, piece);
      away |= piece;
    }
  }
  away.for_each([&](unsigned i) { ASSERT_TRUE(all_bytes(w.frame(i), 1 + i)) << i; });
  EXPECT_EQ(w.to_host(away).done, away);
  for (unsigned i = 0; i < k_block_pages; ++i) ASSERT_TRUE(all_bytes(w.page(i), 1 + i)) << i;
  EXPECT_EQ(w.fault_count(), 0u);
  EXPECT_EQ(w.count(HostEventKind::remove) + w.count(HostEventKind::remap), 0u) << "our own steps must not be reported";
}

TEST_P(UffdTransfer, rolled_back_piece_of_a_huge_page_stays_writable) {
  World w(GetParam(), 1);
  w.fill(1);
  Transfer t = w.transfer(Direction::to_device, PageMask::range(40, 8));
  w.mirror->prepare(t);
  w.mirror->copy(t);
  w.mirror->rollback(t);
  for (unsigned i = 0; i < k_block_pages; ++i) {
    ASSERT_TRUE(all_bytes(w.page(i), 1 + i)) << i;
    w.page(i)[0] = std::byte{7};
  }
  EXPECT_EQ(w.fault_count(), 0u);
}

TEST_P(UffdTransfer, map_remote_tells_present_from_absent) {
  World w(GetParam(), 1);
  w.fill(1);
  madvise(w.page(2), k_page_size, MADV_DONTNEED);
  const PageOutcome out = w.claimed()->map_remote(w.base(), PageMask::range(0, 4));
  EXPECT_EQ(out.not_populated, PageMask::one(2));
  EXPECT_EQ(out.done.count(), 3u);
  EXPECT_EQ(w.mirror->remote_address(w.base()), w.memory);
}

}  // namespace
}  // namespace hmmrt::test
