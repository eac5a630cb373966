// SPDX-License-Identifier: Apache-2.0
// The sums of a least squares fit x ~ s v, where v is x / scale rounded to given values: the inner
// loop of the searches for scales, for the registers that this CPU has.
#pragma once

#include <cstdint>

#include "woq/core/cpu.h"
#include "woq/core/target.h"

namespace woq {

// product = sum of weight x v, square = sum of weight v^2. With the best s, product / square,
// the sum of weight (x - s v)^2 is (the sum of weight x^2) - product^2 / square.
struct FitSums {
  float product = 0, square = 0;
};

}  // namespace woq

#define WOQ_FIT_NS ref
#define WOQ_FIT_TARGET
#define WOQ_FIT_BYTES 16
#include "woq/linalg/fit-inl.h"

#if WOQ_X86
#define WOQ_FIT_NS avx2
#define WOQ_FIT_TARGET __attribute__((target("avx2,fma")))
#define WOQ_FIT_BYTES 32
#include "woq/linalg/fit-inl.h"

#define WOQ_FIT_NS avx512
#define WOQ_FIT_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define WOQ_FIT_BYTES 64
#include "woq/linalg/fit-inl.h"
#endif

namespace woq {

// Lengths are multiples of this: callers pad with weights of 0.
inline constexpr int64_t kFitStep = 16;

struct FitKernel {
  FitSums (*integers)(int64_t n, const float* x, const float* weights, float inverse, float low,
                      float high) = nullptr;
  FitSums (*table)(int64_t n, const float* x, const float* weights, float inverse,
                   const float* values, const float* thresholds) = nullptr;
};

// That of the widest registers; WOQ_FORCE_TARGET caps it, as it caps the kernels.
inline FitKernel fit_kernel() {
#if WOQ_X86
  const CpuFeatureSet usable = usable_features(forced_target());
  if (runs_on(Target::kAvx512, usable)) return {avx512::fit_integers, avx512::fit_table};
  if (runs_on(Target::kAvx2, usable)) return {avx2::fit_integers, avx2::fit_table};
#endif
  return {ref::fit_integers, ref::fit_table};
}

}  // namespace woq
