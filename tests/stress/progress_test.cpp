// SPDX-License-Identifier: MIT
// The runtime goes on whatever the application does with its threads, oneTBB's among them, and across fork().
#include <sys/wait.h>
#include <tbb/global_control.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <unistd.h>

#include "stress/stress.hpp"

namespace {

using namespace stress;  // NOLINT(google-build-using-namespace)

// Every word that `owner` has in the pages from `first` on counts one up.
struct CountUp {
  hmmrt::gptr<std::uint64_t> words;
  std::uint64_t offset;
  void operator()(const hmmrt::item& i) const {
    const auto p = words + static_cast<std::ptrdiff_t>(i.x * k_page_words + offset);
    hmmrt::atomic_store(p, hmmrt::atomic_load(p) + 1);
  }
};

// Every worker that oneTBB has faults on device-resident memory and then waits for a prefetch of many blocks, which so
// has nobody but its caller to carry it out; kernels fault meanwhile.
TEST(Progress, workers_all_blocked_in_the_application_do_not_stop_migration) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "this test's own parallel_for runs in a oneTBB that ThreadSanitizer cannot see into";
#endif
  STRESS_CONTEXT(context,
                 {{"devices", "2"}, {"device_memory", "16M"}, {"pipeline_tokens", "4"}, {"pipeline_threads", "4"}});
  Watchdog dog(context->get());
  constexpr unsigned k_workers = 4;
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism, k_workers);
  hmmrt::managed_buffer<std::uint64_t> shared(*context, 3 * k_block / 8);  // faulted on by the workers
  hmmrt::managed_buffer<std::uint64_t> moved(*context, 6 * k_block / 8);   // prefetched
  const std::size_t pages = shared.bytes() / k_page;
  std::atomic<std::uint64_t> prefetched{0};
  std::uint64_t rounds = 0, launches = 0;
  std::atomic<bool> done{false};
  const auto end = end_of_share(0.1);
  {
    const Actor kernels(dog, "kernels", [&](Progress& progress) {
      const hmmrt::stream stream(*context, 1);
      do {
        progress.at("counting up");
        stream.launch("count_up", pages, CountUp{shared.gpu(), 1});
        stream.synchronize();
        ++launches;
      } while (!done.load());
    });
    const Actor prefetcher(dog, "prefetcher", [&](Progress& progress) {
      for (std::uint64_t round = 1; !done.load(); ++round) {
        progress.at("prefetching");
        moved.prefetch(static_cast<hmmrt::location>(round % 3) - 1);
        prefetched.fetch_add(1);
        prefetched.notify_all();
      }
      prefetched.fetch_add(1'000);  // nobody waits any more
      prefetched.notify_all();
    });
    const Actor application(dog, "application", [&](Progress& progress) {
      tbb::task_arena arena(k_workers);
      do {
        progress.at("sending away what the workers fault on");
        shared.prefetch(0);
        progress.at("blocking every worker");
        arena.execute([&] {
          tbb::parallel_for(
              0u, k_workers,
              [&](unsigned worker) {
                for (std::size_t p = worker; p < pages; p += 61) add(&shared[p * k_page_words + 2], 1);
                // The second from here on began after this worker was blocked.
                const std::uint64_t seen = prefetched.load();
                for (std::uint64_t now = seen; now < seen + 2; now = prefetched.load()) prefetched.wait(now);
              },
              tbb::simple_partitioner());
        });
        ++rounds;
      } while (Clock::now() < end);
      done.store(true);
    });
  }
  std::vector<std::uint64_t> plain(pages);
  for (unsigned worker = 0; worker < k_workers; ++worker) {
    for (std::size_t p = worker; p < pages; p += 61) plain[p] += rounds;
  }
  for (std::size_t p = 0; p < pages; ++p) {
    ASSERT_EQ(load(&shared[p * k_page_words + 1]), launches) << p;
    ASSERT_EQ(load(&shared[p * k_page_words + 2]), plain[p]) << p;
  }
}

TEST(Progress, children_forked_while_kernels_write_have_the_data_of_their_moment) {
  STRESS_CONTEXT(context, {{"devices", "2"}, {"device_memory", "4M"}});
  Watchdog dog(context->get());
  constexpr std::size_t k_pages = 700;
  hmmrt::managed_buffer<std::uint64_t> words(*context, k_pages * k_page_words);
  hmmrt::managed_buffer<std::uint64_t> still(*context, k_pages * k_page_words);
  for (std::size_t p = 0; p < k_pages; ++p) still[p * k_page_words] = p * 3 + seed() % 1000;
  std::atomic<std::uint64_t> finished[2]{};
  std::atomic<bool> done{false};
  const auto end = end_of_share(0.1);
  std::vector<Actor> actors;
  for (unsigned d = 0; d < 2; ++d) {
    actors.emplace_back(dog, "device " + std::to_string(d), [&, d](Progress& progress) {
      const hmmrt::stream stream(*context, d);
      do {
        progress.at("counting up");
        stream.launch("count_up", k_pages, CountUp{words.gpu(), d});
        stream.synchronize();
        finished[d].fetch_add(1);
      } while (!done.load());
    });
  }
  Progress& progress = dog.watch("forker");
  unsigned forks = 0;
  do {
    progress.at("forking");
    still.prefetch(static_cast<hmmrt::location>(forks % 3) - 1);
    const std::uint64_t before[2] = {finished[0].load(), finished[1].load()};
    const pid_t child = fork();
    if (child == 0) {
      for (std::size_t p = 0; p < k_pages; ++p) {
        if (still[p * k_page_words] != p * 3 + seed() % 1000) _exit(1);
        for (unsigned d = 0; d < 2; ++d) {
          const std::uint64_t seen = load(&words[p * k_page_words + d]);
          if (seen < before[d]) _exit(2);            // a finished launch is missing
          if (seen > before[d] + 100'000) _exit(3);  // garbage
        }
      }
      for (std::size_t p = 0; p < k_pages; p += 7) {  // and no kernel writes here
        const std::uint64_t seen = load(&words[p * k_page_words]);
        store(&words[p * k_page_words], seen + 1'000'000);
        if (load(&words[p * k_page_words]) != seen + 1'000'000) _exit(4);
      }
      _exit(0);
    }
    if (child < 0) {
      ADD_FAILURE() << "fork failed";
      break;
    }
    int status = -1;
    progress.at("waiting for the child");
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
        << "child status " << status << ", HMMRT_STRESS_SEED=" << seed();
    ++forks;
  } while (Clock::now() < end && !testing::Test::HasFailure());
  done.store(true);
  actors.clear();
  progress.at("comparing");
  for (std::size_t p = 0; p < k_pages; ++p) {
    for (unsigned d = 0; d < 2; ++d) ASSERT_EQ(load(&words[p * k_page_words + d]), finished[d].load()) << p;
  }
  dog.forget(progress);
}

}  // namespace
