// SPDX-License-Identifier: Apache-2.0
// What the codec refuses, and blocks that can be worked out by hand. That all types have ggml's
// values is shown with bytes and values of its own in tests/python/test_gguf_matrix.py.
#include "woq/io/gguf_matrix.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "support/errors.h"
#include "woq/core/check.h"
#include "woq/quant/dequantize.h"

namespace woq::testing {
namespace {

const io::GgufType& type_of(std::string_view name) {
  for (const io::GgufType& type : io::kGgufTypes) {
    if (name == type.name) return type;
  }
  fail("no type ", name);
}

// One block of Q4_0: scale 0.5; the low nibbles are those of 0, 1, ... 15, the high ones 15, 14...
std::string q4_0_row(char scale_high = 0x38) {
  std::string row = {0, scale_high};
  for (int i = 0; i < 16; ++i) row += static_cast<char>(i | (15 - i) << 4);
  return row;
}

std::vector<float> values(const QuantizedMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, out.data(), 1);
  return out;
}

TEST(GgufMatrix, ABlockByHand) {
  const QuantizedMatrix matrix = io::read_gguf_matrix(type_of("Q4_0"), q4_0_row(), 1, 32);
  std::vector<float> expected;
  for (int i = 0; i < 16; ++i) expected.push_back(0.5f * static_cast<float>(i - 8));
  for (int i = 0; i < 16; ++i) expected.push_back(0.5f * static_cast<float>(7 - i));
  EXPECT_EQ(values(matrix), expected);
}

TEST(GgufMatrix, RowsInAnotherOrder) {
  // Scales 0.5, 1 and 2.
  const std::string data = q4_0_row(0x38) + q4_0_row(0x3c) + q4_0_row(0x40);
  const QuantizedMatrix matrix =
      io::read_gguf_matrix(type_of("Q4_0"), data, 3, 32, std::vector<int64_t>{2, 0, 1});
  const std::vector<float> out = values(matrix);
  EXPECT_EQ(out[0], -16.0f);
  EXPECT_EQ(out[32], -4.0f);
  EXPECT_EQ(out[64], -8.0f);
}

// Every type of the table is either read, from zeros of the right size, or refused by its name.
TEST(GgufMatrix, EveryTypeIsReadOrRefusedByName) {
  for (const io::GgufType& type : io::kGgufTypes) {
    const std::string data(static_cast<size_t>(3 * 2 * type.block_bytes), '\0');
    const int64_t cols = 2 * type.block_elements;
    if (io::is_gguf_matrix(type)) {
      const QuantizedMatrix matrix = io::read_gguf_matrix(type, data, 3, cols);
      EXPECT_EQ(matrix.rows, 3) << type.name;
      EXPECT_EQ(matrix.cols, cols) << type.name;
    } else {
      EXPECT_NE(error_of<Unsupported>([&] {
                  io::read_gguf_matrix(type, data, 3, cols);
                }).find(concat("type ", type.name, " ")),
                std::string::npos);
    }
  }
}

TEST(GgufMatrix, WrongSizesAndOrdersAreRefused) {
  const io::GgufType& type = type_of("Q4_0");
  const std::string data = q4_0_row() + q4_0_row();
  const auto refused = [&](std::string_view bytes, int64_t rows, int64_t cols,
                           std::vector<int64_t> order = {}) {
    EXPECT_THROW(io::read_gguf_matrix(type, bytes, rows, cols, order), InvalidArgument);
  };
  refused(data.substr(1), 2, 32);
  refused(data + "x", 2, 32);
  refused("", 1, 32);
  refused(data, 1, 32);
  refused(data, 3, 32);
  refused(data, 2, 31);
  refused(data, 2, 64);
  refused(data, 0, 32);
  refused(data, -2, 32);
  refused(data, 2, 0);
  refused(data, int64_t{1} << 40, int64_t{1} << 40);
  refused(data, 0x7fffffff, 0x7fffffe0);
  refused(data, 2, 32, {0});
  refused(data, 2, 32, {0, 2});
  refused(data, 2, 32, {-1, 0});
}

TEST(GgufMatrix, ScalesThatAreNotFiniteAreRefused) {
  EXPECT_THROW(io::read_gguf_matrix(type_of("Q4_0"), q4_0_row(0x7c), 1, 32), InvalidArgument);
  // E8M0 255, and E4M3 with the sign bit and all others.
  EXPECT_THROW(io::read_gguf_matrix(type_of("MXFP4"), std::string(17, '\xff'), 1, 32),
               InvalidArgument);
  EXPECT_THROW(io::read_gguf_matrix(type_of("NVFP4"), std::string(36, '\xff'), 1, 64),
               InvalidArgument);
}

}  // namespace
}  // namespace woq::testing
