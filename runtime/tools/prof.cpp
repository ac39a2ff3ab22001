// SPDX-License-Identifier: MIT
// hmmrt-prof FILE: reads a trace (option trace_file) and says what it was about: totals, why it was decided so, which
// blocks moved most and which kept moving back and forth, and how it went over time.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "host/host_mirror.hpp"
#include "policy/policy.hpp"
#include "trace/event_log.hpp"

namespace {

using hmmrt::Cause;
using hmmrt::Event;
using hmmrt::EventKind;
using hmmrt::Processor;
using hmmrt::Reason;

constexpr std::array k_reasons = {
    "none",          "first_touch", "dense",           "sparse",      "preferred_location",
    "accessed_by",   "read_mostly", "thrash_throttle", "thrash_pin",  "capacity_thrash",
    "remote_policy", "exclusive",   "access_counter",  "device_full", "plug_in"};
static_assert(k_reasons.size() == static_cast<std::size_t>(Reason::plug_in) + 1, "a reason was added");
constexpr std::array k_kinds = {"fault batches",        "decisions",      "migrations",     "evictions",
                                "remote mappings",      "throttles",      "pins",           "unpins",
                                "invalidations",        "CPU faults",     "replays",        "cancelled launches",
                                "hints without effect", "launches begun", "launches ended", "attribute changes"};
static_assert(k_kinds.size() == static_cast<std::size_t>(EventKind::attribute) + 1, "a kind was added");

constexpr std::array k_attributes = {"preferred_location", "prefetch_location", "access",      "access_in_place",
                                     "no_access",          "set_flags",         "clear_flags", "granularity"};

struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t event_bytes;
  std::uint64_t recorded;
  std::uint64_t kept;
};

struct Trace {
  Header header{};
  std::vector<Event> events;
};

// Empty on success, else what is wrong.
std::string read_trace(const std::string& path, Trace* trace) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return path + ": cannot open: " + std::strerror(errno);
  in.read(reinterpret_cast<char*>(&trace->header), sizeof trace->header);
  if (!in || std::memcmp(trace->header.magic, "HMMRTLOG", 8) != 0) return path + " is not an hmmrt trace";
  if (trace->header.version != 1 || trace->header.event_bytes != sizeof(Event)) {
    return path + " was written by another version of the library (format " + std::to_string(trace->header.version) +
           ")";
  }
  Event event;
  while (in.read(reinterpret_cast<char*>(&event), sizeof event)) {
    if (event.sequence != 0) trace->events.push_back(event);
  }
  if (in.gcount() != 0) return path + " is cut off in the middle of an event";
  std::sort(trace->events.begin(), trace->events.end(),
            [](const Event& a, const Event& b) { return a.time_ns < b.time_ns; });
  return {};
}

std::string who(Processor p) { return p == hmmrt::k_cpu ? "CPU" : "device " + std::to_string(p - 1); }

double mib(std::uint64_t pages) { return static_cast<double>(pages) * 4096 / (1 << 20); }

// One block's traffic.
struct BlockTraffic {
  std::uint64_t pages_in = 0, pages_out = 0;  // to a device, to the CPU
  std::uint64_t turns = 0;                    // migrations that went the other way than the one before
  std::uint64_t evicted = 0, faults = 0;
  Processor last_to = hmmrt::k_no_processor;
};

class Report {
 public:
  explicit Report(const Trace& trace) : trace_(trace) {
    for (const Event& e : trace.events) add(e);
  }

  void print(std::size_t top, unsigned slices) const {
    print_totals();
    print_decisions();
    print_traffic();
    print_attributes();
    print_blocks("blocks that moved most", top, [](const BlockTraffic& b) { return b.pages_in + b.pages_out; });
    print_blocks("blocks that went back and forth", top, [](const BlockTraffic& b) { return b.turns; });
    print_blocks("blocks evicted most", top, [](const BlockTraffic& b) { return b.evicted; });
    print_timeline(slices);
  }

 private:
  void add(const Event& e) {
    if (static_cast<std::size_t>(e.kind) < kinds_.size()) ++kinds_[static_cast<std::size_t>(e.kind)];
    switch (e.kind) {
      case EventKind::fault_batch:
        faults_ += e.a;
        break;
      case EventKind::decision: {
        Decisions& d = decisions_[e.detail];
        ++d.count;
        d.faulted += e.pages;
        d.migrated += e.a;
        d.remote += e.b;
        d.duplicated += e.c;
        blocks_[e.base].faults += e.pages;
        break;
      }
      case EventKind::migrated: {
        traffic_[{e.processor, e.peer, e.detail}] += e.pages;
        BlockTraffic& b = blocks_[e.base];
        (e.peer == hmmrt::k_cpu ? b.pages_out : b.pages_in) += e.pages;
        if (b.last_to != hmmrt::k_no_processor && b.last_to != e.peer) ++b.turns;
        b.last_to = e.peer;
        break;
      }
      case EventKind::evicted:
        blocks_[e.base].evicted += e.pages;
        break;
      case EventKind::attribute: {
        Attributes& a = attributes_[{static_cast<std::uint8_t>(e.a), e.detail}];
        ++a.times[std::min<std::uint64_t>(e.c, a.times.size() - 1)];
        a.pages += e.pages;
        break;
      }
      default:
        break;
    }
  }

  double seconds() const {
    return trace_.events.empty()
               ? 0
               : static_cast<double>(trace_.events.back().time_ns - trace_.events.front().time_ns) / 1e9;
  }

  void print_totals() const {
    std::printf("%" PRIu64 " events over %.3f s", static_cast<std::uint64_t>(trace_.events.size()), seconds());
    if (trace_.header.recorded > trace_.header.kept) {
      std::printf("; the first %" PRIu64 " were overwritten (raise trace_entries)",
                  trace_.header.recorded - trace_.header.kept);
    }
    std::puts("");
    for (std::size_t i = 0; i < kinds_.size(); ++i) {
      if (kinds_[i] != 0) std::printf("  %10" PRIu64 "  %s\n", kinds_[i], k_kinds[i]);
    }
    if (kinds_[0] != 0) {
      std::printf("  %10.1f  device faults in a batch, on average\n",
                  static_cast<double>(faults_) / static_cast<double>(kinds_[0]));
    }
  }

  void print_decisions() const {
    if (decisions_.empty()) return;
    std::printf("\n%-20s %10s %10s %10s %10s %10s\n", "decided because of", "times", "faulted", "migrated", "remote",
                "copied");
    for (const auto& [reason, d] : decisions_) {
      std::printf("%-20s %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %10" PRIu64 "\n",
                  reason < k_reasons.size() ? k_reasons[reason] : "unknown", d.count, d.faulted, d.migrated, d.remote,
                  d.duplicated);
    }
  }

  void print_traffic() const {
    if (traffic_.empty()) return;
    std::printf("\n%-24s %-22s %12s\n", "from -> to", "cause", "MiB");
    for (const auto& [key, pages] : traffic_) {
      const std::string route = who(key[0]) + " -> " + who(key[1]);
      std::printf("%-24s %-22s %12.2f\n", route.c_str(), hmmrt_cause_name(static_cast<hmmrt_cause_t>(key[2])),
                  mib(pages));
    }
  }

  void print_attributes() const {
    if (attributes_.empty()) return;
    std::printf("\n%-20s %-16s %10s %10s %10s %12s\n", "asked of the driver", "for", "done", "refused", "too many",
                "MiB");
    for (const auto& [key, a] : attributes_) {
      std::printf("%-20s %-16s %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %12.2f\n",
                  key[0] < k_attributes.size() ? k_attributes[key[0]] : "unknown",
                  key[1] < hmmrt::k_wish_names.size() ? hmmrt::k_wish_names[key[1]] : "unknown", a.times[0], a.times[1],
                  a.times[2], mib(a.pages));
    }
  }

  template <class Rank>
  void print_blocks(const char* title, std::size_t top, Rank&& rank) const {
    std::vector<std::pair<std::uint64_t, const BlockTraffic*>> sorted;
    for (const auto& [base, b] : blocks_) {
      if (rank(b) != 0) sorted.emplace_back(base, &b);
    }
    std::stable_sort(sorted.begin(), sorted.end(),
                     [&](const auto& a, const auto& b) { return rank(*a.second) > rank(*b.second); });
    if (sorted.empty()) return;
    std::printf("\n%s (%zu of %zu)\n%-18s %10s %12s %12s %8s %10s\n", title, std::min(top, sorted.size()),
                sorted.size(), "block", "faulted", "to devices", "to the CPU", "turns", "evicted");
    for (std::size_t i = 0; i < std::min(top, sorted.size()); ++i) {
      const BlockTraffic& b = *sorted[i].second;
      std::printf("%#-18" PRIx64 " %10" PRIu64 " %8.2f MiB %8.2f MiB %8" PRIu64 " %10" PRIu64 "\n", sorted[i].first,
                  b.faults, mib(b.pages_in), mib(b.pages_out), b.turns, b.evicted);
    }
  }

  void print_timeline(unsigned slices) const {
    if (trace_.events.empty() || slices == 0) return;
    struct Slice {
      std::uint64_t faults = 0, in = 0, out = 0, evicted = 0;
    };
    std::vector<Slice> line(slices);
    const std::uint64_t begin = trace_.events.front().time_ns;
    const std::uint64_t width = (trace_.events.back().time_ns - begin) / slices + 1;
    for (const Event& e : trace_.events) {
      Slice& s = line[(e.time_ns - begin) / width];
      if (e.kind == EventKind::fault_batch) s.faults += e.a;
      if (e.kind == EventKind::migrated) (e.peer == hmmrt::k_cpu ? s.out : s.in) += e.pages;
      if (e.kind == EventKind::evicted) s.evicted += e.pages;
    }
    std::printf("\n%10s %10s %12s %12s %12s\n", "from ms", "faults", "to devices", "to the CPU", "evicted");
    for (unsigned i = 0; i < slices; ++i) {
      std::printf("%10.1f %10" PRIu64 " %8.2f MiB %8.2f MiB %8.2f MiB\n", static_cast<double>(width) * i / 1e6,
                  line[i].faults, mib(line[i].in), mib(line[i].out), mib(line[i].evicted));
    }
  }

  struct Decisions {
    std::uint64_t count = 0, faulted = 0, migrated = 0, remote = 0, duplicated = 0;
  };
  struct Attributes {
    std::array<std::uint64_t, 3> times{};  // done, refused, too many
    std::uint64_t pages = 0;
  };
  const Trace& trace_;
  std::array<std::uint64_t, k_kinds.size()> kinds_{};
  std::uint64_t faults_ = 0;
  std::map<std::uint8_t, Decisions> decisions_;
  std::map<std::array<std::uint8_t, 3>, std::uint64_t> traffic_;  // from, to, cause -> pages
  std::map<std::array<std::uint8_t, 2>, Attributes> attributes_;  // which, for
  std::map<std::uint64_t, BlockTraffic> blocks_;
};

int run(int argc, char** argv) {
  CLI::App app{"What happened, and why, from a trace: run a program with HMMRT_TRACE_FILE=FILE first"};
  std::string path;
  std::size_t top = 10;
  unsigned slices = 10;
  app.add_option("FILE", path, "the trace")->required();
  app.add_option("--top", top, "blocks to list")->capture_default_str();
  app.add_option("--slices", slices, "lines of the timeline")->check(CLI::Range(0, 1000))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  Trace trace;
  if (const std::string wrong = read_trace(path, &trace); !wrong.empty()) {
    std::fprintf(stderr, "hmmrt-prof: %s\n", wrong.c_str());
    return 1;
  }
  Report(trace).print(top, slices);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "hmmrt-prof: %s\n", e.what());
    return 1;
  }
}
