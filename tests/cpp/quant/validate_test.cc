// SPDX-License-Identifier: Apache-2.0
#include "woq/quant/validate.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "support/errors.h"
#include "support/schemes.h"
#include "woq/quant/make.h"

namespace woq::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::string error_of_matrix(const QuantizedMatrix& matrix) {
  return error_of<InvalidArgument>([&] { validate(matrix); });
}

TEST(Validate, WhatQuantizersMakeIsValid) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const QuantScheme& scheme : schemes_of(dtype)) {
      QuantizedMatrix hub = random_hub(random, scheme, 5, 43);
      scatter_groups(random, &hub);
      scale_inputs(random, &hub);
      EXPECT_NO_THROW(validate(hub)) << describe(hub);
    }
  }
}

TEST(Validate, NamesEverythingThatIsWrong) {
  Random random = random_of_test();
  QuantizedMatrix hub =
      random_hub(random, {WeightDtype::kInt4Clip, 16, ZeroKind::kInt, ScaleEncoding::kFp32}, 4, 40);
  scatter_groups(random, &hub);
  scale_inputs(random, &hub);
  hub.scales.values.as<float>()[4] = kNan;
  hub.scales.values.as<float>()[7] = std::numeric_limits<float>::infinity();
  hub.zero_points.data()[11] = 16;
  hub.g_idx.as<int32_t>()[9] = 3;
  hub.act_scales.as<float>()[39] = 0;
  const std::string error = error_of_matrix(hub);
  EXPECT_MENTIONS(error, "4 things are wrong");
  EXPECT_MENTIONS(error, "'scales' decodes to nan at row 1, group 1 (and at 1 more place)");
  EXPECT_MENTIONS(error, "'zero_points' holds 16 at row 3, group 2; the largest code of int4_clip");
  EXPECT_MENTIONS(error, "g_idx[9] is 3, but there are 3 groups");
  EXPECT_MENTIONS(error, "'act_scales' holds 0 at column 39");
}

TEST(Validate, FloatZeroPointsAreFinite) {
  Random random = random_of_test();
  QuantizedMatrix hub =
      random_hub(random, {WeightDtype::kInt8, 16, ZeroKind::kFloat, ScaleEncoding::kBf16}, 2, 32);
  hub.zero_points.as<float>()[3] = kNan;
  EXPECT_MENTIONS(error_of_matrix(hub), "'zero_points' holds nan at row 1, group 1");
}

TEST(Validate, GroupsAreFull) {
  Random random = random_of_test();
  const QuantizedMatrix hub = random_hub(random, {WeightDtype::kNf4, 16, {}, {}}, 2, 40);
  std::vector<int32_t> g_idx(40, 0);
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { with_g_idx(hub, g_idx.data()); }),
                  "more than 16 columns into group 0");
  EXPECT_EQ(with_g_idx(hub, nullptr).group_of(39), 2);
}

TEST(Validate, TensorsHaveTheirSizes) {
  Random random = random_of_test();
  QuantizedMatrix hub =
      random_hub(random, {WeightDtype::kInt4Fullrange, 16, {}, ScaleEncoding::kDouble}, 3, 32);
  hub.qweight = Buffer(7);
  hub.scales.signs = Buffer();
  hub.act_scales = Buffer(4);
  const std::string error = error_of_matrix(hub);
  EXPECT_MENTIONS(error, "'qweight' has 7 bytes, expected 48");
  EXPECT_MENTIONS(error, "'scales_sign' has 0 bytes, expected 1");
  EXPECT_MENTIONS(error, "'act_scales' has 4 bytes, expected 128");
}

TEST(Problems, ListsAreBounded) {
  Problems problems;
  EXPECT_NO_THROW(problems.check());
  problems.add("the first");
  EXPECT_EQ(problems.text(), "the first");
  for (int i = 2; i <= 20; ++i) problems.add("number ", i);
  const std::string error = error_of<InvalidArgument>([&] { problems.check(); });
  EXPECT_MENTIONS(error, "20 things are wrong");
  EXPECT_MENTIONS(error, "number 16");
  EXPECT_EQ(error.find("number 17"), std::string::npos);
  EXPECT_MENTIONS(error, "and 4 more");
}

}  // namespace
}  // namespace woq::testing
