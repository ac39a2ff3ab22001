// SPDX-License-Identifier: MIT
// Attaching: what is accepted, what is refused and how it is said.
#include <linux/userfaultfd.h>

#include "uffd_fixture.hpp"

namespace hmmrt::test {
namespace {

class UffdRanges : public testing::TestWithParam<Variant> {
 protected:
  std::byte* map(std::size_t bytes, int protection = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE) {
    return static_cast<std::byte*>(mmap(nullptr, bytes, protection, flags | MAP_ANONYMOUS, -1, 0));
  }
  static std::uintptr_t address(std::byte* p) { return reinterpret_cast<std::uintptr_t>(p); }
};
INSTANTIATE_TEST_SUITE_P(Paths, UffdRanges, testing::ValuesIn(k_variants), variant_name);

TEST_P(UffdRanges, each_refusal_has_its_own_code_and_a_sentence) {
  World w(GetParam(), 1);
  std::byte* const p = map(64 * k_page_size);
  const auto code = [&](std::uintptr_t at, std::size_t bytes) { return w.mirror->attach(at, bytes).code(); };
  EXPECT_EQ(code(0, k_page_size), HMMRT_ERROR_INVALID_VALUE);
  EXPECT_EQ(code(address(p), 0), HMMRT_ERROR_INVALID_VALUE);
  EXPECT_EQ(code(address(p), ~std::size_t{0} & ~(k_page_size - 1)), HMMRT_ERROR_INVALID_VALUE);
  EXPECT_EQ(code(address(p) + 1, k_page_size), HMMRT_ERROR_MISALIGNED);
  EXPECT_EQ(code(address(p), 100), HMMRT_ERROR_MISALIGNED);
  EXPECT_NE(std::string(failure_detail()).find("4096"), std::string::npos);
  munmap(p + 8 * k_page_size, k_page_size);
  EXPECT_EQ(code(address(p), 16 * k_page_size), HMMRT_ERROR_NOT_MANAGED);
  mprotect(p + 20 * k_page_size, k_page_size, PROT_READ);
  EXPECT_EQ(code(address(p) + 16 * k_page_size, 8 * k_page_size), HMMRT_ERROR_INVALID_VALUE);
  std::byte* const shared = map(4 * k_page_size, PROT_READ | PROT_WRITE, MAP_SHARED);
  EXPECT_EQ(code(address(shared), 4 * k_page_size), HMMRT_ERROR_NOT_ANONYMOUS);
  EXPECT_EQ(code(w.base(), k_page_size), HMMRT_ERROR_ALREADY_MANAGED);
  EXPECT_TRUE(w.mirror->attach(address(p) + 32 * k_page_size, 8 * k_page_size).ok());
  EXPECT_EQ(code(address(p) + 36 * k_page_size, 8 * k_page_size), HMMRT_ERROR_ALREADY_MANAGED);
  w.mirror->detach(address(p) + 32 * k_page_size, 8 * k_page_size);
  EXPECT_TRUE(w.mirror->attach(address(p) + 36 * k_page_size, 8 * k_page_size).ok());
  munmap(p, 8 * k_page_size);  // the hole may be somebody else's by now
  munmap(p + 9 * k_page_size, 55 * k_page_size);
  munmap(shared, 4 * k_page_size);
}

TEST_P(UffdRanges, memory_watched_by_another_userfaultfd_is_refused) {
  World w(GetParam(), 1);
  uffd::Probe probe;
  ASSERT_TRUE(uffd::probe(false, &probe).ok());
  const uffd::Uffd other(uffd::open_uffd(probe, UFFD_FEATURE_PAGEFAULT_FLAG_WP));
  std::byte* const p = map(4 * k_page_size);
  ASSERT_EQ(other.watch(address(p), 4 * k_page_size, UFFDIO_REGISTER_MODE_WP), 0);
  EXPECT_EQ(w.mirror->attach(address(p), 4 * k_page_size).code(), HMMRT_ERROR_BUSY);
  munmap(p, 4 * k_page_size);
}

TEST_P(UffdRanges, two_small_ranges_in_one_block_travel_in_one_transfer) {
  World w(GetParam(), 1);
  const std::uintptr_t base = map_aligned(k_block_size, PROT_READ | PROT_WRITE);
  auto* const p = reinterpret_cast<std::byte*>(base);
  ASSERT_TRUE(w.mirror->attach(base + 2 * k_page_size, 2 * k_page_size).ok());
  ASSERT_TRUE(w.mirror->attach(base + 8 * k_page_size, 2 * k_page_size).ok());
  memset(p, 0x21, 16 * k_page_size);
  Transfer t = w.transfer(Direction::to_device, PageMask::range(0, 16));
  t.base = base;
  ASSERT_TRUE(w.run_transfer(t));
  const PageMask ours = PageMask::range(2, 2) | PageMask::range(8, 2);
  EXPECT_EQ(t.outcome.done, ours);
  EXPECT_EQ(t.outcome.gone, PageMask::range(0, 16) - ours);
  EXPECT_TRUE(all_bytes(w.frame(9), 0x21));
  Transfer back = w.transfer(Direction::to_host, ours);
  back.base = base;
  ASSERT_TRUE(w.run_transfer(back));
  EXPECT_EQ(back.outcome.done, ours);
  EXPECT_TRUE(all_bytes(p + 9 * k_page_size, 0x21));
  w.mirror->detach(base + 2 * k_page_size, 2 * k_page_size);
  w.mirror->detach(base + 8 * k_page_size, 2 * k_page_size);
  munmap(p, k_block_size);
}

TEST_P(UffdRanges, detached_memory_is_ordinary_again) {
  World w(GetParam(), 1);
  std::byte* const p = map(4 * k_page_size);
  ASSERT_TRUE(w.mirror->attach(address(p), 4 * k_page_size).ok());
  memset(p, 1, k_page_size);
  EXPECT_TRUE(
      w.claimed()->write_protect(block_floor(address(p)), PageMask::one(page_in_block(address(p))), true).done.any());
  w.mirror->detach(address(p), 4 * k_page_size);
  memset(p, 2, 4 * k_page_size);
  EXPECT_EQ(w.fault_count(), 0u);
  munmap(p, 4 * k_page_size);
}

TEST_P(UffdRanges, memory_whose_blocks_left_whole_is_ordinary_again_once_detached) {
  World w(GetParam(), 1);
  void* const raw = mmap(nullptr, 2 * k_block_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* const p = reinterpret_cast<std::byte*>(block_ceil(reinterpret_cast<std::uintptr_t>(raw)));
  ASSERT_TRUE(w.mirror->attach(address(p), k_block_size).ok());
  memset(p, 1, k_block_size);
  {
    const auto mirror = w.claimed();
    Transfer t = w.transfer(Direction::to_device, PageMask::all());
    t.base = address(p);
    ASSERT_TRUE(w.run_transfer(t));
    ASSERT_TRUE(t.outcome.done.full());
    t = w.transfer(Direction::to_host, PageMask::all());
    t.base = address(p);
    ASSERT_TRUE(w.run_transfer(t));
    ASSERT_TRUE(t.outcome.done.full());
  }
  w.mirror->detach(address(p), k_block_size);
  ASSERT_EQ(madvise(p, k_block_size, MADV_DONTNEED), 0);
  memset(p, 2, k_block_size);
  EXPECT_EQ(w.fault_count(), 0u);
  EXPECT_EQ(w.count(HostEventKind::remove), 0u);
  munmap(raw, 2 * k_block_size);
}

TEST_P(UffdRanges, bookkeeping_is_a_small_part_of_what_it_manages) {
  World w(GetParam(), 64);
  EXPECT_LT(w.mirror->metadata_bytes() * 200, 64 * k_block_size);
}

TEST_P(UffdRanges, the_path_says_what_runs_and_why) {
  World w(GetParam(), 1);
  EXPECT_EQ(w.mirror->info().name, "uffd");
  EXPECT_TRUE(w.mirror->info().write_protect);
  if (GetParam().fallback) {
    EXPECT_EQ(w.mirror->info().path, "fallback: asked for");
  } else if (!w.move()) {
    EXPECT_NE(w.mirror->info().path.find("UFFDIO_MOVE"), std::string::npos);
  }
}

}  // namespace
}  // namespace hmmrt::test
