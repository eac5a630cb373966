// SPDX-License-Identifier: Apache-2.0
// HQQ, half-quadratic quantization (Badri and Shaji, mobiusml.github.io/hqq_blog, 2023): the zero
// point of each group, a real number, for the least sum of |w - quantized|^p with p < 1, which lets
// outliers have large errors so that the others have small ones. Needs no data.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "woq/quant/layer_error.h"
#include "woq/quant/rtn.h"

namespace woq {

struct HqqOptions {
  double lp_norm = 0.7;
  double beta = 10;             // weight of the quadratic term, in units of 1 / weight as in HQQ
  double kappa = 1.01;          // factor of beta after each step
  int steps = 20;               // 0: RTN
  std::string name = "weight";  // for messages
};

namespace detail {

// argmin over e of |e|^p + beta / 2 (e - x)^2, by HQQ's generalised soft threshold.
inline float shrink_lp(float x, float beta, float p) {
  const float magnitude = std::fabs(x);
  if (magnitude == 0) return 0;
  const float kept = magnitude - std::pow(magnitude, p - 1) / beta;
  return kept > 0 ? std::copysign(kept, x) : 0.0f;
}

// The zero point of group w [n] with the least mean |w - quantized| that the iteration meets,
// starting with `zero`. Leaves its codes in `codes`.
inline float optimise_zero_point(const DtypeTraits& dtype, const float* w, int64_t n, float scale,
                                 float zero, const HqqOptions& options, uint8_t* codes) {
  const auto p = static_cast<float>(options.lp_norm);
  auto beta = static_cast<float>(options.beta);
  float best = zero;
  double least = -1;
  for (int step = 0; step <= options.steps; ++step) {
    encode_group_float_zero(dtype, w, n, scale, zero, codes);
    double error = 0, mean = 0;
    for (int64_t k = 0; k < n; ++k) {
      const auto code = static_cast<float>(codes[k]);
      const float residual = w[k] - scale * (code - zero);
      error += std::fabs(residual);
      mean += static_cast<double>(code - (w[k] - shrink_lp(residual, beta, p)) / scale);
    }
    if (least < 0 || error < least) {
      least = error;
      best = zero;
    }
    zero = static_cast<float>(mean / static_cast<double>(n));
    if (!std::isfinite(zero)) break;  // kappa took beta out of fp32's range, or weights are huge
    beta *= static_cast<float>(options.kappa);
  }
  encode_group_float_zero(dtype, w, n, scale, best, codes);
  return best;
}

}  // namespace detail

// Quantizes weight [N, K] to integers with float zero points: scheme.zeros must be kFloat. With no
// steps the values are quantize_rtn()'s with integer zero points. Throws InvalidArgument for other
// schemes, an empty matrix, and weights that are not finite.
inline QuantizedMatrix quantize_hqq(const ConstMatrixView& weight, const QuantScheme& scheme,
                                    const HqqOptions& options = {}, int threads = 0) {
  validate(scheme);
  if (scheme.zeros != ZeroKind::kFloat || !traits_of(scheme.dtype).is_integer()) {
    fail("HQQ finds zero points: it needs an integer dtype and scheme 'asym', got '",
         name_of(scheme.dtype), "'",
         scheme.zeros == ZeroKind::kFloat ? "" : ", without float zeros");
  }
  if (!(options.lp_norm > 0 && options.lp_norm <= 1))
    fail("lp_norm is ", options.lp_norm, "; it must lie in (0, 1]");
  if (!(options.beta > 0 && options.kappa > 0) || options.steps < 0) {
    fail("beta (", options.beta, ") and kappa (", options.kappa, ") must be positive, steps (",
         options.steps, ") not negative");
  }
  const std::vector<float> w = detail::load_weight(weight, options.name, threads);
  const int64_t rows = weight.rows, cols = weight.cols;
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  const DtypeTraits& dtype = matrix.dtype();
  const int64_t length = matrix.group_length(), groups = matrix.groups();
  QuantScheme start = scheme;
  start.zeros = ZeroKind::kInt;

  std::vector<detail::GroupParameters> parameters(static_cast<size_t>(rows * groups));
  std::vector<float> ideal(parameters.size());
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const float* const group = w.data() + n * cols + g * length;
      const auto i = static_cast<size_t>(n * groups + g);
      parameters[i] = detail::group_parameters(
          start, detail::range_of(group, std::min(length, cols - g * length)), 1.0f);
      ideal[i] = parameters[i].scale;
    }
  }
  matrix.scales = ScaleTable::encode(ideal.data(), rows, groups, scheme.scales, false);
  const int team = useful_threads(threads, rows * cols * (options.steps + 1), kElementGrain);
  parallel_for(rows, team, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> codes(static_cast<size_t>(cols));
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t index = n * groups + g, size = std::min(length, cols - g * length);
        const float scale = matrix.scales.at(index);
        const float zero = detail::zero_for(start, parameters[static_cast<size_t>(index)], scale);
        float* const stored = matrix.zero_points.as<float>() + index;
        const float* const group = w.data() + n * cols + g * length;
        if (scale == 0.0f) {
          *stored = zero;
          detail::encode_group(dtype, group, size, scale, zero, codes.data() + g * length);
        } else {
          *stored = detail::optimise_zero_point(dtype, group, size, scale, zero, options,
                                                codes.data() + g * length);
        }
      }
      write_codes(codes.data(), cols, dtype.bits, matrix.row(n));
    }
  });
  check_overflow(matrix);
  return matrix;
}

}  // namespace woq
