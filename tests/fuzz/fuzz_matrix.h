// SPDX-License-Identifier: Apache-2.0
// What fuzzers of readers require of a matrix that a reader has made. The bodies are in
// fuzz_matrix.cc, which is compiled without the instrumentation that guides a fuzzer: what branches
// packing has says nothing of the reader, and following them takes ten times as long.
#pragma once

#include <cstdint>
#include <vector>

#include "fuzz_support.h"
#include "woq/quant/quantized_matrix.h"

namespace woq::fuzz {

// Larger matrices are read, and not computed with: they have no other groups or tails than smaller
// ones, and an input of 255 x 255 would be as long as a hundred others.
inline constexpr int64_t kMostElements = 1 << 12;

inline bool is_small(const QuantizedMatrix& matrix) {
  return matrix.cols == 0 || matrix.rows <= kMostElements / matrix.cols;
}

std::vector<float> dequantized(const QuantizedMatrix& matrix);

QuantizedMatrix packed_and_unpacked(const QuantizedMatrix& matrix);

// It dequantizes to finite numbers, the same after it was packed and unpacked.
void require_usable(const QuantizedMatrix& matrix);

}  // namespace woq::fuzz
