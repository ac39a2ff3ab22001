// SPDX-License-Identifier: MIT
// What a launch may touch on a device without retryable faults: all managed memory of its context, or what was declared.
// What was made ready for one launch serves the next, as long as no range has changed since and it is still there.
#include <algorithm>

#include "api/context.hpp"
#include "migrate/ready.hpp"

namespace hmmrt {

// All managed memory, or what was declared of it.
class ManagedPages final : public LaunchPages {
 public:
  ManagedPages(Context& context, unsigned index, std::vector<Extent> declared)
      : context_(context), index_(index), declared_(std::move(declared)) {}

  std::shared_ptr<const ReadyPages> ready_now() override {
    Context::LatelyReady& lately = context_.ready_[index_];
    const std::lock_guard guard(lately.lock);
    const auto it = std::find_if(lately.sets.begin(), lately.sets.end(), [&](const Context::Ready& known) {
      return known.pages != nullptr && known.extents == declared_;
    });
    if (it == lately.sets.end() || it->ranges != context_.space_.changes()) return nullptr;
    // What is used in system memory may be so for reasons that are past.
    constexpr std::uint64_t k_look_again_ns = 100'000'000;
    if (it->pages->remote &&
        (it->pages->unmaps != context_.device(index_).unmaps() || context_.now_ns() - it->since_ns > k_look_again_ns)) {
      return nullptr;
    }
    std::rotate(lately.sets.begin(), it, it + 1);
    return lately.sets.front().pages;
  }

  Status make_ready(unsigned attempt, std::shared_ptr<const ReadyPages>* out) override {
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
    if (*out != nullptr) keep({declared_, ranges, context_.now_ns(), *out});
    return s;
  }

  std::string why() const override { return why_; }

 private:
  void keep(Context::Ready ready) {
    Context::LatelyReady& lately = context_.ready_[index_];
    const std::lock_guard guard(lately.lock);
    // In place of what was known of the same extents, or of the set that has not been used for longest.
    auto it = std::find_if(lately.sets.begin(), lately.sets.end() - 1,
                           [&](const Context::Ready& known) { return known.extents == ready.extents; });
    *it = std::move(ready);
    std::rotate(lately.sets.begin(), it, it + 1);
  }

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
