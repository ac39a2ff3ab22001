// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>
#include <string>
#include <vector>

#include "host/kfd/smi_reader.hpp"

namespace hmmrt::kfd {
namespace {

constexpr std::uint32_t k_gpu = 0x1001, k_other = 0x1002;
constexpr std::uintptr_t k_at = std::uintptr_t{1} << 40;

std::uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_BOOTTIME, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(t.tv_nsec);
}

// The driver's end of a pipe.
class SmiReaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    driver_ = ends[1];
    reader_ =
        std::make_unique<SmiReader>(std::vector<int>{ends[0]}, std::vector<SmiReader::Gpu>{{k_gpu, 1}, {k_other, 2}});
  }
  void TearDown() override { close(driver_); }

  void say(const std::string& lines) {
    ASSERT_EQ(write(driver_, lines.data(), lines.size()), static_cast<ssize_t>(lines.size()));
    (void)reader_->read();
  }
  // A migration of `pages` that ended now.
  static std::string moved(std::uintptr_t at, std::uint64_t pages, std::uint32_t from, std::uint32_t to, int trigger,
                           std::uint64_t ns) {
    char text[256];
    std::snprintf(text, sizeof text, "5 %llu -%d @%zx(%llx) %x->%x 0:ffffffff %d\n6 %llu -%d @%zx(%llx) %x->%x %d\n",
                  static_cast<unsigned long long>(ns - 500), getpid(), at >> k_page_shift,
                  static_cast<unsigned long long>(pages), from, to, trigger, static_cast<unsigned long long>(ns),
                  getpid(), at >> k_page_shift, static_cast<unsigned long long>(pages), from, to, trigger);
    return text;
  }
  static std::string fault(std::uintptr_t at, std::uint64_t ns) {
    char text[256];
    std::snprintf(text, sizeof text, "7 %llu -%d @%zx(%x) W\n8 %llu -%d @%zx(%x) M\n",
                  static_cast<unsigned long long>(ns - 900), getpid(), at >> k_page_shift, k_gpu,
                  static_cast<unsigned long long>(ns), getpid(), at >> k_page_shift, k_gpu);
    return text;
  }
  std::vector<DriverRecord> records() {
    std::vector<DriverRecord> all(8192);
    all.resize(reader_->take(all));
    return all;
  }

  int driver_ = -1;
  std::unique_ptr<SmiReader> reader_;
};

TEST_F(SmiReaderTest, a_fault_and_its_end_are_two_records) {
  say(fault(k_at, now_ns()));
  const auto all = records();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].kind, DriverRecord::Kind::fault);
  EXPECT_EQ(all[0].to, 1);
  EXPECT_EQ(all[0].addr, k_at);
  EXPECT_EQ(all[0].access, Access::write);
  EXPECT_EQ(all[1].kind, DriverRecord::Kind::served);
  EXPECT_EQ(all[1].took_ns, 900u);
}

TEST_F(SmiReaderTest, a_migration_is_a_record_a_block) {
  say(moved(k_at + 4096, 1024, 0, k_other, 1, now_ns()));
  const auto all = records();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].addr, k_at + 4096);
  EXPECT_EQ(all[0].bytes, k_block_size - 4096);
  EXPECT_EQ(all[0].took_ns, 500u);
  EXPECT_EQ(all[1].bytes, k_block_size);
  EXPECT_EQ(all[2].bytes, 4096u);
  for (const DriverRecord& r : all) {
    EXPECT_EQ(r.from, k_cpu);
    EXPECT_EQ(r.to, 2);
    EXPECT_EQ(r.cause, Cause::fault);
  }
}

TEST_F(SmiReaderTest, what_was_asked_since_makes_older_reports_void) {
  const std::uint64_t before = now_ns();
  { const SmiReader::Asking asking(*reader_, k_at, k_block_size); }
  say(moved(k_at, 1024, 0, k_gpu, 1, before));
  auto all = records();
  ASSERT_EQ(all.size(), 1u);  // of the second block, which nobody asked about
  EXPECT_EQ(all[0].addr, k_at + k_block_size);
  say(moved(k_at, 512, k_gpu, 0, 2, now_ns()));
  EXPECT_EQ(records().size(), 1u);
}

TEST_F(SmiReaderTest, while_something_is_asked_nothing_about_it_counts) {
  const SmiReader::Asking asking(*reader_, k_at, k_block_size);
  say(moved(k_at, 512, 0, k_gpu, 0, now_ns()));
  EXPECT_TRUE(records().empty());
}

TEST_F(SmiReaderTest, gpus_of_others_and_migrations_that_failed_are_passed_over) {
  say(moved(k_at, 512, 0, 0x7777, 1, now_ns()));
  char text[128];
  std::snprintf(text, sizeof text, "6 %llu -%d @%zx(200) 0->%x 1 -12\n", static_cast<unsigned long long>(now_ns()),
                getpid(), k_at >> k_page_shift, k_gpu);
  say(text);
  EXPECT_TRUE(records().empty());
}

TEST_F(SmiReaderTest, unmapping_from_the_cpu_is_an_event_for_the_host) {
  char text[128];
  std::snprintf(text, sizeof text, "b %llu -%d @%zx(200) %x 2\nb %llu -%d @%zx(200) %x 1\n",
                static_cast<unsigned long long>(now_ns()), getpid(), k_at >> k_page_shift, k_gpu,
                static_cast<unsigned long long>(now_ns()), getpid(), k_at >> k_page_shift, k_gpu);
  say(text);
  std::vector<HostEvent> events(8);
  ASSERT_EQ(reader_->take_unmapped(events), 1u);
  EXPECT_EQ(events[0].kind, HostEventKind::unmap);
  EXPECT_EQ(events[0].bytes, k_block_size);
}

TEST_F(SmiReaderTest, a_buffer_found_full_counts_as_a_loss) {
  std::string lines;
  while (lines.size() + 90 < 1024) lines += fault(k_at + lines.size() * 4096, now_ns());
  lines.resize(lines.rfind('\n', 1023) + 1);
  ASSERT_GT(lines.size(), 1024u - 96u);
  EXPECT_EQ(reader_->stats().loss, SmiLoss::possible);
  say(lines);
  EXPECT_EQ(reader_->stats().full, 1u);
  EXPECT_EQ(reader_->stats().loss, SmiLoss::likely);
  EXPECT_GT(reader_->stats().lost(), 0u);
}

TEST_F(SmiReaderTest, a_full_ring_loses_records_and_says_so) {
  say(moved(k_at, 512u * 5000, 0, k_gpu, 1, now_ns()));
  EXPECT_EQ(records().size(), 4096u);
  EXPECT_EQ(reader_->stats().overflowed, 5000u - 4096u);
}

TEST_F(SmiReaderTest, an_end_without_its_start_still_counts_the_fault) {
  const std::string both = fault(k_at, now_ns());
  say(both.substr(both.find('\n') + 1));
  const auto all = records();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].kind, DriverRecord::Kind::fault);
  EXPECT_EQ(reader_->stats().loss, SmiLoss::likely);
}

}  // namespace
}  // namespace hmmrt::kfd
