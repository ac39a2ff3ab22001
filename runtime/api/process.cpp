// SPDX-License-Identifier: MIT
#include "api/process.hpp"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "api/context.hpp"
#include "api/entry.hpp"
#include "api/log.hpp"

namespace hmmrt {

constinit std::atomic<bool> g_forked{false};
constinit std::atomic<bool> g_exiting{false};
constinit thread_local bool t_in_host_function = false;

namespace {

// How long work in flight may take at exit, all together. A kernel may be endless.
constexpr std::chrono::seconds k_exit_patience{2};

// Contexts frozen by the fork in progress. Never destroyed: the child must not touch it, exit must not either.
std::vector<Use<Context>>& frozen() {
  static std::vector<Use<Context>>& contexts = *std::make_unique<std::vector<Use<Context>>>().release();
  return contexts;
}

// This thread's fork has frozen the contexts.
constinit thread_local bool t_froze = false;
// They are frozen for good. Written with lifecycle_lock() held.
std::atomic<bool> frozen_at_exit{false};

void before_fork() {
  if (g_forked.load(std::memory_order_relaxed) || in_kernel() || frozen_at_exit) return;
  lifecycle_lock().lock();
  if (frozen_at_exit) {
    lifecycle_lock().unlock();
    return;
  }
  t_froze = true;
  frozen() = HandleTable::instance().use_all<Context>();
  for (const Use<Context>& context : frozen()) context->freeze();
}

void after_fork_in_parent() {
  if (!std::exchange(t_froze, false)) return;
  for (const Use<Context>& context : frozen()) context->thaw();
  frozen().clear();
  lifecycle_lock().unlock();
}

void after_fork_in_child() { g_forked.store(true, std::memory_order_relaxed); }

void at_exit() {
  if (g_forked.load(std::memory_order_relaxed) || in_kernel() || frozen_at_exit) return;
  g_exiting.store(true, std::memory_order_relaxed);
  // The uses are kept, in a vector that nobody destroys: so nobody may destroy the contexts from here on.
  static std::vector<Use<Context>>& alive =
      *std::make_unique<std::vector<Use<Context>>>(HandleTable::instance().use_all<Context>()).release();
  const auto deadline = std::chrono::steady_clock::now() + k_exit_patience;
  std::vector<Context*> stuck;
  for (Use<Context>& context : alive) {
    const bool waited = !t_in_host_function;  // from there, its own stream would be waited for
    if (waited && context->wait_idle(deadline)) continue;
    if (waited) log::warn("the process exits while a kernel or host function still runs; it is left where it is");
    stuck.push_back(context.get());
  }
  const std::shared_lock guard(lifecycle_lock());  // a fork may be in progress
  for (Use<Context>& context : alive) {
    // Where nothing can be taken from a kernel that runs, bringing its pages home would wait for its end.
    if (!context->takes_only_from_idle() || std::find(stuck.begin(), stuck.end(), context.get()) == stuck.end()) {
      context->freeze();
    }
    context->write_trace();
  }
  frozen_at_exit = true;
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
    return true;
  }();
  (void)done;
}

void watch_exit(bool with_gpus) {
  // What is registered later runs earlier: before the end of a vendor's runtime, which was loaded for the context.
  const auto watch = [] { (void)std::atexit(&at_exit); };
  static std::once_flag any, loaded;
  std::call_once(any, watch);
  if (with_gpus) std::call_once(loaded, watch);
}

Status check_caller(const char* function, AtExit at_exit) {
  if (g_forked.load(std::memory_order_relaxed)) {
    return fail(HMMRT_ERROR_FORKED,
                "%s: this process is a fork of the one that made the context; it has the data, but "
                "cannot use the library. Fork before the first context, or exec",
                function);
  }
  if (at_exit == AtExit::refused && g_exiting.load(std::memory_order_relaxed)) {
    return fail(HMMRT_ERROR_INVALID_HANDLE,
                "%s: the process is exiting: every context has ended; managed memory can still be read and written",
                function);
  }
  if (in_kernel()) return fail(HMMRT_ERROR_IN_KERNEL, "%s was called from inside a kernel", function);
  if (t_in_host_function) {
    return fail(HMMRT_ERROR_IN_KERNEL, "%s was called from inside a host function of a stream", function);
  }
  return {};
}

}  // namespace hmmrt
