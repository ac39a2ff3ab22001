// SPDX-License-Identifier: MIT
#include "gpu/standin/own_memory.hpp"

#include <link.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>

namespace standin {

namespace {

struct Kept {
  std::atomic<std::uintptr_t> begin{0}, end{0};
  std::atomic<bool> taken{false};
};
constexpr std::size_t k_kept = 1024;
Kept g_kept[k_kept];

Kept* keep(std::uintptr_t begin, std::uintptr_t end) {
  for (Kept& k : g_kept) {
    if (k.taken.exchange(true)) continue;
    k.begin = begin & ~(k_page - 1);
    k.end = (end + k_page - 1) & ~(k_page - 1);
    return &k;
  }
  std::fputs("stand-in GPU driver: too many threads\n", stderr);
  std::abort();
}

void release(Kept* k) {
  k->end = 0;
  k->begin = 0;
  k->taken = false;
}

struct ThisThread {
  ThisThread() {
    pthread_attr_t attributes;
    void* low = nullptr;
    std::size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &low, &bytes);
    pthread_attr_destroy(&attributes);
    const auto at = reinterpret_cast<std::uintptr_t>(low);
    stack = keep(at, at + bytes);
    // A thread's variables are at the end of its stack; the main thread's are elsewhere.
    const auto variables = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
    if (variables >= at && variables < at + bytes) return;
    constexpr std::uintptr_t k_around = 16 * k_page;
    local = keep(variables - k_around, variables + k_around);
  }
  ~ThisThread() {
    release(stack);
    if (local != nullptr) release(local);
  }
  Kept *stack, *local = nullptr;
};

struct Arena {
  static constexpr std::size_t k_bytes = std::size_t{1} << 30;
  Arena()
      : begin(mmap(nullptr, k_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
        all(begin, k_bytes, std::pmr::null_memory_resource()),
        pools(&all) {
    keep_home(reinterpret_cast<std::uintptr_t>(begin), reinterpret_cast<std::uintptr_t>(begin) + k_bytes);
  }
  void* begin;
  std::pmr::monotonic_buffer_resource all;
  std::pmr::unsynchronized_pool_resource pools;
};

}  // namespace

std::pmr::memory_resource* own_memory() {
  alignas(Arena) static std::byte place[sizeof(Arena)];  // no destructor: threads use it until the process ends
  static Arena* const arena = new (place) Arena;
  return &arena->pools;
}

void keep_home(std::uintptr_t begin, std::uintptr_t end) { keep(begin, end); }

void keep_libraries_home() {
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {
        std::uintptr_t begin = std::numeric_limits<std::uintptr_t>::max(), end = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& part = info->dlpi_phdr[i];
          if (part.p_type != PT_LOAD) continue;
          begin = std::min<std::uintptr_t>(begin, info->dlpi_addr + part.p_vaddr);
          end = std::max<std::uintptr_t>(end, info->dlpi_addr + part.p_vaddr + part.p_memsz);
        }
        if (begin < end) keep(begin, end);
        return 0;
      },
      nullptr);
}

void keep_this_thread_home() { thread_local const ThisThread mark; }

bool kept_home(std::uintptr_t at, std::uintptr_t* begin, std::uintptr_t* end) {
  for (const Kept& k : g_kept) {
    const std::uintptr_t b = k.begin, e = k.end;
    if (b >= e) continue;
    if (at >= b && at < e) {
      *begin = std::max(*begin, b);
      *end = std::min(*end, e);
      return true;
    }
    if (e <= at) *begin = std::max(*begin, e);
    if (b > at) *end = std::min(*end, b);
  }
  return false;
}

}  // namespace standin
