// SPDX-License-Identifier: Apache-2.0
// Layers that share an input, and what scaling its channels does to their error: with y = (x / s)
// Q(W diag(s))^T, layer by layer, D = W - Q(W diag(s)) diag(1 / s). AWQ and TEQ look for s.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "woq/quant/layer_error.h"
#include "woq/quant/rtn.h"

namespace woq {

// The schemes of weights that share an input: one for all of them, or one for each.
class SharedSchemes {
 public:
  SharedSchemes(const QuantScheme& all = {}) : each_{all} {}  // NOLINT: a scheme is one for all
  explicit SharedSchemes(std::vector<QuantScheme> each) : each_(std::move(each)) {}

  const QuantScheme& operator[](int64_t weight) const {
    return each_.size() == 1 ? each_[0] : each_[static_cast<size_t>(weight)];
  }

  // Throws InvalidArgument for a scheme that is none, and a number that differs from the weights'.
  void check(size_t weights, const std::string& name) const {
    if (each_.size() != 1 && each_.size() != weights) {
      fail("'", name, "' has ", weights, " weights and ", each_.size(),
           " schemes; pass one for each weight, or one for all");
    }
    for (const QuantScheme& scheme : each_) validate(scheme);
  }

  // Scales in fp32 in place of double quantization, which needs whole matrices.
  SharedSchemes without_double_quantization() const {
    SharedSchemes result(each_);
    for (QuantScheme& scheme : result.each_) {
      if (scheme.scales == ScaleEncoding::kDouble) scheme.scales = ScaleEncoding::kFp32;
    }
    return result;
  }

 private:
  std::vector<QuantScheme> each_;
};

// The rows of several weights [N_i, K] as one fp32 matrix [rows, K]: all of them, or an even
// sample. A row of a sample stands for `share` rows of its weight.
struct SharedInputRows {
  int64_t rows = 0, cols = 0;
  std::vector<float> w;
  std::vector<double> share;    // [rows]
  std::vector<int64_t> weight;  // [rows]: which of the weights, in ascending order
};

// Enough for a search of multipliers; more rows make it slower and hardly better.
inline constexpr int64_t kSearchedRows = 128;

// At most max_rows of each weight; 0: all. Throws InvalidArgument for no or empty weights, widths
// that differ from the Hessian's, and numbers that are not finite.
inline SharedInputRows gather_rows(const std::vector<ConstMatrixView>& weights,
                                   const Hessian& hessian, int64_t max_rows,
                                   const std::string& name) {
  if (weights.empty())
    fail("no weights to scale for '", name, "'; pass those that share the input");
  SharedInputRows result;
  result.cols = hessian.cols();
  int64_t number = 0;
  for (const ConstMatrixView& weight : weights) {
    detail::check_widths(weight, hessian, name);
    if (weight.rows < 1) fail("a weight of '", name, "' is empty");
    const int64_t count = max_rows > 0 ? std::min(max_rows, weight.rows) : weight.rows;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t n = i * weight.rows / count;
      const size_t at = result.w.size();
      result.w.resize(at + static_cast<size_t>(weight.cols));
      float* const row = result.w.data() + at;
      load_floats(weight.row(n), weight.type, weight.cols, row);
      if (!detail::range_of(row, weight.cols).finite)
        detail::fail_not_finite(name, row, n, weight.cols);
      result.share.push_back(static_cast<double>(weight.rows) / static_cast<double>(count));
      result.weight.push_back(number);
    }
    result.rows += count;
    ++number;
  }
  return result;
}

// tr(D H D^T), summed over the weights, when they are rounded to nearest after scaling by s [K].
// With `mse_range` each group's range is searched with errors weighted by the mean squares of
// the scaled inputs. Scales are not doubly quantized.
inline double scaled_error(const SharedInputRows& weights, const LayerObjective& objective,
                           const SharedSchemes& schemes, bool mse_range,
                           const std::vector<float>& s, int threads) {
  const SharedSchemes plain = schemes.without_double_quantization();
  const int64_t cols = weights.cols;
  const int team = useful_threads(threads, weights.rows * cols, kElementGrain);
  std::vector<float> scaled(weights.w.size());
  parallel_for(weights.rows, team, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * cols; i < end * cols; ++i)
      scaled[static_cast<size_t>(i)] =
          weights.w[static_cast<size_t>(i)] * s[static_cast<size_t>(i % cols)];
  });
  RtnOptions options;
  if (mse_range) options.importance = objective.importance(s);
  for (int64_t first = 0, last = 0; first < weights.rows; first = last) {
    const int64_t number = weights.weight[static_cast<size_t>(first)];
    while (last < weights.rows && weights.weight[static_cast<size_t>(last)] == number) ++last;
    const QuantizedMatrix matrix = quantize_rtn(
        view_of(scaled.data() + first * cols, last - first, cols), plain[number], options, threads);
    parallel_for(last - first, team, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        float* const row = scaled.data() + (first + n) * cols;
        const float* const w = weights.w.data() + (first + n) * cols;
        dequantize_row(matrix, n, row);
        for (int64_t k = 0; k < cols; ++k) row[k] = w[k] - row[k] / s[static_cast<size_t>(k)];
      }
    });
  }
  const std::vector<double> errors = objective.row_errors(scaled.data(), weights.rows, threads);
  return std::inner_product(errors.begin(), errors.end(), weights.share.begin(), 0.0);
}

}  // namespace woq
