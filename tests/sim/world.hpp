// SPDX-License-Identifier: MIT
// World: one simulated machine and everything that happens in it for one seed. CPU threads, kernels on each device, an
// application that prefetches, advises, pins and drops memory, and the fault service, all as actors; a shadow array as
// the oracle: every load must give what the last store to that word, by whoever, put there.
#pragma once

#include <hmmrt/kernel.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fault/fault_service.hpp"
#include "migrate/requests.hpp"
#include "model_host.hpp"
#include "sim_device.hpp"

namespace hmmrt::sim {

struct WorldConfig {
  std::uint64_t seed = 1;
  const char* policy = "adaptive";
};

class World {
 public:
  explicit World(const WorldConfig& config);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // Runs the schedule. Empty when all went well, else what went wrong.
  std::string run();
  const Counters& counters() const { return counters_; }
  std::uint64_t injected() const;

 private:
  static constexpr std::uintptr_t k_base = 0x100000000000;
  static constexpr unsigned k_words = 4;  // words of a page that are used

  struct Kernel;
  // An access to the page of `addr` is under way: the application waits for it before it drops the page.
  struct Use {
    Use(World& w, std::uintptr_t addr) : users(w.users_[(addr - k_base) / k_page_size]) { ++users; }
    ~Use() { --users; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    unsigned& users;
  };
  void expect(const char* what, std::uintptr_t addr, std::uint64_t seen);
  std::uintptr_t word_address(std::size_t page, unsigned word) const {
    return k_base + page * k_page_size + word * (k_page_size / k_words);
  }
  std::uint64_t& shadow(std::uintptr_t addr) {
    const std::size_t offset = addr - k_base;
    return shadow_[offset / k_page_size * k_words + offset % k_page_size / (k_page_size / k_words)];
  }
  std::uintptr_t random_word();  // 0: every page tried is quiet
  void cpu_actor();
  void application_actor();
  void launch_actor(unsigned device);
  std::uint64_t cpu_load(std::uintptr_t addr);
  void cpu_store(std::uintptr_t addr, std::uint64_t value);
  void check();
  std::string check_page(std::uintptr_t addr);
  std::string check_block(Block& block);
  void finish();

  std::uint64_t seed_;
  VirtualClock clock_;
  Scheduler scheduler_;
  Random& random_;
  std::size_t pages_;
  unsigned devices_;
  ModelHost host_;
  Doorbell doorbell_;
  AddressSpace space_;
  EventLog log_;
  Counters counters_;
  std::unique_ptr<Policy> policy_;
  std::vector<std::unique_ptr<SoftDevice>> soft_;
  std::vector<std::unique_ptr<SimDevice>> proxies_;
  std::vector<std::unique_ptr<Counters>> device_counters_;
  std::unique_ptr<House> house_;
  std::unique_ptr<FaultService> service_;
  std::unique_ptr<PipelinePool> pool_;
  Range* range_ = nullptr;
  std::vector<std::uint64_t> shadow_;
  std::vector<bool> quiet_;  // pages that the application is dropping: nobody else may use them
  std::vector<unsigned> users_;
  std::vector<std::uintptr_t> recheck_;  // blocks changed while claimed
};

}  // namespace hmmrt::sim
