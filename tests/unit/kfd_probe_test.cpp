// SPDX-License-Identifier: MIT
// The probe says which rung of the ladder a machine is on, for made-up topologies and drivers, and what to do about it.
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include "host/kfd/kfd_abi.h"
#if __has_include(<hsakmttypes.h>)
#include <hsakmttypes.h>
#endif

#include "host/kfd/hsakmt.hpp"
#include "host/kfd/probe.hpp"
#include "host/kfd/svm_driver.hpp"

#if __has_include(<linux/kfd_ioctl.h>)
#include <linux/kfd_ioctl.h>
#define HMMRT_KERNEL_HEADER 1
#endif

namespace hmmrt::kfd {
namespace {

// What the made-up driver answers: 0 or an errno.
struct Driver {
  int open = 0, get_version = 0, svm = 0, xnack = 0;
  std::uint32_t major = 1, minor = 14;
  int xnack_enabled = 0;
  std::string refused;  // a file of the topology that a container may not read
  unsigned svm_calls = 0, xnack_calls = 0;
  bool only_asked = true;
} driver;

int answer(int error) {
  errno = error;
  return error == 0 ? 0 : -1;
}

int fake_open(const char* path, int flags) {
  if (driver.open != 0) return answer(driver.open);
  if (path == driver.refused) return answer(EPERM);
  return ::open(path, flags);
}

int fake_ioctl(int, unsigned long request, void* argument) {
  if (request == HMMRT_KFD_GET_VERSION) {
    *static_cast<hmmrt_kfd_version*>(argument) = {driver.major, driver.minor};
    return answer(driver.get_version);
  }
  if (request == HMMRT_KFD_SVM_WITH(1)) {
    const auto* svm = static_cast<hmmrt_kfd_svm*>(argument);
    ++driver.svm_calls;
    driver.only_asked &= svm->op == HMMRT_KFD_SVM_GET_ATTR && svm->attributes == 1 && svm->start % 4096 == 0 &&
                         svm->start != 0 && svm->bytes % 4096 == 0 && svm->bytes != 0;
    return answer(driver.svm);
  }
  if (request == HMMRT_KFD_XNACK) {
    auto* xnack = static_cast<hmmrt_kfd_xnack*>(argument);
    ++driver.xnack_calls;
    driver.only_asked &= xnack->enabled < 0;
    xnack->enabled = driver.xnack_enabled;
    return answer(driver.xnack);
  }
  ADD_FAILURE() << "request " << std::hex << request;
  return answer(ENOTTY);
}

class KfdProbe : public testing::Test {
 protected:
  KfdProbe() {
    driver = {};
    system_.device = (root_ / "dev-kfd").string();
    system_.nodes = (root_ / "nodes").string();
    system_.module = (root_ / "amdgpu").string();
    system_.open = fake_open;
    system_.ioctl = fake_ioctl;
    write("dev-kfd", "");
  }
  ~KfdProbe() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  void cpu_node(unsigned node) {
    write("nodes/" + std::to_string(node) + "/gpu_id", "0\n");
    write("nodes/" + std::to_string(node) + "/properties", "cpu_cores_count 16\nsimd_count 0\n");
  }
  void gpu_node(unsigned node, std::uint32_t gpu_id, bool svm = true) {
    write("nodes/" + std::to_string(node) + "/gpu_id", std::to_string(gpu_id) + "\n");
    write("nodes/" + std::to_string(node) + "/properties",
          "cpu_cores_count 0\nsimd_count 440\ngfx_target_version 90010\nmax_engine_clk_fcompute 1700\ncapability " +
              std::to_string(svm ? 0x08000000 + 0x2080 : 0x2080) + "\nsdma_fw_version 8\n");
  }
  // The sentence has these words, and is one sentence.
  void expect(Rung rung, std::initializer_list<const char*> words) {
    const Probe p = probe(system_);
    EXPECT_STREQ(rung_name(p.rung), rung_name(rung)) << p.says;
    for (const char* word : words) EXPECT_NE(p.says.find(word), std::string::npos) << word << " in: " << p.says;
    EXPECT_GT(p.says.size(), 20u);
    EXPECT_NE(p.says.back(), '.');
    EXPECT_EQ(p.says.find('\n'), std::string::npos);
    EXPECT_TRUE(driver.only_asked);
  }

  std::filesystem::path root_ = [] {
    std::string pattern = (std::filesystem::temp_directory_path() / "hmmrt-kfd-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error(strerror(errno));
    return pattern;
  }();
  KfdSystem system_;
};

TEST_F(KfdProbe, no_driver) {
  std::filesystem::remove(system_.device);
  expect(Rung::absent, {system_.device.c_str(), "amdgpu is not loaded", "load it"});
}

TEST_F(KfdProbe, driver_without_its_compute_part) {
  std::filesystem::remove(system_.device);
  write("amdgpu/refcnt", "0\n");
  expect(Rung::absent, {"CONFIG_HSA_AMD"});
}

TEST_F(KfdProbe, container_without_the_device) {
  std::filesystem::remove(system_.device);
  cpu_node(0);
  expect(Rung::absent, {"container", "--device"});
}

TEST_F(KfdProbe, user_outside_the_group) {
  driver.open = EACCES;
  expect(Rung::no_permission, {"render", "usermod"});
}

TEST_F(KfdProbe, container_that_may_not_open_it) {
  driver.open = EPERM;
  expect(Rung::no_permission, {"container"});
}

TEST_F(KfdProbe, driver_that_does_not_open) {
  driver.open = EAGAIN;  // in a GPU reset
  expect(Rung::unusable, {strerror(EAGAIN), "kernel's log"});
}

TEST_F(KfdProbe, something_else_by_that_name) {
  driver.get_version = ENOTTY;
  expect(Rung::unusable, {"version", strerror(ENOTTY)});
}

TEST_F(KfdProbe, another_abi) {
  driver.major = 2;
  expect(Rung::unusable, {"2.14", "1.x"});
}

TEST_F(KfdProbe, no_topology) { expect(Rung::unusable, {system_.nodes.c_str(), strerror(ENOENT), "/sys"}); }

TEST_F(KfdProbe, empty_topology) {
  std::filesystem::create_directories(system_.nodes);
  expect(Rung::unusable, {"no processor"});
}

TEST_F(KfdProbe, only_cpu_nodes) {
  cpu_node(0);
  cpu_node(1);
  expect(Rung::cpu_only, {"only CPU nodes (2)", "no AMD GPU"});
  const Probe p = probe(system_);
  EXPECT_EQ(p.cpu_nodes, 2u);
  EXPECT_TRUE(p.gpus.empty());
  EXPECT_EQ(p.version_major, 1u);
  EXPECT_EQ(p.version_minor, 14u);
  EXPECT_EQ(driver.svm_calls, 0u);
}

TEST_F(KfdProbe, gpus_that_the_container_may_not_use) {
  cpu_node(0);
  gpu_node(1, 4660);
  driver.refused = system_.nodes + "/1/gpu_id";
  expect(Rung::no_permission, {"1 AMD GPU ", "--device"});
  EXPECT_EQ(probe(system_).hidden_nodes, 1u);
  gpu_node(2, 4661);  // one that it may
  expect(Rung::svm, {"1 AMD GPU "});
  EXPECT_EQ(probe(system_).hidden_nodes, 1u);
}

TEST_F(KfdProbe, kernel_without_svm) {
  cpu_node(0);
  gpu_node(1, 4660);
  for (const int error : {EPERM, EINVAL, ENOTTY}) {
    driver.svm = error;
    expect(Rung::no_svm, {"1 AMD GPU,", strerror(error), "CONFIG_HSA_AMD_SVM", "CONFIG_DEVICE_PRIVATE"});
  }
  driver.minor = 4;
  expect(Rung::no_svm, {"5.14"});
  EXPECT_EQ(driver.xnack_calls, 0u);
}

TEST_F(KfdProbe, gpu_without_svm_in_a_kernel_with_it) {
  cpu_node(0);
  gpu_node(1, 4660, false);
  expect(Rung::no_svm, {"1 AMD GPU,", "Vega"});
}

TEST_F(KfdProbe, svm_with_xnack_off) {
  cpu_node(0);
  gpu_node(1, 4660);
  gpu_node(2, 4661);
  expect(Rung::svm, {"2 AMD GPUs with", "XNACK off", "HSA_XNACK=1"});
}

TEST_F(KfdProbe, svm_with_xnack) {
  cpu_node(0);
  gpu_node(1, 4660);
  driver.xnack_enabled = 1;
  expect(Rung::svm_xnack, {"1 AMD GPU with", "XNACK on", "nothing is missing"});
}

TEST_F(KfdProbe, svm_whose_xnack_mode_is_secret) {
  cpu_node(0);
  gpu_node(1, 4660);
  driver.xnack = EBUSY;
  expect(Rung::svm, {strerror(EBUSY), "XNACK"});
}

TEST_F(KfdProbe, some_gpus_with_svm) {
  cpu_node(0);
  gpu_node(1, 4660, false);
  gpu_node(2, 4661);
  expect(Rung::svm, {"1 of 2 AMD GPUs with"});
}

TEST_F(KfdProbe, gpus_come_by_node_with_both_their_numbers) {
  cpu_node(0);
  gpu_node(10, 4294967295u, false);
  gpu_node(2, 4661);
  const Probe p = probe(system_);
  ASSERT_EQ(p.gpus.size(), 2u);
  EXPECT_EQ(p.gpus[0].node, 2u);
  EXPECT_EQ(p.gpus[0].gpu_id, 4661u);
  EXPECT_EQ(p.gpus[0].gfx_version, 90010u);
  EXPECT_TRUE(p.gpus[0].svm);
  EXPECT_EQ(p.gpus[1].node, 10u);
  EXPECT_EQ(p.gpus[1].gpu_id, 4294967295u);
  EXPECT_FALSE(p.gpus[1].svm);
}

TEST_F(KfdProbe, a_gpu_in_one_node_with_a_cpu_has_its_memory) {
  gpu_node(1, 4660);
  write("nodes/2/gpu_id", "4661\n");
  write("nodes/2/properties", "cpu_cores_count 4\nsimd_count 32\n");
  const Probe p = probe(system_);
  ASSERT_EQ(p.gpus.size(), 2u);
  EXPECT_FALSE(p.gpus[0].apu);
  EXPECT_TRUE(p.gpus[1].apu);
}

TEST_F(KfdProbe, odd_files_in_the_topology_are_passed_over) {
  cpu_node(0);
  write("nodes/generation_id", "3\n");
  write("nodes/1x/gpu_id", "4660\n");
  write("nodes/99999999999/gpu_id", "4660\n");
  write("nodes/3/gpu_id", "");
  write("nodes/4/gpu_id", "gpu\n");
  write("nodes/5/gpu_id", "4294967296\n");
  write("nodes/6/properties", "simd_count 4\n");
  std::filesystem::create_directories(root_ / "nodes/7/gpu_id");
  expect(Rung::cpu_only, {"only CPU nodes (1)"});
}

TEST_F(KfdProbe, a_gpu_whose_properties_say_nothing_has_no_svm) {
  for (const char* properties :
       {"", "\n\n", "capability\n", "capability \n", "capability x\n", "capabilityX 4294967295\n",
        "xcapability 4294967295", "capability 99999999999999999999"}) {
    SCOPED_TRACE(properties);
    write("nodes/1/gpu_id", "4660");
    write("nodes/1/properties", properties);
    expect(Rung::no_svm, {"1 AMD GPU,"});
  }
}

TEST(KfdAbi, is_the_kernels) {
#ifdef HMMRT_KERNEL_HEADER
  static_assert(HMMRT_KFD_GET_VERSION == AMDKFD_IOC_GET_VERSION);
  static_assert(HMMRT_KFD_SMI_EVENTS == AMDKFD_IOC_SMI_EVENTS);
  static_assert(HMMRT_KFD_SVM_WITH(0) == AMDKFD_IOC_SVM);
  static_assert(HMMRT_KFD_SVM_WITH(3) == AMDKFD_IOC_SVM + (3 * sizeof(kfd_ioctl_svm_attribute) << _IOC_SIZESHIFT));
  static_assert(HMMRT_KFD_XNACK == AMDKFD_IOC_SET_XNACK_MODE);
  static_assert(HMMRT_KFD_MAJOR == KFD_IOCTL_MAJOR_VERSION);
  static_assert(int{HMMRT_KFD_SVM_SET_ATTR} == int{KFD_IOCTL_SVM_OP_SET_ATTR});
  static_assert(int{HMMRT_KFD_SVM_GET_ATTR} == int{KFD_IOCTL_SVM_OP_GET_ATTR});
  static_assert(int{HMMRT_KFD_SVM_ATTR_GRANULARITY} == int{KFD_IOCTL_SVM_ATTR_GRANULARITY});
  const auto same = [](SvmAttr ours, kfd_ioctl_svm_attr_type kernels) {
    EXPECT_EQ(static_cast<int>(ours), static_cast<int>(kernels)) << attribute_name(ours);
  };
  same(SvmAttr::preferred_location, KFD_IOCTL_SVM_ATTR_PREFERRED_LOC);
  same(SvmAttr::prefetch_location, KFD_IOCTL_SVM_ATTR_PREFETCH_LOC);
  same(SvmAttr::access, KFD_IOCTL_SVM_ATTR_ACCESS);
  same(SvmAttr::access_in_place, KFD_IOCTL_SVM_ATTR_ACCESS_IN_PLACE);
  same(SvmAttr::no_access, KFD_IOCTL_SVM_ATTR_NO_ACCESS);
  same(SvmAttr::set_flags, KFD_IOCTL_SVM_ATTR_SET_FLAGS);
  same(SvmAttr::clear_flags, KFD_IOCTL_SVM_ATTR_CLR_FLAGS);
  same(SvmAttr::granularity, KFD_IOCTL_SVM_ATTR_GRANULARITY);
  static_assert(k_system_memory == std::uint32_t{KFD_IOCTL_SVM_LOCATION_SYSMEM});
  static_assert(k_nowhere == std::uint32_t{KFD_IOCTL_SVM_LOCATION_UNDEFINED});
  static_assert(k_flag_host_access == KFD_IOCTL_SVM_FLAG_HOST_ACCESS);
  static_assert(k_flag_coherent == KFD_IOCTL_SVM_FLAG_COHERENT);
  static_assert(sizeof(hmmrt_kfd_svm_attribute) == sizeof(kfd_ioctl_svm_attribute));
  static_assert(offsetof(hmmrt_kfd_svm_attribute, value) == offsetof(kfd_ioctl_svm_attribute, value));
  static_assert(offsetof(hmmrt_kfd_svm, start) == offsetof(kfd_ioctl_svm_args, start_addr));
  static_assert(offsetof(hmmrt_kfd_svm, bytes) == offsetof(kfd_ioctl_svm_args, size));
  static_assert(sizeof(hmmrt_kfd_xnack) == sizeof(kfd_ioctl_set_xnack_mode_args));
  static_assert(offsetof(hmmrt_kfd_version, abi_minor) == offsetof(kfd_ioctl_get_version_args, minor_version));
  static_assert(offsetof(hmmrt_kfd_svm, op) == offsetof(kfd_ioctl_svm_args, op));
  static_assert(offsetof(hmmrt_kfd_svm, attributes) == offsetof(kfd_ioctl_svm_args, nattr));
  static_assert(offsetof(hmmrt_kfd_svm, attribute) == sizeof(kfd_ioctl_svm_args));
  static_assert(offsetof(hmmrt_kfd_smi_events, fd) == offsetof(kfd_ioctl_smi_events_args, anon_fd));
#else
  GTEST_SKIP() << "there is no linux/kfd_ioctl.h (linux-libc-dev) to compare with";
#endif
}

TEST(KfdAbi, is_that_of_libhsakmt) {
#if __has_include(<hsakmttypes.h>)
  const auto same = [](SvmAttr ours, HSA_SVM_ATTR_TYPE theirs) {
    EXPECT_EQ(static_cast<int>(ours), static_cast<int>(theirs)) << attribute_name(ours);
  };
  same(SvmAttr::preferred_location, HSA_SVM_ATTR_PREFERRED_LOC);
  same(SvmAttr::prefetch_location, HSA_SVM_ATTR_PREFETCH_LOC);
  same(SvmAttr::access, HSA_SVM_ATTR_ACCESS);
  same(SvmAttr::access_in_place, HSA_SVM_ATTR_ACCESS_IN_PLACE);
  same(SvmAttr::no_access, HSA_SVM_ATTR_NO_ACCESS);
  same(SvmAttr::set_flags, HSA_SVM_ATTR_SET_FLAGS);
  same(SvmAttr::clear_flags, HSA_SVM_ATTR_CLR_FLAGS);
  same(SvmAttr::granularity, HSA_SVM_ATTR_GRANULARITY);
  static_assert(sizeof(SvmAttribute) == sizeof(HSA_SVM_ATTRIBUTE));
  static_assert(offsetof(SvmAttribute, value) == offsetof(HSA_SVM_ATTRIBUTE, value));
  static_assert(int{k_flag_host_access} == HSA_SVM_FLAG_HOST_ACCESS);
  static_assert(int{k_flag_coherent} == HSA_SVM_FLAG_COHERENT);
  static_assert(sizeof(HsaSystemProperties) == 4 * sizeof(std::uint32_t));
  static_assert(sizeof(HsaVersionInfo) == 2 * sizeof(std::uint32_t));
  static_assert(k_node_simds == offsetof(HsaNodeProperties, NumFComputeCores));
  static_assert(k_node_location == offsetof(HsaNodeProperties, LocationId));
  static_assert(k_node_domain == offsetof(HsaNodeProperties, Domain));
  static_assert(k_nowhere == INVALID_NODEID);
#else
  GTEST_SKIP() << "no hsakmttypes.h (libhsakmt-dev) to compare with";
#endif
}

// Whatever this machine has: the way that is taken is said, and what it lacks.
TEST(KfdHere, driver_opens_or_says_why_not) {
  std::string why;
  const SvmDriver* const opened = SvmDriver::open(&why);
  if (opened != nullptr) why = opened->way();
  EXPECT_NE(why.find("by the kernel directly"), std::string::npos) << why;
  std::printf("%s\n", why.c_str());
}

// With AMD's real library, too.
TEST(KfdHere, libhsakmt_opens_or_says_why_not) {
  void* const library = dlopen("libhsakmt.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) GTEST_SKIP() << "no libhsakmt.so.1 (libhsakmt1)";
  ASSERT_EQ(Hsakmt::library_here(), library);
  std::string why;
  const std::unique_ptr<Hsakmt> opened = Hsakmt::make(library, &why);
  if (opened != nullptr) why = opened->way();
  EXPECT_NE(why.find("by libhsakmt"), std::string::npos) << why;
  std::printf("%s\n", why.c_str());
}

// Whatever this machine has: the probe ends, and says something.
TEST(KfdHere, probe_of_this_machine_answers) {
  const Probe p = probe();
  EXPECT_FALSE(p.says.empty());
  std::printf("%s: %s\n", rung_name(p.rung), p.says.c_str());
}

TEST(KfdRelease, says_whether_faults_move_whole_ranges) {
  for (const char* old : {"5.14.0-427.el9.x86_64", "5.15.0-100-generic", "6.1.0-28-amd64", "6.7.12"}) {
    EXPECT_TRUE(hmmrt::kfd::moves_whole_ranges(old)) << old;
  }
  for (const char* other : {"6.8.0-31-generic", "6.12.9", "7.0-rc1", "", "x"}) {
    EXPECT_FALSE(hmmrt::kfd::moves_whole_ranges(other)) << other;
  }
}

}  // namespace
}  // namespace hmmrt::kfd
