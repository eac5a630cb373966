// SPDX-License-Identifier: Apache-2.0
// Layers to calibrate: weights, and inputs that are correlated and have planted outlier channels.
#pragma once

#include <cstdint>
#include <vector>

#include "support/matrices.h"
#include "support/random.h"
#include "woq/quant/dequantize.h"
#include "woq/quant/hessian.h"
#include "woq/quant/layer_error.h"

namespace woq::testing {

struct CalibratedLayer {
  int64_t rows, cols;    // N, K
  std::vector<float> w;  // [N, K]
  std::vector<float> x;  // [samples, K]
  Hessian hessian;

  ConstMatrixView weight() const { return view_of(w.data(), rows, cols); }

  // tr(D H D^T) / tr(W H W^T).
  double error(const std::vector<float>& approximation) const {
    return relative_layer_error(weight(), view_of(approximation.data(), rows, cols), hessian, 1);
  }
  double error(const QuantizedMatrix& matrix) const {
    std::vector<float> back(w.size());
    dequantize(matrix, back.data(), 1);
    return error(back);
  }
};

// Each input is a moving average of noise and a shared component; one channel in 24 is 20 times as
// large.
inline std::vector<float> correlated_inputs(Random& random, int64_t samples, int64_t cols) {
  std::vector<float> x(static_cast<size_t>(samples * cols));
  std::vector<float> gain(static_cast<size_t>(cols));
  for (float& g : gain) g = random.below(24) == 0 ? 20.0f : random.uniform(0.5f, 1.5f);
  for (int64_t r = 0; r < samples; ++r) {
    const float shared = random.normal();
    float previous = random.normal();
    for (int64_t k = 0; k < cols; ++k) {
      previous = 0.7f * previous + random.normal();
      x[static_cast<size_t>(r * cols + k)] =
          gain[static_cast<size_t>(k)] * (previous + 0.5f * shared);
    }
  }
  return x;
}

inline CalibratedLayer correlated_layer(Random& random, int64_t rows, int64_t cols,
                                        int64_t samples = 0) {
  if (samples == 0) samples = 2 * cols;
  CalibratedLayer layer{rows, cols, normal_weights(random, rows, cols),
                        correlated_inputs(random, samples, cols), Hessian(cols)};
  layer.hessian.add(view_of(layer.x.data(), samples, cols), 1);
  return layer;
}

// H = the unit matrix.
inline Hessian identity_hessian(int64_t cols) {
  std::vector<double> h(static_cast<size_t>(cols * cols));
  for (int64_t k = 0; k < cols; ++k) h[static_cast<size_t>(k * cols + k)] = 1;
  return Hessian::from_matrix(h.data(), cols, 1);
}

}  // namespace woq::testing
