// SPDX-License-Identifier: Apache-2.0
// Importance matrices: bytes that are the format, round trips, and every way to be refused that the
// fuzzer (tests/fuzz) does not name. tests/python/test_imatrix.py has the gguf package as oracle.
#include "woq/io/imatrix.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "support/errors.h"
#include "woq/core/check.h"
#include "woq/io/bytes.h"

namespace woq::testing {
namespace {

using io::Imatrix;
using io::ImatrixEntry;

template <class... T>
std::string packed(const T&... values) {
  std::string out;
  (out.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  return out;
}

std::string text(std::string_view value) {
  return packed(static_cast<uint64_t>(value.size())) + std::string(value);
}

// A GGUF file with general.type "imatrix": tensors of float32 [shape] at `offset`, then the data.
struct Tensor {
  std::string name;
  std::vector<uint64_t> shape;
  uint64_t offset;
};

std::string gguf(const std::vector<Tensor>& tensors, const std::vector<float>& data) {
  std::string out =
      "GGUF" + packed(uint32_t{3}, static_cast<uint64_t>(tensors.size()), uint64_t{1});
  out += text("general.type") + packed(uint32_t{8}) + text("imatrix");
  for (const Tensor& tensor : tensors) {
    out += text(tensor.name) + packed(static_cast<uint32_t>(tensor.shape.size()));
    for (const uint64_t extent : tensor.shape) out += packed(extent);
    out += packed(uint32_t{0}, tensor.offset);
  }
  out.append((32 - out.size() % 32) % 32, '\0');
  for (const float value : data) out += packed(value);
  return out;
}

std::string complaint(const std::string& data) {
  return error_of<InvalidArgument>([&] { io::read_imatrix(data, "some/file"); });
}

Imatrix example() {
  Imatrix imatrix;
  imatrix.entries = {{"b.weight", 1, 3, {0.5f, 2.0f, 0.0f}, {1024}},
                     {"a.weight", 2, 2, {1.0f, 0.25f, 7.0f, 7.0f}, {512, 0}}};
  imatrix.datasets = {"first", "second"};
  imatrix.chunk_size = 256;
  return imatrix;
}

TEST(Imatrix, GgufRoundTrip) {
  const Imatrix again = io::read_imatrix(io::write_imatrix_gguf(example()), "x");
  EXPECT_EQ(again.datasets, example().datasets);
  EXPECT_EQ(again.chunk_size, 256);
  ASSERT_EQ(again.entries.size(), 2u);
  const ImatrixEntry &a = again.entries[0], &b = again.entries[1];  // by name
  EXPECT_EQ(a.name, "a.weight");
  EXPECT_EQ(a.mean, (std::vector<float>{1.0f, 0.25f, 7.0f, 7.0f}));
  EXPECT_EQ(a.counts, (std::vector<int64_t>{512, 0}));
  EXPECT_EQ(b.mean, (std::vector<float>{0.5f, 2.0f, 0.0f}));
}

TEST(Imatrix, DatIsTheFormatByteByByte) {
  const std::string expected =
      packed(int32_t{2}) +
      // 512 tokens in chunks of 256: 2 calls; the expert without a token counts as ones.
      packed(int32_t{8}) + "a.weight" + packed(int32_t{2}, int32_t{4}, 2.0f, 0.5f, 2.0f, 2.0f) +
      packed(int32_t{8}) + "b.weight" + packed(int32_t{4}, int32_t{3}, 2.0f, 8.0f, 0.0f) +
      packed(int32_t{4}, int32_t{6}) + "second";
  EXPECT_EQ(io::write_imatrix_dat(example()), expected);
  const Imatrix again = io::read_imatrix(expected, "x");
  EXPECT_EQ(again.entries[1].mean, example().entries[0].mean);
  EXPECT_EQ(again.entries[1].counts, (std::vector<int64_t>{4 * 512}));  // the file names no chunk
  EXPECT_EQ(again.datasets, (std::vector<std::string>{"second"}));
}

TEST(Imatrix, ErrorsNameFileByteAndWhatToDo) {
  const std::string message = complaint(packed(int32_t{1}, int32_t{100}));
  EXPECT_MENTIONS(message,
                  "importance matrix some/file: the name of entry 0 would take 100 bytes, 0");
  EXPECT_MENTIONS(message, "at byte 8 of 8");
  EXPECT_MENTIONS(message, "download or collect it again");
  EXPECT_MENTIONS(complaint(packed(int32_t{1}, int32_t{-1})), "would take -1 bytes");
}

// A small file must not make the reader allocate much: all of its tensors would be the same bytes.
TEST(Imatrix, TensorsThatOverlapAreRefused) {
  std::vector<Tensor> tensors;
  for (int i = 0; i < 40; ++i) {
    const std::string name = concat("w", i);
    tensors.push_back({name + ".in_sum2", {1000}, 0});
    tensors.push_back({name + ".counts", {1}, 0});
  }
  EXPECT_MENTIONS(complaint(gguf(tensors, std::vector<float>(1000, 1.0f))),
                  "overlaps the tensor before it");
}

// Shapes and offsets whose products and sums would overflow 64 bits, and wrap to something small.
TEST(Imatrix, OverflowIsRefused) {
  const uint64_t big = uint64_t{1} << 32;
  const Tensor counts{"w.counts", {1}, 0};
  const std::vector<float> data(16, 1.0f);
  EXPECT_MENTIONS(complaint(gguf({{"w.in_sum2", {big, big}, 0}, counts}, data)),
                  "more than 2^63 elements");
  EXPECT_MENTIONS(complaint(gguf({{"w.in_sum2", {8}, ~uint64_t{0} - 31}, counts}, data)),
                  "does not lie in the file's");
}

TEST(Imatrix, CountsAndSumsMustFit) {
  const std::vector<float> data(32, 2.0f);
  EXPECT_MENTIONS(complaint(gguf({{"w.in_sum2", {8}, 0}, {"w.counts", {3}, 64}}, data)),
                  "'w' has sums [8] and counts [3]");
  EXPECT_MENTIONS(complaint(gguf({{"w.in_sum2", {0}, 0}, {"w.counts", {1}, 64}}, data)),
                  "'w' has sums [0] and counts [1]");
  EXPECT_MENTIONS(complaint(gguf({{"w.in_sum2", {8}, 0}, {"w.counts", {0}, 64}}, data)),
                  "'w' has sums [8] and counts [0]");
  EXPECT_MENTIONS(complaint(gguf({{"w.in_sum2", {8}, 0}}, data)), "has no .counts");
  EXPECT_MENTIONS(complaint(gguf({{"w.counts", {8}, 0}}, data)), "has no .in_sum2");
  EXPECT_MENTIONS(complaint(gguf({}, {})), "no entries");
  std::vector<float> negative = data;
  negative[16] = -1.0f;
  EXPECT_MENTIONS(complaint(gguf({{"w.in_sum2", {8}, 0}, {"w.counts", {1}, 64}}, negative)),
                  "counts that are negative");
}

TEST(Imatrix, WritersRefuseWhatDoesNotFit) {
  Imatrix imatrix = example();
  imatrix.entries[0].counts[0] = int64_t{1} << 50;
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { io::write_imatrix_dat(imatrix); }),
                  "the number of calls of 'b.weight'");
  imatrix.entries[0].mean.pop_back();
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { io::write_imatrix_gguf(imatrix); }),
                  "2 means and 1 counts, expected [1, 3] and [1]");
  imatrix.entries = {example().entries[0], example().entries[0]};
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { io::write_imatrix_gguf(imatrix); }),
                  "two entries");
}

TEST(Utf8, IsWhatTheStandardSays) {
  for (const char* const good : {"", "a", "\xc3\xa9", "\xe4\xb8\xad", "\xf0\x9f\x98\x80",
                                 "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"})
    EXPECT_TRUE(io::is_utf8(good)) << good;
  // Stray and missing continuations, overlong forms, a surrogate, above U+10FFFF.
  for (const char* const bad : {"\x80", "\xc3", "a\xe4\xb8", "\xc0\xaf", "\xe0\x80\x80",
                                "\xf0\x8f\xbf\xbf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff"})
    EXPECT_FALSE(io::is_utf8(bad)) << bad;
}

TEST(Utf8, NamesInMessagesCannotControlATerminal) {
  EXPECT_EQ(io::quoted("a\x1b[2J\n"), "'a\\x1b[2J\\x0a'");
  EXPECT_EQ(io::quoted(std::string(300, 'x')).size(), 205u);
}

}  // namespace
}  // namespace woq::testing
