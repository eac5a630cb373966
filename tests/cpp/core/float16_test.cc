// SPDX-License-Identifier: Apache-2.0
// The oracle is the definition: the nearest of all representable numbers, found by binary search in
// a table of exact doubles, ties to the even bit pattern.
#include "woq/core/float16.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/random.h"

namespace woq::testing {
namespace {

struct Format {
  const char* name;
  int exponent_bits, mantissa_bits;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);

  uint16_t infinity() const {
    return static_cast<uint16_t>(((1u << exponent_bits) - 1) << mantissa_bits);
  }

  // The magnitude of a finite pattern below the sign bit; at infinity(), what the next binade would
  // begin with, which is where rounding to infinity is decided.
  double value(uint16_t pattern) const {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = pattern >> mantissa_bits;
    const int mantissa = pattern & ((1 << mantissa_bits) - 1);
    if (exponent == 0) return std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  }
};

constexpr Format kFormats[] = {{"bf16", 8, 7, &bf16_to_float, &float_to_bf16},
                               {"fp16", 5, 10, &fp16_to_float, &float_to_fp16}};

class Float16 : public ::testing::TestWithParam<Format> {
 protected:
  void SetUp() override {
    for (uint32_t p = 0; p <= GetParam().infinity(); ++p) {
      table_.push_back(GetParam().value(static_cast<uint16_t>(p)));
    }
  }

  uint16_t nearest(float x) const {
    const uint16_t sign = std::signbit(x) ? 0x8000u : 0u;
    const double magnitude = std::fabs(static_cast<double>(x));
    const auto above = std::lower_bound(table_.begin(), table_.end(), magnitude);
    if (above == table_.end()) return static_cast<uint16_t>(sign | GetParam().infinity());
    auto pattern = static_cast<uint16_t>(above - table_.begin());
    if (pattern > 0) {
      const double up = *above - magnitude, down = magnitude - *(above - 1);
      if (down < up || (down == up && pattern % 2 != 0)) --pattern;
    }
    return static_cast<uint16_t>(sign | pattern);
  }

  std::vector<double> table_;
};

TEST_P(Float16, EveryPatternWidensToItsValue) {
  const Format& format = GetParam();
  for (uint32_t p = 0; p < format.infinity(); ++p) {
    const auto pattern = static_cast<uint16_t>(p), negative = static_cast<uint16_t>(p | 0x8000u);
    ASSERT_EQ(static_cast<double>(format.widen(pattern)), table_[p]) << p;
    ASSERT_EQ(static_cast<double>(format.widen(negative)), -table_[p]) << p;
    ASSERT_TRUE(std::signbit(format.widen(negative))) << p;
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(format.widen(format.infinity()), infinity);
  EXPECT_EQ(format.widen(static_cast<uint16_t>(format.infinity() | 0x8000u)), -infinity);
}

TEST_P(Float16, EveryPatternSurvivesTheRoundTrip) {
  const Format& format = GetParam();
  for (uint32_t p = 0; p <= 0xffffu; ++p) {
    const auto pattern = static_cast<uint16_t>(p);
    const uint16_t back = format.narrow(format.widen(pattern));
    if ((p & 0x7fffu) <= format.infinity()) {
      ASSERT_EQ(back, pattern);
    } else {
      ASSERT_GT(back & 0x7fffu, format.infinity()) << "NaN " << p << " became a number";
      ASSERT_EQ(back & 0x8000u, p & 0x8000u);
    }
  }
}

TEST_P(Float16, MidpointsAndTheirNeighboursRoundToNearestEven) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (uint32_t p = 0; p < GetParam().infinity(); ++p) {
    const auto middle = static_cast<float>((table_[p] + table_[p + 1]) / 2);
    for (const float magnitude :
         {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, infinity)}) {
      for (const float x : {magnitude, -magnitude}) {
        ASSERT_EQ(GetParam().narrow(x), nearest(x)) << "x = " << x << ", pattern " << p;
      }
    }
  }
}

TEST_P(Float16, RandomBitPatternsRoundToNearestEven) {
  Random random = random_of_test();
  for (int i = 0; i < 200000; ++i) {
    const float x = bits_float(static_cast<uint32_t>(random.bits()));
    if (std::isnan(x)) {
      ASSERT_GT(GetParam().narrow(x) & 0x7fffu, GetParam().infinity());
    } else {
      ASSERT_EQ(GetParam().narrow(x), nearest(x)) << "x = " << x << ", seed " << random.seed();
    }
  }
}

TEST_P(Float16, ExtremesOverflowAndUnderflow) {
  const Format& format = GetParam();
  const float largest = format.widen(static_cast<uint16_t>(format.infinity() - 1));
  EXPECT_EQ(format.narrow(largest), format.infinity() - 1);
  EXPECT_EQ(format.narrow(std::numeric_limits<float>::max()), format.infinity());
  EXPECT_EQ(format.narrow(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(format.narrow(-std::numeric_limits<float>::denorm_min()), 0x8000);
  EXPECT_EQ(format.narrow(0.0f), 0);
  EXPECT_EQ(format.narrow(-0.0f), 0x8000);
}

// A NaN whose payload lies in the bits that are cut off must not become an infinity.
TEST_P(Float16, NansWithLowPayloadsStayNan) {
  for (const uint32_t bits : {0x7f800001u, 0xff800001u, 0x7f801fffu, 0x7fc00000u, 0xffffffffu}) {
    const uint16_t narrowed = GetParam().narrow(bits_float(bits));
    EXPECT_GT(narrowed & 0x7fffu, GetParam().infinity()) << std::hex << bits;
    EXPECT_EQ(narrowed >> 15, bits >> 31) << std::hex << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Float16, ::testing::ValuesIn(kFormats),
                         [](const auto& test) { return test.param.name; });

TEST(Float16Known, Values) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(float_to_bf16(1.00390625f), 0x3f80);  // 1 + 2^-8: a tie, to even
  EXPECT_EQ(float_to_bf16(1.01171875f), 0x3f82);  // 1 + 3 * 2^-8: a tie, to even
  EXPECT_EQ(float_to_fp16(1.0f), 0x3c00);
  EXPECT_EQ(float_to_fp16(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_fp16(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_fp16(0x1p-24f), 0x0001);
  EXPECT_EQ(float_to_fp16(0x1p-25f), 0x0000);  // a tie, to even
  EXPECT_EQ(float_to_fp16(0x1.8p-24f), 0x0002);
  EXPECT_EQ(float_to_fp16(0x1p-14f), 0x0400);
}

TEST(Float16Known, RoundToBf16IsIdempotent) {
  Random random = random_of_test();
  for (int i = 0; i < 1000; ++i) {
    const float x = round_to_bf16(random.normal());
    ASSERT_EQ(float_bits(round_to_bf16(x)), float_bits(x));
    ASSERT_EQ(float_bits(x) & 0xffffu, 0u);
  }
}

// x * y rounds to 1 and x * y - 1 is 0, but a fused multiply-add keeps the product's low bits.
TEST(Float16Known, RoundedProductsAreNotContracted) {
  volatile float x = 1.0f + 0x1p-13f, y = 1.0f - 0x1p-13f;
  EXPECT_EQ(rounded(x * y) - 1.0f, 0.0f);
  EXPECT_EQ(std::fma(x, y, -1.0f), -0x1p-26f);
}

}  // namespace
}  // namespace woq::testing
