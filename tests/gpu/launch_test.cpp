// SPDX-License-Identifier: MIT
// GPUs without retryable faults: what a launch brings with it, and what happens when that cannot be. Over the stand-in for
// HIP, whose kernels stop the test at an access that no GPU could make; and, compiled by hipcc or nvcc, on real ones.
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "conformance/api_environment.hpp"

namespace api_test {
namespace {

using Buffer = hmmrt::managed_buffer<std::uint32_t>;
constexpr std::size_t k_mib = std::size_t{1} << 20;

class GpuLaunch : public ApiTest {
 protected:
  static constexpr std::size_t k_memory = 64 * k_mib;
  static void add_one(const hmmrt::stream& s, Buffer& b) { s.launch("add", b.size(), AddOne{b.gpu()}); }
};

struct Node {
  hmmrt::gptr<Node> next;
  std::uint64_t value;
};
struct Walk {
  hmmrt::gptr<Node> head;
  hmmrt::gptr<std::uint64_t> sum;
  HMMRT_KERNEL void operator()(const hmmrt::item&) const {
    for (hmmrt::gptr<Node> n = head; n; n = n->next) *sum += n->value;
  }
};

TEST_P(GpuLaunch, pointers_inside_managed_data_work) {
  const std::size_t count = 5000;
  hmmrt::managed_buffer<Node> nodes(context(), count);
  hmmrt::managed_buffer<std::uint64_t> sum(context(), 1);
  for (std::size_t i = 0; i < count; ++i) {
    nodes.data()[i] = {i + 1 < count ? hmmrt::gptr<Node>(&nodes.data()[(i + 1) * 4999 % count]) : nullptr, i};
  }
  nodes.data()[count - 1].next = nullptr;
  std::uint64_t want = 0;
  for (const Node* n = nodes.data(); n != nullptr; n = n->next.get()) want += n->value;
  const hmmrt::stream s(context(), last_device());
  s.launch("walk", 1, Walk{nodes.gpu(), sum.gpu()});
  s.synchronize();
  EXPECT_EQ(sum.data()[0], want);
  EXPECT_GT(want, 0u);
}

TEST_P(GpuLaunch, a_second_launch_moves_nothing) {
  Buffer b(context(), 8 * k_mib / 4);
  const hmmrt::stream s(context());
  add_one(s, b);
  s.synchronize();
  const std::uint64_t before = hmmrt::bytes_to_device(context().stats());
  for (int i = 0; i < 10; ++i) add_one(s, b);
  s.synchronize();
  EXPECT_EQ(hmmrt::bytes_to_device(context().stats()), before);
  for (std::size_t i = 0; i < b.size(); i += 999) ASSERT_EQ(b[i], 11u);
}

TEST_P(GpuLaunch, what_is_attached_comes_and_the_rest_stays) {
  NOT_DRIVEN("pages come when they are used");
  Buffer used(context(), 4 * k_mib / 4), other(context(), 4 * k_mib / 4);
  std::fill(used.begin(), used.end(), 1u);
  std::fill(other.begin(), other.end(), 1u);
  const hmmrt::stream s(context());
  s.attach(used.data(), used.bytes());
  add_one(s, used);
  s.synchronize();
  EXPECT_EQ(used.stats().bytes_resident_device, used.bytes());
  EXPECT_EQ(other.stats().bytes_resident_device, 0u);
  hmmrt::check(hmmrt_stream_attach(s.get(), nullptr, 0));
  add_one(s, used);
  s.synchronize();
  EXPECT_EQ(other.stats().bytes_resident_device, other.bytes());
  EXPECT_API_ERROR(hmmrt_stream_attach(s.get(), this, 8), HMMRT_ERROR_NOT_MANAGED, hex(this));
}

TEST_P(GpuLaunch, declared_extents_come_before_what_is_attached) {
  NOT_DRIVEN("pages come when they are used");
  Buffer a(context(), 2 * k_mib / 4), b(context(), 2 * k_mib / 4);
  const hmmrt::stream s(context());
  s.attach(a.data(), a.bytes());
  const hmmrt_extent_t extent{b.data(), b.bytes()};
  hmmrt::check(hmmrt::launch(s.get(), "add", {b.size(), 1, 1}, AddOne{b.gpu()}, &extent, 1));
  s.synchronize();
  EXPECT_EQ(a.stats().bytes_resident_device, 0u);
  EXPECT_EQ(b[5], 1u);
  const hmmrt_extent_t wrong{&extent, 4};
  EXPECT_API_ERROR(hmmrt::launch(s.get(), "add", {1, 1, 1}, AddOne{b.gpu()}, &wrong, 1), HMMRT_ERROR_NOT_MANAGED,
                   hex(&extent));
}

TEST_P(GpuLaunch, two_working_sets_take_turns_on_a_device_that_holds_one) {
  Buffer a(context(), 48 * k_mib / 4), b(context(), 48 * k_mib / 4);
  const hmmrt::stream sa(context()), sb(context());
  sa.attach(a.data(), a.bytes());
  sb.attach(b.data(), b.bytes());
  for (int round = 0; round < 3; ++round) {
    add_one(sa, a);
    sa.synchronize();
    add_one(sb, b);
    sb.synchronize();
  }
  if (!driven()) {  // whose reports may be lost
    EXPECT_GT(context().stats().evictions, 0u);
    EXPECT_EQ(context().stats().pages_mapped_remote, 0u);
  }
  for (std::size_t i = 0; i < a.size(); i += 1023) {
    ASSERT_EQ(a[i], 3u);
    ASSERT_EQ(b[i], 3u);
  }
}

TEST_P(GpuLaunch, both_at_once_and_every_increment_counts) {
  Buffer a(context(), 40 * k_mib / 4), b(context(), 40 * k_mib / 4);
  const auto work = [&](Buffer& mine) {
    const hmmrt::stream s(context(), &mine == &b ? last_device() : 0);
    s.attach(mine.data(), mine.bytes());
    for (int i = 0; i < 8; ++i) add_one(s, mine);
    s.synchronize();
  };
  std::thread other([&] { work(b); });
  work(a);
  other.join();
  for (std::size_t i = 0; i < a.size(); i += 511) {
    ASSERT_EQ(a[i], 8u);
    ASSERT_EQ(b[i], 8u);
  }
}

TEST_P(GpuLaunch, memory_that_goes_back_and_forth_stays_where_both_reach_it) {
  hmmrt::managed_buffer<unsigned char> b(context(), k_block);
  const hmmrt::stream s(context());
  constexpr int k_rounds = 250;  // a byte's worth
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < k_rounds; ++i) {
    s.launch("touch", k_block / k_page, Touch{b.gpu(), k_page});
    s.synchronize();
    for (std::size_t k = 1; k < b.size(); k += 16 * k_page) b[k] += 1;
  }
  for (std::size_t k = 0; k < b.size(); k += 16 * k_page) {
    ASSERT_EQ(b[k], k_rounds);
    ASSERT_EQ(b[k + 1], k_rounds);
  }
  // Slower than this (sanitizers, a busy machine), each stay may be worth its move.
  if (std::chrono::steady_clock::now() - began > k_rounds * std::chrono::milliseconds(5)) return;
  EXPECT_GT(context().stats().pages_mapped_remote, 0u);
  EXPECT_LT(hmmrt::bytes_to_device(context().stats()), b.bytes() * k_rounds / 4);
}

TEST_P(GpuLaunch, a_kernel_and_the_cpu_talk_over_pinned_memory) {
  hmmrt::managed_buffer<std::uint64_t> count(context(), 1);
  hmmrt::managed_buffer<std::uint32_t> stop(context(), 1);
  hmmrt::check(hmmrt_pin(handle(), count.data(), 8));
  hmmrt::check(hmmrt_pin(handle(), stop.data(), 4));
  const hmmrt::stream s(context(), last_device());
  s.launch("spin", 1, Spin{count.gpu(), stop.gpu()});
  auto* seen = count.data();
  while (__atomic_load_n(seen, __ATOMIC_RELAXED) < 100) std::this_thread::yield();
  __atomic_store_n(stop.data(), 1u, __ATOMIC_RELEASE);
  s.synchronize();
  EXPECT_GE(*seen, 100u);
  hmmrt::check(hmmrt_unpin(handle(), count.data(), 8));
  hmmrt::check(hmmrt_unpin(handle(), stop.data(), 4));
}

TEST_P(GpuLaunch, without_remote_mapping_a_launch_says_what_is_in_the_way) {
  NOT_DRIVEN("nothing is in the way");
  open({{"remote_mapping", "off"}});
  {
    Buffer b(context(), k_mib);
    hmmrt::check(hmmrt_pin(handle(), b.data(), k_page));
    const hmmrt::stream s(context());
    add_one(s, b);
    EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_PINNED, "'add'");
    hmmrt::check(hmmrt_unpin(handle(), b.data(), k_page));
    add_one(s, b);
    s.synchronize();
    EXPECT_EQ(b[7], 1u);
  }
  Buffer large(context(), 2 * k_memory / 4);
  const hmmrt::stream s(context());
  s.launch("touch", 1, Touch{hmmrt::gptr<unsigned char>(reinterpret_cast<unsigned char*>(large.data())), 1});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_DEVICE_FULL, "extents");
}

TEST_P(GpuLaunch, writes_to_what_the_cpu_may_only_read_are_lost) {
  NOT_DRIVEN("a forbidden access ends the process");
  const Mapping m(2 * k_block);
  std::memset(m.get(), 7, 2 * k_block);
  hmmrt::check(hmmrt_register(handle(), m.get(), 2 * k_block));
  const hmmrt::stream s(context());
  s.launch("fill", k_block / 4, Fill{hmmrt::gptr<std::uint32_t>(m.words()), 0});
  s.synchronize();
  ASSERT_EQ(mprotect(m.get(), k_block, PROT_READ), 0);
  s.launch("touch", 2 * k_block / k_page,
           Touch{hmmrt::gptr<unsigned char>(reinterpret_cast<unsigned char*>(m.get())), k_page});
  s.synchronize();
  for (std::size_t i = 0; i < k_block / 4; ++i) ASSERT_EQ(m.words()[i], i);
  for (std::size_t i = k_block; i < 2 * k_block; i += k_page) ASSERT_EQ(m.get()[i], 8);
  hmmrt::check(hmmrt_unregister(handle(), m.get()));
}

// No GPU's driver pins for writing what may only be read.
TEST_P(GpuLaunch, what_the_cpu_may_only_read_is_not_mapped_where_it_is) {
  NOT_DRIVEN("nothing is brought here for a launch");
  const Mapping m(k_block);
  hmmrt::check(hmmrt_register(handle(), m.get(), k_block));
  Buffer b(context(), k_block / 4), pinned(context(), k_block / 4);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = pinned[i] = 1;
  m.words()[0] = 3;
  ASSERT_EQ(mprotect(m.get(), 3 * k_page, PROT_READ), 0);
  const hmmrt::stream s(context());
  add_one(s, b);
  s.synchronize();
  context().pin(pinned.data(), pinned.bytes());
  add_one(s, b);
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_PINNED, "may only read");
  const hmmrt_extent_t only{b.data(), b.bytes()};
  hmmrt::check(hmmrt::launch(s.get(), "add", {b.size(), 1, 1}, AddOne{b.gpu()}, &only, 1));
  s.synchronize();
  context().unpin(pinned.data(), pinned.bytes());
  add_one(s, b);
  s.synchronize();
  for (std::size_t i = 0; i < b.size(); i += 999) ASSERT_EQ(b[i], 4u);
  EXPECT_EQ(m.words()[0], 3u);
  hmmrt::check(hmmrt_unregister(handle(), m.get()));
}

// Nor is it lost what a kernel wrote there only as long as nobody else may write: the device's copy goes when that changes.
TEST_P(GpuLaunch, what_a_kernel_wrote_to_a_copy_stays_lost_when_writing_is_allowed_again) {
  NOT_DRIVEN("a forbidden access ends the process");
  const Mapping m(k_block);
  std::memset(m.get(), 7, k_block);
  hmmrt::check(hmmrt_register(handle(), m.get(), k_block));
  const hmmrt::stream s(context());
  const Touch touch{hmmrt::gptr<unsigned char>(reinterpret_cast<unsigned char*>(m.get())), k_page};
  ASSERT_EQ(mprotect(m.get(), k_block, PROT_READ), 0);
  s.launch("touch", k_block / k_page, touch);
  s.synchronize();
  ASSERT_EQ(mprotect(m.get(), k_block, PROT_READ | PROT_WRITE), 0);
  s.launch("touch", k_block / k_page, touch);
  s.synchronize();
  for (std::size_t i = 0; i < k_block; i += k_page) ASSERT_EQ(m.get()[i], 8);
  hmmrt::check(hmmrt_unregister(handle(), m.get()));
}

TEST_P(GpuLaunch, what_was_pinned_for_a_while_goes_to_the_gpu_again) {
  NOT_DRIVEN("the driver decides");
  Buffer b(context(), k_mib / 4), other(context(), k_block / 4);
  const hmmrt::stream s(context());
  context().pin(other.data(), k_page);
  add_one(s, b);
  s.synchronize();
  EXPECT_EQ(b.stats().bytes_resident_device, 0u);
  context().unpin(other.data(), k_page);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  std::uint32_t launches = 1;
  for (; b.stats().bytes_resident_device == 0 && std::chrono::steady_clock::now() < end; ++launches) {
    add_one(s, b);
    s.synchronize();
  }
  EXPECT_EQ(b.stats().bytes_resident_device, b.bytes());
  for (std::size_t i = 0; i < b.size(); i += 99) ASSERT_EQ(b[i], launches);
}

// A wait for kernels ends with those that were there when it began.
TEST_P(GpuLaunch, the_cpu_gets_a_page_while_a_stream_is_never_idle) {
  NOT_DRIVEN("the driver serves the CPU");
  Buffer a(context(), k_block / 4), mine(context(), k_block / 4);
  const hmmrt::stream s(context());
  const hmmrt_extent_t ours{a.data(), a.bytes()}, theirs{mine.data(), mine.bytes()};
  hmmrt::check(hmmrt::launch(s.get(), "add", {a.size(), 1, 1}, AddOne{a.gpu()}, &ours, 1));
  s.synchronize();
  std::atomic<bool> stop{false};
  std::atomic<int> ahead{0};
  std::thread other([&] {
    const hmmrt::stream busy(context());
    while (!stop.load()) {  // always one more than has ended
      if (ahead.load() > 1) continue;
      ++ahead;
      (void)hmmrt::launch(busy.get(), "add", {mine.size(), 1, 1}, AddOne{mine.gpu()}, &theirs, 1);
      busy.host_function([](void* n) { --*static_cast<std::atomic<int>*>(n); }, &ahead);
    }
    busy.synchronize();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(a[7], 1u);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  stop = true;
  other.join();
}

// Two buffers change places, again and again, while launches bring whatever is managed: at every moment some of it is
// somewhere else than it was a moment ago.
TEST_P(GpuLaunch, buffers_that_change_places_keep_their_contents) {
  NOT_DRIVEN("registrations do not follow mremap");
  constexpr std::size_t k_words = k_block / 4;
  // Where nobody else maps anything into what is left behind.
  void* const room = mmap(reinterpret_cast<void*>(std::uintptr_t{0x7e9000000000}), 5 * k_block, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  ASSERT_NE(room, MAP_FAILED);
  const auto base = reinterpret_cast<std::uintptr_t>(room);
  const auto at = [&](unsigned i) { return reinterpret_cast<std::uint32_t*>(base + i * k_block); };
  for (const unsigned i : {0u, 2u}) hmmrt::check(hmmrt_register(handle(), at(i), k_block));
  std::uint32_t values[] = {0x0a000000, 0x0d000000};
  for (std::size_t i = 0; i < k_words; ++i) at(0)[i] = values[0] + static_cast<std::uint32_t>(i);
  for (std::size_t i = 0; i < k_words; ++i) at(2)[i] = values[1] + static_cast<std::uint32_t>(i);
  Buffer used(context(), 1024);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    const hmmrt::stream s(context());
    while (!stop.load()) {
      for (int i = 0; i < 20; ++i) {
        s.host_function([](void*) { std::this_thread::sleep_for(std::chrono::microseconds(300)); }, nullptr);
        (void)hmmrt::launch(s.get(), "add", {1, 1, 1}, AddOne{used.gpu()});
      }
      (void)hmmrt_stream_synchronize(s.get());
    }
  });
  const auto move = [&](unsigned from, unsigned to) {
    ASSERT_NE(mremap(at(from), k_block, k_block, MREMAP_MAYMOVE | MREMAP_FIXED, at(to)), MAP_FAILED);
  };
  std::size_t wrong = 0;
  for (int swap = 0; swap < 150 && wrong == 0; ++swap) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    move(0, 4);
    move(2, 0);
    move(4, 2);
    std::swap(values[0], values[1]);
    for (std::size_t i = 0; i < k_words; ++i) {
      wrong += at(0)[i] != values[0] + i;
      wrong += at(2)[i] != values[1] + i;
    }
    EXPECT_EQ(wrong, 0u) << swap;
  }
  stop = true;
  other.join();
  for (const unsigned i : {0u, 2u}) EXPECT_TRUE(hmmrt_unregister(handle(), at(i)) == HMMRT_SUCCESS);
  munmap(room, 5 * k_block);
}

// Device memory has the order of the addresses: what changes its address cannot stay, and makes room for what comes there.
TEST_P(GpuLaunch, what_mremap_moved_is_used_at_its_new_address) {
  NOT_DRIVEN("registrations do not follow mremap");
  constexpr std::size_t k_bytes = 2 * k_block, k_words = k_bytes / 4;
  const auto map = [] {  // where nobody else maps anything into what mremap leaves behind
    return mmap(reinterpret_cast<void*>(std::uintptr_t{0x7e9000000000}), k_bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  };
  void* const first = map();
  ASSERT_NE(first, MAP_FAILED);
  auto* const words = static_cast<std::uint32_t*>(first);
  for (std::size_t i = 0; i < k_words; ++i) words[i] = 1;
  hmmrt::check(hmmrt_register(handle(), first, k_bytes));
  const hmmrt::stream s(context());
  const auto add = [&](std::uint32_t* at) {
    s.launch("add", k_words, AddOne{hmmrt::gptr<std::uint32_t>(at)});
    s.synchronize();
  };
  add(words);
  void* const target = mmap(nullptr, k_bytes + k_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* const moved = static_cast<std::uint32_t*>(
      mremap(first, k_bytes, k_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, static_cast<char*>(target) + k_page));
  ASSERT_NE(moved, MAP_FAILED) << std::strerror(errno);
  ASSERT_EQ(map(), first);
  for (std::size_t i = 0; i < k_words; ++i) words[i] = 100;
  hmmrt::check(hmmrt_register(handle(), first, k_bytes));
  add(words);
  add(moved);
  for (std::size_t i = 0; i < k_words; ++i) ASSERT_EQ(moved[i], 3u) << i;
  for (std::size_t i = 0; i < k_words; ++i) ASSERT_EQ(words[i], 101u) << i;
  hmmrt::check(hmmrt_unregister(handle(), first));
  hmmrt::check(hmmrt_unregister(handle(), moved));
  munmap(first, k_bytes);
  munmap(target, k_bytes + k_page);
}

TEST_P(GpuLaunch, a_kernel_without_code_for_a_gpu_is_refused) {
  hmmrt_kernel_t k{};
  k.size = sizeof k;
  k.name = "plain";
  k.run = [](const void*, const hmmrt_grid_t*, std::uint64_t, std::uint64_t) {};
  const hmmrt::stream s(context());
  EXPECT_API_ERROR(hmmrt_launch(s.get(), &k, {1, 1, 1}), HMMRT_ERROR_NOT_SUPPORTED, "hipcc");
}

TEST_P(GpuLaunch, devices_that_are_not_there_are_named) {
  const auto create = [](const char* device, const char* host = "auto") {
    const hmmrt_option_t options[] = {{"device", device}, {"host_mirror", host}};
    hmmrt_context_desc_t desc{};
    desc.size = sizeof desc;
    desc.options = options;
    desc.option_count = 2;
    hmmrt_context_t c = nullptr;
    return hmmrt_context_create(&desc, &c);
  };
  EXPECT_API_ERROR(create("gpu:70"), HMMRT_ERROR_INVALID_DEVICE, "no GPU 70");
  EXPECT_API_ERROR(create("gpu:0,gpu:90"), HMMRT_ERROR_INVALID_DEVICE, "no GPU 90");
  for (const char* wrong : {"gpux", "gpu:", "gpu:-1", "gpu:0,", "gpu:0,soft", ",", "gpu,gpu"}) {
    EXPECT_API_ERROR(create(wrong), HMMRT_ERROR_INVALID_OPTION, wrong);
  }
  EXPECT_API_ERROR(create("gpu", "shim"), HMMRT_ERROR_INVALID_OPTION, "host_mirror");
}

// Threads that write, launch and prefetch on memory of their own, in one context; a model says what must come out.
TEST_P(GpuLaunch, random_use_matches_a_model) {
  constexpr std::size_t k_words = 6 * k_mib / 4;
  std::atomic<int> wrong{0};
  const auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    Buffer b(context(), k_words);
    std::vector<std::uint32_t> model(k_words, 0);
    std::vector<hmmrt::stream> streams;
    for (unsigned d = 0; d <= last_device(); ++d) {
      streams.emplace_back(context(), d);
      if (seed % 2 == 0) streams.back().attach(b.data(), b.bytes());
    }
    for (int step = 0; step < 60; ++step) {
      const std::size_t first = random() % k_words, n = 1 + random() % (k_words - first);
      switch (random() % 5) {
        case 0:
        case 1: {
          const hmmrt::stream& s = streams[random() % streams.size()];
          s.launch("add", n, AddOne{b.gpu() + static_cast<std::ptrdiff_t>(first)});
          s.synchronize();
          for (std::size_t i = first; i < first + n; ++i) ++model[i];
          break;
        }
        case 2:
          for (std::size_t i = first; i < std::min(first + n, first + 3000); ++i)
            b[i] = model[i] = static_cast<std::uint32_t>(random());
          break;
        case 3:
          context().prefetch(b.data() + first, n * 4, random() % 2 ? HMMRT_CPU : static_cast<int>(last_device()));
          break;
        default:
          for (std::size_t i = first; i < first + n; i += 577) wrong += b[i] != model[i];
      }
    }
    for (std::size_t i = 0; i < k_words; ++i) wrong += b[i] != model[i];
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 3; ++seed) threads.emplace_back(work, seed);
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
}

API_SUITE(GpuLaunch);

}  // namespace
}  // namespace api_test
