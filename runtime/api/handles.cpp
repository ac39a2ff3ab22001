// SPDX-License-Identifier: MIT
#include "api/handles.hpp"

namespace hmmrt {

const char* kind_name(HandleKind kind) {
  switch (kind) {
    case HandleKind::context:
      return "context";
    case HandleKind::stream:
      return "stream";
    case HandleKind::event:
      return "event";
    case HandleKind::none:
      break;
  }
  return "handle";
}

HandleTable& HandleTable::instance() {
  // Never destroyed: contexts that outlive main() are still served.
  static HandleTable& table = *std::make_unique<HandleTable>().release();
  return table;
}

std::uintptr_t HandleTable::put(std::unique_ptr<HandleObject> object) {
  const std::lock_guard guard(lock_);
  if (free_.empty()) {
    if (slots_.size() == k_slots) return 0;
    slots_.emplace_back();
    free_.reserve(slots_.size());  // so that take() does not allocate
    free_.push_back(static_cast<std::uint32_t>(slots_.size() - 1));
  }
  const std::uint32_t index = free_.back();
  free_.pop_back();
  Slot& slot = slots_[index];
  const auto kind = static_cast<std::uintptr_t>(object->kind());
  object->handle_ =
      std::uintptr_t{slot.generation} << (k_kind_bits + k_slot_bits) | std::uintptr_t{index} << k_kind_bits | kind;
  slot.object = std::move(object);
  return slot.object->handle_;
}

HandleTable::Slot* HandleTable::find(std::uintptr_t handle, HandleKind kind) {
  if ((handle & ((1u << k_kind_bits) - 1)) != static_cast<std::uintptr_t>(kind)) return nullptr;
  const std::size_t index = (handle >> k_kind_bits) & (k_slots - 1);
  if (index >= slots_.size() || slots_[index].object == nullptr) return nullptr;
  if (slots_[index].generation != handle >> (k_kind_bits + k_slot_bits)) return nullptr;
  return slots_[index].object->kind() == kind ? &slots_[index] : nullptr;
}

Status HandleTable::invalid(std::uintptr_t handle, HandleKind wanted) {
  if (handle == 0) return fail(HMMRT_ERROR_INVALID_HANDLE, "the %s handle is null", kind_name(wanted));
  const auto kind = static_cast<HandleKind>(handle & ((1u << k_kind_bits) - 1));
  const std::size_t index = (handle >> k_kind_bits) & (k_slots - 1);
  const std::uintptr_t generation = handle >> (k_kind_bits + k_slot_bits);
  if (kind != wanted && find(handle, kind) != nullptr) {
    return fail(HMMRT_ERROR_INVALID_HANDLE, "%#zx is a %s handle; a %s handle is needed", handle, kind_name(kind),
                kind_name(wanted));
  }
  if (kind == wanted && index < slots_.size() && generation < slots_[index].generation) {
    return fail(HMMRT_ERROR_INVALID_HANDLE, "%s %#zx has been destroyed", kind_name(wanted), handle);
  }
  return fail(HMMRT_ERROR_INVALID_HANDLE, "%#zx is not a %s handle of this library", handle, kind_name(wanted));
}

std::size_t HandleTable::live() const {
  const std::lock_guard guard(lock_);
  return slots_.size() - free_.size();
}

}  // namespace hmmrt
