// SPDX-License-Identifier: MIT
// What the application does to managed memory behind the mirror's back: munmap, mremap, madvise, mprotect, fork, pins,
// system calls.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "uffd_fixture.hpp"

namespace hmmrt::test {
namespace {

class UffdEvents : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Paths, UffdEvents, testing::ValuesIn(k_variants), variant_name);

TEST_P(UffdEvents, madvise_dontneed_is_reported_and_reads_zero_afterwards) {
  World w(GetParam(), 1);
  w.fill(1);
  ASSERT_EQ(madvise(w.page(3), 2 * k_page_size, MADV_DONTNEED), 0);
  const HostEvent e = w.await(HostEventKind::remove);
  EXPECT_EQ(e.addr, w.base() + 3 * k_page_size);
  EXPECT_EQ(e.bytes, 2 * k_page_size);
  EXPECT_TRUE(all_bytes(w.page(3), 0));
  EXPECT_TRUE(all_bytes(w.page(5), 6));
}

TEST_P(UffdEvents, dropped_page_forgets_what_staging_kept) {
  World w(GetParam(), 1);
  w.fill(1);
  w.to_device(PageMask::all());
  ASSERT_EQ(madvise(w.page(3), k_page_size, MADV_DONTNEED), 0);
  w.await(HostEventKind::remove);
  w.claimed()->drop(w.base(), PageMask::one(3));
  EXPECT_EQ(w.claimed()->give_back(w.base(), PageMask::one(3)).not_populated, PageMask::one(3));
  ASSERT_EQ(w.claimed()->populate(w.base(), PageMask::one(3)).done, PageMask::one(3));
  EXPECT_TRUE(all_bytes(w.page(3), 0));
}

TEST_P(UffdEvents, page_dropped_and_touched_again_keeps_the_new_contents_at_delivery) {
  World w(GetParam(), 1);
  w.fill(1);
  w.to_device(PageMask::all());
  ASSERT_EQ(w.claimed()->populate(w.base(), PageMask::one(9)).done, PageMask::one(9));
  memset(w.page(9), 0x99, k_page_size);
  EXPECT_TRUE(w.to_host(PageMask::all()).done.full());
  EXPECT_TRUE(all_bytes(w.page(9), 0x99));
  EXPECT_TRUE(all_bytes(w.page(10), 11));
  // Staging still held page 9; withdrawing it again must not trip over that.
  EXPECT_TRUE(w.to_device(PageMask::all()).done.full());
  EXPECT_TRUE(all_bytes(w.frame(9), 0x99));
}

TEST_P(UffdEvents, munmap_of_part_is_reported_and_its_pages_are_gone) {
  World w(GetParam(), 2);
  w.fill(1, 2 * k_block_pages);
  w.to_device(PageMask::range(0, 8));
  ASSERT_EQ(munmap(w.page(4), 8 * k_page_size), 0);
  const HostEvent e = w.await(HostEventKind::unmap);
  EXPECT_EQ(e.addr, w.base() + 4 * k_page_size);
  EXPECT_EQ(e.bytes, 8 * k_page_size);
  const PageOutcome back = w.to_host(PageMask::range(0, 8));
  EXPECT_EQ(back.done, PageMask::range(0, 4));
  EXPECT_EQ(back.gone, PageMask::range(4, 4));
  const PageOutcome out = w.to_device(PageMask::range(0, 16));
  EXPECT_EQ(out.done, PageMask::range(0, 4) | PageMask::range(12, 4));
  EXPECT_EQ(out.gone, PageMask::range(4, 8));
  w.claimed()->drop(w.base(), PageMask::range(4, 8));
}

TEST_P(UffdEvents, release_leaves_alone_what_the_application_mapped_in_a_hole) {
  void* foreign = nullptr;
  {
    World w(GetParam(), 1);
    w.fill(1);
    w.to_device(PageMask::one(0));
    ASSERT_EQ(munmap(w.page(4), 8 * k_page_size), 0);
    w.await(HostEventKind::unmap);
    foreign = mmap(w.page(4), 8 * k_page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    ASSERT_NE(foreign, MAP_FAILED);
    memset(foreign, 0x44, 8 * k_page_size);
  }
  EXPECT_TRUE(all_bytes(static_cast<std::byte*>(foreign), 0x44));
  munmap(foreign, 8 * k_page_size);
}

TEST_P(UffdEvents, mremap_is_reported_and_rehome_takes_kept_contents_along) {
  World w(GetParam(), 1);
  for (const std::size_t skew : {std::size_t{0}, 5 * k_page_size}) {
    w.forget_events();
    const std::size_t bytes = k_block_size;
    const std::uintptr_t from = map_aligned(bytes, PROT_READ | PROT_WRITE);
    auto* const old = reinterpret_cast<std::byte*>(from);
    ASSERT_TRUE(w.mirror->attach(from, bytes).ok());
    for (unsigned i = 0; i < k_block_pages; ++i) memset(old + i * k_page_size, static_cast<int>(i & 0xff), k_page_size);
    const PageMask kept = PageMask::range(0, 300);
    const PageOutcome out = w.claimed()->make_exclusive(from, kept);
    ASSERT_EQ(out.done, kept);
    const std::uintptr_t area = map_aligned(2 * k_block_size, PROT_NONE);
    auto* const target = reinterpret_cast<std::byte*>(area + skew);
    ASSERT_EQ(mremap(old, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target), target);
    const HostEvent e = w.await(HostEventKind::remap);
    EXPECT_EQ(e.addr, from);
    EXPECT_EQ(e.to, area + skew);
    EXPECT_EQ(e.bytes, bytes);
    ASSERT_TRUE(w.claimed()->rehome(e.addr, e.to, e.bytes).ok()) << failure_detail();
    for (unsigned i = 0; i < k_block_pages; ++i) {
      const std::uintptr_t at = e.to + i * k_page_size;
      if (kept.test(i)) {
        ASSERT_TRUE(all_bytes(w.mirror->exclusive_address(at), i)) << i;
        ASSERT_TRUE(w.claimed()->give_back(block_floor(at), PageMask::one(page_in_block(at))).done.any());
      }
      ASSERT_TRUE(all_bytes(target + i * k_page_size, i)) << i;
    }
    w.mirror->detach(e.to, bytes);
    munmap(reinterpret_cast<void*>(area), 2 * k_block_size);
    ASSERT_EQ(mmap(old, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0), old);
    EXPECT_TRUE(w.mirror->attach(from, bytes).ok()) << "still attached at its old place: " << failure_detail();
    w.mirror->detach(from, bytes);
    munmap(old, bytes);
  }
}

TEST_P(UffdEvents, mprotect_none_forbids_withdrawal_and_delivery_still_works_beneath_it) {
  World w(GetParam(), 1);
  w.fill(1);
  w.to_device(PageMask::range(0, 4));
  ASSERT_EQ(mprotect(w.page(2), 4 * k_page_size, PROT_NONE), 0);
  EXPECT_EQ(w.to_device(PageMask::range(4, 4)).forbidden, PageMask::range(4, 2));
  EXPECT_EQ(w.to_device(PageMask::range(6, 2)).taken().count(), 0u + 2u);
  EXPECT_EQ(w.to_host(PageMask::range(0, 4)).done, PageMask::range(0, 4));
  ASSERT_EQ(mprotect(w.page(2), 4 * k_page_size, PROT_READ | PROT_WRITE), 0);
  for (unsigned i = 0; i < 6; ++i) {
    ASSERT_TRUE(all_bytes(w.page(i), 1 + i)) << i;
    w.page(i)[0] = std::byte{7};
  }
  EXPECT_EQ(w.to_device(PageMask::range(0, 6)).done, PageMask::range(0, 6));
}

TEST_P(UffdEvents, read_only_mapping_still_migrates) {
  World w(GetParam(), 1);
  w.fill(1);
  ASSERT_EQ(mprotect(w.page(0), 8 * k_page_size, PROT_READ), 0);
  EXPECT_EQ(w.to_device(PageMask::range(0, 16)).done, PageMask::range(0, 16));
  EXPECT_TRUE(all_bytes(w.frame(3), 4));
  EXPECT_TRUE(all_bytes(w.page(3), 4));  // faults home
  std::vector<Rights> rights;
  w.mirror->query_rights(
      w.base(), 16 * k_page_size,
      [](void* arg, std::uintptr_t, std::size_t, Rights r) { static_cast<std::vector<Rights>*>(arg)->push_back(r); },
      &rights);
  EXPECT_EQ(rights, (std::vector{Rights::read, Rights::write}));
}

TEST_P(UffdEvents, pages_shared_by_fork_migrate_and_the_child_keeps_its_own) {
  World w(GetParam(), 2);
  w.fill(1, 2 * k_block_pages);
  int to_child[2];
  int from_child[2];
  ASSERT_EQ(pipe(to_child), 0);
  ASSERT_EQ(pipe(from_child), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    char c = 0;
    if (read(to_child[0], &c, 1) != 1) _exit(2);
    for (unsigned i = 0; i < k_block_pages; ++i) {
      if (!all_bytes(w.page(i), 1 + i)) _exit(1);
    }
    _exit(0);
  }
  EXPECT_TRUE(w.to_device(PageMask::all()).done.full());
  memset(w.frame(0), 0x70, k_page_size);
  EXPECT_TRUE(w.to_host(PageMask::all()).done.full());
  EXPECT_TRUE(all_bytes(w.page(0), 0x70));
  EXPECT_TRUE(all_bytes(w.page(1), 2));
  // A duplicated page that is shared leaves without becoming writable in between.
  EXPECT_TRUE(w.to_device(PageMask::all(), true, 1).done.full());
  const PageOutcome out = w.to_device(PageMask::range(0, 8), false, 1);
  EXPECT_EQ(out.done, PageMask::range(0, 8));
  EXPECT_EQ(write(to_child[1], "x", 1), 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  for (const int fd : {to_child[0], to_child[1], from_child[0], from_child[1]}) close(fd);
}

// An io_uring registered buffer is a long-term pin.
class Pin {
 public:
  Pin(void* at, std::size_t bytes) {
    io_uring_params params{};
    fd_ = static_cast<int>(syscall(SYS_io_uring_setup, 4, &params));
    if (fd_ < 0) return;
    iovec v{at, bytes};
    ok = syscall(SYS_io_uring_register, fd_, IORING_REGISTER_BUFFERS, &v, 1) == 0;
  }
  ~Pin() {
    if (fd_ < 0) return;
    syscall(SYS_io_uring_register, fd_, IORING_UNREGISTER_BUFFERS, nullptr, 0);
    close(fd_);
  }
  bool ok = false;

 private:
  int fd_ = -1;
};

TEST_P(UffdEvents, pinned_pages_stay_where_they_are) {
  World w(GetParam(), 2);
  if (!w.move()) GTEST_SKIP() << "the fallback path cannot see pins";
  madvise(w.page(0, 1), k_block_size, MADV_NOHUGEPAGE);
  w.fill(1, 2 * k_block_pages);
  {
    const Pin huge(w.page(5), k_page_size);
    const Pin small(w.page(5, 1), k_page_size);
    if (!huge.ok || !small.ok) GTEST_SKIP() << "io_uring is not available: " << strerror(errno);
    EXPECT_TRUE(w.to_device(PageMask::all()).pinned.test(5));
    const PageOutcome out = w.to_device(PageMask::all(), false, 1);
    EXPECT_EQ(out.pinned, PageMask::one(5));
    EXPECT_EQ(out.done.count(), 511u);
    EXPECT_TRUE(all_bytes(w.page(5), 6));
    EXPECT_TRUE(all_bytes(w.page(5, 1), 6));
    EXPECT_EQ(w.fault_count(), 0u);
  }
  EXPECT_TRUE(w.to_device(PageMask::one(5), false, 1).done.any());
}

TEST_P(UffdEvents, pinned_huge_page_gives_no_pieces_away_until_the_pin_ends) {
  for (const bool no_huge : {false, true}) {
    World w(GetParam(), 1);
    if (!w.move()) GTEST_SKIP() << "the fallback path cannot see pins";
    w.fill(1);
    if (!w.mirror->huge(w.base())) GTEST_SKIP() << "no huge page to be had";
    if (no_huge) madvise(w.memory, k_block_size, MADV_NOHUGEPAGE);  // it stays huge
    const PageMask pieces = PageMask::range(100, 16) | PageMask::one(300);
    {
      const Pin pin(w.page(105), k_page_size);
      if (!pin.ok) GTEST_SKIP() << "io_uring is not available: " << strerror(errno);
      const PageOutcome out = w.to_device(pieces);
      EXPECT_TRUE((out.pinned | out.busy).test(105));
      EXPECT_FALSE(out.taken().test(105));
      EXPECT_TRUE(all_bytes(w.page(105), 106));
      w.page(105)[0] = std::byte{106};  // not left write-protected either
      EXPECT_EQ(w.fault_count(), 0u);
    }
    EXPECT_EQ(w.to_host(PageMask::all()).done, PageMask::all());
    EXPECT_EQ(w.to_device(pieces).done, pieces);
    EXPECT_TRUE(all_bytes(w.frame(105), 106));
  }
}

TEST_P(UffdEvents, locked_block_stays_locked_and_counts_as_pinned) {
  World w(GetParam(), 1);
  w.fill(1);
  if (syscall(SYS_mlock, w.memory, k_block_size) != 0) GTEST_SKIP() << "mlock: " << strerror(errno);
  EXPECT_TRUE(w.to_device(PageMask::all()).pinned.full());
  EXPECT_EQ(msync(w.memory, k_block_size, MS_ASYNC | MS_INVALIDATE), -1);  // EBUSY: locked
  EXPECT_TRUE(all_bytes(w.page(4), 5));
  EXPECT_EQ(w.fault_count(), 0u);
  syscall(SYS_munlock, w.memory, k_block_size);
}

TEST_P(UffdEvents, locked_pages_count_as_pinned) {
  World w(GetParam(), 1);
  w.fill(1);
  // Not mlock(): the sanitizers replace it by nothing.
  if (syscall(SYS_mlock, w.page(4), 2 * k_page_size) != 0) GTEST_SKIP() << "mlock: " << strerror(errno);
  const PageOutcome out = w.to_device(PageMask::range(0, 8));
  EXPECT_EQ(out.pinned, PageMask::range(4, 2));
  EXPECT_EQ(out.done.count(), 6u);
  w.page(4)[0] = std::byte{1};
  EXPECT_EQ(w.fault_count(), 0u);
  syscall(SYS_munlock, w.page(4), 2 * k_page_size);
}

TEST_P(UffdEvents, system_calls_reach_withdrawn_pages_when_privileged) {
  World w(GetParam(), 1);
  if (!w.mirror->info().kernel_faults) GTEST_SKIP() << w.mirror->info().note;
  w.fill(1);
  w.to_device(PageMask::all());
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  ASSERT_EQ(write(fds[1], w.page(3), k_page_size), static_cast<ssize_t>(k_page_size));
  ASSERT_EQ(read(fds[0], w.page(8), k_page_size), static_cast<ssize_t>(k_page_size));
  EXPECT_TRUE(all_bytes(w.page(8), 4));
  close(fds[0]);
  close(fds[1]);
}

TEST_P(UffdEvents, system_calls_fail_cleanly_without_privilege_and_the_note_says_so) {
  World w(GetParam(), 1, true);
  ASSERT_TRUE(w.mirror) << failure_detail();
  EXPECT_FALSE(w.mirror->info().kernel_faults);
  EXPECT_NE(w.mirror->info().note.find("vm.unprivileged_userfaultfd"), std::string::npos);
  w.fill(1);
  w.to_device(PageMask::all());
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  EXPECT_EQ(write(fds[1], w.page(3), k_page_size), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_TRUE(all_bytes(w.page(3), 4));  // user-mode faults work
  EXPECT_EQ(write(fds[1], w.page(3), k_page_size), static_cast<ssize_t>(k_page_size));
  close(fds[0]);
  close(fds[1]);
}

TEST_P(UffdEvents, application_removal_during_a_copied_withdrawal_blocks_nobody) {
  World w(GetParam(), 1);
  w.fill(1);
  Transfer t = w.transfer(Direction::to_device, PageMask::range(0, 8));
  t.duplicate = true;
  w.mirror->prepare(t);
  ASSERT_EQ(madvise(w.page(2), k_page_size, MADV_DONTNEED), 0);
  ASSERT_EQ(munmap(w.page(6), k_page_size), 0);
  w.hold_faults(true);  // nobody may serve the claimed block
  w.mirror->copy(t);
  ASSERT_TRUE(w.mirror->finish_copy(t));
  w.mirror->commit(t);
  EXPECT_EQ(t.outcome.gone, PageMask::one(6));
  EXPECT_EQ(t.outcome.done.count(), 7u);
  EXPECT_TRUE(all_bytes(w.page(2), 0));
  EXPECT_EQ(w.fault_count(), 0u);
}

// It would wait for itself, and with it everybody whose event or fault it has not read.
TEST(UffdReader, does_not_sleep_while_an_event_is_to_be_read) {
  uffd::Probe probe;
  const Status status = uffd::probe(false, &probe);
  ASSERT_TRUE(status.ok());
  uffd::Uffd uffd(uffd::open_uffd(probe, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE));
  const std::uintptr_t at = map_aligned(k_block_size, PROT_READ | PROT_WRITE);
  void* const memory = reinterpret_cast<void*>(at);
  memset(memory, 1, k_page_size);
  ASSERT_EQ(uffd.watch(at, k_block_size, UFFDIO_REGISTER_MODE_WP), 0);
  std::thread application([&] { madvise(memory, k_page_size, MADV_DONTNEED); });
  pollfd unread{uffd.fd(), POLLIN, 0};
  ASSERT_EQ(poll(&unread, 1, -1), 1);
  const auto naps = [&] {  // of 20 calls
    rusage before{};
    rusage after{};
    getrusage(RUSAGE_THREAD, &before);
    for (unsigned i = 0; i < 20; ++i) EXPECT_EQ(uffd.write_protect(at, k_page_size, true), EAGAIN);
    getrusage(RUSAGE_THREAD, &after);
    return after.ru_nvcsw - before.ru_nvcsw;
  };
  EXPECT_GE(naps(), 20);
  uffd.read_here();
  EXPECT_LT(naps(), 20);
  uffd_msg message{};
  EXPECT_EQ(read(uffd.fd(), &message, sizeof message), static_cast<ssize_t>(sizeof message));
  EXPECT_EQ(message.event, UFFD_EVENT_REMOVE);
  application.join();
  EXPECT_EQ(uffd.write_protect(at, k_page_size, true), 0);
  munmap(memory, k_block_size);
}

}  // namespace
}  // namespace hmmrt::test
