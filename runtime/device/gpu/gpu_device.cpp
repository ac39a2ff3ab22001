// SPDX-License-Identifier: MIT
#include "device/gpu/gpu_device.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "device/gpu/gpu_queue.hpp"

namespace hmmrt::gpu {

namespace {

constexpr unsigned k_spins = 64;  // looks at a kernel's end before the waiting thread sleeps
constexpr auto k_nap = std::chrono::microseconds(20);
constexpr std::uint64_t k_long_ns = 2'000'000'000;  // for a kernel that the CPU waits for

std::uint64_t steady_ns() {
  return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

// All devices of this process. Never destroyed: the library's own handler at exit comes later than a module's destructors.
struct Devices {
  std::mutex lock;
  std::vector<GpuDevice*> all;
};
Devices& devices() {
  static Devices& known = *std::make_unique<Devices>().release();
  return known;
}

}  // namespace

// ---- life -----------------------------------------------------------------------------------------------------------

GpuDevice::GpuDevice(DeviceConfig config, const Services& services)
    : config_(std::move(config)), services_(services), queues_(*this, services_, config_.name) {}

std::unique_ptr<hmmrt::Device> GpuDevice::make(const DeviceConfig& config, const Services& services) {
  std::unique_ptr<GpuDevice> device(new GpuDevice(config, services));
  if (const Error e = device->open(); e != k_success) {
    say_unusable(config, services, e);
    return nullptr;
  }
  return device;
}

Error GpuDevice::open() {
  const Current current = use();
  if (current.error() != k_success) return current.error();
  std::size_t free_bytes = 0, total = 0;
  if (const Error e = GPU(MemGetInfo)(&free_bytes, &total); e != k_success) return e;
  std::uint64_t bytes = config_.memory_bytes != 0 ? config_.memory_bytes : free_bytes / 4 * 3;
  bytes = std::max<std::uint64_t>(bytes & ~(k_block_size - 1), k_block_size);
  void* pool = nullptr;
  if (const Error e = GPU(Malloc)(&pool, bytes); e != k_success) return e;
  pool_ = static_cast<std::byte*>(pool);
  frames_ = bytes / k_page_size;
  mapped_.resize(bytes / k_block_size);
  in_use_.resize(bytes / k_block_size);
  describe_itself();
  if (const Error e = lanes_.open({pool_, static_cast<int>(config_.ordinal)}); e != k_success) return e;
  const std::lock_guard guard(devices().lock);
  for (GpuDevice* other : devices().all) {
    if (config_.peers == nullptr || other->config_.peers != config_.peers) continue;
    meet(*other);
    other->meet(*this);
  }
  devices().all.push_back(this);
  return k_success;
}

// From now on frames of `other` can be copied here. Direct access makes that faster where there is a way; it is not needed.
void GpuDevice::meet(GpuDevice& other) {
  lanes_.set_peer(device_processor(other.config_.index), other.lanes_.pool());
  if (other.config_.ordinal == config_.ordinal) return;
  int direct = 0;
  const auto mine = static_cast<int>(config_.ordinal), theirs = static_cast<int>(other.config_.ordinal);
  if (GPU(DeviceCanAccessPeer)(&direct, mine, theirs) == k_success && direct != 0) {
    const Current current = use();
    (void)GPU(DeviceEnablePeerAccess)(theirs, 0);  // enabled already, or refused: no matter
  }
  (void)GPU(GetLastError)();
}

void GpuDevice::describe_itself() {
  const auto attribute = [&](auto which) {
    int value = 0;
    return GPU(DeviceGetAttribute)(&value, which, static_cast<int>(config_.ordinal)) == k_success ? value : 0;
  };
  describe(config_, &info_);
  info_.memory_bytes = frames_ * k_page_size;
  info_.description += ": no retryable faults, pages are brought here before a launch";
  info_.caps.placed = true;
  info_.caps.peer_copy = config_.peers != nullptr;
  info_.caps.remote_mapping = config_.remote_mapping && attribute(k_can_map_host) != 0;
  info_.caps.system_atomics = attribute(k_native_atomics) != 0;
}

GpuDevice::~GpuDevice() {
  {
    const std::lock_guard guard(devices().lock);
    std::erase(devices().all, this);
    for (GpuDevice* other : devices().all) {
      if (config_.peers != nullptr && other->config_.peers == config_.peers) {
        other->lanes_.set_peer(device_processor(config_.index), {});
      }
    }
  }
  const Current current = use();
  queues_.clear();
  unpin_stale(~std::uint64_t{0});
  for (auto& [base, remote] : remote_) {
    for (Pinned& p : remote.pinned) give_pin(p.pin);
  }
  for (const Kernel& kernel : in_flight_) (void)GPU(EventDestroy)(kernel.done);
  for (Event event : spare_events_) (void)GPU(EventDestroy)(event);
  if (pool_ != nullptr) (void)GPU(Free)(pool_);
}

void GpuDevice::break_down(const char* what, Error error) {
  const std::lock_guard guard(table_);
  if (broken_.empty()) broken_ = std::string(what) + ": " + GPU(GetErrorString)(error);
}

std::string GpuDevice::broken() const {
  const std::lock_guard guard(table_);
  return broken_;
}

// ---- frames ---------------------------------------------------------------------------------------------------------

GpuDevice::Mapped* GpuDevice::local(std::uintptr_t base) {
  const std::uintptr_t block = (base - window_) >> k_block_shift;
  return window_ != 0 && base >= window_ && block < mapped_.size() ? &mapped_[block] : nullptr;
}

bool GpuDevice::allocate_frames(std::uintptr_t base, const PageMask& pages, Frame* frames) {
  const std::lock_guard guard(table_);
  if (local(base) == nullptr) return false;
  const std::uintptr_t block = (base - window_) >> k_block_shift;
  if (in_use_[block].intersects(pages)) return false;
  in_use_[block] |= pages;
  const auto first = static_cast<Frame>(block * k_block_pages);
  pages.for_each([&](unsigned page) { frames[page] = first + page; });
  used_.fetch_add(pages.count(), std::memory_order_relaxed);
  return true;
}

void GpuDevice::free_frames(const PageMask& pages, const Frame* frames) {
  const std::lock_guard guard(table_);
  pages.for_each([&](unsigned page) { in_use_[frames[page] / k_block_pages].clear(frames[page] % k_block_pages); });
  used_.fetch_sub(pages.count(), std::memory_order_relaxed);
}

bool GpuDevice::zero_frames(const PageMask& pages, const Frame* frames) {
  const Current current = use();
  if (lanes_.zero(pages, frames)) return true;
  break_down("device memory could not be cleared", GPU(GetLastError)());
  return false;
}

GpuDevice::Reach GpuDevice::reach(std::uintptr_t begin, std::uintptr_t end) {
  const std::uintptr_t size = frames_ * k_page_size;
  begin = block_floor(begin);
  end = block_ceil(end);
  if (end - begin > size) return Reach::never;
  const std::lock_guard guard(table_);
  if (window_ != 0 && begin >= window_ && end <= window_ + size) return Reach::now;
  if (used_.load(std::memory_order_relaxed) != 0) return Reach::once_empty;
  // Memory grows downwards more often than upwards.
  const std::uintptr_t below = block_floor((size - (end - begin)) / 4 * 3);
  window_ = begin > below ? begin - below : k_block_size;
  std::fill(mapped_.begin(), mapped_.end(), Mapped{});
  return Reach::now;
}

// ---- page table -----------------------------------------------------------------------------------------------------

// Those of the pages that are pinned after it. The block's claim keeps everybody else from pinning them.
PageMask GpuDevice::pin(std::uintptr_t base, const PageMask& pages, const MapSpan& span) {
  PageMask missing = pages;
  {
    const std::lock_guard guard(remote_lock_);
    for (const Pinned& p : remote_[base].pinned) missing = missing - PageMask::range(p.first, p.count);
  }
  PageMask refused;
  missing.for_each_run([&](unsigned first, unsigned count) {
    std::byte* const host = span.host + (first - span.first) * k_page_size;
    std::vector<std::shared_ptr<HostPin>> pins;
    std::string why = "it is not where it was";
    if (host == reinterpret_cast<std::byte*>(base + first * k_page_size)) {
      pins = take_pins(host, count * k_page_size, &why);
    }
    const std::lock_guard guard(remote_lock_);
    pin_error_ = pins.empty() ? why : "";
    if (pins.empty()) refused |= PageMask::range(first, count);
    for (std::shared_ptr<HostPin>& pin : pins) {
      const std::size_t from = reinterpret_cast<std::uintptr_t>(pin->host) - base;
      remote_[base].pinned.push_back({static_cast<std::uint16_t>(from >> k_page_shift),
                                      static_cast<std::uint16_t>(pin->bytes >> k_page_shift), std::move(pin)});
    }
  });
  return pages - refused;
}

void GpuDevice::map(std::uintptr_t base, std::span<const MapSpan> spans) {
  const Current current = use();
  for (const MapSpan& span : spans) {
    const PageMask pages = PageMask::range(span.first, span.count);
    PageMask mapped;
    bool less = false;
    if (span.target == Target::host) {
      mapped = pin(base, pages, span);
      const std::lock_guard guard(remote_lock_);
      const std::lock_guard table(table_);
      less = give(remote_[base].mapped, mapped, span.rights);
    } else if (span.target == Target::frames) {
      const std::lock_guard table(table_);
      Mapped* const here = local(base);
      // What an mremap brought is at the place of the address that it had before.
      if (here != nullptr && span.frame == ((base - window_) >> k_page_shift) + span.first) mapped = pages;
      if (here != nullptr) less = give(*here, mapped, span.rights);
    }
    // The caller takes all of them for mapped.
    if (mapped != pages) holds_less_.store(true, std::memory_order_relaxed);
    if (less || mapped != pages) unmaps_.fetch_add(1, std::memory_order_acq_rel);
  }
}

PageMask GpuDevice::unmap(std::uintptr_t base, const PageMask& pages) {
  PageMask written;
  {
    const std::lock_guard guard(table_);
    if (Mapped* mapped = local(base); mapped != nullptr) written = take(*mapped, pages);
    unmaps_.fetch_add(1, std::memory_order_acq_rel);
  }
  PageMask unpinned;
  written |= unmap_remote(base, pages, pages, &unpinned, this) & pages;
  if (unpinned.none()) return written;
  const std::lock_guard guard(devices().lock);
  for (GpuDevice* other : devices().all) {  // who shares the pins lets go, too
    PageMask theirs;
    if (other != this) (void)other->unmap_remote(base, unpinned, {}, &theirs, this);
  }
  return written;
}

bool GpuDevice::give(Mapped& mapped, const PageMask& pages, Rights rights) {
  const PageMask written = take(mapped, pages);
  (rights == Rights::read ? mapped.read : mapped.write) |= pages;
  return rights == Rights::read && written.any();
}

PageMask GpuDevice::take(Mapped& mapped, const PageMask& pages) {
  const PageMask written = mapped.write & pages;
  mapped.read = mapped.read - pages;
  mapped.write = mapped.write - pages;
  return written;
}

// Unmaps pages of the system's, and whatever is pinned together with them; of that, the caller knows of what it `asked` for.
// Returns what was writable; *unpinned: what will not be pinned any more.
PageMask GpuDevice::unmap_remote(std::uintptr_t base, const PageMask& pages, const PageMask& asked, PageMask* unpinned,
                                 const GpuDevice* cause) {
  PageMask written;
  {
    const std::lock_guard remote_guard(remote_lock_);
    const std::lock_guard guard(table_);
    const auto it = remote_.find(base);
    if (it == remote_.end()) return {};
    for (const Pinned& p : it->second.pinned) {
      const PageMask run = PageMask::range(p.first, p.count);
      if (run.intersects(pages)) *unpinned |= run;
    }
    const PageMask gone = pages | *unpinned;
    const PageMask before = it->second.mapped.read | it->second.mapped.write;
    written = take(it->second.mapped, gone);
    if (before.intersects(gone)) unmaps_.fetch_add(1, std::memory_order_acq_rel);
    if (before.intersects(gone - asked)) holds_less_.store(true, std::memory_order_relaxed);
  }
  if (unpinned->none()) return written;
  const std::uint64_t number = launches();  // a launch that saw the pages mapped has been counted
  const std::lock_guard remote_guard(remote_lock_);
  std::erase_if(remote_[base].pinned, [&](const Pinned& p) {
    if (!PageMask::range(p.first, p.count).intersects(pages)) return false;
    stale_.push_back({number, p, cause});
    return true;
  });
  return written;
}

bool GpuDevice::quiesce_launches(std::uint64_t timeout_ns, std::uint64_t launches) {
  if (!finish_kernels(timeout_ns, launches)) return false;
  // Kernels of others may be using pages whose pins they shared.
  const std::lock_guard guard(devices().lock);
  return std::all_of(devices().all.begin(), devices().all.end(), [&](GpuDevice* other) {
    const std::uint64_t last = other == this ? 0 : other->last_stale(this);
    return last == 0 || other->finish_kernels(timeout_ns, last);
  });
}

// The last kernel that may be using what `cause` has unmapped here; 0: none, and all of that is unpinned.
std::uint64_t GpuDevice::last_stale(const GpuDevice* cause) {
  const std::lock_guard unpinning(unpin_lock_);
  const std::lock_guard guard(remote_lock_);
  std::uint64_t last = 0;
  for (const Stale& stale : stale_) {
    if (stale.cause == cause) last = std::max(last, stale.number);
  }
  return last;
}

// Forgets kernels that have ended. start_ held.
void GpuDevice::reap() {
  std::erase_if(in_flight_, [&](const Kernel& kernel) {
    if (GPU(EventQuery)(kernel.done) == k_not_ready) return false;
    spare_events_.push_back(kernel.done);
    return true;
  });
}

// Waits for kernels up to `number`, and lets go of what only they could be using.
bool GpuDevice::finish_kernels(std::uint64_t timeout_ns, std::uint64_t number) {
  const Current current = use();
  const std::uint64_t deadline = timeout_ns == 0 ? ~std::uint64_t{0} : steady_ns() + timeout_ns;
  for (unsigned spins = 0;; ++spins) {
    // One that is being started may take long; its turn has come when the lock is free again.
    if (const std::unique_lock guard(start_, std::try_to_lock); guard.owns_lock()) {
      reap();
      if (in_flight_.empty() || in_flight_.front().number > number) break;
    }
    std::uint64_t since = 0;
    if (waiting_since_ns_.compare_exchange_strong(since, steady_ns())) since = steady_ns();
    if (steady_ns() - since > k_long_ns) {
      services_.warn(
          "the CPU waits for memory that a running kernel uses. Should the kernel be waiting for the CPU: what both "
          "use at once must be pinned (hmmrt_pin) before the launch");
    }
    if (steady_ns() >= deadline) return false;
    if (spins > k_spins) std::this_thread::sleep_for(k_nap);
  }
  waiting_since_ns_.store(0);
  unpin_stale(number);
  return true;
}

// Whether all of it is mapped. remote_lock_ and table_ held.
bool GpuDevice::holds(const ReadyPages& ready) {
  const std::uint64_t now = unmaps();
  if (ready.unmaps.load(std::memory_order_relaxed) == now && !holds_less_.load(std::memory_order_relaxed)) return true;
  const bool all = std::all_of(ready.pages.begin(), ready.pages.end(), [&](const ReadyPages::InBlock& block) {
    const Mapped* mapped = nullptr;
    if (!ready.remote) {
      mapped = local(block.base);
    } else if (const auto it = remote_.find(block.base); it != remote_.end()) {
      mapped = &it->second.mapped;
    }
    return mapped != nullptr && mapped->write.contains(block.writable) &&
           (mapped->read | mapped->write).contains(block.pages);
  });
  if (all) ready.unmaps.store(now, std::memory_order_relaxed);
  return all;
}

std::string GpuDevice::pin_error() {
  const std::lock_guard guard(remote_lock_);
  return pin_error_;
}

void GpuDevice::unpin_stale(std::uint64_t ended) {
  const std::lock_guard unpinning(unpin_lock_);
  std::vector<std::shared_ptr<HostPin>> over;
  {
    const std::lock_guard guard(remote_lock_);
    std::erase_if(stale_, [&](Stale& stale) {
      if (stale.number > ended) return false;
      over.push_back(std::move(stale.pinned.pin));
      return true;
    });
  }
  for (std::shared_ptr<HostPin>& pin : over) give_pin(pin);
}

// ---- launches -------------------------------------------------------------------------------------------------------

QueueOwner::Start GpuDevice::start(Stream stream, const Launch& launch, const ReadyPages* ready, Error* error) {
  const std::lock_guard guard(start_);
  const std::lock_guard other_contexts(start_lock(config_.ordinal));
  std::ptrdiff_t offset = 0;
  Event done{};
  if (spare_events_.empty()) reap();
  if (!spare_events_.empty()) {
    done = spare_events_.back();
    spare_events_.pop_back();
  } else if (*error = GPU(EventCreateWithFlags)(&done, k_event_flags); *error != k_success) {
    return Start::failed;
  }
  std::uint64_t number = 0;
  {
    const std::lock_guard remote_guard(remote_lock_);
    const std::lock_guard table(table_);
    if (!holds(*ready)) {
      spare_events_.push_back(done);
      return Start::not_ready;
    }
    if (!ready->remote) offset = pool_ - reinterpret_cast<std::byte*>(window_);
    number = kernels_.fetch_add(1, std::memory_order_acq_rel) + 1;
  }
  *error = static_cast<Error>(launch.run_gpu(launch.functor, &launch.grid, offset, stream));
  // Recorded also after a failure: some of it may have started.
  if (const Error e = GPU(EventRecord)(done, stream); e != k_success) (void)GPU(DeviceSynchronize)();
  in_flight_.push_back({done, number});
  return *error == k_success ? Start::started : Start::failed;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

CopyTicket GpuDevice::copy_async(std::span<const CopyRun> runs) {
  const Current current = use();
  return lanes_.start(runs);
}

bool GpuDevice::wait_copy(CopyTicket ticket) {
  const Current current = use();
  return lanes_.wait(ticket);
}

std::uint64_t GpuDevice::metadata_bytes() const {
  const std::lock_guard guard(table_);
  return mapped_.size() * sizeof(Mapped);
}

}  // namespace hmmrt::gpu
