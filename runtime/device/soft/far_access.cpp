// SPDX-License-Identifier: MIT
// Accesses to far memory (far_memory.hpp). The page table is looked at as for any access, so that what it lacks faults and
// the fault service decides; then the access itself is a request to the memory's owner. No section is open meanwhile:
// whatever happens to the translation, the owner finds the page. Waves of a unit that ask for single values while others
// do are served by one request; a span asks for itself, because its visitor may not be interrupted by other waves.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "device/soft/unit.hpp"

namespace hmmrt {

namespace {

constexpr std::size_t k_span_bytes = 64 << 10;  // of one operand
constexpr std::size_t k_line = 64;              // a bounce keeps the alignment up to this

Access kind_of(const FarAccess& access) {
  switch (access.op) {
    case FarAccess::Op::read:
      return Access::read;
    case FarAccess::Op::write:
      return Access::write;
    case FarAccess::Op::compare_exchange:
    case FarAccess::Op::add:
      break;
  }
  return access.system ? Access::atomic : Access::write;
}

// Operands [first, last) of addresses, which overlap or adjoin, and where their copy begins.
struct Piece {
  std::uintptr_t begin, end;
  std::byte* copy;
};

}  // namespace

// Returns when the page table had every page of [addr, addr + bytes) at some time. Faults for those that it lacks.
void Unit::make_present(std::uintptr_t addr, std::size_t bytes, Access access) {
  for (;;) {
    check_cancelled();
    current_->clear_faults();
    begin_section();
    for (std::uintptr_t at = addr; at < addr + bytes; at = page_floor(at) + k_page_size) {
      if (translate(at, access) == 0) {
        if (!current_->add_fault(at, access)) break;
      } else {
        leaf_of(at)->last_use.store(shared_.tick.load(std::memory_order_relaxed), std::memory_order_relaxed);
      }
    }
    if ((++fills_ & 63) == 0) shared_.tick.fetch_add(1, std::memory_order_relaxed);
    end_section();
    if (current_->fault_count == 0) return;
    stall();
  }
}

// Fails the launch, as a fault that cannot be served does.
void Unit::far_failed(const FarAccess& access) {
  LaunchError error;
  error.result = access.error == EFAULT   ? HMMRT_ERROR_ACCESS_DENIED
                 : access.error == ENOMEM ? HMMRT_ERROR_OUT_OF_MEMORY
                                          : HMMRT_ERROR_SYSTEM;
  error.addr = access.addr;
  error.access = kind_of(access);
  char text[128] = "";
  if (access.error != EFAULT) {
    std::snprintf(text, sizeof text, "the kernel module could not carry out the access: %s",
                  std::strerror(access.error));
  }
  shared_.cancel(shared_.cancel_context, current_->launch->id, error, text);
}

void Unit::far_access(FarAccess& access) {
  refuse_nesting(access.addr);
  if (turn_is_over()) yield_wave();
  make_present(access.addr, access.bytes, kind_of(access));
  Wave& wave = *current_;
  far_accesses_.push_back(&access);
  far_waves_.push_back(&wave);
  wave.fiber.suspend();
  if (access.error == 0) return;
  far_failed(access);
  throw WaveCancelled{};
}

std::size_t Unit::open_far_spans(std::span<detail::span_operand> operands, std::size_t elements) {
  for (const detail::span_operand& o : operands) {
    elements = std::min(elements, std::max<std::size_t>(k_span_bytes / o.element_bytes, 1));
  }
  for (const detail::span_operand& o : operands) {
    make_present(o.addr, elements * o.element_bytes, static_cast<Access>(o.kind));
  }
  // Operands that overlap in memory overlap in the copy.
  std::array<Piece, detail::k_max_operands> pieces;
  std::size_t count = 0;
  for (const detail::span_operand& o : operands) {
    Piece piece{o.addr, o.addr + elements * o.element_bytes, nullptr};
    for (std::size_t i = 0; i < count;) {
      if (pieces[i].begin > piece.end || piece.begin > pieces[i].end) {
        ++i;
        continue;
      }
      piece = {std::min(piece.begin, pieces[i].begin), std::max(piece.end, pieces[i].end), nullptr};
      pieces[i] = pieces[--count];
      i = 0;  // it may meet now what it did not
    }
    pieces[count++] = piece;
  }
  far_bounce_.resize(detail::k_max_operands * (k_span_bytes + k_page_size + 2 * k_line));
  std::array<FarAccess, detail::k_max_operands> reads;
  std::array<FarAccess*, detail::k_max_operands> requests;
  auto room = reinterpret_cast<std::uintptr_t>(far_bounce_.data());
  for (std::size_t i = 0; i < count; ++i) {
    room += (pieces[i].begin - room) % k_line;
    pieces[i].copy = far_bounce_.data() + (room - reinterpret_cast<std::uintptr_t>(far_bounce_.data()));
    const std::size_t bytes = pieces[i].end - pieces[i].begin;
    room += bytes;
    reads[i] = FarAccess{.op = FarAccess::Op::read, .addr = pieces[i].begin, .buffer = pieces[i].copy, .bytes = bytes};
    requests[i] = &reads[i];
  }
  shared_.config.far->access({requests.data(), count});
  for (std::size_t i = 0; i < count; ++i) {
    if (reads[i].error == 0) continue;
    far_failed(reads[i]);
    throw WaveCancelled{};
  }
  for (detail::span_operand& o : operands) {
    const auto* piece = std::find_if(pieces.begin(), pieces.begin() + count,
                                     [&](const Piece& p) { return p.begin <= o.addr && o.addr < p.end; });
    o.host = piece->copy + (o.addr - piece->begin);
    o.head_bytes = 0;
  }
  far_elements_ = elements;
  in_span_ = true;
  return elements;
}

// Writes back what may have been written: all elements of the operands that are not for reading.
void Unit::close_far_spans(std::span<detail::span_operand> operands) {
  in_span_ = false;
  if (current_->launch->cancelled.load(std::memory_order_acquire)) return;
  std::array<FarAccess, detail::k_max_operands> writes;
  std::array<FarAccess*, detail::k_max_operands> requests;
  std::size_t count = 0;
  for (const detail::span_operand& o : operands) {
    if (o.kind == detail::k_read) continue;
    writes[count] = FarAccess{
        .op = FarAccess::Op::write, .addr = o.addr, .buffer = o.host, .bytes = far_elements_ * o.element_bytes};
    requests[count] = &writes[count];
    ++count;
  }
  if (count == 0) return;
  shared_.config.far->access({requests.data(), count});
  for (std::size_t i = 0; i < count; ++i) {
    if (writes[i].error != 0) far_failed(writes[i]);  // the next access ends the wave
  }
}

}  // namespace hmmrt
