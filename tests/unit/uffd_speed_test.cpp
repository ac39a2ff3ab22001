// SPDX-License-Identifier: MIT
// Not a check but a measurement: what withdrawing and delivering cost against memcpy (move) or against bare loops of
// the system calls (fallback), on the same buffers, interleaved. Asserts only that it ran.
#include <sys/ioctl.h>

#include <algorithm>
#include <chrono>

#include "uffd_fixture.hpp"

namespace hmmrt::test {
namespace {

constexpr unsigned k_blocks = 32;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr unsigned k_rounds = 2;  // it runs; the figures are the sanitizer's
#else
constexpr unsigned k_rounds = 9;
#endif

double seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
// The least of the repeats: what it costs when nobody else uses the machine.
// The first repeat warms up: its pages are fresh and huge.
double least(const std::vector<double>& v) { return *std::min_element(v.begin() + 1, v.end()); }

class UffdSpeedOf : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Paths, UffdSpeedOf, testing::Values(k_variants[0], k_variants[2]), variant_name);

TEST_P(UffdSpeedOf, per_granule_cost_beside_its_ceiling) {
  const bool fallback = GetParam().fallback;
  for (const unsigned granule : {1u, 16u, 512u}) {
    World w(GetParam(), k_blocks);
    w.fill(1, k_blocks * k_block_pages);
    const std::size_t bytes = granule * k_page_size;
    const double granules = k_blocks * k_block_pages / granule;
    const auto each = [&](const auto& fn) {
      for (unsigned b = 0; b < k_blocks; ++b) {
        for (unsigned at = 0; at < k_block_pages; at += granule) fn(b, at);
      }
    };
    std::array<double, 3> phase{};
    std::array<std::array<double, 3>, 2> least_phase;
    for (auto& p : least_phase) p.fill(1e9);
    const auto transfer = [&](Direction d) {
      phase.fill(0);
      const double all = seconds([&] {
        each([&](unsigned b, unsigned at) {
          Transfer t = w.transfer(d, PageMask::range(at, granule), b);
          phase[0] += seconds([&] { w.mirror->prepare(t); });
          phase[1] += seconds([&] {
            w.mirror->copy(t);
            w.mirror->finish_copy(t);
          });
          phase[2] += seconds([&] { w.mirror->commit(t); });
          if (t.outcome.done.count() != granule) ADD_FAILURE() << b << " " << at;
        });
      });
      auto& least_of = least_phase[static_cast<unsigned>(d)];
      for (unsigned i = 0; i < 3; ++i) least_of[i] = std::min(least_of[i], phase[i]);
      return all;
    };
    // Bare system calls on memory of their own, with an event-less userfaultfd.
    uffd::Probe probe;
    ASSERT_TRUE(uffd::probe(false, &probe).ok());
    const uffd::Uffd bare(
        uffd::open_uffd(probe, UFFD_FEATURE_PAGEFAULT_FLAG_WP | (fallback ? 0 : uffd::k_feature_move)));
    const std::uintptr_t plain = map_aligned(k_blocks * k_block_size, PROT_READ | PROT_WRITE);
    memset(reinterpret_cast<void*>(plain), 1, k_blocks * k_block_size);
    bare.watch(plain, k_blocks * k_block_size, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
    const auto plain_at = [&](unsigned b, unsigned at) { return plain + b * k_block_size + at * k_page_size; };
    const uffd::Uffd bare_staging(
        uffd::open_uffd(probe, UFFD_FEATURE_PAGEFAULT_FLAG_WP | (fallback ? 0 : uffd::k_feature_move)));
    const std::uintptr_t aside = map_aligned(k_blocks * k_block_size, PROT_READ | PROT_WRITE);
    if (!fallback) bare_staging.watch(aside, k_blocks * k_block_size, UFFDIO_REGISTER_MODE_WP);
    const auto aside_at = [&](unsigned b, unsigned at) { return plain_at(b, at) - plain + aside; };
    std::vector<double> out, in, move_out, move_in, copy_out, copy_in, bare_out, bare_out_wp, bare_in;
    for (unsigned round = 0; round < k_rounds; ++round) {
      copy_out.push_back(
          seconds([&] { each([&](unsigned b, unsigned at) { memcpy(w.frame(at, b), w.page(at, b), bytes); }); }));
      copy_in.push_back(
          seconds([&] { each([&](unsigned b, unsigned at) { memcpy(w.page(at, b), w.frame(at, b), bytes); }); }));
      out.push_back(transfer(Direction::to_device));
      in.push_back(transfer(Direction::to_host));
      if (!fallback) {
        move_out.push_back(seconds([&] {
          each([&](unsigned b, unsigned at) {
            bare_staging.move(aside_at(b, at), plain_at(b, at), bytes);
            memcpy(w.frame(at, b), reinterpret_cast<void*>(aside_at(b, at)), bytes);
          });
        }));
        move_in.push_back(seconds([&] {
          each([&](unsigned b, unsigned at) {
            memcpy(reinterpret_cast<void*>(aside_at(b, at)), w.frame(at, b), bytes);
            bare.move(plain_at(b, at), aside_at(b, at), bytes);
          });
        }));
        continue;
      }
      bare_out.push_back(seconds([&] {
        each([&](unsigned b, unsigned at) {
          auto* const p = reinterpret_cast<void*>(plain_at(b, at));
          memcpy(w.frame(at, b), p, bytes);
          madvise(p, bytes, MADV_DONTNEED);
        });
      }));
      const auto fill = [&] {
        each([&](unsigned b, unsigned at) {
          bare.copy(plain_at(b, at), reinterpret_cast<std::uintptr_t>(w.frame(at, b)), bytes, false);
        });
      };
      bare_in.push_back(seconds(fill));
      bare_out_wp.push_back(seconds([&] {
        each([&](unsigned b, unsigned at) {
          auto* const p = reinterpret_cast<void*>(plain_at(b, at));
          bare.write_protect(plain_at(b, at), bytes, true);
          memcpy(w.frame(at, b), p, bytes);
          madvise(p, bytes, MADV_DONTNEED);
        });
      }));
      fill();
    }
    const auto line = [&](const char* what, double t, double ceiling, const char* against) {
      std::printf("%-9s %4zu KiB %-10s %9.2f us %6.2f GB/s  %5.1f %% of %s (%.2f us)\n", GetParam().name, bytes / 1024,
                  what, t * 1e6 / granules, k_blocks * k_block_size / t / 1e9, 100 * ceiling / t, against,
                  ceiling * 1e6 / granules);
    };
    for (unsigned d = 0; d < 2; ++d) {
      std::printf("%-9s %4zu KiB %-10s prepare %.2f, copy %.2f, commit %.2f us\n", GetParam().name, bytes / 1024,
                  d == 0 ? "to_device" : "to_host", least_phase[d][0] * 1e6 / granules,
                  least_phase[d][1] * 1e6 / granules, least_phase[d][2] * 1e6 / granules);
    }
    line("to_device", least(out), least(copy_out), "memcpy");
    line("to_host", least(in), least(copy_in), "memcpy");
    if (!fallback) {
      line("to_device", least(out), least(move_out), "bare MOVE + memcpy");
      line("to_host", least(in), least(move_in), "bare memcpy + MOVE");
    } else {
      line("to_device", least(out), least(bare_out), "memcpy + DONTNEED");
      line("to_device", least(out), least(bare_out_wp), "WRITEPROTECT + memcpy + DONTNEED");
      line("to_host", least(in), least(bare_in), "COPY");
    }
    munmap(reinterpret_cast<void*>(plain), k_blocks * k_block_size);
    munmap(reinterpret_cast<void*>(aside), k_blocks * k_block_size);
  }
}

// One piece of a huge page, then the next: the first splits it.
TEST(UffdSpeed, piece_of_a_huge_page) {
  for (const unsigned granule : {1u, 16u, 256u}) {
    constexpr unsigned k_pieces = 22;
    World w(k_variants[0], k_blocks);
    w.fill(1, k_blocks * k_block_pages);
    std::array<std::vector<double>, k_pieces> cost;
    const unsigned stride = granule < 256 ? 20 : 256;
    const unsigned pieces = granule < 256 ? k_pieces : 1;
    for (unsigned b = 0; b < k_blocks; ++b) {
      for (unsigned i = 0; i < pieces; ++i) {
        Transfer t =
            w.transfer(Direction::to_device, PageMask::range(granule < 256 ? 4 + i * stride : 256, granule), b);
        cost[i].push_back(seconds([&] { w.run_transfer(t); }));
        if (t.outcome.done.count() != granule) ADD_FAILURE() << b << " piece " << i;
      }
    }
    std::printf("%4u KiB pieces of huge pages, us:", granule * 4);
    for (unsigned i = 0; i < pieces; ++i) {
      std::sort(cost[i].begin(), cost[i].end());
      std::printf(" %.0f", cost[i][k_blocks / 2] * 1e6);
    }
    std::printf(" (medians)\n");
  }
}

}  // namespace
}  // namespace hmmrt::test
