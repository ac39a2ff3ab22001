// SPDX-License-Identifier: MIT
#include "host/kfd/kfd_mirror.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "host/kfd/kfd_abi.h"
#include "space/park.hpp"

namespace hmmrt {

namespace {

void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)

// Everything that says where pages are: faults, migrations, queues, unmapping.
constexpr std::uint64_t bit(kfd::SmiKind kind) { return std::uint64_t{1} << (static_cast<unsigned>(kind) - 1); }
constexpr std::uint64_t k_reports = bit(kfd::SmiKind::migrate_start) | bit(kfd::SmiKind::migrate_end) |
                                    bit(kfd::SmiKind::page_fault_start) | bit(kfd::SmiKind::page_fault_end) |
                                    bit(kfd::SmiKind::queue_eviction) | bit(kfd::SmiKind::queue_restore) |
                                    bit(kfd::SmiKind::unmap);

Wish wish_of(Cause cause) {
  switch (cause) {
    case Cause::prefetch_user:
      return Wish::user_prefetch;
    case Cause::eviction:
      return Wish::eviction;
    case Cause::coherence:
      return Wish::coherence;
    case Cause::advice:
      return Wish::user_advice;
    case Cause::access_counter:
      return Wish::trial;
    case Cause::fault:
    case Cause::prefetch_heuristic:
      break;
  }
  return Wish::density;
}

// Which of them reach each other's memory: a GPU that is named twice, and GPUs of one hive.
std::vector<kfd::SvmAttributes::Gpu> linked_gpus(const std::vector<kfd::KfdGpu>& gpus) {
  std::vector<kfd::SvmAttributes::Gpu> out;
  for (const kfd::KfdGpu& gpu : gpus) {
    out.push_back({gpu.gpu_id, 0, gpu.apu});
    for (std::size_t i = 0; i < gpus.size(); ++i) {
      const bool same = gpus[i].domain == gpu.domain && gpus[i].location == gpu.location;
      if (same || (gpu.hive != 0 && gpus[i].hive == gpu.hive)) {
        out.back().linked |= set_of(device_processor(static_cast<unsigned>(i)));
      }
    }
  }
  return out;
}

// Of a location: HIP tells neither the function nor the partition.
constexpr std::uint32_t k_bus_and_device = 0xfff8;

PageOutcome all_done(const PageMask& pages) {
  PageOutcome out;
  out.done = pages;
  return out;
}

}  // namespace

// ---- life -----------------------------------------------------------------------------------------------------------

std::unique_ptr<KfdMirror> KfdMirror::make(const KfdConfig& config, Status* status) {
  const int interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (interrupt < 0) {
    const int error = errno;
    *status = fail(HMMRT_ERROR_SYSTEM, "eventfd: %s%s", strerror(error), hint(error));
    return nullptr;
  }
  std::unique_ptr<KfdMirror> mirror(new KfdMirror(interrupt));
  *status = mirror->maps_.status();
  if (status->ok()) *status = mirror->open(config);
  if (!status->ok()) mirror.reset();
  return mirror;
}

KfdMirror::~KfdMirror() { close(interrupt_); }

Status KfdMirror::set_xnack(Xnack wanted) {
  bool on = false;
  if (const int status = driver_->get_xnack(&on); status != 0 && wanted != Xnack::as_it_is) {
    return fail(HMMRT_ERROR_NOT_SUPPORTED, "option xnack: the driver does not say whether faults are retried: %s",
                kfd::svm_error_text(status));
  }
  if (wanted != Xnack::as_it_is && on != (wanted == Xnack::on)) {
    if (const int status = driver_->set_xnack(wanted == Xnack::on); status != 0) {
      return fail(
          HMMRT_ERROR_NOT_SUPPORTED,
          "option xnack is %s, but the driver refuses (%s): it is of the whole process, can change only while no "
          "queue on a GPU exists, and not every GPU has it (gfx90a and gfx94x have, RDNA has not). Set "
          "HSA_XNACK=%d before the program starts",
          wanted == Xnack::on ? "on" : "off", kfd::svm_error_text(status), wanted == Xnack::on ? 1 : 0);
    }
    on = wanted == Xnack::on;
  }
  info_.any_pointer = on;
  return {};
}

Status KfdMirror::open(const KfdConfig& config) {
  std::string why;
  driver_ = kfd::SvmDriver::open(&why);
  if (driver_ == nullptr) {
    return fail(HMMRT_ERROR_NOT_SUPPORTED, "no host mirror kfd: %s; %s", why.c_str(), kfd::probe().says.c_str());
  }
  const std::vector<kfd::KfdGpu> known = kfd::find_gpus();
  std::vector<kfd::KfdGpu> ours;
  std::vector<kfd::SmiReader::Gpu> gpus;
  std::vector<int> fds;
  for (std::size_t i = 0; i < config.gpus.size(); ++i) {
    const auto& pci = config.gpus[i];
    const auto here = [&](const kfd::KfdGpu& g) {
      return g.domain == pci.domain && (g.location & k_bus_and_device) == (pci.location & k_bus_and_device);
    };
    const auto it = std::find_if(known.begin(), known.end(), here);
    if (const auto parts = std::count_if(known.begin(), known.end(), here); parts > 1) {
      return fail(HMMRT_ERROR_NOT_SUPPORTED,
                  "no host mirror kfd: the driver has %td GPUs at PCI %x:%x:%x, partitions of one (as in MI300's CPX "
                  "mode), and HIP does not say which of them GPU %zu is: use the GPU unpartitioned (SPX)",
                  parts, pci.domain, pci.location >> 8, pci.location >> 3 & 31u, i);
    }
    if (it == known.end()) {
      return fail(HMMRT_ERROR_NOT_SUPPORTED, "no host mirror kfd: the driver's topology has no GPU at PCI %x:%x:%x",
                  pci.domain, pci.location >> 8, pci.location >> 3 & 31u);
    }
    if (!it->svm) {
      return fail(HMMRT_ERROR_NOT_SUPPORTED,
                  "no host mirror kfd: GPU %zu (node %u) has no shared virtual memory in this kernel; %s", i, it->node,
                  kfd::probe().says.c_str());
    }
    ours.push_back(*it);
    ours.back().apu = it->apu || pci.integrated;
    gpus.push_back({it->gpu_id, device_processor(static_cast<unsigned>(i))});
  }
  // Sets none: what the driver says of memory without attributes is its own choice (amdgpu.svm_default_granularity).
  const std::uintptr_t page = map_aligned(k_block_size, PROT_READ | PROT_WRITE);
  if (page == 0) return fail(HMMRT_ERROR_OUT_OF_MEMORY, "mmap of 2 MiB: %s", strerror(errno));
  std::array<kfd::SvmAttribute, 1> granularity{{{kfd::SvmAttr::granularity, 0}}};
  const int svm = driver_->get(page, k_block_size, granularity);
  munmap(pointer(page), k_block_size);
  if (svm != 0) {
    return fail(HMMRT_ERROR_NOT_SUPPORTED,
                "no host mirror kfd: this kernel's driver, asked %s, has no shared virtual memory (%s); %s",
                driver_->way(), kfd::svm_error_text(svm), kfd::probe().says.c_str());
  }
  if (const Status s = set_xnack(config.xnack); !s.ok()) return s;
  if (config.only_with_xnack && !xnack()) {
    return fail(
        HMMRT_ERROR_NOT_SUPPORTED,
        "faults are not retried (XNACK off), so its driver moves only what it is asked to; HSA_XNACK=1 or option "
        "xnack=on turns them on where the GPU has them (gfx90a, gfx94x), option host_mirror=kfd takes it without");
  }
  int smi_error = 0;
  for (const kfd::KfdGpu& gpu : ours) {
    int fd = -1;
    if (const int error = driver_->open_smi(gpu.gpu_id, k_reports, &fd); error != 0) smi_error = error;
    fds.push_back(fd);
  }
  reader_ = std::make_unique<kfd::SmiReader>(std::move(fds), std::move(gpus));
  attributes_ = std::make_unique<kfd::SvmAttributes>(*driver_, maps_, linked_gpus(ours), xnack(), granularity[0].value,
                                                     kfd::moves_whole_ranges(kfd::release()), config.on_change);
  on_reports_ = config.on_reports;
  info_.name = "kfd";
  info_.path =
      std::string("the driver, asked ") + driver_->way() +
      (xnack() ? ", which retries faults (XNACK on)" : ", which stops queues instead of retrying faults (XNACK off)");
  if (smi_error != 0) {
    info_.note = std::string("the driver's reports of faults and migrations cannot be read (") + strerror(smi_error) +
                 "): statistics stay empty and nothing is steered";
  } else if (driver_->minor() < HMMRT_KFD_MINOR_REPORTS) {
    info_.note = "this kernel's driver (KFD 1." + std::to_string(driver_->minor()) +
                 ") makes no reports of faults and migrations, as Linux 6.0 and later do: statistics stay empty and "
                 "nothing is steered";
  }
  if (!xnack()) {
    info_.note += (info_.note.empty() ? "" : "; ") +
                  std::string(
                      "without XNACK nothing moves to a GPU unless it is asked for (hmmrt_prefetch), kernels use it "
                      "where it is, and memory must be allocated or registered");
  }
  info_.kernel_faults = true;
  info_.driven = true;
  return {};
}

template <class Fn>
bool KfdMirror::ask(std::uintptr_t addr, std::size_t bytes, bool fresh, const Fn& fn) {
  bool done = false;
  {
    kfd::SmiReader::Asking asking(*reader_, addr, bytes, fresh);
    done = fn();
    if (!done) asking.refused();
  }
  if (reader_->has_records()) on_reports_();  // they may have waited for this
  return done;
}

// ---- ranges ---------------------------------------------------------------------------------------------------------

void KfdMirror::release(std::uintptr_t addr, std::size_t bytes) { munmap(pointer(addr), bytes); }

Status KfdMirror::attach(std::uintptr_t addr, std::size_t bytes) {
  bool exec = false;
  if (const Status s = maps_.check_registrable(addr, bytes, &exec); !s.ok()) return s;
  const bool done = ask(addr, bytes, true, [&] { return attributes_->manage(addr, bytes); });
  return done ? Status{} : Status{HMMRT_ERROR_SYSTEM};
}

void KfdMirror::detach(std::uintptr_t, std::size_t) {}

void KfdMirror::query_rights(std::uintptr_t addr, std::size_t bytes,
                             void (*fn)(void*, std::uintptr_t, std::size_t, Rights), void* arg) {
  maps_.rights(addr, bytes, fn, arg);
}

// ---- events ---------------------------------------------------------------------------------------------------------

void KfdMirror::wait(std::int64_t timeout_ns) {
  if (reader_->has_unmapped()) {
    timeout_ns = 0;
  } else {  // the round before is over: what it fetched has been dealt with
    dealt_with_.store(reader_->rounds(), std::memory_order_release);
  }
  std::array<pollfd, k_max_devices + 1> fds{};
  std::size_t n = 0;
  // One that has only an error to report would end every wait at once.
  for (const int fd : reader_->fds()) fds[n] = {deaf_[n] ? -1 : fd, POLLIN, 0}, ++n;
  fds[n++] = {interrupt_, POLLIN, 0};
  const timespec limit{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
  (void)ppoll(fds.data(), n, timeout_ns < 0 ? nullptr : &limit, nullptr);
  for (std::size_t i = 0; i + 1 < n; ++i) deaf_[i] = deaf_[i] || (fds[i].revents & ~POLLIN) != 0;
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(interrupt_, &count, sizeof count);
  if (reader_->read()) on_reports_();
}

std::size_t KfdMirror::fetch(std::span<HostEvent> out) { return reader_->take_unmapped(out); }

void KfdMirror::interrupt() {
  const std::uint64_t one = 1;
  // Cannot fail but by overflow, and then the counter is set anyway.
  [[maybe_unused]] const ssize_t n = write(interrupt_, &one, sizeof one);
}

// A round that began after the call has read everything from before it; the one at work now may not.
void KfdMirror::catch_up() {
  constexpr std::uint64_t k_look_again_ns = 20'000;
  constexpr unsigned k_looks = 50'000;  // a second: the event thread may have ended
  const std::uint64_t rounds = reader_->rounds() + 2;
  for (unsigned i = 0; i < k_looks && dealt_with_.load(std::memory_order_acquire) < rounds; ++i) {
    interrupt();
    static const Word never{0};
    park(never, 0, k_look_again_ns);
  }
}

// ---- transfers ------------------------------------------------------------------------------------------------------

PageMask KfdMirror::send_pages(std::uintptr_t base, const PageMask& pages, Processor to, Wish wish) {
  PageMask done;
  pages.for_each_run([&](unsigned first, unsigned count) {
    if (send(base + first * k_page_size, count * k_page_size, to, wish)) done |= PageMask::range(first, count);
  });
  return done;
}

void KfdMirror::prepare(Transfer& t) {
  t.copied = {};
  t.ticket = 0;
  t.outcome = {};
  if (t.direction == Direction::to_host || t.happened) {
    t.outcome.done = t.pages;
    return;
  }
  if (t.duplicate) {
    t.outcome.pinned = t.pages;  // there are no copies beside the owner's: mapped where they are instead
    return;
  }
  const Processor to = device_processor(t.device->info().index);
  t.outcome.done = send_pages(t.base, t.pages, to, wish_of(t.cause));
  t.outcome.busy = t.pages - t.outcome.done;
}

void KfdMirror::commit(Transfer& t) {
  if (t.direction == Direction::to_device || t.happened) return;
  const PageMask home = send_pages(t.base, t.outcome.done, k_cpu, wish_of(t.cause));
  t.outcome.busy |= t.outcome.done - home;
  t.outcome.done = home;
}

void KfdMirror::rollback(Transfer& t) {
  if (t.direction == Direction::to_device && !t.happened) {
    (void)send_pages(t.base, t.outcome.taken(), k_cpu, Wish::coherence);
  }
}

// ---- single steps: the kernel populates, protects and delivers by itself -----------------------------------------------

PageOutcome KfdMirror::populate(std::uintptr_t, const PageMask& pages) { return all_done(pages); }
PageOutcome KfdMirror::write_protect(std::uintptr_t, const PageMask& pages, bool) { return all_done(pages); }
PageOutcome KfdMirror::give_back(std::uintptr_t, const PageMask& pages) { return all_done(pages); }

PageOutcome KfdMirror::map_remote(std::uintptr_t base, const PageMask& pages) {
  PageOutcome out;
  if (tie(base, pages, Wish::remote)) {
    out.done = pages;
  } else {
    out.done = attributes_->tied(base) & pages;
    out.busy = pages - out.done;
  }
  return out;
}

std::byte* KfdMirror::remote_address(std::uintptr_t addr) { return static_cast<std::byte*>(pointer(addr)); }

PageOutcome KfdMirror::make_exclusive(std::uintptr_t, const PageMask& pages) {
  PageOutcome out;  // the driver gives a page to no one alone
  out.forbidden = pages;
  return out;
}

// ---- what is asked of the driver ---------------------------------------------------------------------------------------

bool KfdMirror::send(std::uintptr_t addr, std::size_t bytes, Processor to, Wish wish, unsigned order) {
  return ask(addr, bytes, false, [&] { return attributes_->send(addr, bytes, to, wish, order); });
}

bool KfdMirror::tie(std::uintptr_t base, const PageMask& pages, Wish wish) {
  return ask(base, k_block_size, false, [&] { return attributes_->tie(base, pages, wish); });
}

void KfdMirror::let_go(std::uintptr_t base, const PageMask& pages) { attributes_->let_go(base, pages); }

bool KfdMirror::advised(std::uintptr_t base, const PageMask& pages, hmmrt_advice_t advice, Processor p,
                        Processor where) {
  return attributes_->advise(base, pages, advice, p, where);
}

void KfdMirror::disown(std::uintptr_t base, const PageMask& pages, bool gone) { attributes_->reset(base, pages, gone); }

}  // namespace hmmrt
