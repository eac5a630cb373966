// SPDX-License-Identifier: Apache-2.0
// The metric itself, against numbers worked out by hand.
#include "woq/quant/error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/errors.h"
#include "support/matrices.h"
#include "support/schemes.h"

namespace woq::testing {
namespace {

// Every weight of the hub is 2: scale 0.5, code 12.
QuantizedMatrix twos(int64_t rows, int64_t cols) {
  return uniform_hub({WeightDtype::kInt4Clip, -1, {}, {}}, rows, cols, 0.5f, 12);
}

TEST(QuantizationError, ByHand) {
  // Differences 0, 1, -2 and 0.
  const std::vector<float> w = {2, 3, 0, 2};
  const QuantError error = quantization_error(view_of(w.data(), 2, 2), twos(2, 2));
  EXPECT_DOUBLE_EQ(error.mse, 5.0 / 4);
  EXPECT_DOUBLE_EQ(error.max_abs, 2.0);
  EXPECT_DOUBLE_EQ(error.sqnr_db, 10 * std::log10(17.0 / 5.0));
}

TEST(QuantizationError, ExactMatricesHaveInfiniteSqnr) {
  const std::vector<float> w(6, 2.0f);
  const QuantError error = quantization_error(view_of(w.data(), 2, 3), twos(2, 3));
  EXPECT_EQ(error.mse, 0.0);
  EXPECT_EQ(error.max_abs, 0.0);
  EXPECT_EQ(error.sqnr_db, std::numeric_limits<double>::infinity());
}

TEST(QuantizationError, ZeroSignalIsMinusInfinity) {
  const std::vector<float> w(6, 0.0f);
  const QuantError error = quantization_error(view_of(w.data(), 2, 3), twos(2, 3));
  EXPECT_DOUBLE_EQ(error.mse, 4.0);
  EXPECT_EQ(error.sqnr_db, -std::numeric_limits<double>::infinity());
}

TEST(QuantizationError, ReadsTypesAndStrides) {
  for (const FloatType type : kFloatTypes) {
    FloatMatrix w(type, 2, 2, 3, 1);
    w.set(0, 0, 2);
    w.set(0, 1, 3);
    w.set(1, 0, 0);
    w.set(1, 1, 2);
    EXPECT_DOUBLE_EQ(quantization_error(w.view(), twos(2, 2)).mse, 5.0 / 4) << name_of(type);
  }
}

TEST(QuantizationError, DoesNotDependOnTheNumberOfThreads) {
  Random random = random_of_test();
  constexpr int64_t kRows = 251, kCols = 523;  // odd, and worth four threads
  static_assert(kRows * kCols >= 4 * kElementGrain);
  const std::vector<float> w = normal_weights(random, kRows, kCols);
  const QuantizedMatrix matrix = random_hub(random, {WeightDtype::kNf4, 16, {}, {}}, kRows, kCols);
  const QuantError one = quantization_error(view_of(w.data(), kRows, kCols), matrix, 1);
  for (int threads = 2; threads <= 4; ++threads) {
    const QuantError many = quantization_error(view_of(w.data(), kRows, kCols), matrix, threads);
    EXPECT_EQ(many.mse, one.mse);
    EXPECT_EQ(many.sqnr_db, one.sqnr_db);
    EXPECT_EQ(many.max_abs, one.max_abs);
  }
}

TEST(QuantizationError, ShapesMustAgree) {
  const std::vector<float> w(6, 0.0f);
  const std::string error =
      error_of<InvalidArgument>([&] { quantization_error(view_of(w.data(), 2, 3), twos(3, 2)); });
  EXPECT_MENTIONS(error, "2 x 3");
  EXPECT_MENTIONS(error, "3 x 2");
}

}  // namespace
}  // namespace woq::testing
