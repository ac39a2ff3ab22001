// SPDX-License-Identifier: MIT
// HandleTable: what a handle of the C ABI stands for. A handle is a kind, a slot and a generation packed into a pointer
// that is never dereferenced, so a stale, foreign or garbage handle is reported, not followed.
//
// Lifetime: an object lives in its slot; a call holds a Use of it. Taking an object out of the table makes its handle
// invalid at once; wait_unused() then waits for the calls that still use it, and lets no further use be taken through
// the object's children (try_use()), whose handles are still in the table.
// Thread: any. The table is process-wide, and never destroyed: calls during exit find it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "space/park.hpp"
#include "space/status.hpp"

namespace hmmrt {

enum class HandleKind : std::uint8_t { none, context, stream, event };
const char* kind_name(HandleKind kind);

class HandleObject {
 public:
  explicit HandleObject(HandleKind kind) : kind_(kind) {}
  virtual ~HandleObject() = default;
  HandleObject(const HandleObject&) = delete;
  HandleObject& operator=(const HandleObject&) = delete;
  HandleKind kind() const { return kind_; }
  std::uintptr_t handle() const { return handle_; }  // its own, since it was put into the table

  // Takes a use; the object must be kept alive by the table's lock or another use.
  void begin_use() noexcept { users_.fetch_add(1, std::memory_order_relaxed); }
  // As begin_use(), but false, and nothing taken, once wait_unused() was called.
  bool try_begin_use() noexcept {
    std::uint32_t n = users_.load(std::memory_order_relaxed);
    do {
      if ((n & k_waited_for) != 0) return false;
    } while (!users_.compare_exchange_weak(n, n + 1, std::memory_order_relaxed));
    return true;
  }
  // Release: what the user did is visible to who waited for it. The word may be gone once the count is zero; unpark()
  // only takes its address.
  void end_use() noexcept {
    if (users_.fetch_sub(1, std::memory_order_acq_rel) == (k_waited_for | 1)) unpark(users_);
  }
  // The object is out of the table. Returns when nobody uses it; may be called again.
  void wait_unused() noexcept {
    users_.fetch_or(k_waited_for, std::memory_order_acq_rel);
    for (std::uint32_t n = users_.load(std::memory_order_acquire); n != k_waited_for;
         n = users_.load(std::memory_order_acquire)) {
      park(users_, n);
    }
  }

 private:
  static constexpr std::uint32_t k_waited_for = 1u << 31;
  friend class HandleTable;  // handle_
  const HandleKind kind_;
  std::uintptr_t handle_ = 0;
  Word users_{0};
};

// One call's hold on an object.
template <class T>
class Use {
 public:
  Use() = default;
  explicit Use(T* object) : object_(object) {}  // adopts a use already begun
  ~Use() { reset(); }
  Use(Use&& o) noexcept : object_(std::exchange(o.object_, nullptr)) {}
  Use& operator=(Use&& o) noexcept {
    reset();
    object_ = std::exchange(o.object_, nullptr);
    return *this;
  }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  T* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  void reset() {
    if (object_ != nullptr) object_->end_use();
    object_ = nullptr;
  }
  T* object_ = nullptr;
};

class HandleTable {
 public:
  HandleTable() = default;
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;
  // The process's table.
  static HandleTable& instance();

  // The new object's handle; 0 when the table is full (2^20 live handles).
  std::uintptr_t put(std::unique_ptr<HandleObject> object);
  // `and_then(object)`, a Status, runs under the table's lock, before anyone can take the object out. If it fails so
  // does the call, and nothing is used or taken.
  template <class T, class Fn>
  Status use(std::uintptr_t handle, Use<T>* out, Fn&& and_then) {
    const std::lock_guard guard(lock_);
    Slot* slot = find(handle, T::k_kind);
    if (slot == nullptr) return invalid(handle, T::k_kind);
    auto* object = static_cast<T*>(slot->object.get());
    if (const Status s = and_then(*object); !s.ok()) return s;
    object->begin_use();
    *out = Use<T>(object);
    return {};
  }
  template <class T>
  Status use(std::uintptr_t handle, Use<T>* out) {
    return use(handle, out, [](T&) { return Status(); });
  }
  // Makes the handle invalid and hands out its object. `and_then` as above.
  template <class T, class Fn>
  Status take(std::uintptr_t handle, std::unique_ptr<T>* out, Fn&& and_then) {
    const std::lock_guard guard(lock_);
    Slot* slot = find(handle, T::k_kind);
    if (slot == nullptr) return invalid(handle, T::k_kind);
    if (const Status s = and_then(static_cast<T&>(*slot->object)); !s.ok()) return s;
    out->reset(static_cast<T*>(slot->object.release()));
    ++slot->generation;
    free_.push_back(static_cast<std::uint32_t>(slot - slots_.data()));
    return {};
  }
  template <class T>
  Status take(std::uintptr_t handle, std::unique_ptr<T>* out) {
    return take(handle, out, [](T&) { return Status(); });
  }
  // Uses of every live object of a kind.
  template <class T>
  std::vector<Use<T>> use_all() {
    std::vector<Use<T>> all;
    const std::lock_guard guard(lock_);
    for (Slot& slot : slots_) {
      if (slot.object == nullptr || slot.object->kind() != T::k_kind) continue;
      slot.object->begin_use();
      all.emplace_back(static_cast<T*>(slot.object.get()));
    }
    return all;
  }
  std::size_t live() const;

 private:
  struct Slot {
    std::unique_ptr<HandleObject> object;
    std::uint32_t generation = 0;
  };
  // A handle is generation (32 bits) | slot (20 bits) | kind (4 bits).
  static constexpr unsigned k_kind_bits = 4, k_slot_bits = 20;
  static constexpr std::uint32_t k_slots = 1u << k_slot_bits;

  Slot* find(std::uintptr_t handle, HandleKind kind);
  Status invalid(std::uintptr_t handle, HandleKind wanted);

  mutable std::mutex lock_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;
};

}  // namespace hmmrt
