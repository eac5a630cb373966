// SPDX-License-Identifier: Apache-2.0
// JSON: values of every kind, and every way to be refused. tests/fuzz/json_fuzz.cc has the rest.
#include "woq/io/json.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "support/errors.h"
#include "woq/core/check.h"

namespace woq::testing {
namespace {

io::Json parse(std::string_view text) {
  return io::parse_json(text, "settings", "some/file", "mend it");
}

std::string complaint(std::string_view text) {
  return error_of<InvalidArgument>([&] { parse(text); });
}

TEST(Json, ReadsValuesOfEveryKind) {
  const io::Json json = parse(R"( {"a": [1, -2.5e1, true, false, null, "x"], "b": {}, "c": []} )");
  const auto* const list = json.find("a")->as<io::JsonList>();
  ASSERT_NE(list, nullptr);
  ASSERT_EQ(list->size(), 6u);
  EXPECT_EQ(*(*list)[0].as<int64_t>(), 1);
  EXPECT_EQ(*(*list)[1].as<double>(), -25.0);
  EXPECT_TRUE(*(*list)[2].as<bool>());
  EXPECT_FALSE(*(*list)[3].as<bool>());
  EXPECT_TRUE((*list)[4].is_null());
  EXPECT_EQ(*(*list)[5].as<std::string>(), "x");
  EXPECT_TRUE(json.find("b")->as<io::JsonMembers>()->empty());
  EXPECT_TRUE(json.find("c")->as<io::JsonList>()->empty());
  EXPECT_EQ(json.find("d"), nullptr);
  EXPECT_EQ(parse("3").find("a"), nullptr);
}

TEST(Json, IntegersAreExactToTheEndsOfInt64) {
  EXPECT_EQ(*parse("9223372036854775807").as<int64_t>(), INT64_MAX);
  EXPECT_EQ(*parse("-9223372036854775808").as<int64_t>(), INT64_MIN);
  EXPECT_EQ(*parse("9223372036854775808").as<double>(), 9223372036854775808.0);
  EXPECT_EQ(*parse("0").as<int64_t>(), 0);
  EXPECT_EQ(*parse("1.0").as<double>(), 1.0);
}

TEST(Json, TextsAreUnescaped) {
  EXPECT_EQ(*parse(R"("\"\\\/\b\f\n\r\t")").as<std::string>(), "\"\\/\b\f\n\r\t");
  EXPECT_EQ(*parse(R"("\u0041\u00e9\u20AC\ud83d\ude00")").as<std::string>(),
            "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  EXPECT_EQ(*parse("\"\xc3\xa9\"").as<std::string>(), "\xc3\xa9");
}

TEST(Json, RefusesWhatIsNoJsonAndSaysWhere) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[",
                           "[1",
                           "[1,",
                           "[1,]",
                           "{\"a\"",
                           "{\"a\":",
                           "{\"a\":1",
                           "{\"a\":1,}",
                           "{a:1}",
                           "nul",
                           "tru",
                           "01",
                           "-",
                           "1.",
                           ".5",
                           "1e",
                           "+1",
                           "NaN",
                           "Infinity",
                           "1e999",
                           "\"",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12g4\"",
                           "\"\\ud800\"",
                           "\"\\ud800\\u0041\"",
                           "\"\\udc00\"",
                           "\"\n\"",
                           "1 2",
                           "{} x",
                           "\"\xff\"",
                           "[1] \xc3"}) {
    const std::string message = complaint(text);
    EXPECT_NE(message.find("settings some/file: "), std::string::npos) << text << ": " << message;
    EXPECT_NE(message.find("at byte "), std::string::npos) << message;
    EXPECT_NE(message.find("mend it"), std::string::npos) << message;
  }
}

TEST(Json, RefusesAKeyThatComesTwice) {
  EXPECT_NE(complaint(R"({"a": 1, "b": {"a": 2}, "a": 3})").find("'a' comes twice"),
            std::string::npos);
}

TEST(Json, RefusesDeepNesting) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_NO_THROW(parse(nested(io::kJsonDepth + 1)));
  EXPECT_NE(complaint(nested(io::kJsonDepth + 2)).find("levels"), std::string::npos);
  EXPECT_NE(complaint(std::string(1000000, '[')).find("levels"), std::string::npos);
}

}  // namespace
}  // namespace woq::testing
