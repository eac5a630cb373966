// SPDX-License-Identifier: Apache-2.0
// How far a quantized matrix is from its source.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/quant/dequantize.h"

namespace woq {

struct QuantError {
  double mse = 0;      // mean of (W - dequantized)^2
  double sqnr_db = 0;  // 10 log10(mean of W^2 / mse); infinite when mse is 0
  double max_abs = 0;  // largest |W - dequantized|
};

// weight: [N, K], the matrix that was quantized.
inline QuantError quantization_error(const ConstMatrixView& weight, const QuantizedMatrix& matrix,
                                     int threads = 0) {
  if (weight.rows != matrix.rows || weight.cols != matrix.cols) {
    fail("the weight is ", weight.rows, " x ", weight.cols, ", but the quantized matrix is ",
         matrix.rows, " x ", matrix.cols);
  }
  struct RowError {
    double squared = 0, signal = 0, max_abs = 0;
  };
  // Summed row by row in order, so that the result does not depend on the number of threads.
  std::vector<RowError> row_errors(static_cast<size_t>(weight.rows));
  threads = useful_threads(threads, weight.rows * weight.cols, kElementGrain);
  parallel_for(weight.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> source(static_cast<size_t>(weight.cols)), approximation(source.size());
    for (int64_t n = begin; n < end; ++n) {
      load_floats(weight.row(n), weight.type, weight.cols, source.data());
      dequantize_row(matrix, n, approximation.data());
      RowError& row = row_errors[static_cast<size_t>(n)];
      for (size_t k = 0; k < source.size(); ++k) {
        const double w = source[k], error = w - approximation[k];
        row.squared += error * error;
        row.signal += w * w;
        row.max_abs = std::max(row.max_abs, std::fabs(error));
      }
    }
  });
  RowError total;
  for (const RowError& row : row_errors) {
    total.squared += row.squared;
    total.signal += row.signal;
    total.max_abs = std::max(total.max_abs, row.max_abs);
  }
  const double count = static_cast<double>(weight.rows) * static_cast<double>(weight.cols);
  const double infinity = std::numeric_limits<double>::infinity();
  return {total.squared / count,
          total.squared > 0 ? 10 * std::log10(total.signal / total.squared) : infinity,
          total.max_abs};
}

}  // namespace woq
