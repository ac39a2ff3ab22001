// SPDX-License-Identifier: MIT
// The driver's SVM calls made of the kernel directly, over a made-up kernel that reads what it is given as amdkfd does.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "host/kfd/kernel_svm.hpp"
#include "host/kfd/kfd_abi.h"

namespace hmmrt::kfd {
namespace {

constexpr std::uint32_t k_gpu = 0xcafe, k_other = 0xbeef;  // gpu_ids

struct Kernel {
  int open = 0, version = 0, error = 0;  // what it answers: 0 or an errno
  std::uint32_t major = 1, minor = 14;
  int again = 0, again_error = EINTR;  // so many calls are interrupted first
  bool queues = false, xnack_possible = true;
  int xnack = 0;
  unsigned calls = 0, opened_flags = 0;
  std::uint64_t start = 0, bytes = 0;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> attributes;  // as set last
  std::uint32_t granularity = 9, preferred = k_nowhere;
  int smi = -1;  // the kernel's end
} kernel;

int answer(int error) {
  errno = error;
  return error == 0 ? 0 : -1;
}

bool known(std::uint32_t gpu_id) { return gpu_id == k_gpu || gpu_id == k_other; }

// svm_range_check_attr().
bool valid(std::uint32_t type, std::uint32_t value) {
  switch (type) {
    case 0:  // preferred location
      return value == 0 || value == 0xffffffff || known(value);
    case 1:  // prefetch location
      return value == 0 || known(value);
    case 2:  // access, in place, none
    case 3:
    case 4:
      return known(value);
    default:
      return type <= 7;
  }
}

int svm(std::size_t size, void* argument) {
  struct Head {
    std::uint64_t start, bytes;
    std::uint32_t op, n;
  } head{};
  std::memcpy(&head, argument, sizeof head);
  if (size != sizeof head + head.n * 8u) return answer(EINVAL);  // kfd_ioctl_svm_validate()
  if (head.start == 0 || head.bytes == 0 || head.start % 4096 != 0 || head.bytes % 4096 != 0) return answer(EINVAL);
  kernel.start = head.start;
  kernel.bytes = head.bytes;
  auto* const words = static_cast<std::uint32_t*>(argument) + sizeof head / 4;
  std::vector<std::pair<std::uint32_t, std::uint32_t>> all;
  for (std::uint32_t i = 0; i < head.n; ++i) all.emplace_back(words[2 * i], words[2 * i + 1]);
  if (head.op == 0) {
    for (const auto& [type, value] : all) {
      if (!valid(type, value)) return answer(EINVAL);
      if (type == 0) kernel.preferred = value;
      if (type == 7) kernel.granularity = value;
    }
    kernel.attributes = all;
    return 0;
  }
  for (std::uint32_t i = 0; i < head.n; ++i) {
    const auto [type, value] = all[i];
    if (type >= 2 && type <= 4) {
      if (!known(value)) return answer(EINVAL);
      words[2 * i] = value == k_gpu ? 3 : 4;  // in place for one, not at all for the other
    } else {
      words[2 * i + 1] = type == 0 ? kernel.preferred : type == 7 ? kernel.granularity : 0;
    }
  }
  return 0;
}

int fake_open(const char*, int flags) {
  kernel.opened_flags = static_cast<unsigned>(flags);
  return kernel.open != 0 ? answer(kernel.open) : ::open("/dev/null", O_RDWR | O_CLOEXEC);
}

int fake_ioctl(int, unsigned long request, void* argument) {
  if (_IOC_TYPE(request) != 'K') return answer(ENOTTY);
  ++kernel.calls;
  if (kernel.again > 0) {
    --kernel.again;
    return answer(kernel.again_error);
  }
  switch (_IOC_NR(request)) {
    case 0x01: {
      const std::uint32_t version[] = {kernel.major, kernel.minor};
      std::memcpy(argument, version, sizeof version);
      return answer(kernel.version);
    }
    case 0x1f: {
      std::uint32_t words[2];
      std::memcpy(words, argument, sizeof words);
      if (kernel.error != 0) return answer(kernel.error);
      if (!known(words[0])) return answer(EINVAL);
      int pair[2];
      if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) return -1;
      kernel.smi = pair[0];
      words[1] = static_cast<std::uint32_t>(pair[1]);
      std::memcpy(argument, words, sizeof words);
      return 0;
    }
    case 0x20:
      return kernel.error != 0 ? answer(kernel.error) : svm(_IOC_SIZE(request), argument);
    case 0x21: {
      std::int32_t wanted = 0;
      std::memcpy(&wanted, argument, sizeof wanted);
      if (kernel.error != 0) return answer(kernel.error);
      if (wanted >= 0 && kernel.queues) return answer(EBUSY);
      if (wanted > 0 && !kernel.xnack_possible) return answer(EPERM);
      if (wanted >= 0) kernel.xnack = wanted;
      std::memcpy(argument, &kernel.xnack, sizeof kernel.xnack);
      return 0;
    }
    default:
      return answer(ENOTTY);
  }
}

class KfdDirect : public testing::Test {
 protected:
  KfdDirect() {
    kernel = {};
    system_.open = fake_open;
    system_.ioctl = fake_ioctl;
  }
  ~KfdDirect() override {
    if (kernel.smi >= 0) close(kernel.smi);
  }
  void open() {
    std::string why;
    driver_ = KernelSvm::make(system_, &why);
    ASSERT_NE(driver_, nullptr) << why;
  }
  void expect_refusal(std::initializer_list<const char*> words) {
    std::string why;
    EXPECT_EQ(KernelSvm::make(system_, &why), nullptr);
    for (const char* word : words) EXPECT_NE(why.find(word), std::string::npos) << word << " in: " << why;
    EXPECT_NE(why.find("by the kernel directly"), std::string::npos) << why;
    EXPECT_NE(why.find("/dev/kfd"), std::string::npos) << why;
  }

  KfdSystem system_;
  std::unique_ptr<KernelSvm> driver_;
  static constexpr std::uintptr_t k_at = 0x7f0000200000;
};

TEST_F(KfdDirect, says_which_way_it_is_and_which_driver) {
  open();
  EXPECT_STREQ(driver_->way(), "by the kernel directly");
  EXPECT_EQ(driver_->minor(), 14u);
  EXPECT_NE(kernel.opened_flags & O_CLOEXEC, 0u);
}

TEST_F(KfdDirect, a_device_that_does_not_open_or_is_too_old_is_refused) {
  kernel.open = EACCES;
  expect_refusal({strerror(EACCES)});
  kernel.open = 0;
  kernel.version = ENOTTY;
  expect_refusal({strerror(ENOTTY), "version"});
  kernel.version = 0;
  kernel.minor = 4;
  expect_refusal({"1.4", "1.5", "5.14"});
  kernel.major = 2;
  kernel.minor = 14;
  expect_refusal({"2.14"});
}

TEST_F(KfdDirect, attributes_are_set_with_gpu_ids) {
  open();
  const std::array<SvmAttribute, 5> all{{{SvmAttr::preferred_location, k_nowhere},
                                         {SvmAttr::access_in_place, k_gpu},
                                         {SvmAttr::access, k_other},
                                         {SvmAttr::granularity, 11},
                                         {SvmAttr::prefetch_location, k_system_memory}}};
  ASSERT_EQ(driver_->set(k_at, 0x3000, all), 0);
  EXPECT_EQ(kernel.start, k_at);
  EXPECT_EQ(kernel.bytes, 0x3000u);
  const std::vector<std::pair<std::uint32_t, std::uint32_t>> want = {
      {0, 0xffffffff}, {3, k_gpu}, {2, k_other}, {7, 11}, {1, 0}};
  EXPECT_EQ(kernel.attributes, want);
  const std::array<SvmAttribute, 1> one{{{SvmAttr::prefetch_location, k_gpu}}};
  ASSERT_EQ(driver_->set(k_at, 0x1000, one), 0);
  EXPECT_EQ(kernel.attributes.front(), std::make_pair(1u, k_gpu));
}

TEST_F(KfdDirect, attributes_are_read) {
  open();
  kernel.preferred = k_other;
  std::array<SvmAttribute, 4> all{{{SvmAttr::granularity, 0},
                                   {SvmAttr::preferred_location, 0},
                                   {SvmAttr::access, k_gpu},
                                   {SvmAttr::access, k_other}}};
  ASSERT_EQ(driver_->get(k_at, 0x1000, all), 0);
  EXPECT_EQ(all[0].value, 9u);
  EXPECT_EQ(all[1].value, k_other);
  EXPECT_EQ(all[2].type, SvmAttr::access_in_place);
  EXPECT_EQ(all[2].value, k_gpu);
  EXPECT_EQ(all[3].type, SvmAttr::no_access);
}

TEST_F(KfdDirect, what_the_kernel_refuses_is_told_in_words) {
  open();
  const std::array<SvmAttribute, 1> unknown{{{SvmAttr::access, 4242}}};
  EXPECT_EQ(driver_->set(k_at, 0x1000, unknown), EINVAL);
  EXPECT_NE(std::string(svm_error_text(EINVAL)).find("no such GPU"), std::string::npos);
  for (const int error : {EPERM, EFAULT, ENOMEM, EBUSY, EBADF}) {
    kernel.error = error;
    std::array<SvmAttribute, 1> ask{{{SvmAttr::granularity, 3}}};
    EXPECT_EQ(driver_->set(k_at, 0x1000, ask), error);
    EXPECT_EQ(driver_->get(k_at, 0x1000, ask), error);
    EXPECT_EQ(ask[0].value, 3u);
    EXPECT_GT(std::strlen(svm_error_text(error)), 20u);
  }
  std::vector<SvmAttribute> many(k_most_attributes + 1, {SvmAttr::granularity, 3});
  const unsigned before = kernel.calls;
  EXPECT_EQ(driver_->set(k_at, 0x1000, many), E2BIG);
  EXPECT_EQ(driver_->get(k_at, 0x1000, many), E2BIG);
  EXPECT_EQ(kernel.calls, before);
  kernel.error = 0;
  many.pop_back();
  EXPECT_EQ(driver_->set(k_at, 0x1000, many), 0);
  EXPECT_EQ(kernel.attributes.size(), k_most_attributes);
}

TEST_F(KfdDirect, a_call_that_is_interrupted_is_made_again) {
  open();
  const std::array<SvmAttribute, 1> one{{{SvmAttr::granularity, 4}}};
  for (const int error : {EINTR, EAGAIN}) {
    kernel.calls = 0;
    kernel.again = 3;
    kernel.again_error = error;
    EXPECT_EQ(driver_->set(k_at, 0x1000, one), 0);
    EXPECT_EQ(kernel.calls, 4u);
    EXPECT_EQ(kernel.granularity, 4u);
  }
}

TEST_F(KfdDirect, xnack_is_asked_for_and_set) {
  open();
  bool on = true;
  EXPECT_EQ(driver_->get_xnack(&on), 0);
  EXPECT_FALSE(on);
  EXPECT_EQ(driver_->set_xnack(true), 0);
  EXPECT_EQ(driver_->get_xnack(&on), 0);
  EXPECT_TRUE(on);
  kernel.queues = true;
  EXPECT_EQ(driver_->set_xnack(false), EBUSY);
  EXPECT_NE(std::string(svm_error_text(EBUSY)).find("queues"), std::string::npos);
  EXPECT_EQ(driver_->get_xnack(&on), 0) << "asking needs no empty process";
  EXPECT_TRUE(on);
  kernel.queues = false;
  kernel.xnack_possible = false;
  EXPECT_EQ(driver_->set_xnack(true), EPERM);
  kernel.error = EPERM;
  EXPECT_EQ(driver_->get_xnack(&on), EPERM);
  EXPECT_FALSE(on);
}

TEST_F(KfdDirect, reports_come_from_one_gpu_and_do_not_block) {
  open();
  int fd = -1;
  ASSERT_EQ(driver_->open_smi(k_gpu, 0x7f0, &fd), 0);
  std::uint64_t mask = 0;
  ASSERT_EQ(read(kernel.smi, &mask, sizeof mask), static_cast<ssize_t>(sizeof mask));
  EXPECT_EQ(mask, 0x7f0u);
  char c = 0;
  EXPECT_EQ(read(fd, &c, 1), -1);
  EXPECT_EQ(errno, EAGAIN);
  close(fd);
  EXPECT_EQ(driver_->open_smi(4242, 1, &fd), EINVAL);
  EXPECT_EQ(fd, -1);
}

}  // namespace
}  // namespace hmmrt::kfd
