// SPDX-License-Identifier: Apache-2.0
#include "woq/quant/scales.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "support/errors.h"
#include "support/random.h"

namespace woq::testing {
namespace {

std::vector<float> random_scales(Random& random, int64_t count, bool negative) {
  std::vector<float> scales(static_cast<size_t>(count));
  for (float& scale : scales) {
    scale = random.uniform(0.0005f, 0.05f);
    if (negative && random.coin()) scale = -scale;
  }
  return scales;
}

// The map's rule from its description: in decade i, midpoints of 2^i equal parts of [0.1, 1].
TEST(DynamicMap, IsThePublishedOne) {
  std::vector<double> expected = {0.0, 1.0};
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << i;
    for (int j = 0; j < parts; ++j) {
      const double value = std::pow(10.0, i - 6) * (0.1 + 0.9 * (j + 0.5) / parts);
      expected.push_back(value);
      expected.push_back(-value);
    }
  }
  std::sort(expected.begin(), expected.end());
  ASSERT_EQ(expected.size(), 256u);
  for (size_t i = 0; i < 256; ++i) {
    EXPECT_NEAR(dynamic_map()[i], expected[i], 4e-7 * std::fabs(expected[i])) << i;
  }
  EXPECT_EQ(dynamic_map()[127], 0.0f);
  EXPECT_EQ(dynamic_map()[255], 1.0f);
  EXPECT_TRUE(std::is_sorted(dynamic_map().begin(), dynamic_map().end()));
}

TEST(DynamicMap, EveryCodeRoundTripsAndMidpointsGoDown) {
  const auto& map = dynamic_map();
  for (size_t i = 0; i < 256; ++i) {
    EXPECT_EQ(encode_dynamic(map[i]), i);
    if (i == 255) break;
    const float middle = (map[i] + map[i + 1]) / 2;
    EXPECT_EQ(encode_dynamic(middle), i);
    EXPECT_EQ(encode_dynamic(std::nextafter(middle, 2.0f)), i + 1);
  }
  EXPECT_EQ(encode_dynamic(-1.0f), 0);
  EXPECT_EQ(encode_dynamic(-2.0f), 0);
  EXPECT_EQ(encode_dynamic(2.0f), 255);
}

TEST(ScaleTable, PlainEncodingsRoundOnce) {
  Random random = random_of_test();
  const std::vector<float> scales = random_scales(random, 35, true);
  for (const ScaleEncoding encoding :
       {ScaleEncoding::kFp32, ScaleEncoding::kFp16, ScaleEncoding::kBf16}) {
    const ScaleTable table = ScaleTable::encode(scales.data(), 5, 7, encoding, true);
    for (int64_t n = 0; n < 5; ++n) {
      for (int64_t g = 0; g < 7; ++g) {
        const float scale = scales[static_cast<size_t>(n * 7 + g)];
        const float expected = encoding == ScaleEncoding::kFp32 ? scale
                               : encoding == ScaleEncoding::kFp16
                                   ? fp16_to_float(float_to_fp16(scale))
                                   : round_to_bf16(scale);
        EXPECT_EQ(table.at(n, g), expected);
        EXPECT_EQ(table.at(n * 7 + g), expected);
      }
    }
    EXPECT_EQ(table.bytes(), 35 * stored_scale_bytes(encoding));
  }
}

TEST(ScaleTable, Fp16RefusesWhatItCannotHold) {
  const float fits[] = {65504.0f, 65519.0f, -65519.0f}, too_large[] = {1.0f, 65520.0f};
  const ScaleTable table = ScaleTable::encode(fits, 1, 3, ScaleEncoding::kFp16, true);
  EXPECT_EQ(table.at(1), 65504.0f);
  const std::string error = error_of<InvalidArgument>(
      [&] { ScaleTable::encode(too_large, 2, 1, ScaleEncoding::kFp16, false); });
  EXPECT_MENTIONS(error, "row 1, group 0");
  EXPECT_MENTIONS(error, "65520");
  EXPECT_MENTIONS(error, "bf16");
}

// 700 scales: two whole blocks of 256 and a short one.
TEST(DoubleQuantization, DecodesWithinHalfAStepOfTheMap) {
  Random random = random_of_test();
  for (const bool negative : {false, true}) {
    const std::vector<float> scales = random_scales(random, 700, negative);
    const ScaleTable table =
        ScaleTable::encode(scales.data(), 100, 7, ScaleEncoding::kDouble, negative);
    EXPECT_EQ(table.blocks(), 3);
    EXPECT_EQ(table.bytes(), 700 + 3 * 4 + 4 + (negative ? 88 : 0));
    double mean = 0;
    for (const float scale : scales) mean += std::fabs(static_cast<double>(scale)) / 700;
    EXPECT_NEAR(table.offset, mean, 1e-6 * mean);
    for (int64_t i = 0; i < 700; ++i) {
      const float scale = scales[static_cast<size_t>(i)];
      const float absmax = table.block_absmax.as<float>()[i / 256];
      const int code = table.values.data()[i];
      const auto& map = dynamic_map();
      const float below = code > 0
                              ? map[static_cast<size_t>(code)] - map[static_cast<size_t>(code) - 1]
                              // Below the first entry lies -1, which the map does not have.
                              : 2 * (map[0] + 1);
      const float above =
          code < 255 ? map[static_cast<size_t>(code) + 1] - map[static_cast<size_t>(code)] : 0.0f;
      const float step = std::max(below, above) * absmax;
      EXPECT_LE(std::fabs(table.at(i) - scale), step / 2 * 1.0001f + 1e-8f) << i;
      EXPECT_EQ(std::signbit(table.at(i)), std::signbit(scale)) << i;
    }
  }
}

TEST(DoubleQuantization, BlockMaximaAreTheLargestDeviations) {
  Random random = random_of_test();
  const std::vector<float> scales = random_scales(random, 300, true);
  const ScaleTable table = ScaleTable::encode(scales.data(), 300, 1, ScaleEncoding::kDouble, true);
  for (int64_t block = 0; block < 2; ++block) {
    float largest = 0;
    for (int64_t i = block * 256; i < std::min<int64_t>(300, block * 256 + 256); ++i) {
      largest =
          std::max(largest, std::fabs(std::fabs(scales[static_cast<size_t>(i)]) - table.offset));
    }
    EXPECT_EQ(table.block_absmax.as<float>()[block], largest);
  }
}

TEST(DoubleQuantization, EqualScalesAreExact) {
  for (const float scale : {0.0f, 0.25f}) {
    const std::vector<float> scales(10, scale);
    const ScaleTable table =
        ScaleTable::encode(scales.data(), 10, 1, ScaleEncoding::kDouble, false);
    for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(table.at(i), scale);
  }
}

// Decoding is a rounded product and a rounded sum, in every build: bitsandbytes' numbers depend on
// it, and a compiler could fuse the two.
TEST(DoubleQuantization, DecodingRoundsTwice) {
  Random random = random_of_test();
  const std::vector<float> scales = random_scales(random, 256, false);
  const ScaleTable table = ScaleTable::encode(scales.data(), 256, 1, ScaleEncoding::kDouble, false);
  const float absmax = table.block_absmax.as<float>()[0];
  int fused_differs = 0;
  for (int64_t i = 0; i < 256; ++i) {
    const float entry = dynamic_map()[table.values.data()[i]];
    const volatile float product = entry * absmax;
    const volatile float sum = product + table.offset;
    ASSERT_EQ(table.at(i), sum);
    fused_differs += sum != std::fma(entry, absmax, table.offset) ? 1 : 0;
  }
  EXPECT_GT(fused_differs, 0) << "the data must be able to tell the two apart";
}

TEST(DoubleQuantization, SignsAreOneBitEach) {
  std::vector<float> scales(20, 0.5f);
  for (const size_t i : {0u, 7u, 8u, 19u}) scales[i] = -0.5f;
  const ScaleTable table = ScaleTable::encode(scales.data(), 4, 5, ScaleEncoding::kDouble, true);
  ASSERT_EQ(table.signs.size(), 3);
  EXPECT_EQ(table.signs.data()[0], 0x81);
  EXPECT_EQ(table.signs.data()[1], 0x01);
  EXPECT_EQ(table.signs.data()[2], 0x08);
  EXPECT_EQ(table.at(19), -0.5f);
  EXPECT_EQ(table.at(18), 0.5f);
}

// OCP's definitions in double arithmetic: value = (-1)^s 2^(e - 7) 1.m, or 2^-6 0.m where e is 0.
TEST(Scales, E4M3IsThatOfTheSpecification) {
  for (int code = 0; code < 256; ++code) {
    const float value = decode_e4m3(static_cast<uint8_t>(code));
    const int exponent = code / 8 % 16, mantissa = code % 8;
    if (code % 128 == 127) {
      EXPECT_TRUE(std::isnan(value)) << code;
      continue;
    }
    const double magnitude = exponent == 0 ? std::ldexp(mantissa / 8.0, -6)
                                           : std::ldexp(1 + mantissa / 8.0, exponent - 7);
    EXPECT_EQ(static_cast<double>(value), code < 128 ? magnitude : -magnitude) << code;
  }
  EXPECT_EQ(decode_e4m3(126), 448.0f);
}

TEST(Scales, E8M0IsAPowerOfTwo) {
  for (int code = 0; code < 255; ++code)
    EXPECT_EQ(static_cast<double>(decode_e8m0(static_cast<uint8_t>(code))),
              std::ldexp(1.0, code - 127));
  EXPECT_TRUE(std::isnan(decode_e8m0(255)));
}

// By hand: three groups of 128 columns, two of which share the first factor of a row.
TEST(Scales, TwoLevelsAreAProduct) {
  const QuantScheme scheme{WeightDtype::kInt6, 128, {}, ScaleEncoding::kTwoLevel};
  ScaleTable table = ScaleTable::allocate(scheme, 2, 3);
  ASSERT_EQ(table.supers.size(), 2 * 2 * 2);
  const float supers[] = {0.5f, -2.0f, 1.0f, 0.25f};
  const int8_t values[] = {1, -2, 3, 127, -128, 4};
  for (int i = 0; i < 4; ++i) table.supers.as<uint16_t>()[i] = float_to_fp16(supers[i]);
  std::memcpy(table.values.data(), values, sizeof values);
  const float expected[] = {0.5f, -1.0f, -6.0f, 127.0f, -128.0f, 1.0f};
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(table.at(i), expected[i]) << i;
}

TEST(Scales, AFactorMultipliesOrDivides) {
  ScaleTable table =
      ScaleTable::allocate({WeightDtype::kFp4E2m1, 16, {}, ScaleEncoding::kE4M3}, 1, 1);
  table.values.data()[0] = 0x3c;  // 1.5
  table.factor = {2.0f, 1.0f};
  EXPECT_EQ(table.at(0), 3.0f);
  table.factor = {1.0f, 3.0f};
  EXPECT_EQ(table.at(0), 0.5f);
}

TEST(Scales, WhatOnlyFilesHaveIsNotWritten) {
  const float scale = 1.0f;
  for (const ScaleEncoding encoding :
       {ScaleEncoding::kTwoLevel, ScaleEncoding::kE8M0, ScaleEncoding::kE4M3}) {
    const std::string error =
        error_of<InvalidArgument>([&] { ScaleTable::encode(&scale, 1, 1, encoding, false); });
    EXPECT_MENTIONS(error, name_of(encoding));
  }
}

}  // namespace
}  // namespace woq::testing
