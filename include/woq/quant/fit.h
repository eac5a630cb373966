// SPDX-License-Identifier: Apache-2.0
// The sums of a least squares fit x ~ s v, where v is x / scale rounded to given values: the inner
// loop of the searches for scales, for the registers that this CPU has.
#pragma once

#include <cstdint>

#include "woq/simd/region.h"

namespace woq::quant {

// sum weight x v and sum weight v^2: the best s is product / square, and it lowers sum weight (x -
// s v)^2 to sum weight x^2 - product^2 / square.
struct FitSums {
  float product = 0, square = 0;
};

}  // namespace woq::quant

#define WOQ_REGION quant::fits
#define WOQ_REGION_CODE "woq/quant/fit-inl.h"
#include "woq/simd/for_each_target.h"

namespace woq::quant {

// Lengths are multiples of this: callers pad with weights of 0.
inline constexpr int64_t kFitStep = 16;

struct FitKernel {
  FitSums (*integers)(int64_t n, const float* x, const float* weights, float inverse, float low,
                      float high) = nullptr;
  FitSums (*table)(int64_t n, const float* x, const float* weights, float inverse,
                   const float* values, const float* thresholds) = nullptr;
};

// That of the widest registers.
inline FitKernel fit_kernel() {
#define WOQ_ROW(name, enumerator)                     \
  {                                                   \
    Target::enumerator, {                             \
      fits::name::fit_integers, fits::name::fit_table \
    }                                                 \
  }
  static constexpr simd::Choice<FitKernel> kChoices[] = {WOQ_CODE_TARGETS(WOQ_ROW)};
#undef WOQ_ROW
  return simd::select(kChoices).code;
}

}  // namespace woq::quant
