// SPDX-License-Identifier: Apache-2.0
// QuantScheme: how a weight matrix is quantized. Says nothing about instruction sets or compute
// types.
#pragma once

#include <cstdint>
#include <string_view>

#include "woq/core/check.h"
#include "woq/core/dtype.h"

namespace woq {

// kInt: an unsigned code per group. kFloat: a real number per group, as HQQ and GGUF's Q4_1 have;
// produced by quantize_hqq().
enum class ZeroKind : uint8_t { kNone, kInt, kFloat };

// kDouble: 8-bit codes of bitsandbytes' dynamic map, see scales.h.
enum class ScaleEncoding : uint8_t { kFp32, kFp16, kBf16, kDouble };

struct QuantScheme {
  WeightDtype dtype = WeightDtype::kInt4Clip;
  int64_t group_size = 32;  // along K; -1: one group per row
  ZeroKind zeros = ZeroKind::kNone;
  ScaleEncoding scales = ScaleEncoding::kFp32;
};

inline constexpr int64_t kMinGroupSize = 16;
inline constexpr int64_t kGroupSizeStep = 8;

inline ScaleEncoding parse_scale_encoding(std::string_view scale_dtype, bool double_quant) {
  ScaleEncoding encoding = ScaleEncoding::kFp32;
  if (scale_dtype == "fp16") {
    encoding = ScaleEncoding::kFp16;
  } else if (scale_dtype == "bf16") {
    encoding = ScaleEncoding::kBf16;
  } else if (scale_dtype != "fp32") {
    fail("unknown scale dtype '", scale_dtype, "'; known: fp32, fp16, bf16");
  }
  if (!double_quant) return encoding;
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
  return encoding == ScaleEncoding::kFp16   ? "fp16"
         : encoding == ScaleEncoding::kBf16 ? "bf16"
                                            : "fp32";
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
