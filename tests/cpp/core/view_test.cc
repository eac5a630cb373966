// SPDX-License-Identifier: Apache-2.0
#include "woq/core/view.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "support/matrices.h"

namespace woq::testing {
namespace {

TEST(View, RowsFollowTheStride) {
  for (const FloatType type : kFloatTypes) {
    FloatMatrix matrix(type, 3, 5, 2, 1);
    matrix.set(2, 0, 1.5f);
    const ConstMatrixView view = matrix.view();
    EXPECT_EQ(static_cast<const char*>(view.row(1)) - static_cast<const char*>(view.row(0)),
              7 * size_of(type));
    float value = 0;
    load_floats(view.row(2), type, 1, &value);
    EXPECT_EQ(value, 1.5f) << name_of(type);
  }
}

TEST(View, LoadsAndStoresRoundOnceAndInPlace) {
  const std::vector<float> values = {1.0f, -2.5f, 1.0009765625f, 3e5f, 1e-9f};
  for (const FloatType type : kFloatTypes) {
    FloatMatrix matrix(type, 1, 5, 0, 3);
    store_floats(values.data(), type, 5, matrix.view().data);
    std::vector<float> back(5);
    load_floats(matrix.view().data, type, 5, back.data());
    for (size_t i = 0; i < 5; ++i) {
      const float expected = type == FloatType::kFp32   ? values[i]
                             : type == FloatType::kBf16 ? bf16_to_float(float_to_bf16(values[i]))
                                                        : fp16_to_float(float_to_fp16(values[i]));
      EXPECT_EQ(back[i], expected) << name_of(type);
    }
    EXPECT_EQ(matrix.changed_outside(0, 1, 0, 5), "");
  }
}

// The support class is what canary tests rest on: it must notice a write.
TEST(View, CanariesNoticeAWriteOutside) {
  FloatMatrix matrix(FloatType::kFp32, 2, 3, 1);
  matrix.set(0, 1, 1.0f);
  EXPECT_EQ(matrix.changed_outside(0, 1, 1, 2), "");
  EXPECT_NE(matrix.changed_outside(0, 1, 2, 3), "");
  EXPECT_NE(matrix.changed_outside(1, 2, 1, 2), "");
}

}  // namespace
}  // namespace woq::testing
