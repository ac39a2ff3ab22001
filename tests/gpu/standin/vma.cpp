// SPDX-License-Identifier: MIT
// What is mapped where, asked of the kernel: by PROCMAP_QUERY (Linux 6.11), or from the text of /proc/self/maps.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "gpu/standin/svm_pages.hpp"

namespace standin {

namespace {

struct Query {  // struct procmap_query
  std::uint64_t size, flags, at;
  std::uint64_t begin, end, vma_flags, page_size, offset, inode;
  std::uint32_t major, minor, name_bytes, build_id_bytes;
  std::uint64_t name, build_id;
};
constexpr unsigned long k_query = _IOWR('f', 17, Query);

void describe(Vma* v, bool shared, std::uint64_t inode, std::string_view name) {
  v->heap_or_stack = name == "[heap]" || name == "[stack]";
  const bool special = !name.empty() && name.front() == '[' && !v->heap_or_stack && name.substr(0, 6) != "[anon:";
  v->movable = !shared && inode == 0 && !special;
}

bool ask(int fd, std::uintptr_t at, Vma* v, bool* answered) {
  char name[64] = "";
  Query q{};
  q.size = sizeof q;
  q.at = at;
  q.name = reinterpret_cast<std::uintptr_t>(name);
  q.name_bytes = sizeof name;
  const int error = ioctl(fd, k_query, &q) == 0 ? 0 : errno;
  if (error == ENAMETOOLONG) {
    q.name = q.name_bytes = 0;
    std::strcpy(name, "/");
    if (ioctl(fd, k_query, &q) != 0) return false;
  } else if (error != 0) {
    *answered = error == ENOENT;
    return false;
  }
  *v = {q.begin, q.end, (q.vma_flags & 1) != 0, (q.vma_flags & 2) != 0, false, false};
  describe(v, (q.vma_flags & 8) != 0, q.inode, name);
  return true;
}

bool read_text(std::uintptr_t at, Vma* v) {
  // Not stdio, which would allocate.
  const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  char text[8192];
  std::size_t have = 0;
  bool found = false;
  for (ssize_t n = 0; !found && (n = read(fd, text + have, sizeof text - 1 - have)) > 0;) {
    have += static_cast<std::size_t>(n);
    text[have] = '\0';
    char* line = text;
    for (char* end = nullptr; !found && (end = std::strchr(line, '\n')) != nullptr; line = end + 1) {
      *end = '\0';
      std::uint64_t begin = 0, until = 0, inode = 0;
      char rights[5] = "";
      int name = 0;
      if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*x:%*x %" SCNu64 " %n", &begin, &until, rights, &inode,
                      &name) < 4 ||
          at < begin || at >= until) {
        continue;
      }
      *v = {begin, until, rights[0] == 'r', rights[1] == 'w', false, false};
      describe(v, rights[3] == 's', inode, line + name);
      found = true;
    }
    have -= static_cast<std::size_t>(line - text);
    std::memmove(text, line, have);
  }
  close(fd);
  return found;
}

}  // namespace

bool vma_at(std::uintptr_t at, Vma* out) {
  static const int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  bool answered = true;
  bool found = ask(fd, at, out, &answered);
  if (!found && !answered) found = read_text(at, out);
  if (!found) return false;
  if (kept_home(at, &out->begin, &out->end)) out->movable = false;
  return true;
}

}  // namespace standin
