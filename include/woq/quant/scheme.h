// SPDX-License-Identifier: Apache-2.0
// QuantScheme: how a weight matrix is quantized. Says nothing about instruction sets or compute
// types.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

#include "woq/core/check.h"
#include "woq/core/dtype.h"
#include "woq/core/tensor.h"

namespace woq {

// What a weight has beside its scale, one a group:
//   kNone    nothing
//   kInt     a zero point that is a code
//   kFloat   a zero point that is any number, as HQQ finds them
//   kMin     no zero point, but a minimum that is added after scaling: W = scale * c + minimum, as
//            GGUF's Q4_1, Q5_1, Q2_K, Q4_K and Q5_K have it. No zero point stands for it exactly:
//            -minimum / scale is rounded, and scales of 0 with a minimum occur. Minima are stored
//            as the scales are. Read from files only.
enum class ZeroKind : uint8_t { kNone, kInt, kFloat, kMin };
inline constexpr const char* kZeroKindNames[] = {"none", "int", "float", "min"};

inline const char* name_of(ZeroKind zeros) {
  return kZeroKindNames[static_cast<int>(zeros)];
}

inline ZeroKind parse_zero_kind(std::string_view text) {
  for (int i = 0; i < static_cast<int>(std::size(kZeroKindNames)); ++i) {
    if (text == kZeroKindNames[i]) return static_cast<ZeroKind>(i);
  }
  fail("unknown kind of zero points '", text, "'; known: none, int, float, min");
}

// The last three are read from files only; scales.h defines them all.
//   kDouble    8-bit codes of bitsandbytes' dynamic map
//   kTwoLevel  int8, times a fp16 of 256 columns: GGUF's K types
//   kE8M0      a power of 2 (OCP MX), kE4M3: an 8-bit float; both times a number of the matrix
enum class ScaleEncoding : uint8_t { kFp32, kFp16, kBf16, kDouble, kTwoLevel, kE8M0, kE4M3 };

// How the scales of a matrix depend on each other. kEach: not at all. kDouble: double quantization
// looks at all of them. kTwoLevel: those of 256 columns share a factor. kFactored: all share one.
// All but kEach have further tensors (io/stored_matrix.h).
enum class ScaleForm : uint8_t { kEach, kDouble, kTwoLevel, kFactored };

// The one list of encodings, in the order of the enumeration. `stored` is the type of the tensor
// 'scales'. To add one, add a line here and its numbers to encode_scale() and decode_scale() in
// scales.h.
struct ScaleTraits {
  ScaleEncoding encoding;
  const char* name;
  TensorType stored;
  ScaleForm form;
  const char* when_too_large;  // what helps where a scale does not fit

  // Whether a scale is stored by itself.
  constexpr bool is_separate() const { return form == ScaleForm::kEach; }
};
inline constexpr ScaleTraits kScaleEncodings[] = {
    {ScaleEncoding::kFp32, "fp32", TensorType::kFp32, ScaleForm::kEach, nullptr},
    {ScaleEncoding::kFp16, "fp16", TensorType::kFp16, ScaleForm::kEach,
     "fp16, whose largest value is 65504; use scale_dtype 'bf16' or 'fp32'"},
    {ScaleEncoding::kBf16, "bf16", TensorType::kBf16, ScaleForm::kEach, nullptr},
    {ScaleEncoding::kDouble, "double", TensorType::kUint8, ScaleForm::kDouble, nullptr},
    {ScaleEncoding::kTwoLevel, "two_level", TensorType::kInt8, ScaleForm::kTwoLevel, nullptr},
    {ScaleEncoding::kE8M0, "e8m0", TensorType::kUint8, ScaleForm::kFactored, nullptr},
    {ScaleEncoding::kE4M3, "e4m3", TensorType::kUint8, ScaleForm::kFactored, nullptr},
};

// Columns that share a factor of two-level scales.
inline constexpr int64_t kSuperBlock = 256;

constexpr const ScaleTraits& traits_of(ScaleEncoding encoding) {
  return kScaleEncodings[static_cast<int>(encoding)];
}

inline const char* name_of(ScaleEncoding encoding) {
  return traits_of(encoding).name;
}

// Throws InvalidArgument for an unknown name. `but_double` leaves out double quantization, which
// users ask for by a setting of its own; the error then names what quantizers write.
inline ScaleEncoding parse_scales(std::string_view text, bool but_double = false) {
  std::string known;
  for (const ScaleTraits& traits : kScaleEncodings) {
    if (but_double && traits.encoding == ScaleEncoding::kDouble) continue;
    if (text == traits.name) return traits.encoding;
    if (!but_double || traits.is_separate())
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
  return encoding == ScaleEncoding::kDouble ? name_of(ScaleEncoding::kFp32) : name_of(encoding);
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
  if (scheme.scales == ScaleEncoding::kTwoLevel && (g == -1 || kSuperBlock % g != 0)) {
    fail("two-level scales need a group_size that divides ", kSuperBlock, ", got ", g);
  }
  const ScaleForm form = traits_of(scheme.scales).form;
  if (scheme.zeros == ZeroKind::kMin && form != ScaleForm::kEach && form != ScaleForm::kTwoLevel) {
    fail("minima are stored as the scales are, and '", name_of(scheme.scales),
         "' has no place for them; use fp32, fp16, bf16 or two_level");
  }
}

// Throws InvalidArgument for a scheme that no quantizer writes: it is read from files.
inline void check_written(const QuantScheme& scheme, const char* quantizer) {
  if (scheme.zeros == ZeroKind::kMin)
    fail(quantizer, " writes no minima, which are read from files; use zero points");
  if (traits_of(scheme.scales).form == ScaleForm::kTwoLevel ||
      traits_of(scheme.scales).form == ScaleForm::kFactored) {
    fail(quantizer, " writes no scales in '", name_of(scheme.scales),
         "', which are read from files; use fp32, fp16, bf16 or double quantization");
  }
}

// Groups that share a factor, and factors of a row of `groups` groups; two-level scales only.
inline int64_t groups_in_super_block(const QuantScheme& scheme) {
  return kSuperBlock / scheme.group_size;
}
inline int64_t super_blocks(const QuantScheme& scheme, int64_t groups) {
  const int64_t each = groups_in_super_block(scheme);
  return (groups + each - 1) / each;
}

// Whether quantizers make negative scales: int4_fullrange's, in its symmetric form. Scales that are
// read from files can have either sign in any scheme; only double quantization, which keeps signs
// apart, asks.
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
