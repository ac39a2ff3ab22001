// SPDX-License-Identifier: MIT
// What the library says to people: the spdlog logger "hmmrt", on stderr unless the application made one of that name
// first. Used by api/ only: the rooms below report by counters, events and statuses.
// Thread: any, except that nothing here may be called on a fault path.
#pragma once

#include <string>

namespace hmmrt::log {

// One of the option log_level's choices.
void set_level(const std::string& level);
void warn(const std::string& text);
void info(const std::string& text);
void debug(const std::string& text);
bool info_on();
bool debug_on();
// Says a text at most once in the process.
void warn_once(const std::string& text);

}  // namespace hmmrt::log
