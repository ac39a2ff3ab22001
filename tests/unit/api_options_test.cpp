// SPDX-License-Identifier: MIT
// The options table: every row is sound, values are parsed and refused as the table says, the environment is read.
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>

#include "api/options.hpp"
#include "space/status.hpp"

namespace hmmrt {
namespace {

Settings defaults() {
  Settings s;
  set_defaults(s);
  return s;
}

bool says(const char* text) { return std::strstr(failure_detail(), text) != nullptr; }

TEST(ApiOptions, every_row_is_complete_and_its_default_is_in_range) {
  std::set<std::string> names;
  for (const Option& o : option_table()) {
    SCOPED_TRACE(o.name);
    EXPECT_TRUE(names.insert(o.name).second);
    std::string upper = "HMMRT_";
    for (const char* c = o.name; *c != '\0'; ++c) upper += static_cast<char>(std::toupper(*c));
    EXPECT_EQ(o.environment, upper);
    EXPECT_GT(std::strlen(o.doc), 10u);
    EXPECT_FALSE(option_range(o).empty());
    Settings s;
    EXPECT_TRUE(set_option(s, o.name, o.default_value, "test").ok()) << failure_detail();
  }
}

TEST(ApiOptions, what_option_text_says_set_option_takes) {
  const Settings s = defaults();
  for (const Option& o : option_table()) {
    SCOPED_TRACE(o.name);
    const std::string text = option_text(s, o);
    Settings again = defaults();
    EXPECT_TRUE(set_option(again, o.name, text.c_str(), "test").ok()) << text;
    EXPECT_EQ(option_text(again, o), text);
  }
}

TEST(ApiOptions, bytes_take_suffixes) {
  Settings s = defaults();
  const std::pair<const char*, std::uint64_t> good[] = {
      {"4096", 4096},   {"64K", 65536},     {"64k", 65536},       {"2M", 2u << 20},
      {"1G", 1u << 30}, {"1GiB", 1u << 30}, {"1.5G", 3ull << 29}, {"1T", std::uint64_t{1} << 40}};
  for (const auto& [text, value] : good) {
    EXPECT_TRUE(set_option(s, "device_memory", text, "test").ok()) << text;
    EXPECT_EQ(s.device_memory, value) << text;
  }
  for (const char* bad : {"", "G", "-1", "1X", "1GG", "0.3", "1e3", "1 G", "99999T", "nan"}) {
    EXPECT_EQ(set_option(s, "device_memory", bad, "test").code(), HMMRT_ERROR_INVALID_OPTION) << bad;
    EXPECT_TRUE(says("device_memory")) << failure_detail();
  }
}

TEST(ApiOptions, numbers_out_of_range_name_the_range) {
  Settings s = defaults();
  EXPECT_EQ(set_option(s, "devices", "9", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(says("1..8")) << failure_detail();
  EXPECT_TRUE(says("'9'")) << failure_detail();
  EXPECT_EQ(set_option(s, "devices", "0", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_EQ(set_option(s, "devices", "two", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_EQ(set_option(s, "devices", "99999999999999999999999", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_EQ(set_option(s, "link_bandwidth", "-1", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_EQ(set_option(s, "link_bandwidth", "inf", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(set_option(s, "link_bandwidth", "12.5", "test").ok());
  EXPECT_DOUBLE_EQ(s.link_bandwidth, 12.5);
}

TEST(ApiOptions, switches_and_choices) {
  Settings s = defaults();
  for (const char* yes : {"on", "1", "true", "yes"}) {
    s.link = false;
    EXPECT_TRUE(set_option(s, "link", yes, "test").ok());
    EXPECT_TRUE(s.link);
  }
  for (const char* no : {"off", "0", "false", "no"}) {
    EXPECT_TRUE(set_option(s, "link", no, "test").ok());
    EXPECT_FALSE(s.link);
  }
  EXPECT_EQ(set_option(s, "link", "maybe", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_EQ(set_option(s, "host_path", "auto|move", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_EQ(set_option(s, "host_path", "", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(says("auto|move|fallback")) << failure_detail();
}

TEST(ApiOptions, unknown_names_get_a_suggestion) {
  Settings s = defaults();
  EXPECT_EQ(set_option(s, "polcy", "uvm", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(says("did you mean 'policy'")) << failure_detail();
  EXPECT_EQ(set_option(s, "device-memory", "1G", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(says("'device_memory'")) << failure_detail();
  EXPECT_EQ(set_option(s, "colour_of_the_bicycle_shed", "red", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_FALSE(says("did you mean")) << failure_detail();
}

TEST(ApiOptions, unknown_policies_are_answered_with_the_list) {
  Settings s = defaults();
  EXPECT_EQ(set_option(s, "policy", "lru", "test").code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(says("'lru'") && says("adaptive") && says("uvm")) << failure_detail();
}

TEST(ApiOptions, the_environment_sets_options_and_leaves_others_alone) {
  Settings s = defaults();
  const char* good[] = {"PATH=/bin",         "HMMRT_POLICY=uvm", "HMMRT_DEVICES=2",
                        "HMMRT_SKIP_DEPS=1", "HMMRT_TEST_X=y",   nullptr};
  ASSERT_TRUE(set_from_environment(s, good).ok()) << failure_detail();
  EXPECT_EQ(s.policy, "uvm");
  EXPECT_EQ(s.devices, 2u);
  const char* typo[] = {"HMMRT_DEVISES=2", nullptr};
  EXPECT_EQ(set_from_environment(s, typo).code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(says("HMMRT_DEVICES")) << failure_detail();
  const char* range[] = {"HMMRT_DEVICES=100", nullptr};
  EXPECT_EQ(set_from_environment(s, range).code(), HMMRT_ERROR_INVALID_OPTION);
  EXPECT_TRUE(says("HMMRT_DEVICES") && says("1..8")) << failure_detail();
}

}  // namespace
}  // namespace hmmrt
