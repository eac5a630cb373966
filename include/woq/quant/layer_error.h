// SPDX-License-Identifier: Apache-2.0
// A layer's output error on its calibration inputs, from their Hessian alone: the mean over inputs
// of |x D^T|^2 is tr(D H D^T) / 2 for D = W - its approximation, [N, K].
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "woq/linalg/gemm.h"
#include "woq/quant/dequantize.h"
#include "woq/quant/hessian.h"
#include "woq/quant/rtn.h"

namespace woq {

class LayerObjective {
 public:
  explicit LayerObjective(const Hessian& hessian)
      : cols_(hessian.cols()), h_(static_cast<size_t>(cols_ * cols_)) {
    for (int64_t i = 0; i < cols_; ++i) {
      for (int64_t j = 0; j < cols_; ++j)
        h_[static_cast<size_t>(i * cols_ + j)] = static_cast<float>(hessian.at(i, j));
    }
  }

  int64_t cols() const { return cols_; }
  const float* h() const { return h_.data(); }  // [K, K]

  // [K]: mean squares of the inputs divided by s [K], by which errors of weights times s count.
  std::vector<float> importance(const std::vector<float>& s) const {
    std::vector<float> result(static_cast<size_t>(cols_));
    for (size_t k = 0; k < result.size(); ++k)
      result[k] = h_[k * static_cast<size_t>(cols_) + k] / (s[k] * s[k]);
    return result;
  }

  // The diagonal elements of D H D^T, for d [rows, K] contiguous. H is symmetric, so the columns of
  // D before a panel count twice and those behind it not at all: half of a product's operations.
  std::vector<double> row_errors(const float* d, int64_t rows, int threads) const {
    constexpr int64_t kPanel = 512;
    std::vector<double> errors(static_cast<size_t>(rows));
    std::vector<float> product(static_cast<size_t>(rows * std::min(cols_, kPanel)));
    for (int64_t begin = 0; begin < cols_; begin += kPanel) {
      const int64_t width = std::min(kPanel, cols_ - begin);
      const linalg::StridedMatrix<float> before{d, cols_, 1}, within{d + begin, cols_, 1};
      std::fill(product.begin(), product.end(), 0.0f);
      linalg::multiply_add(rows, width, begin, 2.0f, before, {h_.data() + begin, cols_, 1},
                           product.data(), width, threads);
      linalg::multiply_add(rows, width, width, 1.0f, within,
                           {h_.data() + begin * cols_ + begin, cols_, 1}, product.data(), width,
                           threads);
      parallel_for(rows, useful_threads(threads, rows * width, kElementGrain),
                   [&](int64_t first, int64_t end) {
                     for (int64_t n = first; n < end; ++n) {
                       const float* const left = d + n * cols_ + begin;
                       const float* const right = product.data() + n * width;
                       double sum = 0;
                       for (int64_t k = 0; k < width; ++k)
                         sum += static_cast<double>(left[k]) * static_cast<double>(right[k]);
                       errors[static_cast<size_t>(n)] += sum;
                     }
                   });
    }
    return errors;
  }

  // tr(D H D^T); rounding can't make it negative.
  double error(const float* d, int64_t rows, int threads) const {
    double sum = 0;
    for (const double row : row_errors(d, rows, threads)) sum += std::max(row, 0.0);
    return sum;
  }

  // out [rows, K] = D H, half of the error's gradient.
  void product(const float* d, int64_t rows, float* out, int threads) const {
    std::fill_n(out, rows * cols_, 0.0f);
    linalg::multiply_add(rows, cols_, cols_, 1.0f, linalg::StridedMatrix<float>{d, cols_, 1},
                         linalg::StridedMatrix<float>{h_.data(), cols_, 1}, out, cols_, threads);
  }

 private:
  int64_t cols_;
  std::vector<float> h_;
};

namespace detail {

// W as fp32 [N, K], contiguous. Throws InvalidArgument for an empty matrix and for weights that are
// not finite.
inline std::vector<float> load_weight(const ConstMatrixView& weight, const std::string& name,
                                      int threads) {
  if (weight.rows < 1 || weight.cols < 1) {
    fail("tensor '", name, "' is empty (", weight.rows, " x ", weight.cols,
         "); nothing to quantize");
  }
  std::vector<float> values(static_cast<size_t>(weight.rows * weight.cols));
  threads = useful_threads(threads, weight.rows * weight.cols, kElementGrain);
  parallel_for(weight.rows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* const row = values.data() + n * weight.cols;
      load_floats(weight.row(n), weight.type, weight.cols, row);
      if (!range_of(row, weight.cols).finite) fail_not_finite(name, row, n, weight.cols);
    }
  });
  return values;
}

inline void check_widths(const ConstMatrixView& weight, const Hessian& hessian,
                         const std::string& name) {
  if (weight.cols == hessian.cols()) return;
  fail("tensor '", name, "' has ", weight.cols, " columns, but its Hessian has ", hessian.cols(),
       ": it belongs to another layer");
}

}  // namespace detail

// tr(D H D^T) / tr(W H W^T) for D = weight - approximation, both [N, K]: the layer's squared output
// error relative to its output. 0 where the inputs are all zero.
inline double relative_layer_error(const ConstMatrixView& weight,
                                   const ConstMatrixView& approximation, const Hessian& hessian,
                                   int threads = 0) {
  detail::check_widths(weight, hessian, "weight");
  if (weight.rows != approximation.rows || weight.cols != approximation.cols) {
    fail("the weight is ", weight.rows, " x ", weight.cols, ", but its approximation is ",
         approximation.rows, " x ", approximation.cols);
  }
  const std::vector<float> w = detail::load_weight(weight, "weight", threads);
  std::vector<float> d = detail::load_weight(approximation, "approximation", threads);
  for (size_t i = 0; i < d.size(); ++i) d[i] = w[i] - d[i];
  const LayerObjective objective(hessian);
  const double whole = objective.error(w.data(), weight.rows, threads);
  return whole > 0 ? objective.error(d.data(), weight.rows, threads) / whole : 0;
}

inline double relative_layer_error(const ConstMatrixView& weight, const QuantizedMatrix& matrix,
                                   const Hessian& hessian, int threads = 0) {
  std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, values.data(), threads);
  return relative_layer_error(weight, view_of(values.data(), matrix.rows, matrix.cols), hessian,
                              threads);
}

}  // namespace woq
