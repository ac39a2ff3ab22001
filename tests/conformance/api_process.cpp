// SPDX-License-Identifier: MIT
// What needs a process of its own: the end of main() with everything alive, and limits too low for a context. Each test
// runs this program again with a helper, which decides; helpers do nothing unless they are started so.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <optional>
#include <string>

#include "conformance/api_environment.hpp"

namespace {

using namespace api_test;  // NOLINT(google-build-using-namespace)

constexpr int k_skipped = 77;
constexpr unsigned k_hang_seconds = 50;

// Runs the helper to its end; its exit status, or -1 when a signal (SIGALRM: it hung) ended it.
int run_helper(const std::string& name) {
  const std::string filter = "--gtest_filter=ApiProcessHelper.DISABLED_" + name;
  const pid_t child = fork();
  if (child == 0) {
    alarm(k_hang_seconds);
    execl("/proc/self/exe", "conformance", filter.c_str(), "--gtest_also_run_disabled_tests", nullptr);
    _exit(9);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Ends a helper that has set limits which what runs at exit (a leak checker, say) may not be able to live with.
void leave() {
  std::fflush(nullptr);
  _exit(testing::Test::HasFailure() ? 1 : 0);
}

// Creates a context and runs a kernel in it. The result of the creation.
hmmrt_result_t try_context() {
  hmmrt_context_t c = nullptr;
  const hmmrt_option_t small = {"device_memory", "16M"};
  hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
  desc.options = &small;
  desc.option_count = 1;
  const hmmrt_result_t r = hmmrt_context_create(&desc, &c);
  if (r != HMMRT_SUCCESS) return r;
  hmmrt_stream_t s = nullptr;
  void* p = nullptr;
  hmmrt::check(hmmrt_stream_create(c, 0, &s));
  hmmrt::check(hmmrt_alloc(c, k_block, &p));
  auto* words = static_cast<std::uint32_t*>(p);
  for (std::size_t i = 0; i < k_block / 4; ++i) words[i] = 1;
  hmmrt::check(hmmrt::launch(s, "add", {k_block / 4, 1, 1}, AddOne{words}));
  hmmrt::check(hmmrt_stream_synchronize(s));
  EXPECT_EQ(words[77], 2u);
  hmmrt::check(hmmrt_context_destroy(c));
  return r;
}

// ---- exit -----------------------------------------------------------------------------------------------------------

// Destroyed after the library's exit handler has run, because it was constructed before the first context.
struct Everything {
  std::optional<hmmrt::context> c;
  std::optional<hmmrt::stream> s;
  std::optional<hmmrt::event> e;
  std::optional<hmmrt::managed_buffer<std::uint32_t>> b;
  ~Everything() {
    if (!b) return;
    for (const std::uint32_t v : *b) {
      if (v != 1) _exit(11);
    }
    if (hmmrt_stream_synchronize(s->get()) != HMMRT_ERROR_INVALID_HANDLE) _exit(12);
    if (std::string(hmmrt_last_error_detail()).find("exiting") == std::string::npos) _exit(13);
    const pid_t child = fork();
    if (child == 0) _exit((*b)[5] == 1 ? 0 : 1);
    int status = -1;
    if (waitpid(child, &status, 0) != child || status != 0) _exit(15);
    hmmrt_stats_t stats = hmmrt::empty_stats();
    if (hmmrt_stats_context(c->get(), &stats) != HMMRT_SUCCESS || stats.device_faults == 0) _exit(14);
  }
};
Everything everything;

TEST(ApiProcess, main_returns_with_a_launch_in_flight_and_everything_in_a_global) {
  EXPECT_EQ(run_helper("return_with_a_launch_in_flight"), 0);
}
TEST(ApiProcessHelper, DISABLED_return_with_a_launch_in_flight) {
  everything.c.emplace();
  everything.s.emplace(*everything.c);
  everything.e.emplace(*everything.c);
  everything.b.emplace(*everything.c, k_block / 4);
  everything.s->launch("add", k_block / 4, AddOne{everything.b->gpu()});
  everything.s->record(*everything.e);
}

// ---- limits ---------------------------------------------------------------------------------------------------------

TEST(ApiProcess, too_few_file_descriptors_are_named) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "UBSan looks at memory through a pipe, and takes objects for corrupt when it cannot have one";
#else
  EXPECT_EQ(run_helper("few_file_descriptors"), 0);
#endif
}
TEST(ApiProcessHelper, DISABLED_few_file_descriptors) {
  hmmrt_result_t r = HMMRT_ERROR_SYSTEM;
  unsigned refused = 0;
  for (rlim_t most = 3; r != HMMRT_SUCCESS; ++most) {
    ASSERT_LT(most, 40u);
    const rlimit limit = {most, 1024};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    r = try_context();
    if (r == HMMRT_SUCCESS) break;
    ++refused;
    EXPECT_API_ERROR(r, HMMRT_ERROR_SYSTEM, "RLIMIT_NOFILE");
    EXPECT_EQ(std::string(hmmrt_last_error_detail()).find("seccomp"), std::string::npos) << hmmrt_last_error_detail();
  }
  EXPECT_GT(refused, 2u);
  leave();
}

TEST(ApiProcess, too_few_threads_are_named) {
  const int status = run_helper("few_threads");
  if (status == k_skipped) GTEST_SKIP() << "only root can become a user without other processes";
  EXPECT_EQ(status, 0);
}
TEST(ApiProcessHelper, DISABLED_few_threads) {
  constexpr uid_t k_nobody_else = 54321;
  if (setresuid(k_nobody_else, k_nobody_else, k_nobody_else) != 0) _exit(k_skipped);
  hmmrt_result_t r = HMMRT_ERROR_SYSTEM;
  unsigned refused = 0;
  for (rlim_t most = 1; r != HMMRT_SUCCESS; ++most) {
    ASSERT_LT(most, 40u);
    const rlimit limit = {most, 1024};
    ASSERT_EQ(setrlimit(RLIMIT_NPROC, &limit), 0);
    r = try_context();
    if (r == HMMRT_SUCCESS) break;
    ++refused;
    EXPECT_API_ERROR(r, HMMRT_ERROR_SYSTEM, "RLIMIT_NPROC");
  }
  EXPECT_GT(refused, 2u);
  leave();
}

TEST(ApiProcess, too_few_mappings_are_named) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer itself ends the process when it can map no more";
#endif
  unsigned long most = 0;
  if (std::FILE* f = std::fopen("/proc/sys/vm/max_map_count", "r"); f != nullptr) {
    if (std::fscanf(f, "%lu", &most) != 1) most = 0;
    std::fclose(f);
  }
  constexpr unsigned long k_units = 16, k_waves = 4096;
  if (most == 0 || most > k_units * k_waves * 2) GTEST_SKIP() << "vm.max_map_count is " << most;
  const hmmrt_option_t many[] = {{"compute_units", "16"}, {"waves_per_unit", "4096"}};
  hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
  desc.options = many;
  desc.option_count = 2;
  hmmrt_context_t c = nullptr;
  EXPECT_API_ERROR(hmmrt_context_create(&desc, &c), HMMRT_ERROR_OUT_OF_MEMORY, "vm.max_map_count");
  EXPECT_NE(std::string(hmmrt_last_error_detail()).find("waves_per_unit"), std::string::npos);
  EXPECT_EQ(try_context(), HMMRT_SUCCESS);
}

}  // namespace
