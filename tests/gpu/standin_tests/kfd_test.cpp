// SPDX-License-Identifier: MIT
// GPUs whose driver serves faults and moves pages by itself: what the runtime makes of its reports, and what it asks of it.
// Over the stand-ins for HIP and libhsakmt, whose own books (kmt_hooks.hpp) are the oracle: where pages really are, and
// which attributes they really have.
#include <hsakmt.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <random>
#include <thread>

#include "conformance/api_environment.hpp"
#include "gpu/standin/kmt_hooks.hpp"
#include "gpu/standin_tests/child.hpp"

namespace api_test {
namespace {

using Buffer = hmmrt::managed_buffer<std::uint32_t>;
constexpr std::size_t k_mib = std::size_t{1} << 20;
constexpr std::uint32_t k_system = 0, k_gpu = 1;  // nodes
constexpr std::uint32_t k_undefined = 0xffffffff;

int in_child_with(const char* name, std::vector<std::pair<const char*, std::string>> variables) {
  variables.emplace_back("HMMRT_TEST_KFD", "1");
  return in_child(name, variables);
}

class Kfd : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("HMMRT_TEST_KFD", "1", 1);
    setenv("HMMRT_TEST_HIP_DEVICES", "2", 0);
    open();
  }
  void open(std::vector<hmmrt::option> more = {}) {
    context_.reset();
    more.push_back({"device", "gpu:0"});
    more.push_back({"arena_bytes", "32M"});
    context_ = std::make_unique<hmmrt::context>(more);
    ASSERT_STREQ(context_->info().host_mirror, "kfd");
  }
  hmmrt::context& context() { return *context_; }
  hmmrt_context_t handle() { return context_->get(); }
  hmmrt_stats_t stats() { return context_->stats(); }
  static void add_one(const hmmrt::stream& s, Buffer& b) {
    s.launch("add", b.size(), AddOne{b.gpu()});
    s.synchronize();
  }
  // By turns, a word each, until the policy has had enough of it, or `most` rounds. Fast, or it would be no quarrel.
  int quarrel(const hmmrt::stream& s, Buffer& b, int most = 200) {
    int rounds = 0;
    while (rounds < most && stats().pins == 0) {
      s.launch("add", 1, AddOne{b.gpu()});
      s.synchronize();
      b[1] += 1;
      ++rounds;
    }
    return rounds;
  }
  static bool soon(const std::function<bool()>& fn) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!fn()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }

  std::unique_ptr<hmmrt::context> context_;
};

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

// ---- what a review found --------------------------------------------------------------------------------------------

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

// ---- in programs of their own: drivers that are less, fail, or lose reports ---------------------------------------------

// Uses a GPU by whatever host mirror `auto` takes. Throws what goes wrong.
void use(const char* mirror, const std::function<void(hmmrt::context&)>& and_then = {}) {
  hmmrt::context c({{"device", "gpu"}, {"log_level", "off"}});
  ASSERT_STREQ(c.info().host_mirror, mirror);
  Buffer b(c, 8 * k_block / 4);
  for (auto& v : b) v = 1;
  const hmmrt::stream s(c);
  constexpr std::uint32_t k_rounds = 6;
  for (std::uint32_t round = 0; round < k_rounds; ++round) {
    s.launch("add", b.size(), AddOne{b.gpu()});
    s.synchronize();
    for (std::size_t i = 0; i < b.size(); i += 512) ASSERT_EQ(b[i], 2 + round);
  }
  (void)hmmrt_prefetch(c.get(), b.data(), b.bytes(), 0, nullptr);
  (void)hmmrt_pin(c.get(), b.data(), b.bytes());
  for (std::size_t i = 0; i < b.size(); i += 512) ASSERT_EQ(b[i], 1 + k_rounds);
  (void)hmmrt_unpin(c.get(), b.data(), b.bytes());
  if (and_then) and_then(c);
}

TEST(GpuChild, DISABLED_uses_kfd) { use("kfd"); }
TEST(GpuChild, DISABLED_uses_uffd) { use("uffd"); }
TEST(GpuChild, DISABLED_loses_reports) {
  use("kfd", [](hmmrt::context& c) { EXPECT_GT(c.stats().driver_reports_lost, 0u); });
}
TEST(GpuChild, DISABLED_evicts) {
  use("kfd", [](hmmrt::context& c) {
    EXPECT_GT(hmmrt_standin_counts().evictions, 0u);
    (void)c;
  });
}
TEST(GpuChild, DISABLED_hears_nothing) {
  use("kfd", [](hmmrt::context& c) {
    EXPECT_NE(std::string(c.info().host_note).find("reports"), std::string::npos);
    EXPECT_EQ(c.stats().driver_reports, 0u);
  });
}
TEST(GpuChild, DISABLED_without_xnack) {
  setenv("HMMRT_HOST_MIRROR", "kfd", 1);
  use("kfd", [](hmmrt::context& c) {
    EXPECT_NE(std::string(c.info().host_note).find("without XNACK"), std::string::npos);
    EXPECT_NE(std::string(c.info().host_path).find("XNACK off"), std::string::npos);
    EXPECT_EQ(c.stats().device_faults, 0u);
  });
}
TEST(GpuChild, DISABLED_insists_on_xnack) {
  const hmmrt::context c({{"device", "gpu"}, {"xnack", "on"}, {"host_mirror", "kfd"}});
  EXPECT_NE(std::string(c.info().host_path).find("XNACK on"), std::string::npos);
}
TEST(GpuChild, DISABLED_cannot_have_xnack) {
  try {
    const hmmrt::context c({{"device", "gpu"}, {"xnack", "on"}, {"host_mirror", "kfd"}});
    FAIL() << "there is none";
  } catch (const hmmrt::error& e) {
    EXPECT_EQ(e.code(), HMMRT_ERROR_NOT_SUPPORTED);
    EXPECT_NE(std::string(e.what()).find("HSA_XNACK=1"), std::string::npos) << e.what();
  }
}
TEST(GpuChild, DISABLED_insists_on_kfd) {
  try {
    const hmmrt::context c({{"device", "gpu"}, {"host_mirror", "kfd"}});
    FAIL() << "there is none";
  } catch (const hmmrt::error& e) {
    EXPECT_EQ(e.code(), HMMRT_ERROR_NOT_SUPPORTED);
    EXPECT_NE(std::string(e.what()).find("no host mirror kfd"), std::string::npos) << e.what();
    EXPECT_GT(std::strlen(e.what()), 60u);
  }
}
// Whatever fails: an error that says what, or the right answer.
TEST(GpuChild, DISABLED_fails_or_not) {
  try {
    hmmrt::context c({{"device", "gpu"}, {"host_mirror", "kfd"}, {"log_level", "off"}});
    Buffer b(c, 4 * k_block / 4);
    for (auto& v : b) v = 1;
    const hmmrt::stream s(c);
    std::uint32_t want = 1;
    for (int round = 0; round < 4; ++round, ++want) {
      s.launch("add", b.size(), AddOne{b.gpu()});
      s.synchronize();
      (void)hmmrt_prefetch(c.get(), b.data(), b.bytes(), round % 2 == 0 ? 0 : hmmrt::cpu, nullptr);
      if (hmmrt_pin(c.get(), b.data(), b.bytes()) == HMMRT_SUCCESS) {
        hmmrt::check(hmmrt_unpin(c.get(), b.data(), b.bytes()));
      }
      (void)hmmrt_advise(c.get(), b.data(), b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, 0);
      for (std::size_t i = 0; i < b.size(); i += 512) ASSERT_EQ(b[i], want + 1);
    }
  } catch (const hmmrt::error& e) {
    EXPECT_GT(std::strlen(e.what()), 20u) << e.what();
  }
}

TEST(KfdLadder, without_xnack_pages_come_at_launch) {
  EXPECT_EQ(in_child_with("uses_uffd", {{"HMMRT_TEST_KFD_XNACK", "0"}}), 0);
}
TEST(KfdLadder, without_xnack_the_driver_is_taken_where_it_is_asked_for) {
  EXPECT_EQ(in_child_with("without_xnack", {{"HMMRT_TEST_KFD_XNACK", "0"}}), 0);
}
TEST(KfdLadder, xnack_is_turned_on_where_it_can_be) {
  EXPECT_EQ(in_child_with("insists_on_xnack", {{"HMMRT_TEST_KFD_XNACK", "0"}}), 0);
}
TEST(KfdLadder, xnack_that_cannot_be_is_an_error_that_says_what_to_do) {
  EXPECT_EQ(in_child_with("cannot_have_xnack", {{"HMMRT_TEST_KFD_XNACK", "never"}}), 0);
}
TEST(KfdLadder, a_kernel_without_svm_is_degraded_from) {
  EXPECT_EQ(in_child_with("uses_uffd", {{"HMMRT_TEST_KFD_SVM", "0"}}), 0);
  EXPECT_EQ(in_child_with("insists_on_kfd", {{"HMMRT_TEST_KFD_SVM", "0"}}), 0);
}
TEST(KfdLadder, no_driver_is_degraded_from) {
  EXPECT_EQ(in_child_with("uses_uffd", {{"HMMRT_TEST_KFD_FAIL", "hsaKmtOpenKFD"}}), 0);
  EXPECT_EQ(in_child_with("insists_on_kfd", {{"HMMRT_TEST_KFD_FAIL", "hsaKmtOpenKFD"}}), 0);
}
TEST(KfdLadder, without_reports_it_works_and_says_so) {
  EXPECT_EQ(in_child_with("hears_nothing", {{"HMMRT_TEST_KFD_SMI_OPEN", "0"}}), 0);
}

TEST(KfdReports, may_be_lost_damaged_or_of_another_kernel) {
  EXPECT_EQ(in_child_with("loses_reports", {{"HMMRT_TEST_KFD_SMI_DROP", "3"}}), 0);
  EXPECT_EQ(in_child_with("uses_kfd", {{"HMMRT_TEST_KFD_FIFO", "200"}}), 0);
  EXPECT_EQ(in_child_with("uses_kfd", {{"HMMRT_TEST_KFD_SMI_NOISE", "2"}}), 0);
  EXPECT_EQ(in_child_with("uses_kfd", {{"HMMRT_TEST_KFD_SMI", "7.2"}}), 0);
}

TEST(KfdCapacity, a_full_gpu_evicts_and_loses_nothing) {
  EXPECT_EQ(in_child_with("evicts", {{"HMMRT_TEST_HIP_MEMORY", "8388608"}}), 0);
}

// HIP's calls, of which this host mirror needs few.
TEST(KfdVendorFailure, may_come_at_any_time) {
  for (const char* call : {"hipSetDevice", "hipGetDeviceProperties", "hipDeviceGetAttribute", "hipMemGetInfo",
                           "hipStreamCreateWithFlags", "hipLaunchKernel", "hipStreamSynchronize"}) {
    for (const char* when : {"", ":1", ":2", ":3"}) {
      const std::string fails = std::string(call) + when;
      EXPECT_EQ(in_child_with("fails_or_not", {{"HMMRT_TEST_HIP_FAIL", fails}}), 0) << fails;
    }
  }
}

class KfdFailure : public ::testing::TestWithParam<const char*> {};

TEST_P(KfdFailure, may_come_at_any_time) {
  for (const char* when : {"", ":1", ":2", ":3", ":5", ":9", ":17"}) {
    const std::string fails = GetParam() + std::string(when);
    EXPECT_EQ(in_child_with("fails_or_not", {{"HMMRT_TEST_KFD_FAIL", fails}}), 0) << fails;
  }
}

INSTANTIATE_TEST_SUITE_P(of, KfdFailure,
                         ::testing::Values("hsaKmtOpenKFD", "hsaKmtCloseKFD", "hsaKmtAcquireSystemProperties",
                                           "hsaKmtReleaseSystemProperties", "hsaKmtSVMSetAttr", "hsaKmtSVMGetAttr",
                                           "hsaKmtGetXNACKMode", "hsaKmtSetXNACKMode", "hsaKmtOpenSMI"),
                         [](const auto& param_info) { return std::string(param_info.param); });

}  // namespace
}  // namespace api_test
