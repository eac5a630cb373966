// SPDX-License-Identifier: Apache-2.0
// GGUF files: what is read, and every way to be refused. The gguf package is the oracle of
// tests/python/test_containers.py.
#include "woq/io/gguf.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "support/errors.h"
#include "woq/core/check.h"

namespace woq::testing {
namespace {

namespace fs = std::filesystem;
using Type = io::GgufValueType;

template <class... T>
std::string packed(const T&... values) {
  std::string out;
  (out.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  return out;
}

std::string text(std::string_view value) {
  return packed(static_cast<uint64_t>(value.size())).append(value);
}

std::string key(std::string_view name, Type type) {
  return text(name) + packed(static_cast<uint32_t>(type));
}

struct Tensor {
  std::string name;
  std::vector<uint64_t> shape;
  uint32_t type;
  uint64_t offset;
};

std::string file_of(const std::vector<std::string>& metadata, const std::vector<Tensor>& tensors,
                    std::string_view data, uint32_t version = 3, size_t alignment = 32) {
  std::string out = "GGUF" + packed(version, static_cast<uint64_t>(tensors.size()),
                                    static_cast<uint64_t>(metadata.size()));
  for (const std::string& item : metadata) out += item;
  for (const Tensor& tensor : tensors) {
    out += text(tensor.name) + packed(static_cast<uint32_t>(tensor.shape.size()));
    for (const uint64_t extent : tensor.shape) out += packed(extent);
    out += packed(tensor.type, tensor.offset);
  }
  out.append((alignment - out.size() % alignment) % alignment, '\0');
  return out.append(data);
}

std::string complaint(const std::string& data) {
  return error_of<InvalidArgument>([&] { io::parse_gguf(data, "some/file"); });
}

void expect_refused(const std::string& data, std::string_view what) {
  const std::string message = complaint(data);
  EXPECT_NE(message.find(what), std::string::npos) << message;
  EXPECT_NE(message.find("GGUF file some/file: "), std::string::npos) << message;
}

template <class String>
auto parses(int) -> decltype(io::parse_gguf(std::declval<String>(), ""), std::true_type());
template <class>
std::false_type parses(...);

// Its views would point into a string that is gone.
static_assert(decltype(parses<const std::string&>(0))() && !decltype(parses<std::string>(0))());

TEST(Gguf, ReadsMetadataOfEveryType) {
  const std::string bytes = file_of(
      {key("u8", Type::kU8) + packed(uint8_t{200}), key("i8", Type::kI8) + packed(int8_t{-2}),
       key("u16", Type::kU16) + packed(uint16_t{60000}),
       key("i16", Type::kI16) + packed(int16_t{-3}),
       key("u32", Type::kU32) + packed(uint32_t{4000000000}),
       key("i32", Type::kI32) + packed(int32_t{-4}), key("f32", Type::kF32) + packed(1.5f),
       key("bool", Type::kBool) + packed(uint8_t{1}), key("text", Type::kString) + text("name"),
       key("u64", Type::kU64) + packed(~uint64_t{0}), key("i64", Type::kI64) + packed(int64_t{-5}),
       key("f64", Type::kF64) + packed(2.5),
       key("texts", Type::kArray) + packed(Type::kString, uint64_t{2}) + text("a") + text("bc"),
       key("floats", Type::kArray) + packed(Type::kF32, uint64_t{2}, 1.0f, 2.0f)},
      {}, "");
  const io::GgufFile file = io::parse_gguf(bytes, "some/file");
  const auto integer = [&](const char* name) { return *file.metadata.at(name).as<int64_t>(); };
  EXPECT_EQ(integer("u8"), 200);
  EXPECT_EQ(integer("i8"), -2);
  EXPECT_EQ(integer("u16"), 60000);
  EXPECT_EQ(integer("i16"), -3);
  EXPECT_EQ(integer("u32"), 4000000000);
  EXPECT_EQ(integer("i32"), -4);
  EXPECT_EQ(integer("i64"), -5);
  EXPECT_EQ(*file.metadata.at("u64").as<uint64_t>(), ~uint64_t{0});
  EXPECT_EQ(*file.metadata.at("f32").as<double>(), 1.5);
  EXPECT_EQ(*file.metadata.at("f64").as<double>(), 2.5);
  EXPECT_TRUE(*file.metadata.at("bool").as<bool>());
  EXPECT_EQ(*file.metadata.at("text").as<std::string_view>(), "name");
  const auto* const texts = file.metadata.at("texts").as<io::GgufArray>();
  EXPECT_EQ(texts->texts, (std::vector<std::string_view>{"a", "bc"}));
  const auto* const floats = file.metadata.at("floats").as<io::GgufArray>();
  EXPECT_EQ(floats->count, 2);
  EXPECT_EQ(floats->bytes, packed(1.0f, 2.0f));
}

TEST(Gguf, ReadsTensorsWithTheContiguousDimensionLast) {
  const std::string blocks(2 * 18, 'q');
  const std::string bytes =
      file_of({}, {{"b", {32, 2}, 2, 32}, {"a", {3}, 24, 0}, {"new", {7}, 4242, 0}},
              std::string("abc") + std::string(29, '\0') + blocks);
  const io::GgufFile file = io::parse_gguf(bytes, "some/file");
  EXPECT_EQ(file.order, (std::vector<std::string_view>{"b", "a", "new"}));
  EXPECT_EQ(file.tensors.at("a").data, "abc");
  EXPECT_EQ(file.tensors.at("b").shape, (std::vector<int64_t>{2, 32}));
  EXPECT_EQ(file.tensors.at("b").data, blocks);
  EXPECT_STREQ(file.tensors.at("b").type->name, "Q4_0");
  EXPECT_EQ(file.tensors.at("new").type, nullptr);
  EXPECT_EQ(file.tensors.at("new").type_id, 4242u);
  EXPECT_TRUE(file.tensors.at("new").data.empty());
}

TEST(Gguf, RefusesDamagedHeaders) {
  expect_refused("", "the magic number");
  expect_refused("GGML" + std::string(20, '\0'), "does not begin with 'GGUF'");
  for (const uint32_t version : {0u, 1u, 4u, 3u << 24})
    expect_refused(file_of({}, {}, "", version), "known: 2 and 3");
  const std::string older = file_of({}, {}, "", 2);
  EXPECT_NO_THROW(io::parse_gguf(older, "some/file"));
  expect_refused("GGUF" + packed(uint32_t{3}, ~uint64_t{0}, uint64_t{0}), "the name of tensor 0");
  expect_refused("GGUF" + packed(uint32_t{3}, uint64_t{0}, ~uint64_t{0}), "the name of metadata 0");
}

TEST(Gguf, RefusesDamagedMetadata) {
  expect_refused(file_of({text("a") + packed(uint32_t{13})}, {}, ""), "unknown type 13");
  expect_refused(file_of({key("a", Type::kBool) + packed(uint8_t{2})}, {}, ""), "expected 0 or 1");
  expect_refused(file_of({key("a", Type::kString) + packed(~uint64_t{0})}, {}, ""), "bytes");
  expect_refused(file_of({key("a", Type::kArray) + packed(Type::kU64, ~uint64_t{0})}, {}, ""),
                 "elements of 8 bytes");
  expect_refused(file_of({key("a", Type::kArray) + packed(Type::kString, ~uint64_t{0})}, {}, ""),
                 "the length of metadata 'a'");
  expect_refused(file_of({key("a", Type::kArray) + packed(Type::kArray, uint64_t{1})}, {}, ""),
                 "list of lists");
  const std::string item = key("a", Type::kU8) + packed(uint8_t{0});
  expect_refused(file_of({item, item}, {}, ""), "'a' comes twice");
  expect_refused(file_of({key("\xff", Type::kU8) + packed(uint8_t{0})}, {}, ""), "not UTF-8");
  for (const uint32_t alignment : {0u, 3u, 1u << 21, 1u << 31})
    expect_refused(file_of({key("general.alignment", Type::kU32) + packed(alignment)}, {}, ""),
                   "a power of two");
}

TEST(Gguf, RefusesTensorsThatDoNotFit) {
  const std::string data(64, 'x');
  const auto with = [&](const Tensor& tensor) { return file_of({}, {tensor}, data); };
  const std::string whole = with({"a", {64}, 24, 0});
  EXPECT_NO_THROW(io::parse_gguf(whole, "some/file"));
  expect_refused(with({"a", {}, 24, 0}), "0 dimensions");
  expect_refused(with({"a", {1, 1, 1, 1, 1}, 24, 0}), "5 dimensions");
  expect_refused(with({"a", {65}, 24, 0}), "does not lie in");
  expect_refused(with({"a", {33}, 24, 32}), "does not lie in");
  expect_refused(with({"a", {1}, 24, ~uint64_t{31}}), "does not lie in");
  expect_refused(with({"a", {1}, 24, 1}), "no multiple of 32");
  expect_refused(with({"a", {uint64_t{1} << 40}, 24, 0}), "room for");
  expect_refused(with({"a", {~uint64_t{0}}, 24, 0}), "2^63");
  expect_refused(with({"a", {uint64_t{1} << 32, uint64_t{1} << 32}, 24, 0}), "2^63");
  expect_refused(with({"a", {33}, 2, 0}), "multiples of 32");
  expect_refused(file_of({}, {{"a", {40}, 24, 0}, {"b", {8}, 24, 32}}, data), "'b' overlaps");
  expect_refused(file_of({}, {{"a", {8}, 24, 0}, {"a", {8}, 24, 32}}, data), "'a' comes twice");
}

// Wherever a download may have ended.
TEST(Gguf, RefusesEveryPrefix) {
  const std::string whole =
      file_of({key("a", Type::kString) + text("value"),
               key("b", Type::kArray) + packed(Type::kString, uint64_t{1}) + text("item")},
              {{"t", {32}, 2, 0}}, std::string(18, 'x'));
  for (size_t size = 0; size < whole.size(); ++size)
    expect_refused(whole.substr(0, size), size < 4 ? "the magic number" : "");
  EXPECT_NO_THROW(io::parse_gguf(whole, "some/file"));
}

TEST(Gguf, ReadsTensorsWithoutElements) {
  const std::string bytes = file_of({}, {{"none", {0, 4}, 0, 0}, {"some", {1}, 24, 0}}, "x");
  const io::GgufFile file = io::parse_gguf(bytes, "some/file");
  EXPECT_TRUE(file.tensors.at("none").data.empty());
  EXPECT_EQ(file.tensors.at("some").data, "x");
}

TEST(Gguf, ReadsAnAlignmentOfItsOwn) {
  const std::vector<std::string> metadata = {key("general.alignment", Type::kU32) +
                                             packed(uint32_t{8})};
  const std::string bytes =
      file_of(metadata, {{"a", {3}, 24, 0}, {"b", {3}, 24, 8}}, "abc.....def", 3, 8);
  const io::GgufFile file = io::parse_gguf(bytes, "some/file");
  EXPECT_EQ(file.tensors.at("b").data, "def");
}

TEST(Gguf, OpensSplitModels) {
  const fs::path folder = fs::temp_directory_path() / ("woq_gguf_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  const auto write = [&](const std::string& name, const std::string& data) {
    std::ofstream((folder / name).string(), std::ios::binary) << data;
    return (folder / name).string();
  };
  const auto split = [](uint16_t number, uint16_t count, const std::string& tensor) {
    return file_of({key("split.no", Type::kU16) + packed(number),
                    key("split.count", Type::kU16) + packed(count),
                    key("split.tensors.count", Type::kI32) + packed(int32_t{2})},
                   {{tensor, {3}, 24, 0}}, "abc");
  };
  const auto complaint_about = [](const std::string& path) {
    return error_of<InvalidArgument>([&] { io::open_gguf(path); });
  };
  const std::string first = write("m-00001-of-00002.gguf", split(0, 2, "a"));
  EXPECT_NE(complaint_about(first).find("cannot be opened"), std::string::npos);
  const std::string second = write("m-00002-of-00002.gguf", split(1, 2, "b"));
  const io::GgufModel model = io::open_gguf(first);
  EXPECT_EQ(model.tensors.size(), 2u);
  EXPECT_EQ(model.tensors.at("b").data, "abc");
  EXPECT_NE(complaint_about(second).find("name the first one"), std::string::npos);
  write("m-00002-of-00002.gguf", split(1, 2, "a"));
  EXPECT_NE(complaint_about(first).find("is in another file"), std::string::npos);
  write("m-00002-of-00002.gguf", split(0, 2, "b"));
  EXPECT_NE(complaint_about(first).find("is not file 2"), std::string::npos);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace woq::testing
