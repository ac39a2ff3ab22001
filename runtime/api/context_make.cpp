// SPDX-License-Identifier: MIT
// Context, as it is made: what the options mean, which host mirror and which devices they ask for, and the house of them.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cinttypes>
#include <thread>

#include "api/context.hpp"
#include "api/log.hpp"
#include "device/gpu_modules.hpp"
#include "device/soft/soft_device.hpp"
#include "host/kfd/kfd_mirror.hpp"
#include "host/shim/shim_mirror.hpp"
#include "host/uffd/uffd_mirror.hpp"

namespace hmmrt {

namespace {

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
    if (wanted == "kfd" || settings_.xnack == "on") return status;
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
    gpu::Place place;
    if (*status = gpu_place(gpu, &place); !status->ok()) return nullptr;
    config.gpus.push_back({place.domain, place.location, place.integrated});
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
                                                     : kfd::svm_error_text(c.status));
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

}  // namespace hmmrt
