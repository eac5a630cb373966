// SPDX-License-Identifier: Apache-2.0
// The product in double precision from dequantized weights: shares no code with the kernels but the
// definition of dequantization.
#pragma once

#include <cstdint>
#include <vector>

#include "support/gemm.h"
#include "woq/quant/dequantize.h"

namespace woq::testing {

struct DoubleMatrix {
  int64_t cols = 0;
  std::vector<double> values;

  double get(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

inline DoubleMatrix exact_product(const GemmProblem& problem) {
  const int64_t n_count = problem.hub.rows, k_count = problem.hub.cols;
  std::vector<float> weights(static_cast<size_t>(n_count * k_count));
  dequantize(problem.hub, weights.data(), 1);
  DoubleMatrix product{n_count, {}};
  for (int64_t m = 0; m < problem.rows(); ++m) {
    const std::vector<float> x = problem.x.row(m);
    for (int64_t n = 0; n < n_count; ++n) {
      double sum =
          problem.bias.empty() ? 0.0 : static_cast<double>(problem.bias[static_cast<size_t>(n)]);
      const float* const w = weights.data() + n * k_count;
      for (int64_t k = 0; k < k_count; ++k) {
        sum += static_cast<double>(x[static_cast<size_t>(k)]) * static_cast<double>(w[k]);
      }
      product.values.push_back(sum);
    }
  }
  return product;
}

}  // namespace woq::testing
