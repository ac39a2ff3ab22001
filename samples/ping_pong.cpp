// SPDX-License-Identifier: MIT
// CPU and GPU alternate on the same memory: the worst case for migration on touch. In each 2 MiB block the first
// --granule bytes are written by both, in turns. With --false-sharing each block is cut into granules that belong to
// the CPU and to the GPU alternately and both work at once: no byte is shared, only the block is.
// --compare runs every built-in policy and tabulates what each one moved and how long it took.
// Each turn hashes every word, so that the answer depends on the order of the turns; it is compared with the same
// turns taken in plain memory on the CPU.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/sample.hpp"

namespace {

constexpr std::uint64_t k_block = 2u << 20;
constexpr std::uint64_t k_stride = 8;  // words between those that are touched: one in each 64-byte line

// The words one processor touches in a turn: `lines` lines in each of several pieces of memory.
struct Share {
  std::uint64_t first, step;  // in words: where the first piece is, and the distance to the next
  std::uint64_t pieces, lines;
  HMMRT_KERNEL std::uint64_t word(std::uint64_t k) const { return first + k / lines * step + k % lines * k_stride; }
  std::uint64_t count() const { return pieces * lines; }
};

struct GpuTurn {
  hmmrt::gptr<std::uint64_t> data;
  Share share;
  HMMRT_KERNEL void operator()(const hmmrt::item& i) const {
    const auto word = static_cast<std::ptrdiff_t>(share.word(i.x));
    data[word] = samples::mix(data[word]);
  }
};

void cpu_turn(std::uint64_t* data, const Share& share) {
  for (std::uint64_t k = 0; k != share.count(); ++k) {
    std::uint64_t& word = data[share.word(k)];
    word = samples::mix(word + 1);
  }
}

struct Problem {
  std::uint64_t granule = 64u << 10, blocks = 2, rounds = 200;
  bool false_sharing = false;
  std::uint64_t words() const { return blocks * k_block / 8; }
  // Bytes copied if whatever a turn touches had to move there.
  std::uint64_t sought() const { return false_sharing ? 0 : 2 * rounds * blocks * granule; }
  Share cpu() const { return false_sharing ? halves(0) : whole(); }
  Share gpu() const { return false_sharing ? halves(granule / 8) : whole(); }

 private:
  Share whole() const { return {0, k_block / 8, blocks, granule / 64}; }
  Share halves(std::uint64_t first) const { return {first, granule / 4, blocks * k_block / granule / 2, granule / 64}; }
};

struct Outcome {
  double milliseconds;
  hmmrt_stats_t stats;
  std::uint64_t wrong;
};

Outcome play(hmmrt::context& context, std::uint32_t device, const Problem& problem) {
  hmmrt::stream stream(context, device);
  hmmrt::managed_buffer<std::uint64_t> data(context, problem.words());
  for (std::uint64_t i = 0; i != problem.words(); ++i) data[i] = i;
  const Share mine = problem.cpu(), its = problem.gpu();

  const samples::Stopwatch watch;
  for (std::uint64_t round = 0; round != problem.rounds; ++round) {
    stream.launch("turn", its.count(), GpuTurn{data.data(), its});
    if (!problem.false_sharing) stream.synchronize();
    cpu_turn(data.data(), mine);
    stream.synchronize();
  }
  Outcome outcome{watch.milliseconds(), context.stats(), 0};

  std::vector<std::uint64_t> wanted(problem.words());
  for (std::uint64_t i = 0; i != problem.words(); ++i) wanted[i] = i;
  for (std::uint64_t round = 0; round != problem.rounds; ++round) {
    for (std::uint64_t k = 0; k != its.count(); ++k) wanted[its.word(k)] = samples::mix(wanted[its.word(k)]);
    cpu_turn(wanted.data(), mine);
  }
  for (std::uint64_t i = 0; i != problem.words(); ++i) outcome.wrong += data[i] != wanted[i];
  return outcome;
}

std::uint64_t moved(const hmmrt_stats_t& s) { return hmmrt::bytes_to_device(s) + hmmrt::bytes_to_host(s); }

void check_answer(samples::Sample& sample, const std::string& policy, const Outcome& outcome) {
  sample.check(policy, outcome.wrong == 0, std::to_string(outcome.wrong) + " words differ");
}

void compare(samples::Sample& sample, const Problem& problem) {
  std::vector<std::pair<std::string, Outcome>> outcomes;
  for (const char* policy : {"first_touch_4k", "first_touch_2m", "uvm", "remote", "adaptive"}) {
    hmmrt::context context = sample.open({}, {{"policy", policy}});
    const Outcome o = play(context, sample.device(), problem);
    sample.row({{"policy", std::string(policy)},
                {"ms", o.milliseconds, 1},
                {"MiB moved", samples::mib(moved(o.stats)), 1},
                {"GPU faults", o.stats.device_faults},
                {"CPU faults", o.stats.cpu_faults},
                {"remote", o.stats.remote_accesses},
                {"caught", o.stats.ping_pong_detections},
                {"pins", o.stats.pins}});
    outcomes.emplace_back(policy, o);
  }
  sample.say(" ");
  for (const auto& [policy, outcome] : outcomes) check_answer(sample, policy, outcome);
}

}  // namespace

int main(int argc, char** argv) {
  samples::Sample sample("ping_pong", "CPU and GPU alternating on the same memory, under any policy or all of them");
  Problem problem;
  bool all_policies = false;
  sample.size_option("-g,--granule", problem.granule, "bytes shared in each 2 MiB block, 4K to 2M");
  sample.size_option("-b,--blocks", problem.blocks, "blocks of 2 MiB")->check(CLI::Range(1, 1 << 16));
  sample.size_option("-r,--rounds", problem.rounds, "turns of each processor")->check(CLI::Range(1, 1 << 30));
  sample.cli().add_flag("--false-sharing", problem.false_sharing, "own granules, shared blocks, both at once");
  sample.cli().add_flag("--compare", all_policies, "run all built-in policies, one after the other");

  return sample.run(argc, argv, [&] {
    const std::uint64_t most = problem.false_sharing ? k_block / 2 : k_block, g = problem.granule;
    if (g < 4096 || g > most || (g & (g - 1)) != 0)
      throw std::invalid_argument("--granule is a power of two from 4K to " +
                                  std::string(problem.false_sharing ? "1M" : "2M"));
    sample.say("ping_pong: %llu blocks of 2 MiB, %s of %s each, %llu rounds",
               static_cast<unsigned long long>(problem.blocks),
               problem.false_sharing ? "alternate granules" : "one shared granule", hmmrt::format_bytes(g).c_str(),
               static_cast<unsigned long long>(problem.rounds));
    if (all_policies) return compare(sample, problem);

    hmmrt::context context = sample.open();
    const Outcome outcome = play(context, sample.device(), problem);
    sample.result("time", outcome.milliseconds, "ms");
    sample.result("moved", samples::mib(moved(outcome.stats)), "MiB");
    if (!problem.false_sharing) sample.result("if every turn moved it", samples::mib(problem.sought()), "MiB");
    check_answer(sample, "words", outcome);
    sample.statistics(context);
  });
}
