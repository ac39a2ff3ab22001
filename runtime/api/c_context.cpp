// SPDX-License-Identifier: MIT
// The C entry points about results, options, contexts, devices and policies.
#include <cstdio>
#include <string>

#include "api/context.hpp"
#include "api/convert.hpp"
#include "api/entry.hpp"
#include "api/log.hpp"
#include "api/process.hpp"
#include "policy/plug_in.hpp"

using namespace hmmrt;  // NOLINT(google-build-using-namespace): the C ABI is outside the namespace

namespace {

template <std::size_t N>
void copy_text(char (&to)[N], const std::string& from) {
  std::snprintf(to, N, "%s", from.c_str());
}

}  // namespace

const char* hmmrt_result_name(hmmrt_result_t result) {
  switch (result) {
#define HMMRT_NAME(r) \
  case r:             \
    return #r
    HMMRT_NAME(HMMRT_SUCCESS);
    HMMRT_NAME(HMMRT_ERROR_INVALID_VALUE);
    HMMRT_NAME(HMMRT_ERROR_INVALID_HANDLE);
    HMMRT_NAME(HMMRT_ERROR_INVALID_DEVICE);
    HMMRT_NAME(HMMRT_ERROR_INVALID_OPTION);
    HMMRT_NAME(HMMRT_ERROR_NOT_MANAGED);
    HMMRT_NAME(HMMRT_ERROR_ALREADY_MANAGED);
    HMMRT_NAME(HMMRT_ERROR_MISALIGNED);
    HMMRT_NAME(HMMRT_ERROR_NOT_ANONYMOUS);
    HMMRT_NAME(HMMRT_ERROR_OUT_OF_MEMORY);
    HMMRT_NAME(HMMRT_ERROR_DEVICE_FULL);
    HMMRT_NAME(HMMRT_ERROR_BUSY);
    HMMRT_NAME(HMMRT_ERROR_PINNED);
    HMMRT_NAME(HMMRT_ERROR_ILLEGAL_ADDRESS);
    HMMRT_NAME(HMMRT_ERROR_ACCESS_DENIED);
    HMMRT_NAME(HMMRT_ERROR_NOT_READY);
    HMMRT_NAME(HMMRT_ERROR_NOT_SUPPORTED);
    HMMRT_NAME(HMMRT_ERROR_FORKED);
    HMMRT_NAME(HMMRT_ERROR_IN_KERNEL);
    HMMRT_NAME(HMMRT_ERROR_SYSTEM);
    HMMRT_NAME(HMMRT_ERROR_INTERNAL);
    HMMRT_NAME(HMMRT_ERROR_EXCEPTION);
#undef HMMRT_NAME
  }
  return "HMMRT_ERROR_UNKNOWN";
}

const char* hmmrt_last_error_detail(void) { return failure_detail(); }

uint32_t hmmrt_version(void) { return HMMRT_VERSION_MAJOR * 10000 + HMMRT_VERSION_MINOR * 100 + HMMRT_VERSION_PATCH; }

const char* hmmrt_cause_name(hmmrt_cause_t cause) {
  switch (cause) {
    case HMMRT_CAUSE_FAULT:
      return "fault";
    case HMMRT_CAUSE_PREFETCH_HEURISTIC:
      return "prefetch (heuristic)";
    case HMMRT_CAUSE_PREFETCH_USER:
      return "prefetch (user)";
    case HMMRT_CAUSE_EVICTION:
      return "eviction";
    case HMMRT_CAUSE_COHERENCE:
      return "coherence";
    case HMMRT_CAUSE_ACCESS_COUNTER:
      return "access counter";
    case HMMRT_CAUSE_ADVICE:
      return "advice";
    case HMMRT_CAUSE_COUNT:
      break;
  }
  return "unknown";
}

// ---- options --------------------------------------------------------------------------------------------------------

uint32_t hmmrt_option_count(void) { return static_cast<uint32_t>(option_table().size()); }

hmmrt_result_t hmmrt_option_get_info(uint32_t index, hmmrt_option_info_t* info) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    if (info == nullptr) return null_argument("hmmrt_option_get_info", "info");
    const auto table = option_table();
    if (index >= table.size()) {
      return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_option_get_info: index %u; there are %zu options", index,
                  table.size());
    }
    // Built once, never destroyed: the strings outlive every caller. Policies registered later are in the error text.
    static const std::vector<std::string>& ranges = *[] {
      auto all = std::make_unique<std::vector<std::string>>();
      for (const Option& o : option_table()) all->push_back(option_range(o));
      return all.release();
    }();
    const Option& option = table[index];
    hmmrt_option_info_t out{};
    out.size = sizeof out;
    out.name = option.name;
    out.environment = option.environment;
    out.default_value = option.default_value;
    out.range = ranges[index].c_str();
    out.doc = option.doc;
    return write_struct("hmmrt_option_get_info", out, info);
  });
}

hmmrt_result_t hmmrt_option_get(hmmrt_context_t context, const char* name, const char** value) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (name == nullptr) return null_argument("hmmrt_option_get", "name");
    if (value == nullptr) return null_argument("hmmrt_option_get", "value");
    const Option* option = find_option(name);
    if (option == nullptr) {
      Settings scratch;
      return set_option(scratch, name, "", "hmmrt_option_get");  // says what is similar
    }
    *value = c->option_value(static_cast<std::size_t>(option - option_table().data()));
    return {};
  });
}

// ---- contexts -------------------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_context_create(const hmmrt_context_desc_t* desc, hmmrt_context_t* context) {
  return entry(__func__, [&]() -> Status {
    if (context == nullptr) return null_argument("hmmrt_context_create", "context");
    Settings settings;
    set_defaults(settings);
    if (const Status s = set_from_environment(settings); !s.ok()) return s;
    if (desc != nullptr) {
      hmmrt_context_desc_t d;
      if (const Status s = read_struct("hmmrt_context_create", desc, sizeof d, &d); !s.ok()) return s;
      if (d.option_count != 0 && d.options == nullptr) {
        return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_context_create: %u options, but options is null", d.option_count);
      }
      for (uint32_t i = 0; i < d.option_count; ++i) {
        if (d.options[i].name == nullptr || d.options[i].value == nullptr) {
          return fail(HMMRT_ERROR_INVALID_VALUE, "hmmrt_context_create: option %u has no %s", i,
                      d.options[i].name == nullptr ? "name" : "value");
        }
        const Status s = set_option(settings, d.options[i].name, d.options[i].value, "hmmrt_context_create");
        if (!s.ok()) return s;
      }
    }
    watch_process();
    const std::shared_lock guard(lifecycle_lock());
    std::unique_ptr<Context> made;
    if (const Status s = Context::create(std::move(settings), &made); !s.ok()) return s;
    watch_exit(made->settings().device != "soft");
    const std::uintptr_t handle = HandleTable::instance().put(std::move(made));
    if (handle == 0) return fail(HMMRT_ERROR_OUT_OF_MEMORY, "hmmrt_context_create: no room for another handle");
    *context = to_handle<hmmrt_context_t>(handle);
    return {};
  });
}

hmmrt_result_t hmmrt_context_destroy(hmmrt_context_t context) {
  return entry(__func__, [&]() -> Status {
    std::unique_ptr<Context> c;
    if (const Status s = HandleTable::instance().take(from_handle(context), &c); !s.ok()) return s;
    c->wait_unused();
    c->drain_streams();
    const std::shared_lock guard(lifecycle_lock());
    c.reset();
    return {};
  });
}

hmmrt_result_t hmmrt_context_synchronize(hmmrt_context_t context) {
  return entry(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    return c->synchronize();
  });
}

hmmrt_result_t hmmrt_context_get_info(hmmrt_context_t context, hmmrt_context_info_t* info) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (info == nullptr) return null_argument("hmmrt_context_get_info", "info");
    const HostMirrorInfo& host = c->host().info();
    hmmrt_context_info_t out{};
    out.size = sizeof out;
    copy_text(out.policy, std::string(c->house().policy.name()));
    copy_text(out.host_mirror, host.name);
    copy_text(out.host_path, host.path);
    copy_text(out.host_note, host.note);
    out.device_count = c->device_count();
    out.kernel_faults = host.kernel_faults ? 1 : 0;
    out.write_protect = host.write_protect ? 1 : 0;
    out.move = host.path.rfind("move", 0) == 0 ? 1 : 0;
    out.page_bytes = k_page_size;
    out.block_bytes = k_block_size;
    out.any_pointer = host.any_pointer ? 1 : 0;
    return write_struct("hmmrt_context_get_info", out, info);
  });
}

// ---- devices --------------------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_device_count(hmmrt_context_t context, uint32_t* count) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (count == nullptr) return null_argument("hmmrt_device_count", "count");
    *count = c->device_count();
    return {};
  });
}

hmmrt_result_t hmmrt_device_get_info(hmmrt_context_t context, uint32_t device, hmmrt_device_info_t* info) {
  return entry<AtExit::answered>(__func__, [&]() -> Status {
    Use<Context> c;
    if (const Status s = use(context, &c); !s.ok()) return s;
    if (info == nullptr) return null_argument("hmmrt_device_get_info", "info");
    if (const Status s = check_device("hmmrt_device_get_info", *c, device); !s.ok()) return s;
    const Device& d = c->device(device);
    const DeviceInfo& from = d.info();
    hmmrt_device_info_t out{};
    out.size = sizeof out;
    copy_text(out.name, from.name);
    copy_text(out.description, from.description);
    out.capabilities = (from.caps.retryable_faults ? HMMRT_DEVICE_RETRYABLE_FAULTS : 0u) |
                       (from.caps.remote_mapping ? HMMRT_DEVICE_REMOTE_MAPPING : 0u) |
                       (from.caps.access_counters ? HMMRT_DEVICE_ACCESS_COUNTERS : 0u) |
                       (from.caps.coherent ? HMMRT_DEVICE_COHERENT : 0u) |
                       (from.caps.system_atomics ? HMMRT_DEVICE_SYSTEM_ATOMICS : 0u) |
                       (from.caps.peer ? HMMRT_DEVICE_PEER : 0u) | (from.caps.peer_copy ? HMMRT_DEVICE_PEER_COPY : 0u);
    out.compute_units = from.compute_units;
    out.wave_size = from.wave_size;
    out.fault_buffer_entries = from.fault_buffer_entries;
    out.memory_bytes = from.memory_bytes;
    out.memory_free_bytes = d.free_frame_count() * k_page_size;
    return write_struct("hmmrt_device_get_info", out, info);
  });
}

// ---- policies -------------------------------------------------------------------------------------------------------

hmmrt_result_t hmmrt_policy_register(const hmmrt_policy_ops_t* ops) {
  return entry(__func__, [&] { return register_plug_in(ops); });
}
