// SPDX-License-Identifier: MIT
// A context's life, and a policy that was brought along.
#include <hmmrt/policy.h>

#include <chrono>
#include <thread>

#include "conformance/api_environment.hpp"

namespace api_test {
namespace {

using Buffer = hmmrt::managed_buffer<std::uint32_t>;

class ApiContexts : public ApiTest {};
API_SUITE(ApiContexts);

constexpr unsigned k_lives = 200;

// Its threads may only just have begun when they are to end.
TEST_P(ApiContexts, they_end_as_soon_as_they_are_made) {
  for (unsigned i = 0; i < k_lives; ++i) open();
}

TEST_P(ApiContexts, they_end_as_soon_as_a_launch_has_begun) {
  for (unsigned i = 0; i < k_lives; ++i) {
    open();
    Buffer b(context(), 8);
    const hmmrt::stream s(context(), i % GetParam().devices);
    s.launch("add", b.size(), AddOne{b.gpu()});
    if (i % 2 == 0) s.synchronize();
  }
}

TEST_P(ApiContexts, many_threads_make_and_end_their_own) {
  const auto live = [&] {
    for (unsigned i = 0; i < k_lives / 4; ++i) {
      const hmmrt::context mine(options_of(GetParam(), {{"device_memory", "2M"}, {"arena_bytes", "2M"}}));
      Buffer b(mine, 8);
      const hmmrt::stream s(mine);
      s.launch("add", b.size(), AddOne{b.gpu()});
      s.synchronize();
      ASSERT_EQ(b[7], 1u);
    }
  };
  std::thread others[3];
  for (std::thread& other : others) other = std::thread(live);
  live();
  for (std::thread& other : others) other.join();
}

// Brings home what the CPU asks for, and holds it there for a moment.
void hold(void*, const hmmrt_policy_block_t*, const hmmrt_policy_faults_t* faults, const hmmrt_policy_context_t*,
          hmmrt_policy_history_t*, hmmrt_policy_plan_t* plan) {
  plan->migrate = faults->read;
  for (std::size_t i = 0; i < std::size(plan->migrate.words); ++i) {
    plan->migrate.words[i] |= faults->write.words[i] | faults->atomic.words[i];
  }
  if (faults->processor == 0) plan->pin_ns = 30'000'000;
}

// Nobody is on the way to the device's side of the service then, which ends such holds.
TEST_P(ApiContexts, what_a_cpu_fault_holds_is_let_go_of_in_time) {
  NEEDS_FAULTS("nothing is held but by faults of the CPU's and a device's");
  static const bool known = [] {
    const hmmrt_policy_ops_t ops{sizeof ops, HMMRT_POLICY_ABI_VERSION, "holds", nullptr, hold, nullptr, nullptr};
    return hmmrt_policy_register(&ops) == HMMRT_SUCCESS;
  }();
  ASSERT_TRUE(known) << hmmrt_last_error_detail();
  open({{"policy", "holds"}});
  Buffer b(context(), k_page);
  const hmmrt::stream s(context());
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  ASSERT_EQ(context().stats().pins, 0u);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // until the device's side sleeps
  ASSERT_EQ(b[7], 1u);
  EXPECT_EQ(context().stats().pins, 1u);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (context().stats().unpins == 0 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(context().stats().unpins, 1u);
}

}  // namespace
}  // namespace api_test
