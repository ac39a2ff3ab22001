// SPDX-License-Identifier: MIT
// What the application does to managed memory with the system's own calls: munmap, madvise, mremap, mprotect, fork,
// read(2) and write(2) behave as on ordinary memory, wherever the pages are.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "conformance/api_environment.hpp"

namespace {

using namespace api_test;  // NOLINT(google-build-using-namespace)

class ApiMappings : public ApiTest {};
API_SUITE(ApiMappings);

TEST_P(ApiMappings, madvise_dontneed_drops_what_a_device_holds) {
  hmmrt::managed_buffer<std::uint32_t> b(context(), k_block / 4);
  for (auto& v : b) v = 1;
  b.prefetch(0);
  ASSERT_EQ(madvise(b.data(), k_block / 2, MADV_DONTNEED), 0);
  const hmmrt::stream s(context());
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], i < b.size() / 2 ? 1u : 2u) << i;
}

TEST_P(ApiMappings, munmapped_pages_fail_launches_and_the_rest_stays) {
  NEEDS_FAULTS("nobody sees a wrong address");
  Mapping m(16 * k_page);
  for (std::size_t i = 0; i < 16 * 1024; ++i) m.words()[i] = 5;
  context().register_memory(m.get(), 16 * k_page);
  context().prefetch(m.get(), 16 * k_page, last_device());
  ASSERT_EQ(m.unmap(4 * k_page, 4 * k_page), 0);
  const hmmrt::stream s(context(), last_device());
  s.launch("gone", 1024, AddOne{hmmrt::gptr<std::uint32_t>(m.words() + 4 * 1024)});
  EXPECT_EQ(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ILLEGAL_ADDRESS) << hmmrt_last_error_detail();
  s.launch("add", 1024, AddOne{hmmrt::gptr<std::uint32_t>(m.words())});
  s.synchronize();
  EXPECT_EQ(m.words()[0], 6u);
  EXPECT_EQ(m.words()[15 * 1024], 5u);
  EXPECT_EQ(hmmrt_unregister(handle(), m.get()), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  EXPECT_EQ(m.words()[8 * 1024], 5u);
}

TEST_P(ApiMappings, allocations_that_the_application_unmapped_can_still_be_freed) {
  auto* p = static_cast<char*>(context().allocate(k_block));
  std::memset(p, 1, k_block);
  context().prefetch(p, k_block, 0);
  // Unmapped, and somebody else's memory now; free must not touch it.
  void* other = mmap(p, k_block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_EQ(other, p);
  std::memset(other, 0x77, k_block);
  EXPECT_EQ(hmmrt_free(handle(), p), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  EXPECT_EQ(static_cast<char*>(other)[k_block - 1], 0x77);
  EXPECT_NE(context().allocate(k_block), p);
  munmap(other, k_block);
}

TEST_P(ApiMappings, mremap_carries_device_resident_contents_along) {
  Mapping m(8 * k_page);
  for (std::size_t i = 0; i < 8 * 1024; ++i) m.words()[i] = static_cast<std::uint32_t>(i);
  context().register_memory(m.get(), 8 * k_page);
  context().prefetch(m.get(), 8 * k_page, 0);
  void* target = mmap(nullptr, 8 * k_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* moved = mremap(m.get(), 8 * k_page, 8 * k_page, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  ASSERT_NE(moved, MAP_FAILED) << std::strerror(errno);
  m.moved_away();
  const auto* words = static_cast<const std::uint32_t*>(moved);
  for (std::size_t i = 0; i < 8 * 1024; ++i) ASSERT_EQ(words[i], i);
  context_.reset();
  for (std::size_t i = 0; i < 8 * 1024; ++i) ASSERT_EQ(words[i], i);
  munmap(moved, 8 * k_page);
}

// Memory of the application's own, registered and filled with its words' numbers, that mremap moves away.
class Moving {
 public:
  Moving(hmmrt::context& context, std::size_t bytes) : bytes_(bytes), p_(map_filled(bytes, 0)) {
    context.register_memory(p_, bytes);
  }
  ~Moving() { munmap(p_, bytes_); }
  Moving(const Moving&) = delete;
  Moving& operator=(const Moving&) = delete;
  std::uint32_t* words() const { return p_; }
  bool move() {
    void* const target = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void* const moved = mremap(p_, bytes_, bytes_, MREMAP_MAYMOVE | MREMAP_FIXED, target);
    if (moved != target) return false;
    p_ = static_cast<std::uint32_t*>(moved);
    return true;
  }
  std::size_t wrong() const { return api_test::wrong(p_, bytes_, 0); }

 private:
  std::size_t bytes_;
  std::uint32_t* p_;
};

TEST_P(ApiMappings, destroying_the_context_brings_home_what_mremap_moved) {
  Moving m(context(), 3 * k_block);
  context().prefetch(m.words(), 3 * k_block, last_device());
  ASSERT_TRUE(m.move());
  context_.reset();
  EXPECT_EQ(m.wrong(), 0u);
}

TEST_P(ApiMappings, what_moves_while_its_context_ends_comes_home) {
  for (unsigned round = 0; round < 10; ++round) {
    open();
    const Moving stays(context(), 2 * k_block);
    Moving moves(context(), 3 * k_block);
    context().prefetch(stays.words(), 2 * k_block, last_device());
    context().prefetch(moves.words(), 3 * k_block, 0);
    std::thread mover([&] {
      for (unsigned i = 0; i < 3; ++i) EXPECT_TRUE(moves.move());
    });
    context_.reset();
    mover.join();
    ASSERT_EQ(stays.wrong() + moves.wrong(), 0u) << round;
  }
}

TEST_P(ApiMappings, unregistering_memory_that_moves_either_happens_or_does_not) {
  for (unsigned round = 0; round < 10; ++round) {
    Moving m(context(), 3 * k_block);
    void* const first = m.words();
    context().prefetch(m.words(), 3 * k_block, last_device());
    std::thread mover([&] {
      for (unsigned i = 0; i < 2; ++i) EXPECT_TRUE(m.move());
    });
    const hmmrt_result_t result = hmmrt_unregister(context().get(), first);
    mover.join();
    if (any_pointer()) {  // the registration has stayed where it was
      if (result != HMMRT_SUCCESS) (void)hmmrt_unregister(context().get(), first);
    } else if (result != HMMRT_SUCCESS) {
      EXPECT_TRUE(result == HMMRT_ERROR_NOT_MANAGED || result == HMMRT_ERROR_BUSY) << result;
      context().unregister_memory(m.words());
    }
    ASSERT_EQ(m.wrong(), 0u) << round;
    context().register_memory(m.words(), 3 * k_block);
    context().prefetch(m.words(), 3 * k_block, last_device());
    ASSERT_EQ(m.wrong(), 0u) << round;
    context().unregister_memory(m.words());
  }
}

TEST_P(ApiMappings, write_protected_copies_can_be_written_after_mremap) {
  Moving m(context(), 2 * k_block);
  context().prefetch(m.words(), 2 * k_block, last_device());  // whole blocks out and home
  context().prefetch(m.words(), 2 * k_block, HMMRT_CPU);
  context().advise(m.words(), 2 * k_block, HMMRT_ADVISE_SET_READ_MOSTLY, 0);
  context().prefetch(m.words(), 2 * k_block, last_device());
  ASSERT_TRUE(m.move());
  for (std::size_t i = 0; i < 2 * k_block / 4; i += 1024) m.words()[i] = static_cast<std::uint32_t>(i);
  EXPECT_EQ(m.wrong(), 0u);
}

TEST_P(ApiMappings, protection_is_mirrored_to_devices_after_mremap) {
  NOT_DRIVEN("a forbidden access ends the process");
  Moving m(context(), 8 * k_page);
  ASSERT_TRUE(m.move());
  ASSERT_EQ(mprotect(m.words(), 8 * k_page, PROT_READ), 0);
  const hmmrt::stream s(context(), last_device());
  s.launch("write", 1024, AddOne{hmmrt::gptr<std::uint32_t>(m.words())});
  const hmmrt_result_t result = hmmrt_stream_synchronize(s.get());
  if (faults()) {  // else nobody saw the writes, and they are lost
    EXPECT_EQ(result, HMMRT_ERROR_ACCESS_DENIED) << hmmrt_last_error_detail();
  }
  EXPECT_EQ(m.wrong(), 0u);
}

TEST_P(ApiMappings, madvise_dontneed_right_after_mremap_counts) {
  if (any_pointer()) GTEST_SKIP() << "registrations stay where they are; the new addresses need none";
  const auto begin = std::chrono::steady_clock::now();
  for (unsigned round = 0; round < 40; ++round) {
    Moving m(context(), 32 * k_page);
    context().prefetch(m.words(), 32 * k_page, last_device());
    ASSERT_TRUE(m.move());
    ASSERT_EQ(madvise(m.words(), 16 * k_page, MADV_DONTNEED), 0);
    for (std::size_t i = 0; i < 32 * 1024; i += 512) ASSERT_EQ(m.words()[i], i < 16 * 1024 ? 0u : i) << round;
    (void)hmmrt_unregister(handle(), m.words());
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(6));  // nobody waits for what cannot come
}

TEST_P(ApiMappings, a_child_forked_right_after_mremap_has_the_contents) {
  if (any_pointer()) GTEST_SKIP() << "registrations stay where they are; the new addresses need none";
  for (unsigned round = 0; round < 10; ++round) {
    Moving m(context(), 2 * k_block);
    context().prefetch(m.words(), 2 * k_block, last_device());
    ASSERT_TRUE(m.move());
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) _exit(m.wrong() == 0 ? 0 : 1);
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "round " << round;
    ASSERT_EQ(m.wrong(), 0u);
    (void)hmmrt_unregister(handle(), m.words());
  }
}

// The kernel gives the hole to the next mapping that fits.
TEST_P(ApiMappings, memory_is_allocated_elsewhere_than_in_the_hole_of_a_registration) {
  Mapping m(64 * k_block);
  context().register_memory(m.get(), 64 * k_block);
  ASSERT_EQ(m.unmap(k_block, 62 * k_block), 0);
  std::vector<void*> all;
  for (unsigned i = 0; i < 4; ++i) {
    void* p = nullptr;
    ASSERT_EQ(hmmrt_alloc(handle(), 20 * k_block, &p), HMMRT_SUCCESS) << hmmrt_last_error_detail();
    std::memset(p, 1, 20 * k_block);
    all.push_back(p);
  }
  context().prefetch(all[0], 20 * k_block, last_device());
  for (void* p : all) context().free(p);
}

// False: another userfaultfd does.
bool watch(int userfaultfd, const void* at, std::size_t bytes) {
  uffdio_register args{};
  args.range = {reinterpret_cast<std::uintptr_t>(at), bytes};
  args.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
  return ioctl(userfaultfd, UFFDIO_REGISTER, &args) == 0;
}

// Of all userfaultfds of this process the one that watches `at`, which is mapped and managed; -1: none.
int userfaultfd_of(const void* at) {
  for (int fd = 3; fd < 64; ++fd) {
    char name[64] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (readlink(link.c_str(), name, sizeof name - 1) < 0 || std::string(name) != "anon_inode:[userfaultfd]") continue;
    if (watch(fd, at, k_page)) return fd;
  }
  return -1;
}

// Somebody may map memory where something was unmapped a moment ago, just as that was to be watched and protected.
TEST_P(ApiMappings, whoever_comes_to_be_watched_by_accident_can_write) {
  if (std::string(context().info().host_mirror) != "uffd") GTEST_SKIP() << "nobody is watched";
  Mapping m(4 * k_block), other(4 * k_block);
  context().register_memory(m.get(), 4 * k_block);
  for (unsigned i = 0; i < 4; ++i) m.words()[i * k_block / 4] = 1;
  context().advise(m.get(), 4 * k_block, HMMRT_ADVISE_SET_READ_MOSTLY, 0);
  context().prefetch(m.get(), 4 * k_block, 0);  // write-protects
  const int fd = userfaultfd_of(m.get());
  ASSERT_GE(fd, 0);
  char* const hole = m.get() + k_block + 8 * k_page;
  ASSERT_EQ(mmap(hole, 8 * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), hole);
  for (char* const at : {hole, other.get() + k_block}) {
    std::memset(at, 5, 8 * k_page);
    ASSERT_TRUE(watch(fd, at, 8 * k_page)) << std::strerror(errno);
    uffdio_writeprotect protect{};
    protect.range = {reinterpret_cast<std::uintptr_t>(at), 8 * k_page};
    protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
    ASSERT_EQ(ioctl(fd, UFFDIO_WRITEPROTECT, &protect), 0) << std::strerror(errno);
    for (std::size_t i = 0; i < 8; ++i) static_cast<volatile char*>(at)[i * k_page] = 6;
    for (std::size_t i = 0; i < 8 * k_page; ++i) ASSERT_EQ(at[i], i % k_page == 0 ? 6 : 5) << i;
  }
}

TEST_P(ApiMappings, memory_that_mremap_adds_is_ordinary_memory) {
  if (any_pointer()) GTEST_SKIP() << "registrations stay where they are; the new addresses need none";
  for (const bool in_place : {true, false}) {
    const auto reserve = [](std::size_t bytes) {
      return static_cast<std::uint32_t*>(
          mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    };
    auto* const p = reserve(64 * k_page);
    munmap(p + 8 * 1024, 56 * k_page);
    p[0] = 7;
    context().register_memory(p, 8 * k_page);
    context().prefetch(p, 8 * k_page, 0);
    void* const grown = in_place
                            ? mremap(p, 8 * k_page, 64 * k_page, 0)
                            : mremap(p, 8 * k_page, 64 * k_page, MREMAP_MAYMOVE | MREMAP_FIXED, reserve(64 * k_page));
    if (grown == MAP_FAILED && in_place) continue;  // somebody has mapped what was free
    ASSERT_NE(grown, MAP_FAILED) << std::strerror(errno);
    auto* const words = static_cast<volatile std::uint32_t*>(grown);
    EXPECT_EQ(words[0], 7u);
    for (std::size_t i = 8; i < 64; ++i) ASSERT_EQ(words[i * 1024], 0u) << i;
    words[20 * 1024] = 3;
    EXPECT_EQ(words[20 * 1024], 3u);
    EXPECT_EQ(hmmrt_unregister(handle(), grown), HMMRT_SUCCESS) << hmmrt_last_error_detail();
    EXPECT_EQ(words[0], 7u);
    munmap(grown, 64 * k_page);
  }
}

TEST_P(ApiMappings, what_mremap_leaves_mapped_reads_as_zero) {
  if (any_pointer()) GTEST_SKIP() << "registrations stay where they are; the new addresses need none";
  Mapping m(8 * k_page);
  m.words()[0] = 7;
  context().register_memory(m.get(), 8 * k_page);
  context().prefetch(m.get(), 8 * k_page, 0);
  constexpr int k_dont_unmap = 4;  // MREMAP_DONTUNMAP
  void* const moved = mremap(m.get(), 8 * k_page, 8 * k_page, MREMAP_MAYMOVE | k_dont_unmap, nullptr);
  ASSERT_NE(moved, MAP_FAILED) << std::strerror(errno);
  EXPECT_EQ(static_cast<std::uint32_t*>(moved)[0], 7u);
  EXPECT_EQ(m.words()[0], 0u);
  EXPECT_EQ(hmmrt_unregister(handle(), moved), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  munmap(moved, 8 * k_page);
}

TEST_P(ApiMappings, pins_move_with_their_memory_and_end_with_it) {
  if (any_pointer()) GTEST_SKIP() << "registrations stay where they are; the new addresses need none";
  void* const before = mmap(nullptr, 8 * k_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* const target = mmap(nullptr, 8 * k_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  context().register_memory(before, 8 * k_page);
  ASSERT_EQ(hmmrt_pin(handle(), before, 4 * k_page), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  void* const moved = mremap(before, 8 * k_page, 8 * k_page, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  ASSERT_EQ(moved, target) << std::strerror(errno);
  static_cast<volatile char*>(moved)[0] = 1;
  EXPECT_EQ(hmmrt_unpin(handle(), before, 4 * k_page), HMMRT_ERROR_NOT_MANAGED);
  EXPECT_EQ(hmmrt_unpin(handle(), moved, 4 * k_page), HMMRT_SUCCESS) << hmmrt_last_error_detail();
  EXPECT_NE(hmmrt_unpin(handle(), moved, 4 * k_page), HMMRT_SUCCESS);
  ASSERT_EQ(hmmrt_pin(handle(), moved, 4 * k_page), HMMRT_SUCCESS);
  EXPECT_EQ(hmmrt_unregister(handle(), moved), HMMRT_ERROR_PINNED);
  munmap(moved, 8 * k_page);
  EXPECT_EQ(hmmrt_unregister(handle(), moved), HMMRT_SUCCESS) << hmmrt_last_error_detail();
}

TEST_P(ApiMappings, unregistering_loses_nothing_to_a_prefetch_at_the_same_time) {
  Mapping m(60 * k_page);
  std::atomic<bool> stop{false};
  std::thread meddler([&] {
    while (!stop) (void)hmmrt_prefetch(handle(), m.get(), 60 * k_page, last_device(), nullptr);
  });
  for (std::uint32_t round = 1; round < 100; ++round) {
    for (std::size_t i = 0; i < 60; ++i) m.words()[i * 1024] = round;
    context().register_memory(m.get(), 60 * k_page);
    std::this_thread::yield();
    hmmrt_result_t result = HMMRT_ERROR_BUSY;
    while (result == HMMRT_ERROR_BUSY) result = hmmrt_unregister(handle(), m.get());
    ASSERT_EQ(result, HMMRT_SUCCESS) << hmmrt_last_error_detail();
    for (std::size_t i = 0; i < 60; ++i) ASSERT_EQ(m.words()[i * 1024], round) << i;
  }
  stop = true;
  meddler.join();
}

TEST_P(ApiMappings, memory_unmapped_during_a_launch_can_be_unregistered) {
  NOT_DRIVEN("a forbidden access ends the process");
  void* const p = mmap(nullptr, 8 * k_block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* const bytes = static_cast<char*>(p);
  context().register_memory(p, 8 * k_block);
  const hmmrt::stream s(context(), last_device());
  s.launch("add", 8 * k_block / 4, AddOne{hmmrt::gptr<std::uint32_t>(static_cast<std::uint32_t*>(p))});
  ASSERT_EQ(munmap(bytes + 2 * k_block, k_block), 0);
  (void)hmmrt_stream_synchronize(s.get());
  // Each part once: in the hole there may be somebody else's memory by now.
  ASSERT_EQ(munmap(bytes, 2 * k_block), 0);
  ASSERT_EQ(munmap(bytes + 3 * k_block, 5 * k_block), 0);
  EXPECT_EQ(hmmrt_unregister(handle(), p), HMMRT_SUCCESS) << hmmrt_last_error_detail();
}

TEST_P(ApiMappings, protection_is_mirrored_to_devices) {
  NEEDS_FAULTS("nobody sees a forbidden access");
  hmmrt::managed_buffer<std::uint32_t> b(context(), 1024);
  for (auto& v : b) v = 1;
  const hmmrt::stream s(context());
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  ASSERT_EQ(mprotect(b.data(), k_page, PROT_READ), 0);
  s.launch("denied", b.size(), AddOne{b.gpu()});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ACCESS_DENIED, "denied");
  EXPECT_EQ(b[5], 2u);
  ASSERT_EQ(mprotect(b.data(), k_page, PROT_NONE), 0);
  s.launch("denied", b.size(), AddOne{b.gpu()});
  EXPECT_EQ(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ACCESS_DENIED) << hmmrt_last_error_detail();
  ASSERT_EQ(mprotect(b.data(), k_page, PROT_READ | PROT_WRITE), 0);
  s.launch("add", b.size(), AddOne{b.gpu()});
  s.synchronize();
  for (const std::uint32_t v : b) ASSERT_EQ(v, 3u);
}

// The page of the kernel's that user space reads the time from.
std::uint32_t* kernels_page() {
  char line[256];
  std::size_t addr = 0;
  FILE* const maps = std::fopen("/proc/self/maps", "re");
  while (maps != nullptr && std::fgets(line, sizeof line, maps) != nullptr) {
    if (std::strstr(line, "[vvar]") != nullptr) (void)std::sscanf(line, "%zx", &addr);
  }
  if (maps != nullptr) std::fclose(maps);
  return reinterpret_cast<std::uint32_t*>(addr);
}

TEST_P(ApiMappings, memory_that_no_device_may_see_ends_the_launch) {
  if (!any_pointer()) GTEST_SKIP() << "only anonymous memory is ever managed";
  NOT_DRIVEN("a forbidden access ends the process");
  const hmmrt::stream s(context());
  if (std::uint32_t* const p = kernels_page(); p != nullptr) {
    s.launch("kernels", 1, AddOne{hmmrt::gptr<std::uint32_t>(p)});
    EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ACCESS_DENIED, "kernels");
  }
  const int file = static_cast<int>(syscall(447, 0));  // memfd_secret
  if (file < 0 || ftruncate(file, k_page) != 0) GTEST_SKIP() << "memfd_secret: " << std::strerror(errno);
  void* const secret = mmap(nullptr, k_page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ASSERT_NE(secret, MAP_FAILED);
  s.launch("secret", 1, AddOne{hmmrt::gptr<std::uint32_t>(static_cast<std::uint32_t*>(secret))});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ACCESS_DENIED, "secret");
  munmap(secret, k_page);
  close(file);
}

TEST_P(ApiMappings, a_system_atomic_that_cannot_be_one_ends_the_launch) {
  NOT_DRIVEN("nobody sees which access is an atomic");
  if (!any_pointer()) GTEST_SKIP() << "only anonymous memory is ever managed";
  open({{"system_atomics", "off"}});
  void* const shared = mmap(nullptr, k_page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  const hmmrt::stream s(context());
  s.launch("atomic", 1, Count{hmmrt::gptr<std::uint64_t>(static_cast<std::uint64_t*>(shared)), 1});
  EXPECT_API_ERROR(hmmrt_stream_synchronize(s.get()), HMMRT_ERROR_ACCESS_DENIED, "system_atomics");
  EXPECT_EQ(*static_cast<std::uint64_t*>(shared), 0u);
  munmap(shared, k_page);
}

TEST_P(ApiMappings, system_calls_reach_device_resident_memory) {
  if (context().info().kernel_faults == 0)
    GTEST_SKIP() << "no privilege for kernel-mode faults: " << context().info().host_note;
  hmmrt::managed_buffer<char> b(context(), 64 * k_page);
  std::memset(b.data(), 'x', b.bytes());
  const int file = memfd_create("hmmrt", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  b.prefetch(0);
  ASSERT_EQ(write(file, b.data(), b.bytes()), static_cast<ssize_t>(b.bytes())) << std::strerror(errno);
  std::memset(b.data(), 0, b.bytes());
  b.prefetch(last_device());
  ASSERT_EQ(pread(file, b.data(), b.bytes(), 0), static_cast<ssize_t>(b.bytes())) << std::strerror(errno);
  for (const char c : b) ASSERT_EQ(c, 'x');
  close(file);
}

TEST_P(ApiMappings, without_privilege_system_calls_fail_cleanly_and_work_after_a_prefetch) {
  if (context().info().kernel_faults != 0) GTEST_SKIP() << "this environment sees kernel-mode faults";
  EXPECT_GT(std::strlen(context().info().host_note), 20u);
  hmmrt::managed_buffer<char> b(context(), 4 * k_page);
  std::memset(b.data(), 'x', b.bytes());
  b.prefetch(0);
  const int file = memfd_create("hmmrt", MFD_CLOEXEC);
  EXPECT_EQ(write(file, b.data(), b.bytes()), -1);
  EXPECT_EQ(errno, EFAULT);
  b.prefetch(HMMRT_CPU);
  EXPECT_EQ(write(file, b.data(), b.bytes()), static_cast<ssize_t>(b.bytes()));
  close(file);
}

TEST_P(ApiMappings, a_forked_child_has_the_data_of_the_moment_and_no_library) {
  NEEDS_FAULTS("the CPU waits for the kernel, which waits for it");
  hmmrt::managed_buffer<std::uint32_t> stop(context(), 1024);
  hmmrt::managed_buffer<std::uint64_t> counter(context(), 512);
  hmmrt::managed_buffer<std::uint32_t> data(context(), k_block / 4);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::uint32_t>(i);
  data.prefetch(0);
  const hmmrt::stream s(context(), last_device());
  s.launch("spin", 64, Spin{counter.gpu(), stop.gpu()});  // keeps writing in the parent
  while (__atomic_load_n(counter.data(), __ATOMIC_RELAXED) == 0) {
  }
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const std::uint64_t first = counter[0];
    for (std::size_t i = 0; i < data.size(); ++i) {
      if (data[i] != i) _exit(1);
    }
    if (first == 0 || counter[0] != first) _exit(2);  // it stands still here
    data[0] = 12345;                                  // the child's own copy
    void* p = nullptr;
    if (hmmrt_alloc(handle(), 1, &p) != HMMRT_ERROR_FORKED || *hmmrt_last_error_detail() == '\0') _exit(3);
    if (hmmrt_context_destroy(handle()) != HMMRT_ERROR_FORKED) _exit(4);
    hmmrt_context_t fresh = nullptr;
    if (hmmrt_context_create(nullptr, &fresh) != HMMRT_ERROR_FORKED) _exit(5);
    exit(0);  // static destructors run
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "child status " << status;
  const std::uint64_t seen = __atomic_load_n(counter.data(), __ATOMIC_RELAXED);
  while (__atomic_load_n(counter.data(), __ATOMIC_RELAXED) == seen) {  // the kernel goes on
  }
  __atomic_store_n(stop.data(), 1u, __ATOMIC_RELEASE);
  s.synchronize();
  EXPECT_EQ(data[0], 0u);
}

TEST_P(ApiMappings, exit_with_a_live_context_and_a_running_kernel_ends) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // A fork of a process with contexts cannot use the library: start over.
    execl("/proc/self/exe", "conformance", "--gtest_filter=ApiExitHelper.*", "--gtest_also_run_disabled_tests",
          nullptr);
    _exit(9);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 42) << "child status " << status;
}

// Not a test of its own: the program of the one above. Leaves everything alive.
TEST(ApiExitHelper, DISABLED_leave) {
  hmmrt_context_t c = nullptr;
  hmmrt_stream_t s = nullptr;
  void* p = nullptr;
  hmmrt::check(hmmrt_context_create(nullptr, &c));
  hmmrt::check(hmmrt_stream_create(c, 0, &s));
  hmmrt::check(hmmrt_alloc(c, k_block, &p));
  auto* words = static_cast<std::uint64_t*>(p);
  hmmrt::check(hmmrt::launch(s, "spin", {64, 1, 1},
                             Spin{hmmrt::gptr<std::uint64_t>(words),
                                  hmmrt::gptr<std::uint32_t>(reinterpret_cast<std::uint32_t*>(words + 1024))}));
  while (__atomic_load_n(words, __ATOMIC_RELAXED) == 0) {
  }
  static std::uint64_t* kept = words;
  std::atexit([] {
    if (__atomic_load_n(kept, __ATOMIC_RELAXED) == 0) _exit(7);
  });  // runs before the library's own handler
  exit(42);
}

}  // namespace
