// SPDX-License-Identifier: Apache-2.0
#include "woq/quant/quantized_matrix.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "support/errors.h"
#include "support/schemes.h"

namespace woq::testing {
namespace {

TEST(QuantizedMatrix, TheEvenElementIsTheLowNibble) {
  QuantizedMatrix matrix = QuantizedMatrix::allocate({WeightDtype::kNf4, -1, {}, {}}, 2, 5);
  ASSERT_EQ(matrix.row_bytes(), 3);
  const uint8_t bytes[6] = {0x21, 0x43, 0x05, 0x76, 0x98, 0x0a};
  std::memcpy(matrix.qweight.data(), bytes, 6);
  for (int64_t k = 0; k < 5; ++k) {
    EXPECT_EQ(matrix.code(0, k), 1 + k);
    EXPECT_EQ(matrix.code(1, k), 6 + k);
  }
}

TEST(QuantizedMatrix, SizesFollowTheScheme) {
  const auto bytes = [](const QuantScheme& scheme) {
    Random random(1);
    return random_hub(random, scheme, 3, 100).bytes();
  };
  // 100 columns in groups of 32: 4 groups. Codes, scales, zero points.
  EXPECT_EQ(bytes({WeightDtype::kInt8, 32, ZeroKind::kNone, ScaleEncoding::kFp32}), 300 + 48);
  EXPECT_EQ(bytes({WeightDtype::kInt4Clip, 32, ZeroKind::kInt, ScaleEncoding::kBf16}),
            150 + 24 + 12);
  EXPECT_EQ(bytes({WeightDtype::kInt4Clip, 32, ZeroKind::kFloat, ScaleEncoding::kFp16}),
            150 + 24 + 48);
  EXPECT_EQ(bytes({WeightDtype::kNf4, -1, ZeroKind::kNone, ScaleEncoding::kDouble}),
            150 + 3 + 4 + 4);
}

TEST(QuantizedMatrix, ZeroPointsAreInCodes) {
  Random random = random_of_test();
  QuantizedMatrix matrix =
      random_hub(random, {WeightDtype::kInt4Clip, 16, ZeroKind::kFloat, {}}, 2, 32);
  matrix.zero_points.as<float>()[3] = 2.75f;
  EXPECT_EQ(matrix.zero_point(1, 1), 2.75f);
  matrix = random_hub(random, {WeightDtype::kInt8, 16, ZeroKind::kInt, {}}, 2, 32);
  matrix.zero_points.data()[2] = 200;
  EXPECT_EQ(matrix.zero_point(1, 0), 200.0f);
  matrix = random_hub(random, {WeightDtype::kInt8, 16, ZeroKind::kNone, {}}, 2, 32);
  EXPECT_EQ(matrix.zero_point(1, 0), 128.0f);
}

TEST(QuantizedMatrix, AllocationChecksSchemeAndShape) {
  EXPECT_THROW(QuantizedMatrix::allocate({WeightDtype::kNf4, 17, {}, {}}, 1, 1), InvalidArgument);
  for (const int64_t bad : {0, -1}) {
    const std::string error =
        error_of<InvalidArgument>([&] { QuantizedMatrix::allocate({}, bad, 4); });
    EXPECT_MENTIONS(error, std::to_string(bad) + " x 4");
    EXPECT_THROW(QuantizedMatrix::allocate({}, 4, bad), InvalidArgument);
  }
}

}  // namespace
}  // namespace woq::testing
