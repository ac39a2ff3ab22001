// SPDX-License-Identifier: MIT
// AMD's event lines become events, of every kernel's format; what is not a line is counted and passed over; the result is
// the same however the bytes are cut; pairing sees what is missing.
#include <gtest/gtest.h>

#include <cstdlib>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "host/kfd/smi_events.hpp"

namespace hmmrt::kfd {

bool operator==(const SmiEvent& a, const SmiEvent& b) {
  return a.time_ns == b.time_ns && a.addr == b.addr && a.bytes == b.bytes && a.pid == b.pid && a.gpu == b.gpu &&
         a.from == b.from && a.to == b.to && a.prefetch == b.prefetch && a.preferred == b.preferred &&
         a.trigger == b.trigger && a.error == b.error && a.kind == b.kind && a.write == b.write &&
         a.migrated == b.migrated && a.rescheduled == b.rescheduled;
}

bool operator==(const SmiCounts& a, const SmiCounts& b) {
  return a.events == b.events && a.unknown == b.unknown && a.malformed == b.malformed && a.glued == b.glued &&
         a.longer == b.longer;
}

std::ostream& operator<<(std::ostream& out, const SmiEvent& e) {
  return out << "kind " << int(e.kind) << " time " << e.time_ns << " pid " << e.pid << " addr " << std::hex << e.addr
             << " bytes " << e.bytes << " gpu " << e.gpu << " " << e.from << "->" << e.to << " " << e.prefetch << ":"
             << e.preferred << std::dec << " trigger " << e.trigger << " error " << e.error << " flags " << e.write
             << e.migrated << e.rescheduled;
}

std::ostream& operator<<(std::ostream& out, const SmiCounts& c) {
  return out << c.events << " events, " << c.unknown << " unknown, " << c.malformed << " malformed, " << c.glued
             << " glued, " << c.longer << " longer";
}

namespace {

using namespace std::literals;

struct Result {
  std::vector<SmiEvent> events;
  SmiCounts counts;
  std::size_t waiting = 0;
};

// Cuts the text into pieces of `piece(left)` bytes, and takes up to `room` events at once.
template <class Piece>
Result parse(std::string_view text, Piece&& piece, std::size_t room = 3) {
  SmiParser parser;
  Result result;
  std::vector<SmiEvent> out(room);
  while (!text.empty()) {
    std::string_view bytes = text.substr(0, piece(text.size()));
    text.remove_prefix(bytes.size());
    for (std::size_t n = room; n == room;) {
      n = parser.parse(&bytes, out);
      result.events.insert(result.events.end(), out.begin(), out.begin() + static_cast<std::ptrdiff_t>(n));
    }
    EXPECT_TRUE(bytes.empty());
  }
  result.counts = parser.counts();
  result.waiting = parser.waiting();
  return result;
}

Result whole(std::string_view text) {
  return parse(text, [](std::size_t left) { return left; });
}

struct Line {
  const char* what;
  std::string_view text;
  SmiEvent event;
};

// What the sources of 6.1 and 6.12 print, and the patches of later ones.
const Line k_lines[] = {
    {"prefetch to a GPU",
     "5 3512345678901 -1234 @7f3a12400(200) 0->1a2b 1a2b:ffffffff 0\n"sv,
     {.time_ns = 3512345678901,
      .addr = 0x7f3a12400000,
      .bytes = 0x200000,
      .pid = 1234,
      .to = 0x1a2b,
      .prefetch = 0x1a2b,
      .preferred = k_smi_nowhere,
      .trigger = 0,
      .kind = SmiKind::migrate_start}},
    {"home again, by a CPU fault",
     "5 3512345678902 -1234 @7f3a12400(1) 1a2b->0 ffffffff:0 2\n"sv,
     {.time_ns = 3512345678902,
      .addr = 0x7f3a12400000,
      .bytes = 0x1000,
      .pid = 1234,
      .from = 0x1a2b,
      .prefetch = k_smi_nowhere,
      .trigger = 2,
      .kind = SmiKind::migrate_start}},
    {"end of it, up to 6.12",
     "6 3512345680000 -1234 @7f3a12400(200) 0->1a2b 0\n"sv,
     {.time_ns = 3512345680000,
      .addr = 0x7f3a12400000,
      .bytes = 0x200000,
      .pid = 1234,
      .to = 0x1a2b,
      .kind = SmiKind::migrate_end}},
    {"end of it, newer: it went well",
     "6 3512345680000 -1234 @7f3a12400(200) 0->1a2b 1 0\n"sv,
     {.time_ns = 3512345680000,
      .addr = 0x7f3a12400000,
      .bytes = 0x200000,
      .pid = 1234,
      .to = 0x1a2b,
      .trigger = 1,
      .kind = SmiKind::migrate_end}},
    {"end of it, newer: it failed",
     "6 3512345680000 -1234 @7f3a12400(200) 0->1a2b 3 -12\n"sv,
     {.time_ns = 3512345680000,
      .addr = 0x7f3a12400000,
      .bytes = 0x200000,
      .pid = 1234,
      .to = 0x1a2b,
      .trigger = 3,
      .error = -12,
      .kind = SmiKind::migrate_end}},
    {"write fault",
     "7 3512345678901 -1234 @7f3a12437(1a2b) W\n"sv,
     {.time_ns = 3512345678901,
      .addr = 0x7f3a12437000,
      .pid = 1234,
      .gpu = 0x1a2b,
      .kind = SmiKind::page_fault_start,
      .write = true}},
    {"read fault",
     "7 3512345678901 -1234 @7f3a12437(1a2b) R\n"sv,
     {.time_ns = 3512345678901, .addr = 0x7f3a12437000, .pid = 1234, .gpu = 0x1a2b, .kind = SmiKind::page_fault_start}},
    {"served by a migration",
     "8 3512345679901 -1234 @7f3a12437(1a2b) M\n"sv,
     {.time_ns = 3512345679901,
      .addr = 0x7f3a12437000,
      .pid = 1234,
      .gpu = 0x1a2b,
      .kind = SmiKind::page_fault_end,
      .migrated = true}},
    {"served where it was",
     "8 3512345679901 -1234 @7f3a12437(1a2b) U\n"sv,
     {.time_ns = 3512345679901, .addr = 0x7f3a12437000, .pid = 1234, .gpu = 0x1a2b, .kind = SmiKind::page_fault_end}},
    {"queues stop",
     "9 3512345679901 -1234 1a2b 1\n"sv,
     {.time_ns = 3512345679901, .pid = 1234, .gpu = 0x1a2b, .trigger = 1, .kind = SmiKind::queue_eviction}},
    {"queues start, 6.1",
     "a 3512345679901 -1234 1a2b\n"sv,
     {.time_ns = 3512345679901, .pid = 1234, .gpu = 0x1a2b, .kind = SmiKind::queue_restore}},
    {"queues start, kernels before the fix that print the character 0",
     "a 3512345679901 -1234 1a2b \0\n"sv,
     {.time_ns = 3512345679901, .pid = 1234, .gpu = 0x1a2b, .kind = SmiKind::queue_restore}},
    {"queues start, 6.12",
     "a 3512345679901 -1234 1a2b 0\n"sv,
     {.time_ns = 3512345679901, .pid = 1234, .gpu = 0x1a2b, .kind = SmiKind::queue_restore}},
    {"queues do not start yet",
     "a 3512345679901 -1234 1a2b R\n"sv,
     {.time_ns = 3512345679901, .pid = 1234, .gpu = 0x1a2b, .kind = SmiKind::queue_restore, .rescheduled = true}},
    {"unmapped from the GPU",
     "b 3512345679901 -1234 @7f3a12400(3) 1a2b 2\n"sv,
     {.time_ns = 3512345679901,
      .addr = 0x7f3a12400000,
      .bytes = 0x3000,
      .pid = 1234,
      .gpu = 0x1a2b,
      .trigger = 2,
      .kind = SmiKind::unmap}},
    {"a fault that nothing can serve", "1 4d2:my program\n"sv, {.pid = 0x4d2, .kind = SmiKind::vm_fault}},
    {"too hot", "2 80:1f\n"sv, {.kind = SmiKind::thermal_throttle}},
    {"reset, 6.1", "3 7\n"sv, {.kind = SmiKind::gpu_pre_reset}},
    {"reset, 6.12, with a cause", "4 7 job hang on ring gfx\n"sv, {.kind = SmiKind::gpu_post_reset}},
    {"a process comes", "c 4d2 my program\n"sv, {.pid = 0x4d2, .kind = SmiKind::process_start}},
    {"a process goes", "d 4d2 \n"sv, {.pid = 0x4d2, .kind = SmiKind::process_end}},
};

TEST(KfdSmi, every_kernels_lines_are_read) {
  for (const Line& line : k_lines) {
    SCOPED_TRACE(line.what);
    const Result r = whole(line.text);
    ASSERT_EQ(r.events.size(), 1u);
    EXPECT_EQ(r.events[0], line.event);
    EXPECT_EQ(r.counts, SmiCounts{.events = 1});
    EXPECT_EQ(r.waiting, 0u);
  }
}

std::string all_lines() {
  std::string text;
  for (const Line& line : k_lines) text += line.text;
  return text;
}

TEST(KfdSmi, lines_come_in_order_whatever_the_room_and_the_cut) {
  const std::string text = all_lines();
  for (std::size_t bytes = 1; bytes < 200; bytes += bytes < 20 ? 1 : 37) {
    const Result r = parse(
        text, [&](std::size_t) { return bytes; }, bytes % 4 + 1);
    ASSERT_EQ(r.events.size(), std::size(k_lines));
    for (std::size_t i = 0; i < r.events.size(); ++i) EXPECT_EQ(r.events[i], k_lines[i].event);
  }
}

TEST(KfdSmi, a_partial_line_waits_for_its_end) {
  EXPECT_EQ(whole("7 3512345678901 -1234 @7f3a1"sv).waiting, 28u);
  EXPECT_EQ(whole("7 3512345678901 -1234 @7f3a1"sv).counts, SmiCounts{});
}

struct Damage {
  std::string_view text;
  std::vector<SmiKind> events;
  SmiCounts counts;
};

constexpr auto k_fault = SmiKind::page_fault_start;
constexpr auto k_served = SmiKind::page_fault_end;

const Damage k_damage[] = {
    // Kinds of the future.
    {"e 1 2 3\n"sv, {}, {.unknown = 1}},
    {"40 whatever\n0 \n"sv, {}, {.unknown = 2}},
    // No lines at all.
    {"\n\n \n"sv, {}, {.malformed = 3}},
    {"41 beyond the mask\nG 1\n5\n-5 1\n0x5 1\n 5 1\n"sv, {}, {.malformed = 6}},
    // Truncated, at each field.
    {"7 \n7 3512345678901\n7 3512345678901 -\n7 3512345678901 -12 @\n7 3512345678901 -12 @7f\n"sv,
     {},
     {.malformed = 5}},
    {"7 3512345678901 -12 @7f(1a2b\n7 3512345678901 -12 @7f(1a2b)\n7 3512345678901 -12 @7f(1a2b) \n"sv,
     {},
     {.malformed = 3}},
    {"5 3512345678901 -12 @7f(1) 0->1a2b 0:0\n5 3512345678901 -12 @7f(1) 0->1a2b 0:0 \n"sv, {}, {.malformed = 2}},
    {"6 3512345678901 -12 @7f(1) 0->1a2b\n6 3512345678901 -12 @7f(1) 0->1a2b 1 \n"sv, {}, {.malformed = 2}},
    {"9 3512345678901 -12 1a2b\nb 3512345678901 -12 @7f(1) 1a2b\n"sv, {}, {.malformed = 2}},
    // Values that no field has.
    {"7 3512345678901 -12 @7f(1a2b) X\n8 3512345678901 -12 @7f(1a2b) W\na 3512345678901 -12 1a2b X\n"sv,
     {},
     {.malformed = 3}},
    {"7 3512345678901 12 @7f(1a2b) R\n7 99999999999999999999 -12 @7f(1a2b) R\n"sv, {}, {.malformed = 2}},
    {"7 3512345678901 -99999999999 @7f(1a2b) R\n7 3512345678901 -12 @7f(100001a2b) R\n"sv, {}, {.malformed = 2}},
    {"7 3512345678901 -12 @fffffffffffff(1) R\n7 3512345678901 -12 @10000000000000(1) R\n"sv,
     {k_fault},
     {.events = 1, .malformed = 1}},
    {"1 4d2:a name of sixteen\n2 80\n3 x\nc 4d2\n"sv, {}, {.malformed = 4}},
    // More fields than today's.
    {"7 3512345678901 -12 @7f(1a2b) R 77 x\n6 3512345678901 -12 @7f(1) 0->1a2b 1 -12 9\n"sv,
     {k_fault, SmiKind::migrate_end},
     {.events = 2, .longer = 2}},
    {"6 3512345678901 -12 @7f(1) 0->1a 2 -12 7\n"sv, {SmiKind::migrate_end}, {.events = 1, .longer = 1}},
    {"7 3512345678901 -12 @7f(1a2b) R,77\n"sv, {}, {.malformed = 1}},
    // Glued. A line that ends in one character is whole, one that ends in a number may lack digits.
    {"7 3512345678901 -12 @7f(1a2b) R8 3512345678902 -12 @7f(1a2b) M\n"sv,
     {k_fault, k_served},
     {.events = 2, .glued = 1}},
    {"a 3512345678901 -12 1a2b 0a 3512345678902 -12 1a2b R9 3512345678903 -12 1a2b 1\n"sv,
     {SmiKind::queue_restore, SmiKind::queue_restore, SmiKind::queue_eviction},
     {.events = 3, .glued = 1}},
    {"6 3512345678901 -12 @7f(1) 0->1a2b 17 3512345678902 -12 @7f(1a2b) R\n"sv,
     {k_fault},
     {.events = 1, .malformed = 1, .glued = 1}},
    {"a 3512345678901 -12 1a2b9 3512345678903 -12 1a2b 1\n"sv,
     {SmiKind::queue_eviction},
     {.events = 1, .malformed = 1, .glued = 1}},
    {"5 3512345678901 -12 @7f3a7 3512345678902 -12 @7f(1a2b) R\n"sv,
     {k_fault},
     {.events = 1, .malformed = 1, .glued = 1}},
    {"??7 3512345678902 -12 @7f(1a2b) R\n"sv, {k_fault}, {.events = 1, .malformed = 1, .glued = 1}},
    {"7 3512345678901 -12 @7f(1a2b) R8 3512345678902 -12 @7f\n"sv,
     {k_fault},
     {.events = 1, .malformed = 1, .glued = 1}},
    // A process's name is no event, whatever it says.
    {"1 4d2:7 9 -1 @7(1) R\nc 4d2 7 9 -1 @7(1) R\n"sv, {SmiKind::vm_fault, SmiKind::process_start}, {.events = 2}},
    {"1 4d2:7 3512345678902 -12 @7f(1a2b) R\n"sv, {}, {.malformed = 1}},
};

TEST(KfdSmi, what_is_no_line_is_counted_and_passed_over) {
  for (const Damage& damage : k_damage) {
    SCOPED_TRACE(std::string(damage.text));
    const Result r = whole(std::string(damage.text) + std::string(k_lines[0].text));
    std::vector<SmiKind> kinds;
    for (const SmiEvent& e : r.events) kinds.push_back(e.kind);
    std::vector<SmiKind> wanted = damage.events;
    wanted.push_back(SmiKind::migrate_start);
    EXPECT_EQ(kinds, wanted);
    SmiCounts counts = damage.counts;
    ++counts.events;
    EXPECT_EQ(r.counts, counts);
  }
}

TEST(KfdSmi, an_endless_line_is_one_loss_and_takes_no_memory) {
  for (const std::size_t length : {SmiParser::k_line_bytes, SmiParser::k_line_bytes + 1, std::size_t{100'000}}) {
    SmiParser parser;
    SmiEvent out[2];
    const std::string text = std::string(length, '7') + "\n" + std::string(k_lines[0].text);
    std::string_view bytes = text;
    EXPECT_EQ(parser.parse(&bytes, out), 1u);
    EXPECT_EQ(parser.counts(), (SmiCounts{.events = 1, .malformed = 1}));
  }
}

TEST(KfdSmi, a_line_may_be_as_long_as_the_buffer_and_no_longer) {
  const std::string_view event = "7 3512345678901 -12 @7f(1a2b) R"sv;
  const std::string most = std::string(SmiParser::k_line_bytes - event.size(), '?') + std::string(event) + "\n";
  std::string more = most;
  more.insert(more.begin(), '?');
  for (const std::size_t piece : {std::size_t{1}, std::size_t{100}, std::size_t{1000}}) {
    const auto pieces = [&](std::size_t) { return piece; };
    EXPECT_EQ(parse(most, pieces).counts, (SmiCounts{.events = 1, .malformed = 1, .glued = 1}));
    EXPECT_EQ(parse(more, pieces).counts, SmiCounts{.malformed = 1});
    EXPECT_EQ(parse(more.substr(0, more.size() - 1), pieces).waiting, 0u);
    EXPECT_EQ(parse(most.substr(0, most.size() - 1), pieces).waiting, SmiParser::k_line_bytes);
  }
}

// Lines of the tables, mutated, cut, glued and shuffled; HMMRT_SEED repeats one.
TEST(KfdSmi, random_bytes_give_the_same_events_however_they_are_cut) {
  const char* const wish = std::getenv("HMMRT_SEED");
  const unsigned seed = wish != nullptr ? static_cast<unsigned>(std::strtoul(wish, nullptr, 0)) : 20261120;
  SCOPED_TRACE("HMMRT_SEED=" + std::to_string(seed));
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  constexpr std::string_view k_bytes = "0123456789abcdefRWMU @()->:\n\0-x"sv;
  std::uint64_t events = 0, malformed = 0, glued = 0;
  for (int round = 0; round < 8000; ++round) {
    std::string text;
    for (std::size_t lines = 1 + below(30), i = 0; i < lines; ++i) {
      std::string line(below(6) != 0 ? k_lines[below(std::size(k_lines))].text
                                     : k_damage[below(std::size(k_damage))].text);
      for (std::size_t changes = below(3) == 0 ? 1 + below(4) : 0; changes > 0 && !line.empty(); --changes) {
        const std::size_t at = below(line.size());
        switch (below(5)) {
          case 0:
            line[at] = static_cast<char>(below(256));
            break;
          case 1:
            line[at] = k_bytes[below(k_bytes.size())];
            break;
          case 2:
            line.insert(at, 1 + below(3), k_bytes[below(k_bytes.size())]);
            break;
          case 3:
            line.erase(at, 1 + below(8));
            break;
          case 4:
            line.erase(line.size() - 1);
            break;
        }
      }
      text += line;
    }
    const Result one = parse(
        text, [](std::size_t left) { return left; }, 64);
    const Result bytes = parse(
        text, [](std::size_t) { return 1; }, 1);
    const Result pieces = parse(
        text, [&](std::size_t) { return 1 + below(120); }, 1 + below(8));
    for (const Result* r : {&bytes, &pieces}) {
      ASSERT_EQ(r->events, one.events) << "round " << round << ":\n" << text;
      ASSERT_EQ(r->counts, one.counts) << "round " << round << ":\n" << text;
      ASSERT_EQ(r->waiting, one.waiting);
    }
    ASSERT_EQ(one.counts.events, one.events.size());
    events += one.counts.events;
    malformed += one.counts.malformed;
    glued += one.counts.glued;
    SmiPairs pairs;
    for (const SmiEvent& e : one.events) pairs.add(e);
    ASSERT_LE(pairs.open(), SmiPairs::k_open);
  }
  EXPECT_GT(events, 50'000u);
  EXPECT_GT(malformed, 10'000u);
  EXPECT_GT(glued, 2'000u);
}

TEST(KfdSmi, whole_lines_survive_any_damage_to_the_lines_around_them) {
  std::mt19937 random(7);
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  for (int round = 0; round < 2000; ++round) {
    std::string noise(below(300), '\0');
    for (char& c : noise) {
      do {
        c = static_cast<char>(below(256));
      } while (c == '\n');
    }
    const Line& line = k_lines[below(std::size(k_lines))];
    const Result r = whole(noise + "\n" + std::string(line.text) + noise);
    ASSERT_FALSE(r.events.empty()) << "round " << round;
    ASSERT_EQ(r.events.back(), line.event) << "round " << round;
  }
}

// ---- pairs ----------------------------------------------------------------------------------------------------------

SmiPairs pairs_of(std::string_view text) {
  SmiPairs pairs;
  for (const SmiEvent& e : whole(text).events) pairs.add(e);
  return pairs;
}

TEST(KfdSmi, operations_that_start_and_end_are_no_loss) {
  const SmiPairs pairs = pairs_of(
      "7 3512345678901 -12 @7f(1a2b) R\n"
      "5 3512345678902 -12 @7f(10) 0->1a2b ffffffff:ffffffff 1\n"
      "5 3512345678903 -12 @ff(10) 1a2b->0 ffffffff:ffffffff 2\n"
      "6 3512345678904 -12 @7f(10) 0->1a2b 1\n"
      "9 3512345678905 -12 1a2b 0\n"
      "8 3512345678906 -12 @7f(1a2b) M\n"
      "6 3512345678907 -12 @ff(10) 1a2b->0 2 0\n"sv);
  EXPECT_EQ(pairs.open(), 0u);
  EXPECT_EQ(pairs.ends_without_start(), 0u);
  EXPECT_EQ(pairs.starts_without_end(), 0u);
  EXPECT_EQ(smi_loss({}, pairs), SmiLoss::possible);
  EXPECT_NE(std::string(smi_loss_text(SmiLoss::possible)).find("silently"), std::string::npos);
}

TEST(KfdSmi, an_end_without_start_is_a_loss) {
  const SmiPairs pairs = pairs_of(
      "7 3512345678901 -12 @7f(1a2b) R\n"
      "8 3512345678902 -12 @80(1a2b) M\n"            // another page
      "8 3512345678903 -13 @7f(1a2b) M\n"            // another process
      "8 3512345678904 -12 @7f(1a2c) M\n"            // another GPU
      "6 3512345678905 -12 @7f(10) 0->1a2b 1\n"sv);  // not even a fault
  EXPECT_EQ(pairs.open(), 1u);
  EXPECT_EQ(pairs.ends_without_start(), 4u);
  EXPECT_EQ(smi_loss({}, pairs), SmiLoss::likely);
  EXPECT_NE(std::string(smi_loss_text(SmiLoss::likely)).find("lost"), std::string::npos);
}

TEST(KfdSmi, a_start_without_end_is_counted_and_proves_nothing) {
  const SmiPairs pairs = pairs_of(
      "7 3512345678901 -12 @7f(1a2b) R\n"
      "7 3512345678902 -12 @7f(1a2b) W\n"
      "8 3512345678903 -12 @7f(1a2b) U\n"sv);
  EXPECT_EQ(pairs.open(), 0u);
  EXPECT_EQ(pairs.starts_without_end(), 1u);
  EXPECT_EQ(pairs.ends_without_start(), 0u);
  EXPECT_EQ(smi_loss({}, pairs), SmiLoss::possible);
  EXPECT_EQ(smi_loss({.malformed = 1}, pairs), SmiLoss::likely);
}

TEST(KfdSmi, the_oldest_open_operation_makes_room) {
  SmiPairs pairs;
  SmiEvent e;
  e.kind = SmiKind::page_fault_start;
  for (std::uint64_t page = 0; page <= SmiPairs::k_open; ++page) {
    e.addr = page * 4096;
    pairs.add(e);
  }
  EXPECT_EQ(pairs.open(), SmiPairs::k_open);
  EXPECT_EQ(pairs.starts_without_end(), 1u);
  e.kind = SmiKind::page_fault_end;
  for (std::uint64_t page = 1; page <= SmiPairs::k_open; ++page) {
    e.addr = page * 4096;
    pairs.add(e);
  }
  EXPECT_EQ(pairs.open(), 0u);
  EXPECT_EQ(pairs.ends_without_start(), 0u);
}

}  // namespace
}  // namespace hmmrt::kfd
