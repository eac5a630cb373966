// SPDX-License-Identifier: Apache-2.0
#include "woq/core/code_row.h"

#include <gtest/gtest.h>

#include <vector>

#include "support/random.h"

namespace woq::testing {
namespace {

std::vector<uint8_t> random_codes(Random& random, int64_t n, int bits) {
  std::vector<uint8_t> codes(static_cast<size_t>(n));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(1 << bits));
  return codes;
}

// The definition: bit i of the row is bit i % 8 of byte i / 8, the lowest bit of a code first.
int bit(const std::vector<uint8_t>& row, int64_t i) {
  return row[static_cast<size_t>(i / 8)] >> (i % 8) & 1;
}

TEST(CodeRow, CodesAreABitStreamLowestFirst) {
  Random random = random_of_test();
  for (int bits = 1; bits <= 8; ++bits) {
    for (int64_t n = 1; n <= 41; ++n) {
      const std::vector<uint8_t> codes = random_codes(random, n, bits);
      std::vector<uint8_t> row(static_cast<size_t>(code_row_bytes(n, bits)), 0xff);
      ASSERT_EQ(static_cast<int64_t>(row.size()), (n * bits + 7) / 8);
      write_codes(codes.data(), n, bits, row.data());
      for (int64_t i = 0; i < static_cast<int64_t>(row.size()) * 8; ++i) {
        const int expected =
            i < n * bits ? codes[static_cast<size_t>(i / bits)] >> (i % bits) & 1 : 0;
        ASSERT_EQ(bit(row, i), expected) << bits << " bits, " << n << " codes, bit " << i;
      }
      for (int64_t k = 0; k < n; ++k)
        ASSERT_EQ(read_code(row.data(), k, bits), codes[static_cast<size_t>(k)]);
    }
  }
}

// What checkpoints have held from the start, written out.
TEST(CodeRow, FourAndEightBitsLieAsTheyAlwaysHave) {
  const std::vector<uint8_t> codes = {1, 2, 3, 4, 15};
  std::vector<uint8_t> nibbles(3), bytes(5);
  write_codes(codes.data(), 5, 4, nibbles.data());
  write_codes(codes.data(), 5, 8, bytes.data());
  EXPECT_EQ(nibbles, (std::vector<uint8_t>{0x21, 0x43, 0x0f}));
  EXPECT_EQ(bytes, codes);
}

TEST(CodeRow, WritingOneCodeLeavesTheOthers) {
  Random random = random_of_test();
  for (int bits = 1; bits <= 8; ++bits) {
    constexpr int64_t kCodes = 29;
    std::vector<uint8_t> codes = random_codes(random, kCodes, bits);
    std::vector<uint8_t> row(static_cast<size_t>(code_row_bytes(kCodes, bits)));
    write_codes(codes.data(), kCodes, bits, row.data());
    for (int64_t k = 0; k < kCodes; ++k) {
      codes[static_cast<size_t>(k)] = static_cast<uint8_t>(random.below(1 << bits));
      write_code(row.data(), k, bits, codes[static_cast<size_t>(k)]);
      std::vector<uint8_t> expected(row.size());
      write_codes(codes.data(), kCodes, bits, expected.data());
      ASSERT_EQ(row, expected) << bits << " bits, code " << k;
    }
  }
}

TEST(CodeRow, RangesReadTheSameCodes) {
  Random random = random_of_test();
  for (int bits = 1; bits <= 8; ++bits) {
    constexpr int64_t kCodes = 23;
    const std::vector<uint8_t> codes = random_codes(random, kCodes, bits);
    std::vector<uint8_t> row(static_cast<size_t>(code_row_bytes(kCodes, bits)));
    write_codes(codes.data(), kCodes, bits, row.data());
    for (int64_t begin = 0; begin <= kCodes; ++begin) {
      for (int64_t end = begin; end <= kCodes; ++end) {
        std::vector<uint8_t> read(static_cast<size_t>(end - begin));
        read_codes(row.data(), begin, end, bits, read.data());
        ASSERT_EQ(read, std::vector<uint8_t>(codes.begin() + begin, codes.begin() + end))
            << bits << " bits, [" << begin << ", " << end << ")";
      }
    }
  }
}

}  // namespace
}  // namespace woq::testing
