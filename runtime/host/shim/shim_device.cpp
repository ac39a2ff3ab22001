// SPDX-License-Identifier: MIT
#include "host/shim/shim_device.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "host/maps.hpp"

namespace hmmrt::shim {

namespace {

constexpr std::uint32_t k_ring_order = 12;
constexpr std::size_t k_at_once = 128;  // accesses in one call
constexpr unsigned k_lost_races = 16;   // in one access(), each at least a second long, before it fails

std::uint64_t number(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

std::uint64_t load(const __u64& word) { return __atomic_load_n(&word, __ATOMIC_ACQUIRE); }

void fill(hmmrt_shim_access* out, const FarAccess& a) {
  *out = {};
  out->addr = a.addr;
  out->len = a.bytes;
  switch (a.op) {
    case FarAccess::Op::read:
      out->op = HMMRT_SHIM_OP_READ;
      out->buf = number(a.buffer);
      break;
    case FarAccess::Op::write:
      out->op = HMMRT_SHIM_OP_WRITE;
      out->buf = number(a.buffer);
      break;
    case FarAccess::Op::compare_exchange:
      out->op = HMMRT_SHIM_OP_CAS;
      out->arg0 = a.expected;
      out->arg1 = a.desired;
      break;
    case FarAccess::Op::add:
      out->op = HMMRT_SHIM_OP_ADD;
      out->arg0 = a.desired;
      break;
  }
}

}  // namespace

std::unique_ptr<ShimDevice> ShimDevice::open(unsigned index, Status* status) {
  char node[32];
  std::snprintf(node, sizeof node, "/dev/hmmrt%u", index);
  std::unique_ptr<ShimDevice> device(new ShimDevice);
  device->fd_ = ::open(node, O_RDWR | O_CLOEXEC);
  if (device->fd_ < 0) {
    const int error = errno;
    const char* what_to_do = error == ENOENT   ? "; load the kernel module hmmrt_shim (driver-shim/README.md)"
                             : error == EACCES ? "; the user must be in the group 'render'"
                                               : hint(error);
    *status = fail(error == ENOENT ? HMMRT_ERROR_NOT_SUPPORTED : HMMRT_ERROR_SYSTEM, "%s: %s%s", node, strerror(error),
                   what_to_do);
    return nullptr;
  }
  const auto failed = [&](const char* what) {
    *status = fail(HMMRT_ERROR_SYSTEM, "%s: %s: %s", node, what, strerror(errno));
    return nullptr;
  };
  hmmrt_shim_query& info = device->info_;
  if (ioctl(device->fd_, HMMRT_SHIM_QUERY, &info) != 0) return failed("QUERY");
  if (info.abi_major != HMMRT_SHIM_ABI_MAJOR) {
    *status = fail(HMMRT_ERROR_NOT_SUPPORTED, "%s speaks ABI %u.%u, this library %u.x; install matching versions", node,
                   info.abi_major, info.abi_minor, HMMRT_SHIM_ABI_MAJOR);
    return nullptr;
  }
  hmmrt_shim_bind bind{};
  bind.flags = HMMRT_SHIM_BIND_EVENTS_INVALIDATE | HMMRT_SHIM_BIND_EVENTS_FAULT;
  bind.ring_order = k_ring_order;
  bind.eventfd = -1;
  if (ioctl(device->fd_, HMMRT_SHIM_BIND, &bind) != 0) return failed("BIND");
  void* ring = mmap(nullptr, bind.ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device->fd_,
                    static_cast<off_t>(bind.ring_mmap_off));
  if (ring == MAP_FAILED) return failed("mmap of the event ring");
  device->ring_ = static_cast<hmmrt_shim_ring*>(ring);
  device->ring_bytes_ = bind.ring_bytes;
  if (device->ring_->magic != HMMRT_SHIM_RING_MAGIC || device->ring_->event_bytes != sizeof(hmmrt_shim_event)) {
    *status = fail(HMMRT_ERROR_NOT_SUPPORTED, "%s: its event ring has another layout than this library knows", node);
    return nullptr;
  }
  return device;
}

ShimDevice::~ShimDevice() {
  if (ring_ != nullptr) munmap(ring_, ring_bytes_);
  if (fd_ >= 0) close(fd_);
}

int ShimDevice::on_pages(unsigned long call, std::uintptr_t base, const PageMask& pages, std::uint32_t flags,
                         BlockStatus* status) const noexcept {
  status->fill(HMMRT_SHIM_NOT_REACHED);
  std::array<hmmrt_shim_range, k_block_pages / 2> ranges;  // a page apart
  for (PageMask left = pages; left.any();) {
    std::uint32_t count = 0;
    left.for_each_run([&](unsigned first, unsigned n) {
      hmmrt_shim_range& range = ranges[count++];
      range = {};
      range.addr = base + first * k_page_size;
      range.npages = n;
      range.flags = flags;
      range.status_ptr = number(status->data() + first);
    });
    hmmrt_shim_ranges batch{};
    batch.ranges_ptr = number(ranges.data());
    batch.count = count;
    if (ioctl(fd_, call, &batch) == 0) return 0;
    if (errno != EINTR) return errno;
    PageMask reached;
    left.for_each([&](unsigned page) {
      if ((*status)[page] != HMMRT_SHIM_NOT_REACHED) reached.set(page);
    });
    left = left - reached;
  }
  return 0;
}

// One call, at most k_at_once accesses. Takes the answers of the first *served; returns errno.
int ShimDevice::submit(std::span<FarAccess* const> accesses, std::size_t* served) const noexcept {
  std::array<hmmrt_shim_access, k_at_once> requests;
  for (std::size_t i = 0; i < accesses.size(); ++i) fill(&requests[i], *accesses[i]);
  hmmrt_shim_accesses batch{};
  batch.accesses_ptr = number(requests.data());
  batch.count = static_cast<std::uint32_t>(accesses.size());
  const int error = ioctl(fd_, HMMRT_SHIM_ACCESS, &batch) == 0 ? 0 : errno;
  *served = error == 0 ? accesses.size() : std::min<std::size_t>(batch.served, accesses.size());
  for (std::size_t i = 0; i < *served; ++i) {
    accesses[i]->before = requests[i].out;
    accesses[i]->error = -requests[i].err;
  }
  return error;
}

void ShimDevice::access(std::span<FarAccess* const> accesses) noexcept {
  unsigned lost = 0;  // races in a row
  while (!accesses.empty()) {
    std::size_t served = 0;
    const int error = submit(accesses.first(std::min(accesses.size(), k_at_once)), &served);
    for (FarAccess* a : accesses.first(served)) retry(*a, &lost);
    accesses = accesses.subspan(served);
    if (error == 0 || error == EINTR) continue;
    for (FarAccess* a : accesses) a->error = error;
    return;
  }
}

// An access that lost its races against invalidations for a second or more: others may go first, then it tries again.
void ShimDevice::retry(FarAccess& a, unsigned* lost) const noexcept {
  while (a.error == EBUSY && (*lost)++ < k_lost_races) {
    sched_yield();
    FarAccess* const one = &a;
    std::size_t served = 0;
    const int error = submit({&one, 1}, &served);
    if (error != 0 && error != EINTR) a.error = error;
  }
}

bool ShimDevice::next(hmmrt_shim_event* out) noexcept {
  const std::uint64_t tail = __atomic_load_n(&ring_->tail, __ATOMIC_RELAXED);
  if (load(ring_->head) == tail) return false;
  const auto* events =
      reinterpret_cast<const hmmrt_shim_event*>(reinterpret_cast<const std::byte*>(ring_) + ring_->events_off);
  *out = events[tail & ring_->mask];
  __atomic_store_n(&ring_->tail, tail + 1, __ATOMIC_RELEASE);
  return true;
}

std::uint64_t ShimDevice::events() const noexcept { return load(ring_->head); }
std::uint64_t ShimDevice::taken() const noexcept { return load(ring_->tail); }

}  // namespace hmmrt::shim
