// SPDX-License-Identifier: Apache-2.0
// Searches for a group's scale and zero point: by squared error, plain or weighted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "woq/quant/fit.h"
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

// The ratios of the unclipped range that the weighted search starts from. Least squares does the
// fine tuning, so the grid only has to reach every sensible set of codes: coarse at 4 bits and
// fewer; at more, where a step of the range shifts all codes, fine and near 1.
inline constexpr int kWeightedSearchSteps = 30;
inline constexpr float kWeightedSearchFirst = 0.60f, kWeightedSearchStep = 0.02f;
inline constexpr float kWeightedSearchFirst8 = 0.94f, kWeightedSearchStep8 = 0.004f;
inline constexpr int kWeightedSearchRounds = 3;

// The scale (and integer zero point) with the least sum of weight (w - quantized)^2: for each
// candidate range, codes, then the best scale for those codes, and for the winner codes and scale
// in turn. As llama.cpp's quantizers do with an importance matrix, for every dtype. Holds room for
// one group: one object for each thread.
class WeightedSearch {
 public:
  WeightedSearch(const QuantScheme& scheme, int64_t group_length)
      : scheme_(scheme), dtype_(traits_of(scheme.dtype)), kernel_(quant::fit_kernel()) {
    const int64_t padded = (group_length + quant::kFitStep - 1) / quant::kFitStep * quant::kFitStep;
    w_.resize(static_cast<size_t>(padded));
    weights_.resize(w_.size());
    signed_scales_ = has_signed_scales(scheme);
    if (dtype_.is_integer()) return;
    float sum = 0;
    for (int rank = 0; rank < 16; ++rank) {
      values_[rank] = dtype_.codebook->values[dtype_.codebook->code_of_rank[rank]];
      sum += values_[rank];
    }
    // nf4 has one value more above zero than below. Doubly quantized scales are near their mean.
    signed_scales_ = sum != 0 && scheme.scales != ScaleEncoding::kDouble;
  }

  // For the group w [n], whose errors count by `weights` [n].
  GroupParameters search(const GroupRange& range, const float* w, const float* weights, int64_t n) {
    length_ = (n + quant::kFitStep - 1) / quant::kFitStep * quant::kFitStep;
    std::copy_n(w, n, w_.data());
    std::copy_n(weights, n, weights_.data());
    std::fill(w_.begin() + n, w_.begin() + length_, 0.0f);
    std::fill(weights_.begin() + n, weights_.begin() + length_, 0.0f);
    best_ = group_parameters(scheme_, range, 1.0f);
    best_zero_ = zero_for(scheme_, best_, best_.scale);
    gain_ = -1;
    const bool asymmetric = scheme_.zeros == ZeroKind::kInt;
    const bool fine = dtype_.bits > 4;
    const float first = fine ? kWeightedSearchFirst8 : kWeightedSearchFirst;
    const float step = fine ? kWeightedSearchStep8 : kWeightedSearchStep;
    for (int i = 0; i <= kWeightedSearchSteps; ++i) {
      const GroupParameters candidate =
          group_parameters(scheme_, range, first + static_cast<float>(i) * step);
      const float zero = zero_for(scheme_, candidate, candidate.scale);
      attempt(candidate.scale, zero);
      if (signed_scales_) attempt(-candidate.scale, zero);
      if (!asymmetric) continue;
      if (zero > 0) attempt(candidate.scale, zero - 1);
      if (zero < static_cast<float>(dtype_.max_code())) attempt(candidate.scale, zero + 1);
    }
    for (int i = 0; i < kWeightedSearchRounds; ++i) {
      if (!attempt(best_.scale, best_zero_)) break;
    }
    return best_;
  }

 private:
  // Takes the least-squares scale of the codes that (scale, zero) gives, if it is better.
  bool attempt(float scale, float zero) {
    const float inverse = 1.0f / scale;
    if (!std::isfinite(inverse)) return false;
    const quant::FitSums fit =
        dtype_.is_integer() ? kernel_.integers(length_, w_.data(), weights_.data(), inverse, -zero,
                                               static_cast<float>(dtype_.max_code()) - zero)
                            : kernel_.table(length_, w_.data(), weights_.data(), inverse, values_,
                                            dtype_.codebook->thresholds);
    const float refined = fit.product / fit.square;
    const float gain = fit.product * refined;
    // NaN, as the quotient of two zeros is, compares as false.
    const bool usable =
        std::fabs(refined) > 0 && std::isfinite(refined) && (refined > 0 || signed_scales_);
    if (!usable || !(gain > gain_)) return false;
    gain_ = gain;
    best_zero_ = zero;
    best_ = {refined, scheme_.zeros == ZeroKind::kInt ? -zero * refined : 0.0f};
    return true;
  }

  QuantScheme scheme_;
  const DtypeTraits& dtype_;
  quant::FitKernel kernel_;
  bool signed_scales_ = false;  // whether a negative scale can be better, and be stored
  float values_[16] = {};       // of the codebook, ascending
  std::vector<float> w_, weights_;
  int64_t length_ = 0;
  GroupParameters best_;
  float best_zero_ = 0, gain_ = -1;  // gain: what the fit takes from sum weight w^2
};

}  // namespace woq::detail
