// SPDX-License-Identifier: MIT
// Tests in a process of their own, with variables that the stand-in for HIP reads as it goes.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace api_test {

// Runs the test `GpuChild.DISABLED_<name>` of this program anew, with these variables. Returns its exit status.
inline int in_child(const char* name, const std::vector<std::pair<const char*, std::string>>& variables) {
  const pid_t child = fork();
  if (child == 0) {
    unsetenv("HMMRT_TEST_KFD_TOPOLOGY");  // of this process
    for (const auto& [variable, value] : variables) setenv(variable, value.c_str(), 1);
    alarm(60);
    const std::string filter = std::string("--gtest_filter=GpuChild.DISABLED_") + name;
    execl("/proc/self/exe", "gpu", filter.c_str(), "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr);
    _exit(127);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace api_test
