// SPDX-License-Identifier: Apache-2.0
// Quantized matrices from numbers that are known already, as readers of other formats and searches
// outside of this library have them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "woq/quant/validate.h"

namespace woq {

// The matrix of codes [N, K] (one a byte), scales [N, G] and zero points [N, G] (in codes; nullptr
// where the scheme has none). Scales are encoded as the scheme says. Throws InvalidArgument that
// names everything that is wrong: codes above the largest one, integer zero points that are no
// code, scales that do not fit their encoding.
inline QuantizedMatrix from_codes(const uint8_t* codes, const float* scales,
                                  const float* zero_points, const QuantScheme& scheme, int64_t rows,
                                  int64_t cols) {
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  const int largest = matrix.dtype().max_code(), bits = matrix.dtype().bits;
  const int64_t groups = matrix.groups(), count = rows * groups;
  if ((zero_points != nullptr) != (scheme.zeros != ZeroKind::kNone)) {
    fail("a matrix with zeros '", name_of(scheme.zeros), "' ",
         zero_points == nullptr ? "needs zero points, and none are given"
                                : "has no zero points, but some are given");
  }
  Problems problems;
  const detail::WrongElements wrong =
      detail::wrong_elements(rows * cols, [&](int64_t i) { return codes[i] > largest; });
  if (wrong.count > 0) {
    problems.add("the code of row ", wrong.first / cols, ", column ", wrong.first % cols, " is ",
                 static_cast<int>(codes[wrong.first]), wrong.others(), "; the largest code of ",
                 matrix.dtype().name, " is ", largest);
  }
  if (scheme.zeros == ZeroKind::kInt) {
    const detail::WrongElements zeros = detail::wrong_elements(count, [&](int64_t i) {
      return !(zero_points[i] >= 0 && zero_points[i] <= static_cast<float>(largest)) ||
             zero_points[i] != std::floor(zero_points[i]);
    });
    if (zeros.count > 0) {
      problems.add("the zero point of row ", zeros.first / groups, ", group ", zeros.first % groups,
                   " is ", zero_points[zeros.first], zeros.others(), "; it must be a code, 0 to ",
                   largest);
    }
  }
  problems.check();
  for (int64_t n = 0; n < rows; ++n) write_codes(codes + n * cols, cols, bits, matrix.row(n));
  for (int64_t i = 0; i < count && scheme.zeros == ZeroKind::kInt; ++i)
    matrix.zero_points.data()[i] = static_cast<uint8_t>(zero_points[i]);
  if (scheme.zeros == ZeroKind::kFloat)
    std::copy_n(zero_points, count, matrix.zero_points.as<float>());
  matrix.scales =
      ScaleTable::encode(scales, rows, groups, scheme.scales, has_signed_scales(scheme));
  validate(matrix);
  return matrix;
}

// The matrix whose columns belong to the groups g_idx [K]; nullptr: the groups that they have
// without one. Codes and scales stay where they are. Throws InvalidArgument unless each group gets
// its number of columns.
inline QuantizedMatrix with_g_idx(QuantizedMatrix matrix, const int32_t* g_idx) {
  const int64_t length = matrix.group_length();
  Buffer buffer(matrix.cols * 4);
  for (int64_t k = 0; k < matrix.cols; ++k)
    buffer.as<int32_t>()[k] = g_idx == nullptr ? static_cast<int32_t>(k / length) : g_idx[k];
  matrix.g_idx = std::move(buffer);
  validate(matrix);
  return matrix;
}

// The matrix for inputs that are multiplied by act_scales [K] first. Throws InvalidArgument for
// multipliers that are 0 or not finite.
inline QuantizedMatrix with_act_scales(QuantizedMatrix matrix, const float* act_scales) {
  matrix.act_scales = Buffer(matrix.cols * 4);
  std::copy_n(act_scales, matrix.cols, matrix.act_scales.as<float>());
  validate(matrix);
  return matrix;
}

}  // namespace woq
