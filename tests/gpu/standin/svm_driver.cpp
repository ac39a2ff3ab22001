// SPDX-License-Identifier: MIT
// The driver's lock and events, and its entry points; migration is in svm_migrate.cpp.
#include "gpu/standin/svm_driver.hpp"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>

namespace standin {

namespace {

constexpr std::size_t k_threads = 256;
StandinThread g_threads[k_threads];

long seconds() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec;
}

std::uintptr_t down(std::uintptr_t at) { return at & ~(k_page - 1); }

}  // namespace

// The driver's lock. At its end every event that was read has been heeded, and kernels run.
class Driver::Locked {
 public:
  explicit Locked(Driver* d) : driver_(d) {
    keep_this_thread_home();
    std::array<std::uint64_t, k_standin_gpus> used{};
    for (int i = 0; i < k_standin_gpus; ++i) used[static_cast<std::size_t>(i)] = hmmrt_standin_used(i);
    d->lock_.lock();
    d->hip_used_ = used;
  }
  ~Locked() {
    driver_->settle();
    driver_->resume();
    driver_->lock_.unlock();
  }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  Driver* driver_;
};

Driver::Driver(std::pmr::memory_resource* memory, const Configuration& configuration)
    : config_(configuration), attributes_(memory), pages_(memory), pending_(memory) {
  smi_.configure();
}

bool Driver::start() {
  keep_libraries_home();
  retired_ = eventfd(0, EFD_CLOEXEC);
  moves_ = retired_ >= 0 && pages_.open();
  if (!moves_) return false;
  pages_.read_events = [this] { read_events(); };
  pages_.in_doubt = [this](std::uintptr_t begin, std::uintptr_t end) {
    return std::any_of(pending_.begin(), pending_.end(), [&](const uffd_msg& m) {
      if (m.event == UFFD_EVENT_REMAP) return true;
      return m.event != UFFD_EVENT_PAGEFAULT && m.arg.remove.start < end && m.arg.remove.end > begin;
    });
  };
  // A stack that stays, and no signals of the application's.
  constexpr std::size_t k_stack = std::size_t{4} << 20;
  void* const stack =
      mmap(nullptr, k_stack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  keep_home(reinterpret_cast<std::uintptr_t>(stack), reinterpret_cast<std::uintptr_t>(stack) + k_stack);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, k_stack);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  const auto run = [](void* self) -> void* {
    static_cast<Driver*>(self)->serve_events();
    return nullptr;
  };
  moves_ = pthread_create(&thread, &attributes, run, this) == 0;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  return moves_;
}

void Driver::retire() {
  {
    const Locked guard(this);
    if (!moves_) return;
    read_events();
    settle();
    for (auto& [base, b] : pages_.blocks()) to_system(base, base + k_block, defaults(), Trigger::prefetch);
    moves_ = false;  // what is asked from now on moves nothing, but events are read until the end
  }
  // Its thread first: userfaultfd lets go of memory, and of who waits for an answer, when nobody polls it any more.
  const std::uint64_t one = 1;
  if (write(retired_, &one, sizeof one) == sizeof one) {
    while (!ended_.load()) sched_yield();
  }
  const Locked guard(this);
  pages_.close();
}

void Driver::serve_events() {
  for (;;) {
    std::array<pollfd, 2> wait{pollfd{pages_.events(), POLLIN, 0}, pollfd{retired_, POLLIN, 0}};
    if (poll(wait.data(), wait.size(), -1) <= 0) continue;
    if (wait[1].revents != 0) break;
    const Locked guard(this);
    read_events();
  }
  ended_ = true;
}

void Driver::stop() {
  if (hmmrt_standin_moves.load() % 2 != 0) return;
  hmmrt_standin_moves.fetch_add(1);
  for (StandinThread& t : g_threads) {
    const std::uint64_t seen = t.pass.load();
    if (seen % 2 == 0) continue;
    const long since = seconds();
    while (t.pass.load() == seen) {
      sched_yield();
      if (seconds() - since < 60) continue;
      std::fputs("stand-in GPU driver: a kernel has stopped in the middle of an access\n", stderr);
      std::abort();
    }
  }
}

void Driver::resume() {
  if (hmmrt_standin_moves.load() % 2 != 0) hmmrt_standin_moves.fetch_add(1);
}

void Driver::read_events() {
  if (pages_.events() < 0) return;
  pollfd wait{pages_.events(), POLLIN, 0};
  if (poll(&wait, 1, 0) <= 0) return;
  stop();
  // Until a read finds fewer than it has room for: of a thread that goes on at once there is always one more.
  uffd_msg messages[16];
  ssize_t n = 0;
  do {
    n = read(pages_.events(), static_cast<void*>(messages), sizeof messages);
    if (n > 0) pending_.insert(pending_.end(), messages, messages + static_cast<std::size_t>(n) / sizeof messages[0]);
  } while (n == sizeof messages);
}

// Changes of mappings first: userfaultfd tells of faults before them, whichever came first. Only of what has been read:
// threads that drop memory without end always have one more.
void Driver::settle() {
  while (!pending_.empty()) {
    auto next = std::find_if(pending_.begin(), pending_.end(),
                             [](const uffd_msg& m) { return m.event != UFFD_EVENT_PAGEFAULT; });
    if (next == pending_.end()) next = pending_.begin();
    const uffd_msg event = *next;
    pending_.erase(next);
    heed(event);
  }
}

void Driver::heed(const uffd_msg& m) {
  stop();
  switch (m.event) {
    case UFFD_EVENT_PAGEFAULT:
      cpu_fault(down(m.arg.pagefault.address));
      break;
    case UFFD_EVENT_REMOVE:
      gone(m.arg.remove.start, m.arg.remove.end, Unmap::notify);
      break;
    case UFFD_EVENT_UNMAP:
      gone(m.arg.remove.start, m.arg.remove.end, Unmap::unmap_from_cpu);
      break;
    case UFFD_EVENT_REMAP: {
      const std::uintptr_t from = m.arg.remap.from, end = from + m.arg.remap.len;
      const std::uint32_t gpus = unmap(from, end, Unmap::unmap_from_cpu);
      pages_.follow(from, m.arg.remap.to, m.arg.remap.len);
      attributes_.erase(from, end);
      restore_queues(gpus);
      break;
    }
    default:
      break;
  }
}

void Driver::cpu_fault(std::uintptr_t at) {
  const std::uint32_t node = pages_.where(at);
  if (node == 0) {
    pages_.zero(at);
    return;
  }
  ++counts_.cpu_faults;
  Vma vma;
  const auto range = attributes_.find(at);
  std::uintptr_t begin = at & ~(k_block - 1), end = begin + k_block;
  Attributes a = defaults();
  if (range != attributes_.end()) {
    a = range->second.attributes;
    const std::uintptr_t granule = k_page << std::min(a.granularity, 40u);
    begin = std::max(at & ~(granule - 1), range->first);
    end = std::min((at & ~(granule - 1)) + granule, range->second.end);
  }
  if (vma_at(at, &vma)) begin = std::max(begin, vma.begin), end = std::min(end, vma.end);
  to_system_from(node, begin, end, a, Trigger::cpu_fault);
  if (pages_.where(at) != 0) {  // in doubt: once more when that is known
    uffd_msg again{};
    again.event = UFFD_EVENT_PAGEFAULT;
    again.arg.pagefault.address = at;
    pending_.push_back(again);
    return;
  }
  pages_.populate(at & ~(k_block - 1), pages_.block(at), at % k_block / k_page, at % k_block / k_page + 1);
  pages_.wake(at, k_page);
}

void Driver::gone(std::uintptr_t begin, std::uintptr_t end, Unmap trigger) {
  const std::uint32_t gpus = unmap(begin, end, trigger);
  pages_.each(begin, end, false, [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
    pages_.drop(b, first, last);
    if (trigger != Unmap::unmap_from_cpu) return;
    for (std::size_t i = first; i < last; ++i) b.armed.reset(i);
  });
  if (trigger == Unmap::unmap_from_cpu) attributes_.erase(begin, end);
  restore_queues(gpus);
}

// ---- entry points ---------------------------------------------------------------------------------------------------

namespace {

// 0, or EFAULT when something in [begin, end) is not mapped. Calls fn for each part that is of one mapping.
template <class Fn>
int each_vma(std::uintptr_t begin, std::uintptr_t end, Fn&& fn) {
  Vma v;
  for (std::uintptr_t at = begin; at < end; at = v.end) {
    if (!vma_at(at, &v)) return EFAULT;
    fn(v, at, std::min(end, v.end));
  }
  return 0;
}

}  // namespace

int Driver::set(std::uintptr_t begin, std::uintptr_t end, std::span<const HSA_SVM_ATTRIBUTE> set) {
  const Locked guard(this);
  read_events();
  settle();
  const int error = each_vma(begin, end, [](const Vma&, std::uintptr_t, std::uintptr_t) {});
  if (error != 0) return error;
  each_vma(begin, end, [&](const Vma& v, std::uintptr_t from, std::uintptr_t to) {
    if (v.movable && moves_) pages_.watch(from, to);
  });
  ++counts_.set_attr;
  // Each change to a range brings its prefetch location to mind again, and setting that always does.
  const bool prefetches = std::any_of(set.begin(), set.end(),
                                      [](const HSA_SVM_ATTRIBUTE& s) { return s.type == HSA_SVM_ATTR_PREFETCH_LOC; });
  std::pmr::vector<std::uintptr_t> changed(own_memory());
  for (std::uintptr_t at = begin; at < end;) {
    const auto it = attributes_.first(at);
    const bool inside = it != attributes_.end() && it->first <= at;
    std::uintptr_t until = end;
    if (it != attributes_.end()) until = std::min(end, inside ? it->second.end : it->first);
    const Attributes before = inside ? it->second.attributes : defaults();
    if (prefetches || with(before, set) != before) changed.push_back(at);
    at = until;
  }
  attributes_.set(begin, end, defaults(), set);
  // Access that was taken away, or given: kernels ask again.
  const bool rights = std::any_of(set.begin(), set.end(), [](const HSA_SVM_ATTRIBUTE& s) {
    return s.type == HSA_SVM_ATTR_ACCESS || s.type == HSA_SVM_ATTR_ACCESS_IN_PLACE || s.type == HSA_SVM_ATTR_NO_ACCESS;
  });
  if (rights) {
    stop();
    for (auto it = attributes_.first(begin); it != attributes_.end() && it->first < end; ++it) {
      const std::uint32_t may = it->second.attributes.access | it->second.attributes.in_place;
      pages_.each(std::max(begin, it->first), std::min(end, it->second.end), false,
                  [&](std::uintptr_t, Block& b, std::size_t first, std::size_t last) {
                    for (std::uint32_t n = 1; n <= config_.gpus; ++n) {
                      if ((may & bit(n)) != 0) continue;
                      for (std::size_t i = first; i < last; ++i) b.mapped[n].reset(i);
                    }
                  });
    }
  }
  for (const std::uintptr_t at : changed) {
    const auto it = attributes_.find(at);
    if (it == attributes_.end()) continue;
    prefetch(std::max(begin, it->first), std::min(end, it->second.end), Attributes(it->second.attributes));
  }
  return 0;
}

int Driver::get(std::uintptr_t begin, std::uintptr_t end, std::span<HSA_SVM_ATTRIBUTE> out) {
  const Locked guard(this);
  read_events();
  settle();
  const int error = each_vma(begin, end, [](const Vma&, std::uintptr_t, std::uintptr_t) {});
  if (error != 0) return error;
  attributes_.get(begin, end, defaults(), ((2u << config_.gpus) - 1) & ~1u, out);
  return 0;
}

bool Driver::xnack() {
  const Locked guard(this);
  return config_.xnack;
}
void Driver::set_xnack(bool on) {
  const Locked guard(this);
  config_.xnack = on;
}
int Driver::open_smi(std::uint32_t node) {
  const Locked guard(this);
  return smi_.open(node);
}

bool Driver::view(std::uintptr_t at, bool write, StandinView* out) {
  const auto node = static_cast<std::uint32_t>(hmmrt_standin_device()) + 1;
  const std::uint64_t changes = hmmrt_standin_changes.load();
  StandinThread* const self = hmmrt_standin_thread();
  const Locked guard(this);
  for (;;) {
    read_events();
    settle();
    resume();
    Vma vma;
    if (!vma_at(down(at), &vma) || !(write ? vma.write : vma.read)) return false;
    if (build_view(at, node, vma, out)) {
      out->stamp = changes + hmmrt_standin_moves.load();
      self->pass.fetch_add(1);
      return true;
    }
    if (!gpu_fault(down(at), write, node, vma)) return false;
  }
}

StandinCounts Driver::counts() {
  const Locked guard(this);
  StandinCounts c = counts_;
  c.smi_lines = smi_.lines();
  c.smi_lost = smi_.lost();
  return c;
}
std::uint32_t Driver::where(std::uintptr_t at) {
  const Locked guard(this);
  return pages_.where(at);
}
Attributes Driver::attributes(std::uintptr_t at) {
  const Locked guard(this);
  const auto it = attributes_.find(at);
  return it != attributes_.end() ? it->second.attributes : defaults();
}

}  // namespace standin

extern "C" {

std::atomic<std::uint64_t> hmmrt_standin_moves{0};

StandinThread* hmmrt_standin_thread() {
  struct Claim {
    Claim() {
      for (StandinThread& t : standin::g_threads) {
        if (!t.taken.exchange(true)) {
          thread = &t;
          return;
        }
      }
      std::fputs("stand-in GPU driver: too many threads\n", stderr);
      std::abort();
    }
    ~Claim() { thread->taken = false; }
    StandinThread* thread;
  };
  thread_local const Claim claim;
  return claim.thread;
}

}  // extern "C"
