// SPDX-License-Identifier: MIT
// A device on which nothing runs and nothing faults: what the models of devices that only hold memory start from.
#pragma once

#include "device/device.hpp"

namespace hmmrt::test {

class IdleDevice : public Device {
 public:
  const DeviceInfo& info() const override { return info_; }
  bool quiesce(std::uint64_t) override { return true; }
  std::size_t fetch_faults(std::span<DeviceFault>) override { return 0; }
  void replay_all() override {}
  void cancel(std::uint32_t, const LaunchError&) override {}
  std::uint64_t fault_overflows() const override { return 0; }
  std::size_t fetch_access_counts(std::span<AccessCount>) override { return 0; }
  std::uint64_t last_use(std::uintptr_t) const override { return 0; }
  Status create_queue(Queue*) override { return HMMRT_ERROR_NOT_SUPPORTED; }
  void destroy_queue(Queue) override {}
  Status launch(Queue, const Launch&) override { return HMMRT_ERROR_NOT_SUPPORTED; }
  Status enqueue_host(Queue, void (*)(void*), void*) override { return HMMRT_ERROR_NOT_SUPPORTED; }
  LaunchError synchronize(Queue) override { return {}; }
  bool idle(Queue) override { return true; }

 protected:
  DeviceInfo info_;
};

}  // namespace hmmrt::test
