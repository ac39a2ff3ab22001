// SPDX-License-Identifier: MIT
// A GPU without retryable faults, by itself: what stands between pages that were made ready and a kernel that starts. Over
// the stand-in for HIP.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>

#include "device/gpu/module.hpp"

namespace hmmrt {
namespace {

constexpr std::uintptr_t k_base = std::uintptr_t{1} << 40;  // never touched
constexpr unsigned k_pages = 8;

int g_started = 0;
std::ptrdiff_t g_offset = 0;
int note_start(const void*, const Grid*, std::ptrdiff_t offset, void*) {
  ++g_started;
  g_offset = offset;
  return 0;
}

// Says that the same pages are ready every time, whatever has become of them; and at last gives up.
class SamePages final : public LaunchPages {
 public:
  explicit SamePages(std::shared_ptr<const ReadyPages> pages) : pages_(std::move(pages)) {}
  std::shared_ptr<const ReadyPages> ready_now() override { return pages_; }
  Status make_ready(unsigned attempt, std::shared_ptr<const ReadyPages>* out) override {
    if (attempt == 3) return Status{HMMRT_ERROR_BUSY};
    *out = pages_;
    return {};
  }
  std::string why() const override { return "gave up"; }

 private:
  std::shared_ptr<const ReadyPages> pages_;
};

class GpuAlone : public ::testing::Test {
 protected:
  void SetUp() override {
    void* const handle = dlopen(HMMRT_HIP_MODULE, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(handle, nullptr) << dlerror();
    const auto get = reinterpret_cast<const gpu::Module* (*)()>(dlsym(handle, gpu::k_module_symbol));
    ASSERT_NE(get, nullptr);
    const gpu::Services services{[](hmmrt_result_t code, const char*) { return Status{code}; }, [](const char*) {}};
    gpu::DeviceConfig config;
    config.name = "gpu:0";
    config.memory_bytes = 8 * k_block_size;
    device_ = get()->make(config, services);
    ASSERT_NE(device_, nullptr);
    ASSERT_EQ(device_->reach(k_base, k_base + k_block_size), Device::Reach::now);
    ASSERT_TRUE(device_->allocate_frames(k_base, all_, frames_.data()));
    map(0, k_pages, Rights::write);
    ASSERT_TRUE(device_->create_queue(&queue_).ok());
    g_started = 0;
  }
  void TearDown() override {
    if (queue_ != 0) device_->destroy_queue(queue_);
  }
  void map(unsigned first, unsigned count, Rights rights) {
    MapSpan span;
    span.first = static_cast<std::uint16_t>(first);
    span.count = static_cast<std::uint16_t>(count);
    span.rights = rights;
    span.frame = frames_[first];
    device_->map(k_base, {&span, 1});
  }
  // As of now.
  std::shared_ptr<const ReadyPages> ready(const PageMask& writable) const {
    auto out = std::make_shared<ReadyPages>();
    out->unmaps = device_->unmaps();
    out->pages.push_back({k_base, all_, writable});
    return out;
  }
  hmmrt_result_t launch(std::shared_ptr<const ReadyPages> pages) {
    Launch launch;
    launch.name = "noted";
    launch.functor = this;
    launch.run_gpu = &note_start;
    launch.pages = std::make_shared<SamePages>(std::move(pages));
    const Status s = device_->launch(queue_, launch);
    return s.ok() ? device_->synchronize(queue_).result : s.code();
  }

  const PageMask all_ = PageMask::range(0, k_pages);
  std::array<Frame, 512> frames_{};
  std::unique_ptr<Device> device_;
  Queue queue_ = 0;
};

TEST_F(GpuAlone, starts_a_kernel_whose_pages_are_there) {
  EXPECT_EQ(launch(ready(all_)), HMMRT_SUCCESS);
  EXPECT_EQ(g_started, 1);
}

TEST_F(GpuAlone, does_not_start_a_kernel_one_of_whose_pages_has_gone) {
  const auto before = ready(all_);
  EXPECT_TRUE(device_->unmap(k_base, PageMask::range(3, 1)).any());
  EXPECT_EQ(launch(before), HMMRT_ERROR_BUSY);
  EXPECT_EQ(g_started, 0);
  map(3, 1, Rights::write);
  EXPECT_EQ(launch(before), HMMRT_SUCCESS);
  EXPECT_EQ(g_started, 1);
}

// It came back as a copy beside the CPU's: what a kernel writes there is lost.
TEST_F(GpuAlone, does_not_start_a_kernel_that_would_write_to_a_copy) {
  const auto before = ready(all_);
  map(3, 1, Rights::read);
  EXPECT_EQ(launch(before), HMMRT_ERROR_BUSY);
  EXPECT_EQ(g_started, 0);
  EXPECT_EQ(launch(ready(all_ - PageMask::range(3, 1))), HMMRT_SUCCESS);
  EXPECT_EQ(g_started, 1);
}

TEST_F(GpuAlone, does_not_start_a_kernel_after_its_window_has_moved) {
  const auto before = ready(all_);
  (void)device_->unmap(k_base, all_);
  device_->free_frames(all_, frames_.data());
  ASSERT_EQ(device_->reach(k_base + (std::uintptr_t{1} << 30), k_base + (std::uintptr_t{1} << 30) + k_block_size),
            Device::Reach::now);
  EXPECT_EQ(launch(before), HMMRT_ERROR_BUSY);
  EXPECT_EQ(g_started, 0);
}

TEST_F(GpuAlone, keeps_one_offset_for_all_pages_of_a_window) {
  EXPECT_EQ(launch(ready(all_)), HMMRT_SUCCESS);
  const std::ptrdiff_t before = g_offset;
  ASSERT_EQ(device_->reach(k_base + k_block_size, k_base + 2 * k_block_size), Device::Reach::now);
  EXPECT_EQ(launch(ready(all_)), HMMRT_SUCCESS);
  EXPECT_EQ(g_offset, before);
  EXPECT_EQ(device_->reach(k_base, k_base + 9 * k_block_size), Device::Reach::never);
  EXPECT_EQ(device_->reach(k_base + (std::uintptr_t{1} << 30), k_base + (std::uintptr_t{1} << 30) + 1),
            Device::Reach::once_empty);
}

}  // namespace
}  // namespace hmmrt
