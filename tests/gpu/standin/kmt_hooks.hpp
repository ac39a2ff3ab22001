// SPDX-License-Identifier: MIT
// What tests may ask the stand-in for libhsakmt: where things are, in its own books, and what it has done.
#pragma once

#include <hsakmttypes.h>

#include <cstdint>

struct StandinCounts {
  std::uint64_t set_attr;     // calls that succeeded
  std::uint64_t gpu_faults;   // that GPUs raised; with XNACK off there are none
  std::uint64_t cpu_faults;   // on pages that were on a GPU
  std::uint64_t migrations;   // of any cause, each a pair of MIGRATE lines
  std::uint64_t pages_moved;  // by them
  std::uint64_t evictions;    // those of them that made room
  std::uint64_t smi_lines;    // for listeners
  std::uint64_t smi_lost;     // that they did not get
};

// As libhsakmt says them: locations are nodes.
struct StandinAttributes {
  std::uint32_t preferred, prefetch;
  std::uint32_t access, in_place;  // bit n: of node n
  std::uint32_t flags, granularity;
};

extern "C" {
// libhsakmt's since ROCm 5.3, and not in Debian 12's header.
HSAKMT_STATUS hsaKmtOpenSMI(HSAuint32 node, int* fd);

StandinCounts hmmrt_standin_counts();
// The node that has the page: 0 is the system's memory.
std::uint32_t hmmrt_standin_where(const void* at);
StandinAttributes hmmrt_standin_attributes(const void* at);
}
