// SPDX-License-Identifier: Apache-2.0
// What fuzzers of readers require of a matrix that a reader has made.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "fuzz_support.h"
#include "woq/pack/pack.h"
#include "woq/quant/dequantize.h"

namespace woq::fuzz {

inline std::vector<float> dequantized(const QuantizedMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, out.data(), 1);
  return out;
}

// It dequantizes to finite numbers, the same after it was packed and unpacked.
inline void require_usable(const QuantizedMatrix& matrix) {
  const std::vector<float> weight = dequantized(matrix);
  for (const float w : weight) require(std::isfinite(w));
  const std::vector<float> again = dequantized(unpack(pack(matrix, 1), 1));
  require(std::memcmp(weight.data(), again.data(), weight.size() * sizeof(float)) == 0);
}

}  // namespace woq::fuzz
