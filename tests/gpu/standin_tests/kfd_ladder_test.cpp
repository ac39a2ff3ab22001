// SPDX-License-Identifier: MIT
// Drivers that are less, fail, or lose reports. Each in a program of its own, for the stand-ins read the environment once.
#include "gpu/standin_tests/kfd_fixture.hpp"

#ifndef HMMRT_STANDIN_WAY
#define HMMRT_STANDIN_WAY "by libhsakmt"
#endif

namespace api_test {
namespace {

using Buffer = KfdBuffer;

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
// Nobody says that part of it is unmapped.
TEST(GpuChild, DISABLED_is_not_told_of_holes) {
  hmmrt::context c({{"device", "gpu"}, {"host_mirror", "kfd"}, {"log_level", "off"}});
  constexpr std::size_t bytes = 4 * k_block;
  Mapping m(bytes);
  std::memset(m.get(), 5, bytes);
  c.register_memory(m.get(), bytes);
  c.prefetch(m.get(), bytes, 0);
  ASSERT_EQ(m.unmap(k_block + 3 * k_page, k_page), 0);
  ASSERT_EQ(m.unmap(3 * k_block, k_block), 0);
  c.prefetch(m.get(), 3 * k_block, hmmrt::cpu);  // what is left there
  EXPECT_EQ(hmmrt_prefetch(c.get(), m.get(), 3 * k_block, 0, nullptr), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  EXPECT_EQ(c.stats().hints_without_effect, 0u);
  EXPECT_EQ(hmmrt_standin_where(m.get()), k_gpu);
  EXPECT_EQ(hmmrt_standin_where(m.get() + k_block), k_gpu);
  EXPECT_EQ(hmmrt_unregister(c.get(), m.get()), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  for (std::size_t i = 0; i < 3 * k_block; i += k_page) {
    if (i == k_block + 3 * k_page) continue;
    ASSERT_EQ(m.get()[i], 5) << i;
    ASSERT_EQ(hmmrt_standin_where(m.get() + i), k_system) << i;
  }
}
TEST(GpuChild, DISABLED_has_an_older_kernel) {
  use("kfd", [](hmmrt::context& c) {
    EXPECT_NE(std::string(c.info().host_note).find("KFD 1.9"), std::string::npos) << c.info().host_note;
    EXPECT_NE(std::string(c.info().host_note).find("nothing is steered"), std::string::npos);
    EXPECT_EQ(c.stats().driver_reports, 0u);
  });
}
TEST(GpuChild, DISABLED_has_a_granularity_of_its_own) {
  hmmrt::context c({{"device", "gpu"}, {"host_mirror", "kfd"}, {"log_level", "off"}});
  const Mapping m(24 * k_block);
  c.register_memory(m.get(), 24 * k_block);
  const auto words = [&](std::size_t block) {
    return reinterpret_cast<std::uint32_t*>(m.get() + block * k_block);  // aligned to pages
  };
  const hmmrt::stream s(c);
  const auto largest = [&] {
    std::uint32_t most = 0;
    for (std::size_t i = 0; i < 24; ++i) most = std::max(most, hmmrt_standin_attributes(words(i)).granularity);
    return most;
  };
  for (std::size_t i = 0; i < 24; ++i) {
    s.launch("add", k_block / 4, AddOne{hmmrt::gptr<std::uint32_t>(words(i))});
    s.synchronize();
    (void)c.stats();
  }
  EXPECT_GT(largest(), 9u);  // by then it runs ahead
  c.unregister_memory(m.get());
  EXPECT_EQ(largest(), 8u);
}
TEST(GpuChild, DISABLED_without_xnack) {
  setenv("HMMRT_HOST_MIRROR", "kfd", 1);
  use("kfd", [](hmmrt::context& c) {
    EXPECT_NE(std::string(c.info().host_note).find("without XNACK"), std::string::npos);
    EXPECT_NE(std::string(c.info().host_path).find("XNACK off"), std::string::npos);
    EXPECT_EQ(c.stats().device_faults, 0u);
  });
}
// What a prefetch to one of two GPUs comes to, where both may use the memory in place.
void prefetch_of_two(bool moves) {
  hmmrt::context c({{"device", "gpu:0,gpu:1"}, {"host_mirror", "kfd"}, {"log_level", "off"}});
  Buffer b(c, k_block / 4);
  for (auto& v : b) v = 1;
  c.advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_ACCESSED_BY, 1);
  c.prefetch(b.data(), b.bytes(), 0);
  EXPECT_EQ(hmmrt_standin_where(b.data()), moves ? k_gpu : k_system);
  EXPECT_EQ(b.stats().bytes_resident_device, moves ? b.bytes() : 0);
  EXPECT_EQ(c.stats().hints_without_effect, moves ? 0u : 1u);
  for (const unsigned device : {0u, 1u}) {
    const hmmrt::stream s(c, device);
    s.launch("add", b.size(), AddOne{b.gpu()});
    s.synchronize();
  }
  for (const std::uint32_t v : b) ASSERT_EQ(v, 3u);
}
// A container with some of the machine's GPUs: libhsakmt counts those.
TEST(GpuChild, DISABLED_behind_a_hidden_one) {
  hmmrt::context c({{"device", "gpu:0,gpu:1"}, {"host_mirror", "kfd"}, {"log_level", "off"}});
  EXPECT_NE(std::string(c.info().host_path).find(HMMRT_STANDIN_WAY), std::string::npos);
  Buffer b(c, k_block / 4);
  for (auto& v : b) v = 1;
  for (const unsigned device : {1u, 0u}) {
    c.prefetch(b.data(), b.bytes(), static_cast<int>(device));
    EXPECT_EQ(hmmrt_standin_where(b.data()), k_gpu + device);
    c.advise(b.data(), b.bytes(), HMMRT_ADVISE_SET_PREFERRED_LOCATION, static_cast<int>(device));
    EXPECT_EQ(hmmrt_standin_attributes(b.data()).preferred, k_gpu + device);
  }
  EXPECT_EQ(c.stats().attribute_changes_refused, 0u);
  const hmmrt::stream s(c, 1);
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  (void)c.stats();
  EXPECT_GT(c.stats().driver_reports, 0u);
  for (const std::uint32_t v : b) ASSERT_EQ(v, 2u);
}
TEST(GpuChild, DISABLED_two_of_one_hive) { prefetch_of_two(true); }
TEST(GpuChild, DISABLED_two_strangers) { prefetch_of_two(false); }
TEST(GpuChild, DISABLED_insists_on_xnack) {
  const hmmrt::context c({{"device", "gpu"}, {"xnack", "on"}, {"host_mirror", "kfd"}});
  EXPECT_NE(std::string(c.info().host_path).find("XNACK on"), std::string::npos);
}
TEST(GpuChild, DISABLED_cannot_have_xnack) {
  for (const char* mirror : {"kfd", "auto"}) {
    try {
      const hmmrt::context c({{"device", "gpu"}, {"xnack", "on"}, {"host_mirror", mirror}});
      FAIL() << "there is none";
    } catch (const hmmrt::error& e) {
      EXPECT_EQ(e.code(), HMMRT_ERROR_NOT_SUPPORTED);
      EXPECT_NE(std::string(e.what()).find("HSA_XNACK=1"), std::string::npos) << e.what();
    }
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
TEST(GpuChild, DISABLED_is_in_parts) {
  try {
    const hmmrt::context c({{"device", "gpu"}, {"host_mirror", "kfd"}});
    FAIL() << "which of them?";
  } catch (const hmmrt::error& e) {
    EXPECT_EQ(e.code(), HMMRT_ERROR_NOT_SUPPORTED);
    EXPECT_NE(std::string(e.what()).find("2 GPUs at PCI 0:1:0"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("unpartitioned"), std::string::npos) << e.what();
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
TEST(KfdLadder, a_gpu_in_parts_is_degraded_from) {
  EXPECT_EQ(in_child_with("uses_uffd", {{"HMMRT_TEST_KFD_PARTITIONS", "1"}}), 0);
  EXPECT_EQ(in_child_with("is_in_parts", {{"HMMRT_TEST_KFD_PARTITIONS", "1"}}), 0);
}
TEST(KfdLadder, without_reports_it_works_and_says_so) {
  EXPECT_EQ(in_child_with("hears_nothing", {{"HMMRT_TEST_KFD_SMI_OPEN", "0"}}), 0);
}
TEST(KfdLadder, without_reports_holes_cost_nothing_else) {
  EXPECT_EQ(in_child_with("is_not_told_of_holes", {{"HMMRT_TEST_KFD_SMI_OPEN", "0"}}), 0);
}
TEST(KfdLadder, a_kernel_without_reports_works_and_is_said_to_be_one) {
  EXPECT_EQ(in_child_with("has_an_older_kernel", {{"HMMRT_TEST_KFD_MINOR", "9"}}), 0);
}

TEST(GpuChild, DISABLED_apu) {
  hmmrt::context c({{"device", "gpu"}, {"log_level", "off"}});
  ASSERT_STREQ(c.info().host_mirror, "kfd");
  Buffer b(c, 8 * k_block / 4);
  for (auto& v : b) v = 1;
  c.prefetch(b.data(), b.bytes(), 0);
  EXPECT_EQ(c.stats().hints_without_effect, 1u);
  const hmmrt::stream s(c);
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  EXPECT_EQ(b.stats().bytes_resident_device, 0u);
  EXPECT_EQ(hmmrt_standin_where(b.data()), k_system);
  for (const std::uint32_t v : b) ASSERT_EQ(v, 2u);
}
TEST(KfdGranularity, is_the_drivers_own_again_afterwards) {
  EXPECT_EQ(in_child_with("has_a_granularity_of_its_own", {{"HMMRT_TEST_KFD_GRANULARITY", "8"}}), 0);
}
TEST(KfdApu, has_no_memory_to_move_to) { EXPECT_EQ(in_child_with("apu", {{"HMMRT_TEST_KFD_APU", "1"}}), 0); }

TEST(KfdTwo, are_sent_memory_only_where_both_reach_it) {
  EXPECT_EQ(in_child_with("two_of_one_hive", {{"HMMRT_TEST_HIP_DEVICES", "2"}, {"HMMRT_TEST_KFD_HIVE", "1"}}), 0);
  EXPECT_EQ(in_child_with("two_strangers", {{"HMMRT_TEST_HIP_DEVICES", "2"}}), 0);
  EXPECT_EQ(in_child_with("two_strangers", {{"HMMRT_TEST_HIP_DEVICES", "2"}, {"HMMRT_TEST_KFD_XNACK", "0"}}), 0);
}

TEST(KfdTwo, are_told_apart_behind_a_hidden_one) {
  EXPECT_EQ(in_child_with("behind_a_hidden_one", {{"HMMRT_TEST_HIP_DEVICES", "2"}, {"HMMRT_TEST_KFD_HIDDEN", "1"}}), 0);
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
                         ::testing::Values("hsaKmtOpenKFD", "hsaKmtCloseKFD", "hsaKmtGetVersion",
                                           "hsaKmtAcquireSystemProperties", "hsaKmtGetNodeProperties",
                                           "hsaKmtReleaseSystemProperties", "hsaKmtSVMSetAttr", "hsaKmtSVMGetAttr",
                                           "hsaKmtGetXNACKMode", "hsaKmtSetXNACKMode", "hsaKmtOpenSMI"),
                         [](const auto& param_info) { return std::string(param_info.param); });

}  // namespace
}  // namespace api_test
