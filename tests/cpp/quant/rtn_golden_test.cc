// SPDX-License-Identifier: Apache-2.0
// Round to nearest against numbers worked out by hand, and its rules for special groups.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/matrices.h"
#include "woq/quant/dequantize.h"
#include "woq/quant/rtn.h"

namespace woq::testing {
namespace {

std::vector<int> codes_of(const QuantizedMatrix& matrix, int64_t n = 0) {
  std::vector<int> codes;
  for (int64_t k = 0; k < matrix.cols; ++k) codes.push_back(matrix.code(n, k));
  return codes;
}

QuantizedMatrix quantize_row(const std::vector<float>& row, const QuantScheme& scheme) {
  return quantize_rtn(view_of(row.data(), 1, static_cast<int64_t>(row.size())), scheme, {}, 1);
}

struct Golden {
  const char* name;
  WeightDtype dtype;
  ZeroKind zeros;
  float scale;
  int zero_point;
  std::vector<int> codes;
};

// Of the weights below. The scales are the quotients in the comments; codes follow with a pencil.
const Golden kGolden[] = {
    // 1.1 / 127; values -104 -58 -30 -3 0 5 35 127
    {"int8",
     WeightDtype::kInt8,
     ZeroKind::kNone,
     1.1f / 127,
     128,
     {24, 70, 98, 125, 128, 133, 163, 255}},
    // (1.1 + 0.9) / 255; zero point 114.75
    {"int8_asym",
     WeightDtype::kInt8,
     ZeroKind::kInt,
     2.0f / 255,
     115,
     {0, 51, 82, 111, 115, 120, 153, 255}},
    // 1.1 / 7; values -6 -3 -2 0 0 0 2 7
    {"int4_clip", WeightDtype::kInt4Clip, ZeroKind::kNone, 1.1f / 7, 8, {2, 5, 6, 8, 8, 8, 10, 15}},
    // -1.1 / 8, as the extreme is positive; values 7 4 2 0 0 0 -2 -8
    {"int4_fullrange",
     WeightDtype::kInt4Fullrange,
     ZeroKind::kNone,
     -1.1f / 8,
     8,
     {15, 12, 10, 8, 8, 8, 6, 0}},
    // 2 / 15; zero point 6.75; both names mean the same 16 levels
    {"int4_clip_asym",
     WeightDtype::kInt4Clip,
     ZeroKind::kInt,
     2.0f / 15,
     7,
     {0, 3, 5, 7, 7, 7, 9, 15}},
    {"int4_fullrange_asym",
     WeightDtype::kInt4Fullrange,
     ZeroKind::kInt,
     2.0f / 15,
     7,
     {0, 3, 5, 7, 7, 7, 9, 15}},
    {"nf4", WeightDtype::kNf4, ZeroKind::kNone, 1.1f, 8, {1, 3, 4, 7, 7, 7, 10, 15}},
    // 1.1 / 6; values -4.91 -2.73 -1.42 -0.16 0 0.22 1.64 6
    {"fp4_e2m1", WeightDtype::kFp4E2m1, ZeroKind::kNone, 1.1f / 6, 8, {14, 13, 11, 0, 0, 0, 3, 7}},
    {"fp4_e2m1_bnb",
     WeightDtype::kFp4E2m1Bnb,
     ZeroKind::kNone,
     1.1f,
     8,
     {10, 13, 15, 9, 0, 1, 7, 3}},
};

class RtnGolden : public ::testing::TestWithParam<Golden> {};

TEST_P(RtnGolden, ScaleZeroPointAndCodes) {
  const std::vector<float> w = {-0.9f, -0.5f, -0.26f, -0.03f, 0.0f, 0.04f, 0.3f, 1.1f};
  const Golden& golden = GetParam();
  // One group, said in the three possible ways.
  for (const int64_t group_size : {-1, 16, 128}) {
    const QuantizedMatrix matrix = quantize_row(w, {golden.dtype, group_size, golden.zeros, {}});
    EXPECT_EQ(matrix.groups(), 1);
    EXPECT_NEAR(matrix.scales.at(0), golden.scale, std::fabs(golden.scale) * 0x1p-23f);
    EXPECT_EQ(matrix.zero_point(0, 0), static_cast<float>(golden.zero_point));
    EXPECT_EQ(codes_of(matrix), golden.codes);
  }
}

INSTANTIATE_TEST_SUITE_P(All, RtnGolden, ::testing::ValuesIn(kGolden),
                         [](const auto& test) { return test.param.name; });

TEST(Rtn, FullrangeTakesTheSignOfTheExtreme) {
  const QuantScheme scheme{WeightDtype::kInt4Fullrange, -1, {}, {}};
  const auto scale = [&](const std::vector<float>& row) {
    return quantize_row(row, scheme).scales.at(0);
  };
  EXPECT_EQ(scale({1.0f, -0.5f}), -0.125f);
  EXPECT_EQ(scale({-1.0f, 0.5f}), 0.125f);
  EXPECT_EQ(scale({1.0f, -1.0f}), 0.125f) << "positive when both ends are as far";
  EXPECT_EQ(scale({1.0f, 1.0f}), 0.125f) << "which equal weights are, too";
  EXPECT_EQ(codes_of(quantize_row({1.0f, -1.0f}, scheme)), (std::vector<int>{15, 0}));
  EXPECT_EQ(codes_of(quantize_row({1.0f, -0.5f}, scheme)), (std::vector<int>{0, 12}));
}

TEST(Rtn, ClipUsesMinusEightOnlyWithAShrunkScale) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 1, 4096);
  for (const int code : codes_of(quantize_row(w, {WeightDtype::kInt4Clip, 32, {}, {}}))) {
    ASSERT_GE(code, 1);
  }
}

TEST(Rtn, IntegerTiesGoToEven) {
  // Scale 1: the largest weight is 7.
  const QuantizedMatrix matrix = quantize_row({7, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 6.5f},
                                              {WeightDtype::kInt4Clip, -1, {}, {}});
  EXPECT_EQ(codes_of(matrix), (std::vector<int>{15, 8, 10, 10, 8, 6, 6, 14}));
}

// Zero groups: integers as if absmax were 1, asymmetric ones as if the range were [-1, 1]
// (127.49999 in fp32 is int8's zero point before rounding); tables get the scale 0 and the code of
// 0.
TEST(Rtn, GroupsOfZeros) {
  struct Case {
    WeightDtype dtype;
    ZeroKind zeros;
    float scale;
    int zero_point, code;
  };
  const Case cases[] = {
      {WeightDtype::kInt8, ZeroKind::kNone, 1.0f / 127, 128, 128},
      {WeightDtype::kInt4Clip, ZeroKind::kNone, 1.0f / 7, 8, 8},
      {WeightDtype::kInt4Fullrange, ZeroKind::kNone, 1.0f / 8, 8, 8},
      {WeightDtype::kInt8, ZeroKind::kInt, 2.0f / 255, 127, 127},
      {WeightDtype::kInt4Clip, ZeroKind::kInt, 2.0f / 15, 7, 7},
      {WeightDtype::kNf4, ZeroKind::kNone, 0.0f, 8, 7},
      {WeightDtype::kFp4E2m1, ZeroKind::kNone, 0.0f, 8, 0},
      {WeightDtype::kFp4E2m1Bnb, ZeroKind::kNone, 0.0f, 8, 0},
  };
  for (const Case& c : cases) {
    for (const float zero : {0.0f, -0.0f}) {
      // The second group is not zero, and must not be touched by the first.
      std::vector<float> w(32, zero);
      for (size_t k = 16; k < 32; ++k) w[k] = -0.25f;
      const QuantizedMatrix matrix = quantize_row(w, {c.dtype, 16, c.zeros, {}});
      EXPECT_EQ(matrix.scales.at(0), c.scale) << name_of(c.dtype);
      EXPECT_EQ(matrix.zero_point(0, 0), static_cast<float>(c.zero_point)) << name_of(c.dtype);
      for (int64_t k = 0; k < 16; ++k) EXPECT_EQ(matrix.code(0, k), c.code) << name_of(c.dtype);
      std::vector<float> back(32);
      dequantize(matrix, back.data(), 1);
      for (size_t k = 0; k < 16; ++k) EXPECT_EQ(back[k], 0.0f);
      for (size_t k = 16; k < 32; ++k) EXPECT_NEAR(back[k], -0.25f, 1e-7f);
    }
  }
}

TEST(Rtn, AsymmetricRangesContainZero) {
  const QuantScheme scheme{WeightDtype::kInt4Clip, -1, ZeroKind::kInt, {}};
  const QuantizedMatrix positive = quantize_row({3.0f, 1.5f, 2.0f}, scheme);
  EXPECT_EQ(positive.scales.at(0), 3.0f / 15);
  EXPECT_EQ(positive.zero_point(0, 0), 0.0f);
  const QuantizedMatrix negative = quantize_row({-3.0f, -1.5f, -2.0f}, scheme);
  EXPECT_EQ(negative.scales.at(0), 3.0f / 15);
  EXPECT_EQ(negative.zero_point(0, 0), 15.0f);
  EXPECT_EQ(codes_of(negative), (std::vector<int>{0, 7, 5}));
}

}  // namespace
}  // namespace woq::testing
