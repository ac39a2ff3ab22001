// SPDX-License-Identifier: MIT
#include "api/log.hpp"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <mutex>
#include <set>

namespace hmmrt::log {

namespace {

struct Sayings {
  std::shared_ptr<spdlog::logger> logger;
  std::mutex lock;
  std::set<std::string> said;
};

// Never destroyed: threads may still speak during exit.
Sayings& sayings() {
  static Sayings& instance = [&]() -> Sayings& {
    auto made = std::make_unique<Sayings>();
    made->logger = spdlog::get("hmmrt");
    if (made->logger == nullptr) {
      made->logger = std::make_shared<spdlog::logger>("hmmrt", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
      made->logger->set_pattern("hmmrt: %^%l%$: %v");
      made->logger->set_level(spdlog::level::warn);
    }
    return *made.release();
  }();
  return instance;
}

}  // namespace

void set_level(const std::string& level) {
  sayings().logger->set_level(level == "warn"    ? spdlog::level::warn
                              : level == "error" ? spdlog::level::err
                                                 : spdlog::level::from_str(level));
}
void warn(const std::string& text) { sayings().logger->warn("{}", text); }
void info(const std::string& text) { sayings().logger->info("{}", text); }
void debug(const std::string& text) { sayings().logger->debug("{}", text); }
bool info_on() { return sayings().logger->should_log(spdlog::level::info); }
bool debug_on() { return sayings().logger->should_log(spdlog::level::debug); }

void warn_once(const std::string& text) {
  Sayings& s = sayings();
  if (!s.logger->should_log(spdlog::level::warn)) return;
  {
    const std::lock_guard guard(s.lock);
    if (!s.said.insert(text).second) return;
  }
  warn(text);
}

}  // namespace hmmrt::log
