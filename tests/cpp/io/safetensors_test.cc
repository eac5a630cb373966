// SPDX-License-Identifier: Apache-2.0
// safetensors files: what is read, and every way to be refused. The reference reader is the oracle
// of tests/python/test_containers.py.
#include "woq/io/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "support/errors.h"
#include "woq/core/check.h"

namespace woq::testing {
namespace {

namespace fs = std::filesystem;

std::string file_of(std::string_view header, std::string_view data) {
  const auto length = static_cast<uint64_t>(header.size());
  std::string out(reinterpret_cast<const char*>(&length), sizeof length);
  return out.append(header).append(data);
}

std::string complaint(const std::string& data) {
  return error_of<InvalidArgument>([&] { io::parse_safetensors(data, "some/file"); });
}

void expect_refused(std::string_view header, std::string_view data, std::string_view what) {
  const std::string message = complaint(file_of(header, data));
  EXPECT_NE(message.find(what), std::string::npos) << message;
  EXPECT_NE(message.find("some/file"), std::string::npos) << message;
}

// A folder that is gone at the end of the test.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("woq_safetensors_" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string write(const std::string& name, const std::string& data) const {
    const std::string path = (path_ / name).string();
    std::ofstream(path, std::ios::binary) << data;
    return path;
  }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

template <class String>
auto parses(int) -> decltype(io::parse_safetensors(std::declval<String>(), ""), std::true_type());
template <class>
std::false_type parses(...);

// Its views would point into a string that is gone.
static_assert(decltype(parses<const std::string&>(0))() && !decltype(parses<std::string>(0))());

TEST(Safetensors, ReadsTensorsAndMetadata) {
  const std::string bytes =
      file_of(R"({"__metadata__": {"format": "pt"}, "b": {"dtype": "U8", "shape": [2, 1], )"
              R"("data_offsets": [4, 6]}, "a": {"dtype": "F32", "shape": [], "data_offsets": )"
              R"([0, 4]}, "e": {"dtype": "I64", "shape": [0, 5], "data_offsets": [6, 6]}}  )",
              "abcdef");
  const io::SafetensorsFile file = io::parse_safetensors(bytes, "some/file");
  EXPECT_EQ(file.metadata.at("format"), "pt");
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors.at("a").data, "abcd");
  EXPECT_TRUE(file.tensors.at("a").shape.empty());
  EXPECT_EQ(file.tensors.at("b").data, "ef");
  EXPECT_STREQ(file.tensors.at("b").type->name, "U8");
  EXPECT_EQ(file.tensors.at("b").shape, (std::vector<int64_t>{2, 1}));
  EXPECT_TRUE(file.tensors.at("e").data.empty());
}

TEST(Safetensors, ReadsTypesBelowAByte) {
  const std::string bytes =
      file_of(R"({"a": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}})", "abcd");
  const io::SafetensorsFile file = io::parse_safetensors(bytes, "some/file");
  EXPECT_EQ(file.tensors.at("a").data, "abcd");
  expect_refused(R"({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}})", "a",
                 "which its dtype F4 and its shape do not give");
}

TEST(Safetensors, RefusesDamagedHeaders) {
  EXPECT_NE(complaint("").find("the length of the header"), std::string::npos);
  EXPECT_NE(complaint("1234567").find("the length of the header"), std::string::npos);
  std::string huge = file_of("{}", "");
  huge[6] = 1;  // 2^48 bytes
  EXPECT_NE(complaint(huge).find("at most 100000000"), std::string::npos);
  std::string cut = file_of("{}", "");
  cut.resize(cut.size() - 1);
  EXPECT_NE(complaint(cut).find("the header would take 2 bytes"), std::string::npos);
  expect_refused("", "", "does not begin with '{'");
  expect_refused(" {}", "", "does not begin with '{'");
  expect_refused("{", "", "at byte 1");
  expect_refused(R"({"a": 1})", "", "is not described by an object");
  expect_refused(R"({"__metadata__": {"a": 1}})", "", "not a text");
  expect_refused(R"({"__metadata__": []})", "", "not an object");
}

// Wherever a download may have ended.
TEST(Safetensors, RefusesEveryPrefix) {
  const std::string whole =
      file_of(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})", "abcd");
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_FALSE(complaint(whole.substr(0, size)).empty());
  EXPECT_NO_THROW(io::parse_safetensors(whole, "some/file"));
}

TEST(Safetensors, RefusesTensorsThatAreNotAsDescribed) {
  const char* const end = R"("data_offsets": [0, 4]}})";
  const auto with = [&](const std::string& start) { return start + end; };
  expect_refused(with(R"({"a": {"shape": [1], )"), "abcd", "has no dtype");
  expect_refused(with(R"({"a": {"dtype": "F33", "shape": [1], )"), "abcd", "unknown dtype 'F33'");
  expect_refused(with(R"({"a": {"dtype": "F32", )"), "abcd", "has no list shape");
  expect_refused(with(R"({"a": {"dtype": "F32", "shape": [-1], )"), "abcd", "whole numbers");
  expect_refused(with(R"({"a": {"dtype": "F32", "shape": [1.0], )"), "abcd", "whole numbers");
  expect_refused(with(R"({"a": {"dtype": "U8", "shape": [3], )"), "abcd", "do not give");
  expect_refused(with(R"({"a": {"dtype": "F32", "shape": [1], "x": 1, )"), "abcd",
                 "unknown member 'x'");
  expect_refused(with(R"({"a": {"dtype": "U8", "shape": [4294967296, 4294967296, 4], )"), "abcd",
                 "more elements than the file has room for");
  expect_refused(with(R"({"a": {"dtype": "F32", "shape": [1], )"), "abc", "do not lie in");
}

TEST(Safetensors, RefusesGapsOverlapsAndDoubledNames) {
  const auto two = [](const char* first, const char* second) {
    return std::string(R"({"a": {"dtype": "U8", "shape": [2], "data_offsets": )") + first +
           R"(}, "b": {"dtype": "U8", "shape": [2], "data_offsets": )" + second + "}}";
  };
  const std::string whole = file_of(two("[2, 4]", "[0, 2]"), "abcd");
  EXPECT_NO_THROW(io::parse_safetensors(whole, "some/file"));
  expect_refused(two("[0, 2]", "[1, 3]"), "abc", "'b' overlaps");
  expect_refused(two("[0, 2]", "[3, 5]"), "abcde", "'b' leaves a gap");
  expect_refused(two("[0, 2]", "[2, 4]"), "abcde", "the last 1 bytes belong to no tensor");
  expect_refused(two("[1, 3]", "[3, 5]"), "abcde", "'a' leaves a gap");
  expect_refused(two("[2, 0]", "[2, 4]"), "abcd", "do not lie in");
  expect_refused(R"({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, )"
                 R"("a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}})",
                 "", "'a' comes twice");
}

std::string shard(const std::string& name) {
  return file_of("{\"" + name + R"(": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})",
                 "x");
}

TEST(Safetensors, OpensAFileAFolderAndShards) {
  const Folder folder;
  const std::string path = folder.write("model.safetensors", shard("a"));
  EXPECT_EQ(io::open_safetensors(path).tensors.at("a").data, "x");
  EXPECT_EQ(io::open_safetensors(folder.path()).tensors.size(), 1u);
  folder.write("one.safetensors", shard("b"));
  folder.write("two.safetensors", shard("c"));
  folder.write("model.safetensors.index.json",
               R"({"weight_map": {"b": "one.safetensors", "c": "two.safetensors"}})");
  const io::SafetensorsModel model = io::open_safetensors(folder.path());
  EXPECT_EQ(model.files.size(), 2u);
  EXPECT_EQ(model.tensors.size(), 2u);
}

TEST(Safetensors, RefusesAnIndexThatLeavesItsFolderOrLies) {
  const Folder folder;
  folder.write("one.safetensors", shard("b"));
  const auto complaint_about = [&](const std::string& index) {
    folder.write("model.safetensors.index.json", index);
    return error_of<InvalidArgument>([&] { io::open_safetensors(folder.path()); });
  };
  for (const char* name : {"../one.safetensors", "/dev/zero", "..", ".", "", "a\\\\b", "x/one"}) {
    const std::string index = std::string(R"({"weight_map": {"b": ")") + name + "\"}}";
    EXPECT_NE(complaint_about(index).find("a file in the same folder"), std::string::npos) << name;
  }
  EXPECT_NE(complaint_about(R"({"weight_map": {"b": 1}})").find("no text"), std::string::npos);
  EXPECT_NE(complaint_about("{}").find("no weight_map"), std::string::npos);
  EXPECT_NE(complaint_about(R"({"weight_map": {"x": "one.safetensors"}})").find("'x' is not in"),
            std::string::npos);
  EXPECT_NE(complaint_about(R"({"weight_map": {"b": "two.safetensors"}})").find("cannot be opened"),
            std::string::npos);
  // An index among its own shards is no shard.
  EXPECT_NE(complaint_about(R"({"weight_map": {"b": "model.safetensors.index.json"}})")
                .find("at most 100000000"),
            std::string::npos);
  folder.write("two.safetensors", shard("b"));
  EXPECT_NE(complaint_about(R"({"weight_map": {"b": "one.safetensors", "c": "two.safetensors"}})")
                .find("is also in"),
            std::string::npos);
}

TEST(Safetensors, RefusesWhatIsNoFile) {
  const Folder folder;
  const auto complaint_about = [](const std::string& path) {
    return error_of<InvalidArgument>([&] { io::open_safetensors(path); });
  };
  EXPECT_NE(complaint_about(folder.path()).find("neither"), std::string::npos);
  EXPECT_NE(complaint_about("/dev/zero").find("not a regular file"), std::string::npos);
  EXPECT_NE(complaint_about(folder.path() + "/none").find("No such file"), std::string::npos);
  EXPECT_NE(complaint_about(folder.write("empty", "")).find("0 are left"), std::string::npos);
}

}  // namespace
}  // namespace woq::testing
