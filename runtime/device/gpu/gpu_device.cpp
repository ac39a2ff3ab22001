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

// All devices of this process.
std::mutex g_devices_lock;
std::vector<GpuDevice*> g_devices;

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
  describe_itself();
  if (const Error e = lanes_.open({pool_, static_cast<int>(config_.ordinal)}); e != k_success) return e;
  const std::lock_guard guard(g_devices_lock);
  for (GpuDevice* other : g_devices) {
    if (config_.peers == nullptr || other->config_.peers != config_.peers) continue;
    meet(*other);
    other->meet(*this);
  }
  g_devices.push_back(this);
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
    const std::lock_guard guard(g_devices_lock);
    std::erase(g_devices, this);
    for (GpuDevice* other : g_devices) {
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
  const auto first = static_cast<Frame>((base - window_) >> k_page_shift);
  pages.for_each([&](unsigned page) { frames[page] = first + page; });
  used_.fetch_add(pages.count(), std::memory_order_relaxed);
  return true;
}

void GpuDevice::free_frames(const PageMask& pages, const Frame*) {
  used_.fetch_sub(pages.count(), std::memory_order_relaxed);
}

void GpuDevice::zero_frames(const PageMask& pages, const Frame* frames) {
  const Current current = use();
  if (!lanes_.zero(pages, frames)) break_down("device memory could not be cleared", GPU(GetLastError)());
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

bool GpuDevice::pin(Remote& remote, std::uintptr_t base, unsigned first, unsigned count, std::byte* host) {
  std::vector<std::shared_ptr<HostPin>> pins;
  if (host == reinterpret_cast<std::byte*>(base + first * k_page_size)) {
    pins = take_pins(host, count * k_page_size, &pin_error_);
  }
  if (pins.empty()) {
    holds_less_.store(true, std::memory_order_relaxed);
    return false;
  }
  for (std::shared_ptr<HostPin>& pin : pins) {
    const std::size_t from = reinterpret_cast<std::uintptr_t>(pin->host) - base;
    remote.pinned.push_back({static_cast<std::uint16_t>(from >> k_page_shift),
                             static_cast<std::uint16_t>(pin->bytes >> k_page_shift), std::move(pin)});
  }
  return true;
}

void GpuDevice::map(std::uintptr_t base, std::span<const MapSpan> spans) {
  const Current current = use();
  for (const MapSpan& span : spans) {
    const PageMask pages = PageMask::range(span.first, span.count);
    bool less = false;
    if (span.target == Target::host) {
      const std::lock_guard guard(remote_lock_);
      Remote& remote = remote_[base];
      PageMask missing = pages;
      for (const Pinned& p : remote.pinned) missing = missing - PageMask::range(p.first, p.count);
      PageMask refused;
      missing.for_each_run([&](unsigned first, unsigned count) {
        std::byte* host = span.host + (first - span.first) * k_page_size;
        if (!pin(remote, base, first, count, host)) refused |= PageMask::range(first, count);
      });
      less = refused.any();  // the caller takes them for mapped
      const PageMask mapped = pages - refused;
      const std::lock_guard table(table_);
      less = give(remote.mapped, mapped, span.rights) || less;
    } else if (span.target == Target::frames) {
      const std::lock_guard table(table_);
      Mapped* mapped = local(base);
      if (mapped == nullptr) continue;
      less = give(*mapped, pages, span.rights);
    }
    if (less) unmaps_.fetch_add(1, std::memory_order_acq_rel);
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
  written |= unmap_remote(base, pages, pages, &unpinned) & pages;
  if (unpinned.none()) return written;
  const std::lock_guard guard(g_devices_lock);
  for (GpuDevice* other : g_devices) {  // who shares the pins lets go, too
    PageMask theirs;
    if (other != this) (void)other->unmap_remote(base, unpinned, {}, &theirs);
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
PageMask GpuDevice::unmap_remote(std::uintptr_t base, const PageMask& pages, const PageMask& asked,
                                 PageMask* unpinned) {
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
  std::uint64_t number = 0;
  {
    const std::lock_guard guard(start_);  // a launch that saw the pages mapped has its number
    number = kernels_;
  }
  const std::lock_guard remote_guard(remote_lock_);
  std::erase_if(remote_[base].pinned, [&](const Pinned& p) {
    if (!PageMask::range(p.first, p.count).intersects(pages)) return false;
    stale_.push_back({number, p});
    return true;
  });
  return written;
}

bool GpuDevice::quiesce(std::uint64_t timeout_ns) {
  if (!finish_kernels(timeout_ns)) return false;
  const std::lock_guard guard(g_devices_lock);
  return std::all_of(g_devices.begin(), g_devices.end(), [&](GpuDevice* other) {
    return other == this || !other->has_stale() || other->finish_kernels(timeout_ns);
  });
}

bool GpuDevice::has_stale() {
  const std::lock_guard guard(remote_lock_);
  return !stale_.empty();
}

// Waits for the kernels that have started, and lets go of what only they could be using.
bool GpuDevice::finish_kernels(std::uint64_t timeout_ns) {
  const Current current = use();
  std::uint64_t number = 0;
  const std::uint64_t deadline = timeout_ns == 0 ? ~std::uint64_t{0} : steady_ns() + timeout_ns;
  bool waited_long = false;
  for (unsigned spins = 0;; ++spins) {
    {
      const std::lock_guard guard(start_);
      if (number == 0) number = kernels_;
      bool busy = false;
      for (auto it = in_flight_.begin(); it != in_flight_.end();) {
        const bool ended = GPU(EventQuery)(it->done) != k_not_ready;
        busy = busy || (!ended && it->number <= number);
        if (!ended) {
          ++it;
          continue;
        }
        spare_events_.push_back(it->done);
        it = in_flight_.erase(it);
      }
      if (!busy) break;
      if (waiting_since_ns_ == 0) waiting_since_ns_ = steady_ns();
      waited_long = steady_ns() - waiting_since_ns_ > k_long_ns;
    }
    if (waited_long) {
      services_.warn(
          "the CPU waits for memory that a running kernel uses. Should the kernel be waiting for the CPU: what both "
          "use at "
          "once must be pinned (hmmrt_pin) before the launch");
    }
    if (steady_ns() >= deadline) return false;
    if (spins > k_spins) std::this_thread::sleep_for(k_nap);
  }
  {
    const std::lock_guard guard(start_);
    waiting_since_ns_ = 0;
  }
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
  const std::lock_guard guard(remote_lock_);
  std::erase_if(stale_, [&](Stale& stale) {
    if (stale.number > ended) return false;
    give_pin(stale.pinned.pin);
    return true;
  });
}

// ---- launches -------------------------------------------------------------------------------------------------------

QueueOwner::Start GpuDevice::start(Stream stream, const Launch& launch, const ReadyPages* ready, Error* error) {
  const std::lock_guard guard(start_);
  const std::lock_guard other_contexts(start_lock(config_.ordinal));
  std::ptrdiff_t offset = 0;
  {
    const std::lock_guard remote_guard(remote_lock_);
    const std::lock_guard table(table_);
    if (!holds(*ready)) return Start::not_ready;
    if (!ready->remote) offset = pool_ - reinterpret_cast<std::byte*>(window_);
  }
  Event done{};
  if (!spare_events_.empty()) {
    done = spare_events_.back();
    spare_events_.pop_back();
  } else if (*error = GPU(EventCreateWithFlags)(&done, k_event_flags); *error != k_success) {
    return Start::failed;
  }
  *error = static_cast<Error>(launch.run_gpu(launch.functor, &launch.grid, offset, stream));
  // Recorded also after a failure: some of it may have started.
  if (const Error e = GPU(EventRecord)(done, stream); e != k_success) (void)GPU(DeviceSynchronize)();
  in_flight_.push_back({done, ++kernels_});
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
