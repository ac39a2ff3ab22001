// SPDX-License-Identifier: MIT
// A context on a GPU whose driver serves faults and moves pages by itself, over the stand-ins for HIP and libhsakmt. Their
// own books (kmt_hooks.hpp) are the oracle: where pages really are, and which attributes they really have.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "conformance/api_environment.hpp"
#include "gpu/standin/kmt_hooks.hpp"
#include "gpu/standin_tests/child.hpp"

namespace api_test {

using KfdBuffer = hmmrt::managed_buffer<std::uint32_t>;
constexpr std::size_t k_mib = std::size_t{1} << 20;
constexpr std::uint32_t k_system = 0, k_gpu = 1;  // nodes
constexpr std::uint32_t k_undefined = 0xffffffff;

inline int in_child_with(const char* name, std::vector<std::pair<const char*, std::string>> variables) {
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
    more.insert(more.begin(), {{"device", "gpu:0"}, {"arena_bytes", "32M"}});
    context_ = std::make_unique<hmmrt::context>(more);
    ASSERT_STREQ(context_->info().host_mirror, "kfd");
  }
  hmmrt::context& context() { return *context_; }
  hmmrt_context_t handle() { return context_->get(); }
  hmmrt_stats_t stats() { return context_->stats(); }
  static void add_one(const hmmrt::stream& s, KfdBuffer& b) {
    s.launch("add", b.size(), AddOne{b.gpu()});
    s.synchronize();
  }
  // By turns, a word each, until the policy has had enough of it, or `most` rounds. Fast, or it would be no quarrel.
  int quarrel(const hmmrt::stream& s, KfdBuffer& b, int most = 200) {
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

}  // namespace api_test
