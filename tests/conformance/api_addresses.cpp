// SPDX-License-Identifier: MIT
// Addresses change hands: the kernel gives them to whoever asks next, while what is known about their last owner is still
// on its way here. What was there must never happen to what is there now.
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>

#include "conformance/api_environment.hpp"

namespace {

using namespace api_test;  // NOLINT(google-build-using-namespace)

class ApiAddresses : public ApiTest {};
API_SUITE(ApiAddresses);

constexpr int k_keep_old = 4;  // MREMAP_DONTUNMAP, which glibc of Debian 12 may hide

// Unregistered while one thread moves it away, the address is registered again, by chance before that was heard of.
TEST_P(ApiAddresses, a_registration_where_memory_was_just_moved_away_keeps_its_contents) {
  NOT_DRIVEN("the stand-in hears of an mremap when its old address may be in use again");
  constexpr std::size_t bytes = 16 * k_page;
  unsigned again = 0;
  for (unsigned round = 0; round < 200; ++round) {
    std::uint32_t* const old = map_filled(bytes, 1);
    void* const target = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    context().register_memory(old, bytes);
    std::atomic<bool> going{false};
    std::thread mover([&] {
      going = true;
      EXPECT_EQ(mremap(old, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target), target);
    });
    while (!going) {
    }
    const bool ended = hmmrt_unregister(handle(), old) == HMMRT_SUCCESS;
    std::uint32_t* const fresh = ended ? map_filled(bytes, 1000, old) : nullptr;
    if (fresh != nullptr) {
      ++again;
      EXPECT_EQ(hmmrt_register(handle(), fresh, bytes), HMMRT_SUCCESS) << hmmrt_last_error_detail();
      EXPECT_EQ(hmmrt_prefetch(handle(), fresh, bytes, static_cast<hmmrt_location_t>(last_device()), nullptr),
                HMMRT_SUCCESS);
    }
    mover.join();
    if (fresh != nullptr) {
      ASSERT_EQ(wrong(fresh, bytes, 1000), 0u) << round;
      context().unregister_memory(fresh);
      munmap(fresh, bytes);
    }
    if (!ended) (void)hmmrt_unregister(handle(), any_pointer() ? static_cast<void*>(old) : target);
    ASSERT_EQ(wrong(static_cast<std::uint32_t*>(target), bytes, 1), 0u) << round;
    munmap(target, bytes);
  }
  RecordProperty("again", static_cast<int>(again));
}

TEST_P(ApiAddresses, what_somebody_else_has_in_a_hole_of_an_allocation_is_its_own) {
  auto first = std::make_unique<hmmrt::context>(options_of(GetParam()));
  auto* const p = static_cast<char*>(first->allocate(2 * k_block));
  std::memset(p, 1, 2 * k_block);
  first->prefetch(p, 2 * k_block, 0);  // a driver tells of what goes from a GPU
  ASSERT_EQ(munmap(p, 2 * k_block), 0);
  std::uint32_t* const mine = map_filled(2 * k_block, 7, p);
  ASSERT_NE(mine, nullptr);
  if (!driven()) {  // there only the first context may have it
    context().register_memory(mine, 2 * k_block);
    context().prefetch(mine, k_block, last_device());
  }
  first.reset();
  EXPECT_EQ(wrong(mine, 2 * k_block, 7), 0u);
  if (!driven()) context().unregister_memory(mine);
  munmap(mine, 2 * k_block);
}

TEST_P(ApiAddresses, unregistering_what_was_unmapped_leaves_alone_what_another_context_has_there) {
  NOT_DRIVEN("what another context manages is refused");
  const hmmrt::context first(options_of(GetParam()));
  std::uint32_t* const old = map_filled(2 * k_block, 1);
  first.register_memory(old, 2 * k_block);
  first.prefetch(old, k_page, 0);
  ASSERT_EQ(munmap(old, 2 * k_block), 0);
  std::uint32_t* const mine = map_filled(2 * k_block, 7, old);
  ASSERT_NE(mine, nullptr);
  context().register_memory(mine, 2 * k_block);
  context().advise(mine, k_block, HMMRT_ADVISE_SET_READ_MOSTLY);  // copies: the CPU's pages are write-protected
  context().prefetch(mine, 2 * k_block, last_device());
  EXPECT_EQ(hmmrt_unregister(first.get(), old), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  mine[0] = 100;  // noticed, or a device would go on with 7
  const hmmrt::stream s(context(), last_device());
  s.launch("add", 2 * k_block / 4, AddOne{hmmrt::gptr<std::uint32_t>(mine)});
  s.synchronize();
  EXPECT_EQ(mine[0], 101u);
  EXPECT_EQ(wrong(mine + 1, 2 * k_block - 4, 9), 0u);
  context().unregister_memory(mine);
  munmap(mine, 2 * k_block);
}

TEST_P(ApiAddresses, allocations_where_memory_was_moved_to_and_unmapped_are_whole) {
  open({{"arena_bytes", "2M"}});
  for (unsigned round = 0; round < 20; ++round) {
    std::uint32_t* const old = map_filled(8 * k_block, 1);
    context().register_memory(old, 8 * k_block);
    context().prefetch(old, 8 * k_block, 0);
    void* const target = mmap(nullptr, 8 * k_block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT_EQ(mremap(old, 8 * k_block, 8 * k_block, MREMAP_MAYMOVE | MREMAP_FIXED, target), target);
    munmap(target, 8 * k_block);
    void* const p = context().allocate(3 * k_block);
    std::memset(p, 3, 3 * k_block);
    context().prefetch(p, 3 * k_block, last_device());
    ASSERT_EQ(static_cast<char*>(p)[3 * k_block - 1], 3);
    ASSERT_EQ(hmmrt_free(handle(), p), HMMRT_SUCCESS) << hmmrt_last_error_detail();
    (void)hmmrt_unregister(handle(), any_pointer() ? static_cast<void*>(old) : target);
  }
}

// mremap takes part of an allocation away: the rest can be freed by its start, wherever that is now.
TEST_P(ApiAddresses, what_is_left_of_an_allocation_can_be_freed) {
  if (any_pointer()) GTEST_SKIP() << "registrations stay where they are";
  for (const std::size_t first : {std::size_t{0}, k_block, 2 * k_block}) {
    auto* const p = static_cast<char*>(context().allocate(3 * k_block));
    std::memset(p, 1, 3 * k_block);
    context().prefetch(p, 3 * k_block, last_device());
    void* const moved = mremap(p + first, k_block, k_block, MREMAP_MAYMOVE | MREMAP_FIXED,
                               mmap(nullptr, k_block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(moved, MAP_FAILED);
    EXPECT_EQ(hmmrt_free(handle(), p), HMMRT_SUCCESS) << first << ": " << hmmrt_last_error_detail();
    EXPECT_EQ(static_cast<char*>(moved)[k_block - 1], 1);
    unsigned char there = 0;
    EXPECT_EQ(mincore(p + (first == 0 ? k_block : 0), k_page, &there), -1) << "not given back";
    context().unregister_memory(moved);
    munmap(moved, k_block);
  }
}

// Nobody waits for a moment in which no thread changes its mappings.
TEST_P(ApiAddresses, registering_goes_on_while_threads_drop_memory_without_end) {
  Mapping dropped(64 * k_page);
  context().register_memory(dropped.get(), 64 * k_page);
  std::atomic<bool> end{false};
  std::thread storm[4];
  for (unsigned i = 0; i < 4; ++i) {
    storm[i] = std::thread([&, i] {
      while (!end) madvise(dropped.get() + i * 16 * k_page, k_page, MADV_DONTNEED);
    });
  }
  for (unsigned round = 0; round < 5; ++round) {
    std::uint32_t* const p = map_filled(4 * k_page, round);
    EXPECT_EQ(hmmrt_register(handle(), p, 4 * k_page), HMMRT_SUCCESS) << hmmrt_last_error_detail();
    EXPECT_EQ(hmmrt_unregister(handle(), p), HMMRT_SUCCESS) << hmmrt_last_error_detail();
    EXPECT_EQ(wrong(p, 4 * k_page, round), 0u);
    munmap(p, 4 * k_page);
  }
  end = true;
  for (std::thread& t : storm) t.join();
  context().unregister_memory(dropped.get());
}

TEST_P(ApiAddresses, memory_that_a_kernel_uses_in_place_can_be_moved_and_its_old_place_kept) {
  NEEDS_FAULTS("a launch has translated what it uses");
  if (any_pointer()) GTEST_SKIP() << "there the kernel's own notifiers see to it";
  std::uint32_t* const stop = map_filled(8 * k_page, 0);
  std::memset(stop, 0, 8 * k_page);
  auto* const counter = static_cast<std::uint64_t*>(context().allocate(k_page));
  *counter = 0;
  context().register_memory(stop, 8 * k_page);
  context().prefetch(stop, 8 * k_page, 0);  // watched from now on
  context().prefetch(stop, 8 * k_page, HMMRT_CPU);
  context().pin(stop, 8 * k_page);
  context().pin(counter, k_page);
  {
    const hmmrt::stream s(context());
    s.launch("spin", 1, Spin{hmmrt::gptr<std::uint64_t>(counter), hmmrt::gptr<std::uint32_t>(stop)});
    while (__atomic_load_n(counter, __ATOMIC_RELAXED) == 0) {
    }
    stop[1024] = 5;
    void* const moved = mremap(stop, 8 * k_page, 8 * k_page, MREMAP_MAYMOVE | k_keep_old, nullptr);
    ASSERT_NE(moved, MAP_FAILED);
    EXPECT_EQ(static_cast<std::uint32_t*>(moved)[1024], 5u);
    __atomic_store_n(stop, 1u, __ATOMIC_RELEASE);  // or it has failed by now: nothing is managed there
    (void)hmmrt_stream_synchronize(s.get());
    context().unpin(moved, 8 * k_page);
    context().unregister_memory(moved);
    munmap(moved, 8 * k_page);
  }
  munmap(stop, 8 * k_page);
}

TEST_P(ApiAddresses, executable_memory_still_migrates_after_mremap) {
  std::uint32_t* const old = map_filled(k_block, 3, nullptr, PROT_READ | PROT_WRITE | PROT_EXEC);
  ASSERT_NE(old, nullptr);
  context().register_memory(old, k_block);
  void* const target = mmap(nullptr, k_block, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_EQ(mremap(old, k_block, k_block, MREMAP_MAYMOVE | MREMAP_FIXED, target), target);
  if (any_pointer()) {
    (void)hmmrt_unregister(handle(), old);
    context().register_memory(target, k_block);
  }
  context().prefetch(target, k_block, last_device());
  EXPECT_EQ(context().residency(target, k_block), static_cast<hmmrt::location>(last_device()));
  EXPECT_EQ(wrong(static_cast<std::uint32_t*>(target), k_block, 3), 0u);
  context().unregister_memory(target);
  munmap(target, k_block);
}

// Its memory is kept at home while it is unregistered: not a pin of the user's.
TEST_P(ApiAddresses, what_was_never_pinned_cannot_be_unpinned_while_it_is_unregistered) {
  constexpr std::size_t bytes = k_block / 4;
  std::uint32_t* const p = map_filled(bytes, 1);
  const hmmrt::stream s(context());
  std::atomic<bool> end{false};
  std::thread other([&] {
    while (!end) (void)hmmrt_unpin(handle(), p, bytes);  // of what is not registered just then: nothing to unpin
  });
  // Over the module each access is a system call, on an emulated machine.
  const std::uint32_t rounds = std::string(GetParam().host_mirror) == "shim" ? 20 : 100;
  for (std::uint32_t round = 0; round < rounds; ++round) {
    context().register_memory(p, bytes);
    s.launch("add", bytes / 4, AddOne{hmmrt::gptr<std::uint32_t>(p)});
    s.synchronize();
    context().unregister_memory(p);
    EXPECT_EQ(wrong(p, bytes, 2 + round), 0u) << round;
  }
  end = true;
  other.join();
  munmap(p, bytes);
}

}  // namespace
