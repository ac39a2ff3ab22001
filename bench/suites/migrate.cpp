// SPDX-License-Identifier: MIT
// How fast is migration, against copying the same bytes?
//
// One cycle, with the buffer on the CPU at both ends:
//   bare out | bare home | hmmrt_prefetch to the device | device writes every page | hmmrt_prefetch home
// so every migration stands beside a bare loop over the same bytes, in the same granule and by as many threads. Each pair
// ends with the memory it began with: of two drops in a row the second would find the kernel's lists of free pages full,
// and take a third longer. The
// device's write matters: a page that the device only read goes home without being copied. The bare loops copy between
// the managed buffer itself, while it is on the CPU, and a warm buffer that stands for the device's frames, which the
// public API does not show; on the fallback path a region registered with a bare userfaultfd stands for the managed one.
#include <sys/mman.h>

#include <cstring>
#include <functional>
#include <memory>

#include "common/managed.hpp"
#include "common/measure.hpp"

namespace bench {

namespace {

constexpr unsigned k_warm_up = 2;

// What moves of a buffer: of every `stride` bytes the first `granule`.
struct Shape {
  std::size_t bytes;
  std::size_t granule;
  std::size_t stride;
  std::size_t moving() const { return bytes / stride * granule; }
  std::vector<Piece> pieces(std::byte* to, const std::byte* from) const {
    std::vector<Piece> out;
    for (std::size_t at = 0; at < bytes; at += stride) out.push_back({to + at, from + at, granule});
    return out;
  }
};

struct Bare {
  std::function<double()> out, home;  // seconds
};
using Prefetch = std::function<void(hmmrt_location_t to)>;

// What the CPU wrote at first is the page's number in its first word and a mark in its last byte.
void write_pages(std::byte* p, std::size_t bytes) {
  std::memset(p, 0x5a, bytes);
  for (std::size_t at = 0; at < bytes; at += k_page) {
    const std::uint64_t number = at / k_page;
    std::memcpy(p + at, &number, sizeof number);
  }
}

// Of the pages that moved the device wrote the first word.
void verify(const std::byte* p, const Shape& s, std::uint64_t device_value) {
  for (std::size_t at = 0; at < s.bytes; at += k_page) {
    std::uint64_t first = 0;
    std::memcpy(&first, p + at, sizeof first);
    const bool moved = at % s.stride < s.granule;
    if (first != at / k_page + (moved ? device_value : 0)) throw Error("a page came home with wrong contents");
    if (p[at + k_page - 1] != std::byte{0x5a}) throw Error("a page lost what the CPU had written");
  }
}

void cycles(const Settings& settings, Report& report, const Context& context, std::byte* p, const Shape& s,
            const Prefetch& prefetch, const Bare& bare, const std::string& name, std::optional<Target> target,
            const std::string& note) {
  const double gigabytes = static_cast<double>(s.moving()) * 1e-9;
  Pairs out;
  Pairs home;
  write_pages(p, s.bytes);
  std::uint64_t device_value = 0;
  for (unsigned i = 0; i < settings.repeats + k_warm_up; ++i) {
    const double bare_out = bare.out();
    const double bare_home = bare.home();
    const hmmrt_stats_t before = context.stats();
    std::uint64_t start = now_ns();
    prefetch(0);
    const double ours_out = seconds_since(start);
    device_value = std::uint64_t{i + 1} << 32;
    context.dirty(p, s.bytes, device_value, s.granule / k_page, s.stride / k_page);
    start = now_ns();
    prefetch(HMMRT_CPU);
    const double ours_home = seconds_since(start);
    const hmmrt_stats_t after = context.stats();
    verify(p, s, device_value);
    expect_bytes(bytes_to_device(after) - bytes_to_device(before), s.moving(), "the way out");
    expect_bytes(bytes_to_host(after) - bytes_to_host(before), s.moving(), "the way home");
    if (i < k_warm_up) continue;
    out.add(gigabytes / ours_out, gigabytes / bare_out);
    home.add(gigabytes / ours_home, gigabytes / bare_home);
  }
  report.add(compare(name + "_to_device", "GB/s", out, Ratio::value_by_ceiling, target, note));
  report.add(compare(name + "_to_host", "GB/s", home, Ratio::value_by_ceiling, target, note));
}

Bare memcpy_loops(Team& team, const Shape& s, std::byte* managed, std::byte* frames) {
  return {[&team, list = s.pieces(frames, managed)] { return copy_seconds(team, list); },
          [&team, list = s.pieces(managed, frames)] { return copy_seconds(team, list); }};
}

// Out: write-protect, copy, drop. Home: UFFDIO_COPY.
Bare uffd_loops(Team& team, const Shape& s, const RawUffd& uffd, std::byte* watched, std::byte* frames) {
  return {[&team, &uffd, list = s.pieces(frames, watched)] {
            const std::uint64_t start = now_ns();
            team.for_each(list.size(), [&](std::size_t i) {
              auto* from = const_cast<std::byte*>(list[i].from);
              uffd.write_protect(from, list[i].bytes);
              std::memcpy(list[i].to, from, list[i].bytes);
              madvise(from, list[i].bytes, MADV_DONTNEED);
            });
            return seconds_since(start);
          },
          [&team, &uffd, list = s.pieces(watched, frames)] {
            const std::uint64_t start = now_ns();
            team.for_each(list.size(), [&](std::size_t i) { uffd.copy(list[i].to, list[i].from, list[i].bytes); });
            return seconds_since(start);
          }};
}

Options with(const Settings& settings, bool parallel, Options options = {}) {
  options.emplace_back("device_memory", mib((settings.quick ? 128 : 512) + 64));
  options.emplace_back("device_populate", "on");
  if (!parallel) options.emplace_back("pipeline_tokens", "1");
  return options;
}

std::string threads_of(const Team& team) {
  return std::to_string(team.threads()) + (team.threads() == 1 ? " thread" : " threads");
}

// Only the measures with one copying thread have targets: there, what the runtime adds is all that differs.
std::optional<Target> target(bool parallel, double number) {
  return parallel ? std::nullopt : std::optional(ratio_at_least(number));
}

// What the kernel alone lets a runtime reach that withdraws by UFFDIO_MOVE: no runtime, just move and memcpy.
void bare_moves(const Settings& settings, Report& report, Team& team, const Shape& s, std::byte* frames,
                const std::string& name) {
  Memory managed(s.bytes);
  managed.fill(1);
  const Memory staging(s.bytes);
  const RawUffd uffd(managed.data(), s.bytes, RawUffd::For::move);
  uffd.watch(staging.data(), s.bytes);
  const std::vector<Piece> list = s.pieces(frames, managed.data());
  const double gigabytes = static_cast<double>(s.moving()) * 1e-9;
  const auto staged = [&](const Piece& piece) { return staging.data() + (piece.from - managed.data()); };
  Pairs pairs;
  for (unsigned i = 0; i < settings.repeats + k_warm_up; ++i) {
    const double copied = copy_seconds(team, list);
    const std::uint64_t start = now_ns();
    team.for_each(list.size(), [&](std::size_t k) {
      uffd.move(staged(list[k]), const_cast<std::byte*>(list[k].from), list[k].bytes);
      std::memcpy(list[k].to, staged(list[k]), list[k].bytes);
    });
    const double moved = seconds_since(start);
    for (const Piece& piece : list) uffd.move(const_cast<std::byte*>(piece.from), staged(piece), piece.bytes);
    if (i >= k_warm_up) pairs.add(gigabytes / moved, gigabytes / copied);
  }
  report.add(compare(name, "GB/s", pairs, Ratio::value_by_ceiling, std::nullopt,
                     "no runtime: UFFDIO_MOVE and memcpy out; memcpy, " + threads_of(team)));
}

void by_moving(const Settings& settings, Report& report, bool parallel, std::size_t bytes, std::byte* frames) {
  const std::string suffix = parallel ? "_parallel" : "";
  const Context context(with(settings, parallel));
  Team team(context.copying_threads());
  std::byte* p = context.allocate(bytes);

  const Shape blocks{bytes, k_block, k_block};
  const auto whole = [&](hmmrt_location_t to) { context.prefetch(p, bytes, to); };
  cycles(settings, report, context, p, blocks, whole, memcpy_loops(team, blocks, p, frames), "migrate_2m" + suffix,
         target(parallel, 0.9), "memcpy by 2 MiB, " + threads_of(team));
  if (context.moves()) bare_moves(settings, report, team, blocks, frames, "bare_move_2m" + suffix);

  // Every other 64 KiB, so that no block can go as a whole. One call for all of them.
  const Shape granules{bytes, 64 * 1024, 128 * 1024};
  std::vector<const void*> ptrs;
  for (const Piece& piece : granules.pieces(p, p)) ptrs.push_back(piece.to);
  const std::vector<std::size_t> sizes(ptrs.size(), granules.granule);
  const auto batch = [&](hmmrt_location_t to) {
    const std::size_t first = 0;
    check(hmmrt_prefetch_batch(context.get(), ptrs.data(), sizes.data(), ptrs.size(), &to, &first, 1, nullptr),
          "hmmrt_prefetch_batch");
  };
  cycles(settings, report, context, p, granules, batch, memcpy_loops(team, granules, p, frames), "migrate_64k" + suffix,
         target(parallel, 0.5),
         "every other 64 KiB, in one hmmrt_prefetch_batch; memcpy by 64 KiB, " + threads_of(team));
  if (context.moves() && !parallel) bare_moves(settings, report, team, granules, frames, "bare_move_64k");
  context.free(p);
}

void by_copying(const Settings& settings, Report& report, bool parallel, std::size_t bytes, std::byte* frames) {
  const Context context(with(settings, parallel, {{"host_path", "fallback"}}));
  Team team(context.copying_threads());
  std::byte* p = context.allocate(bytes);
  Memory watched(bytes);
  watched.fill(1);
  const RawUffd uffd(watched.data(), bytes, RawUffd::For::write_protect);
  const Shape blocks{bytes, k_block, k_block};
  const auto whole = [&](hmmrt_location_t to) { context.prefetch(p, bytes, to); };
  cycles(settings, report, context, p, blocks, whole, uffd_loops(team, blocks, uffd, watched.data(), frames),
         parallel ? "migrate_2m_fallback_parallel" : "migrate_2m_fallback", target(parallel, 0.9),
         "bare write-protect + memcpy + MADV_DONTNEED out, UFFDIO_COPY home, by 2 MiB, " + threads_of(team));
  context.free(p);
}

}  // namespace

void run_migrate(const Settings& settings, Report& report) {
  const std::size_t bytes = (settings.quick ? 128 : 512) * k_mib;
  Memory frames(bytes);
  frames.fill(1);
  for (const bool parallel : {false, true}) {
    by_moving(settings, report, parallel, bytes, frames.data());
    by_copying(settings, report, parallel, bytes, frames.data());
  }
}

}  // namespace bench
