// SPDX-License-Identifier: MIT
// The asymmetric barrier between compute units, which access memory all the time and must not pay for it, and quiesce(),
// which is rare and may. Kernel-side code is in <hmmrt/kernel_soft.hpp>.
//
//   unit                                        quiescer
//   U1  busy = 1           (relaxed)            Q1  page-table entry = 0
//       compiler fence                          Q2  flush_requested += 1   (release)
//   U2  flush_requested == flush_seen?          Q3  membarrier: every running thread of the process executes a full
//       no: empty the TLB, then                     barrier at a point B between call and return
//       flush_seen = flush_requested (release)  Q4  wait until busy == 0, or flush_seen has reached Q2's value
//   U3  TLB lookup or page walk, access
//   U4  busy = 0           (release)
//
// Claim: after Q4 no access through the removed entry is in flight or will start. Take any section, and the unit's B.
//   - U1 before B: the quiescer, after B, sees this section's busy == 1, or its end. The end is a release that Q4
//     acquires, so its accesses are done. Waiting ends on flush_seen only if a section saw Q2's value at U2; that one
//     acquired Q2, so its own walk, and every later one, sees Q1; and every earlier section had ended before it.
//   - U1 after B: U2 comes after B too, so it sees Q2's value: it empties the TLB and walks a table without the entry.
// A unit whose flush_seen reached Q2's value acquired Q2 with no older section open, whether or not there was a Q3: so
// quiesce() first polls for that, and pays for membarrier only when some running unit does not answer.
// A unit asleep has no section open, and wakes through a full barrier (its wake word), so Q2 before seeing it asleep
// is enough: then no membarrier is needed for it.
// A stalled wave has left its section before it faulted, so quiesce() never waits for a replay.
//
// Without membarrier(2) (or in deterministic mode) the inline path is kept from ever hitting and every section starts
// in Unit::enter, which puts a full fence after U1; Q3 is then a full fence: Dekker's argument, same conclusion.
// ThreadSanitizer: all edges used above are release/acquire on busy, flush_requested and flush_seen, which it sees;
// membarrier only forbids reorderings, which it does not model.
#pragma once

namespace hmmrt {

// True when the kernel can do it; registers the process. Cheap after the first call. Thread: any.
bool membarrier_available();
// Q3. Requires membarrier_available().
void membarrier_all();

}  // namespace hmmrt
