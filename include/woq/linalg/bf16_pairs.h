// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 matrices, two of which an instruction of AVX512-BF16 (VDPBF16PS) sums per
// lane: C += A^T B for A and B packed as panels of 16 columns. A panel is [pairs, 16, 2]: two rows
// next to each other.
//
// Every target computes, for each element of C and each pair of rows (2 p, 2 p + 1) in turn:
//     c = c + a(2 p + 1) b(2 p + 1)
//     c = c + a(2 p) b(2 p)
// Products of two bfloat16 numbers are exact in fp32; each of the two sums is rounded to nearest.
// The instruction and the reference take subnormal operands and results as zero. The targets
// without the instruction, which multiply in fp32, keep them. Otherwise all targets' results are
// bit-identical.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "woq/core/float16.h"
#include "woq/simd/region.h"

namespace woq::linalg {

inline constexpr int64_t kPairPanel = 16;

struct Bf16Pairs {
  // Packs columns [0, cols), at most 16, of x [rows, >= cols] with `stride` elements a row as one
  // panel of (rows + 1) / 2 pairs; what is missing is zero. magnitudes [16], where given, get the
  // sum of |x| of each column added.
  void (*pack)(const uint16_t* x, int64_t rows, int64_t cols, int64_t stride, uint32_t* out,
               double* magnitudes);
  // c [16, 16], rows of `stride` floats, += the sum over pairs of a[pair, :]^T b[pair, :].
  void (*multiply)(int64_t pairs, const uint32_t* a, const uint32_t* b, float* c, int64_t stride);
  // Adds a tile [16, 16] to 16 rows of wider sums.
  void (*add_tile)(const float* tile, double* const* rows);
};

}  // namespace woq::linalg

#define WOQ_REGION linalg::pairs
#define WOQ_REGION_CODE "woq/linalg/bf16_pairs-inl.h"
#include "woq/simd/for_each_target.h"

namespace woq::linalg {

inline const Bf16Pairs& bf16_pairs() {
#define WOQ_ROW(name, enumerator)           \
  {                                         \
    Target::enumerator, pairs::name::kPairs \
  }
  static constexpr simd::Choice<Bf16Pairs> kChoices[] = {WOQ_CODE_TARGETS(WOQ_ROW)};
#undef WOQ_ROW
  return simd::select(kChoices).code;
}

}  // namespace woq::linalg
