// SPDX-License-Identifier: Apache-2.0
// silu(x) = x / (1 + exp(-x)) (Hendrycks & Gimpel, arXiv 1606.08415, section 2), in operations that
// every target rounds alike, so that results stay bit-identical. gemm-inl.h has the same on
// vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "woq/core/float16.h"

namespace woq::kernels {

// exp(t) = 2^n exp(r), n = round(t / ln 2), |r| <= ln 2 / 2; exp(r) by the Taylor polynomial, whose
// first term left out, r^8 / 8!, is below 2^-27. Between the ends, 2^n is a normal number; above,
// silu(x) is x, and below, it is as good as 0 (-5e-37).
inline constexpr float kSiluLowest = -88.0f, kSiluHighest = 87.0f;
inline constexpr float kInverseLn2 = 0x1.715476p+0f;
inline constexpr float kLn2High = 0x1.62e4p-1f;  // n times this is exact
inline constexpr float kLn2Low = 0x1.7f7d1cp-20f;
inline constexpr float kExpTerms[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                                      1.0f / 6,    1.0f / 2,   1.0f,       1.0f};

// Within a few units in the last place between the ends. NaN stays NaN.
inline float silu(float x) {
  if (std::isnan(x)) return x;
  x = std::max(x, kSiluLowest);
  const float t = -std::min(x, kSiluHighest);
  const float n = std::nearbyint(t * kInverseLn2);
  const float r = std::fma(-n, kLn2Low, std::fma(-n, kLn2High, t));
  float p = kExpTerms[0];
  for (int i = 1; i < 8; ++i) p = std::fma(p, r, kExpTerms[i]);
  const float power = bits_float(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return x / std::fma(p, power, 1.0f);
}

}  // namespace woq::kernels
