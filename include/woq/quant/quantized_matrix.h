// SPDX-License-Identifier: Apache-2.0
// QuantizedMatrix, the hub: what readers produce, quantizers fill, writers and pack() consume. Free
// of any instruction set. W is [N, K] with N = out_features, K = in_features, K contiguous.
#pragma once

#include <cstdint>

#include "woq/core/buffer.h"
#include "woq/core/check.h"
#include "woq/core/code_row.h"
#include "woq/quant/scales.h"
#include "woq/quant/scheme.h"

namespace woq {

// Bytes of a stored zero point.
constexpr int64_t zero_point_bytes(ZeroKind zeros) {
  return zeros == ZeroKind::kInt ? 1 : zeros == ZeroKind::kFloat ? 4 : 0;
}

// Rows and columns that a matrix can have at most: groups and columns are numbered by int32, and
// bytes of every tensor then fit into int64.
inline constexpr int64_t kMaxExtent = 0x7fffffff;

inline void check_extents(int64_t rows, int64_t cols) {
  if (rows < 1 || cols < 1)
    fail("a quantized matrix needs at least one row and one column, got ", rows, " x ", cols);
  if (rows > kMaxExtent || cols > kMaxExtent)
    fail("a quantized matrix has at most ", kMaxExtent, " rows and columns, got ", rows, " x ",
         cols);
}

struct QuantizedMatrix {
  QuantScheme scheme;
  int64_t rows = 0, cols = 0;  // N, K
  Buffer qweight;              // [N, ceil(K * bits / 8)]: rows of codes, see core/code_row.h
  ScaleTable scales;           // [N, G]
  Buffer zero_points;          // [N, G]; kInt: uint8 codes, kFloat: fp32, otherwise empty
  ScaleTable minima;           // [N, G]; kMin: encoded as the scales are, otherwise empty
  // Both optional. g_idx: act-order (GPTQ, arXiv 2210.17323, section 3.3); the group of each
  // column, every group but the last group_length columns. act_scales: what the input is multiplied
  // by (AWQ, arXiv 2306.00978, section 3.2; TEQ, arXiv 2310.10944): y = (x * act_scales) W^T.
  Buffer g_idx;       // [K] int32, or empty: column k belongs to group k / group_length
  Buffer act_scales;  // [K] fp32, or empty

  const DtypeTraits& dtype() const { return traits_of(scheme.dtype); }
  int64_t group_length() const { return woq::group_length(scheme, cols); }
  int64_t groups() const { return group_count(scheme, cols); }
  int64_t row_bytes() const { return code_row_bytes(cols, dtype().bits); }
  int64_t bytes() const {
    return qweight.size() + scales.bytes() + zero_points.size() + minima.values.size() +
           minima.supers.size() + g_idx.size() + act_scales.size();
  }
  int64_t group_of(int64_t k) const {
    return g_idx.size() > 0 ? g_idx.as<int32_t>()[k] : k / group_length();
  }

  const uint8_t* row(int64_t n) const { return qweight.data() + n * row_bytes(); }
  uint8_t* row(int64_t n) { return qweight.data() + n * row_bytes(); }

  int code(int64_t n, int64_t k) const { return read_code(row(n), k, dtype().bits); }

  // In units of codes; the implied centre for a symmetric integer matrix, 0 for one with minima.
  float zero_point(int64_t n, int64_t group) const {
    const int64_t i = n * groups() + group;
    if (scheme.zeros == ZeroKind::kMin) return 0.0f;
    if (scheme.zeros == ZeroKind::kInt) return zero_points.data()[i];
    if (scheme.zeros == ZeroKind::kFloat) return zero_points.as<float>()[i];
    return static_cast<float>(dtype().center());
  }

  // Allocates every tensor but the scales; contents unset.
  static QuantizedMatrix allocate(const QuantScheme& scheme, int64_t rows, int64_t cols) {
    validate(scheme);
    check_extents(rows, cols);
    QuantizedMatrix matrix;
    matrix.scheme = scheme;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.qweight = Buffer(rows * matrix.row_bytes());
    matrix.zero_points = Buffer(rows * matrix.groups() * zero_point_bytes(scheme.zeros));
    return matrix;
  }
};

}  // namespace woq
