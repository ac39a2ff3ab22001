// SPDX-License-Identifier: MIT
#include "common/matrix_market.hpp"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string_view>

#include "common/sample.hpp"

namespace samples {
namespace {

// A file taken apart into lines and words, which knows where it is.
class Lines {
 public:
  explicit Lines(const std::string& file) : file_(file), in_(file) {
    if (!in_) throw std::runtime_error(file + ": cannot open: " + std::strerror(errno));
  }
  // The next line that is not empty and not a comment; false at the end.
  bool next() {
    while (std::getline(in_, line_)) {
      ++number_;
      rest_ = line_;
      skip_blanks();
      if (!rest_.empty() && (number_ == 1 || rest_[0] != '%')) return true;
    }
    if (in_.bad()) throw std::runtime_error(file_ + ": cannot read: " + std::strerror(errno));
    rest_ = {};
    return false;
  }
  std::string_view word() {
    const std::string_view word = rest_.substr(0, rest_.find_first_of(" \t\r"));
    rest_.remove_prefix(word.size());
    skip_blanks();
    return word;
  }
  std::uint64_t integer(const char* what, std::uint64_t low, std::uint64_t high) {
    const std::string_view text = word();
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty()) fail(std::string(what) + " is missing");
    if (error != std::errc() || end != text.data() + text.size() || value < low || value > high)
      fail(std::string(what) + " is '" + std::string(text) + "', not a number from " + std::to_string(low) + " to " +
           std::to_string(high));
    return value;
  }
  double real(bool whole) {
    const std::string_view text = word();
    const char* const last = text.data() + text.size();
    const char* const first = text.data() + (text.size() > 1 && text[0] == '+' ? 1 : 0);
    double value = 0;
    std::int64_t integer = 0;
    if (text.empty()) fail("the value is missing");
    const auto [end, error] = whole ? std::from_chars(first, last, integer) : std::from_chars(first, last, value);
    if (error != std::errc() || end != last || !std::isfinite(value))
      fail("the value is '" + std::string(text) + (whole ? "', not an integer" : "', not a finite number"));
    return whole ? static_cast<double>(integer) : value;
  }
  void end_of_line() {
    if (!rest_.empty()) fail("more on the line than expected: '" + std::string(rest_) + "'");
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(file_ + ":" + std::to_string(number_) + ": " + what);
  }

 private:
  void skip_blanks() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \t\r"), rest_.size())); }

  std::string file_;
  std::ifstream in_;
  std::string line_;
  std::string_view rest_;
  std::uint64_t number_ = 0;
};

struct Banner {
  bool pattern, integer, symmetric;
};

Banner read_banner(Lines& lines) {
  const char* const wanted = "%%MatrixMarket matrix coordinate (real|integer|pattern) (general|symmetric)";
  if (!lines.next()) lines.fail(std::string("the file is empty; it should begin: ") + wanted);
  std::string words[5];
  for (std::string& word : words) {
    word = lines.word();
    std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
  }
  lines.end_of_line();
  const Banner banner{words[3] == "pattern", words[3] == "integer", words[4] == "symmetric"};
  if (words[0] != "%%matrixmarket" || words[1] != "matrix" || words[2] != "coordinate" ||
      !(words[3] == "real" || banner.integer || banner.pattern) || !(words[4] == "general" || banner.symmetric))
    lines.fail(std::string("the first line is not of a kind read here; it should be: ") + wanted);
  return banner;
}

}  // namespace

Csr to_csr(std::uint32_t rows, std::uint32_t columns, const std::vector<Entry>& entries) {
  Csr csr{rows, columns, {}, {}, {}};
  csr.begin.assign(std::size_t{rows} + 1, 0);
  for (const Entry& e : entries) ++csr.begin[e.row + 1];
  std::partial_sum(csr.begin.begin(), csr.begin.end(), csr.begin.begin());
  csr.column.resize(entries.size());
  csr.value.resize(entries.size());
  std::vector<std::uint64_t> next(csr.begin.begin(), csr.begin.end() - 1);
  for (const Entry& e : entries) {
    const std::uint64_t at = next[e.row]++;
    csr.column[at] = e.column;
    csr.value[at] = e.value;
  }
  return csr;
}

Csr read_matrix_market(const std::string& file) {
  Lines lines(file);
  const Banner banner = read_banner(lines);
  constexpr std::uint64_t k_most = std::numeric_limits<std::uint32_t>::max() - 1;
  if (!lines.next()) lines.fail("the size line (rows columns entries) is missing");
  const std::uint64_t rows = lines.integer("the number of rows", 1, k_most);
  const std::uint64_t columns = lines.integer("the number of columns", 1, k_most);
  const std::uint64_t count = lines.integer("the number of entries", 0, std::uint64_t{1} << 40);
  lines.end_of_line();
  if (banner.symmetric && rows != columns) lines.fail("a symmetric matrix has as many rows as columns");

  std::vector<Entry> entries;  // grows with what is really there: the size line may promise anything
  for (std::uint64_t k = 0; k != count; ++k) {
    if (!lines.next())
      lines.fail("the file ends after " + std::to_string(k) + " of " + std::to_string(count) + " entries");
    const auto row = static_cast<std::uint32_t>(lines.integer("the row", 1, rows) - 1);
    const auto column = static_cast<std::uint32_t>(lines.integer("the column", 1, columns) - 1);
    if (banner.symmetric && column > row) lines.fail("a symmetric file holds only the lower triangle (row >= column)");
    const double value = banner.pattern ? 1.0 : lines.real(banner.integer);
    lines.end_of_line();
    entries.push_back({row, column, value});
    if (banner.symmetric && row != column) entries.push_back({column, row, value});
  }
  if (lines.next()) lines.fail("more entries than the " + std::to_string(count) + " of the size line");
  return to_csr(static_cast<std::uint32_t>(rows), static_cast<std::uint32_t>(columns), entries);
}

Csr make_rmat(std::uint32_t scale, std::uint32_t edge_factor, std::uint64_t seed) {
  const std::uint32_t n = std::uint32_t{1} << scale;
  std::uint64_t state = mix(seed);
  const auto random = [&state] { return state = mix(state); };
  std::vector<std::uint32_t> name(n);
  std::iota(name.begin(), name.end(), 0u);
  for (std::uint32_t i = n - 1; i > 0; --i) std::swap(name[i], name[random() % (i + 1)]);

  std::vector<Entry> entries;
  entries.reserve(std::size_t{2} * n * edge_factor);
  for (std::uint64_t e = 0; e != std::uint64_t{n} * edge_factor; ++e) {
    std::uint32_t u = 0, v = 0;
    for (std::uint32_t bit = 0; bit != scale; ++bit) {  // Graph500's quadrants: 57, 19, 19 and 5 %
      const std::uint64_t percent = (random() >> 32) % 100;
      u = 2 * u + (percent >= 76 ? 1 : 0);
      v = 2 * v + ((percent >= 57 && percent < 76) || percent >= 95 ? 1 : 0);
    }
    const double value = 0.5 + static_cast<double>(random() >> 11) * 0x1p-53;
    entries.push_back({name[u], name[v], value});
    if (u != v) entries.push_back({name[v], name[u], value});
  }
  return to_csr(n, n, entries);
}

}  // namespace samples
