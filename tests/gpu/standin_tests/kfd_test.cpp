// SPDX-License-Identifier: MIT
// GPUs whose driver serves faults and moves pages by itself: what the runtime makes of its reports, and what it asks of it.
#include <hsakmt.h>

#include <atomic>
#include <random>
#include <thread>

#include "gpu/standin_tests/kfd_fixture.hpp"

namespace api_test {
namespace {

using Buffer = KfdBuffer;

TEST_F(Kfd, is_what_auto_takes_for_a_gpu_that_has_it) {
  EXPECT_NE(std::string(context().info().host_path).find("XNACK on"), std::string::npos);
  EXPECT_NE(context().device_info(0).capabilities & HMMRT_DEVICE_RETRYABLE_FAULTS, 0u);
}

TEST_F(Kfd, what_the_driver_moves_for_a_fault_is_in_the_books) {
  Buffer b(context(), k_block / 4);
  for (auto& v : b) v = 3;
  const hmmrt::stream s(context());
  add_one(s, b);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  EXPECT_EQ(b.stats().bytes_resident_device, b.bytes());
  EXPECT_EQ(stats().device_faults, 1u);
  EXPECT_EQ(hmmrt::bytes_to_device(stats()), b.bytes());
  EXPECT_EQ(b[5], 4u);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  EXPECT_EQ(b.stats().bytes_resident_device, 0u);
  EXPECT_EQ(stats().cpu_faults, 1u);
  EXPECT_GE(stats().driver_reports, 7u);  // two lines a fault or move, and one of an invalidation
}

TEST_F(Kfd, any_pointer_works) {
  std::vector<std::uint32_t> v(3 * k_block / 4, 7);
  const hmmrt::stream s(context());
  s.launch("add", v.size(), AddOne{hmmrt::gptr<std::uint32_t>(v.data())});
  s.synchronize();
  EXPECT_GT(stats().device_faults, 0u);
  for (const std::uint32_t x : v) ASSERT_EQ(x, 8u);
}

TEST_F(Kfd, memory_that_two_processors_want_is_used_in_system_memory) {
  open({{"log_level", "off"}});
  Buffer b(context(), k_block / 4);
  for (auto& v : b) v = 0;
  const hmmrt::stream s(context());
  ASSERT_LT(quarrel(s, b), 200);
  EXPECT_GT(stats().ping_pong_detections, 0u);
  const StandinAttributes a = hmmrt_standin_attributes(b.data());
  if (stats().unpins == 0) {
    EXPECT_EQ(a.preferred, k_system);
    EXPECT_NE(a.in_place & 1u << k_gpu, 0u);
    EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  }
  const std::uint64_t moved = hmmrt_standin_counts().pages_moved;
  for (int i = 0; i < 20; ++i) {
    add_one(s, b);
    b[0] += 1;
    const std::uint64_t now = hmmrt_standin_counts().pages_moved;
    if (stats().unpins != 0) break;  // the tie was for a time, which is over
    ASSERT_EQ(now, moved);
  }
}

TEST_F(Kfd, a_tie_ends_by_itself_and_the_users_advice_is_in_force_again) {
  Buffer b(context(), k_block / 4);
  for (auto& v : b) v = 0;
  const hmmrt::stream s(context());
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_ACCESSED_BY, 0);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_UNSET_ACCESSED_BY, 0);
  ASSERT_LT(quarrel(s, b), 200);
  ASSERT_TRUE(soon([&] { return stats().unpins != 0; }));
  EXPECT_TRUE(soon([&] { return hmmrt_standin_attributes(b.data()).preferred == k_undefined; }));
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).in_place & 1u << k_gpu, 0u);
  // Sent to the GPU, to see whether the quarrel goes on.
  EXPECT_TRUE(soon([&] { return hmmrt_standin_where(b.data()) == k_gpu; }));
}

TEST_F(Kfd, a_prefetch_is_asked_of_the_driver_whatever_the_books_say) {
  Buffer b(context(), 4 * k_block / 4);
  for (auto& v : b) v = 9;
  b.prefetch(0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  EXPECT_EQ(b.stats().bytes_resident_device, b.bytes());
  // Somebody else moves it: the driver says so, but the books need not know.
  HSA_SVM_ATTRIBUTE home{HSA_SVM_ATTR_PREFETCH_LOC, 0};
  ASSERT_EQ(hsaKmtSVMSetAttr(b.data(), b.bytes(), 1, &home), HSAKMT_STATUS_SUCCESS);
  b.prefetch(0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  const std::uint64_t asked = hmmrt_standin_counts().set_attr;
  b.prefetch(hmmrt::cpu);
  EXPECT_LT(hmmrt_standin_counts().set_attr,
            asked + 4);  // one call for all four blocks; the policy may have made others
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  EXPECT_GE(hmmrt::bytes_to_host(stats()), b.bytes());  // what somebody else moved may have been heard of
  EXPECT_EQ(stats().hints_without_effect, 0u);
}

TEST_F(Kfd, pinned_memory_stays_in_system_memory) {
  Buffer b(context(), 2 * k_block / 4);
  for (auto& v : b) v = 1;
  const hmmrt::stream s(context());
  add_one(s, b);
  context().pin(b.data(), k_block);
  add_one(s, b);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  b.prefetch(0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  EXPECT_EQ(hmmrt_standin_where(b.data() + k_block / 4), k_gpu);
  EXPECT_EQ(stats().hints_without_effect, 1u);
  context().unpin(b.data(), k_block);
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_undefined);
  b.prefetch(0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  EXPECT_EQ(b[3], 3u);
}

TEST_F(Kfd, a_pin_beside_a_prefetch_wins) {
  Buffer b(context(), k_block / 4);
  for (auto& v : b) v = 1;
  std::atomic<int> prefetched{0};
  for (int round = 1; round <= 200; ++round) {
    std::thread other([&] {
      prefetched = round;
      b.prefetch(0);
    });
    while (prefetched.load() != round) std::this_thread::yield();
    context().pin(b.data(), b.bytes());
    other.join();
    ASSERT_EQ(hmmrt_standin_where(b.data()), k_system) << round;
    context().unpin(b.data(), b.bytes());
  }
}

TEST_F(Kfd, advice_becomes_attributes_and_what_the_driver_ignores_is_counted) {
  Buffer b(context(), k_block / 4);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_gpu);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_ACCESSED_BY, 0);
  EXPECT_NE(hmmrt_standin_attributes(b.data()).in_place & 1u << k_gpu, 0u);
  EXPECT_EQ(stats().hints_without_effect, 0u);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_READ_MOSTLY, 0);
  EXPECT_EQ(stats().hints_without_effect, 1u);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_UNSET_PREFERRED_LOCATION, 0);
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_undefined);
  EXPECT_NE(hmmrt_standin_attributes(b.data()).in_place & 1u << k_gpu, 0u);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_UNSET_ACCESSED_BY, 0);
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).in_place & 1u << k_gpu, 0u);
  // A pin hides advice, and its end brings it back.
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
  context().pin(b.data(), b.bytes());
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_system);
  context().unpin(b.data(), b.bytes());
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_gpu);
}

TEST_F(Kfd, what_the_driver_keeps_home_is_a_prefetch_without_effect) {
  open({{"device", "gpu:0,gpu:1"}});
  Buffer b(context(), 2 * k_block / 4);
  for (auto& v : b) v = 3;
  context().advise(b.data(), k_block, HMMRT_ADVISE_SET_ACCESSED_BY, 1);
  context().prefetch(b.data(), b.bytes(), 0);
  EXPECT_EQ(stats().hints_without_effect, 1u);
  EXPECT_EQ(b.stats().bytes_resident_device, k_block);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  EXPECT_EQ(hmmrt_standin_where(b.data() + k_block / 4), k_gpu);
  context().prefetch(b.data(), k_block, 1);  // whoever uses it in place may have it
  EXPECT_EQ(stats().hints_without_effect, 1u);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu + 1);
  context().advise(b.data(), k_block, HMMRT_ADVISE_UNSET_ACCESSED_BY, 1);
  context().prefetch(b.data(), b.bytes(), 0);
  EXPECT_EQ(stats().hints_without_effect, 1u);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  EXPECT_EQ(b.stats().bytes_resident_device, b.bytes());
  for (const std::uint32_t v : b) ASSERT_EQ(v, 3u);
}

TEST_F(Kfd, blocks_used_one_after_the_other_are_run_ahead_of) {
  Buffer b(context(), 24 * k_block / 4);
  for (std::size_t i = 0; i < b.size(); i += 1024) b[i] = 1;
  const hmmrt::stream s(context());
  for (std::size_t i = 0; i < 24; ++i) {
    // As slow as a kernel that computes: the runtime hears of each block before the next is touched.
    s.launch("add", k_block / 4, AddOne{hmmrt::gptr<std::uint32_t>(b.data() + i * (k_block / 4))});
    s.synchronize();
    (void)stats();
  }
  EXPECT_LT(stats().device_faults, 16u);
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < b.size(); i += k_block / 4) {
    largest = std::max(largest, hmmrt_standin_attributes(b.data() + i).granularity);
  }
  EXPECT_GT(largest, 9u);
  for (std::size_t i = 0; i < b.size(); i += 1024) ASSERT_EQ(b[i], 2u);
}

TEST_F(Kfd, registered_memory_is_handed_back_at_home) {
  const Mapping m(4 * k_block);
  std::memset(m.get(), 5, 4 * k_block);
  context().register_memory(m.get(), 4 * k_block);
  const hmmrt::stream s(context());
  s.launch("touch", 4 * k_block / k_page,
           Touch{hmmrt::gptr<unsigned char>(reinterpret_cast<unsigned char*>(m.get())), k_page});
  s.synchronize();
  EXPECT_EQ(hmmrt_standin_where(m.get()), k_gpu);
  context().unregister_memory(m.get());
  EXPECT_EQ(hmmrt_standin_where(m.get()), k_system);
  for (std::size_t i = 0; i < 4 * k_block; i += k_page) ASSERT_EQ(m.get()[i], 6);
}

TEST_F(Kfd, options_that_cannot_be_are_refused) {
  const auto create = [](const char* device, const char* mirror) {
    const hmmrt_option_t options[] = {{"device", device}, {"host_mirror", mirror}};
    hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
    desc.options = options;
    desc.option_count = 2;
    hmmrt_context_t c = nullptr;
    return hmmrt_context_create(&desc, &c);
  };
  EXPECT_API_ERROR(create("soft", "kfd"), HMMRT_ERROR_INVALID_OPTION, "host_mirror");
  EXPECT_API_ERROR(create("gpu:7", "kfd"), HMMRT_ERROR_INVALID_DEVICE, "7");
}

TEST_F(Kfd, memory_is_managed_in_blocks_where_a_fault_moves_all_that_was_managed_at_once) {
  for (const char* release : {"6.1.0-28-amd64", "6.12.9"}) {
    setenv("HMMRT_TEST_KERNEL_RELEASE", release, 1);
    open();
    const Mapping m(8 * k_block);
    const std::uint64_t before = hmmrt_standin_counts().set_attr;
    context().register_memory(m.get(), 8 * k_block);
    const std::uint64_t calls = hmmrt_standin_counts().set_attr - before;
    EXPECT_EQ(calls >= 8, release[2] == '1' && release[3] == '.') << release << ": " << calls;
    context().unregister_memory(m.get());
  }
  unsetenv("HMMRT_TEST_KERNEL_RELEASE");
}

// ---- what reviews found --------------------------------------------------------------------------------------------

TEST_F(Kfd, the_end_of_one_context_leaves_another_whole) {
  Buffer b(context(), k_block / 4);
  {
    const hmmrt::context other({{"device", "gpu:0"}, {"arena_bytes", "4M"}});
    Buffer theirs(other, k_block / 4);
    const hmmrt::stream s(other);
    add_one(s, theirs);
    EXPECT_EQ(stats().bytes_resident_device, 0u);  // reports are of the process; these are not ours
  }
  Buffer more(context(), 4 * k_block / 4);
  more.prefetch(0);
  EXPECT_EQ(hmmrt_standin_where(more.data()), k_gpu);
  context().pin(b.data(), b.bytes());
  context().unpin(b.data(), b.bytes());
}

TEST_F(Kfd, memory_belongs_to_one_context) {
  const Mapping m(2 * k_block);
  context().register_memory(m.get(), 2 * k_block);
  const hmmrt::context other({{"device", "gpu:0"}, {"arena_bytes", "4M"}});
  EXPECT_API_ERROR(hmmrt_register(other.get(), m.get(), 2 * k_block), HMMRT_ERROR_ALREADY_MANAGED, hex(m.get()));
  context().unregister_memory(m.get());
}

TEST_F(Kfd, a_pin_outlasts_the_policys_tie) {
  Buffer b(context(), k_block / 4);
  for (auto& v : b) v = 0;
  const hmmrt::stream s(context());
  ASSERT_LT(quarrel(s, b), 200);
  context().pin(b.data(), b.bytes());
  EXPECT_TRUE(soon([&] { return stats().unpins != 0; }));
  for (int i = 0; i < 10; ++i) {
    add_one(s, b);
    EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
    EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_system);
  }
  context().unpin(b.data(), b.bytes());
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_undefined);
}

TEST_F(Kfd, advice_ends_a_tie) {
  Buffer b(context(), k_block / 4);
  for (auto& v : b) v = 0;
  const hmmrt::stream s(context());
  ASSERT_LT(quarrel(s, b), 200);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_gpu);
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).in_place & 1u << k_gpu, 0u);
  b.prefetch(0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  EXPECT_EQ(stats().hints_without_effect, 0u);
}

TEST_F(Kfd, advice_moves_nothing) {
  Buffer b(context(), 2 * k_block / 4);
  for (auto& v : b) v = 1;
  b.prefetch(0);
  for (auto& v : b) v += 1;  // home again
  (void)stats();             // and the books know
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, hmmrt::cpu);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_UNSET_PREFERRED_LOCATION, hmmrt::cpu);
  const hmmrt::stream s(context());
  b.prefetch(hmmrt::cpu);
  add_one(s, b);
  (void)stats();
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  context().advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  for (const std::uint32_t v : b) ASSERT_EQ(v, 3u);
}

TEST_F(Kfd, nothing_that_was_asked_outlives_the_memory) {
  std::uint32_t* p = nullptr;
  {
    Buffer b(context(), k_block / 4);
    p = b.data();
    context().advise(p, b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, hmmrt::cpu);
    context().advise(p, b.bytes(), HMMRT_ADVISE_SET_ACCESSED_BY, 0);
    EXPECT_EQ(hmmrt_standin_attributes(p).preferred, k_system);
  }
  EXPECT_EQ(hmmrt_standin_attributes(p).preferred, k_undefined);
  EXPECT_EQ(hmmrt_standin_attributes(p).in_place & 1u << k_gpu, 0u);
  const Mapping m(2 * k_block);
  context().register_memory(m.get(), 2 * k_block);
  context().advise(m.get(), 2 * k_block, HMMRT_ADVISE_SET_PREFERRED_LOCATION, hmmrt::cpu);
  context().unregister_memory(m.get());
  EXPECT_EQ(hmmrt_standin_attributes(m.get()).preferred, k_undefined);
}

TEST_F(Kfd, discarded_memory_is_nowhere) {
  Buffer b(context(), 4 * k_block / 4);
  for (auto& v : b) v = 1;
  b.prefetch(0);
  EXPECT_EQ(b.stats().bytes_resident_device, b.bytes());
  hmmrt::check(hmmrt_discard(handle(), b.data(), b.bytes(), nullptr));
  EXPECT_EQ(b.stats().bytes_resident_device, 0u);
  b.prefetch(0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
}

TEST_F(Kfd, small_allocations_in_one_block_are_followed_apart) {
  Buffer first(context(), 16 * k_page / 4);
  for (auto& v : first) v = 1;
  const hmmrt::stream s(context());
  add_one(s, first);
  (void)stats();
  Buffer second(context(), 16 * k_page / 4);
  for (auto& v : second) v = 1;
  (void)stats();
  EXPECT_EQ(second.stats().bytes_resident_device, 0u);
  add_one(s, second);
  (void)stats();
  EXPECT_EQ(second.stats().bytes_resident_device, second.bytes());
  EXPECT_EQ(second[7], 2u);
}

TEST_F(Kfd, a_prefetch_ends_a_tie_first) {
  for (const char* policy : {"adaptive", "remote"}) {
    open({{"policy", policy}});
    Buffer b(context(), k_block / 4);
    for (auto& v : b) v = 0;
    const hmmrt::stream s(context());
    if (policy == std::string("adaptive")) {
      ASSERT_LT(quarrel(s, b), 200);
    }
    add_one(s, b);
    (void)stats();
    b.prefetch(0);
    EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu) << policy;
    EXPECT_EQ(b.stats().bytes_resident_device, b.bytes()) << policy;
    EXPECT_EQ(stats().hints_without_effect, 0u) << policy;
  }
}

// The kernel does what it can of a change, and then says that it failed.
TEST_F(Kfd, what_is_refused_after_it_was_done_is_undone_or_known) {
  Buffer b(context(), 2 * k_block / 4);
  for (auto& v : b) v = 1;
  setenv("HMMRT_TEST_KFD_FAIL", "hsaKmtSVMSetAttr.done", 1);
  EXPECT_NE(hmmrt_pin(handle(), b.data(), k_block), HMMRT_SUCCESS);
  unsetenv("HMMRT_TEST_KFD_FAIL");
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_undefined);
  EXPECT_EQ(hmmrt_standin_attributes(b.data()).in_place & 1u << k_gpu, 0u);
  setenv("HMMRT_TEST_KFD_FAIL", "hsaKmtSVMSetAttr.done", 1);
  b.prefetch(0);
  unsetenv("HMMRT_TEST_KFD_FAIL");
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu);
  EXPECT_EQ(b.stats().bytes_resident_device, b.bytes());
  for (const std::uint32_t v : b) ASSERT_EQ(v, 1u);
}

TEST_F(Kfd, a_move_between_gpus_is_no_fault_of_the_cpus) {
  open({{"device", "gpu:0,gpu:1"}});
  Buffer b(context(), k_block / 4);
  b.prefetch(0);  // the CPU never touched it
  const hmmrt::stream s0(context(), 0), s1(context(), 1);
  for (int i = 0; i < 6; ++i) {
    add_one(i % 2 == 0 ? s1 : s0, b);
    (void)stats();
  }
  EXPECT_EQ(stats().cpu_faults, 0u);
  EXPECT_EQ(hmmrt_standin_counts().cpu_faults, 0u);
  EXPECT_GT(stats().device_faults, 0u);
}

TEST_F(Kfd, one_fault_that_brings_many_blocks_home_is_one) {
  Buffer b(context(), 32 * k_block / 4);
  for (std::size_t i = 0; i < b.size(); i += 1024) b[i] = 1;
  HSA_SVM_ATTRIBUTE coarse[] = {{HSA_SVM_ATTR_PREFETCH_LOC, k_gpu}, {HSA_SVM_ATTR_GRANULARITY, 12}};
  ASSERT_EQ(hsaKmtSVMSetAttr(b.data(), b.bytes(), 2, coarse), HSAKMT_STATUS_SUCCESS);
  (void)stats();
  const auto counted = stats().cpu_faults, theirs = hmmrt_standin_counts().cpu_faults;
  std::size_t first = 0;  // of 8 blocks that move together
  while (reinterpret_cast<std::uintptr_t>(b.data() + first) % (8 * k_block) != 0) first += k_block / 4;
  b[first] += 1;
  EXPECT_EQ(hmmrt_standin_where(b.data() + first + k_block / 4), k_system);
  EXPECT_EQ(stats().cpu_faults - counted, hmmrt_standin_counts().cpu_faults - theirs);
}

TEST_F(Kfd, statistics_wait_for_everything_that_was_reported) {
  open({{"arena_bytes", "640M"}});
  Buffer b(context(), 300 * (k_block / 4));
  for (std::size_t i = 0; i < b.size(); i += k_block / 4) b[i] = 1;
  HSA_SVM_ATTRIBUTE away{HSA_SVM_ATTR_PREFETCH_LOC, k_gpu};
  ASSERT_EQ(hsaKmtSVMSetAttr(b.data(), b.bytes(), 1, &away), HSAKMT_STATUS_SUCCESS);
  const std::uint64_t at_once = stats().pages_to_device;
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(stats().pages_to_device, at_once);
}

TEST_F(Kfd, memory_unmapped_while_it_was_tied_is_left_alone) {
  Mapping m(4 * k_block);
  std::memset(m.get(), 0, 4 * k_block);
  const auto first = (reinterpret_cast<std::uintptr_t>(m.get()) + 2 * k_block - 1) & ~(k_block - 1);
  auto* const p = reinterpret_cast<std::uint32_t*>(first);
  context().register_memory(m.get(), 4 * k_block);
  const hmmrt::stream s(context());
  const auto use = [&] {
    s.launch("add", 1, AddOne{hmmrt::gptr<std::uint32_t>(p)});
    s.synchronize();
  };
  for (int rounds = 0; stats().pins == 0; ++rounds) {
    ASSERT_LT(rounds, 200);
    use();
    p[1] += 1;
  }
  use();  // in place, so that the driver tells of the end
  const std::uint64_t refused = stats().attribute_changes_refused;
  ASSERT_EQ(m.unmap(static_cast<std::size_t>(reinterpret_cast<char*>(p) - reinterpret_cast<char*>(m.get())), k_block),
            0);
  (void)stats();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(stats().attribute_changes_refused, refused);
}

TEST(GpuChild, DISABLED_statistics_at_exit) {
  static auto context = std::make_unique<hmmrt::context>(
      std::vector<hmmrt::option>{{"device", "gpu"}, {"host_mirror", "kfd"}, {"log_level", "off"}});
  static Buffer b(*context, k_block / 4);
  static const hmmrt::stream s(*context);
  s.launch("add", b.size(), AddOne{b.gpu()});
  std::atexit([] {
    hmmrt_stats_t stats = hmmrt::empty_stats();
    (void)hmmrt_stats_context(context->get(), &stats);
  });
}
TEST(KfdExit, statistics_are_answered_during_exit) { EXPECT_EQ(in_child_with("statistics_at_exit", {}), 0); }

// The CPU and a GPU at random, each word written by one of them; a plain array is the oracle.
TEST_F(Kfd, random_use_matches_a_model) {
  const auto seed = static_cast<unsigned>(std::chrono::steady_clock::now().time_since_epoch().count());
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  constexpr std::size_t k_words = 6 * k_block / 4;
  Buffer b(context(), k_words);
  std::vector<std::uint32_t> model(k_words, 0);
  const hmmrt::stream s(context());
  for (int step = 0; step < 300; ++step) {
    const std::size_t first = random() % k_words, n = std::min<std::size_t>(1 + random() % 4096, k_words - first);
    std::uint32_t* const at = b.data() + first;
    switch (random() % 8) {
      case 0:
        for (std::size_t i = first; i < first + n; ++i) model[i] = b[i] = static_cast<std::uint32_t>(random());
        break;
      case 1:
        for (std::size_t i = first; i < first + n; ++i) ASSERT_EQ(b[i], model[i]) << i;
        break;
      case 2:
        context().prefetch(at, n * 4, random() % 2 != 0 ? 0 : hmmrt::cpu);
        break;
      case 3:
        context().pin(at, n * 4);
        context().unpin(at, n * 4);
        break;
      case 4:
        context().advise(at, n * 4, static_cast<hmmrt_advice_t>(1 + random() % 6), 0);
        break;
      default:
        s.launch("add", n, AddOne{hmmrt::gptr<std::uint32_t>(at)});
        if (random() % 2 != 0) s.synchronize();
        for (std::size_t i = first; i < first + n; ++i) ++model[i];
        s.synchronize();
        break;
    }
  }
  for (std::size_t i = 0; i < k_words; ++i) ASSERT_EQ(b[i], model[i]) << i;
}

}  // namespace
}  // namespace api_test
