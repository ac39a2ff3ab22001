// SPDX-License-Identifier: MIT
#include "api/context.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cinttypes>
#include <thread>

#include "api/log.hpp"
#include "device/gpu_modules.hpp"
#include "device/soft/soft_device.hpp"
#include "host/kfd/kfd_mirror.hpp"
#include "host/shim/shim_mirror.hpp"
#include "host/uffd/uffd_mirror.hpp"
#include "migrate/coherence.hpp"
#include "migrate/ready.hpp"
#include "migrate/requests.hpp"

namespace hmmrt {

namespace {

constexpr unsigned k_home_attempts = 100;  // at destruction, for pages that are busy

SoftChance chance(double probability) {
  SoftChance c;
  c.probability = probability;
  return c;
}

SoftDeviceConfig device_config(const Settings& s, unsigned index, const std::shared_ptr<SoftPeers>& peers) {
  SoftDeviceConfig c;
  c.name = "soft:" + std::to_string(index);
  c.processor = device_processor(index);
  c.memory_bytes = s.device_memory;
  c.compute_units = static_cast<std::uint32_t>(s.compute_units);
  c.waves_per_unit = static_cast<std::uint32_t>(s.waves_per_unit);
  c.wave_size = static_cast<std::uint32_t>(s.wave_size);
  c.fault_buffer_entries = static_cast<std::uint32_t>(s.fault_buffer_entries);
  c.populate = s.device_populate;
  c.system_atomics = s.system_atomics;
  c.remote_mapping = s.remote_mapping;
  c.access_counters = s.access_counters;
  c.peer = s.peer;
  c.access_counter_threshold = static_cast<std::uint32_t>(s.access_counter_threshold);
  c.seed = s.seed + index;
  c.link.enabled = s.link;
  c.link.to_device_bytes_per_ns = s.link_bandwidth;
  c.link.to_host_bytes_per_ns = s.link_bandwidth;
  c.link.latency_ns = s.link_latency_ns;
  c.link.map_ns = s.link_map_ns;
  c.link.remote_access_ns = s.link_remote_ns;
  c.link.fault_ns = s.link_fault_ns;
  c.inject.allocation_fails = chance(s.inject_allocation);
  c.inject.copy_fails = chance(s.inject_copy);
  c.inject.quiesce_slow = chance(s.inject_quiesce);
  c.inject.fault_dropped = chance(s.inject_fault_dropped);
  c.inject.slow_quiesce_ns = s.inject_quiesce_ns;
  c.peers = peers;
  return c;
}

// The vendor's numbers of the GPUs that option device names; none for the software GPU. Sets option devices to as many.
Status parse_devices(Settings& s, std::vector<unsigned>* gpus) {
  if (s.device == "soft") {
    if (s.host_mirror != "kfd") return {};
    return fail(HMMRT_ERROR_INVALID_OPTION,
                "option host_mirror is kfd, which serves AMD GPUs only; for software GPUs leave it auto, or give "
                "option device=gpu");
  }
  for (std::size_t at = 0; at <= s.device.size();) {
    const std::size_t comma = std::min(s.device.find(',', at), s.device.size());
    const std::string name = s.device.substr(at, comma - at);
    unsigned ordinal = 0;
    bool good = name == "gpu" && s.device == name;
    if (name.starts_with("gpu:")) {
      const auto [end, error] = std::from_chars(name.data() + 4, name.data() + name.size(), ordinal);
      good = error == std::errc{} && end == name.data() + name.size();
    }
    if (!good) {
      return fail(HMMRT_ERROR_INVALID_OPTION, "option device cannot be '%s': it is soft, gpu, gpu:N or gpu:N,gpu:M",
                  s.device.c_str());
    }
    gpus->push_back(ordinal);
    at = comma + 1;
  }
  if (s.device == "gpu") {
    while (gpus->size() < s.devices) gpus->push_back(static_cast<unsigned>(gpus->size()));
  }
  if (gpus->size() > k_max_devices) {
    return fail(HMMRT_ERROR_INVALID_OPTION, "option device names %zu GPUs; a context has at most %u", gpus->size(),
                k_max_devices);
  }
  if (s.host_mirror == "shim") {
    return fail(HMMRT_ERROR_INVALID_OPTION,
                "option host_mirror is shim, which serves software GPUs only; for device '%s' leave it auto",
                s.device.c_str());
  }
  s.devices = gpus->size();
  return {};
}

// Decides what the options left to us.
Status resolve(Settings& s) {
  const auto pages = static_cast<std::uint64_t>(std::max(sysconf(_SC_PHYS_PAGES), 0l));
  if (s.device_memory == 0 && s.device != "soft") {
    s.arena_bytes = block_ceil(s.arena_bytes);
  } else if (s.device_memory == 0) {
    s.device_memory = std::min<std::uint64_t>(std::uint64_t{1} << 30, pages * k_page_size / 4 / s.devices);
    s.device_memory = std::max<std::uint64_t>(s.device_memory & ~(k_block_size - 1), k_block_size);
  }
  if (s.device_memory < k_page_size && s.device == "soft") {
    return fail(HMMRT_ERROR_INVALID_OPTION,
                "option device_memory cannot be %" PRIu64
                ": a device has at least 4K (0: "
                "decided by the library)",
                s.device_memory);
  }
  s.device_memory &= ~(k_page_size - 1);
  s.arena_bytes = block_ceil(s.arena_bytes);
  if (s.pipeline_threads == 0) s.pipeline_threads = std::max(1u, std::thread::hardware_concurrency());
  if (!s.trace_file.empty() && s.trace_entries == 0) s.trace_entries = 1u << 20;
  if (s.trace_entries != 0) s.trace_entries = std::bit_ceil(s.trace_entries);
  return {};
}

bool moves(const HostMirrorInfo& info) { return info.path.rfind("move", 0) == 0; }

}  // namespace

Status Context::create(Settings settings, std::unique_ptr<Context>* out) {
  std::vector<unsigned> gpus;
  if (const Status s = parse_devices(settings, &gpus); !s.ok()) return s;
  if (const Status s = resolve(settings); !s.ok()) return s;
  log::set_level(settings.log_level);
  std::unique_ptr<Policy> policy = make_policy(settings.policy);
  if (policy == nullptr) {
    return fail(HMMRT_ERROR_INVALID_OPTION, "there is no policy '%s'; there are %s", settings.policy.c_str(),
                policy_names());
  }
  std::unique_ptr<Context> context(new Context(std::move(settings), std::move(policy)));
  if (const Status s = context->make_host(gpus); !s.ok()) return s;
  if (const Status s = context->build(gpus); !s.ok()) return s;
  context->say_what_is_missing();
  *out = std::move(context);
  return {};
}

Context::Context(Settings settings, std::unique_ptr<Policy> policy)
    : HandleObject(k_kind),
      settings_(std::move(settings)),
      log_(static_cast<std::uint32_t>(settings_.trace_entries)),
      policy_(std::move(policy)) {}

Status Context::make_host(const std::vector<unsigned>& gpus) {
  Status status;
  const std::string& wanted = settings_.host_mirror;
  if (wanted == "shim") {
    std::unique_ptr<ShimMirror> made = ShimMirror::make(static_cast<unsigned>(settings_.devices), &status);
    shim_ = made.get();
    host_ = std::move(made);
    return host_ != nullptr ? Status{} : status;
  }
  if (wanted == "kfd" || (wanted == "auto" && !gpus.empty())) {
    host_ = make_kfd(gpus, &status);
    if (host_ != nullptr) return {};
    if (wanted == "kfd") return status;
    log::info(std::string("pages come to the GPU at launch, since its driver does not move them: ") + failure_detail());
  }
  UffdConfig config;
  config.force_fallback = settings_.host_path == "fallback";
  config.user_mode_only = settings_.user_mode_faults;
  host_ = make_uffd_mirror(config, &status);
  if (host_ == nullptr) return status;
  if (settings_.host_path == "move" && !moves(host_->info())) {
    return fail(HMMRT_ERROR_NOT_SUPPORTED, "option host_path is move, but here it is %s", host_->info().path.c_str());
  }
  return {};
}

std::unique_ptr<HostMirror> Context::make_kfd(const std::vector<unsigned>& gpus, Status* status) {
  KfdConfig config;
  for (const unsigned gpu : gpus) {
    KfdConfig::Pci pci{};
    if (*status = gpu_pci(gpu, &pci.domain, &pci.location); !status->ok()) return nullptr;
    config.gpus.push_back(pci);
  }
  config.xnack = settings_.xnack == "on" ? Xnack::on : settings_.xnack == "off" ? Xnack::off : Xnack::as_it_is;
  config.only_with_xnack = settings_.host_mirror == "auto" && config.xnack != Xnack::off;
  config.on_reports = [this] { doorbell_.ring(); };
  config.on_change = [this](const kfd::AttributeChange& change) { note_attribute(change); };
  std::unique_ptr<KfdMirror> made = KfdMirror::make(config, status);
  kfd_ = made.get();
  return made;
}

// Thread: any.
void Context::note_attribute(const kfd::AttributeChange& c) {
  if (c.outcome != kfd::Outcome::limited) counters_.add(Count::attribute_changes);
  if (c.outcome == kfd::Outcome::refused) counters_.add(Count::attribute_changes_refused);
  if (c.outcome == kfd::Outcome::limited) counters_.add(Count::attribute_changes_limited);
  log_.record({.time_ns = now_ns(),
               .base = c.addr,
               .a = static_cast<std::uint64_t>(c.attribute.type),
               .b = c.attribute.value,
               .c = static_cast<std::uint64_t>(c.outcome),
               .pages = static_cast<std::uint32_t>(std::min<std::size_t>(c.bytes >> k_page_shift, ~0u)),
               .kind = EventKind::attribute,
               .detail = static_cast<std::uint8_t>(c.wish)});
  if (!log::debug_on()) return;
  char text[256];
  std::snprintf(text, sizeof text, "attribute %s of [%#zx, +%zu): %#x, for %s: %s",
                kfd::attribute_name(c.attribute.type), c.addr, c.bytes, c.attribute.value, wish_name(c.wish),
                c.outcome == kfd::Outcome::done      ? "done"
                : c.outcome == kfd::Outcome::limited ? "not asked, too many"
                                                     : kfd::Hsakmt::status_text(c.status));
  log::debug(text);
}

std::unique_ptr<Device> Context::make_device(unsigned index, const std::vector<unsigned>& gpus,
                                             const std::shared_ptr<SoftPeers>& peers, Status* status) {
  if (!gpus.empty()) {
    gpu::DeviceConfig config;
    config.ordinal = gpus[index];
    config.name = "gpu:" + std::to_string(gpus[index]);
    config.index = index;
    config.memory_bytes = settings_.device_memory;
    config.remote_mapping = settings_.remote_mapping;
    config.driven = kfd_ != nullptr;
    config.xnack = kfd_ != nullptr && kfd_->xnack();
    config.peers = settings_.peer ? this : nullptr;
    return make_gpu_device(
        config, [](const char* text) { log::warn_once(text); }, status);
  }
  SoftDeviceConfig config = device_config(settings_, index, peers);
  if (shim_ != nullptr) {
    config.far = &shim_->memory(index);
    config.memory_bytes = std::min(config.memory_bytes, shim_->capacity(index));
  }
  return std::make_unique<SoftDevice>(config, doorbell_, clock_);
}

Status Context::build(const std::vector<unsigned>& gpus) {
  const auto peers = std::make_shared<SoftPeers>();
  std::array<Device*, k_max_devices> devices{};
  std::array<Counters*, k_max_devices> counters{};
  for (unsigned i = 0; i < settings_.devices; ++i) {
    Status made;
    std::unique_ptr<Device> device = make_device(i, gpus, peers, &made);
    if (device == nullptr) return made;
    devices_.push_back(std::move(device));
    device_counters_.push_back(std::make_unique<Counters>());
    devices[i] = devices_.back().get();
    counters[i] = device_counters_.back().get();
  }
  settings_.compute_units = devices_[0]->info().compute_units;
  settings_.device_memory = devices_[0]->info().memory_bytes;
  house_ = std::unique_ptr<House>(  // NOLINT(modernize-make-unique): clang 14 cannot make_unique an aggregate
      new House{space_, *host_, *policy_, clock_, log_, counters_, device_count(), devices, counters});
  if (host_->info().driven) {  // whose driver tells every context of what it does for any
    house_->foreign = [](void* self, std::uintptr_t base) {
      for (const Use<Context>& other : HandleTable::instance().use_all<Context>()) {
        if (other.get() != self && other->watches(base, k_block_size)) return true;
      }
      return false;
    };
    house_->foreign_argument = this;
  }
  const auto tokens = static_cast<unsigned>(settings_.pipeline_tokens);
  const auto threads = static_cast<unsigned>(settings_.pipeline_threads);
  pool_ = std::make_unique<PipelinePool>(*house_, tokens, threads);
  FaultServiceConfig config;
  config.batch_size = static_cast<std::uint32_t>(settings_.batch_size);
  config.tokens = tokens;
  config.threads = threads;
  config.access_counter_migration = settings_.access_counters;
  service_ = std::make_unique<FaultService>(*house_, doorbell_, config);
  heap_ = std::make_unique<Heap>(static_cast<HeapBackend&>(*this), settings_.arena_bytes);
  service_->start();
  for (const Option& option : option_table()) option_values_.push_back(option_text(settings_, option));
  return {};
}

void Context::say_what_is_missing() const {
  const HostMirrorInfo& info = host_->info();
  if (!info.note.empty()) {
    if (settings_.user_mode_faults) {
      log::info(info.note);
    } else {
      log::warn_once(info.note);
    }
  }
  if (info.name == "uffd" && !moves(info)) {
    const std::string text = "pages leave the CPU by copying, about a quarter as fast as by moving: " + info.path;
    if (settings_.host_path == "fallback") {
      log::info(text);
    } else {
      log::warn_once(text);
    }
  }
  log::info("context: policy " + settings_.policy + ", host mirror " + info.name + " by " + info.path + ", " +
            std::to_string(device_count()) + (settings_.device == "soft" ? " software GPU(s) of " : " GPU(s) of ") +
            std::to_string(settings_.device_memory >> 20) + " MiB");
}

Context::~Context() {
  if (service_ != nullptr) close();
}

void Context::close() {
  // The handle is gone and no call is in progress. Children first: their handles die, their work ends.
  HandleTable& table = HandleTable::instance();
  std::vector<std::uintptr_t> streams, events;
  {
    const std::lock_guard guard(children_lock_);
    streams = stream_handles_;
    events = event_handles_;
  }
  for (const std::uintptr_t handle : streams) {
    std::unique_ptr<Stream> stream;
    if (table.take(handle, &stream).ok()) destroy_stream(std::move(stream));
  }
  for (const std::uintptr_t handle : events) {
    std::unique_ptr<StreamEvent> event;
    if (table.take(handle, &event).ok()) destroy_event(std::move(event));
  }
  wait_unused();

  service_->fence();  // what mremap moved is known by its new address
  std::vector<std::uintptr_t> registered;
  for_each_range([&](const Range& range) {
    if (range.registered) registered.push_back(range.addr);
  });
  for (const std::uintptr_t addr : registered) {
    Status s;
    for (unsigned attempt = 0; attempt < k_home_attempts; ++attempt) {
      s = forget(addr, true);
      if (s.ok()) break;
    }
    if (!s.ok())
      log::warn(std::string("context destroyed with registered memory that cannot come home: ") + failure_detail());
  }
  if (heap_ != nullptr) heap_->release_all();
  service_->stop();
  write_trace();
  heap_.reset();
  service_.reset();
  pool_.reset();
  house_.reset();
  devices_.clear();
  host_.reset();
}

// ---- streams and events ---------------------------------------------------------------------------------------------

Status Context::create_stream(unsigned index, std::uintptr_t* handle) {
  Device& on = device(index);
  Queue queue = 0;
  if (const Status s = on.create_queue(&queue); !s.ok()) return s;
  auto stream = std::make_unique<Stream>(*this, on, index, queue);
  Stream* raw = stream.get();
  const std::lock_guard guard(children_lock_);
  streams_.reserve(streams_.size() + 1);
  stream_handles_.reserve(stream_handles_.size() + 1);
  *handle = HandleTable::instance().put(std::move(stream));
  if (*handle == 0) {
    on.destroy_queue(queue);
    return fail(HMMRT_ERROR_OUT_OF_MEMORY, "no room for another handle; destroy streams or events");
  }
  streams_.push_back(raw);
  stream_handles_.push_back(*handle);
  return {};
}

void Context::destroy_stream(std::unique_ptr<Stream> stream) {
  {
    const std::lock_guard guard(children_lock_);
    std::erase(streams_, stream.get());
    std::erase(stream_handles_, stream->handle());
  }
  stream->drain();
  stream->wait_unused();
  stream->drain();  // what the last users enqueued
  stream->device.destroy_queue(stream->queue);
}

Status Context::create_event(std::uintptr_t* handle) {
  auto event = std::make_unique<StreamEvent>(*this);
  const std::lock_guard guard(children_lock_);
  event_handles_.reserve(event_handles_.size() + 1);
  *handle = HandleTable::instance().put(std::move(event));
  if (*handle == 0) return fail(HMMRT_ERROR_OUT_OF_MEMORY, "no room for another handle; destroy streams or events");
  event_handles_.push_back(*handle);
  return {};
}

void Context::destroy_event(std::unique_ptr<StreamEvent> event) {
  {
    const std::lock_guard guard(children_lock_);
    std::erase(event_handles_, event->handle());
  }
  event->wait_unused();
}

void Context::drain_streams() {
  std::vector<Use<Stream>> busy;
  {
    const std::lock_guard guard(children_lock_);
    for (Stream* stream : streams_) {
      if (stream->device.idle(stream->queue)) continue;
      stream->begin_use();
      busy.emplace_back(stream);
    }
  }
  for (const Use<Stream>& stream : busy) stream->drain();
}

Status Context::synchronize() {
  std::vector<Use<Stream>> all;
  {
    const std::lock_guard guard(children_lock_);
    for (Stream* stream : streams_) {
      stream->begin_use();
      all.emplace_back(stream);
    }
  }
  for (const Use<Stream>& stream : all) stream->drain();
  // One error is reported; the others stay with their streams.
  for (const Use<Stream>& stream : all) {
    if (const Status s = stream->synchronize(); !s.ok()) return s;
  }
  return {};
}

bool Context::wait_idle(std::chrono::steady_clock::time_point deadline) {
  constexpr std::uint64_t k_look_again_ns = 500'000;
  for (;;) {
    {
      const std::lock_guard guard(children_lock_);
      const auto idle = [](Stream* stream) { return stream->device.idle(stream->queue); };
      if (std::all_of(streams_.begin(), streams_.end(), idle)) return true;
    }
    if (std::chrono::steady_clock::now() >= deadline) return false;
    const Word never{0};
    park(never, 0, k_look_again_ns);
  }
}

// ---- memory ---------------------------------------------------------------------------------------------------------

std::byte* Context::allocate_arena(std::size_t bytes) {
  std::vector<std::byte*> refused;  // holes that the application unmapped in registered ranges
  std::byte* memory = host_->allocate(bytes);
  while (memory != nullptr && space_.overlaps(reinterpret_cast<std::uintptr_t>(memory), bytes)) {
    refused.push_back(memory);
    memory = host_->allocate(bytes);
  }
  for (std::byte* hole : refused) host_->release(hole, bytes);
  return memory;
}

void Context::release_arena(std::byte* addr, std::size_t bytes) {
  host_->release(addr, bytes);
  const std::lock_guard guard(rights_lock_);
  rights_seen_.erase(reinterpret_cast<std::uintptr_t>(addr));
}

Status Context::manage(std::uintptr_t addr, std::size_t bytes) {
  Range* range = nullptr;
  return hmmrt::manage(*house_, addr, bytes, false, &range);
}

// Forgets the range that starts at `addr` and, if registered, hands its memory back to the application.
Status Context::forget(std::uintptr_t addr, bool bring_home) {
  std::size_t bytes = 0;
  {
    const std::unique_lock guard(range_lock_);
    Range* range = space_.find_range(addr);
    if (range == nullptr || range->addr != addr) return fail(HMMRT_ERROR_NOT_MANAGED, "%#zx is not managed", addr);
    bytes = range->bytes;
    if (const Status s = hmmrt::unmanage(*house_, *pool_, range, bring_home); !s.ok()) return s;
  }
  if (!bring_home) return {};
  const Status s = host_->detach(addr, bytes);
  service_->fence();
  const std::lock_guard guard(rights_lock_);
  rights_seen_.erase(addr);
  return s;
}

Status Context::unmanage(std::uintptr_t addr, std::size_t bytes, bool* reusable) {
  service_->fence();
  bool intact = true;
  for_each_claimed(addr, bytes,
                   [&](Block& block, const PageMask& pages) { intact = intact && block.valid.contains(pages); });
  if (const Status s = forget(addr, false); !s.ok()) return s;
  *reusable = false;
  if (!intact) return {};
  void* memory = reinterpret_cast<void*>(addr);
  // The application may have changed its protection; what is handed out again is ordinary memory.
  if (mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) return {};
  if (madvise(memory, bytes, MADV_DONTNEED) != 0) return {};
  (void)host_->send(addr, bytes, k_cpu, Wish::managed);  // or a driver would take it for where it was
  service_->fence();
  *reusable = true;
  return {};
}

bool Context::watches(std::uintptr_t addr, std::size_t bytes) {
  const auto overlaps = [&](std::uintptr_t a, std::size_t n) { return a < addr + bytes && addr < a + n; };
  bool found = false;
  for (const auto& [a, n] : heap_->arenas()) found = found || overlaps(a, n);
  for_each_range([&](const Range& range) { found = found || overlaps(range.addr, range.bytes); });
  return found;
}

Status Context::register_memory(std::uintptr_t addr, std::size_t bytes) {
  const auto others = [&]() -> Status {
    for (const Use<Context>& other : HandleTable::instance().use_all<Context>()) {
      if (other.get() == this || !other->watches(addr, bytes)) continue;
      return fail(HMMRT_ERROR_ALREADY_MANAGED,
                  "[%#zx, +%zu) overlaps memory that another context, %#zx, manages; a page belongs to one context",
                  addr, bytes, other->handle());
    }
    return {};
  };
  if (host_->info().driven) {  // which would let both have it
    if (const Status s = others(); !s.ok()) return s;
  }
  if (const Status s = host_->attach(addr, bytes); !s.ok()) {
    if (s.code() != HMMRT_ERROR_BUSY) return s;
    const std::string why = failure_detail();
    if (const Status other = others(); !other.ok()) return other;
    return fail(s.code(), "%s", why.c_str());
  }
  Range* range = nullptr;
  const Status s = hmmrt::manage(*house_, addr, bytes, true, &range);
  if (!s.ok()) {
    const std::string why = failure_detail();
    (void)host_->detach(addr, bytes);
    return fail(s.code(), "%s", why.c_str());
  }
  return {};
}

Status Context::unregister_memory(std::uintptr_t addr) {
  drain_streams();
  service_->fence();  // an mremap or munmap that has returned has happened
  bool registered = false;
  std::size_t bytes = 0;
  std::uintptr_t begin = 0;
  const bool found = with_range(addr, [&](const Range& r) {
    registered = r.registered;
    bytes = r.bytes;
    begin = r.addr;
  });
  if (!found) return fail(HMMRT_ERROR_NOT_MANAGED, "hmmrt_unregister: %#zx is not registered", addr);
  if (!registered) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_unregister: %#zx was allocated by hmmrt_alloc; use hmmrt_free", addr);
  }
  if (begin != addr) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_unregister: %#zx is inside the registration at %#zx; give its start",
                addr, begin);
  }
  if (const std::uintptr_t page = pinned_page(addr, bytes); page != 0) {
    return fail(HMMRT_ERROR_PINNED, "hmmrt_unregister: the page at %#zx is pinned; unpin it first", page);
  }
  return forget(addr, true);
}

bool Context::find_range(std::uintptr_t addr, std::uintptr_t* begin, std::size_t* bytes) {
  return with_range(addr, [&](const Range& range) {
    *begin = range.addr;
    *bytes = range.bytes;
  });
}

bool Context::registered(std::uintptr_t addr, std::size_t bytes) {
  for (const std::uintptr_t end = addr + bytes; addr < end;) {
    std::uintptr_t next = addr;
    with_range(addr, [&](const Range& range) {
      if (range.registered) next = range.end();
    });
    if (next == addr) return false;
    addr = next;
  }
  return true;
}

void Context::for_each_claimed(std::uintptr_t addr, std::size_t bytes, void (*fn)(void*, Block&, const PageMask&),
                               void* arg) {
  space_.for_each_block(addr, bytes, [&](Block& block, const PageMask& pages) {
    block.claim();
    fn(arg, block, pages);
    release(*house_, block);
  });
}

std::uintptr_t Context::pinned_page(std::uintptr_t addr, std::size_t bytes) {
  if (pins_.load(std::memory_order_relaxed) == 0) return 0;
  std::uintptr_t found = 0;
  for_each_claimed(addr, bytes, [&](Block& block, const PageMask& pages) {
    const PageMask pinned = block.pinned & pages & block.valid;
    if (found == 0 && pinned.any()) found = block.base + pinned.next(0) * k_page_size;
  });
  return found;
}

void Context::settle_mappings() {
  if (host_->info().driven) return;  // the driver checks every access
  service_->fence();
  const auto look = [&](std::uintptr_t addr, std::size_t bytes) {
    std::uint64_t seen = 0xcbf29ce484222325u;
    host_->query_rights(
        addr, bytes,
        [](void* h, std::uintptr_t from, std::size_t length, Rights rights) {
          auto& hash = *static_cast<std::uint64_t*>(h);
          for (const std::uint64_t v : {static_cast<std::uint64_t>(from), static_cast<std::uint64_t>(length),
                                        static_cast<std::uint64_t>(rights)}) {
            hash = (hash ^ v) * 0x9e3779b97f4a7c15u;
            hash ^= hash >> 29;
          }
        },
        &seen);
    {
      const std::lock_guard guard(rights_lock_);
      const auto [it, fresh] = rights_seen_.try_emplace(addr, seen);
      if (!fresh && it->second == seen) return;
      it->second = seen;
    }
    service_->refresh_rights(addr, bytes);
    space_.note_change();
  };
  for (const auto& [addr, bytes] : heap_->arenas()) look(addr, bytes);
  std::vector<std::pair<std::uintptr_t, std::size_t>> registered;
  for_each_range([&](const Range& range) {
    if (range.registered) registered.emplace_back(range.addr, range.bytes);
  });
  for (const auto& [addr, bytes] : registered) look(addr, bytes);
}

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

void Context::count_hint(bool effective, const char* what, std::uintptr_t addr, std::size_t bytes) {
  counters_.add(Count::hints);
  with_range(addr, [](Range& range) { range.counters.add(Count::hints); });
  if (effective) return;
  counters_.add(Count::hints_without_effect);
  with_range(addr, [](Range& range) { range.counters.add(Count::hints_without_effect); });
  log_.record({.time_ns = now_ns(),
               .base = addr,
               .pages = static_cast<std::uint32_t>(std::min<std::size_t>(bytes >> k_page_shift, ~0u)),
               .kind = EventKind::hint_ignored});
  if (!log::info_on()) return;
  char text[256];
  std::snprintf(text, sizeof text, "%s of [%#zx, +%zu) had no effect, or not on every page", what, addr, bytes);
  log::info(text);
}

// ---- statistics -----------------------------------------------------------------------------------------------------

std::uint64_t Context::metadata_bytes() {
  std::uint64_t bytes = space_.metadata_bytes() + host_->metadata_bytes() + heap_->metadata_bytes();
  for (const auto& d : devices_) bytes += d->metadata_bytes();
  return bytes;
}

std::uint64_t Context::remote_accesses(unsigned index) {
  return devices_[index]->remote_accesses() - baseline_[index].remote.load(std::memory_order_relaxed);
}

std::uint64_t Context::overflows(unsigned index) {
  return devices_[index]->fault_overflows() - baseline_[index].overflows.load(std::memory_order_relaxed);
}

void Context::driver_reports(std::uint64_t* read, std::uint64_t* lost) {
  if (kfd_ == nullptr) return;
  const kfd::SmiStats s = kfd_->reports();
  *read = s.events - reports_before_.load(std::memory_order_relaxed);
  *lost = s.lost() - lost_before_.load(std::memory_order_relaxed);
}

void Context::reset_stats() {
  if (kfd_ != nullptr) {
    const kfd::SmiStats s = kfd_->reports();
    reports_before_.store(s.events, std::memory_order_relaxed);
    lost_before_.store(s.lost(), std::memory_order_relaxed);
  }
  counters_.reset();
  for (const auto& c : device_counters_) c->reset();
  for_each_range([](Range& range) { range.counters.reset(); });
  service_->latencies().cpu_fault_ns.reset();
  service_->latencies().device_fault_ns.reset();
  service_->latencies().batch_faults.reset();
  service_->latencies().device_service_ns.store(0, std::memory_order_relaxed);
  service_->latencies().device_copy_ns.store(0, std::memory_order_relaxed);
  for (unsigned i = 0; i < device_count(); ++i) {
    baseline_[i].remote.store(devices_[i]->remote_accesses(), std::memory_order_relaxed);
    baseline_[i].overflows.store(devices_[i]->fault_overflows(), std::memory_order_relaxed);
  }
}

// ---- fork and exit --------------------------------------------------------------------------------------------------

void Context::freeze() {
  const std::shared_lock guard(range_lock_);  // freeze() walks the ranges
  service_->freeze();
}

void Context::write_trace() {
  if (settings_.trace_file.empty()) return;
  std::string path = settings_.trace_file;
  for (std::size_t at = path.find("%p"); at != std::string::npos; at = path.find("%p", at + 1)) {
    path.replace(at, 2, std::to_string(getpid()));
  }
  if (!log_.write_file(path.c_str()).ok()) log::warn(failure_detail());
}

}  // namespace hmmrt
