// SPDX-License-Identifier: Apache-2.0
// Searches for a group's scale and zero point: by squared error, plain or weighted.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "woq/quant/group.h"

namespace woq::detail {

// The ratios 1, 1 -+ 1/200, ... 1 -+ 40/200 of the unclipped range. Below 1, as neural-compressor
// searches, clipping pays at 4 bits; above 1 the finer grid of 8 bits can be shifted to where the
// group's weights lie.
inline constexpr int kMseSearchSteps = 40;
inline constexpr float kMseSearchStep = 1.0f / 200.0f;

// The parameters with the least squared error; the ratio nearest 1 wins a tie. Errors are
// weighted by `importance` [n] where it is given.
inline GroupParameters search_parameters(const QuantScheme& scheme, const GroupRange& range,
                                         const float* w, int64_t n, uint8_t* scratch,
                                         const float* importance = nullptr) {
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  GroupParameters best = group_parameters(scheme, range, 1.0f);
  double best_error = std::numeric_limits<double>::infinity();
  for (int i = 0; i <= 2 * kMseSearchSteps; ++i) {
    const int step = i % 2 == 0 ? i / 2 : -(i + 1) / 2;
    const GroupParameters candidate =
        group_parameters(scheme, range, 1.0f + static_cast<float>(step) * kMseSearchStep);
    const float zero = zero_for(scheme, candidate, candidate.scale);
    encode_group(dtype, w, n, candidate.scale, zero, scratch);
    const double error =
        group_squared_error(dtype, w, scratch, n, candidate.scale, zero, importance);
    if (error < best_error) {
      best = candidate;
      best_error = error;
    }
  }
  return best;
}

// What the least squares of a group's codes say: the scale that minimises sum importance (w - scale
// value)^2 for given codes, and that minimum less sum importance w^2.
struct LeastSquares {
  double scale = 0, gain = 0;
};

inline LeastSquares least_squares(const DtypeTraits& dtype, const float* w, const uint8_t* codes,
                                  int64_t n, float zero, const float* importance) {
  double product = 0, square = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value =
        dtype.is_integer() ? static_cast<float>(codes[i]) - zero : dtype.codebook->values[codes[i]];
    product += static_cast<double>(importance[i] * w[i]) * value;
    square += static_cast<double>(importance[i] * value) * value;
  }
  if (square <= 0) return {};
  return {product / square, product * product / square};
}

// The ratios of the unclipped range that the weighted search starts from. Least squares does the
// fine tuning, so the grid only has to reach every sensible set of codes: coarse at 4 bits; at 8,
// where a step of the range shifts all codes, fine and near 1.
inline constexpr int kWeightedSearchSteps = 30;
inline constexpr float kWeightedSearchFirst = 0.60f, kWeightedSearchStep = 0.02f;
inline constexpr float kWeightedSearchFirst8 = 0.94f, kWeightedSearchStep8 = 0.004f;
inline constexpr int kWeightedSearchRounds = 3;

// The scale (and integer zero point) with the least sum of importance (w - quantized)^2: for each
// candidate range, codes, then the best scale for those codes, and for the winner codes and scale
// in turn. As llama.cpp's quantizers do with an importance matrix, for every dtype. `scratch`: [n].
inline GroupParameters weighted_search(const QuantScheme& scheme, const GroupRange& range,
                                       const float* w, const float* importance, int64_t n,
                                       uint8_t* scratch) {
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  const bool asymmetric = scheme.zeros == ZeroKind::kInt;
  const GroupParameters whole = group_parameters(scheme, range, 1.0f);
  GroupParameters best = whole;
  double best_gain = -std::numeric_limits<double>::infinity();
  float best_zero = zero_for(scheme, whole, whole.scale);
  // Encodes with (scale, zero) and takes the least-squares scale if that is better.
  const auto attempt = [&](float scale, float zero) {
    if (scale == 0.0f || !std::isfinite(scale)) return false;
    encode_group(dtype, w, n, scale, zero, scratch);
    const LeastSquares fit = least_squares(dtype, w, scratch, n, zero, importance);
    const auto refined = static_cast<float>(fit.scale);
    const bool usable = std::isfinite(refined) && (refined > 0 || has_signed_scales(scheme));
    if (!usable || refined == 0.0f || !(fit.gain > best_gain)) return false;
    best_gain = fit.gain;
    best_zero = zero;
    best = {refined, asymmetric ? -zero * refined : 0.0f};
    return true;
  };
  const float first = dtype.bits == 8 ? kWeightedSearchFirst8 : kWeightedSearchFirst;
  const float step = dtype.bits == 8 ? kWeightedSearchStep8 : kWeightedSearchStep;
  for (int i = 0; i <= kWeightedSearchSteps; ++i) {
    const float ratio = first + static_cast<float>(i) * step;
    const GroupParameters candidate = group_parameters(scheme, range, ratio);
    const float zero = zero_for(scheme, candidate, candidate.scale);
    attempt(candidate.scale, zero);
    if (has_signed_scales(scheme)) attempt(-candidate.scale, zero);
    if (!asymmetric) continue;
    if (zero > 0) attempt(candidate.scale, zero - 1);
    if (zero < static_cast<float>(dtype.max_code())) attempt(candidate.scale, zero + 1);
  }
  for (int i = 0; i < kWeightedSearchRounds; ++i) {
    if (!attempt(best.scale, best_zero)) break;
  }
  return best;
}

}  // namespace woq::detail
