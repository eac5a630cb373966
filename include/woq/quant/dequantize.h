// SPDX-License-Identifier: Apache-2.0
// Dequantization, written once: the definition that every kernel is measured against. A weight is
// s t, or where the matrix has minima s t + m, with t = c - z or a codebook's value: the product is
// rounded to fp32, then the sum.
#pragma once

#include <algorithm>
#include <cstdint>

#include "woq/core/parallel.h"
#include "woq/quant/quantized_matrix.h"

namespace woq {

namespace detail {

// Row n of a matrix with g_idx: the columns of a group are not adjacent.
inline void dequantize_scattered_row(const QuantizedMatrix& matrix, int64_t n, float* out) {
  const DtypeTraits& dtype = matrix.dtype();
  for (int64_t k = 0; k < matrix.cols; ++k) {
    const int64_t g = matrix.group_of(k);
    const int code = matrix.code(n, k);
    const float value = dtype.is_integer() ? static_cast<float>(code) - matrix.zero_point(n, g)
                                           : dtype.codebook->values[code];
    out[k] = matrix.scales.at(n, g) * value;
    if (matrix.scheme.zeros == ZeroKind::kMin) out[k] = rounded(out[k]) + matrix.minima.at(n, g);
  }
}

// A sum of its own, rounded twice in all: not one fused step.
inline void add_minimum(float minimum, int64_t begin, int64_t end, float* out) {
  for (int64_t k = begin; k < end; ++k) out[k] = rounded(out[k]) + minimum;
}

// Codes of which a group's values are computed once and looked up. Larger sets of codes, all of
// them integers, would cost more than the group has weights.
inline constexpr int kTableCodes = 16;

inline void dequantize_grouped_row(const QuantizedMatrix& matrix, int64_t n, float* out) {
  const DtypeTraits& dtype = matrix.dtype();
  const int64_t length = matrix.group_length(), groups = matrix.groups();
  const uint8_t* const row = matrix.row(n);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * length, end = std::min(matrix.cols, begin + length);
    const float scale = matrix.scales.at(n, g), zero = matrix.zero_point(n, g);
    const bool has_minima = matrix.scheme.zeros == ZeroKind::kMin;
    if (dtype.max_code() >= kTableCodes) {
      for_each_code(row, begin, end, dtype.bits, [&](int64_t k, int code) {
        out[k] = scale * (static_cast<float>(code) - zero);
      });
      if (has_minima) add_minimum(matrix.minima.at(n, g), begin, end, out);
      continue;
    }
    float values[kTableCodes];  // of this group's codes
    for (int code = 0; code <= dtype.max_code(); ++code) {
      values[code] = scale * (dtype.is_integer() ? static_cast<float>(code) - zero
                                                 : dtype.codebook->values[code]);
    }
    if (has_minima) add_minimum(matrix.minima.at(n, g), 0, dtype.max_code() + 1, values);
    for_each_code(row, begin, end, dtype.bits, [&](int64_t k, int code) { out[k] = values[code]; });
  }
}

}  // namespace detail

// Writes row n of W, elements [0, K), to out. This is the weight that the matrix stands for:
// act_scales are multiplied in.
inline void dequantize_row(const QuantizedMatrix& matrix, int64_t n, float* out) {
  if (matrix.g_idx.size() > 0) {
    detail::dequantize_scattered_row(matrix, n, out);
  } else {
    detail::dequantize_grouped_row(matrix, n, out);
  }
  if (matrix.act_scales.size() > 0) {
    for (int64_t k = 0; k < matrix.cols; ++k) out[k] *= matrix.act_scales.as<float>()[k];
  }
}

// Writes rows [begin, end) of W, row stride K. Throws InvalidArgument for rows that W lacks.
inline void dequantize_rows(const QuantizedMatrix& matrix, int64_t begin, int64_t end, float* out,
                            int threads = 0) {
  if (begin < 0 || begin > end || end > matrix.rows)
    fail("rows [", begin, ", ", end, ") are not those of a matrix of ", matrix.rows, " rows");
  threads = useful_threads(threads, (end - begin) * matrix.cols, kElementGrain);
  parallel_for(end - begin, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) dequantize_row(matrix, begin + i, out + i * matrix.cols);
  });
}

// Writes W [N, K], row stride K.
inline void dequantize(const QuantizedMatrix& matrix, float* out, int threads = 0) {
  dequantize_rows(matrix, 0, matrix.rows, out, threads);
}

}  // namespace woq
