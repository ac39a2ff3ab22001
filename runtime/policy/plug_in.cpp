// SPDX-License-Identifier: MIT
#include "policy/plug_in.hpp"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>

namespace hmmrt {
namespace {

struct PlugIn {
  hmmrt_policy_ops_t ops;
  char name[32];
};

// Entries below `plug_in_count` never change again: readers need no lock. Release on the count publishes an entry.
constinit std::array<PlugIn, k_max_plug_ins> plug_ins{};
constinit std::atomic<unsigned> plug_in_count{0};
constinit std::mutex register_mutex;
// names[n] lists the built-in policies and n plug-ins; written before the count is published.
constinit std::array<char[sizeof(k_built_in_policies) + std::size_t{34} * k_max_plug_ins], k_max_plug_ins + 1> names{};

hmmrt_page_mask_t to_c(const PageMask& m) {
  hmmrt_page_mask_t out;
  for (unsigned i = 0; i < PageMask::k_words; ++i) out.words[i] = m.word(i);
  return out;
}

PageMask from_c(const hmmrt_page_mask_t& m) {
  PageMask out;
  for (unsigned i = 0; i < PageMask::k_words; ++i) out.set_word(i, m.words[i]);
  return out;
}

hmmrt_policy_history_t* to_c(BlockHistory& h) { return reinterpret_cast<hmmrt_policy_history_t*>(h.bytes.data()); }

class PlugInPolicy final : public Policy {
 public:
  explicit PlugInPolicy(const PlugIn& plug_in) : plug_in_(plug_in) {}
  std::string_view name() const override { return plug_in_.name; }

  void decide(const BlockView& block, const FaultGroup& group, const PolicyContext& context,
              Plan& plan) const override {
    hmmrt_policy_block_t b{};
    b.size = sizeof b;
    b.base = block.base;
    b.pinned_until_ns = block.pinned_until_ns;
    b.cpu_huge = block.cpu_huge ? 1 : 0;
    b.valid = to_c(block.valid);
    b.resident_here = to_c(block.resident_here);
    b.resident_cpu = to_c(block.resident_cpu);
    b.resident_peer = to_c(block.resident_peer);
    b.mapped_here = to_c(block.mapped_here);
    b.populated = to_c(block.populated);
    b.read_mostly = to_c(block.read_mostly);
    b.accessed_by = to_c(block.accessed_by);
    b.preferred_here = to_c(block.preferred_here);
    b.preferred_elsewhere = to_c(block.preferred_elsewhere);

    hmmrt_policy_faults_t f{};
    f.size = sizeof f;
    f.processor = group.processor;
    f.faults = group.faults;
    f.read = to_c(group.read);
    f.write = to_c(group.write);
    f.atomic = to_c(group.atomic);

    hmmrt_policy_context_t c{};
    c.size = sizeof c;
    c.now_ns = context.now_ns;
    c.device_frames = context.device_frames;
    c.device_free_frames = context.device_free_frames;
    c.fault_ns = context.fault_ns;
    c.flags = (context.can_map_remote ? HMMRT_POLICY_CAN_MAP_REMOTE : 0u) |
              (context.can_duplicate ? HMMRT_POLICY_CAN_DUPLICATE : 0u) |
              (context.system_atomics ? HMMRT_POLICY_SYSTEM_ATOMICS : 0u);

    hmmrt_policy_plan_t p{};
    p.size = sizeof p;
    p.to = HMMRT_POLICY_FAULTING_PROCESSOR;
    p.reason = static_cast<std::uint32_t>(Reason::plug_in);
    plug_in_.ops.decide(plug_in_.ops.user, &b, &f, &c, to_c(*block.history), &p);

    const PageMask faulted = group.pages() & block.valid;
    plan.migrate = from_c(p.migrate) & block.valid;
    plan.duplicate = (from_c(p.duplicate) & block.valid) - plan.migrate;
    plan.remote = (from_c(p.remote) & block.valid) - plan.migrate - plan.duplicate;
    plan.throttle_ns = p.throttle_ns;
    plan.pin_ns = p.pin_ns;
    plan.to = p.to < k_max_processors ? static_cast<Processor>(p.to) : k_no_processor;
    plan.reason =
        p.reason <= static_cast<std::uint32_t>(Reason::plug_in) ? static_cast<Reason>(p.reason) : Reason::plug_in;
    // What cannot be done here must not leave the fault unanswered.
    PageMask refused = context.can_map_remote ? PageMask{} : plan.remote;
    if (!context.can_duplicate) refused |= plan.duplicate;
    plan.remote = plan.remote - refused;
    plan.duplicate = plan.duplicate - refused;
    plan.migrate |= refused & faulted;
    if (plan.throttle_ns == 0) plan.migrate |= faulted - plan.duplicate - plan.remote;
  }

  void on_migrated(BlockHistory& history, const PageMask& pages, Processor from, Processor to, Cause cause,
                   std::uint64_t now_ns) const override {
    if (plug_in_.ops.on_migrated == nullptr) return;
    const hmmrt_page_mask_t mask = to_c(pages);
    plug_in_.ops.on_migrated(plug_in_.ops.user, to_c(history), &mask, from, to, static_cast<hmmrt_cause_t>(cause),
                             now_ns);
  }

  bool ping_pong(const BlockHistory& history, std::uint64_t now_ns) const override {
    if (plug_in_.ops.ping_pong == nullptr) return false;
    return plug_in_.ops.ping_pong(plug_in_.ops.user,
                                  reinterpret_cast<const hmmrt_policy_history_t*>(history.bytes.data()), now_ns) != 0;
  }

 private:
  const PlugIn& plug_in_;
};

const PlugIn* find(std::string_view name) {
  const unsigned n = plug_in_count.load(std::memory_order_acquire);
  for (unsigned i = 0; i < n; ++i) {
    if (name == plug_ins[i].name) return &plug_ins[i];
  }
  return nullptr;
}

bool good_name(const char* name) {
  const std::size_t n = strnlen(name, sizeof(PlugIn::name));
  return n > 0 && n < sizeof(PlugIn::name) && std::strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == n;
}

}  // namespace

Status register_plug_in(const hmmrt_policy_ops_t* ops) {
  if (ops == nullptr) return fail(HMMRT_ERROR_INVALID_VALUE, "policy plug-in: the table of operations is null");
  if (ops->size != sizeof *ops) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "policy plug-in: size is %zu; this library knows %zu (set it to sizeof)",
                ops->size, sizeof *ops);
  }
  if (ops->abi_version != HMMRT_POLICY_ABI_VERSION) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "policy plug-in: built for ABI version %u; this library has version %u",
                ops->abi_version, HMMRT_POLICY_ABI_VERSION);
  }
  if (ops->decide == nullptr) return fail(HMMRT_ERROR_INVALID_VALUE, "policy plug-in: decide is null");
  if (ops->name == nullptr || !good_name(ops->name)) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "policy plug-in: the name must be 1 to 31 characters of a-z, 0-9 and _");
  }
  const std::lock_guard lock(register_mutex);
  if (make_policy(ops->name) != nullptr) {
    return fail(HMMRT_ERROR_INVALID_VALUE, "policy plug-in: there is a policy named %s already", ops->name);
  }
  const unsigned n = plug_in_count.load(std::memory_order_relaxed);
  if (n == k_max_plug_ins) {
    return fail(HMMRT_ERROR_OUT_OF_MEMORY, "policy plug-in: %u are registered, and there is no room for more", n);
  }
  plug_ins[n].ops = *ops;
  std::strcpy(plug_ins[n].name, ops->name);
  plug_ins[n].ops.name = plug_ins[n].name;
  std::snprintf(names[n + 1], sizeof names[n + 1], "%s, %s", n == 0 ? k_built_in_policies : names[n], ops->name);
  plug_in_count.store(n + 1, std::memory_order_release);
  return {};
}

std::unique_ptr<Policy> make_plug_in_policy(std::string_view name) {
  const PlugIn* plug_in = find(name);
  return plug_in == nullptr ? nullptr : std::make_unique<PlugInPolicy>(*plug_in);
}

const char* policy_names_with_plug_ins(const char* built_in) {
  const unsigned n = plug_in_count.load(std::memory_order_acquire);
  return n == 0 ? built_in : names[n];
}

}  // namespace hmmrt
