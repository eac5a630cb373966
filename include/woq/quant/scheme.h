// SPDX-License-Identifier: Apache-2.0
// QuantScheme: how a weight matrix is quantized. Says nothing about instruction sets or compute
// types.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "woq/core/check.h"
#include "woq/core/dtype.h"
#include "woq/core/tensor.h"

namespace woq {

// kInt: an unsigned code per group. kFloat: a real number per group, as HQQ and GGUF's Q4_1 have;
// produced by quantize_hqq().
enum class ZeroKind : uint8_t { kNone, kInt, kFloat };
inline constexpr const char* kZeroKindNames[] = {"none", "int", "float"};

inline const char* name_of(ZeroKind zeros) {
  return kZeroKindNames[static_cast<int>(zeros)];
}

inline ZeroKind parse_zero_kind(std::string_view text) {
  for (const ZeroKind zeros : {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat}) {
    if (text == name_of(zeros)) return zeros;
  }
  fail("unknown kind of zero points '", text, "'; known: none, int, float");
}

// kDouble: 8-bit codes of bitsandbytes' dynamic map, see scales.h.
enum class ScaleEncoding : uint8_t { kFp32, kFp16, kBf16, kDouble };

// The one list of encodings, in the order of the enumeration. `stored` is the type of the tensor
// 'scales'. To add one, add a line here and its numbers to encode_scale() and decode_scale() in
// scales.h.
struct ScaleTraits {
  ScaleEncoding encoding;
  const char* name;
  TensorType stored;
  const char* when_too_large;  // what helps where a scale does not fit

  // Whether a scale is stored by itself. Double quantization looks at all scales of a matrix, and
  // has further tensors (io/stored_matrix.h).
  constexpr bool is_separate() const { return encoding != ScaleEncoding::kDouble; }
};
inline constexpr ScaleTraits kScaleEncodings[] = {
    {ScaleEncoding::kFp32, "fp32", TensorType::kFp32, nullptr},
    {ScaleEncoding::kFp16, "fp16", TensorType::kFp16,
     "fp16, whose largest value is 65504; use scale_dtype 'bf16' or 'fp32'"},
    {ScaleEncoding::kBf16, "bf16", TensorType::kBf16, nullptr},
    {ScaleEncoding::kDouble, "double", TensorType::kUint8, nullptr},
};

constexpr const ScaleTraits& traits_of(ScaleEncoding encoding) {
  return kScaleEncodings[static_cast<int>(encoding)];
}

inline const char* name_of(ScaleEncoding encoding) {
  return traits_of(encoding).name;
}

// Throws InvalidArgument for an unknown name; `only_separate` leaves out double quantization.
inline ScaleEncoding parse_scales(std::string_view text, bool only_separate = false) {
  std::string known;
  for (const ScaleTraits& traits : kScaleEncodings) {
    if (only_separate && !traits.is_separate()) continue;
    if (text == traits.name) return traits.encoding;
    known += concat(known.empty() ? "" : ", ", traits.name);
  }
  fail("unknown scale dtype '", text, "'; known: ", known);
}

struct QuantScheme {
  WeightDtype dtype = WeightDtype::kInt4Clip;
  int64_t group_size = 32;  // along K; -1: one group per row
  ZeroKind zeros = ZeroKind::kNone;
  ScaleEncoding scales = ScaleEncoding::kFp32;

  friend bool operator==(const QuantScheme& a, const QuantScheme& b) {
    return a.dtype == b.dtype && a.group_size == b.group_size && a.zeros == b.zeros &&
           a.scales == b.scales;
  }
  friend bool operator!=(const QuantScheme& a, const QuantScheme& b) { return !(a == b); }
};

inline constexpr int64_t kMinGroupSize = 16;
inline constexpr int64_t kGroupSizeStep = 8;

// The encoding that users name by two settings: the type of the scales, and whether they are
// quantized again, to 8 bits.
inline ScaleEncoding parse_scale_encoding(std::string_view scale_dtype, bool doubly_quantized) {
  const ScaleEncoding encoding = parse_scales(scale_dtype, true);
  if (!doubly_quantized) return encoding;
  if (encoding != ScaleEncoding::kFp32) {
    fail("scale_dtype '", scale_dtype,
         "' and double quantization exclude each other: double-quantized scales are 8-bit codes "
         "with fp32 block "
         "maxima; use scale_dtype 'fp32' or turn double quantization off");
  }
  return ScaleEncoding::kDouble;
}

// The name of the type that scales have before double quantization.
inline const char* scale_dtype_name(ScaleEncoding encoding) {
  return traits_of(encoding).is_separate() ? name_of(encoding) : name_of(ScaleEncoding::kFp32);
}

inline void validate(const QuantScheme& scheme) {
  const int64_t g = scheme.group_size;
  if (g != -1 && (g < kMinGroupSize || g % kGroupSizeStep != 0)) {
    fail("group_size ", g, " is not supported: use -1 (one group per row) or a multiple of ",
         kGroupSizeStep, " from ", kMinGroupSize, " up");
  }
  if (scheme.zeros != ZeroKind::kNone && !traits_of(scheme.dtype).is_integer()) {
    fail("weight dtype '", name_of(scheme.dtype),
         "' has no asymmetric form: its code points are fixed; use scheme 'sym', or an integer "
         "dtype");
  }
}

// Whether scales can be negative: int4_fullrange's, in its symmetric form.
inline bool has_signed_scales(const QuantScheme& scheme) {
  return traits_of(scheme.dtype).signed_scale && scheme.zeros == ZeroKind::kNone;
}

// Elements in a full group of a row of K elements.
inline int64_t group_length(const QuantScheme& scheme, int64_t cols) {
  return scheme.group_size == -1 || scheme.group_size > cols ? cols : scheme.group_size;
}

// Groups per row; the last one is shorter when group_length does not divide K.
inline int64_t group_count(const QuantScheme& scheme, int64_t cols) {
  const int64_t length = group_length(scheme, cols);
  return length == 0 ? 0 : (cols + length - 1) / length;
}

}  // namespace woq
