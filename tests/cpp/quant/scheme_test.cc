// SPDX-License-Identifier: Apache-2.0
#include "woq/quant/scheme.h"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "support/errors.h"

namespace woq::testing {
namespace {

TEST(Scheme, GroupSizesAreMinusOneOrMultiplesOfEightFromSixteen) {
  for (int64_t g = -40; g <= 4200; ++g) {
    QuantScheme scheme;
    scheme.group_size = g;
    if (g == -1 || (g >= 16 && g % 8 == 0)) {
      EXPECT_NO_THROW(validate(scheme)) << g;
    } else {
      EXPECT_THROW(validate(scheme), InvalidArgument) << g;
    }
  }
  for (const int64_t g :
       {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}) {
    QuantScheme scheme;
    scheme.group_size = g;
    EXPECT_THROW(validate(scheme), InvalidArgument) << g;
  }
}

TEST(Scheme, AnImpossibleGroupSizeIsNamedWithTheRule) {
  QuantScheme scheme;
  scheme.group_size = 20;
  const std::string error = error_of<InvalidArgument>([&] { validate(scheme); });
  EXPECT_MENTIONS(error, "group_size 20");
  EXPECT_MENTIONS(error, "-1");
  EXPECT_MENTIONS(error, "multiple of 8 from 16 up");
}

TEST(Scheme, OnlyIntegersHaveZeroPoints) {
  for (const DtypeTraits& traits : kDtypes) {
    for (const ZeroKind zeros : {ZeroKind::kInt, ZeroKind::kFloat}) {
      const QuantScheme scheme{traits.dtype, 32, zeros, ScaleEncoding::kFp32};
      if (traits.is_integer()) {
        EXPECT_NO_THROW(validate(scheme)) << traits.name;
      } else {
        const std::string error = error_of<InvalidArgument>([&] { validate(scheme); });
        EXPECT_MENTIONS(error, std::string("'") + traits.name + "'");
        EXPECT_MENTIONS(error, "asymmetric");
      }
    }
  }
}

TEST(Scheme, ScaleEncodingsParse) {
  EXPECT_EQ(parse_scale_encoding("fp32", false), ScaleEncoding::kFp32);
  EXPECT_EQ(parse_scale_encoding("fp16", false), ScaleEncoding::kFp16);
  EXPECT_EQ(parse_scale_encoding("bf16", false), ScaleEncoding::kBf16);
  EXPECT_EQ(parse_scale_encoding("fp32", true), ScaleEncoding::kDouble);
  EXPECT_STREQ(scale_dtype_name(ScaleEncoding::kDouble), "fp32");
  for (const char* half : {"fp16", "bf16"}) {
    EXPECT_STREQ(scale_dtype_name(parse_scale_encoding(half, false)), half);
    const std::string error = error_of<InvalidArgument>([&] { parse_scale_encoding(half, true); });
    EXPECT_MENTIONS(error, half);
    EXPECT_MENTIONS(error, "double quantization");
  }
  for (const bool double_quant : {false, true}) {
    const std::string error =
        error_of<InvalidArgument>([&] { parse_scale_encoding("fp64", double_quant); });
    EXPECT_MENTIONS(error, "'fp64'");
    EXPECT_MENTIONS(error, "fp32, fp16, bf16");
  }
}

TEST(Scheme, GroupsCoverARow) {
  const auto count = [](int64_t group_size, int64_t cols) {
    QuantScheme scheme;
    scheme.group_size = group_size;
    return group_count(scheme, cols);
  };
  EXPECT_EQ(count(-1, 1000), 1);
  EXPECT_EQ(count(32, 1), 1);
  EXPECT_EQ(count(32, 32), 1);
  EXPECT_EQ(count(32, 33), 2);
  EXPECT_EQ(count(32, 96), 3);
  EXPECT_EQ(count(1024, 96), 1) << "larger than K means one group";
  QuantScheme scheme;
  scheme.group_size = 1024;
  EXPECT_EQ(group_length(scheme, 96), 96);
  scheme.group_size = -1;
  EXPECT_EQ(group_length(scheme, 96), 96);
}

}  // namespace
}  // namespace woq::testing
