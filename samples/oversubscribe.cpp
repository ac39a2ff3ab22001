// SPDX-License-Identifier: MIT
// More memory than the device has: a working set of --ratio times device memory, used in two ways.
//   sequential   every pass adds 1 to every word, in order: each page is wanted once a pass
//   random       each work item adds 1 to one word anywhere: most pages are wanted again and again, sparsely
// One row for each ratio and pattern says what that cost: what was moved in and out, evicted, and faulted back
// (refaults), or left in system memory and reached remotely. Device memory is made small (32 MiB) so that the sample is
// quick; --option device_memory=1G changes it. Every word is compared with plain CPU code.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/sample.hpp"

namespace {

constexpr std::uint64_t k_chunk = 8192;  // words: 64 KiB for each work item of a sequential pass

struct AddToAll {
  hmmrt::gptr<std::uint64_t> data;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    hmmrt::with_spans(
        [](std::uint64_t* words, std::size_t, std::size_t n) {
          for (std::size_t k = 0; k != n; ++k) words[k] += 1;
        },
        hmmrt::read_write(data + static_cast<std::ptrdiff_t>(i.x * k_chunk), k_chunk));
  }
};

HMMRT_KERNEL std::uint64_t random_word(std::uint64_t seed, std::uint64_t access, std::uint64_t words) {
  return samples::mix(seed ^ (access << 20)) % words;
}

struct AddAnywhere {
  hmmrt::gptr<std::uint64_t> data;
  std::uint64_t words, seed;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    hmmrt::atomic_fetch_add(data + static_cast<std::ptrdiff_t>(random_word(seed, i.x, words)), 1);
  }
};

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("oversubscribe", "A working set several times the device's memory");
  std::vector<double> ratios{0.5, 1, 2, 4};
  std::uint64_t passes = 3, accesses = 1u << 15, seed = 1;
  std::string pattern = "both";
  sample.cli()
      .add_option("--ratio", ratios, "working set over device memory, 0.1 to 16; may be repeated")
      ->check(samples::between(0.1, 16));
  sample.cli()
      .add_option("--pattern", pattern, "how the working set is used")
      ->check(CLI::IsMember({"sequential", "random", "both"}));
  sample.size_option("--passes", passes, "sequential passes")->check(CLI::Range(1, 1 << 20));
  sample.size_option("--accesses", accesses, "random accesses")->check(CLI::Range(1, 1 << 30));
  sample.cli().add_option("--seed", seed, "of the random accesses");

  return sample.run(argc, argv, [&] {
    for (std::size_t k = 0; k != ratios.size(); ++k) {
      for (const char* kind : {"sequential", "random"}) {
        if (pattern != "both" && pattern != kind) continue;
        const bool sequential = kind[0] == 's';
        hmmrt::context context = sample.open({{"device_memory", "32M"}});
        hmmrt::stream stream(context, sample.device());
        const auto device_bytes = static_cast<double>(context.device_info(sample.device()).memory_bytes);
        const std::uint64_t chunks = static_cast<std::uint64_t>(device_bytes * ratios[k]) / (8 * k_chunk);
        const std::uint64_t words = chunks * k_chunk;
        if (words == 0) throw std::invalid_argument("the working set is less than 64 KiB: give the device more memory");
        hmmrt::managed_buffer<std::uint64_t> data(context, words);
        for (std::uint64_t i = 0; i != words; ++i) data[i] = i;

        const samples::Stopwatch watch;
        if (sequential)
          for (std::uint64_t pass = 0; pass != passes; ++pass)
            stream.launch("add_to_all", chunks, AddToAll{data.gpu()});
        else
          stream.launch("add_anywhere", accesses, AddAnywhere{data.gpu(), words, seed});
        stream.synchronize();
        const double ms = watch.milliseconds();
        const hmmrt_stats_t s = context.stats();

        std::vector<std::uint64_t> wanted(words);
        for (std::uint64_t i = 0; i != words; ++i) wanted[i] = i + (sequential ? passes : 0);
        if (!sequential)
          for (std::uint64_t a = 0; a != accesses; ++a) ++wanted[random_word(seed, a, words)];
        std::uint64_t wrong = 0;
        for (std::uint64_t i = 0; i != words; ++i) wrong += data[i] != wanted[i];

        const double touched = static_cast<double>(sequential ? words * passes : accesses);
        sample.row({{"pattern", std::string(kind)},
                    {"ratio", ratios[k], 2},
                    {"MiB", samples::mib(8 * words), 0},
                    {"ms", ms, 1},
                    {"Mwords/s", touched / ms / 1e3, 3},
                    {"GPU faults", s.device_faults},
                    {"MiB in", samples::mib(hmmrt::bytes_to_device(s)), 1},
                    {"MiB out", samples::mib(hmmrt::bytes_to_host(s)), 1},
                    {"evicted", s.pages_evicted},
                    {"refaults", s.refaults},
                    {"remote", s.remote_accesses},
                    {"answer", std::string(wrong == 0 ? "correct" : "WRONG")}});
        if (wrong != 0) sample.check(kind, false, std::to_string(wrong) + " words differ");
        if (k + 1 == ratios.size()) {
          sample.say("\n%s, working set %.2f times device memory:", kind, ratios[k]);
          sample.statistics(context);
        }
      }
    }
  });
}
