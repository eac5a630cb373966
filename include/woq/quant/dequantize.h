// SPDX-License-Identifier: Apache-2.0
// Dequantization, written once: the definition that every kernel is measured against.
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
  }
}

inline void dequantize_grouped_row(const QuantizedMatrix& matrix, int64_t n, float* out) {
  const DtypeTraits& dtype = matrix.dtype();
  const int64_t length = matrix.group_length(), groups = matrix.groups();
  const uint8_t* const row = matrix.row(n);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * length, end = std::min(matrix.cols, begin + length);
    const float scale = matrix.scales.at(n, g), zero = matrix.zero_point(n, g);
    if (dtype.bits == 8) {
      for (int64_t k = begin; k < end; ++k) out[k] = scale * (static_cast<float>(row[k]) - zero);
      continue;
    }
    float values[16];  // of this group's codes
    for (int code = 0; code < 16; ++code) {
      values[code] = scale * (dtype.is_integer() ? static_cast<float>(code) - zero
                                                 : dtype.codebook->values[code]);
    }
    // Groups start at even k.
    for (int64_t k = begin; k + 1 < end; k += 2) {
      out[k] = values[row[k / 2] & 15];
      out[k + 1] = values[row[k / 2] >> 4];
    }
    if (end % 2 != 0) out[end - 1] = values[row[end / 2] & 15];
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

// Writes W [N, K], row stride K.
inline void dequantize(const QuantizedMatrix& matrix, float* out, int threads = 0) {
  threads = useful_threads(threads, matrix.rows * matrix.cols, kElementGrain);
  parallel_for(matrix.rows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) dequantize_row(matrix, n, out + n * matrix.cols);
  });
}

}  // namespace woq
