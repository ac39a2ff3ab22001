// SPDX-License-Identifier: MIT
// Slab<T>: objects carved from mmapped chunks, never given back before the slab dies. It uses no malloc, so the fault
// path may take from it: the application cannot hold a lock it needs.
// Thread: any.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <mutex>
#include <new>

#include "space/spin_lock.hpp"

namespace hmmrt {

template <class T>
class Slab {
 public:
  Slab() = default;
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  ~Slab() {
    for (Chunk* c = chunks_; c != nullptr;) {
      Chunk* next = c->next;
      for (std::size_t i = 0; i < c->used; ++i) c->item(i)->~T();
      munmap(static_cast<void*>(c), k_chunk_bytes);
      c = next;
    }
  }

  // Null when the system has no memory.
  template <class... Args>
  T* take(Args&&... args) {
    const std::lock_guard guard(lock_);
    if (chunks_ == nullptr || chunks_->used == k_items) {
      void* p = mmap(nullptr, k_chunk_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (p == MAP_FAILED) return nullptr;
      chunks_ = new (p) Chunk{chunks_, 0};
    }
    T* item = new (chunks_->item(chunks_->used)) T(std::forward<Args>(args)...);
    ++chunks_->used;
    ++taken_;
    return item;
  }

  std::size_t bytes() const {
    const std::lock_guard guard(lock_);
    return taken_ * sizeof(T);
  }

 private:
  static constexpr std::size_t k_chunk_bytes = std::size_t{256} << 10;
  struct Chunk {
    Chunk* next;
    std::size_t used;
    T* item(std::size_t i) {
      return reinterpret_cast<T*>(reinterpret_cast<std::byte*>(this) + k_first + i * sizeof(T));
    }
  };
  static constexpr std::size_t k_first = (sizeof(Chunk) + alignof(T) - 1) / alignof(T) * alignof(T);
  static constexpr std::size_t k_items = (k_chunk_bytes - k_first) / sizeof(T);

  mutable SpinLock lock_;
  Chunk* chunks_ = nullptr;
  std::size_t taken_ = 0;
};

}  // namespace hmmrt
