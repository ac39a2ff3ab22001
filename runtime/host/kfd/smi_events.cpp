// SPDX-License-Identifier: MIT
#include "host/kfd/smi_events.hpp"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace hmmrt::kfd {

namespace {

constexpr std::uint64_t k_page_bytes = 4096;
constexpr std::uint64_t k_most_pages = ~std::uint64_t{0} / k_page_bytes;
constexpr std::uint64_t k_max_32 = 0xffffffff;
constexpr std::uint64_t k_max_31 = 0x7fffffff;
constexpr std::uint64_t k_max_time = 0x7fffffffffffffff;  // %lld
constexpr std::uint64_t k_min_time = 1'000'000'000;       // a second after boot
constexpr std::uint64_t k_last_kind = 64;                 // the kernel's mask has as many bits
constexpr std::size_t k_name_bytes = 15;                  // TASK_COMM_LEN, less its end
constexpr std::size_t k_cause_bytes = 63;

bool is_decimal(char c) { return c >= '0' && c <= '9'; }
bool is_hex(char c) { return is_decimal(c) || (c >= 'a' && c <= 'f'); }  // %x

// Reads a text from its front; each function says whether what it wants is there.
class Scan {
 public:
  explicit Scan(std::string_view text) : rest_(text) {}

  bool literal(std::string_view wanted) {
    if (rest_.substr(0, wanted.size()) != wanted) return false;
    rest_.remove_prefix(wanted.size());
    return true;
  }
  template <class T>
  bool hex(T* out, std::uint64_t most = k_max_32) {
    return number(out, 16, most);
  }
  template <class T>
  bool decimal(T* out, std::uint64_t most) {
    return number(out, 10, most);
  }
  bool integer(std::int32_t* out) {
    const bool minus = literal("-");
    if (!decimal(out, k_max_31)) return false;
    if (minus) *out = -*out;
    return true;
  }
  bool pages(std::uint64_t* bytes) {
    if (!hex(bytes, k_most_pages)) return false;
    *bytes *= k_page_bytes;
    return true;
  }
  bool character(char* out) {
    if (rest_.empty()) return false;
    *out = rest_.front();
    rest_.remove_prefix(1);
    return true;
  }
  std::string_view rest() const { return rest_; }

 private:
  template <class T>
  bool number(T* out, unsigned base, std::uint64_t most) {
    std::uint64_t value = 0;
    std::size_t digits = 0;
    for (; digits < rest_.size(); ++digits) {
      const char c = rest_[digits];
      if (base == 16 ? !is_hex(c) : !is_decimal(c)) break;
      const auto digit = static_cast<unsigned>(is_decimal(c) ? c - '0' : c - 'a' + 10);
      if (value > (most - digit) / base) return false;
      value = value * base + digit;
    }
    rest_.remove_prefix(digits);
    *out = static_cast<T>(value);
    return digits > 0;
  }

  std::string_view rest_;
};

// The kinds whose lines begin with time and process, and have no text in them.
bool is_numeric(std::uint64_t id) { return id >= 5 && id <= 11; }

// "<ns> -<pid> "
bool header(Scan* s, SmiEvent* e) {
  return s->decimal(&e->time_ns, k_max_time) && s->literal(" -") && s->decimal(&e->pid, k_max_31) && s->literal(" ");
}

bool range(Scan* s, SmiEvent* e) {
  return s->literal("@") && s->pages(&e->addr) && s->literal("(") && s->pages(&e->bytes) && s->literal(") ");
}

bool way(Scan* s, SmiEvent* e) { return s->hex(&e->from) && s->literal("->") && s->hex(&e->to) && s->literal(" "); }

// Of a page fault. *whole: the last field is one character, and is there.
bool fault(Scan* s, SmiEvent* e, char yes, char no, bool* answer, bool* whole) {
  char c = 0;
  if (!s->literal("@") || !s->pages(&e->addr) || !s->literal("(") || !s->hex(&e->gpu) || !s->literal(") ") ||
      !s->character(&c) || (c != yes && c != no)) {
    return false;
  }
  *answer = c == yes;
  *whole = true;
  return true;
}

// After the id. *whole as above.
bool numeric_fields(Scan* s, SmiEvent* e, bool* whole) {
  if (!header(s, e)) return false;
  switch (e->kind) {
    case SmiKind::migrate_start:
      return range(s, e) && way(s, e) && s->hex(&e->prefetch) && s->literal(":") && s->hex(&e->preferred) &&
             s->literal(" ") && s->integer(&e->trigger);
    case SmiKind::migrate_end:
      return range(s, e) && way(s, e) && s->integer(&e->trigger) && (!s->literal(" ") || s->integer(&e->error));
    case SmiKind::page_fault_start:
      return fault(s, e, 'W', 'R', &e->write, whole);
    case SmiKind::page_fault_end:
      return fault(s, e, 'M', 'U', &e->migrated, whole);
    case SmiKind::queue_eviction:
      return s->hex(&e->gpu) && s->literal(" ") && s->integer(&e->trigger);
    case SmiKind::queue_restore: {
      // A restart that succeeded: nothing on 6.1; some kernels print the character 0 and not '0'.
      char c = 0;
      if (!s->hex(&e->gpu)) return false;
      if (!s->literal(" ")) return true;
      if (!s->character(&c) || (c != 'R' && c != '0' && c != '\0')) return false;
      e->rescheduled = c == 'R';
      *whole = true;
      return true;
    }
    case SmiKind::unmap:
      return range(s, e) && s->hex(&e->gpu) && s->literal(" ") && s->integer(&e->trigger);
    default:
      return false;
  }
}

// The others. Text goes to the end of the line.
bool text_fields(Scan* s, SmiEvent* e) {
  std::uint64_t ignored = 0;
  switch (e->kind) {
    case SmiKind::vm_fault:
      return s->hex(&e->pid, k_max_31) && s->literal(":") && s->rest().size() <= k_name_bytes;
    case SmiKind::thermal_throttle:
      return s->hex(&ignored, ~std::uint64_t{0}) && s->literal(":") && s->hex(&ignored, ~std::uint64_t{0}) &&
             s->rest().empty();
    case SmiKind::gpu_pre_reset:
    case SmiKind::gpu_post_reset:
      return s->hex(&ignored) && (s->rest().empty() || (s->literal(" ") && s->rest().size() <= k_cause_bytes));
    case SmiKind::process_start:
    case SmiKind::process_end:
      return s->hex(&e->pid, k_max_31) && s->literal(" ") && s->rest().size() <= k_name_bytes;
    default:
      return false;
  }
}

bool kind_of(Scan* s, std::uint64_t* id) { return s->hex(id, k_last_kind) && s->literal(" "); }

enum class Verdict : std::uint8_t { event, longer, unknown, malformed };

// `ended`: the line ends behind `part`; else another event begins there, and a number at the end may have lost digits.
Verdict read(std::string_view part, bool ended, SmiEvent* e) {
  Scan s(part);
  std::uint64_t id = 0;
  *e = {};
  if (!kind_of(&s, &id)) return Verdict::malformed;
  if (id == 0 || id > static_cast<std::uint64_t>(SmiKind::process_end)) return Verdict::unknown;
  e->kind = static_cast<SmiKind>(id);
  if (!is_numeric(id)) return text_fields(&s, e) ? Verdict::event : Verdict::malformed;
  bool whole = false;
  if (!numeric_fields(&s, e, &whole) || !(ended || whole)) return Verdict::malformed;
  if (s.rest().empty()) return Verdict::event;
  return ended && s.rest().front() == ' ' ? Verdict::longer : Verdict::malformed;
}

// The event that begins in `line` behind its first character, or npos. Sure, because such an id is one digit,
// with a time behind it, and no line has a second time. None in lines with text: their text is not the kernel's.
std::size_t next_start(std::string_view line) {
  Scan first(line);
  std::uint64_t id = 0;
  if (kind_of(&first, &id) && !is_numeric(id)) return std::string_view::npos;
  for (std::size_t i = 1; i + 1 < line.size(); ++i) {
    if (!is_hex(line[i]) || line[i + 1] != ' ') continue;
    Scan s(line.substr(i));
    SmiEvent e;
    if (!kind_of(&s, &id) || !is_numeric(id) || !header(&s, &e) || e.time_ns < k_min_time || s.rest().empty()) continue;
    const bool queue = id == 9 || id == 10;
    if (queue ? is_hex(s.rest().front()) : s.rest().front() == '@') return i;
  }
  return std::string_view::npos;
}

bool begins(const SmiEvent& e) { return e.kind == SmiKind::migrate_start || e.kind == SmiKind::page_fault_start; }
bool ends(const SmiEvent& e) { return e.kind == SmiKind::migrate_end || e.kind == SmiKind::page_fault_end; }
bool migrates(const SmiEvent& e) { return e.kind == SmiKind::migrate_start || e.kind == SmiKind::migrate_end; }

bool same_operation(const SmiEvent& a, const SmiEvent& b) {
  return migrates(a) == migrates(b) && a.pid == b.pid && a.addr == b.addr && a.bytes == b.bytes && a.gpu == b.gpu &&
         a.from == b.from && a.to == b.to;
}

}  // namespace

// Takes bytes up to the end of a line, or all.
void SmiParser::take(std::string_view* bytes) noexcept {
  const std::size_t newline = bytes->find('\n');
  const std::size_t n = std::min(newline, bytes->size());
  if (discarding_ || n > line_.size() - length_) {
    discarding_ = true;
    length_ = 0;
  } else {
    std::memcpy(line_.data() + length_, bytes->data(), n);
    length_ += n;
  }
  if (newline == std::string_view::npos) {
    bytes->remove_prefix(n);
    return;
  }
  bytes->remove_prefix(n + 1);
  if (discarding_) {
    ++counts_.malformed;
    discarding_ = false;
    return;
  }
  complete_ = true;
  at_ = 0;
}

// Reads one part of the complete line. Says whether it was an event.
bool SmiParser::next_part(SmiEvent* out) noexcept {
  const std::string_view left(line_.data() + at_, length_ - at_);
  const std::size_t start = next_start(left);
  const bool ended = start == std::string_view::npos;
  const Verdict verdict = read(left.substr(0, start), ended, out);
  if (!ended && at_ == 0) ++counts_.glued;
  if (ended) {
    complete_ = false;
    length_ = 0;
  } else {
    at_ += start;
  }
  switch (verdict) {
    case Verdict::unknown:
      ++counts_.unknown;
      return false;
    case Verdict::malformed:
      ++counts_.malformed;
      return false;
    case Verdict::longer:
      ++counts_.longer;
      break;
    case Verdict::event:
      break;
  }
  ++counts_.events;
  return true;
}

std::size_t SmiParser::parse(std::string_view* bytes, std::span<SmiEvent> out) noexcept {
  assert(!out.empty());
  std::size_t written = 0;
  while (written < out.size()) {
    if (complete_) {
      if (next_part(&out[written])) ++written;
    } else if (!bytes->empty()) {
      take(bytes);
    } else {
      break;
    }
  }
  return written;
}

void SmiPairs::close(std::size_t i) noexcept {
  std::move(starts_.begin() + static_cast<std::ptrdiff_t>(i) + 1, starts_.begin() + static_cast<std::ptrdiff_t>(open_),
            starts_.begin() + static_cast<std::ptrdiff_t>(i));
  --open_;
}

void SmiPairs::add(const SmiEvent& event) noexcept {
  if (!begins(event) && !ends(event)) return;
  std::size_t i = 0;
  while (i < open_ && !same_operation(starts_[i], event)) ++i;
  const bool found = i < open_;
  if (ends(event)) {
    if (found) {
      close(i);
    } else {
      ++ends_without_start_;
    }
    return;
  }
  if (found || open_ == k_open) {
    ++starts_without_end_;
    close(found ? i : 0);
  }
  starts_[open_++] = event;
}

SmiLoss smi_loss(const SmiCounts& counts, const SmiPairs& pairs) noexcept {
  return counts.malformed > 0 || pairs.ends_without_start() > 0 ? SmiLoss::likely : SmiLoss::possible;
}

const char* smi_loss_text(SmiLoss loss) noexcept {
  switch (loss) {
    case SmiLoss::possible:
      return "no loss of events was seen, but the kernel drops them silently while its buffer is full: counts are "
             "lower "
             "bounds";
    case SmiLoss::likely:
      return "events were probably lost (an end without its start, or a damaged line): the kernel drops them silently "
             "while its buffer is full, and counts are lower bounds";
  }
  return "";
}

}  // namespace hmmrt::kfd
