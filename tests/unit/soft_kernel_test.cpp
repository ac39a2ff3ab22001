// SPDX-License-Identifier: MIT
// kernel.hpp on the software GPU: what a kernel author writes, against plain arrays.
#include <cmath>
#include <numeric>

#include "soft_harness.hpp"

namespace hmmrt::test {
namespace {

struct Scale {
  gptr<double> x;
  double a;
  void operator()(const item& i) const { x[static_cast<std::ptrdiff_t>(i.x)] *= a; }
};

TEST(SoftKernel, every_item_of_the_grid_runs_once) {
  Rig rig;
  Region region(2);
  constexpr std::size_t n = 100'003;
  for (std::size_t i = 0; i < n; ++i) region.contents<double>()[i] = static_cast<double>(i);
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.run({n, 1, 1}, Scale{region.at<double>(), 3}).result, HMMRT_SUCCESS);
  service.bring_home();
  for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(region.contents<double>()[i], 3.0 * static_cast<double>(i));
}

struct Place {
  gptr<std::uint64_t> out;
  void operator()(const item& i) const { out[static_cast<std::ptrdiff_t>(i.linear())] = i.x | i.y << 20 | i.z << 40; }
};

TEST(SoftKernel, items_know_their_place_in_three_dimensions) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.run({7, 5, 3}, Place{region.at<std::uint64_t>()}).result, HMMRT_SUCCESS);
  service.bring_home();
  std::size_t at = 0;
  for (std::uint64_t z = 0; z < 3; ++z) {
    for (std::uint64_t y = 0; y < 5; ++y) {
      for (std::uint64_t x = 0; x < 7; ++x) EXPECT_EQ(region.contents<std::uint64_t>()[at++], x | y << 20 | z << 40);
    }
  }
}

struct Node {
  std::uint64_t value;
  Node* next;
  gptr<Node> other;
  int numbers[3];
};
static_assert(std::is_trivially_copyable_v<Node>);

struct SumList {
  gptr<Node> head;
  gptr<std::uint64_t> sum;
  void operator()(const item&) const {
    std::uint64_t s = 0;
    for (gptr<Node> p = head; p != nullptr; p = gptr<Node>(p->next)) {
      s += p->value;
      p.member(&Node::numbers)[1] += 5;
      *p.member(&Node::other) = p;
    }
    *sum = s;
  }
};

TEST(SoftKernel, a_linked_list_of_plain_pointers_is_walked) {
  Rig rig;
  Region region(4);
  constexpr unsigned n = 500;
  // Nodes scattered over all pages; the pointers stored are managed addresses.
  const auto offset = [&](unsigned i) { return 64 + std::size_t{i * 769 % n} * 16320 / 8 * 8; };
  std::uint64_t want = 0;
  for (unsigned i = 0; i < n; ++i) {
    Node& node = *region.contents<Node>(offset(i));
    node.value = i * i;
    want += node.value;
    node.next = i + 1 < n ? region.at<Node>(offset(i + 1)).get() : nullptr;
  }
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.run({1, 1, 1}, SumList{region.at<Node>(offset(0)), region.at<std::uint64_t>()}).result, HMMRT_SUCCESS);
  service.bring_home();
  EXPECT_EQ(*region.contents<std::uint64_t>(), want);
  for (unsigned i = 0; i < n; ++i) {
    EXPECT_EQ(region.contents<Node>(offset(i))->numbers[1], 5);
    EXPECT_EQ(region.contents<Node>(offset(i))->other.get(), region.at<Node>(offset(i)).get());
  }
}

TEST(SoftKernel, outside_a_kernel_gptr_is_a_plain_pointer) {
  Node node{7, nullptr, nullptr, {1, 2, 3}};
  gptr<Node> p = &node;
  EXPECT_EQ(p->value, 7u);
  *p.member(&Node::value) += 3;
  EXPECT_EQ(node.value, 10u);
  gptr<int> q = p.member(&Node::numbers);
  EXPECT_EQ(q[2], 3);
  q[0]++;
  ++q[0];
  EXPECT_EQ(node.numbers[0], 3);
  gptr<const int> c = q;
  EXPECT_EQ(*(c + 1), 2);
  EXPECT_EQ(atomic_fetch_add(q, 4), 3);
  EXPECT_EQ(atomic_load(q), 7);
  int seen = 0;
  with_spans([&](const int* a, std::size_t o, std::size_t k) { seen += a[0] + static_cast<int>(o + k); }, read(q, 3));
  EXPECT_EQ(seen, 10);
  EXPECT_FALSE(in_kernel());
}

struct Straddling {  // 24 bytes: some straddle pages
  std::uint64_t a, b, c;
};
struct TouchStraddling {
  gptr<Straddling> x;
  void operator()(const item& i) const {
    const auto k = static_cast<std::ptrdiff_t>(i.x);
    Straddling v = x[k];
    v.a += 1, v.b += 2, v.c += 3;
    x[k] = v;
  }
};
struct TouchStraddlingSpans {
  gptr<Straddling> x;
  std::size_t n;
  void operator()(const item&) const {
    with_spans(
        [](Straddling* p, std::size_t offset, std::size_t count) {
          for (std::size_t i = 0; i < count; ++i) p[i].a += offset + i, p[i].c += 1;
        },
        read_write(x, n));
  }
};

TEST(SoftKernel, values_that_straddle_pages_are_whole) {
  Rig rig;
  Region region(1);
  constexpr std::size_t n = 4000;
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.run({n, 1, 1}, TouchStraddling{region.at<Straddling>()}).result, HMMRT_SUCCESS);
  EXPECT_EQ(rig.run({1, 1, 1}, TouchStraddlingSpans{region.at<Straddling>(), n}).result, HMMRT_SUCCESS);
  service.bring_home();
  for (std::size_t i = 0; i < n; ++i) {
    const Straddling& s = region.contents<Straddling>()[i];
    ASSERT_EQ(s.a, 1 + i);
    ASSERT_EQ(s.b, 2u);
    ASSERT_EQ(s.c, 4u);
  }
}

struct Axpy {
  gptr<float> x, y, z;
  std::size_t n;
  void operator()(const item&) const {
    with_spans(
        [](const float* a, const float* b, float* c, std::size_t, std::size_t count) {
          for (std::size_t i = 0; i < count; ++i) c[i] = 2 * a[i] + b[i];
        },
        read(x, n), read(y, n), write(z, n));
  }
};

TEST(SoftKernel, spans_visit_every_element_in_order_over_scattered_frames) {
  Rig rig;
  Region region(3);
  constexpr std::size_t n = 200'000;
  for (std::size_t i = 0; i < n; ++i) {
    region.contents<float>()[i] = static_cast<float>(i % 1000);
    region.contents<float>(k_block_size + 12)[i] = static_cast<float>(i % 77);
  }
  Service service(rig.device, rig.bell, region);
  const Axpy k{region.at<float>(), region.at<float>(k_block_size + 12), region.at<float>(2 * k_block_size + 400), n};
  EXPECT_EQ(rig.run({1, 1, 1}, k).result, HMMRT_SUCCESS);
  EXPECT_GT(service.largest_batch(), 30u);  // one miss reports many pages
  service.bring_home();
  for (std::size_t i = 0; i < n; ++i) {
    ASSERT_EQ(region.contents<float>(2 * k_block_size + 400)[i],
              2 * static_cast<float>(i % 1000) + static_cast<float>(i % 77));
  }
}

struct Nested {
  gptr<int> x;
  void operator()(const item&) const {
    with_spans([this](int* p, std::size_t, std::size_t) { p[0] = x[1]; }, write(x, 4));
  }
};

TEST(SoftKernel, an_access_inside_a_span_fails_the_launch) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.run({1, 1, 1}, Nested{region.at<int>()}).result, HMMRT_ERROR_INVALID_VALUE);
  EXPECT_NE(std::string(failure_detail()).find("with_spans"), std::string::npos) << failure_detail();
  EXPECT_EQ(rig.run({64, 1, 1}, Scale{region.at<double>(4096), 1}).result, HMMRT_SUCCESS);  // usable afterwards
}

struct Unequal {
  gptr<int> x;
  void operator()(const item&) const {
    with_spans([](const int*, const int*, std::size_t, std::size_t) {}, read(x, 4), read(x, 5));
  }
};

TEST(SoftKernel, operands_of_different_lengths_fail_the_launch) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  EXPECT_EQ(rig.run({1, 1, 1}, Unequal{region.at<int>()}).result, HMMRT_ERROR_INVALID_VALUE);
}

struct Atomics {
  gptr<std::uint32_t> u32;
  gptr<std::int64_t> i64;
  gptr<double> f64;
  scope s;
  void operator()(const item& i) const {
    atomic_fetch_add(u32, 1u, s);
    atomic_fetch_sub(u32 + 1, 1u, s);
    atomic_fetch_or(u32 + 2, 1u << (i.x % 32), s);
    atomic_fetch_xor(u32 + 3, 1u, s);
    atomic_fetch_and(u32 + 4, ~(1u << (i.x % 8)), s);
    atomic_fetch_min(i64, -static_cast<std::int64_t>(i.x), s);
    atomic_fetch_max(i64 + 1, static_cast<std::int64_t>(i.x), s);
    atomic_fetch_add(f64, 0.5, s);
    for (std::uint32_t seen = atomic_load(u32 + 5, s);;) {
      const std::uint32_t before = atomic_compare_exchange(u32 + 5, seen, seen + 2, s);
      if (before == seen) break;
      seen = before;
    }
    if (i.x == 9) {
      atomic_store(i64 + 2, 123, s);
      if (atomic_exchange(i64 + 2, 456, s) != 123) atomic_store(i64 + 2, -1, s);
    }
  }
};

TEST(SoftKernel, atomics_lose_nothing) {
  for (const scope s : {scope::device, scope::system}) {
    Rig rig;
    Region region(1);
    *region.contents<std::uint32_t>(16) = 0xffff;
    Service service(rig.device, rig.bell, region);
    constexpr std::uint32_t n = 20'000;
    EXPECT_EQ(rig.run({n, 1, 1},
                      Atomics{region.at<std::uint32_t>(), region.at<std::int64_t>(4096), region.at<double>(8192), s})
                  .result,
              HMMRT_SUCCESS);
    service.bring_home();
    const auto* u = region.contents<std::uint32_t>();
    EXPECT_EQ(u[0], n);
    EXPECT_EQ(u[1], 0u - n);
    EXPECT_EQ(u[2], 0xffffffffu);
    EXPECT_EQ(u[3], 0u);
    EXPECT_EQ(u[4], 0xff00u);
    EXPECT_EQ(u[5], 2 * n);
    EXPECT_EQ(region.contents<std::int64_t>(4096)[0], 1 - std::int64_t{n});
    EXPECT_EQ(region.contents<std::int64_t>(4096)[1], std::int64_t{n} - 1);
    EXPECT_EQ(region.contents<std::int64_t>(4096)[2], 456);
    EXPECT_EQ(*region.contents<double>(8192), 0.5 * n);
  }
}

struct Misaligned {
  gptr<std::uint32_t> p;
  void operator()(const item&) const { atomic_fetch_add(p, 1u); }
};

TEST(SoftKernel, a_misaligned_atomic_fails_the_launch) {
  Rig rig;
  Region region(1);
  Service service(rig.device, rig.bell, region);
  const LaunchError e = rig.run({1, 1, 1}, Misaligned{region.at<std::uint32_t>(2)});
  EXPECT_EQ(e.result, HMMRT_ERROR_INVALID_VALUE);
  EXPECT_EQ(e.addr, region.base() + 2);
}

}  // namespace
}  // namespace hmmrt::test
