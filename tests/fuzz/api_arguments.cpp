// SPDX-License-Identifier: MIT
// Random arguments to every entry point: no crash, no hang, and every failure says why.
//   fuzz_api_arguments [--seconds N] [--iterations N] [--seed S]        (or HMMRT_TEST_SEED; the seed is printed)
// An ordinary executable. What it passes is wrong in every way that a careful caller of C can be wrong in: values,
// handles and addresses are arbitrary; output buffers and structs have the room that their size says.
#include <hmmrt/hmmrt.h>
#include <sys/mman.h>

#include <array>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <hmmrt/kernel.hpp>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::size_t k_page = 4096;
constexpr std::size_t k_room = 8192;  // bytes behind every struct given

void do_nothing(const void*, const hmmrt_grid_t*, std::uint64_t, std::uint64_t) {}
void nothing(void*) {}

class Fuzzer {
 public:
  explicit Fuzzer(std::uint64_t seed) : random_(seed) {
    // Guarded, so that a registration that begins here cannot reach somebody else's memory.
    guarded_ =
        static_cast<char*>(mmap(nullptr, k_guarded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    foreign_ = guarded_ + 64 * k_page;
    (void)mprotect(foreign_, 64 * k_page, PROT_READ | PROT_WRITE);
    renew_context();
  }
  ~Fuzzer() {
    for (const hmmrt_context_t c : contexts_) (void)hmmrt_context_destroy(c);
    munmap(guarded_, k_guarded);
  }
  Fuzzer(const Fuzzer&) = delete;
  Fuzzer& operator=(const Fuzzer&) = delete;

  void step();
  std::uint64_t succeeded() const { return succeeded_; }
  std::uint64_t failed() const { return failed_; }

 private:
  std::uint64_t any() { return random_(); }
  std::uint64_t below(std::uint64_t n) { return random_() % n; }
  template <class T>
  T pick(const std::vector<T>& from, T otherwise) {
    return from.empty() ? otherwise : from[below(from.size())];
  }

  std::size_t size() {
    switch (below(8)) {
      case 0:
        return 0;
      case 1:
        return any();
      case 2:
        return SIZE_MAX - below(5000);
      case 3:
        return k_page * below(600);
      case 4:
        return (std::size_t{2} << 20) + below(3) - 1;
      default:
        return 1 + below(20'000);
    }
  }
  void* address() {
    switch (below(8)) {
      case 0:
        return nullptr;
      case 1:
        return reinterpret_cast<void*>(any());
      case 2:
        return foreign_ + below(64) * k_page;
      case 3:
        return foreign_ + below(64 * k_page);
      case 4:
        return static_cast<char*>(pick<void*>(memory_, foreign_)) + below(3 * k_page);
      default:
        return pick<void*>(memory_, nullptr);
    }
  }
  template <class H>
  H handle(const std::vector<H>& live, const std::vector<H>& dead) {
    switch (below(12)) {
      case 0:
        return nullptr;
      case 1:
        return reinterpret_cast<H>(any());
      case 2:
        return reinterpret_cast<H>(reinterpret_cast<std::uintptr_t>(pick<H>(live, nullptr)) ^
                                   (std::uintptr_t{1} << below(64)));
      case 3:
        return pick<H>(dead, nullptr);
      case 4:
        return reinterpret_cast<H>(pick<hmmrt_stream_t>(streams_, nullptr));
      default:
        return pick<H>(live, nullptr);
    }
  }
  hmmrt_context_t context() { return handle(contexts_, dead_contexts_); }
  hmmrt_stream_t stream() { return handle(streams_, dead_streams_); }
  hmmrt_event_t event() { return handle(events_, dead_events_); }
  hmmrt_location_t location() {
    return below(4) == 0 ? static_cast<hmmrt_location_t>(any()) : static_cast<hmmrt_location_t>(below(5)) - 3;
  }
  // A struct of a random size, with room for any size that the library might believe.
  template <class T>
  T* sized(std::array<std::uint64_t, k_room / 8>& room) {
    for (auto& word : room) word = below(3) == 0 ? any() : 0;
    const std::size_t sizes[] = {sizeof(T), sizeof(T), sizeof(T), 0, below(4096), any()};
    room[0] = sizes[below(6)];
    return reinterpret_cast<T*>(room.data());
  }

  bool judge(hmmrt_result_t result, const char* what);
  void renew_context();
  void memory_step();
  void object_step();
  void question_step();

  std::mt19937_64 random_;
  static constexpr std::size_t k_guarded = std::size_t{64} << 20;
  char* guarded_ = nullptr;
  char* foreign_ = nullptr;  // plain memory of the application
  std::vector<void*> memory_;
  std::vector<hmmrt_context_t> contexts_, dead_contexts_;
  std::vector<hmmrt_stream_t> streams_, dead_streams_;
  std::vector<hmmrt_event_t> events_, dead_events_;
  std::uint64_t succeeded_ = 0, failed_ = 0;
};

bool Fuzzer::judge(hmmrt_result_t result, const char* what) {
  if (result == HMMRT_SUCCESS) return ++succeeded_, true;
  ++failed_;
  if (std::strcmp(hmmrt_result_name(result), "HMMRT_ERROR_UNKNOWN") == 0 || *hmmrt_last_error_detail() == '\0' ||
      result == HMMRT_ERROR_INTERNAL) {
    std::fprintf(stderr, "%s: result %d, detail '%s'\n", what, static_cast<int>(result), hmmrt_last_error_detail());
    std::abort();
  }
  return false;
}
#define JUDGE(call) judge((call), #call)

void Fuzzer::renew_context() {
  for (const hmmrt_context_t c : contexts_) {
    JUDGE(hmmrt_context_destroy(c));
    dead_contexts_.push_back(c);
  }
  contexts_.clear();
  dead_streams_.insert(dead_streams_.end(), streams_.begin(), streams_.end());
  dead_events_.insert(dead_events_.end(), events_.begin(), events_.end());
  streams_.clear();
  events_.clear();
  memory_.clear();
  const hmmrt_option_t options[] = {{"device_memory", "8M"}, {"arena_bytes", "8M"}, {"devices", "2"}};
  hmmrt_context_desc_t desc = HMMRT_CONTEXT_DESC_INIT;
  desc.options = options;
  desc.option_count = 3;
  hmmrt_context_t c = nullptr;
  if (!JUDGE(hmmrt_context_create(&desc, &c))) {
    std::fprintf(stderr, "no context: %s\n", hmmrt_last_error_detail());
    std::exit(1);
  }
  contexts_.push_back(c);
}

void Fuzzer::memory_step() {
  switch (below(12)) {
    case 0:
    case 1: {
      void* p = nullptr;
      // Sizes that succeed stay small enough for the machine.
      const std::size_t bytes = below(4) == 0 ? (below(2) == 0 ? 0 : SIZE_MAX - below(std::size_t{1} << 47))
                                              : 1 + below(std::size_t{3} << 20);
      if (JUDGE(hmmrt_alloc(context(), bytes, below(20) == 0 ? nullptr : &p)) && p != nullptr) {
        std::memset(p, 1, bytes < 5000 ? bytes : 5000);
        memory_.push_back(p);
      }
      break;
    }
    case 2:
    case 3: {
      void* p = address();
      if (JUDGE(hmmrt_free(context(), p)) && p != nullptr) std::erase(memory_, p);
      break;
    }
    case 4:
      JUDGE(hmmrt_register(context(), address(), size()));
      break;
    case 5:
      JUDGE(hmmrt_unregister(context(), address()));
      break;
    case 6:
      JUDGE(hmmrt_prefetch(context(), address(), size(), location(), below(2) == 0 ? nullptr : stream()));
      break;
    case 7: {
      const std::size_t count = below(5);
      std::array<const void*, 4> ptrs{};
      std::array<std::size_t, 4> bytes{}, index{};
      std::array<hmmrt_location_t, 4> to{};
      for (std::size_t i = 0; i < 4; ++i)
        ptrs[i] = address(), bytes[i] = size(), index[i] = i + below(2) * below(3), to[i] = location();
      JUDGE(hmmrt_prefetch_batch(context(), below(20) == 0 ? nullptr : ptrs.data(), bytes.data(), count, to.data(),
                                 index.data(), below(5), below(2) == 0 ? nullptr : stream()));
      break;
    }
    case 8:
      JUDGE(hmmrt_discard(context(), address(), size(), below(2) == 0 ? nullptr : stream()));
      break;
    case 9:
      JUDGE(hmmrt_advise(context(), address(), size(), static_cast<hmmrt_advice_t>(below(9)), location()));
      break;
    case 10:
      JUDGE(hmmrt_pin(context(), address(), size()));
      break;
    default:
      JUDGE(hmmrt_unpin(context(), address(), size()));
      break;
  }
}

void Fuzzer::object_step() {
  std::array<std::uint64_t, k_room / 8> room;
  switch (below(14)) {
    case 0: {
      hmmrt_stream_t s = nullptr;
      if (streams_.size() < 8 && JUDGE(hmmrt_stream_create(context(), static_cast<std::uint32_t>(below(4)), &s)))
        streams_.push_back(s);
      break;
    }
    case 1: {
      const hmmrt_stream_t s = stream();
      if (below(3) == 0 && JUDGE(hmmrt_stream_destroy(s))) {
        std::erase(streams_, s);
        dead_streams_.push_back(s);
      }
      break;
    }
    case 2:
      JUDGE(hmmrt_stream_synchronize(stream()));
      break;
    case 3:
      JUDGE(hmmrt_stream_query(stream()));
      JUDGE(hmmrt_stream_attach(stream(), below(8) == 0 ? nullptr : address(), below(8) == 0 ? 0 : size()));
      break;
    case 4:
      JUDGE(hmmrt_stream_wait_event(stream(), event()));
      break;
    case 5:
      JUDGE(hmmrt_stream_host_function(stream(), below(4) == 0 ? nullptr : &nothing, nullptr));
      break;
    case 6: {
      hmmrt_event_t e = nullptr;
      if (events_.size() < 8 && JUDGE(hmmrt_event_create(context(), below(20) == 0 ? nullptr : &e)))
        events_.push_back(e);
      break;
    }
    case 7: {
      const hmmrt_event_t e = event();
      if (below(3) == 0 && JUDGE(hmmrt_event_destroy(e))) {
        std::erase(events_, e);
        dead_events_.push_back(e);
      }
      break;
    }
    case 8:
      JUDGE(hmmrt_event_record(event(), stream()));
      break;
    case 9:
      JUDGE(hmmrt_event_synchronize(event()));
      break;
    case 10: {
      float ms = 0;
      JUDGE(hmmrt_event_query(event()));
      JUDGE(hmmrt_event_elapsed(event(), event(), below(20) == 0 ? nullptr : &ms));
      break;
    }
    case 11: {
      auto* k = sized<hmmrt_kernel_t>(room);
      k->name = below(20) == 0 ? nullptr : "fuzz";
      k->run = below(20) == 0 ? nullptr : &do_nothing;
      k->functor = below(4) == 0 ? nullptr : foreign_;
      k->functor_bytes = below(3) == 0 ? size() : below(4097);
      k->run_gpu = nullptr;
      hmmrt_extent_t extents[3];
      for (hmmrt_extent_t& e : extents) e = {address(), size()};
      k->extents = below(8) == 0 ? nullptr : extents;
      k->extent_count = below(4) == 0 ? any() | 1 << 20 : below(4);
      const std::uint64_t x = below(4) == 0 ? any() : below(3000);
      JUDGE(hmmrt_launch(stream(), k, x > 3000 ? hmmrt_grid_t{x, any(), any() | 1} : hmmrt_grid_t{x, below(3), 1}));
      break;
    }
    case 12: {
      // Touches memory that may be managed, or not: the launch fails, nothing else does.
      struct Poke {
        hmmrt::gptr<unsigned char> p;
        void operator()(const hmmrt::item& i) const { p[static_cast<std::ptrdiff_t>(i.x * 512)] = 2; }
      };
      JUDGE(hmmrt::launch(stream(), "poke", {1 + below(40), 1, 1}, Poke{static_cast<unsigned char*>(address())}));
      break;
    }
    default:
      JUDGE(hmmrt_context_synchronize(context()));
      break;
  }
}

void Fuzzer::question_step() {
  std::array<std::uint64_t, k_room / 8> room;
  std::array<std::int32_t, 16> data{};
  switch (below(10)) {
    case 0:
      JUDGE(hmmrt_context_get_info(context(), sized<hmmrt_context_info_t>(room)));
      break;
    case 1:
      JUDGE(hmmrt_device_get_info(context(), static_cast<std::uint32_t>(below(4)), sized<hmmrt_device_info_t>(room)));
      break;
    case 2:
      JUDGE(hmmrt_stats_context(context(), sized<hmmrt_stats_t>(room)));
      break;
    case 3:
      JUDGE(hmmrt_stats_device(context(), static_cast<std::uint32_t>(below(4)), sized<hmmrt_stats_t>(room)));
      break;
    case 4:
      JUDGE(hmmrt_stats_range(context(), address(), sized<hmmrt_stats_t>(room)));
      break;
    case 5:
      JUDGE(hmmrt_option_get_info(static_cast<std::uint32_t>(below(64)), sized<hmmrt_option_info_t>(room)));
      break;
    case 6: {
      const char* value = nullptr;
      const char* const names[] = {"policy", "devices", "nothing", "", nullptr};
      JUDGE(hmmrt_option_get(context(), names[below(5)], below(20) == 0 ? nullptr : &value));
      break;
    }
    case 7: {
      const std::size_t bytes = below(2) == 0 ? 4 : below(sizeof data + 1);
      const auto attribute = static_cast<hmmrt_range_attribute_t>(below(5) == 0 ? 100 : below(7));
      JUDGE(hmmrt_range_get_attribute(context(), below(20) == 0 ? nullptr : data.data(), bytes, attribute, address(),
                                      size()));
      break;
    }
    case 8:
      JUDGE(hmmrt_stats_reset(context()));
      break;
    default: {
      std::uint32_t n = 0;
      JUDGE(hmmrt_device_count(context(), below(20) == 0 ? nullptr : &n));
      std::string junk(below(20), 'x');
      for (char& c : junk) c = static_cast<char>(1 + below(126));
      const hmmrt_option_t option = {below(2) == 0 ? "devices" : junk.c_str(), below(9) == 0 ? nullptr : junk.c_str()};
      auto* desc = sized<hmmrt_context_desc_t>(room);
      desc->options = &option;
      desc->option_count = 1;
      hmmrt_context_t c = nullptr;
      if (below(4) == 0 && JUDGE(hmmrt_context_create(desc, &c))) JUDGE(hmmrt_context_destroy(c));
      break;
    }
  }
}

void Fuzzer::step() {
  switch (below(500)) {
    case 0:
      renew_context();
      break;
    default:
      switch (below(3)) {
        case 0:
          memory_step();
          break;
        case 1:
          object_step();
          break;
        default:
          question_step();
          break;
      }
  }
}

std::uint64_t number(const char* text) { return std::strtoull(text, nullptr, 0); }

}  // namespace

int main(int argc, char** argv) {
  double seconds = 10;
  std::uint64_t iterations = ~std::uint64_t{0};
  const char* from_environment = std::getenv("HMMRT_TEST_SEED");
  std::uint64_t seed = from_environment != nullptr ? number(from_environment) : std::random_device{}();
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--seconds") seconds = std::atof(argv[i + 1]);
    if (name == "--iterations") iterations = number(argv[i + 1]);
    if (name == "--seed") seed = number(argv[i + 1]);
  }
  std::printf("seed %" PRIu64 "\n", seed);
  std::fflush(stdout);
  Fuzzer fuzzer(seed);
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t done = 0;
  while (done < iterations &&
         std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() < seconds) {
    fuzzer.step();
    ++done;
  }
  std::printf("%" PRIu64 " steps: %" PRIu64 " calls succeeded, %" PRIu64 " failed with a reason\n", done,
              fuzzer.succeeded(), fuzzer.failed());
  return 0;
}
