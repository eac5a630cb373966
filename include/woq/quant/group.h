// SPDX-License-Identifier: Apache-2.0
// One group of weights: its range, scale and zero point, its codes and their error. Every quantizer
// is made of these; the rules are stated in rtn.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "woq/core/float16.h"
#include "woq/quant/scheme.h"

namespace woq {

namespace detail {

// Nearest integer, ties to even, for |x| < 2^22, as two additions that vectorise on any x86-64.
inline float round_half_even(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

inline double round_half_even(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  return (x + kMagic) - kMagic;
}

// x between low and high; low for NaN, which conversions to integers have no result for. Candidates
// of a search whose ranges overflow have such quotients.
template <class T>
inline T clamp_number(T x, T low, T high) {
  x = x > low ? x : low;
  return x > high ? high : x;
}

struct GroupRange {
  float min = 0, max = 0;
  bool finite = true;
};

inline GroupRange range_of(const float* w, int64_t n) {
  GroupRange range{w[0], w[0], true};
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    range.min = w[i] < range.min ? w[i] : range.min;
    range.max = w[i] > range.max ? w[i] : range.max;
    const uint32_t magnitude = float_bits(w[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  range.finite = largest < 0x7f800000u;
  return range;
}

// Scale and, for asymmetric matrices, the real minimum of a group, before any rounding to a stored
// form.
struct GroupParameters {
  float scale = 0, min = 0;
};

inline GroupParameters group_parameters(const QuantScheme& scheme, const GroupRange& range,
                                        float ratio) {
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  if (scheme.zeros == ZeroKind::kInt) {
    float min = std::min(range.min, 0.0f), max = std::max(range.max, 0.0f);
    if (min == 0.0f && max == 0.0f) {
      min = -1.0f;
      max = 1.0f;
    }
    min *= ratio;
    max *= ratio;
    return {(max - min) / static_cast<float>(dtype.max_code()), min};
  }
  float absmax = std::max(std::fabs(range.min), std::fabs(range.max));
  if (absmax == 0.0f && dtype.is_integer()) absmax = 1.0f;
  const float scale = absmax * ratio / dtype.scale_divisor;
  const bool negate = dtype.signed_scale && std::fabs(range.max) > std::fabs(range.min);
  return {negate ? -scale : scale, 0.0f};
}

inline float integer_zero_point(const DtypeTraits& dtype, float min, float scale) {
  const float limit = static_cast<float>(dtype.max_code());
  // A stored scale can have rounded to zero; the group is then stored as its zero point.
  if (scale == 0.0f) return static_cast<float>(dtype.center());
  return round_half_even(clamp_number(-min / scale, 0.0f, limit));
}

// Codes of one group for a scale and zero point (in codes; the centre when symmetric).
inline void encode_group(const DtypeTraits& dtype, const float* w, int64_t n, float scale,
                         float zero, uint8_t* codes) {
  if (dtype.is_integer()) {
    const float low = -zero, high = static_cast<float>(dtype.max_code()) - zero;
    const float divisor = scale == 0.0f ? 1.0f : scale, keep = scale == 0.0f ? 0.0f : 1.0f;
    for (int64_t i = 0; i < n; ++i) {
      // Clamped before rounding: the bounds are integers, so the order makes no difference, and
      // round_half_even needs a small argument.
      const float q = clamp_number(w[i] * keep / divisor, low, high);
      codes[i] = static_cast<uint8_t>(static_cast<int>(round_half_even(q) + zero));
    }
    return;
  }
  const Codebook& book = *dtype.codebook;
  if (scale == 0.0f) {
    std::fill_n(codes, n, encode(book, 0.0f));
    return;
  }
  // Double quantization can turn a scale far below its block's mean negative.
  const float inverse = 1.0f / std::copysign(std::max(std::fabs(scale), 1e-38f), scale);
  for (int64_t i = 0; i < n; ++i)
    codes[i] = encode(book, book.multiply_by_reciprocal ? w[i] * inverse : w[i] / scale);
}

// Codes of one group of integers whose zero point is any number: the nearest to w / scale + zero;
// where that is a whole number that fp32 adds exactly, those of encode_group(), which rounds before
// it adds.
inline void encode_group_float_zero(const DtypeTraits& dtype, const float* w, int64_t n,
                                    float scale, float zero, uint8_t* codes) {
  if (zero == std::floor(zero) && std::fabs(zero) < 0x1p22f) {
    encode_group(dtype, w, n, scale, zero, codes);
    return;
  }
  const auto limit = static_cast<float>(dtype.max_code());
  for (int64_t i = 0; i < n; ++i)
    codes[i] =
        static_cast<uint8_t>(round_half_even(clamp_number(w[i] / scale + zero, 0.0f, limit)));
}

// Codes one weight at a time, as encode_group() does; T is the precision of the quotient.
struct GroupCoder {
  const DtypeTraits* dtype = nullptr;
  float scale = 0, zero = 0, inverse = 0;

  GroupCoder() = default;
  GroupCoder(const DtypeTraits& traits, float group_scale, float group_zero)
      : dtype(&traits), scale(group_scale), zero(group_zero) {
    inverse = 1.0f / std::copysign(std::max(std::fabs(scale), 1e-38f), scale);
  }

  template <class T>
  int encode(T w) const {
    if (dtype->is_integer()) {
      if (scale == 0.0f) return static_cast<int>(zero);
      const T low = -zero, high = static_cast<T>(dtype->max_code()) - zero;
      const T q = clamp_number(w / static_cast<T>(scale), low, high);
      return static_cast<int>(round_half_even(q)) + static_cast<int>(zero);
    }
    const Codebook& book = *dtype->codebook;
    const T x = scale == 0.0f                 ? T(0)
                : book.multiply_by_reciprocal ? w * static_cast<T>(inverse)
                                              : w / static_cast<T>(scale);
    int rank = 0;
    for (const float threshold : book.thresholds) rank += x > static_cast<T>(threshold) ? 1 : 0;
    return book.code_of_rank[rank];
  }

  // What the hub's dequantization gives for a code.
  float value(int code) const {
    return rounded(scale * (dtype->is_integer() ? static_cast<float>(code) - zero
                                                : dtype->codebook->values[code]));
  }
};

// Weighted by `importance` [n] where it is given.
inline double group_squared_error(const DtypeTraits& dtype, const float* w, const uint8_t* codes,
                                  int64_t n, float scale, float zero,
                                  const float* importance = nullptr) {
  float error = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value =
        dtype.is_integer() ? static_cast<float>(codes[i]) - zero : dtype.codebook->values[codes[i]];
    const float difference = w[i] - scale * value;
    error +=
        importance != nullptr ? importance[i] * difference * difference : difference * difference;
  }
  return error;
}

inline float zero_for(const QuantScheme& scheme, const GroupParameters& group, float scale) {
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  return scheme.zeros == ZeroKind::kInt ? integer_zero_point(dtype, group.min, scale)
                                        : static_cast<float>(dtype.center());
}

}  // namespace detail

}  // namespace woq
