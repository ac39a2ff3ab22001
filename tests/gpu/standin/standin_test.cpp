// SPDX-License-Identifier: MIT
// The stand-in for AMD's shared virtual memory (hsakmt.cpp), by itself: kernels on the stand-in GPU, and the CPU, on memory
// that no runtime manages. Says what tests of the runtime may rely on.
#include <gtest/gtest.h>
#include <hsakmt.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <hmmrt/kernel.hpp>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gpu/standin/kmt_hooks.hpp"
#include "host/kfd/smi_events.hpp"

namespace {

constexpr std::size_t k_page = 4096, k_mib = std::size_t{1} << 20, k_block = 2 * k_mib;
constexpr std::size_t k_memory = 16 * k_mib;

// Private anonymous memory, aligned to blocks, with nothing beside it; where the kernel puts nothing by itself, so that what
// is unmapped there stays so.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes), reserved_(bytes + 2 * k_block) {
    all_ = mmap(reinterpret_cast<void*>(std::uintptr_t{0x7e9000000000}), reserved_, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const auto at = (reinterpret_cast<std::uintptr_t>(all_) + k_block) & ~(k_block - 1);
    data_ = reinterpret_cast<std::uint32_t*>(at);
    mprotect(data_, bytes, PROT_READ | PROT_WRITE);
  }
  ~Memory() { munmap(all_, reserved_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::uint32_t* data() { return data_; }
  char* at(std::size_t byte) { return reinterpret_cast<char*>(data_) + byte; }
  std::size_t words() const { return bytes_ / 4; }
  void fill() {
    for (std::size_t i = 0; i < words(); ++i) data_[i] = static_cast<std::uint32_t>(i);
  }

 private:
  std::size_t bytes_, reserved_;
  void* all_;
  std::uint32_t* data_;
};

struct Add {
  hmmrt::gptr<std::uint32_t> p;
  std::ptrdiff_t step;
  std::uint32_t n;
  void operator()(const hmmrt::item& i) const { p[static_cast<std::ptrdiff_t>(i.x) * step] += n; }
};

struct Sum {
  hmmrt::gptr<std::uint32_t> p;
  std::ptrdiff_t step;
  std::uint64_t* out;
  void operator()(const hmmrt::item& i) const {
    const std::uint32_t v = p[static_cast<std::ptrdiff_t>(i.x) * step];
    *out += v;
  }
};

class Gpu {
 public:
  explicit Gpu(int device = 0) {
    EXPECT_EQ(hipSetDevice(device), hipSuccess);
    EXPECT_EQ(hipStreamCreateWithFlags(&stream_, hipStreamNonBlocking), hipSuccess);
  }
  ~Gpu() { EXPECT_EQ(hipStreamDestroy(stream_), hipSuccess); }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  template <class F>
  void start(const F& f, std::uint64_t items) {
    const hmmrt_grid_t grid{items, 1, 1};
    EXPECT_EQ(hmmrt::detail::run_gpu<F>(&f, &grid, 0, stream_), hipSuccess);
  }
  void wait() { EXPECT_EQ(hipStreamSynchronize(stream_), hipSuccess); }
  template <class F>
  void run(const F& f, std::uint64_t items) {
    start(f, items);
    wait();
  }
  // Adds `n` to one word of each page.
  void add(void* p, std::size_t pages, std::uint32_t n = 1) {
    run(Add{static_cast<std::uint32_t*>(p), k_page / 4, n}, pages);
  }
  std::uint64_t sum(void* p, std::size_t pages) {
    std::uint64_t total = 0;
    run(Sum{static_cast<std::uint32_t*>(p), k_page / 4, &total}, pages);
    return total;
  }

 private:
  hipStream_t stream_ = nullptr;
};

using List = std::vector<HSA_SVM_ATTRIBUTE>;
HSAKMT_STATUS set(void* at, std::size_t bytes, List list) {
  return hsaKmtSVMSetAttr(at, bytes, static_cast<unsigned>(list.size()), list.data());
}
HSA_SVM_ATTRIBUTE get(void* at, std::size_t bytes, HSAuint32 type, HSAuint32 value = 0) {
  HSA_SVM_ATTRIBUTE a{type, value};
  EXPECT_EQ(hsaKmtSVMGetAttr(at, bytes, 1, &a), HSAKMT_STATUS_SUCCESS);
  return a;
}

// All pages of [at, at + bytes) are on `node`.
void expect_on(std::uint32_t node, const void* at, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += k_page) {
    ASSERT_EQ(hmmrt_standin_where(static_cast<const char*>(at) + i), node) << "page " << i / k_page;
  }
}

// A listener, parsed by the runtime's own parser.
class Lines {
 public:
  explicit Lines(std::uint32_t node) {
    EXPECT_EQ(hsaKmtOpenSMI(node, &fd_), HSAKMT_STATUS_SUCCESS);
    const std::uint64_t all = 0x7f0;  // 5 to 11
    EXPECT_EQ(write(fd_, &all, sizeof all), static_cast<ssize_t>(sizeof all));
  }
  ~Lines() { close(fd_); }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;

  std::vector<hmmrt::kfd::SmiEvent> read() {
    std::vector<hmmrt::kfd::SmiEvent> all;
    char buffer[4096];
    for (ssize_t n = 0; (n = ::read(fd_, buffer, sizeof buffer)) > 0;) {
      text += std::string(buffer, static_cast<std::size_t>(n));
      std::string_view bytes(buffer, static_cast<std::size_t>(n));
      std::array<hmmrt::kfd::SmiEvent, 8> some;
      for (std::size_t k = 0; (k = parser.parse(&bytes, some)) > 0;) {
        for (std::size_t i = 0; i < k; ++i) pairs.add(some[i]);
        all.insert(all.end(), some.begin(), some.begin() + static_cast<std::ptrdiff_t>(k));
        if (k < some.size()) break;
      }
    }
    return all;
  }
  hmmrt::kfd::SmiParser parser;
  hmmrt::kfd::SmiPairs pairs;
  std::string text;

 private:
  int fd_ = -1;
};

using Kinds = std::vector<hmmrt::kfd::SmiKind>;
Kinds kinds_of(const std::vector<hmmrt::kfd::SmiEvent>& events) {
  Kinds all;
  for (const auto& e : events) all.push_back(e.kind);
  return all;
}
using K = hmmrt::kfd::SmiKind;

int in_child(const char* name, const std::vector<std::pair<const char*, std::string>>& variables) {
  const pid_t child = fork();
  if (child == 0) {
    for (const auto& [variable, value] : variables) setenv(variable, value.c_str(), 1);
    alarm(60);
    const std::string filter = std::string("--gtest_filter=StandinChild.DISABLED_") + name;
    execl("/proc/self/exe", "standin", filter.c_str(), "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr);
    _exit(127);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

class StandinChild : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("HMMRT_TEST_KFD", "1", 0);
    setenv("HMMRT_TEST_HIP_DEVICES", "2", 0);
    setenv("HMMRT_TEST_HIP_MEMORY", std::to_string(k_memory).c_str(), 0);
  }
  static void open() {
    ASSERT_EQ(hsaKmtOpenKFD(), HSAKMT_STATUS_SUCCESS);
    HsaSystemProperties system{};
    ASSERT_EQ(hsaKmtAcquireSystemProperties(&system), HSAKMT_STATUS_SUCCESS);
    ASSERT_EQ(system.NumNodes, 3u);
  }
  static void close_all() {
    hsaKmtReleaseSystemProperties();
    hsaKmtCloseKFD();
  }
};

class Standin : public StandinChild {
 protected:
  void SetUp() override {
    StandinChild::SetUp();
    open();
  }
  void TearDown() override {
    hsaKmtSetXNACKMode(1);
    close_all();
  }
};

// ---- what is there --------------------------------------------------------------------------------------------------

TEST_F(Standin, nodes_are_those_of_hip) {
  for (HSAuint32 node = 1; node <= 2; ++node) {
    HsaNodeProperties p{};
    ASSERT_EQ(hsaKmtGetNodeProperties(node, &p), HSAKMT_STATUS_SUCCESS);
    hipDeviceProp_t hip{};
    ASSERT_EQ(hipGetDeviceProperties(&hip, static_cast<int>(node) - 1), hipSuccess);
    EXPECT_EQ(p.LocationId >> 8, static_cast<HSAuint32>(hip.pciBusID));
    EXPECT_EQ(p.Domain, static_cast<HSAuint32>(hip.pciDomainID));
    EXPECT_GT(p.NumFComputeCores, 0u);
    EXPECT_EQ(p.Capability.ui32.SVMAPISupported, 1u);
    HsaMemoryProperties m{};
    ASSERT_EQ(hsaKmtGetNodeMemoryProperties(node, 1, &m), HSAKMT_STATUS_SUCCESS);
    EXPECT_EQ(std::uint64_t{m.SizeInBytes}, k_memory);  // a copy: the structure is packed to 4 bytes
    const std::string at = std::string(getenv("HMMRT_TEST_KFD_TOPOLOGY")) + "/" + std::to_string(node) + "/gpu_id";
    std::uint32_t id = 0;
    std::ifstream(at) >> id;
    EXPECT_EQ(id, 0x1000 + node);
  }
  HsaNodeProperties p{};
  EXPECT_EQ(hsaKmtGetNodeProperties(0, &p), HSAKMT_STATUS_SUCCESS);
  EXPECT_EQ(p.NumFComputeCores, 0u);
  EXPECT_EQ(hsaKmtGetNodeProperties(3, &p), HSAKMT_STATUS_INVALID_NODE_UNIT);
}

TEST_F(Standin, what_is_wrong_is_refused_as_libhsakmt_does) {
  Memory m(k_block);
  EXPECT_EQ(set(nullptr, k_page, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_INVALID_PARAMETER);
  EXPECT_EQ(set(m.at(8), k_page, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_INVALID_PARAMETER);
  EXPECT_EQ(set(m.data(), 0, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_INVALID_PARAMETER);
  EXPECT_EQ(set(m.data(), k_page + 1, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_INVALID_PARAMETER);
  EXPECT_EQ(set(m.data(), 2 * k_block, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_SUCCESS)
      << "the guard is mapped";
  EXPECT_EQ(set(reinterpret_cast<void*>(k_page * 2), k_page, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_ERROR);
  EXPECT_EQ(set(m.data(), k_page, {{HSA_SVM_ATTR_PREFERRED_LOC, 7}}), HSAKMT_STATUS_INVALID_NODE_UNIT);
  EXPECT_EQ(set(m.data(), k_page, {{HSA_SVM_ATTR_PREFETCH_LOC, INVALID_NODEID}}), HSAKMT_STATUS_INVALID_NODE_UNIT);
  EXPECT_EQ(set(m.data(), k_page, {{HSA_SVM_ATTR_ACCESS, 0}}), HSAKMT_STATUS_INVALID_NODE_UNIT);
  EXPECT_EQ(set(m.data(), k_page, {{77, 0}}), HSAKMT_STATUS_ERROR);
}

TEST_F(Standin, attributes_are_kept_and_combined) {
  Memory m(k_block);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_PREFERRED_LOC).value, INVALID_NODEID);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_GRANULARITY).value, 9u);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_ACCESS, 2).type, static_cast<HSAuint32>(HSA_SVM_ATTR_ACCESS));
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_SET_FLAGS).value,
            static_cast<HSAuint32>(HSA_SVM_FLAG_HOST_ACCESS | HSA_SVM_FLAG_COHERENT));
  ASSERT_EQ(set(m.data(), k_mib, {{HSA_SVM_ATTR_PREFERRED_LOC, 1}, {HSA_SVM_ATTR_GRANULARITY, 4}}),
            HSAKMT_STATUS_SUCCESS);
  ASSERT_EQ(set(m.at(k_mib), k_mib,
                {{HSA_SVM_ATTR_PREFERRED_LOC, 1},
                 {HSA_SVM_ATTR_ACCESS_IN_PLACE, 2},
                 {HSA_SVM_ATTR_SET_FLAGS, HSA_SVM_FLAG_GPU_READ_MOSTLY}}),
            HSAKMT_STATUS_SUCCESS);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_PREFERRED_LOC).value, 1u);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_GRANULARITY).value, 4u);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_ACCESS, 1).type, static_cast<HSAuint32>(HSA_SVM_ATTR_ACCESS));
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_ACCESS, 2).type, static_cast<HSAuint32>(HSA_SVM_ATTR_NO_ACCESS));
  EXPECT_EQ(get(m.at(k_mib), k_mib, HSA_SVM_ATTR_ACCESS, 2).type, static_cast<HSAuint32>(HSA_SVM_ATTR_ACCESS_IN_PLACE));
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_SET_FLAGS).value & HSA_SVM_FLAG_GPU_READ_MOSTLY, 0u);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_CLR_FLAGS).value & HSA_SVM_FLAG_GPU_READ_MOSTLY, 0u);
  EXPECT_EQ(get(m.data(), k_mib, HSA_SVM_ATTR_CLR_FLAGS).value & HSA_SVM_FLAG_GPU_READ_MOSTLY,
            static_cast<HSAuint32>(HSA_SVM_FLAG_GPU_READ_MOSTLY));
  ASSERT_EQ(set(m.data(), k_page, {{HSA_SVM_ATTR_PREFERRED_LOC, INVALID_NODEID}}), HSAKMT_STATUS_SUCCESS);
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_PREFERRED_LOC).value, INVALID_NODEID);
  EXPECT_EQ(hmmrt_standin_attributes(m.at(k_page)).preferred, 1u);
}

// ---- faults ---------------------------------------------------------------------------------------------------------

TEST_F(Standin, gpu_fault_moves_a_granule_and_cpu_fault_brings_it_home) {
  Memory m(2 * k_block);
  m.fill();
  const StandinCounts before = hmmrt_standin_counts();
  Gpu gpu;
  gpu.add(m.data(), 1);
  expect_on(1, m.data(), k_block);
  expect_on(0, m.at(k_block), k_block);
  gpu.add(m.at(k_page), 511);
  EXPECT_EQ(hmmrt_standin_counts().gpu_faults, before.gpu_faults + 1);
  for (std::size_t i = 0; i < m.words(); ++i) {
    ASSERT_EQ(m.data()[i], i + (i % 1024 == 0 && i < k_block / 4)) << i;
  }
  expect_on(0, m.data(), k_block);
  EXPECT_EQ(hmmrt_standin_counts().cpu_faults, before.cpu_faults + 1);
}

TEST_F(Standin, granularity_says_how_much_a_fault_moves) {
  Memory m(k_block);
  m.fill();
  ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_SUCCESS);
  Gpu gpu;
  gpu.add(m.at(20 * k_page), 1);
  expect_on(0, m.data(), 16 * k_page);
  expect_on(1, m.at(16 * k_page), 16 * k_page);
  expect_on(0, m.at(32 * k_page), k_block - 32 * k_page);
  EXPECT_EQ(m.data()[20 * 1024], 20 * 1024 + 1u);
  expect_on(0, m.at(16 * k_page), 16 * k_page);
}

TEST_F(Standin, memory_that_nobody_touched_is_zero_everywhere) {
  Memory m(k_block);
  Gpu gpu;
  EXPECT_EQ(gpu.sum(m.data(), 512), 0u);
  gpu.add(m.data(), 512, 3);
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i % 1024 == 0 ? 3u : 0u);
  Memory other(k_block);
  gpu.add(other.data(), 1);
  EXPECT_EQ(other.data()[1024], 0u);  // went to the GPU untouched, and comes home so
}

TEST_F(Standin, two_gpus_take_memory_from_each_other) {
  Memory m(k_block);
  m.fill();
  Gpu one(0), two(1);
  one.add(m.data(), 512);
  two.add(m.data(), 512);
  expect_on(2, m.data(), k_block);
  one.add(m.data(), 512);
  expect_on(1, m.data(), k_block);
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i + (i % 1024 == 0 ? 3 : 0));
}

TEST_F(Standin, in_place_and_preferred_location_are_respected) {
  Memory m(4 * k_block);
  m.fill();
  ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_ACCESS_IN_PLACE, 1}}), HSAKMT_STATUS_SUCCESS);
  ASSERT_EQ(set(m.at(k_block), k_block, {{HSA_SVM_ATTR_PREFERRED_LOC, 0}}), HSAKMT_STATUS_SUCCESS);
  ASSERT_EQ(set(m.at(2 * k_block), k_block, {{HSA_SVM_ATTR_NO_ACCESS, 1}, {HSA_SVM_ATTR_PREFERRED_LOC, 1}}),
            HSAKMT_STATUS_SUCCESS);
  ASSERT_EQ(set(m.at(3 * k_block), k_block, {{HSA_SVM_ATTR_PREFERRED_LOC, 2}}), HSAKMT_STATUS_SUCCESS);
  Gpu gpu;
  gpu.add(m.data(), 4 * 512);
  expect_on(0, m.data(), 2 * k_block);
  expect_on(1, m.at(2 * k_block), 2 * k_block);  // no link between GPUs: the preference of another does not count
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i + (i % 1024 == 0));
}

TEST_F(Standin, prefetch_moves_at_once_and_the_gpu_does_not_fault) {
  Memory m(2 * k_block);
  m.fill();
  ASSERT_EQ(set(m.data(), 2 * k_block, {{HSA_SVM_ATTR_PREFETCH_LOC, 2}}), HSAKMT_STATUS_SUCCESS);
  expect_on(2, m.data(), 2 * k_block);
  const StandinCounts before = hmmrt_standin_counts();
  Gpu gpu(1);
  gpu.add(m.data(), 1024);
  EXPECT_EQ(hmmrt_standin_counts().gpu_faults, before.gpu_faults);
  ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_PREFETCH_LOC, 0}}), HSAKMT_STATUS_SUCCESS);
  expect_on(0, m.data(), k_block);
  expect_on(2, m.at(k_block), k_block);
  EXPECT_EQ(hmmrt_standin_counts().cpu_faults, before.cpu_faults);
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i + (i % 1024 == 0));
  // Where another uses it in place, it does not go.
  ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_ACCESS_IN_PLACE, 1}, {HSA_SVM_ATTR_PREFETCH_LOC, 2}}),
            HSAKMT_STATUS_SUCCESS);
  expect_on(0, m.data(), k_block);
}

TEST_F(Standin, a_full_gpu_sends_the_oldest_home) {
  Memory m(2 * k_memory);
  m.fill();
  Gpu gpu;
  for (int round = 1; round <= 2; ++round) {
    gpu.add(m.data(), 2 * k_memory / k_page);
    expect_on(0, m.data(), k_memory);
    expect_on(1, m.at(k_memory), k_memory);
  }
  EXPECT_GT(hmmrt_standin_counts().evictions, 0u);
  size_t free_bytes = 1, total = 0;
  ASSERT_EQ(hipSetDevice(0), hipSuccess);
  ASSERT_EQ(hipMemGetInfo(&free_bytes, &total), hipSuccess);
  EXPECT_EQ(free_bytes, 0u);
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i + (i % 1024 == 0 ? 2 : 0));
}

TEST_F(Standin, a_prefetch_brings_what_fits) {
  Memory m(2 * k_memory);
  m.fill();
  EXPECT_EQ(set(m.data(), 2 * k_memory, {{HSA_SVM_ATTR_PREFETCH_LOC, 1}}), HSAKMT_STATUS_SUCCESS);
  expect_on(1, m.data(), k_memory);
  expect_on(0, m.at(k_memory), k_memory);
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i);
}

TEST_F(Standin, memory_that_cannot_move_is_used_in_place) {
  auto* shared =
      static_cast<std::uint32_t*>(mmap(nullptr, k_block, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  Memory pinned(k_block);
  pinned.fill();
  ASSERT_EQ(hipHostRegister(pinned.at(8 * k_page), k_page, 0), hipSuccess);
  Gpu gpu;
  gpu.add(shared, 512);
  gpu.add(pinned.data(), 512);
  expect_on(0, shared, k_block);
  expect_on(0, pinned.at(8 * k_page), k_page);
  expect_on(1, pinned.at(9 * k_page), k_page);
  EXPECT_EQ(shared[1024], 1u);
  for (std::size_t i = 0; i < pinned.words(); ++i) ASSERT_EQ(pinned.data()[i], i + (i % 1024 == 0));
  ASSERT_EQ(hipHostUnregister(pinned.at(8 * k_page)), hipSuccess);
  munmap(shared, k_block);
}

TEST_F(Standin, heap_and_stack_work_in_a_kernel) {
  std::vector<std::uint32_t> heap(3000, 5);
  std::uint32_t local = 7;
  std::uint64_t total = 0;
  Gpu gpu;
  gpu.run(Sum{heap.data(), 1, &total}, heap.size());
  gpu.run(Sum{&local, 1, &total}, 1);
  gpu.run(Add{&local, 1, 1}, 1);
  EXPECT_EQ(total, 15007u);
  EXPECT_EQ(local, 8u);
}

TEST_F(Standin, spans_and_large_elements_cross_from_place_to_place) {
  struct Odd {
    std::uint32_t v[5];
  };
  struct Spans {
    hmmrt::gptr<Odd> from, to;
    std::size_t n;
    void operator()(const hmmrt::item&) const {
      hmmrt::with_spans(
          [](const Odd* a, Odd* b, std::size_t, std::size_t count) {
            for (std::size_t i = 0; i < count; ++i) b[i].v[4] = a[i].v[0] + 1;
          },
          hmmrt::read(from, n), hmmrt::read_write(to, n));
    }
  };
  struct One {
    hmmrt::gptr<Odd> p;
    void operator()(const hmmrt::item& i) const {
      Odd o = p[static_cast<std::ptrdiff_t>(i.x)];
      o.v[4] += 1;
      p[static_cast<std::ptrdiff_t>(i.x)] = o;
    }
  };
  Memory from(3 * k_block), to(3 * k_block);
  from.fill();
  to.fill();
  ASSERT_EQ(set(to.at(k_page), k_page, {{HSA_SVM_ATTR_PREFERRED_LOC, 0}}), HSAKMT_STATUS_SUCCESS);
  const std::size_t n = from.words() / 5 - 1;
  auto* a = reinterpret_cast<Odd*>(from.data() + 1);
  auto* b = reinterpret_cast<Odd*>(to.data() + 2);
  Gpu gpu;
  gpu.run(Spans{hmmrt::gptr<Odd>(a), hmmrt::gptr<Odd>(b), n}, 1);
  gpu.run(One{hmmrt::gptr<Odd>(b)}, n);
  expect_on(0, to.at(k_page), k_page);
  expect_on(1, to.at(2 * k_page), k_page);
  for (std::size_t i = 0; i < n; ++i) {
    ASSERT_EQ(b[i].v[4], a[i].v[0] + 2) << i;
    ASSERT_EQ(b[i].v[3], 5 * i + 5) << i;
  }
}

// ---- mappings that change -------------------------------------------------------------------------------------------

TEST_F(Standin, what_is_discarded_or_unmapped_is_gone) {
  Memory m(2 * k_block);
  m.fill();
  ASSERT_EQ(set(m.data(), 2 * k_block, {{HSA_SVM_ATTR_GRANULARITY, 5}, {HSA_SVM_ATTR_PREFETCH_LOC, 1}}),
            HSAKMT_STATUS_SUCCESS);
  ASSERT_EQ(madvise(m.at(k_block), k_mib, MADV_DONTNEED), 0);
  expect_on(0, m.at(k_block), k_mib);
  expect_on(1, m.at(k_block + k_mib), k_mib);
  Gpu gpu;
  EXPECT_EQ(gpu.sum(m.at(k_block), 256), 0u);
  EXPECT_EQ(hmmrt_standin_attributes(m.at(k_block)).granularity, 5u);
  ASSERT_EQ(munmap(m.data(), k_block), 0);
  expect_on(0, m.data(), k_block);
  EXPECT_EQ(hmmrt_standin_attributes(m.data()).granularity, 9u);
  ASSERT_EQ(mmap(m.data(), k_block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), m.data());
  EXPECT_EQ(gpu.sum(m.data(), 512), 0u);
  EXPECT_EQ(m.data()[5], 0u);
  EXPECT_EQ(m.at(k_block)[4], 0);
  EXPECT_EQ(m.data()[3 * k_mib / 4], 3 * k_mib / 4);
}

TEST_F(Standin, contents_follow_mremap) {
  Memory m(k_block), to(k_block);
  m.fill();
  Gpu gpu;
  gpu.add(m.data(), 512);
  expect_on(1, m.data(), k_block);
  ASSERT_EQ(mremap(m.data(), k_block, k_block, MREMAP_MAYMOVE | MREMAP_FIXED, to.data()), to.data());
  expect_on(0, to.data(), k_block);
  for (std::size_t i = 0; i < to.words(); ++i) ASSERT_EQ(to.data()[i], i + (i % 1024 == 0));
  gpu.add(to.data(), 512);
  for (std::size_t i = 0; i < to.words(); ++i) ASSERT_EQ(to.data()[i], i + (i % 1024 == 0 ? 2 : 0));
}

TEST_F(Standin, memory_made_read_only_while_it_was_away_comes_home) {
  Memory m(k_block);
  m.fill();
  Gpu gpu;
  gpu.add(m.data(), 512);
  ASSERT_EQ(mprotect(m.data(), k_block, PROT_READ), 0);
  EXPECT_EQ(gpu.sum(m.data(), 1), 1u);
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i + (i % 1024 == 0));
}

// ---- without retryable faults ---------------------------------------------------------------------------------------

TEST_F(Standin, without_xnack_what_is_known_is_usable_wherever_it_is) {
  ASSERT_EQ(hsaKmtSetXNACKMode(0), HSAKMT_STATUS_SUCCESS);
  HSAint32 on = 1;
  ASSERT_EQ(hsaKmtGetXNACKMode(&on), HSAKMT_STATUS_SUCCESS);
  EXPECT_EQ(on, 0);
  Memory m(k_block);
  m.fill();
  EXPECT_EQ(get(m.data(), k_block, HSA_SVM_ATTR_ACCESS, 1).type, static_cast<HSAuint32>(HSA_SVM_ATTR_NO_ACCESS));
  ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_ACCESS, 1}}), HSAKMT_STATUS_SUCCESS);
  Lines lines(1);
  {
    Gpu gpu;
    EXPECT_EQ(hsaKmtSetXNACKMode(1), HSAKMT_STATUS_ERROR);
    gpu.add(m.data(), 512);
    expect_on(0, m.data(), k_block);
    EXPECT_TRUE(lines.read().empty());
    ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_PREFETCH_LOC, 1}}), HSAKMT_STATUS_SUCCESS);
    expect_on(1, m.data(), k_block);
    gpu.add(m.data(), 512);
    EXPECT_EQ(m.data()[0], 2u);
    EXPECT_EQ(kinds_of(lines.read()), (Kinds{K::migrate_start, K::queue_eviction, K::migrate_end, K::queue_restore,
                                             K::migrate_start, K::queue_eviction, K::migrate_end, K::queue_restore}));
    gpu.add(m.data(), 512);
  }
  for (std::size_t i = 0; i < m.words(); ++i) ASSERT_EQ(m.data()[i], i + (i % 1024 == 0 ? 3 : 0));
}

// ---- lines ----------------------------------------------------------------------------------------------------------

TEST_F(Standin, lines_say_what_happened) {
  Memory m(k_block);
  m.fill();
  const auto at = reinterpret_cast<std::uintptr_t>(m.data());
  ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_PREFERRED_LOC, 1}}), HSAKMT_STATUS_SUCCESS);
  Lines lines(1), others(2);
  Gpu gpu;
  gpu.add(m.at(3 * k_page), 1);
  m.data()[0] = 1;
  const auto e = lines.read();
  ASSERT_EQ(kinds_of(e), (Kinds{K::page_fault_start, K::migrate_start, K::migrate_end, K::page_fault_end,
                                K::migrate_start, K::unmap, K::migrate_end}))
      << lines.text;
  EXPECT_EQ(e[0].addr, at + 3 * k_page);
  EXPECT_FALSE(e[0].write);  // += reads first
  EXPECT_EQ(e[0].gpu, 0x1001u);
  EXPECT_EQ(e[0].pid, static_cast<std::uint32_t>(getpid()));
  EXPECT_EQ(e[1].addr, at);
  EXPECT_EQ(e[1].bytes, k_block);
  EXPECT_EQ(e[1].from, 0u);
  EXPECT_EQ(e[1].to, 0x1001u);
  EXPECT_EQ(e[1].prefetch, hmmrt::kfd::k_smi_nowhere);
  EXPECT_EQ(e[1].preferred, 0x1001u);
  EXPECT_EQ(e[1].trigger, 1);
  EXPECT_TRUE(e[3].migrated);
  EXPECT_EQ(e[4].from, 0x1001u);
  EXPECT_EQ(e[4].trigger, 2);
  EXPECT_EQ(e[5].trigger, 1);
  EXPECT_EQ(lines.pairs.open() + lines.pairs.ends_without_start(), 0u);
  EXPECT_EQ(lines.parser.counts().malformed, 0u);
  EXPECT_TRUE(others.read().empty());
  gpu.add(m.data(), 1);
  ASSERT_EQ(munmap(m.data(), k_block), 0);
  hmmrt_standin_counts();  // the driver hears of an munmap while that returns
  const auto last = lines.read();
  ASSERT_FALSE(last.empty());
  EXPECT_EQ(last.back().kind, K::unmap);
  EXPECT_EQ(last.back().trigger, 2);
}

TEST_F(Standin, lines_that_do_not_fit_are_lost_whole) {
  Memory m(k_block);
  m.fill();
  Lines lines(1);
  Gpu gpu;
  const std::uint64_t before = hmmrt_standin_counts().smi_lost;
  for (int i = 0; i < 20; ++i) {
    gpu.add(m.data(), 1);
    m.data()[1] = 1;
  }
  const std::size_t events = lines.read().size();
  EXPECT_LT(events, 40u);
  EXPECT_LE(lines.text.size(), 1024u);
  EXPECT_EQ(lines.parser.counts().malformed, 0u);
  EXPECT_EQ(lines.parser.waiting(), 0u);
  EXPECT_EQ(hmmrt_standin_counts().smi_lost - before, 20 * 7 - events);
}

// ---- everything at once ---------------------------------------------------------------------------------------------

struct AtomicAdds {
  hmmrt::gptr<std::uint32_t> p;
  std::uint64_t words, seed;
  void operator()(const hmmrt::item& i) const {
    std::uint64_t x = (seed + i.x) * 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    hmmrt::atomic_fetch_add(p + static_cast<std::ptrdiff_t>(x % words), 1u, hmmrt::scope::system);
  }
};

TEST_F(Standin, atomics_of_everybody_all_count_while_pages_move) {
  const char* text = getenv("HMMRT_TEST_SEED");
  const unsigned seed = text != nullptr ? static_cast<unsigned>(atoi(text)) : std::random_device{}();
  std::printf("HMMRT_TEST_SEED=%u\n", seed);
  Memory m(6 * k_block);
  const std::uint64_t words = m.words();
  std::vector<std::uint32_t> model(words, 0);
  Gpu one(0), two(1);
  std::mt19937 random(seed);
  constexpr std::uint64_t k_items = 200;
  for (int round = 0; round < 12; ++round) {
    const std::uint64_t a = random(), b = random();
    one.start(AtomicAdds{m.data(), words, a}, k_items);
    two.start(AtomicAdds{m.data(), words, b}, k_items);
    for (std::uint64_t i = 0; i < k_items; ++i) {
      for (const std::uint64_t s : {a, b}) {
        std::uint64_t x = (s + i) * 0x9e3779b97f4a7c15u;
        x ^= x >> 29;
        ++model[x % words];
      }
    }
    for (int step = 0; step < 40; ++step) {
      const std::uint64_t at = random() % words;
      switch (random() % 4) {
        case 0:
        case 1:
          __atomic_fetch_add(m.data() + at, 1u, __ATOMIC_RELAXED);
          ++model[at];
          break;
        case 2: {
          const std::size_t page = at * 4 / k_page, n = 1 + random() % (6 * 512 - page);
          EXPECT_EQ(
              set(m.at(page * k_page), n * k_page, {{HSA_SVM_ATTR_PREFETCH_LOC, static_cast<HSAuint32>(random() % 3)}}),
              HSAKMT_STATUS_SUCCESS);
          break;
        }
        default: {
          const std::size_t page = at * 4 / k_page, n = 1 + random() % (6 * 512 - page);
          const HSAuint32 node = 1 + static_cast<HSAuint32>(random() % 2);
          EXPECT_EQ(set(m.at(page * k_page), n * k_page,
                        {{random() % 2 ? HSA_SVM_ATTR_ACCESS_IN_PLACE : HSA_SVM_ATTR_ACCESS, node},
                         {HSA_SVM_ATTR_GRANULARITY, static_cast<HSAuint32>(random() % 10)}}),
                    HSAKMT_STATUS_SUCCESS);
        }
      }
    }
    one.wait();
    two.wait();
    // What the CPU discards between the rounds is gone from everywhere.
    const std::size_t page = random() % (6 * 512 - 8);
    ASSERT_EQ(madvise(m.at(page * k_page), 8 * k_page, MADV_DONTNEED), 0);
    std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(page * 1024), 8 * 1024, 0u);
  }
  for (std::uint64_t i = 0; i < words; ++i) ASSERT_EQ(m.data()[i], model[i]) << i;
}

TEST_F(Standin, a_kernel_and_the_cpu_talk_over_one_page) {
  struct Talk {
    hmmrt::gptr<std::uint32_t> count, stop;
    void operator()(const hmmrt::item&) const {
      while (hmmrt::atomic_load(stop) == 0) hmmrt::atomic_fetch_add(count, 1u);
    }
  };
  Memory m(k_block);
  Gpu gpu;
  gpu.start(Talk{m.data(), m.data() + 1}, 1);
  std::uint32_t seen = 0;
  while ((seen = __atomic_load_n(m.data(), __ATOMIC_ACQUIRE)) < 200) std::this_thread::yield();
  __atomic_store_n(m.data() + 1, 1u, __ATOMIC_RELEASE);
  gpu.wait();
  EXPECT_GE(m.data()[0], seen);
}

// ---- in processes of their own --------------------------------------------------------------------------------------

TEST_F(StandinChild, DISABLED_finds_no_driver) {
  EXPECT_EQ(hsaKmtOpenKFD(), HSAKMT_STATUS_KERNEL_IO_CHANNEL_NOT_OPENED);
  EXPECT_EQ(set(this, k_page, {}), HSAKMT_STATUS_KERNEL_IO_CHANNEL_NOT_OPENED);
}
TEST_F(StandinChild, DISABLED_has_no_svm) {
  open();
  Memory m(k_block);
  EXPECT_EQ(set(m.data(), k_page, {{HSA_SVM_ATTR_GRANULARITY, 4}}), HSAKMT_STATUS_ERROR);
  HsaNodeProperties p{};
  ASSERT_EQ(hsaKmtGetNodeProperties(1, &p), HSAKMT_STATUS_SUCCESS);
  EXPECT_EQ(p.Capability.ui32.SVMAPISupported, 0u);
}
TEST_F(StandinChild, DISABLED_reads_where_it_may_not) {
  open();
  Memory m(k_block);
  m.fill();
  ASSERT_EQ(set(m.data(), k_block, {{HSA_SVM_ATTR_NO_ACCESS, 1}}), HSAKMT_STATUS_SUCCESS);
  Gpu gpu;
  gpu.sum(m.data(), 1);
}
TEST_F(StandinChild, DISABLED_writes_what_is_read_only) {
  open();
  Memory m(k_block);
  m.fill();
  ASSERT_EQ(mprotect(m.data(), k_page, PROT_READ), 0);
  Gpu gpu;
  EXPECT_EQ(gpu.sum(m.data(), 1), 0u);
  gpu.add(m.data(), 1);
}
TEST_F(StandinChild, DISABLED_hears_newer_lines) {
  open();
  Memory m(k_block);
  m.fill();
  Lines lines(1);
  Gpu gpu;
  for (int i = 0; i < 3; ++i) {
    gpu.add(m.data(), 1);
    m.data()[1] = 1;
  }
  EXPECT_EQ(lines.read().size(), 21u);
  EXPECT_EQ(lines.parser.counts().malformed + lines.parser.counts().unknown, 0u);
  EXPECT_EQ(lines.pairs.open() + lines.pairs.ends_without_start(), 0u);
}
TEST_F(StandinChild, DISABLED_hears_noise) {
  open();
  Memory m(k_block);
  m.fill();
  Lines lines(1);
  Gpu gpu;
  for (int i = 0; i < 5; ++i) {
    gpu.add(m.data(), 1);
    m.data()[1] = 1;
    lines.read();
  }
  EXPECT_GT(lines.parser.counts().malformed, 0u);
  EXPECT_GT(lines.parser.counts().unknown, 0u);
  EXPECT_LT(lines.parser.counts().events, 35u);
}

// What runs after the stand-in's own end, where leak checkers do, with every thread but one stopped: nothing may wait for
// the driver's thread any more.
Memory* g_used_until_the_end = nullptr;
__attribute__((destructor)) void nothing_is_watched_after_the_end() {
  if (g_used_until_the_end == nullptr) return;
  const auto from = reinterpret_cast<std::uintptr_t>(g_used_until_the_end->data());
  std::ifstream smaps("/proc/self/smaps");
  std::size_t found = 0;
  bool within = false;
  for (std::string line; std::getline(smaps, line);) {
    std::uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%zx-%zx ", &begin, &end) == 2) {
      within = begin < from + 2 * k_block && end > from;
      if (within) found += end - begin;
    }
    if (!within || line.rfind("VmFlags:", 0) != 0) continue;
    if (line.find(" um") != std::string::npos || line.find(" uw") != std::string::npos) _exit(3);
  }
  if (g_used_until_the_end->data()[1] != 1) _exit(4);
  if (found != 2 * k_block) _exit(5);
}
TEST_F(StandinChild, DISABLED_is_let_go_of_at_the_end) {
  open();
  static Memory& m = *std::make_unique<Memory>(2 * k_block).release();
  m.fill();
  ASSERT_EQ(set(m.data(), 2 * k_block, {{HSA_SVM_ATTR_GRANULARITY, 9}}), HSAKMT_STATUS_SUCCESS);
  Gpu gpu;
  gpu.add(m.data(), 1);
  g_used_until_the_end = &m;
}

TEST(StandinAlone, lets_go_of_memory_at_the_end_of_the_program) {
  EXPECT_EQ(in_child("is_let_go_of_at_the_end", {}), 0);
}

TEST(StandinAlone, knobs_do_what_they_say) {
  EXPECT_EQ(in_child("finds_no_driver", {{"HMMRT_TEST_KFD", "0"}}), 0);
  EXPECT_EQ(in_child("has_no_svm", {{"HMMRT_TEST_KFD_SVM", "0"}}), 0);
  EXPECT_EQ(in_child("hears_newer_lines", {{"HMMRT_TEST_KFD_SMI", "7.2"}}), 0);
  EXPECT_EQ(in_child("hears_newer_lines", {{"HMMRT_TEST_KFD_FIFO", "4096"}}), 0);
  EXPECT_EQ(in_child("hears_noise", {{"HMMRT_TEST_KFD_SMI_NOISE", "3"}, {"HMMRT_TEST_KFD_SMI_DROP", "4"}}), 0);
}

TEST(StandinAlone, what_no_gpu_may_do_stops_the_program) {
  EXPECT_EQ(in_child("reads_where_it_may_not", {}), 128 + SIGABRT);
  EXPECT_EQ(in_child("writes_what_is_read_only", {}), 128 + SIGABRT);
  EXPECT_EQ(in_child("reads_where_it_may_not", {{"HMMRT_TEST_KFD_XNACK", "0"}}), 128 + SIGABRT);
}

}  // namespace
