// SPDX-License-Identifier: MIT
// Many processors, little memory: one counter, one page, a device much smaller than what it works on.
#include <barrier>

#include "stress/stress.hpp"

namespace {

using namespace stress;  // NOLINT(google-build-using-namespace)

struct Increment {
  hmmrt::gptr<std::uint64_t> counter;
  unsigned times;
  void operator()(const hmmrt::item&) const {
    for (unsigned i = 0; i < times; ++i) {
      hmmrt::atomic_fetch_add(counter, std::uint64_t{1}, hmmrt::scope::system);
    }
  }
};

// Device atomics that do not reach host memory: the page is lent to one device at a time.
TEST(Contention, a_cpu_and_two_devices_without_system_atomics_lose_no_increment) {
  STRESS_CONTEXT(context, {{"devices", "2"}, {"device_memory", "4M"}, {"system_atomics", "off"}});
  Watchdog dog(context->get());
  hmmrt::managed_buffer<std::uint64_t> page(*context, k_page_words);
  std::uint64_t expected[3] = {};
  const auto end = end_of_share(0.1);
  {
    std::vector<Actor> actors;
    for (unsigned d = 0; d < 2; ++d) {
      actors.emplace_back(dog, "device " + std::to_string(d), [&, d](Progress& progress) {
        const hmmrt::stream stream(*context, d);
        Random random(seed() + d);
        do {
          progress.at("incrementing");
          const unsigned items = 1 + static_cast<unsigned>(random.below(300));
          stream.launch("increment", items, Increment{page.gpu(), 3});
          stream.synchronize();
          expected[d] += 3u * items;
        } while (Clock::now() < end);
      });
    }
    actors.emplace_back(dog, "cpu", [&](Progress& progress) {
      do {
        progress.at("incrementing");
        for (unsigned i = 0; i < 50; ++i) add(&page[0], 1);
        expected[2] += 50;
      } while (Clock::now() < end);
    });
  }
  EXPECT_EQ(load(&page[0]), expected[0] + expected[1] + expected[2]) << "HMMRT_STRESS_SEED=" << seed();
}

TEST(Contention, many_threads_faulting_on_one_page_all_go_on) {
  STRESS_CONTEXT(context, {{"devices", "2"}, {"device_memory", "4M"}});
  Watchdog dog(context->get());
  constexpr unsigned k_threads = 24;
  hmmrt::managed_buffer<std::uint64_t> page(*context, k_page_words);
  const hmmrt::stream stream(*context, 1);
  const auto end = end_of_share(0.08);
  std::uint64_t rounds = 0;
  bool more = true;
  // Between rounds, when nobody touches it, the page leaves the CPU.
  std::barrier round(k_threads, [&]() noexcept {
    ++rounds;
    if (rounds % 2 == 0) {
      (void)hmmrt_prefetch(context->get(), page.data(), page.bytes(), static_cast<hmmrt_location_t>(rounds / 2 % 2),
                           nullptr);
    } else {
      stream.launch("increment", 1, Increment{page.gpu(), 1});
      stream.synchronize();
    }
    more = Clock::now() < end;
  });
  Wrong wrong;
  {
    std::vector<Actor> actors;
    for (unsigned t = 0; t < k_threads; ++t) {
      actors.emplace_back(dog, "thread " + std::to_string(t), [&, t](Progress& progress) {
        std::uint64_t mine = 0;
        do {
          progress.at("faulting");
          std::uint64_t* word = &page[8 + t];
          if (t % 3 == 0 && load(word) != mine) wrong.report("a thread", t, load(word), mine);
          if (add(word, 1) != mine) wrong.report("a thread", t, load(word), mine + 1);
          ++mine;
          progress.at("waiting for the others");
          round.arrive_and_wait();
        } while (more);
      });
    }
  }
  wrong.expect_none();
  EXPECT_EQ(load(&page[0]), (rounds + 1) / 2) << "HMMRT_STRESS_SEED=" << seed();
}

// Adds to places all over a buffer that the device holds a quarter of.
struct Scatter {
  hmmrt::gptr<std::uint64_t> words;
  std::uint64_t count, from;
  unsigned accesses;
  void operator()(const hmmrt::item& i) const {
    Random random(from + i.x);
    for (unsigned k = 0; k < accesses; ++k) {
      hmmrt::atomic_fetch_add(words + static_cast<std::ptrdiff_t>(random.below(count)), i.x + 1);
    }
  }
  void on_plain_memory(std::vector<std::uint64_t>& plain, std::uint64_t items) const {
    for (std::uint64_t x = 0; x < items; ++x) {
      Random random(from + x);
      for (unsigned k = 0; k < accesses; ++k) plain[random.below(count)] += x + 1;
    }
  }
};

class Oversubscription : public testing::TestWithParam<const char*> {};

TEST_P(Oversubscription, random_access_to_four_times_device_memory_adds_up) {
  STRESS_CONTEXT(context, {{"policy", GetParam()}, {"device_memory", "4M"}, {"remote_mapping", "off"}});
  Watchdog dog(context->get());
  hmmrt::managed_buffer<std::uint64_t> buffer(*context, 8 * k_block / 8);
  std::vector<std::uint64_t> plain(buffer.size());
  const hmmrt::stream stream(*context);
  const auto end = end_of_share(0.04);
  Random random(seed());
  Progress& progress = dog.watch("device");
  do {
    progress.at("scattering");
    const Scatter scatter{buffer.gpu(), buffer.size(), random.next(), 2};
    stream.launch("scatter", 500, scatter);
    scatter.on_plain_memory(plain, 500);
    stream.synchronize();
  } while (Clock::now() < end);
  progress.at("comparing");
  for (std::size_t i = 0; i < plain.size(); ++i) {
    ASSERT_EQ(buffer[i], plain[i]) << "word " << i << ", HMMRT_STRESS_SEED=" << seed();
  }
  EXPECT_GT(context->stats().evictions, 0u);
  dog.forget(progress);
}
INSTANTIATE_TEST_SUITE_P(each, Oversubscription, testing::Values("adaptive", "first_touch_4k", "first_touch_2m", "uvm"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
