// SPDX-License-Identifier: MIT
#include "api/process.hpp"

#include <pthread.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "api/context.hpp"
#include "api/entry.hpp"

namespace hmmrt {

constinit std::atomic<bool> g_forked{false};
constinit thread_local bool t_in_host_function = false;

namespace {

// Contexts frozen by the fork in progress. Never destroyed: the child must not touch it, exit must not either.
std::vector<Use<Context>>& frozen() {
  static std::vector<Use<Context>>& contexts = *std::make_unique<std::vector<Use<Context>>>().release();
  return contexts;
}

void before_fork() {
  if (g_forked.load(std::memory_order_relaxed) || in_kernel()) return;
  lifecycle_lock().lock();
  frozen() = HandleTable::instance().use_all<Context>();
  for (const Use<Context>& context : frozen()) context->freeze();
}

void after_fork_in_parent() {
  if (g_forked.load(std::memory_order_relaxed) || in_kernel()) return;
  for (const Use<Context>& context : frozen()) context->thaw();
  frozen().clear();
  lifecycle_lock().unlock();
}

void after_fork_in_child() { g_forked.store(true, std::memory_order_relaxed); }

void at_exit() {
  if (g_forked.load(std::memory_order_relaxed) || in_kernel()) return;
  // The uses are kept, in a vector that nobody destroys: so nobody may destroy the contexts from here on.
  static std::vector<Use<Context>>& alive =
      *std::make_unique<std::vector<Use<Context>>>(HandleTable::instance().use_all<Context>()).release();
  for (Use<Context>& context : alive) {
    context->freeze();
    context->write_trace();
  }
}

}  // namespace

std::shared_mutex& lifecycle_lock() {
  static std::shared_mutex& lock = *std::make_unique<std::shared_mutex>().release();
  return lock;
}

void watch_process() {
  static const bool done = [] {
    (void)HandleTable::instance();
    (void)frozen();
    (void)lifecycle_lock();
    (void)pthread_atfork(&before_fork, &after_fork_in_parent, &after_fork_in_child);
    (void)std::atexit(&at_exit);
    return true;
  }();
  (void)done;
}

Status check_caller(const char* function) {
  if (g_forked.load(std::memory_order_relaxed)) {
    return fail(HMMRT_ERROR_FORKED,
                "%s: this process is a fork of the one that made the context; it has the data, but "
                "cannot use the library. Fork before the first context, or exec",
                function);
  }
  if (in_kernel()) return fail(HMMRT_ERROR_IN_KERNEL, "%s was called from inside a kernel", function);
  if (t_in_host_function) {
    return fail(HMMRT_ERROR_IN_KERNEL, "%s was called from inside a host function of a stream", function);
  }
  return {};
}

}  // namespace hmmrt
