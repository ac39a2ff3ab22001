// SPDX-License-Identifier: MIT
// Stream: one in-order queue of one device, and the launch error nobody has asked for yet. StreamEvent: the latest record of a
// point in some stream.
// Thread: any.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api/handles.hpp"
#include "device/device.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

class Context;

class Stream final : public HandleObject {
 public:
  static constexpr HandleKind k_kind = HandleKind::stream;
  Stream(Context& owner, Device& on, unsigned index, Queue q)
      : HandleObject(k_kind), context(owner), device(on), device_index(index), queue(q) {}

  Context& context;
  Device& device;
  const unsigned device_index;
  const Queue queue;

  // What hmmrt_stream_attach declared; empty: everything.
  std::vector<Extent> attached() const {
    const std::lock_guard guard(lock_);
    return attached_;
  }
  void attach(const Extent& extent) {
    const std::lock_guard guard(lock_);
    attached_.push_back(extent);
  }
  void attach_nothing() {
    const std::lock_guard guard(lock_);
    attached_.clear();
  }

  // Waits until the queue is empty. A launch error is kept for synchronize().
  void drain();
  // drain(), then reports and forgets the first error since the last call.
  Status synchronize();
  void keep_error(hmmrt_result_t result, const std::string& text);

  // Enqueues fn() to run on a host thread in stream order. What it throws becomes the stream's error.
  template <class Fn>
  Status enqueue(Fn fn) {
    struct Task {
      Fn fn;
      Stream& stream;
    };
    auto task = std::make_unique<Task>(Task{std::move(fn), *this});
    const Status s = device.enqueue_host(
        queue,
        [](void* p) {
          const std::unique_ptr<Task> t(static_cast<Task*>(p));
          t->stream.run_guarded([](void* q) { static_cast<Task*>(q)->fn(); }, p);
        },
        task.get());
    if (s.ok()) (void)task.release();  // NOLINT(bugprone-unused-return-value): it is the queue's now
    return s;
  }

 private:
  void run_guarded(void (*fn)(void*), void* arg) noexcept;

  mutable std::mutex lock_;
  std::vector<Extent> attached_;
  hmmrt_result_t error_ = HMMRT_SUCCESS;
  std::string text_;
};

// One recording. `done` is released after `time_ns` is written.
struct EventRecord {
  Word done{0};
  std::uint64_t time_ns = 0;
  void finish(std::uint64_t now_ns) {
    time_ns = now_ns;
    done.store(1, std::memory_order_release);
    unpark(done);
  }
  bool finished() const { return done.load(std::memory_order_acquire) != 0; }
  void wait() const {
    while (!finished()) park(done, 0);
  }
};

class StreamEvent final : public HandleObject {
 public:
  static constexpr HandleKind k_kind = HandleKind::event;
  explicit StreamEvent(Context& owner) : HandleObject(k_kind), context(owner) {}

  Context& context;
  std::shared_ptr<EventRecord> latest() {
    const std::lock_guard guard(lock_);
    return latest_;
  }
  void set_latest(std::shared_ptr<EventRecord> record) {
    const std::lock_guard guard(lock_);
    latest_ = std::move(record);
  }

 private:
  std::mutex lock_;
  std::shared_ptr<EventRecord> latest_;  // null: never recorded
};

}  // namespace hmmrt
