// SPDX-License-Identifier: MIT
#include "host/shim/shim_mirror.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "space/park.hpp"

namespace hmmrt {

namespace {

void* pointer(std::uintptr_t a) { return reinterpret_cast<void*>(a); }  // NOLINT(performance-no-int-to-ptr)

constexpr std::size_t k_max_fds = 17;  // 16 devices and the interrupt

}  // namespace

std::unique_ptr<ShimMirror> ShimMirror::make(unsigned devices, Status* status) {
  const int interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (interrupt < 0) {
    const int error = errno;
    *status = fail(HMMRT_ERROR_SYSTEM, "eventfd: %s%s", strerror(error), hint(error));
    return nullptr;
  }
  std::unique_ptr<ShimMirror> mirror(new ShimMirror(interrupt));
  if (const Status s = mirror->maps_.status(); !s.ok()) {
    *status = s;
    return nullptr;
  }
  mirror->gone_.resize(devices);
  mirror->dealt_with_ = std::vector<std::atomic<std::uint64_t>>(devices);
  for (unsigned i = 0; i < devices; ++i) {
    auto device = shim::ShimDevice::open(i, status);
    if (device == nullptr) return nullptr;
    if (device->info().devmem_pages == 0) {
      *status = fail(HMMRT_ERROR_NOT_SUPPORTED,
                     "/dev/hmmrt%u has no memory: this kernel lacks CONFIG_DEVICE_PRIVATE (driver-shim/README.md)", i);
      return nullptr;
    }
    mirror->devices_.push_back(std::move(device));
  }
  const hmmrt_shim_query& first = mirror->devices_[0]->info();
  HostMirrorInfo& info = mirror->info_;
  info.name = "shim";
  info.path = (first.caps & HMMRT_SHIM_CAP_COHERENT) != 0 ? "migrate_vma, to memory that the CPU maps, too"
                                                          : "migrate_vma, to memory private to the device";
  info.kernel_faults = true;
  info.write_protect = false;
  info.any_pointer = true;
  return mirror;
}

ShimMirror::~ShimMirror() { close(interrupt_); }

// ---- ranges ---------------------------------------------------------------------------------------------------------

void ShimMirror::release(std::uintptr_t addr, std::size_t bytes) { munmap(pointer(addr), bytes); }

Status ShimMirror::attach(std::uintptr_t addr, std::size_t bytes) {
  bool exec = false;
  return maps_.check_registrable(addr, bytes, &exec);
}

void ShimMirror::detach(std::uintptr_t, std::size_t) {}

void ShimMirror::query_rights(std::uintptr_t addr, std::size_t bytes,
                              void (*fn)(void*, std::uintptr_t, std::size_t, Rights), void* arg) {
  maps_.rights(addr, bytes, fn, arg);
}

// ---- events ---------------------------------------------------------------------------------------------------------

void ShimMirror::wait(std::int64_t timeout_ns) {
  // The round before is over: what it fetched has been dealt with.
  for (std::size_t i = 0; i < devices_.size(); ++i) {
    dealt_with_[i].store(devices_[i]->taken(), std::memory_order_release);
  }
  std::array<pollfd, k_max_fds> fds{};
  // A device that is gone would end every wait at once.
  for (std::size_t i = 0; i < devices_.size(); ++i) fds[i] = {gone_[i] ? -1 : devices_[i]->fd(), POLLIN, 0};
  pollfd& interrupt = fds[devices_.size()];
  interrupt = {interrupt_, POLLIN, 0};
  const timespec limit{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
  const int ready = ppoll(fds.data(), devices_.size() + 1, timeout_ns < 0 ? nullptr : &limit, nullptr);
  for (std::size_t i = 0; ready > 0 && i < devices_.size(); ++i) {
    if ((fds[i].revents & POLLERR) != 0) gone_[i] = true;
  }
  if (ready > 0 && (interrupt.revents & POLLIN) != 0) {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t n = read(interrupt_, &count, sizeof count);
  }
}

std::size_t ShimMirror::fetch(std::span<HostEvent> out) {
  std::size_t written = 0;
  for (const auto& device : devices_) {
    hmmrt_shim_event event;
    while (written < out.size() && device->next(&event)) {
      HostEvent& e = out[written];
      e = HostEvent{};
      e.time_ns = event.ts_ns;
      e.addr = event.addr;
      e.bytes = event.npages * k_page_size;
      if (event.type == HMMRT_SHIM_EVENT_CPU_FAULT) {
        e.kind = HostEventKind::fault;
      } else if (event.type == HMMRT_SHIM_EVENT_INVALIDATE && event.reason == HMMRT_SHIM_REASON_UNMAP) {
        e.kind = HostEventKind::unmap;
      } else if (event.type == HMMRT_SHIM_EVENT_INVALIDATE && event.reason == HMMRT_SHIM_REASON_CLEAR) {
        e.kind = HostEventKind::remove;
      } else {
        continue;
      }
      ++written;
    }
  }
  return written;
}

void ShimMirror::interrupt() {
  const std::uint64_t one = 1;
  // Cannot fail but by overflow, and then the counter is set anyway.
  [[maybe_unused]] const ssize_t n = write(interrupt_, &one, sizeof one);
}

// Also keeps an event about what was at some addresses before from being taken for one about what comes there now.
void ShimMirror::catch_up() {
  constexpr std::uint64_t k_look_again_ns = 50'000;
  for (std::size_t i = 0; i < devices_.size(); ++i) {
    const std::uint64_t all = devices_[i]->events();
    while (dealt_with_[i].load(std::memory_order_acquire) < all) {
      interrupt();
      static const Word never{0};
      park(never, 0, k_look_again_ns);
    }
  }
}

// ---- transfers ------------------------------------------------------------------------------------------------------

PageOutcome ShimMirror::ask(const shim::ShimDevice& device, unsigned long call, std::uintptr_t base,
                            const PageMask& pages, std::uint32_t flags) {
  PageOutcome out;
  if (pages.none()) return out;
  shim::ShimDevice::BlockStatus status;
  const int error = device.on_pages(call, base, pages, flags, &status);
  if (error == ESRCH || error == ENODEV || error == EPERM) {  // the device is going, or this is not its process
    out.pinned = pages;
    return out;
  }
  pages.for_each([&](unsigned page) {
    switch (status[page]) {
      case HMMRT_SHIM_DONE:
      case HMMRT_SHIM_ALREADY:
        out.done.set(page);
        break;
      case HMMRT_SHIM_NOT_POPULATED:
        out.not_populated.set(page);
        break;
      case HMMRT_SHIM_PINNED:
      case HMMRT_SHIM_UNSUPPORTED:
        out.pinned.set(page);
        break;
      case HMMRT_SHIM_GONE:
        out.gone.set(page);
        break;
      case HMMRT_SHIM_FORBIDDEN:
        out.forbidden.set(page);
        break;
      default:  // BUSY, NO_SPACE (our own books say there is), NO_MEMORY, FAILED, NOT_REACHED
        out.busy.set(page);
        break;
    }
  });
  return out;
}

void ShimMirror::prepare(Transfer& t) {
  t.copied = {};
  t.ticket = 0;
  t.outcome = {};
  if (t.direction == Direction::to_host) {
    t.outcome.done = t.pages;
    return;
  }
  if (t.duplicate) {
    t.outcome.pinned = t.pages;  // mapped where they are instead
    return;
  }
  const shim::ShimDevice& device = device_of(t);
  t.outcome = ask(device, HMMRT_SHIM_TO_DEV, t.base, t.pages, HMMRT_SHIM_RANGE_NO_POPULATE | HMMRT_SHIM_RANGE_EVICT);
  const PageMask fresh = t.outcome.not_populated;
  if (fresh.none()) return;
  const PageOutcome born = ask(device, HMMRT_SHIM_TO_DEV, t.base, fresh, HMMRT_SHIM_RANGE_EVICT);
  t.outcome.not_populated = born.done;
  t.outcome.busy |= born.busy | born.not_populated;
  t.outcome.pinned |= born.pinned;
  t.outcome.gone |= born.gone;
  t.outcome.forbidden |= born.forbidden;
}

void ShimMirror::copy(Transfer& t) { t.copied = t.outcome.done; }

void ShimMirror::commit(Transfer& t) {
  if (t.direction == Direction::to_device) return;
  const PageMask wanted = t.outcome.taken();
  PageOutcome home = ask(device_of(t), HMMRT_SHIM_TO_SYS, t.base, wanted, 0);
  home.done |= home.not_populated;
  home.not_populated = {};
  t.outcome.not_populated = {};
  t.outcome.done = home.done;
  t.outcome.busy |= home.busy | home.pinned;
  t.outcome.gone |= home.gone;
  t.outcome.done |= home.forbidden;  // in a mapping without rights a page is nowhere that matters
}

void ShimMirror::rollback(Transfer& t) {
  if (t.direction == Direction::to_host) return;
  (void)ask(device_of(t), HMMRT_SHIM_TO_SYS, t.base, t.outcome.taken(), 0);
}

// ---- single steps ---------------------------------------------------------------------------------------------------

// The kernel populates, unprotects and delivers by itself.
PageOutcome ShimMirror::populate(std::uintptr_t, const PageMask& pages) {
  PageOutcome out;
  out.done = pages;
  return out;
}

PageOutcome ShimMirror::write_protect(std::uintptr_t, const PageMask& pages, bool) {
  PageOutcome out;
  out.done = pages;
  return out;
}

PageOutcome ShimMirror::give_back(std::uintptr_t, const PageMask& pages) {
  PageOutcome out;
  out.done = pages;
  return out;
}

PageOutcome ShimMirror::map_remote(std::uintptr_t base, const PageMask& pages) {
  PageOutcome out = ask(*devices_[0], HMMRT_SHIM_FAULT, base, pages, 0);
  out.done |= out.busy;  // an access faults it in again
  out.busy = {};
  out.forbidden |= out.pinned;  // what no device can map: I/O memory
  out.pinned = {};
  return out;
}

std::byte* ShimMirror::remote_address(std::uintptr_t addr) { return static_cast<std::byte*>(pointer(addr)); }

PageOutcome ShimMirror::make_exclusive(std::uintptr_t base, const PageMask& pages) {
  PageOutcome out = ask(*devices_[0], HMMRT_SHIM_EXCLUSIVE, base, pages, 0);
  out.forbidden |= out.pinned;  // what the kernel gives to no one alone: shared memory, files
  out.pinned = {};
  return out;
}

std::uint64_t ShimMirror::metadata_bytes() const { return sizeof(*this); }

}  // namespace hmmrt
