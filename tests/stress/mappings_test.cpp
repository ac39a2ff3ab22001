// SPDX-License-Identifier: MIT
// One thread does to registered memory, in random order, whatever an application may do with its mappings, one call right
// after the other: mremap of all of it or of a part, madvise, mprotect, munmap and mapping plain memory into the hole,
// fork; and between these prefetches, advice, CPU accesses and kernels.
//
// The oracle: plain memory that says for each page where it is now and what its word is.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "stress/stress.hpp"

namespace {

using namespace stress;  // NOLINT(google-build-using-namespace)

constexpr std::size_t k_pages = 3 * 512 + 24;
constexpr std::size_t k_word = 17;  // of each page

struct Increment {
  hmmrt::gptr<std::uint64_t> first;
  void operator()(const hmmrt::item& i) const {
    first[static_cast<std::ptrdiff_t>(i.x * k_page_words)] += std::uint64_t{1};
  }
};

struct Page {
  std::byte* at = nullptr;
  std::uint64_t value = 0;
  bool managed = true;
  std::string calls;  // that it was in, a letter each
};

class Application {
 public:
  Application(hmmrt::context& context, Random& random) : context_(context), random_(random), stream_(context) {
    std::byte* const memory = map(nullptr, k_pages, PROT_READ | PROT_WRITE);
    for (std::size_t i = 0; i < k_pages; ++i) pages_[i].at = memory + i * k_page;
    context.register_memory(memory, k_pages * k_page);
  }
  ~Application() {
    for (const Page& page : pages_) munmap(page.at, k_page);
  }
  Application(const Application&) = delete;
  Application& operator=(const Application&) = delete;

  // One call, on a run of pages that are next to each other in memory.
  void step(Progress& progress) {
    const std::size_t first = random_.chance(30) ? random_.below(4) * 512 % k_pages : random_.below(k_pages);
    std::size_t count = random_.chance(30) ? 512 : random_.below(random_.chance(70) ? 40 : k_pages) + 1;
    count = run_from(first, count);
    std::byte* const p = pages_[first].at;
    const std::size_t bytes = count * k_page;
    const bool managed = pages_[first].managed;
    const std::uint64_t call = random_.below(20);
    for (std::size_t i = first; i < first + count; ++i) pages_[i].calls += "DDDHAAWWRRKKKXPMMMFU"[call];
    switch (call) {
      case 0:
      case 1:
      case 2:
        progress.at("prefetching to a device");
        if (managed) context_.prefetch(p, bytes, static_cast<hmmrt_location_t>(random_.below(2)));
        break;
      case 3:
        progress.at("prefetching home");
        if (managed) context_.prefetch(p, bytes, HMMRT_CPU);
        break;
      case 4:
      case 5:
        progress.at("advising");
        if (managed) {
          context_.advise(p, bytes, random_.chance(70) ? HMMRT_ADVISE_SET_READ_MOSTLY : HMMRT_ADVISE_UNSET_READ_MOSTLY,
                          0);
        }
        break;
      case 6:
      case 7:
        progress.at("writing");
        for (std::size_t i = first; i < first + count; i += 1 + random_.below(7)) {
          word(i) = pages_[i].value = random_.next();
        }
        break;
      case 8:
      case 9:
        progress.at("reading");
        check(first, count);
        break;
      case 10:
      case 11:
      case 12:
        progress.at("launching");
        if (!managed) break;
        stream_.launch("increment", count, Increment{hmmrt::gptr<std::uint64_t>(words(p) + k_word)});
        hmmrt::check(hmmrt_stream_synchronize(stream_.get()));
        for (std::size_t i = first; i < first + count; ++i) ++pages_[i].value;
        break;
      case 13:
        progress.at("dropping");
        ASSERT_EQ(madvise(p, bytes, MADV_DONTNEED), 0);
        for (std::size_t i = first; i < first + count; ++i) pages_[i].value = 0;
        break;
      case 14:
        progress.at("protecting");
        ASSERT_EQ(mprotect(p, bytes, random_.chance(50) ? PROT_READ : PROT_NONE), 0);
        if (managed && random_.chance(50)) context_.prefetch(p, bytes, random_.chance(50) ? 0 : HMMRT_CPU);
        ASSERT_EQ(mprotect(p, bytes, PROT_READ | PROT_WRITE), 0);
        break;
      case 15:
      case 16:
      case 17:
        progress.at("moving");
        if (managed) move(first, count);
        break;
      case 18:
        progress.at("forking");
        if (random_.chance(30)) fork_and_check();
        break;
      default:
        progress.at("unmapping");
        if (random_.chance(10)) replace(first, std::min<std::size_t>(count, 30));
        break;
    }
  }

  void check_all() {
    for (std::size_t i = 0; i < k_pages; ++i) check(i, 1);
  }
  const Wrong& wrong() const { return wrong_; }

 private:
  static std::byte* map(std::byte* where, std::size_t pages, int protection) {
    void* const p = mmap(where, pages * k_page, protection,
                         MAP_PRIVATE | MAP_ANONYMOUS | (where != nullptr ? MAP_FIXED_NOREPLACE : 0), -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
  }
  static std::uint64_t* words(std::byte* p) { return reinterpret_cast<std::uint64_t*>(p); }
  volatile std::uint64_t& word(std::size_t page) { return *(words(pages_[page].at) + k_word); }
  void check(std::size_t first, std::size_t count) {
    for (std::size_t i = first; i < first + count; ++i) {
      const std::uint64_t got = word(i);
      if (got == pages_[i].value) continue;
      if (!wrong_.any()) {
        ADD_FAILURE() << "page " << i << " was in the calls " << pages_[i].calls
                      << " (Device, Home, Advise, Write, Read, Kernel, X dropped, Protect, Move, Fork, Unmap)";
      }
      wrong_.report("the application", i, got, pages_[i].value);
    }
  }
  // How many pages from `first` on, at most `limit`, lie side by side and are managed or not alike.
  std::size_t run_from(std::size_t first, std::size_t limit) const {
    std::size_t n = 1;
    while (n < limit && first + n < k_pages && pages_[first + n].at == pages_[first].at + n * k_page &&
           pages_[first + n].managed == pages_[first].managed) {
      ++n;
    }
    return n;
  }
  void move(std::size_t first, std::size_t count) {
    std::byte* const target = map(nullptr, count, PROT_NONE);
    void* const moved = mremap(pages_[first].at, count * k_page, count * k_page, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (moved == MAP_FAILED && errno == EFAULT) return;  // two mappings: not in one call. What became of target is open
    ASSERT_EQ(moved, target) << std::strerror(errno);
    for (std::size_t i = 0; i < count; ++i) pages_[first + i].at = target + i * k_page;
  }
  // What is mapped into the hole is plain memory.
  void replace(std::size_t first, std::size_t count) {
    ASSERT_EQ(munmap(pages_[first].at, count * k_page), 0);
    for (std::size_t i = first; i < first + count; ++i) {
      // Somebody else may have been given the hole meanwhile.
      if (map(pages_[i].at, 1, PROT_READ | PROT_WRITE) == nullptr)
        pages_[i].at = map(nullptr, 1, PROT_READ | PROT_WRITE);
      pages_[i].value = 0;
      pages_[i].managed = false;
    }
    check(first, count);
  }
  void fork_and_check() {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (std::size_t i = 0; i < k_pages; ++i) {
        if (word(i) != pages_[i].value) _exit(1);
      }
      _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    if (status != 0) wrong_.report("a child", 0, static_cast<std::uint64_t>(status), 0);
  }

  hmmrt::context& context_;
  Random& random_;
  hmmrt::stream stream_;
  Page pages_[k_pages];
  Wrong wrong_;
};

class Mappings : public testing::TestWithParam<const char*> {};

TEST_P(Mappings, contents_survive_whatever_the_application_does_to_them) {
  const auto end = end_of_share(0.15);
  std::uint64_t steps = 0;
  for (std::uint64_t round = 0; !HasFailure() && (round < 2 || Clock::now() < end); ++round) {
    Random random(seed() * 100 + round);
    const std::vector<hmmrt::option> options = {
        {"host_path", GetParam()},
        {"policy", random.of({"adaptive", "uvm", "first_touch_2m", "first_touch_4k"})},
        {"devices", "2"},
        {"device_memory", random.of({"4M", "64M"})},
        {"system_atomics", random.of({"on", "on", "off"})},
    };
    SCOPED_TRACE("round " + std::to_string(round) + ", policy " + options[1].second);
    STRESS_CONTEXT(context, options);
    Application application(*context, random);
    Watchdog dog(context->get());
    Progress& progress = dog.watch("the application");
    for (unsigned i = 0; i < 150 && !application.wrong().any() && !HasFailure(); ++i, ++steps)
      application.step(progress);
    progress.at("destroying the context");
    application.check_all();
    dog.forget(progress);
    application.wrong().expect_none();
  }
  std::printf("%s: %llu calls\n", GetParam(), static_cast<unsigned long long>(steps));
}
INSTANTIATE_TEST_SUITE_P(each, Mappings, testing::Values("auto", "fallback"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
