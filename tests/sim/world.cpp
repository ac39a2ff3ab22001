// SPDX-License-Identifier: MIT
#include "world.hpp"

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "migrate/coherence.hpp"

namespace hmmrt::sim {

namespace {

// Choices of one schedule, drawn from its seed.
ModelHostConfig host_config(std::uintptr_t base, std::size_t pages, std::uint64_t seed) {
  Random r(seed * 31 + 7);
  ModelHostConfig c;
  c.base = base;
  c.pages = pages;
  c.write_protect = !r.chance(15);
  c.busy_percent = r.chance(50) ? 0 : static_cast<unsigned>(r.below(30));
  c.pinned_percent = r.chance(70) ? 0 : static_cast<unsigned>(r.below(10));
  return c;
}

std::size_t page_count(std::uint64_t seed) {
  Random r(seed * 17 + 3);
  return 3 + r.below(r.chance(50) ? 20 : 1100);  // up to three blocks
}

std::string text(const char* format, ...) {
  char buffer[300];
  va_list args;
  va_start(args, format);
  std::vsnprintf(buffer, sizeof buffer, format, args);
  va_end(args);
  return buffer;
}

}  // namespace

// What a lane does: a few loads, stores and atomics at places that the schedule's random source chooses as it goes.
// Each is one instant of the simulation: the access and its look at the shadow have nothing between them.
struct World::Kernel {
  World* world;
  unsigned accesses;
  void operator()(const item&) const {
    for (unsigned i = 0; i < accesses; ++i) {
      World& w = *world;
      const std::uintptr_t addr = w.random_word();
      if (addr == 0) continue;
      const Use use(w, addr);
      const std::uint64_t value = w.random_.next();
      const gptr<std::uint64_t> p(reinterpret_cast<std::uint64_t*>(addr));
      switch (w.random_.below(4)) {
        case 0:
          *p = value;
          w.scheduler_.trace("device store", addr, value);
          w.shadow(addr) = value;
          break;
        case 1: {
          const std::uint64_t before = atomic_fetch_add(p, std::uint64_t{3}, scope::system);
          w.expect("device atomic", addr, before);
          w.shadow(addr) = before + 3;
          break;
        }
        default:
          w.expect("device load", addr, *p);
      }
    }
  }
};

void World::expect(const char* what, std::uintptr_t addr, std::uint64_t seen) {
  scheduler_.trace(what, addr, seen);
  if (seen == shadow(addr)) return;
  scheduler_.fail(text("%s at %#" PRIxPTR " saw %#" PRIx64 ", should be %#" PRIx64, what, addr, seen, shadow(addr)));
}

World::World(const WorldConfig& config)
    : seed_(config.seed),
      scheduler_(config.seed, clock_),
      random_(scheduler_.random()),
      pages_(page_count(config.seed)),
      devices_(1 + static_cast<unsigned>(config.seed % 2)),
      host_(host_config(k_base, pages_, config.seed), scheduler_),
      policy_(make_policy(config.policy)),
      shadow_(pages_ * k_words),
      quiet_(pages_),
      users_(pages_) {
  house_.reset(new House{space_, host_, *policy_, clock_, log_, counters_});
  auto peers = std::make_shared<SoftPeers>();
  for (unsigned d = 0; d < devices_; ++d) {
    Random r(config.seed * 13 + d);
    SoftDeviceConfig c;
    c.name = "soft:" + std::to_string(d);
    c.processor = device_processor(d);
    // From far too small to ample.
    c.memory_bytes = k_page_size * (r.chance(50) ? 2 + r.below(pages_) : pages_ + 512);
    c.compute_units = 1;
    c.waves_per_unit = 16;
    c.wave_size = 2;
    c.fault_buffer_entries = r.chance(30) ? 4 : 64;
    c.system_atomics = r.chance(50);
    c.remote_mapping = !r.chance(20);
    c.peer = !r.chance(30);
    c.peer_mapping = !r.chance(30);
    c.access_counter_threshold = r.chance(50) ? 8 : 256;
    c.deterministic = true;
    c.seed = r.next();
    c.peers = peers;
    if (r.chance(40)) c.inject.allocation_fails.probability = 0.1;
    if (r.chance(40)) c.inject.copy_fails.probability = 0.1;
    if (r.chance(40)) c.inject.fault_dropped.probability = 0.1;
    soft_.push_back(std::make_unique<SoftDevice>(c, doorbell_, clock_));
    proxies_.push_back(std::make_unique<SimDevice>(*soft_.back(), scheduler_, k_base, pages_, r.chance(50) ? 20 : 0));
    device_counters_.push_back(std::make_unique<Counters>());
    house_->devices[d] = proxies_.back().get();
    house_->device_counters[d] = device_counters_.back().get();
  }
  house_->device_count = devices_;
  FaultServiceConfig service;
  service.tokens = service.threads = 1;
  service.batch_size = random_.chance(30) ? 4 : 256;
  service_ = std::make_unique<FaultService>(*house_, doorbell_, service);
  pool_ = std::make_unique<PipelinePool>(*house_, 1, 1);
  (void)manage(*house_, k_base, pages_ * k_page_size, false, &range_);
}

World::~World() = default;

std::uint64_t World::injected() const {
  std::uint64_t n = 0;
  for (const auto& s : soft_) n += s->injected_failures();
  return n;
}

std::uintptr_t World::random_word() {
  for (unsigned tries = 0; tries < 100; ++tries) {
    // Mostly a few hot pages, so that processors meet.
    const std::size_t page = random_.chance(70) ? random_.below(4) * 7 % pages_ : random_.below(pages_);
    if (!quiet_[page]) return word_address(page, static_cast<unsigned>(random_.below(k_words)));
  }
  return 0;
}

std::uint64_t World::cpu_load(std::uintptr_t addr) {
  while (!host_.readable(addr)) {
    host_.fault(addr, Access::read, clock_.now_ns());
    scheduler_.yield();
  }
  std::uint64_t v = 0;
  std::memcpy(&v, host_.bytes(addr), sizeof v);
  return v;
}

void World::cpu_store(std::uintptr_t addr, std::uint64_t value) {
  while (!host_.writable(addr)) {
    host_.fault(addr, Access::write, clock_.now_ns());
    scheduler_.yield();
  }
  std::memcpy(host_.bytes(addr), &value, sizeof value);
}

void World::cpu_actor() {
  const unsigned n = 5 + static_cast<unsigned>(random_.below(25));
  for (unsigned i = 0; i < n; ++i) {
    const std::uintptr_t addr = random_word();
    if (addr == 0) continue;
    const Use use(*this, addr);
    if (random_.chance(50)) {
      const std::uint64_t value = random_.next();
      cpu_store(addr, value);
      scheduler_.trace("cpu store", addr, value);
      shadow(addr) = value;
    } else {
      expect("CPU load", addr, cpu_load(addr));
    }
    scheduler_.yield();
  }
}

void World::application_actor() {
  const unsigned n = 2 + static_cast<unsigned>(random_.below(10));
  for (unsigned i = 0; i < n; ++i) {
    const std::size_t first = random_.below(pages_);
    const std::size_t count = 1 + random_.below(pages_ - first);
    const std::uintptr_t addr = k_base + first * k_page_size;
    const std::size_t bytes = count * k_page_size;
    const auto p = static_cast<Processor>(random_.below(devices_ + 1));
    switch (random_.below(8)) {
      case 0:
      case 1:
        prefetch(*house_, *pool_, addr, bytes, p, Cause::prefetch_user);
        break;
      case 2:
        advise(*house_, addr, bytes, static_cast<hmmrt_advice_t>(1 + random_.below(6)), p);
        break;
      case 3:
        if (pin(*house_, *pool_, addr, bytes).ok()) {
          for (unsigned k = 0; k < 5; ++k) {
            scheduler_.yield();
            if (residency(*house_, addr, bytes) != k_cpu) scheduler_.fail("a pinned page left system memory");
          }
          (void)unpin(*house_, addr, bytes);
        }
        break;
      case 4: {  // madvise(MADV_DONTNEED) on pages nobody else uses meanwhile; what moves them does not know
        const std::size_t few = count < 3 ? count : 3;
        for (std::size_t k = 0; k < few; ++k) quiet_[first + k] = true;
        for (std::size_t k = 0; k < few; ++k) {  // accesses begun before are over
          while (users_[first + k] != 0) scheduler_.yield();
        }
        host_.dont_need(addr, few, random_.chance(30));
        service_->fence();
        for (std::size_t k = 0; k < few; ++k) {
          for (unsigned w = 0; w < k_words; ++w) shadow(word_address(first + k, w)) = 0;
          quiet_[first + k] = false;
        }
        break;
      }
      case 5:
        service_->refresh_rights(addr, bytes);
        break;
      case 6:
        if (random_.chance(20)) {  // what fork() does
          service_->freeze();
          for (std::size_t k = 0; k < pages_; ++k) {
            for (unsigned w = 0; w < k_words; ++w) {
              std::uint64_t v = 0;
              std::memcpy(&v, host_.bytes(word_address(k, w)), sizeof v);
              if (!quiet_[k] && v != shadow(word_address(k, w)))
                scheduler_.fail("fork would not see the data of its moment");
            }
          }
          service_->thaw();
        }
        break;
      default:
        residency(*house_, addr, bytes);
    }
    scheduler_.yield();
  }
}

void World::launch_actor(unsigned device) {
  SoftDevice& soft = *soft_[device];
  Queue queue = 0;
  (void)soft.create_queue(&queue);
  const unsigned launches = 1 + static_cast<unsigned>(random_.below(3));
  for (unsigned i = 0; i < launches; ++i) {
    const Kernel kernel{this, 1 + static_cast<unsigned>(random_.below(6))};
    Launch launch;
    launch.name = "sim";
    launch.run = [](const void* functor, const Grid& grid, std::uint64_t first, std::uint64_t count) {
      const Kernel k = *static_cast<const Kernel*>(functor);
      for (std::uint64_t lane = first; lane < first + count; ++lane) k(item{lane, 0, 0, {grid.x, grid.y, grid.z}});
    };
    launch.functor = &kernel;
    launch.functor_bytes = sizeof kernel;
    launch.grid = {1 + random_.below(24), 1, 1};
    (void)soft.launch(queue, launch);
    while (!soft.idle(queue)) scheduler_.yield();
    const LaunchError error = soft.synchronize(queue);
    if (error.result != HMMRT_SUCCESS && error.result != HMMRT_ERROR_DEVICE_FULL &&
        error.result != HMMRT_ERROR_PINNED) {
      scheduler_.fail(text("launch failed with %d at %#" PRIxPTR, static_cast<int>(error.result), error.addr));
    }
  }
}

// The coherence rules, looked at from outside: the translations that processors have, and every unclaimed block's state.
void World::check() {
  auto& changes = scheduler_.changes();
  if (changes.empty() || !scheduler_.failure().empty()) return;
  std::uintptr_t checked = 0;
  for (const std::uintptr_t addr : changes) {
    if (std::string wrong = check_page(page_floor(addr)); !wrong.empty()) scheduler_.fail(std::move(wrong));
    if (block_floor(addr) == checked) continue;
    checked = block_floor(addr);
    recheck_.push_back(checked);
  }
  changes.clear();
  std::erase_if(recheck_, [&](std::uintptr_t base) {
    Block* block = space_.find(base);
    if (block == nullptr || block->claimed()) return block == nullptr;
    if (std::string wrong = check_block(*block); !wrong.empty()) scheduler_.fail(std::move(wrong));
    return true;
  });
}

// Rule 2, at every instant, claimed or not: no processor may write a page while another holds any mapping of it, except
// remote mappings of the one resident copy.
std::string World::check_page(std::uintptr_t addr) {
  struct Holder {
    Processor p;
    bool writes;
    Processor memory;  // whose memory the mapping reaches
  };
  std::array<Holder, k_max_processors> holders{};
  unsigned n = 0;
  if (host_.readable(addr)) holders[n++] = {k_cpu, host_.writable(addr), k_cpu};
  for (unsigned d = 0; d < devices_; ++d) {
    const Translation t = proxies_[d]->translation(addr);
    if (t.rights == Rights::none) continue;
    const Processor p = device_processor(d);
    const Processor memory = t.target == Target::frames ? p : t.target == Target::host ? k_cpu : t.peer;
    holders[n++] = {p, t.rights == Rights::write, memory};
  }
  for (unsigned a = 0; a < n; ++a) {
    for (unsigned b = 0; b < n; ++b) {
      if (a != b && holders[a].writes && holders[a].memory != holders[b].memory) {
        return text("rule 2: processor %u may write %#" PRIxPTR " in memory of %u while %u maps memory of %u",
                    holders[a].p, addr, holders[a].memory, holders[b].p, holders[b].memory);
      }
    }
  }
  return {};
}

// The invariants of Block, whenever its claim is free.
std::string World::check_block(Block& block) {
  const PageMask devices = block.resident_on_devices();
  PageMask exclusive;
  for (unsigned d = 0; d < devices_; ++d) {
    const DevicePart* part = block.part(device_processor(d));
    if (part == nullptr) continue;
    exclusive |= part->exclusive;
    if ((part->writable & part->resident & block.shared()).any()) return "I1: a shared page is writable on a device";
    for (unsigned i = 0; i < k_block_pages; ++i) {
      if ((part->frames[i] != k_no_frame) != part->resident.test(i)) return "I4: frames and residency disagree";
    }
    if ((part->exclusive & (block.on_cpu | devices)).any()) return "I3: an exclusive page is resident elsewhere";
    if ((part->mapped - part->remote - part->resident).any()) return "a local mapping without residency";
  }
  if ((block.valid - block.on_cpu - devices - exclusive).any()) return "I1: a valid page is nowhere";
  if ((block.shared() & (block.on_cpu - block.cpu_protected)).any()) return "I1: the CPU may write a shared page";
  return {};
}

// Everything must still be there, and every frame must come back.
void World::finish() {
  scheduler_.add("reader", false, [this] {
    for (std::size_t page = 0; page < pages_; ++page) {
      for (unsigned w = 0; w < k_words; ++w) {
        const std::uintptr_t addr = word_address(page, w);
        expect("at the end, CPU load", addr, cpu_load(addr));
      }
    }
    (void)unmanage(*house_, *pool_, range_, false);
    for (const auto& soft : soft_) {
      if (soft->free_frame_count() * k_page_size != soft->info().memory_bytes) scheduler_.fail("frames leaked");
    }
  });
  scheduler_.run(2'000'000, [this] { check(); });
}

std::string World::run() {
  scheduler_.add("event thread", true, [this] {
    for (;;) {
      service_->step_host(0);
      scheduler_.yield();
    }
  });
  scheduler_.add("device thread", true, [this] {
    for (;;) {
      service_->step_device();
      scheduler_.yield();
    }
  });
  for (unsigned d = 0; d < devices_; ++d) {
    scheduler_.add("device " + std::to_string(d), true, [this, d] {
      for (;;) {
        soft_[d]->step(random_.next());
        scheduler_.yield();
      }
    });
    scheduler_.add("launches " + std::to_string(d), false, [this, d] { launch_actor(d); });
  }
  const unsigned cpus = 1 + static_cast<unsigned>(random_.below(3));
  for (unsigned i = 0; i < cpus; ++i) {
    scheduler_.add("cpu " + std::to_string(i), false, [this] { cpu_actor(); });
  }
  scheduler_.add("application", false, [this] { application_actor(); });
  scheduler_.run(1'000'000, [this] { check(); });
  for (const auto& soft : soft_) {
    scheduler_.trace("stalled waves", soft->stalled_waves(), service_->next_due_ns());
    scheduler_.trace("overflows", soft->fault_overflows(), soft->free_frame_count());
  }
  if (scheduler_.failure().empty()) finish();
  if (scheduler_.failure().empty()) return {};
  return "seed " + std::to_string(seed_) + ", step " + std::to_string(scheduler_.steps()) + ": " + scheduler_.failure();
}

}  // namespace hmmrt::sim
