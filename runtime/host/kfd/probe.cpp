// SPDX-License-Identifier: MIT
#include "host/kfd/probe.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string_view>

#include "host/kfd/kfd_abi.h"

namespace hmmrt::kfd {

namespace {

class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

std::string words(int error) { return strerror(error); }

// All of `text`, as a number in decimal.
bool number(std::string_view text, std::uint64_t* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// A topology file: whether it could be read, or who forbids it.
enum class Reading : std::uint8_t { done, forbidden, failed };

Reading read_text(const KfdSystem& system, const std::string& path, std::string* text) {
  const File file(system.open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char buffer[4096];  // sysfs files are at most a page
  const ssize_t n = file.fd() < 0 ? -1 : read(file.fd(), buffer, sizeof buffer);
  if (n < 0) return errno == EPERM || errno == EACCES ? Reading::forbidden : Reading::failed;
  text->assign(buffer, static_cast<std::size_t>(n));
  return Reading::done;
}

// A line "name value" of a properties file; 0 where there is none.
std::uint64_t property(std::string_view properties, std::string_view name) {
  while (!properties.empty()) {
    const std::string_view line = properties.substr(0, properties.find('\n'));
    properties.remove_prefix(std::min(line.size() + 1, properties.size()));
    std::uint64_t value = 0;
    if (line.size() > name.size() && line.substr(0, name.size()) == name && line[name.size()] == ' ' &&
        number(line.substr(name.size() + 1), &value)) {
      return value;
    }
  }
  return 0;
}

// One node's directory. The kernel refuses a GPU's files to containers that may not use its render node.
void read_node(const KfdSystem& system, const std::string& directory, std::uint32_t node, Probe* out) {
  std::string text;
  std::uint64_t gpu_id = 0;
  switch (read_text(system, directory + "/gpu_id", &text)) {
    case Reading::forbidden:
      ++out->hidden_nodes;
      return;
    case Reading::failed:
      return;
    case Reading::done:
      break;
  }
  const std::string_view id(text.data(), std::min(text.find('\n'), text.size()));
  if (!number(id, &gpu_id) || gpu_id > std::numeric_limits<std::uint32_t>::max()) return;
  if (gpu_id == 0) {
    ++out->cpu_nodes;
    return;
  }
  if (read_text(system, directory + "/properties", &text) != Reading::done) text.clear();
  KfdGpu gpu;
  gpu.node = node;
  gpu.gpu_id = static_cast<std::uint32_t>(gpu_id);
  gpu.gfx_version = static_cast<std::uint32_t>(property(text, "gfx_target_version"));
  gpu.domain = static_cast<std::uint32_t>(property(text, "domain"));
  gpu.location = static_cast<std::uint32_t>(property(text, "location_id"));
  gpu.apu = property(text, "cpu_cores_count") != 0;
  gpu.hive = property(text, "hive_id");
  gpu.svm = (property(text, "capability") & HMMRT_KFD_CAP_SVM) != 0;
  out->gpus.push_back(gpu);
}

// 0 or errno.
int read_topology(const KfdSystem& system, Probe* out) {
  DIR* const directory = opendir(system.nodes.c_str());
  if (directory == nullptr) return errno;
  while (const dirent* entry = readdir(directory)) {  // NOLINT(concurrency-mt-unsafe): a stream of our own
    std::uint64_t node = 0;
    if (!number(static_cast<const char*>(entry->d_name), &node)) continue;
    if (node > std::numeric_limits<std::uint32_t>::max()) continue;
    read_node(system, system.nodes + "/" + static_cast<const char*>(entry->d_name), static_cast<std::uint32_t>(node),
              out);
  }
  closedir(directory);
  std::sort(out->gpus.begin(), out->gpus.end(), [](const KfdGpu& a, const KfdGpu& b) { return a.node < b.node; });
  return 0;
}

// Asks for an attribute of a page of our own that no GPU knows: changes nothing. 0 or errno.
int try_svm(const KfdSystem& system, int fd) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* const memory = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return errno;
  hmmrt_kfd_svm get{};
  get.start = reinterpret_cast<std::uintptr_t>(memory);
  get.bytes = page;
  get.op = HMMRT_KFD_SVM_GET_ATTR;
  get.attributes = 1;
  get.attribute[0].type = HMMRT_KFD_SVM_ATTR_GRANULARITY;
  const int error = system.ioctl(fd, HMMRT_KFD_SVM_WITH(1), &get) == 0 ? 0 : errno;
  munmap(memory, page);
  return error;
}

std::string count(std::size_t n, const char* what) { return std::to_string(n) + " " + what + (n == 1 ? "" : "s"); }

void say(Probe* out, Rung rung, std::string sentence) {
  out->rung = rung;
  out->says = std::move(sentence);
}

void say_not_opened(const KfdSystem& system, int error, Probe* out) {
  const std::string& device = system.device;
  switch (error) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
      if (exists(system.nodes)) {
        say(out, Rung::absent,
            "the AMD GPU driver runs, but there is no " + device + " here: give it to this container (--device " +
                device + " --device /dev/dri)");
      } else if (exists(system.module)) {
        say(out, Rung::absent,
            "no " + device +
                ": amdgpu is loaded but its compute part is not (a kernel without CONFIG_HSA_AMD): use one "
                "that has it");
      } else {
        say(out, Rung::absent,
            "there is no " + device +
                ", because the kernel module amdgpu is not loaded: load it if this machine has an AMD GPU");
      }
      return;
    case EACCES:
      say(out, Rung::no_permission,
          device +
              " is not for this user: add the user to the group that owns it, usually 'render' (usermod -aG render "
              "USER), and log in again");
      return;
    case EPERM:
      say(out, Rung::no_permission,
          device + " is refused to this process: a container needs --device " + device +
              " --device /dev/dri, and 32-bit processes never get it");
      return;
    default:
      say(out, Rung::unusable,
          device + " does not open (" + words(error) + "): see the kernel's log for amdgpu, and try again");
  }
}

// With GPUs. Asks about SVM, then XNACK.
void say_gpus(const KfdSystem& system, int fd, Probe* out) {
  const std::string gpus = count(out->gpus.size(), "AMD GPU");
  const int svm_error = try_svm(system, fd);
  if (svm_error != 0) {
    const bool old = out->version_minor < HMMRT_KFD_MINOR_SVM;
    say(out, Rung::no_svm,
        gpus + ", but this kernel's driver has no shared virtual memory (" + words(svm_error) + "): use a kernel " +
            (old ? "of 5.14 or later with " : "with ") +
            "CONFIG_HSA_AMD_SVM and CONFIG_DEVICE_PRIVATE (Debian 12's own "
            "has neither)");
    return;
  }
  const auto able = static_cast<std::size_t>(
      std::count_if(out->gpus.begin(), out->gpus.end(), [](const KfdGpu& gpu) { return gpu.svm; }));
  if (able == 0) {
    say(out, Rung::no_svm,
        gpus +
            ", but none that can share virtual memory, although this kernel can: it takes one of gfx9 (Vega) or later, "
            "whose memory the kernel could register (see its log)");
    return;
  }
  const std::string with_svm =
      (able == out->gpus.size() ? gpus : std::to_string(able) + " of " + gpus) + " with shared virtual memory";
  hmmrt_kfd_xnack xnack{};
  xnack.enabled = -1;
  const int error = system.ioctl(fd, HMMRT_KFD_XNACK, &xnack) == 0 ? 0 : errno;
  if (error != 0) {
    say(out, Rung::svm,
        with_svm + "; whether faults are retried (XNACK) the driver does not say (" + words(error) +
            "), so only memory made known to the GPU first is safe to use on it");
  } else if (xnack.enabled > 0) {
    say(out, Rung::svm_xnack, with_svm + " and retryable faults (XNACK on): nothing is missing");
  } else {
    say(out, Rung::svm,
        with_svm +
            ", but without retryable faults (XNACK off), so only memory made known to the GPU first can be used on "
            "it: HSA_XNACK=1 turns them on where the GPU has them (gfx90a, gfx942; not RDNA)");
  }
}

}  // namespace

KfdSystem::KfdSystem()
    : open([](const char* path, int flags) { return ::open(path, flags); }),
      ioctl([](int fd, unsigned long request, void* argument) { return ::ioctl(fd, request, argument); }) {
  if (const char* made_up = std::getenv("HMMRT_TEST_KFD_TOPOLOGY"); made_up != nullptr) nodes = made_up;
}

std::vector<KfdGpu> find_gpus(const KfdSystem& system) {
  Probe found;
  (void)read_topology(system, &found);
  return std::move(found.gpus);
}

const char* rung_name(Rung rung) noexcept {
  switch (rung) {
    case Rung::absent:
      return "absent";
    case Rung::no_permission:
      return "no_permission";
    case Rung::unusable:
      return "unusable";
    case Rung::cpu_only:
      return "cpu_only";
    case Rung::no_svm:
      return "no_svm";
    case Rung::svm:
      return "svm";
    case Rung::svm_xnack:
      return "svm_xnack";
  }
  return "";
}

Probe probe(const KfdSystem& system) {
  Probe out;
  const File file(system.open(system.device.c_str(), O_RDWR | O_CLOEXEC));
  if (file.fd() < 0) {
    say_not_opened(system, errno, &out);
    return out;
  }
  hmmrt_kfd_version version{};
  if (const int error = system.ioctl(file.fd(), HMMRT_KFD_GET_VERSION, &version) == 0 ? 0 : errno; error != 0) {
    say(&out, Rung::unusable,
        system.device + " does not tell its version (" + words(error) + "): it is not AMD's driver, or a broken one");
    return out;
  }
  out.version_major = version.abi_major;
  out.version_minor = version.abi_minor;
  if (version.abi_major != HMMRT_KFD_MAJOR) {
    say(&out, Rung::unusable,
        system.device + " speaks version " + std::to_string(version.abi_major) + "." +
            std::to_string(version.abi_minor) + ", this library 1.x: install matching versions");
    return out;
  }
  if (const int error = read_topology(system, &out); error != 0) {
    say(&out, Rung::unusable,
        system.device + " opens, but " + system.nodes + " cannot be read (" + words(error) + "): mount /sys");
  } else if (!out.gpus.empty()) {
    say_gpus(system, file.fd(), &out);
  } else if (out.hidden_nodes > 0) {
    say(&out, Rung::no_permission,
        count(out.hidden_nodes, "AMD GPU") +
            " that this container or user may not use: give it the render nodes "
            "(--device /dev/dri)");
  } else if (out.cpu_nodes == 0) {
    say(&out, Rung::unusable, system.nodes + " lists no processor at all: see the kernel's log for amdgpu");
  } else {
    say(&out, Rung::cpu_only,
        system.device + " works, but it knows only CPU nodes (" + std::to_string(out.cpu_nodes) +
            "): no AMD GPU is there that amdgpu drives; see the kernel's log for amdgpu if there should be one");
  }
  return out;
}

std::string release() {
  if (const char* test = std::getenv("HMMRT_TEST_KERNEL_RELEASE"); test != nullptr) return test;
  utsname name{};
  return uname(&name) == 0 ? name.release : "";
}

bool moves_whole_ranges(const std::string& release) {
  unsigned major = 0, minor = 0;
  if (std::sscanf(release.c_str(), "%u.%u", &major, &minor) != 2) return false;  // NOLINT(cert-err34-c): checked
  return major < 6 || (major == 6 && minor < 8);
}

}  // namespace hmmrt::kfd
