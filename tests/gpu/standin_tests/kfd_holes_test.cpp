// SPDX-License-Identifier: MIT
// Memory that is unmapped in part, with a report or without: the driver refuses whatever has a hole in it.
#include <sys/mman.h>

#include <cstring>

#include "gpu/standin_tests/kfd_fixture.hpp"

namespace api_test {
namespace {

TEST_F(Kfd, registered_memory_with_a_hole_comes_home) {
  Mapping m(6 * k_block);
  std::memset(m.get(), 5, 6 * k_block);
  context().register_memory(m.get(), 6 * k_block);
  const hmmrt::stream s(context());
  s.launch("touch", 6 * k_block / k_page,
           Touch{hmmrt::gptr<unsigned char>(reinterpret_cast<unsigned char*>(m.get())), k_page});
  s.synchronize();
  ASSERT_EQ(m.unmap(2 * k_block, k_page), 0);
  EXPECT_TRUE(soon([&] { return hmmrt_unregister(handle(), m.get()) == HMMRT_SUCCESS; })) << hmmrt_last_error_detail();
  // Where the driver has it is its own business again; the contents are what they were.
  for (std::size_t i = 0; i < 6 * k_block; i += k_block) {
    if (i == 2 * k_block) continue;
    ASSERT_EQ(m.get()[i], 6) << i;
  }
}

// What was never on a GPU is not reported when it is unmapped.
TEST_F(Kfd, a_hole_that_nobody_told_of_costs_a_prefetch_nothing_else) {
  Mapping m(9 * k_block);
  std::memset(m.get(), 5, 9 * k_block);
  context().register_memory(m.get(), 9 * k_block);
  ASSERT_EQ(m.unmap(5 * k_block, k_page), 0);
  hmmrt::check(hmmrt_prefetch(handle(), m.get(), 9 * k_block, 0, nullptr));
  for (const std::size_t at : {std::size_t{0}, 5 * k_block + k_page, 6 * k_block - k_page, 8 * k_block}) {
    EXPECT_EQ(hmmrt_standin_where(m.get() + at), k_gpu) << at;
  }
  EXPECT_EQ(stats().hints_without_effect, 0u);
  EXPECT_EQ(hmmrt_unregister(handle(), m.get()), HMMRT_SUCCESS) << hmmrt_last_error_detail();
}

TEST_F(Kfd, a_hole_that_nobody_told_of_keeps_nothing_from_the_rest) {
  constexpr std::uint32_t in_place = 1u << k_gpu;
  Mapping m(4 * k_block);
  std::memset(m.get(), 5, 4 * k_block);
  context().register_memory(m.get(), 4 * k_block);
  ASSERT_EQ(m.unmap(k_block + 7 * k_page, k_page), 0);
  const char* const beside[] = {m.get() + k_block, m.get() + 2 * k_block - k_page};
  context().advise(m.get(), 4 * k_block, HMMRT_ADVISE_SET_PREFERRED_LOCATION, hmmrt::cpu);
  for (const char* p : beside) EXPECT_EQ(hmmrt_standin_attributes(p).preferred, k_system);
  context().advise(m.get(), 4 * k_block, HMMRT_ADVISE_UNSET_PREFERRED_LOCATION, hmmrt::cpu);
  for (const char* p : beside) EXPECT_EQ(hmmrt_standin_attributes(p).preferred, k_undefined);
  context().pin(m.get(), 4 * k_block);
  for (const char* p : beside) EXPECT_NE(hmmrt_standin_attributes(p).in_place & in_place, 0u);
  context().unpin(m.get(), 4 * k_block);
  for (const char* p : beside) {
    EXPECT_EQ(hmmrt_standin_attributes(p).preferred, k_undefined);
    EXPECT_EQ(hmmrt_standin_attributes(p).in_place & in_place, 0u);
    EXPECT_EQ(*p, 5);
  }
  EXPECT_EQ(hmmrt_discard(handle(), m.get(), 4 * k_block, nullptr), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  for (const char* p : beside) EXPECT_EQ(*p, 0);
  EXPECT_EQ(stats().hints_without_effect, 0u);
  EXPECT_EQ(stats().attribute_changes_refused, 0u);
  EXPECT_EQ(hmmrt_unregister(handle(), m.get()), HMMRT_SUCCESS) << hmmrt_last_error_detail();
}

TEST_F(Kfd, an_allocation_with_a_hole_that_nobody_told_of_can_be_freed) {
  auto* const p = static_cast<char*>(context().allocate(8 * k_block));
  std::memset(p, 1, 8 * k_block);
  ASSERT_EQ(munmap(p + 3 * k_block, k_block), 0);
  EXPECT_EQ(hmmrt_free(handle(), p), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  unsigned char there = 0;
  for (std::size_t i = 0; i < 8; ++i) EXPECT_NE(mincore(p + i * k_block, k_page, &there), 0) << i;
  KfdBuffer b(context(), k_block / 4);
  for (std::uint32_t& v : b) v = 1;
}

}  // namespace
}  // namespace api_test
