// SPDX-License-Identifier: MIT
// The CPU side of the house: the other seam. A HostMirror knows the CPU's page table for managed ranges: it says when
// the CPU touches a page that is elsewhere or when the application changes its mappings, and it takes pages away from
// the CPU and gives them back. Implementations: uffd/ (userfaultfd, no module), shim/ (our module), kfd/ (AMD's).
//
// Contract:
//   Thread: any, with the block's claim held by the caller, except fetch() (one event thread) and wake().
//   Blocks on: the kernel only. Never on a claim, a device's user work, or a managed page fault.
//   Partial success is normal: each page gets one status, and a page that is not `done` was left as it was.
//
// The three steps of a transfer (one block, one direction), driven by migrate/:
//   to_device   prepare: pages leave the CPU's page table, contents stable  (duplicate: only write-protected)
//               copy:    contents -> frames                       commit: what the withdrawal still held is dropped
//   to_host     prepare: a landing place exists for each page
//               copy:    frames -> landing place                  commit: pages appear in the CPU's page table
// Between prepare and commit the caller may give up with rollback(): every page is as before prepare, except those that
// it moves from outcome.done to outcome.busy: they are still withdrawn, contents kept, for give_back() to return later.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "device/device.hpp"
#include "space/page.hpp"
#include "space/page_mask.hpp"
#include "space/status.hpp"

namespace hmmrt {

enum class PageStatus : std::uint8_t { done, not_populated, busy, pinned, gone, forbidden };

// Every page asked for is in exactly one mask.
struct PageOutcome {
  PageMask done;
  PageMask not_populated;  // never touched: nothing to copy, reads as zero. The page counts as withdrawn.
  PageMask busy;           // lost a race with the application or the kernel: try again later
  PageMask pinned;         // held by I/O or a long-term pin: must stay in system memory
  PageMask gone;           // no longer mapped
  PageMask forbidden;      // the CPU's mapping gives no such rights (mprotect)
  PageMask taken() const { return done | not_populated; }
};

enum class Direction : std::uint8_t { to_device, to_host };

// One block's pages on their way. Preallocated by the pipeline, one per token; `scratch` is the mirror's.
struct Transfer {
  std::uintptr_t base = 0;
  Direction direction = Direction::to_device;
  bool duplicate = false;  // to_device: the CPU keeps reading. to_host: deliver read-only, the device keeps reading.
  Cause cause = Cause::fault;
  bool happened = false;  // the driver has moved the pages already: only the books are to follow (`driven` mirrors)
  Device* device = nullptr;
  const Frame* frames = nullptr;  // 512 entries, valid for outcome.done pages before copy()
  PageMask pages;                 // asked for
  PageMask clean;                 // to_host: pages the device has not written since they were withdrawn here
  PageMask moved_on;    // commit(): what is at their addresses by now may be something else; nothing is removed there
  PageMask copied;      // out of copy(): pages whose bytes really moved (the rest needed no copy)
  PageOutcome outcome;  // out of prepare(); commit() may still move pages from done to busy/gone
  CopyTicket ticket = 0;
  std::array<std::uint64_t, 20> scratch{};
};

enum class HostEventKind : std::uint8_t { fault, remove, unmap, remap };

struct HostEvent {
  HostEventKind kind = HostEventKind::fault;
  Access access = Access::read;  // fault
  bool write_protected = false;  // fault on a present, write-protected page
  std::uintptr_t addr = 0;       // fault: byte address. Others: start of the range
  std::size_t bytes = 0;         // remove, unmap, remap
  std::uintptr_t to = 0;         // remap: new address
  std::uint64_t time_ns = 0;
  std::uint32_t thread = 0;  // fault: faulting thread id, or 0 when the kernel does not say
};

// Why something is asked of such a driver; every change of its attributes is logged with one of these.
enum class Wish : std::uint8_t {
  managed,          // memory became managed, or ceased to be
  user_prefetch,    // hmmrt_prefetch
  user_advice,      // hmmrt_advise
  user_pin,         // hmmrt_pin
  coherence,        // the runtime itself needs it there: before a fork, to hand memory back
  density,          // the policy wants more of a block than the driver moved
  stream,           // blocks are used one after the other: ahead of the next faults
  ping_pong,        // two processors keep taking it from each other
  capacity_thrash,  // evicted and wanted back, again and again
  remote,           // used where it is
  eviction,         // room for others
  trial,            // the time of a tie is over: does it still quarrel?
  over              // a tie ends
};
constexpr std::array k_wish_names = {"managed",  "user_prefetch", "user_advice", "user_pin",        "coherence",
                                     "density",  "stream",        "ping_pong",   "capacity_thrash", "remote",
                                     "eviction", "trial",         "over"};
constexpr const char* wish_name(Wish wish) noexcept { return k_wish_names[static_cast<std::size_t>(wish)]; }
// The policy's wishes may be refused when there are too many; the others are promises.
constexpr bool may_be_refused(Wish w) { return w >= Wish::density && w <= Wish::trial; }

// What a driver that serves faults by itself says it has done, in the order of its doing. `driven` mirrors only.
struct DriverRecord {
  enum class Kind : std::uint8_t {
    fault,   // of device `to`, at `addr`. What moves for it has records of its own
    served,  // its end
    moved    // pages from `from` to `to`
  };
  Kind kind = Kind::fault;
  Cause cause = Cause::fault;
  Access access = Access::read;  // fault
  Processor from = k_cpu, to = k_cpu;
  bool alone = false;      // moved: all that moved for the same reason
  bool cpu_fault = false;  // moved: for a fault of the CPU's; of what moved for it, the first part
  std::uintptr_t addr = 0;
  std::size_t bytes = 0;
  std::uint64_t time_ns = 0;  // the driver's clock
  std::uint64_t took_ns = 0;  // from the driver's start to its end; 0: it did not say
};

struct HostMirrorInfo {
  std::string name;            // "uffd"
  std::string path;            // how pages are withdrawn and why: "move" or "fallback: kernel 6.1 has no UFFDIO_MOVE"
  std::string note;            // what is missing and what it costs; "" when nothing
  bool kernel_faults = false;  // system calls given device-resident buffers work
  bool write_protect = false;  // read-only duplicates beside the CPU's mapping are possible
  bool any_pointer = false;    // pointers need no registration (shim, kfd with XNACK)
  bool driven = false;         // the driver serves faults and moves pages by itself: it reports, and takes wishes (kfd)
};

class HostMirror {
 public:
  virtual ~HostMirror() = default;
  virtual const HostMirrorInfo& info() const = 0;

  // --- ranges ---------------------------------------------------------------------------------------------------
  // Detaches and unmaps attached memory, but for holes that somebody else has mapped something in. No page of it may be
  // resident elsewhere. All its blocks claimed; before that, catch_up_addresses(), or not all holes are known.
  virtual void release(std::uintptr_t addr, std::size_t bytes) = 0;
  // Makes an existing private anonymous mapping manageable. Errors: not page aligned, not wholly mapped, not private
  // anonymous, hugetlb, already watched by another userfaultfd.
  virtual Status attach(std::uintptr_t addr, std::size_t bytes) = 0;
  // Every page must be back on the CPU (or meant to be lost). Afterwards it is ordinary memory. As for release().
  virtual void detach(std::uintptr_t addr, std::size_t bytes) = 0;
  // After a remap event: [from, from + bytes) is attached no more, [to, to + bytes) is, and what was kept for withdrawn
  // pages (staged contents, protection) now belongs to the page's new address. All blocks of both ranges claimed. On failure
  // neither is attached and kept contents are lost.
  virtual Status rehome(std::uintptr_t /*from*/, std::uintptr_t /*to*/, std::size_t /*bytes*/) {
    return HMMRT_ERROR_NOT_SUPPORTED;
  }
  // Rights the CPU's mapping gives now, in spans covering [addr, addr + bytes): calls fn(addr, bytes, rights).
  virtual void query_rights(std::uintptr_t addr, std::size_t bytes,
                            void (*fn)(void*, std::uintptr_t, std::size_t, Rights), void* arg) = 0;

  // --- events ---------------------------------------------------------------------------------------------------
  // Waits up to timeout_ns (negative: for ever) until fetch() has something to read, or interrupt() was called.
  virtual void wait(std::int64_t timeout_ns) = 0;
  // Reads waiting events without blocking; returns how many were written. Reading an event lets the application's
  // madvise, munmap or mremap go on. Thread: the event thread, which must never wait for a claim: application threads,
  // and other threads' calls here, wait for events to be read.
  virtual std::size_t fetch(std::span<HostEvent> out) = 0;
  virtual void interrupt() = 0;
  // Returns when events of what the application's threads had done before the call have been fetched and dealt with. For
  // mirrors whose events do not hold up who causes them. Thread: any but the event thread.
  virtual void catch_up() {}
  // Returns when events of whatever had changed what is at which address before the call have been fetched, whosever call
  // that was: the kernel gives addresses away again before their event has been read, and what it says must not be taken
  // for the new owner's. Thread: any but the event thread.
  virtual void catch_up_addresses() { catch_up(); }
  // Lets threads that faulted on these pages try again (after a page turned out to be present already).
  virtual void wake(std::uintptr_t base, const PageMask& pages) = 0;

  // --- transfers ------------------------------------------------------------------------------------------------
  virtual void prepare(Transfer& t) = 0;
  virtual void copy(Transfer& t) = 0;         // starts; sets t.ticket and t.copied
  virtual bool finish_copy(Transfer& t) = 0;  // waits; false when the copy failed (caller rolls back)
  virtual void commit(Transfer& t) = 0;       // delivering also wakes the threads that faulted on the pages
  virtual void rollback(Transfer& t) = 0;

  // --- single steps ---------------------------------------------------------------------------------------------
  // Gives the CPU zeroed pages where it has none and no other processor has any (first touch). Pages already there are
  // done. Wakes.
  virtual PageOutcome populate(std::uintptr_t base, const PageMask& pages) = 0;
  // Gives the CPU one zeroed page if it has none at `page`, and wakes. The one step that needs no claim: the caller holds
  // the block's state lock and knows that the page is the CPU's.
  virtual void populate_unclaimed(std::uintptr_t page) = 0;
  // Write-protects (true) or unprotects and wakes (false) pages present on the CPU.
  virtual PageOutcome write_protect(std::uintptr_t base, const PageMask& pages, bool on) = 0;
  // Gives back withdrawn pages whose contents here are still valid (the device only read them), without copying.
  // not_populated: nothing was ever kept (the page reads as zero: populate it). forbidden: the contents went to frames
  // only (withdrawn by copy): deliver them with a Transfer.
  virtual PageOutcome give_back(std::uintptr_t base, const PageMask& pages) = 0;
  // Forgets contents kept for withdrawn pages (freed, discarded, or dropped by the application).
  virtual void drop(std::uintptr_t base, const PageMask& pages) = 0;
  // The application is dropping these pages' contents: its call goes on as soon as the event is read, but the kernel
  // clears the pages some time later. watch_drop() marks those that are still there (they must not be taken away: their
  // contents would come back from the dead), drop_pending() says which marked pages the kernel has not cleared yet.
  virtual void watch_drop(std::uintptr_t base, const PageMask& pages) = 0;
  virtual PageMask drop_pending(std::uintptr_t base, const PageMask& pages) = 0;
  // Makes populated CPU pages safe for a device to map in place; address is where the device finds them. Pages stay
  // in the CPU's page table.
  virtual PageOutcome map_remote(std::uintptr_t base, const PageMask& pages) = 0;
  virtual std::byte* remote_address(std::uintptr_t addr) = 0;
  // Takes pages away from the CPU but leaves them in system memory, for one device to map alone; their address is
  // then exclusive_address(). Undone by give_back().
  virtual PageOutcome make_exclusive(std::uintptr_t base, const PageMask& pages) = 0;
  virtual std::byte* exclusive_address(std::uintptr_t addr) = 0;

  // --- a driver that moves pages by itself (`driven`) --------------------------------------------------------------
  // The books (space/) follow what it reports, and may be behind. What is asked of it here is asked whatever they say.
  // Thread: any, without a claim, unless it says otherwise. Blocks on: the kernel.
  //
  // Reads what it has done; returns how many records were written. Thread: the device thread.
  virtual std::size_t fetch_records(std::span<DriverRecord> /*out*/) { return 0; }
  // Pages of a block that the driver would keep in system memory, or bring there, if it were asked to send them to a device.
  virtual PageMask kept_home(std::uintptr_t /*base*/, Processor /*to*/) { return {}; }
  // Moves whole pages, in one call for any length; of what is mapped, for not all unmapping is reported. With `order`,
  // future faults there move pages in groups of 2^order, aligned. False: refused (failure_detail() says why); nothing is
  // known to have moved.
  virtual bool send(std::uintptr_t /*addr*/, std::size_t /*bytes*/, Processor /*to*/, Wish /*wish*/,
                    unsigned /*order*/ = 0) {
    return false;
  }
  // Brings pages of a block home and ties them to system memory, where devices use them in place, until let_go(). False as
  // above. Claim held.
  virtual bool tie(std::uintptr_t /*base*/, const PageMask& /*pages*/, Wish /*wish*/) { return false; }
  virtual void let_go(std::uintptr_t /*base*/, const PageMask& /*pages*/) {}
  // Passes a user's advice on, for pages of a block that are on `where`. False: the driver knows nothing like it, or
  // ignores it. Claim held.
  virtual bool advised(std::uintptr_t /*base*/, const PageMask& /*pages*/, hmmrt_advice_t /*advice*/, Processor /*p*/,
                       Processor /*where*/) {
    return true;
  }
  // What was asked for these pages is in force no more: they are managed no longer or, if `gone`, mapped no longer.
  virtual void disown(std::uintptr_t /*base*/, const PageMask& /*pages*/, bool /*gone*/) {}

  // The CPU maps the block with one huge page: cheap to take whole, costly to take in part.
  virtual bool huge(std::uintptr_t /*base*/) { return false; }
  // Bytes of bookkeeping, and of system memory held in staging that no one can reach.
  virtual std::uint64_t metadata_bytes() const = 0;
};

}  // namespace hmmrt
