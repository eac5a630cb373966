// SPDX-License-Identifier: Apache-2.0
#include "woq/quant/dequantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "support/schemes.h"

namespace woq::testing {
namespace {

TEST(Dequantize, ByHand) {
  // 40 columns in groups of 32; scales 0.5 and 2, zero points 8 and 3.
  QuantizedMatrix matrix =
      uniform_hub({WeightDtype::kInt4Clip, 32, ZeroKind::kInt, {}}, 1, 40, 0.5f, 10);
  matrix.scales.values.as<float>()[1] = 2.0f;
  matrix.zero_points.data()[1] = 3;
  set_code(&matrix, 0, 39, 0);
  std::vector<float> w(40);
  dequantize_row(matrix, 0, w.data());
  EXPECT_EQ(w[0], 0.5f * (10 - 8));
  EXPECT_EQ(w[31], 0.5f * (10 - 8));
  EXPECT_EQ(w[32], 2.0f * (10 - 3));
  EXPECT_EQ(w[39], 2.0f * (0 - 3));
}

TEST(Dequantize, FloatZeroPointsAreSubtractedInCodes) {
  QuantizedMatrix matrix =
      uniform_hub({WeightDtype::kInt8, -1, ZeroKind::kFloat, {}}, 1, 3, 0.25f, 100);
  matrix.zero_points.as<float>()[0] = 98.5f;
  std::vector<float> w(3);
  dequantize_row(matrix, 0, w.data());
  EXPECT_EQ(w[2], 0.25f * 1.5f);
}

TEST(Dequantize, ColumnsOfScatteredGroupsAndMultipliersByHand) {
  for (const WeightDtype dtype : {WeightDtype::kInt4Clip, WeightDtype::kInt8}) {
    QuantizedMatrix matrix = uniform_hub({dtype, 16, ZeroKind::kInt, {}}, 1, 20, 0.5f, 10);
    matrix.scales.values.as<float>()[1] = 2.0f;
    matrix.zero_points.data()[0] = 4;
    matrix.zero_points.data()[1] = 3;
    matrix.g_idx = Buffer(20 * 4);
    for (int k = 0; k < 20; ++k)
      matrix.g_idx.as<int32_t>()[k] = k == 2 || k == 7 || k == 11 || k == 19 ? 1 : 0;
    std::vector<float> w(20);
    dequantize_row(matrix, 0, w.data());
    EXPECT_EQ(w[0], 0.5f * (10 - 4));
    EXPECT_EQ(w[2], 2.0f * (10 - 3));
    EXPECT_EQ(w[7], 2.0f * (10 - 3));
    EXPECT_EQ(w[9], 0.5f * (10 - 4));
    matrix.act_scales = Buffer(20 * 4);
    for (int k = 0; k < 20; ++k) matrix.act_scales.as<float>()[k] = k == 7 ? 3.0f : 1.0f;
    dequantize_row(matrix, 0, w.data());
    EXPECT_EQ(w[2], 2.0f * (10 - 3));
    EXPECT_EQ(w[7], 2.0f * (10 - 3) * 3);
  }
}

TEST(Dequantize, TablesMultiplyTheirValues) {
  for (const DtypeTraits& dtype : kDtypes) {
    if (dtype.is_integer()) continue;
    for (int code = 0; code < 16; ++code) {
      const QuantizedMatrix matrix = uniform_hub({dtype.dtype, -1, {}, {}}, 1, 1, 0.3f, code);
      float w = 0;
      dequantize_row(matrix, 0, &w);
      EXPECT_EQ(w, 0.3f * dtype.codebook->values[code]) << dtype.name << " " << code;
    }
  }
}

TEST(Dequantize, WholeMatrixIsItsRowsForAnyNumberOfThreads) {
  Random random = random_of_test();
  constexpr int64_t kRows = 251, kCols = 523;  // odd, and worth four threads
  static_assert(kRows * kCols >= 4 * kElementGrain);
  const QuantizedMatrix matrix =
      random_hub(random, {WeightDtype::kInt4Fullrange, 24, ZeroKind::kNone, ScaleEncoding::kDouble},
                 kRows, kCols);
  std::vector<float> rows(kRows * kCols);
  for (int64_t n = 0; n < kRows; ++n) dequantize_row(matrix, n, rows.data() + n * kCols);
  for (int threads = 1; threads <= 4; ++threads) {
    std::vector<float> w(kRows * kCols);
    dequantize(matrix, w.data(), threads);
    EXPECT_EQ(w, rows);
  }
}

// The product is rounded, then the sum: 2^-24 of the product is lost beside the minimum, where one
// fused step would keep it.
TEST(Dequantize, AMinimumIsAddedToTheRoundedProduct) {
  for (const WeightDtype dtype : {WeightDtype::kInt4Clip, WeightDtype::kInt6}) {
    QuantizedMatrix matrix = uniform_hub({dtype, -1, ZeroKind::kMin, {}}, 1, 2, 0.5f, 3);
    set_code(&matrix, 0, 1, 5);
    const float scale = 1.0f + 0x1p-23f, minimum = -5.0f;
    matrix.scales = ScaleTable::encode(&scale, 1, 1, ScaleEncoding::kFp32, false);
    matrix.minima = ScaleTable::encode(&minimum, 1, 1, ScaleEncoding::kFp32, false);
    float out[2];
    dequantize(matrix, out, 1);
    EXPECT_EQ(out[0], static_cast<float>(static_cast<double>(3 * scale) - 5));
    EXPECT_EQ(out[1], 5 * scale - 5.0f);
    EXPECT_NE(out[1], std::fma(5.0f, scale, -5.0f));
  }
}

}  // namespace
}  // namespace woq::testing
