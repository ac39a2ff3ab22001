// SPDX-License-Identifier: MIT
// What every thread of the software GPU does first: takes a name for debuggers, and leaves the application's signals to
// the application's threads (a handler would run on a wave's small stack). Signals that say the thread itself did
// something wrong stay open.
#pragma once

#include <pthread.h>

#include <csignal>

namespace hmmrt {

inline void prepare_thread(const char* name) {
  pthread_setname_np(pthread_self(), name);  // at most 15 characters
  sigset_t mask;
  sigfillset(&mask);
  for (const int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&mask, s);
  pthread_sigmask(SIG_BLOCK, &mask, nullptr);
}

}  // namespace hmmrt
