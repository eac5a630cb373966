// SPDX-License-Identifier: Apache-2.0
// Round to nearest: every weight takes the closest code of its group's scale.
// - Symmetric integers: scale = absmax / (127 | 8 | 7). int4_fullrange negates it when the largest
//   weight exceeds the smallest in magnitude, so that the extreme becomes code -8; when both signs
//   reach it, or all weights are equal, the scale stays positive.
// - Asymmetric integers: the range [min, max] is forced to contain 0; scale = (max - min) /
//   (2^bits - 1); integer zero point.
// - Codebooks: scale = absmax / largest code value.
// - A group of zeros: as if absmax were 1 (integers; asymmetric: min -1, max 1) or 0 (codebooks).
// Rounding is half to even; these are neural-compressor 2.6's rules for the integers and
// bitsandbytes' for nf4 and fp4. The scale is rounded to its stored form first, and codes are
// chosen for the stored scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/quant/quantized_matrix.h"

namespace woq {

struct RtnOptions {
  // Searches each group's scale for the least squared error over shrunken ranges (neural-compressor
  // has one ratio for a whole layer; one per group is never worse).
  bool mse_search = false;
  std::string name = "weight";  // for messages
};

namespace detail {

// The ratios 1, 1 -+ 1/200, ... 1 -+ 40/200 of the unclipped range. Below 1, as neural-compressor
// searches, clipping pays at 4 bits; above 1 the finer grid of 8 bits can be shifted to where the
// group's weights lie.
inline constexpr int kMseSearchSteps = 40;
inline constexpr float kMseSearchStep = 1.0f / 200.0f;

// Nearest integer, ties to even, for |x| < 2^22, as two additions that vectorise on any x86-64.
inline float round_half_even(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
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
  return round_half_even(std::clamp(-min / scale, 0.0f, limit));
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
      float q = w[i] * keep / divisor;
      q = q < low ? low : q;
      q = q > high ? high : q;
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

inline double group_squared_error(const DtypeTraits& dtype, const float* w, const uint8_t* codes,
                                  int64_t n, float scale, float zero) {
  float error = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value =
        dtype.is_integer() ? static_cast<float>(codes[i]) - zero : dtype.codebook->values[codes[i]];
    const float difference = w[i] - scale * value;
    error += difference * difference;
  }
  return error;
}

inline float zero_for(const QuantScheme& scheme, const GroupParameters& group, float scale) {
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  return scheme.zeros == ZeroKind::kInt ? integer_zero_point(dtype, group.min, scale)
                                        : static_cast<float>(dtype.center());
}

// The parameters with the least squared error; the ratio nearest 1 wins a tie.
inline GroupParameters search_parameters(const QuantScheme& scheme, const GroupRange& range,
                                         const float* w, int64_t n, uint8_t* scratch) {
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  GroupParameters best = group_parameters(scheme, range, 1.0f);
  double best_error = std::numeric_limits<double>::infinity();
  for (int i = 0; i <= 2 * kMseSearchSteps; ++i) {
    const int step = i % 2 == 0 ? i / 2 : -(i + 1) / 2;
    const GroupParameters candidate =
        group_parameters(scheme, range, 1.0f + static_cast<float>(step) * kMseSearchStep);
    const float zero = zero_for(scheme, candidate, candidate.scale);
    encode_group(dtype, w, n, candidate.scale, zero, scratch);
    const double error = group_squared_error(dtype, w, scratch, n, candidate.scale, zero);
    if (error < best_error) {
      best = candidate;
      best_error = error;
    }
  }
  return best;
}

inline void store_codes(const uint8_t* codes, int64_t n, int bits, uint8_t* out) {
  if (bits == 8) {
    std::copy_n(codes, n, out);
    return;
  }
  for (int64_t i = 0; i + 1 < n; i += 2)
    out[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
  if (n % 2 != 0) out[n / 2] = codes[n - 1];
}

[[noreturn]] inline void fail_not_finite(const std::string& name, const float* row, int64_t n,
                                         int64_t cols) {
  int64_t k = 0;
  while (k < cols && (float_bits(row[k]) & 0x7fffffffu) < 0x7f800000u) ++k;
  fail("tensor '", name, "' holds ", row[k] != row[k] ? "NaN" : "an infinite value", " at row ", n,
       ", column ", k,
       "; quantization needs finite weights: repair the checkpoint or exclude the module");
}

}  // namespace detail

// Quantizes weight [N, K]. Throws InvalidArgument for an unsupported scheme, an empty matrix, or a
// NaN or infinite weight (naming tensor, row and column).
inline QuantizedMatrix quantize_rtn(const ConstMatrixView& weight, const QuantScheme& scheme,
                                    const RtnOptions& options = {}, int threads = 0) {
  if (weight.rows < 1 || weight.cols < 1) {
    fail("tensor '", options.name, "' is empty (", weight.rows, " x ", weight.cols,
         "); nothing to quantize");
  }
  if (scheme.zeros == ZeroKind::kFloat)
    fail("round to nearest has no float zero points; use integer ones");
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, weight.rows, weight.cols);
  const DtypeTraits& dtype = matrix.dtype();
  const int64_t length = matrix.group_length(), groups = matrix.groups();
  const auto cols = static_cast<size_t>(weight.cols);
  threads = useful_threads(threads, weight.rows * weight.cols, kElementGrain);

  // Pass 1: ideal parameters. Two passes, because double quantization looks at all scales of the
  // matrix.
  std::vector<detail::GroupParameters> parameters(static_cast<size_t>(weight.rows * groups));
  parallel_for(weight.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> row(cols);
    std::vector<uint8_t> scratch(cols);
    for (int64_t n = begin; n < end; ++n) {
      load_floats(weight.row(n), weight.type, weight.cols, row.data());
      for (int64_t g = 0; g < groups; ++g) {
        const float* w = row.data() + g * length;
        const int64_t size = std::min(length, weight.cols - g * length);
        const detail::GroupRange range = detail::range_of(w, size);
        if (!range.finite) detail::fail_not_finite(options.name, row.data(), n, weight.cols);
        parameters[static_cast<size_t>(n * groups + g)] =
            options.mse_search ? detail::search_parameters(scheme, range, w, size, scratch.data())
                               : detail::group_parameters(scheme, range, 1.0f);
      }
    }
  });

  std::vector<float> ideal(parameters.size());
  for (size_t i = 0; i < ideal.size(); ++i) ideal[i] = parameters[i].scale;
  matrix.scales = ScaleTable::encode(ideal.data(), weight.rows, groups, scheme.scales,
                                     has_signed_scales(scheme));

  // Pass 2: codes for the stored scales.
  parallel_for(weight.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> row(cols);
    std::vector<uint8_t> codes(cols);
    for (int64_t n = begin; n < end; ++n) {
      load_floats(weight.row(n), weight.type, weight.cols, row.data());
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t index = n * groups + g, size = std::min(length, weight.cols - g * length);
        const float scale = matrix.scales.at(index);
        const float zero = detail::zero_for(scheme, parameters[static_cast<size_t>(index)], scale);
        detail::encode_group(dtype, row.data() + g * length, size, scale, zero,
                             codes.data() + g * length);
        if (scheme.zeros == ZeroKind::kInt)
          matrix.zero_points.data()[index] = static_cast<uint8_t>(zero);
      }
      detail::store_codes(codes.data(), weight.cols, dtype.bits, matrix.row(n));
    }
  });
  return matrix;
}

}  // namespace woq
