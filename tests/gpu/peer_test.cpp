// SPDX-License-Identifier: MIT
// Several GPUs without retryable faults in one context: what one has, another takes from it.
#include "conformance/api_environment.hpp"

namespace api_test {
namespace {

using Buffer = hmmrt::managed_buffer<std::uint32_t>;
constexpr std::size_t k_mib = std::size_t{1} << 20;

class GpuPeers : public ApiTest {
 protected:
  hmmrt_location_t residency(const Buffer& b) {
    hmmrt_location_t where = HMMRT_INVALID_LOCATION;
    hmmrt::check(hmmrt_range_get_attribute(handle(), &where, sizeof where, HMMRT_RANGE_RESIDENCY, b.data(), b.bytes()));
    return where;
  }
  static void add_one(const hmmrt::stream& s, Buffer& b) {
    s.attach(b.data(), b.bytes());
    s.launch("add", b.size(), AddOne{b.gpu()});
    s.synchronize();
  }
};

TEST_P(GpuPeers, a_launch_takes_pages_from_another_gpu) {
  NOT_DRIVEN("the driver copies, by way of system memory");
  EXPECT_NE(context().device_info(1).capabilities & HMMRT_DEVICE_PEER_COPY, 0u);
  EXPECT_EQ(context().device_info(1).capabilities & HMMRT_DEVICE_PEER, 0u);
  // Elsewhere first, so that a page has another frame on each.
  Buffer elsewhere(context(), 24 * k_mib / 4), b(context(), 6 * k_mib / 4);
  const hmmrt::stream first(context(), 0), second(context(), 1);
  add_one(second, elsewhere);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::uint32_t>(i);
  add_one(first, b);
  ASSERT_EQ(residency(b), 0);
  const hmmrt_stats_t before = context().stats();
  add_one(second, b);
  EXPECT_EQ(residency(b), 1);
  add_one(first, b);
  EXPECT_EQ(residency(b), 0);
  const hmmrt_stats_t after = context().stats();
  EXPECT_EQ(hmmrt::bytes_peer(after) - hmmrt::bytes_peer(before), 2 * b.bytes());
  EXPECT_EQ(hmmrt::bytes_to_host(after), hmmrt::bytes_to_host(before));
  EXPECT_EQ(hmmrt::bytes_to_device(after), hmmrt::bytes_to_device(before));
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], i + 3);
}

TEST_P(GpuPeers, prefetch_from_gpu_to_gpu_copies_no_byte_twice) {
  NOT_DRIVEN("the driver copies, by way of system memory");
  Buffer b(context(), 4 * k_mib / 4);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::uint32_t>(i);
  context().prefetch(b.data(), b.bytes(), 0);
  for (int to : {1, 0, 1}) context().prefetch(b.data(), b.bytes(), to);
  EXPECT_EQ(residency(b), 1);
  EXPECT_EQ(hmmrt::bytes_peer(context().stats()), 3 * b.bytes());
  EXPECT_EQ(hmmrt::bytes_to_host(context().stats()), 0u);
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], i);
}

// Odd pages here, even ones there and on the CPU: many runs of one page.
TEST_P(GpuPeers, scattered_pages_come_from_wherever_they_are) {
  NOT_DRIVEN("the driver copies, by way of system memory");
  Buffer b(context(), 4 * k_mib / 4);
  constexpr std::size_t k_words = k_page / 4;
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = static_cast<std::uint32_t>(i);
  for (std::size_t page = 0; page * k_words < b.size(); ++page) {
    if (page % 3 != 2) context().prefetch(b.data() + page * k_words, k_page, static_cast<int>(page % 3));
  }
  const hmmrt::stream second(context(), 1);
  add_one(second, b);
  EXPECT_EQ(residency(b), 1);
  const std::size_t pages = b.bytes() / k_page;
  EXPECT_EQ(hmmrt::bytes_peer(context().stats()), (pages + 2) / 3 * k_page);
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], i + 1);
}

TEST_P(GpuPeers, without_peer_copies_pages_come_by_way_of_system_memory) {
  NOT_DRIVEN("that is all there is");
  open({{"peer", "off"}});
  EXPECT_EQ(context().device_info(1).capabilities & HMMRT_DEVICE_PEER_COPY, 0u);
  Buffer b(context(), 4 * k_mib / 4);
  const hmmrt::stream first(context(), 0), second(context(), 1);
  add_one(first, b);
  add_one(second, b);
  EXPECT_EQ(hmmrt::bytes_peer(context().stats()), 0u);
  EXPECT_EQ(hmmrt::bytes_to_host(context().stats()), b.bytes());
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], 2u);
}

// Pinned, so used where it is, in system memory; nothing is mapped on the other.
TEST_P(GpuPeers, what_is_used_in_place_comes_home_from_another_gpu_first) {
  Buffer b(context(), 4 * k_mib / 4);
  const hmmrt::stream first(context(), 0), second(context(), 1);
  add_one(first, b);
  hmmrt::check(hmmrt_pin(handle(), b.data(), k_page));
  add_one(second, b);
  hmmrt::check(hmmrt_unpin(handle(), b.data(), k_page));
  for (std::size_t i = 0; i < b.size(); ++i) ASSERT_EQ(b[i], 2u);
}

INSTANTIATE_TEST_SUITE_P(each, GpuPeers, ::testing::ValuesIn(environments({2})),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

}  // namespace
}  // namespace api_test
