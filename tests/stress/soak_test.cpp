// SPDX-License-Identifier: MIT
// Everything at once: CPU threads and kernels of two devices on the same pages, while memory is prefetched, advised,
// pinned, discarded, allocated, freed, registered, unregistered, dropped and unmapped, under each policy, with options
// and failures drawn from the seed, and with device memory so small that eviction never stops.
//
// The oracle. Each page of the shared buffer has a word for each of four owners (two CPU threads, two devices), and one
// counter. A word is written by its owner alone, who knows from plain memory what he wrote there last; the others see it
// rise only. Increments of the counter are counted in plain memory, and at the end must add up.
#include <sys/mman.h>

#include <cstring>

#include "stress/stress.hpp"

namespace {

using namespace stress;  // NOLINT(google-build-using-namespace)

constexpr unsigned k_cpu_owners = 2, k_device_owners = 2, k_owners = k_cpu_owners + k_device_owners;
constexpr std::size_t k_spread = 72;  // words between the words of a page
constexpr std::size_t k_pages = 3 * 512 + 40;

std::size_t word_of(std::size_t page, unsigned owner) { return page * k_page_words + owner * k_spread; }
std::size_t counter_of(std::size_t page) { return page * k_page_words + k_owners * k_spread; }

// What one owner knows, in plain memory.
struct Knowledge {
  std::vector<std::uint64_t> written, added;
  std::vector<std::uint64_t> seen;  // of the next owner's words
  Knowledge() : written(k_pages), added(k_pages), seen(k_pages) {}
};

// A launch visits different pages with each item, so that what it knows about a page has one user at a time.
struct Visit {
  hmmrt::gptr<std::uint64_t> words;
  Knowledge* mine;
  Wrong* wrong;
  std::uint64_t first, stride;
  unsigned owner;
  void operator()(const hmmrt::item& i) const {
    const std::size_t page = (first + i.x * stride) % k_pages;
    const auto word = words + static_cast<std::ptrdiff_t>(word_of(page, owner));
    const std::uint64_t got = hmmrt::atomic_load(word);
    if (got != mine->written[page]) wrong->report("a kernel, own word", page, got, mine->written[page]);
    const std::uint64_t other =
        hmmrt::atomic_load(words + static_cast<std::ptrdiff_t>(word_of(page, (owner + 1) % k_owners)));
    if (other < mine->seen[page]) wrong->report("a kernel, another's word", page, other, mine->seen[page]);
    mine->seen[page] = other;
    if (i.x % 3 == 0) {
      hmmrt::atomic_fetch_add(words + static_cast<std::ptrdiff_t>(counter_of(page)), std::uint64_t{1},
                              hmmrt::scope::system);
      ++mine->added[page];
    }
    if (i.x % 4 != 1) {
      // Not accessed again here: either both happen or, when the launch is ended, neither.
      hmmrt::atomic_store(word, got + 1);
      mine->written[page] = got + 1;
    }
  }
};

struct AddTo {
  hmmrt::gptr<std::uint64_t> words;  // the first of each page
  std::uint64_t amount;
  void operator()(const hmmrt::item& i) const { words[static_cast<std::ptrdiff_t>(i.x * k_page_words)] += amount; }
};

// A launch may end for want of memory; everything else is wrong. True when it ran to its end.
bool finish(const hmmrt::stream& stream) {
  const hmmrt_result_t result = hmmrt_stream_synchronize(stream.get());
  if (result == HMMRT_ERROR_PINNED || result == HMMRT_ERROR_DEVICE_FULL) return false;
  hmmrt::check(result);
  return true;
}

// One context with everything that goes on in it.
class World {
 public:
  World(hmmrt::context& context, std::uint64_t from, Clock::time_point end)
      : context_(context), dog_(context.get()), buffer_(context, k_pages * k_page_words), seed_(from), end_(end) {}

  void run() {
    {
      std::vector<Actor> actors;
      for (unsigned o = 0; o < k_cpu_owners; ++o) {
        actors.emplace_back(dog_, "cpu " + std::to_string(o), [this, o](Progress& p) { cpu(p, o); });
      }
      for (unsigned d = 0; d < k_device_owners; ++d) {
        actors.emplace_back(dog_, "device " + std::to_string(d), [this, d](Progress& p) { device(p, d); });
      }
      actors.emplace_back(dog_, "director", [this](Progress& p) { direct(p); });
      actors.emplace_back(dog_, "tenant", [this](Progress& p) { come_and_go(p); });
    }
    compare();
  }

 private:
  bool over() const { return Clock::now() >= end_ || wrong_.any() || testing::Test::HasFailure(); }

  void cpu(Progress& progress, unsigned owner) {
    Random random(seed_ * 8 + owner);
    Knowledge& mine = known_[owner];
    do {
      progress.at("reading and writing");
      const std::size_t first = random.below(k_pages);
      const std::size_t count = std::min(k_pages - first, 1 + random.below(random.chance(20) ? 200 : 8));
      const bool writes = random.chance(60), adds = random.chance(30);
      for (std::size_t page = first; page < first + count; ++page) {
        std::uint64_t* word = &buffer_[word_of(page, owner)];
        const std::uint64_t got = load(word);
        if (got != mine.written[page]) wrong_.report("the CPU, own word", page, got, mine.written[page]);
        const std::uint64_t other = load(&buffer_[word_of(page, (owner + 1) % k_owners)]);
        if (other < mine.seen[page]) wrong_.report("the CPU, another's word", page, other, mine.seen[page]);
        mine.seen[page] = other;
        if (writes) store(word, mine.written[page] = got + 1);
        if (adds) {
          add(&buffer_[counter_of(page)], 1);
          ++mine.added[page];
        }
      }
    } while (!over());
  }

  void device(Progress& progress, unsigned device) {
    Random random(seed_ * 8 + 4 + device);
    const hmmrt::stream stream(context_, device);
    constexpr std::uint64_t k_strides[] = {1, 1, 1, 7, 101, 773};  // coprime to k_pages
    do {
      progress.at("running kernels");
      const std::uint64_t items = 1 + random.below(random.chance(20) ? k_pages : 100);
      const unsigned owner = k_cpu_owners + device;
      stream.launch("visit", items,
                    Visit{buffer_.gpu(), &known_[owner], &wrong_, random.below(k_pages), random.of(k_strides), owner});
      (void)finish(stream);
    } while (!over());
  }

  // Tells the runtime to do this and that with the shared buffer, none of which may change its contents.
  void direct(Progress& progress) {
    Random random(seed_ * 8 + 6);
    const hmmrt::stream streams[] = {hmmrt::stream(context_, 0), hmmrt::stream(context_, 1)};
    do {
      const std::size_t first = random.below(k_pages);
      const std::size_t count = std::min<std::size_t>(k_pages - first, 1 + random.below(random.chance(30) ? 1000 : 40));
      std::uint64_t* p = &buffer_[first * k_page_words];
      const auto where = static_cast<hmmrt::location>(random.below(3)) - 1;
      switch (random.below(8)) {
        case 0:
        case 1:
          progress.at("prefetching");
          context_.prefetch(p, count * k_page, where);
          break;
        case 2:
          progress.at("prefetching in a stream");
          context_.prefetch(p, count * k_page, where, streams[random.below(2)].get());
          break;
        case 3: {
          progress.at("prefetching a batch");
          const void* ptrs[] = {p, &buffer_[0], &buffer_[k_pages / 2 * k_page_words]};
          const std::size_t bytes[] = {count * k_page, 7 * k_page, 64 * k_page};
          const hmmrt_location_t to[] = {where, static_cast<hmmrt_location_t>(random.below(3)) - 1};
          const std::size_t index[] = {0, 1 + random.below(2)};
          hmmrt::check(hmmrt_prefetch_batch(context_.get(), ptrs, bytes, 3, to, index, 2, nullptr));
          break;
        }
        case 4:
          progress.at("advising");
          context_.advise(p, count * k_page, static_cast<hmmrt_advice_t>(1 + random.below(6)), where);
          break;
        case 5: {
          progress.at("pinning");
          const std::size_t few = std::min<std::size_t>(count, 10);
          const hmmrt_result_t result = hmmrt_pin(context_.get(), p, few * k_page);
          if (result == HMMRT_ERROR_BUSY) break;
          hmmrt::check(result);
          for (unsigned i = 0; i < 20; ++i) {
            if (const auto at = context_.residency(p, few * k_page); at != HMMRT_CPU) {
              wrong_.report("a pinned page's residency", first, static_cast<std::uint64_t>(at),
                            static_cast<std::uint64_t>(HMMRT_CPU));
            }
          }
          context_.unpin(p, few * k_page);
          break;
        }
        case 6: {
          progress.at("asking");
          (void)context_.residency(p, count * k_page);
          (void)context_.stats();
          (void)context_.range_stats(p);
          (void)context_.device_stats(1);
          break;
        }
        default: {  // somebody's memory that may be gone by now
          progress.at("meddling");
          if (const std::uintptr_t other = tenant_.load(); other != 0) {
            const auto* q = reinterpret_cast<const void*>(other);
            (void)hmmrt_prefetch(context_.get(), q, (1 + random.below(300)) * k_page, where, nullptr);
            (void)hmmrt_advise(context_.get(), q, k_page, static_cast<hmmrt_advice_t>(1 + random.below(6)), where);
          }
        }
      }
    } while (!over());
    for (const hmmrt::stream& s : streams) s.synchronize();
  }

  // Takes memory, works on it, drops parts of it, and gives it back, in all the ways there are.
  void come_and_go(Progress& progress) {
    Random random(seed_ * 8 + 7);
    const hmmrt::stream streams[] = {hmmrt::stream(context_, 0), hmmrt::stream(context_, 1)};
    do {
      const std::size_t pages = 1 + random.below(random.chance(30) ? 1100 : 60);
      const bool own = random.chance(50);
      progress.at(own ? "registering" : "allocating");
      void* memory = own ? mmap(nullptr, pages * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                         : context_.allocate(pages * k_page);
      auto* words = static_cast<std::uint64_t*>(memory);
      std::vector<std::uint64_t> plain(pages);
      for (std::size_t i = 0; i < pages; i += 1 + random.below(3)) {
        store(&words[i * k_page_words], plain[i] = random.next());
      }
      if (own) context_.register_memory(words, pages * k_page);
      tenant_.store(reinterpret_cast<std::uintptr_t>(words));

      for (std::uint64_t rounds = random.below(4); rounds != 0; --rounds) {
        const std::size_t first = random.below(pages);
        const std::size_t count = 1 + random.below(pages - first);
        switch (random.below(4)) {
          case 0:
          case 1: {
            progress.at("running kernels on what comes and goes");
            const hmmrt::stream& stream = streams[random.below(2)];
            const std::uint64_t amount = random.next();
            stream.launch("add_to", count, AddTo{{words + first * k_page_words}, amount});
            if (finish(stream)) {
              for (std::size_t i = first; i < first + count; ++i) plain[i] += amount;
            } else {
              for (std::size_t i = first; i < first + count; ++i) {
                const std::uint64_t got = load(&words[i * k_page_words]);
                if (got == plain[i] + amount) plain[i] = got;
              }
            }
            break;
          }
          case 2:
            progress.at("dropping");
            if (madvise(words + first * k_page_words, count * k_page, MADV_DONTNEED) != 0) {
              throw std::runtime_error(std::string("madvise: ") + std::strerror(errno));
            }
            for (std::size_t i = first; i < first + count; ++i) plain[i] = 0;
            break;
          default:
            progress.at("discarding");
            context_.discard(words + first * k_page_words, count * k_page);
            for (std::size_t i = first; i < first + count; ++i)
              store(&words[i * k_page_words], plain[i] = random.next());
        }
        if (random.chance(50)) check_tenant(words, plain);
      }

      const unsigned way = static_cast<unsigned>(random.below(4));
      if (!own) {
        progress.at("freeing");
        check_tenant(words, plain);
        tenant_.store(0);
        context_.free(words);
      } else if (way == 0) {
        progress.at("unmapping before unregistering");
        tenant_.store(0);
        munmap(words, pages * k_page);
        (void)hmmrt_unregister(context_.get(), words);
      } else {
        if (way == 1 && pages > 2) {
          progress.at("unmapping a part");
          const std::size_t first = 1 + random.below(pages - 2);
          munmap(words + first * k_page_words, (pages - first) * k_page);
          plain.resize(first);
        }
        progress.at("unregistering");
        hmmrt_result_t result = HMMRT_ERROR_BUSY;
        for (unsigned tries = 0; tries < 100 && result == HMMRT_ERROR_BUSY; ++tries) {
          result = hmmrt_unregister(context_.get(), words);
        }
        hmmrt::check(result);
        tenant_.store(0);
        check_tenant(words, plain);
        munmap(words, plain.size() * k_page);
      }
    } while (!over());
  }
  void check_tenant(const std::uint64_t* words, const std::vector<std::uint64_t>& plain) {
    for (std::size_t i = 0; i < plain.size(); ++i) {
      const std::uint64_t got = load(&words[i * k_page_words]);
      if (got != plain[i]) wrong_.report("what comes and goes", i, got, plain[i]);
    }
  }

  void compare() {
    for (std::size_t page = 0; page < k_pages; ++page) {
      std::uint64_t added = 0;
      for (unsigned o = 0; o < k_owners; ++o) {
        added += known_[o].added[page];
        const std::uint64_t got = load(&buffer_[word_of(page, o)]);
        if (got != known_[o].written[page]) wrong_.report("a word in the end", page, got, known_[o].written[page]);
      }
      const std::uint64_t got = load(&buffer_[counter_of(page)]);
      if (got != added) wrong_.report("a counter in the end", page, got, added);
    }
    wrong_.expect_none();
  }

  hmmrt::context& context_;
  Watchdog dog_;
  hmmrt::managed_buffer<std::uint64_t> buffer_;
  std::uint64_t seed_;
  Clock::time_point end_;
  Knowledge known_[k_owners];
  Wrong wrong_;
  std::atomic<std::uintptr_t> tenant_{0};
};

class Soak : public testing::TestWithParam<const char*> {};

TEST_P(Soak, each_word_keeps_what_its_owner_wrote_whatever_else_goes_on) {
  const char* const on_off[] = {"on", "off"};
  const auto end = end_of_share(0.1);
  std::uint64_t evictions = 0, faults = 0, moved = 0;
  for (std::uint64_t round = 0; round < 2; ++round) {
    Random random(seed() * 2 + round);
    const std::vector<hmmrt::option> options = {
        {"policy", GetParam()},
        {"devices", "2"},
        {"device_memory", "2M"},
        {"arena_bytes", "16M"},
        // Both ways of taking pages away, whatever the seed.
        {"host_path", (seed() + round) % 2 == 0 ? "auto" : "fallback"},
        {"user_mode_faults", random.of(on_off)},
        {"system_atomics", random.of(on_off)},
        {"remote_mapping", random.of({"on", "on", "off"})},
        {"peer", random.of(on_off)},
        {"fault_buffer_entries", random.of({"16", "1024"})},
        {"batch_size", random.of({"4", "256"})},
        {"access_counter_threshold", random.of({"8", "256"})},
        {"pipeline_tokens", random.of({"1", "2", "8"})},
        {"pipeline_threads", random.of({"1", "2", "4"})},
        {"inject_allocation", random.of({"0", "0.05"})},
        {"inject_copy", random.of({"0", "0.02"})},
        {"inject_fault_dropped", random.of({"0", "0.05"})},
        {"inject_quiesce", random.of({"0", "0.02"})},
        {"seed", std::to_string(random.below(1000))},
    };
    std::string text;
    for (const auto& [name, value] : options) text += name + "=" + value + " ";
    SCOPED_TRACE(text);
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
    STRESS_CONTEXT(context, options);
    World world(*context, seed() * 2 + round, round == 0 ? Clock::now() + (end - Clock::now()) / 2 : end);
    world.run();
    const hmmrt_stats_t stats = context->stats();
    evictions += stats.evictions;
    faults += stats.cpu_faults + stats.device_faults;
    moved += stats.pages_to_device + stats.pages_to_host + stats.pages_peer;
    if (HasFailure()) break;
  }
  std::printf("%s: faults %llu, pages moved %llu, evictions %llu\n", GetParam(),
              static_cast<unsigned long long>(faults), static_cast<unsigned long long>(moved),
              static_cast<unsigned long long>(evictions));
}
INSTANTIATE_TEST_SUITE_P(each, Soak, testing::Values("adaptive", "first_touch_4k", "first_touch_2m", "uvm", "remote"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
