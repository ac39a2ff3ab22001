// SPDX-License-Identifier: MIT
// First contact: three small stories about one address space shared by the CPU and a GPU, and a table of what happened
// and why. With no GPU in the machine, the GPU is the software one: the same faults, the same decisions, slower.
//   1  A computation: the CPU writes, the GPU computes, the CPU reads. Faults come in batches; dense ranges move whole.
//   2  A quarrel: both processors keep writing the same 64 KiB. Moving it at every turn would be the worst answer.
//   3  Too much: an array three times as large as device memory.
// All answers are checked against plain CPU code; the program exits with 1 if one is wrong.
#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "common/plate.hpp"
#include "common/sample.hpp"

namespace {

// Both processors' turn in story 2: the order of the turns shows in the result.
struct Stir {
  hmmrt::gptr<std::uint64_t> words;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto word = words[static_cast<std::ptrdiff_t>(i.x)];
    word = samples::mix(word);
  }
};

constexpr std::uint64_t k_piece = 8192;  // words of one work item in story 3

struct AddOne {
  hmmrt::gptr<std::uint64_t> words;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    hmmrt::with_spans(
        [](std::uint64_t* w, std::size_t, std::size_t n) {
          for (std::size_t k = 0; k != n; ++k) w[k] += 1;
        },
        hmmrt::read_write(words + static_cast<std::ptrdiff_t>(i.x * k_piece), k_piece));
  }
};

std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* text, ...) {
  char out[256];
  va_list arguments;
  va_start(arguments, text);
  std::vsnprintf(out, sizeof out, text, arguments);
  va_end(arguments);
  return out;
}

using U = unsigned long long;

// The statistics at the end of a story, and what they say since the one before.
struct Since {
  const hmmrt_stats_t &was, &is;
  U device_faults() const { return is.device_faults - was.device_faults; }
  U batches() const { return is.fault_batches - was.fault_batches; }
  U to_device() const { return hmmrt::bytes_to_device(is) - hmmrt::bytes_to_device(was); }
  U to_host() const { return hmmrt::bytes_to_host(is) - hmmrt::bytes_to_host(was); }
  // Moved before it was asked for, because its neighbourhood was.
  U ahead() const {
    const int p = HMMRT_CAUSE_PREFETCH_HEURISTIC;
    return is.bytes_to_device_by_cause[p] + is.bytes_to_host_by_cause[p] - was.bytes_to_device_by_cause[p] -
           was.bytes_to_host_by_cause[p];
  }
  U pushed_out() const {
    return is.bytes_to_host_by_cause[HMMRT_CAUSE_EVICTION] - was.bytes_to_host_by_cause[HMMRT_CAUSE_EVICTION];
  }
  U evicted() const { return is.pages_evicted - was.pages_evicted; }
  U refaults() const { return is.refaults - was.refaults; }
  U remote() const { return is.remote_accesses - was.remote_accesses; }
  U caught() const { return is.ping_pong_detections - was.ping_pong_detections; }
};

class Quickstart {
 public:
  explicit Quickstart(samples::Sample& sample)
      : sample_(sample), context_(sample.open({{"device_memory", "32M"}})), stream_(context_, sample.device()) {}

  void tell() {
    introduce();
    computation();
    quarrel();
    too_much();
    conclude();
  }

 private:
  void introduce() {
    const hmmrt_context_info_t info = context_.info();
    const hmmrt_device_info_t gpu = context_.device_info(sample_.device());
    sample_.say("libhmmrt %d.%d.%d: one address space for the CPU and a GPU", HMMRT_VERSION_MAJOR, HMMRT_VERSION_MINOR,
                HMMRT_VERSION_PATCH);
    sample_.say("  GPU           %s, %s; %s of memory, kept small on purpose", gpu.name, gpu.description,
                hmmrt::format_bytes(gpu.memory_bytes).c_str());
    sample_.say("  CPU side      %s, pages taken by %s", info.host_mirror, info.host_path);
    if (info.host_note[0] != '\0') sample_.say("  note          %s", info.host_note);
    sample_.say("  policy        %s", info.policy);
  }

  void computation() {
    constexpr std::size_t n = 1024;
    constexpr std::uint64_t steps = 50;
    sample_.say("\n1  A computation: heat in a plate of %zu x %zu points, %llu steps", n, n, U{steps});
    const hmmrt_stats_t before = context_.stats();
    hmmrt::managed_buffer<double> a(context_, n * n), b(context_, n * n);
    samples::fill_plate(a.data(), n);  // plain CPU code, plain pointers
    samples::fill_plate(b.data(), n);
    const samples::Points points{n, n - 2};
    const samples::Stopwatch watch;
    for (std::uint64_t step = 0; step != steps; ++step) {
      stream_.launch("relax", points.grid(), samples::Relax{a.gpu(), b.gpu(), points});
      std::swap(a, b);
    }
    stream_.synchronize();
    const double ms = watch.milliseconds();
    const bool right = samples::largest_difference(a.data(), samples::plain_plate(n, steps)) == 0;
    const hmmrt_stats_t after = context_.stats();
    const Since since{before, after};
    sample_.say(
        "   The CPU wrote %.0f MiB, the GPU computed on it for %.0f ms, the CPU read the result: the same pointers.",
        samples::mib(a.bytes() + b.bytes()), ms);
    sample_.say("   The GPU took %llu faults in %llu batches; %.1f MiB went over, %.1f MiB came back.",
                since.device_faults(), since.batches(), samples::mib(since.to_device()), samples::mib(since.to_host()));
    sample_.check("plate", right);
  }

  void quarrel() {
    constexpr std::size_t words = (64u << 10) / 8;
    constexpr int turns = 300;
    sample_.say("\n2  A quarrel: the CPU and the GPU write the same 64 KiB by turns, %d times each", turns);
    const hmmrt_stats_t before = context_.stats();
    hmmrt::managed_buffer<std::uint64_t> shared(context_, words);
    std::vector<std::uint64_t> plain(words);
    const samples::Stopwatch watch;
    for (int turn = 0; turn != turns; ++turn) {
      stream_.launch("stir", words, Stir{shared.gpu()});
      stream_.synchronize();
      for (std::size_t i = 0; i != words; ++i) shared[i] += i;
    }
    const double ms = watch.milliseconds();
    for (int turn = 0; turn != turns; ++turn)
      for (std::size_t i = 0; i != words; ++i) plain[i] = samples::mix(plain[i]) + i;
    const bool right = std::equal(plain.begin(), plain.end(), shared.begin());
    const hmmrt_stats_t after = context_.stats();
    const Since since{before, after};
    quarrel_every_turn_ = std::uint64_t{2} * turns * shared.bytes();
    quarrel_copied_ = since.to_device() + since.to_host();
    sample_.say("   Moving it at every turn would have copied %.1f MiB. Copied: %.1f MiB, in %.0f ms.",
                samples::mib(quarrel_every_turn_), samples::mib(quarrel_copied_), ms);
    quarrel_caught_ = since.caught();
    if (quarrel_caught_ == 0)
      sample_.say("   It was not recognised as ping-pong.");
    else
      sample_.say("   Recognised as ping-pong and held still; it was reached remotely %.1f million times instead.",
                  static_cast<double>(since.remote()) / 1e6);
    sample_.check("quarrel", right);
  }

  void too_much() {
    const std::uint64_t memory = context_.device_info(sample_.device()).memory_bytes;
    const std::uint64_t pieces = 3 * memory / (8 * k_piece), words = pieces * k_piece;
    constexpr std::uint64_t passes = 2;
    sample_.say("\n3  Too much: an array of %s in %s of device memory, %llu passes",
                hmmrt::format_bytes(8 * words).c_str(), hmmrt::format_bytes(memory).c_str(), U{passes});
    const hmmrt_stats_t before = context_.stats();
    hmmrt::managed_buffer<std::uint64_t> array(context_, words);
    for (std::uint64_t i = 0; i != words; ++i) array[i] = i;
    const samples::Stopwatch watch;
    for (std::uint64_t pass = 0; pass != passes; ++pass) stream_.launch("add_one", pieces, AddOne{array.gpu()});
    stream_.synchronize();
    const double ms = watch.milliseconds();
    std::uint64_t wrong = 0;
    for (std::uint64_t i = 0; i != words; ++i) wrong += array[i] != i + passes;
    const hmmrt_stats_t after = context_.stats();
    const Since since{before, after};
    sample_.say("   %.0f MiB went in and %.0f MiB came out, %llu pages were evicted to make room; %.0f ms.",
                samples::mib(since.to_device()), samples::mib(since.to_host()), since.evicted(), ms);
    sample_.check("too much", wrong == 0);
  }

  // A line of the closing table and, under it, the reason.
  void explain(const char* what, const std::string& happened, const char* why) {
    sample_.say("  %-18s %s\n  %-18s %s", what, happened.c_str(), "", why);
  }

  void conclude() {
    const hmmrt_stats_t now = context_.stats();
    const Since all{zero_, now};
    sample_.say("\nWhat happened, and why");
    explain("faults in batches",
            format("%llu GPU faults came in %llu batches, %.1f a batch", all.device_faults(), all.batches(),
                   static_cast<double>(all.device_faults()) / static_cast<double>(std::max<U>(all.batches(), 1))),
            "the fault buffer is emptied at once, sorted, and served by 2 MiB block");
    explain("dense ranges",
            format("%.1f of %.1f MiB were brought before they were asked for", samples::mib(all.ahead()),
                   samples::mib(all.to_device() + all.to_host() - all.pushed_out())),
            "where most of a range is wanted, the rest is brought along with it");
    explain("ping-pong",
            format("caught %llu times; copied %.1f MiB where every turn would have copied %.1f", quarrel_caught_,
                   samples::mib(quarrel_copied_), samples::mib(quarrel_every_turn_)),
            quarrel_caught_ == 0 ? "no block changed sides often enough to be held still"
                                 : "memory that two processors keep taking from each other is held still for a while");
    explain(
        "oversubscription", format("%llu pages evicted, %llu of them faulted back", all.evicted(), all.refaults()),
        all.evicted() == 0 ? "device memory sufficed" : "device memory was full: the least recently used went home");
    explain("answers", sample_.correct() ? "all correct" : "WRONG", "compared with plain CPU code in plain memory");
    sample_.statistics(context_);
  }

  samples::Sample& sample_;
  hmmrt::context context_;
  hmmrt::stream stream_;
  const hmmrt_stats_t zero_ = hmmrt::empty_stats();
  std::uint64_t quarrel_every_turn_ = 0, quarrel_copied_ = 0;  // bytes
  U quarrel_caught_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("quickstart", "One address space for the CPU and a GPU: three short stories, checked");
  return sample.run(argc, argv, [&] { Quickstart(sample).tell(); });
}
