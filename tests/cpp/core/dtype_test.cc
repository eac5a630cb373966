// SPDX-License-Identifier: Apache-2.0
#include "woq/core/dtype.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "support/errors.h"

namespace woq::testing {
namespace {

TEST(Dtype, NamesParseBackAndAreDistinct) {
  std::set<std::string> names;
  for (const DtypeTraits& traits : kDtypes) {
    EXPECT_EQ(parse_weight_dtype(traits.name), traits.dtype);
    EXPECT_EQ(&traits_of(traits.dtype), &traits);
    EXPECT_STREQ(name_of(traits.dtype), traits.name);
    names.insert(traits.name);
  }
  EXPECT_EQ(names, (std::set<std::string>{"int8", "int4_fullrange", "int4_clip", "nf4", "fp4_e2m1",
                                          "fp4_e2m1_bnb", "int2", "int3", "int5", "int6", "int7",
                                          "iq4_nl"}));
}

TEST(Dtype, AliasesAreThePublicOnes) {
  EXPECT_EQ(parse_weight_dtype("int4"), WeightDtype::kInt4Clip);
  EXPECT_EQ(parse_weight_dtype("fp4"), WeightDtype::kFp4E2m1Bnb);
  EXPECT_EQ(std::size(kDtypeAliases), 2u);
}

TEST(Dtype, AnUnknownNameListsTheKnownOnes) {
  for (const std::string name : {"", "int9", "INT8", "int4_clip ", "nf4\n"}) {
    const std::string error = error_of<InvalidArgument>([&] { parse_weight_dtype(name); });
    EXPECT_MENTIONS(error, "'" + name + "'");
    for (const DtypeTraits& traits : kDtypes) EXPECT_MENTIONS(error, traits.name);
    for (const DtypeAlias& alias : kDtypeAliases) EXPECT_MENTIONS(error, alias.alias);
  }
}

TEST(Dtype, IntegerCodesAreOffsetBinary) {
  const DtypeTraits& int8 = traits_of(WeightDtype::kInt8);
  EXPECT_EQ(int8.center(), 128);
  EXPECT_EQ(int8.max_code(), 255);
  for (int c = 0; c < 256; ++c) EXPECT_EQ(code_value(int8, c), static_cast<float>(c - 128));
  for (const WeightDtype dtype : {WeightDtype::kInt4Clip, WeightDtype::kInt4Fullrange}) {
    EXPECT_EQ(traits_of(dtype).center(), 8);
    EXPECT_EQ(traits_of(dtype).max_code(), 15);
    for (int c = 0; c < 16; ++c) {
      EXPECT_EQ(code_value(traits_of(dtype), c), static_cast<float>(c - 8));
    }
  }
}

TEST(Dtype, TraitsFitTheTables) {
  for (const DtypeTraits& traits : kDtypes) {
    if (traits.is_integer()) continue;
    EXPECT_EQ(traits.bits, 4);
    float largest = 0;
    for (int c = 0; c < 16; ++c) {
      EXPECT_EQ(code_value(traits, c), traits.codebook->values[c]);
      // A signed scale brings the extreme weight to the most negative value.
      const float value = traits.codebook->values[c];
      largest = std::max(largest, traits.signed_scale ? -value : value);
    }
    EXPECT_EQ(traits.scale_divisor, largest) << "absmax must map to the largest value";
  }
}

}  // namespace
}  // namespace woq::testing
