// SPDX-License-Identifier: MIT
// Claims: those of every block of some ranges at once, for what must happen to all of them together: becoming managed,
// ceasing to be, changing address. Taken in ascending order; released, and what was noticed meanwhile settled, at the end.
#pragma once

#include <initializer_list>
#include <vector>

#include "migrate/coherence.hpp"

namespace hmmrt {

class Claims {
 public:
  // Waits for them. Blocks that do not exist are left out. `extents` in any order; they may meet.
  Claims(House& house, std::initializer_list<Extent> extents);
  ~Claims();
  Claims(const Claims&) = delete;
  Claims& operator=(const Claims&) = delete;
  const std::vector<Block*>& blocks() const { return blocks_; }

 private:
  House& house_;
  std::vector<Block*> blocks_;
};

}  // namespace hmmrt
