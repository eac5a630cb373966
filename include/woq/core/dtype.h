// SPDX-License-Identifier: Apache-2.0
// Weight dtypes: number formats only. The one list of them is kDtypes; names, parsers, tables and
// Python's enumerations come from it. To add a 4-bit codebook, add its table to codes.h and a line
// here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "woq/core/check.h"
#include "woq/core/codes.h"

namespace woq {

enum class WeightDtype : uint8_t {
  kInt8,
  kInt4Fullrange,
  kInt4Clip,
  kNf4,
  kFp4E2m1,
  kFp4E2m1Bnb,
  kInt2,
  kInt3,
  kInt5,
  kInt6,
  kInt7,
  kIq4Nl
};

// The hub stores codes as unsigned numbers c in [0, 2^bits).
//   integers : W = scale * (c - zero_point)
//   codebooks: W = scale * codebook->values[c]
// Symmetric matrices of integers store no zero points: theirs is 2^(bits - 1).
struct DtypeTraits {
  WeightDtype dtype;
  const char* name;
  int bits;
  float scale_divisor;  // symmetric scale = absmax / scale_divisor
  bool signed_scale;    // the sign of the scale maps the extreme weight to the most negative code
  const Codebook* codebook;  // nullptr for integers

  constexpr bool is_integer() const { return codebook == nullptr; }
  constexpr int center() const { return 1 << (bits - 1); }
  constexpr int max_code() const { return (1 << bits) - 1; }
};

inline constexpr DtypeTraits kDtypes[] = {
    {WeightDtype::kInt8, "int8", 8, 127.0f, false, nullptr},
    {WeightDtype::kInt4Fullrange, "int4_fullrange", 4, 8.0f, true, nullptr},
    {WeightDtype::kInt4Clip, "int4_clip", 4, 7.0f, false, nullptr},
    {WeightDtype::kNf4, "nf4", 4, 1.0f, false, &kNf4Codebook},
    {WeightDtype::kFp4E2m1, "fp4_e2m1", 4, 6.0f, false, &kFp4E2m1Codebook},
    {WeightDtype::kFp4E2m1Bnb, "fp4_e2m1_bnb", 4, 1.0f, false, &kFp4BnbCodebook},
    {WeightDtype::kInt2, "int2", 2, 1.0f, false, nullptr},
    {WeightDtype::kInt3, "int3", 3, 3.0f, false, nullptr},
    {WeightDtype::kInt5, "int5", 5, 15.0f, false, nullptr},
    {WeightDtype::kInt6, "int6", 6, 31.0f, false, nullptr},
    {WeightDtype::kInt7, "int7", 7, 63.0f, false, nullptr},
    {WeightDtype::kIq4Nl, "iq4_nl", 4, 127.0f, true, &kIq4NlCodebook},
};

struct DtypeAlias {
  const char* alias;
  const char* name;
};
inline constexpr DtypeAlias kDtypeAliases[] = {{"int4", "int4_clip"}, {"fp4", "fp4_e2m1_bnb"}};

constexpr const DtypeTraits& traits_of(WeightDtype dtype) {
  return kDtypes[static_cast<int>(dtype)];
}

inline const char* name_of(WeightDtype dtype) {
  return traits_of(dtype).name;
}

inline WeightDtype parse_weight_dtype(std::string_view text) {
  std::string_view name = text;
  for (const auto& alias : kDtypeAliases) {
    if (text == alias.alias) name = alias.name;
  }
  std::string known;
  for (const auto& traits : kDtypes) {
    if (name == traits.name) return traits.dtype;
    known += concat(known.empty() ? "" : ", ", traits.name);
  }
  for (const auto& alias : kDtypeAliases)
    known += concat(", ", alias.alias, " (= ", alias.name, ")");
  fail("unknown weight dtype '", text, "'; known: ", known);
}

// Value of a code at scale 1 in a symmetric matrix.
constexpr float code_value(const DtypeTraits& traits, int code) {
  return traits.is_integer() ? static_cast<float>(code - traits.center())
                             : traits.codebook->values[code];
}

}  // namespace woq
