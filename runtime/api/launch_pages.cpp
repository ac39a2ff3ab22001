// SPDX-License-Identifier: MIT
// What a launch may touch on a device without retryable faults: all managed memory of its context, or what was declared.
// What was made ready for one launch serves the next, as long as no range and no block has changed since.
#include "api/context.hpp"
#include "migrate/ready.hpp"

namespace hmmrt {

// All managed memory, or what was declared of it.
class ManagedPages final : public LaunchPages {
 public:
  ManagedPages(Context& context, unsigned index, std::vector<Extent> declared)
      : context_(context), index_(index), declared_(std::move(declared)) {}

  std::shared_ptr<const ReadyPages> ready_now() override {
    if (!declared_.empty()) return nullptr;
    Context::Ready& known = context_.ready_[index_];
    const std::lock_guard guard(known.lock);
    if (known.pages == nullptr || known.ranges != context_.space_.changes()) return nullptr;
    return known.pages->unmaps == context_.device(index_).unmaps() ? known.pages : nullptr;
  }

  Status make_ready(unsigned attempt, std::shared_ptr<const ReadyPages>* out) override {
    if (attempt == 0 && (*out = ready_now()) != nullptr) return {};
    const std::uint64_t ranges = context_.space_.changes();
    std::vector<Extent> all;
    if (declared_.empty()) {
      context_.for_each_range([&](const Range& range) { all.push_back({range.addr, range.bytes}); });
    }
    Status s;
    {
      const std::shared_lock guard(context_.service().departure_lock());
      s = hmmrt::make_ready(context_.house(), context_.pool(), declared_.empty() ? all : declared_,
                            device_processor(index_), attempt, out);
    }
    if (!s.ok()) why_ = failure_detail();
    if (*out == nullptr || !declared_.empty()) return s;
    Context::Ready& known = context_.ready_[index_];
    const std::lock_guard guard(known.lock);
    known.ranges = ranges;
    known.pages = *out;
    return s;
  }

  std::string why() const override { return why_; }

 private:
  Context& context_;
  const unsigned index_;
  const std::vector<Extent> declared_;
  std::string why_;
};

std::shared_ptr<LaunchPages> Context::launch_pages(unsigned index, std::vector<Extent> declared) {
  if (devices_[index]->info().caps.retryable_faults) return nullptr;
  return std::make_shared<ManagedPages>(*this, index, std::move(declared));
}

}  // namespace hmmrt
