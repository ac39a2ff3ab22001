// SPDX-License-Identifier: MIT
// Threads that withdraw and deliver different blocks while application threads read and write all of them. The oracle:
// every word has one writer, which knows what it wrote last; readers of a word see its values never go back.
#include <random>

#include "uffd_fixture.hpp"

namespace hmmrt::test {
namespace {

class UffdStress : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(Paths, UffdStress, testing::ValuesIn(k_variants), variant_name);

// A miniature of the layers above: one mutex a block is the claim, a mask says what is away.
class Service {
 public:
  Service(Variant v, unsigned blocks)
      : blocks_(blocks), world_(v, blocks), claims_(blocks), away_(blocks), dup_(blocks) {
    world_.on_event([this](const HostEvent& e) {
      if (e.kind != HostEventKind::fault) return;
      {
        const std::lock_guard lock(queue_mutex_);
        queue_.push_back(e);
      }
      queued_.notify_one();
    });
    server_ = std::thread([this] { serve(); });
  }
  ~Service() {
    {
      const std::lock_guard lock(queue_mutex_);
      stop_ = true;
    }
    queued_.notify_one();
    server_.join();
  }
  World& world() { return world_; }

  void push(unsigned block, const PageMask& pages, bool duplicate) {
    const std::lock_guard claim(claims_[block]);
    Transfer t = world_.transfer(Direction::to_device, pages - away_[block] - dup_[block], block);
    if (t.pages.none()) return;
    t.duplicate = duplicate;
    world_.mirror->prepare(t);
    t.outcome.not_populated.for_each([&](unsigned i) { memset(world_.frame(i, block), 0, k_page_size); });
    world_.mirror->copy(t);
    ASSERT_TRUE(world_.mirror->finish_copy(t));
    if (pushes_++ % 7 == 3) {
      const PageMask taken = t.outcome.done;
      world_.mirror->rollback(t);
      // What could not go back while an event waited to be read is kept; it must go back before anyone asks for it.
      for (PageMask kept = taken - t.outcome.done; kept.any();) {
        kept = world_.mirror->give_back(world_.base(block), kept).busy;
      }
      return;
    }
    world_.mirror->commit(t);
    ASSERT_TRUE(t.outcome.gone.none() && t.outcome.forbidden.none());
    (duplicate ? dup_ : away_)[block] |= t.outcome.taken();
  }
  void pull(unsigned block, const PageMask& pages) {
    const std::lock_guard claim(claims_[block]);
    Transfer t = world_.transfer(Direction::to_host, pages & away_[block], block);
    if (t.pages.none()) return;
    ASSERT_TRUE(world_.run_transfer(t));
    away_[block] = away_[block] - t.outcome.done;
  }

 private:
  void serve() {
    for (;;) {
      HostEvent e;
      {
        std::unique_lock lock(queue_mutex_);
        queued_.wait(lock, [&] { return stop_ || !queue_.empty(); });
        if (queue_.empty()) return;
        e = queue_.back();
        queue_.pop_back();
      }
      const auto block = static_cast<unsigned>((e.addr - world_.base()) >> k_block_shift);
      const PageMask page = PageMask::one(page_in_block(e.addr));
      bool busy = false;  // then the thread still waits, and nobody else will raise its fault again
      if (e.write_protected) {
        const std::lock_guard claim(claims_[block]);
        busy = world_.mirror->write_protect(world_.base(block), page, false).busy.any();
        if (!busy) dup_[block] = dup_[block] - page;
      } else {
        pull(block, page);
        const std::lock_guard claim(claims_[block]);
        busy = away_[block].intersects(page) || world_.mirror->populate(world_.base(block), page).busy.any();
      }
      if (busy) {
        const std::lock_guard lock(queue_mutex_);
        queue_.insert(queue_.begin(), e);
      }
    }
  }

  unsigned blocks_;
  std::atomic<unsigned> pushes_{0};
  std::mutex queue_mutex_;  // outlives world_'s event thread
  std::condition_variable queued_;
  std::vector<HostEvent> queue_;
  bool stop_ = false;
  World world_;
  std::vector<std::mutex> claims_;
  std::vector<PageMask> away_, dup_;
  std::thread server_;
};

TEST_P(UffdStress, no_write_is_lost_while_blocks_come_and_go) {
  constexpr unsigned k_blocks = 4;
  constexpr unsigned k_words = k_blocks * k_block_pages;  // one word a page
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  {
    Service service(GetParam(), k_blocks);
    ASSERT_NE(service.world().memory, nullptr);
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    const auto word = [&](unsigned i) {
      return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(service.world().memory + std::size_t{i} * k_page_size));
    };
    for (unsigned id = 0; id < 4; ++id) {
      threads.emplace_back([&, id] {
        std::mt19937 random(seed + id);
        while (!stop) {
          const unsigned block = random() % k_blocks;
          const unsigned size = 1u << (random() % 10);
          const unsigned first = random() % (k_block_pages / size) * size;
          if (random() % 2 != 0) {
            service.push(block, PageMask::range(first, size), random() % 4 == 0);
          } else {
            service.pull(block, PageMask::range(first, size));
          }
        }
      });
    }
    for (unsigned id = 0; id < 2; ++id) {
      threads.emplace_back([&, id] {
        std::mt19937 random(seed + 100 + id);
        std::vector<std::uint64_t> model(k_words, 0);
        while (!stop) {
          const unsigned i = random() % k_words / 2 * 2 + id;  // this thread's words
          ASSERT_EQ(word(i).load(), model[i]) << "word " << i;
          if (random() % 2 != 0) word(i).store(++model[i]);
          const unsigned other = i ^ 1;
          const std::uint64_t seen = word(other).load();
          ASSERT_GE(seen, model[other]) << "word " << other << " went back";
          model[other] = seen;
        }
      });
    }
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    while (std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_until(deadline);
    stop = true;
    for (auto& t : threads) t.join();
  }
}

void linger(unsigned turns) {
  for (; turns != 0; --turns) asm volatile("" ::: "memory");
}

// Linux 6.18 can move a page that changes in that moment and answer EEXIST (Uffd::move).
TEST_P(UffdStress, a_first_write_that_meets_the_withdrawal_of_its_page_survives) {
  for (unsigned round = 0; round < 12; ++round) {
    World w(GetParam(), 1);
    for (unsigned i = 0; i < k_block_pages; ++i) ASSERT_EQ(w.page(i)[0], std::byte{0});
    w.to_device(PageMask::one(0));  // from here on small pages, all of them the zero page
    std::atomic<unsigned> turn{0};
    std::atomic<unsigned> written{0};
    std::thread writer([&] {
      std::mt19937 random(round);
      for (unsigned i = 1; i < k_block_pages; ++i) {
        while (turn < i) std::this_thread::yield();
        linger(random() % 8192);
        w.page(i)[0] = std::byte{1};
        written = i;
      }
    });
    for (unsigned i = 1; i < k_block_pages; ++i) {
      turn = i;
      w.to_device(PageMask::one(i));
      while (written < i) std::this_thread::yield();
    }
    writer.join();
    for (unsigned i = 1; i < k_block_pages; ++i) ASSERT_EQ(w.page(i)[0], std::byte{1}) << i << " round " << round;
  }
}

// The kernel's page table is empty for a moment while its huge zero page gives way to a written one (Arena::arm).
TEST_P(UffdStress, a_block_read_before_it_was_written_is_never_taken_for_an_empty_one) {
  constexpr unsigned k_blocks = 64;
  World w(GetParam(), k_blocks + 1);
  w.page(0)[0] = std::byte{1};
  for (unsigned b = 1; b <= k_blocks; ++b) ASSERT_EQ(w.page(b * k_block_pages)[0], std::byte{0});
  w.to_device(PageMask::one(0));  // arms
  std::atomic<unsigned> turn{0};
  std::atomic<unsigned> written{0};
  std::thread writer([&] {
    for (unsigned b = 1; b <= k_blocks; ++b) {
      while (turn < b) std::this_thread::yield();
      w.page(b * k_block_pages)[0] = std::byte{1};
      written = b;
    }
  });
  std::mt19937 random(1);
  const PageMask last = PageMask::one(k_block_pages - 1);
  unsigned wrong = 0;
  for (unsigned b = 1; b <= k_blocks; ++b) {
    turn = b;
    linger(random() % (1 << 19));
    wrong += w.to_device(last, false, b).done != last;  // it was there since it was read
    while (written < b) std::this_thread::yield();
  }
  writer.join();
  EXPECT_EQ(wrong, 0u);
}

TEST_P(UffdStress, application_drops_race_with_withdrawal_without_hanging) {
  constexpr unsigned k_blocks = 2;
  Service service(GetParam(), k_blocks);
  std::atomic<bool> stop{false};
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::thread mover([&] {
    std::mt19937 random(seed);
    while (!stop) {
      const unsigned block = random() % k_blocks;
      service.push(block, PageMask::range(random() % 256, 1 + random() % 256), random() % 2 == 0);
      service.pull(block, PageMask::all());
    }
  });
  std::thread dropper([&] {
    std::mt19937 random(seed + 1);
    for (unsigned i = 0; i < 2000; ++i) {
      const unsigned page = random() % (k_blocks * k_block_pages - 64);
      madvise(service.world().page(page), k_page_size * (1 + random() % 64), MADV_DONTNEED);
      service.world().page(page)[random() % k_page_size] = std::byte{1};
    }
    stop = true;
  });
  dropper.join();
  mover.join();
}

}  // namespace
}  // namespace hmmrt::test
