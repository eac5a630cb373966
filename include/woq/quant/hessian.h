// SPDX-License-Identifier: Apache-2.0
// Second moments of a layer's inputs: all that the calibrated quantizers need to know of the data.
// The layer's error on it is tr(D H D^T) for D = W - its quantized form, H = (2 / rows) X^T X
// (GPTQ, arXiv:2210.17323, section 3.1).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "woq/core/check.h"
#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/linalg/gemm.h"
#include "woq/linalg/gram_bf16.h"

namespace woq {

namespace detail {

inline constexpr int64_t kMomentRows = 1024;  // of x that are converted at once
// Larger inputs come from a model that has overflowed; their squares would overflow fp32 next.
inline constexpr float kLargestInput = 1e17f;

// The first element of x that isn't a usable number; col < 0 if there is none.
struct BadInput {
  int64_t row = -1, col = -1;
};

inline BadInput find_bad_input(const ConstMatrixView& x, int threads) {
  const uint32_t limit = float_bits(kLargestInput);
  std::vector<int64_t> bad_column(static_cast<size_t>(x.rows), -1);
  parallel_for(x.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(x.cols));
    for (int64_t r = begin; r < end; ++r) {
      if (x.type == FloatType::kBf16) {
        const auto* const halves = static_cast<const uint16_t*>(x.row(r));
        int16_t largest = 0;
        for (int64_t k = 0; k < x.cols; ++k)
          largest = std::max(largest, static_cast<int16_t>(halves[k] & 0x7fff));
        if (largest <= static_cast<int16_t>(limit >> 16)) continue;
      }
      load_floats(x.row(r), x.type, x.cols, row.data());
      uint32_t largest = 0;
      for (const float value : row) largest = std::max(largest, float_bits(value) & 0x7fffffffu);
      if (largest <= limit) continue;
      int64_t k = 0;
      while ((float_bits(row[static_cast<size_t>(k)]) & 0x7fffffffu) <= limit) ++k;
      bad_column[static_cast<size_t>(r)] = k;
    }
  });
  for (int64_t r = 0; r < x.rows; ++r) {
    if (bad_column[static_cast<size_t>(r)] >= 0) return {r, bad_column[static_cast<size_t>(r)]};
  }
  return {};
}

inline void check_input(const ConstMatrixView& x, int64_t cols, const std::string& name,
                        int threads) {
  if (x.cols != cols) {
    fail("inputs of '", name, "' have ", x.cols, " columns, but the layer has ", cols,
         " in_features");
  }
  const BadInput bad = find_bad_input(x, threads);
  if (bad.col < 0) return;
  float value = 0;
  load_floats(static_cast<const char*>(x.row(bad.row)) + bad.col * size_of(x.type), x.type, 1,
              &value);
  fail("inputs of '", name, "' hold ",
       std::isfinite(value) ? "a number too large for fp32 squares (" : "a non-finite number (",
       value, ") at row ", bad.row, ", column ", bad.col,
       "; the model overflows on the calibration data: run it in fp32 or bf16, or leave the sample "
       "out");
}

}  // namespace detail

class Hessian {
 public:
  explicit Hessian(int64_t cols, std::string name = "layer") : name_(std::move(name)), cols_(cols) {
    if (cols < 1) fail("a Hessian needs at least one column, got ", cols);
    const int64_t panels = (cols + kPanel - 1) / kPanel;
    sums_.assign(static_cast<size_t>(kPanel * kPanel * panels * (panels + 1) / 2), 0.0);
    magnitudes_.assign(static_cast<size_t>(cols), 0.0);
  }

  int64_t cols() const { return cols_; }  // K
  int64_t rows() const { return rows_; }  // inputs seen
  int64_t bytes() const {
    return static_cast<int64_t>((sums_.size() + magnitudes_.size()) * sizeof(double));
  }

  // H[i, j].
  double at(int64_t i, int64_t j) const {
    return rows_ == 0 ? 0 : row(std::max(i, j))[std::min(i, j)] * 2 / static_cast<double>(rows_);
  }

  // Inputs that have always been zero.
  int64_t dead_columns() const {
    int64_t dead = 0;
    for (int64_t k = 0; k < cols_; ++k) dead += at(k, k) == 0 ? 1 : 0;
    return dead;
  }

  // Mean of |x[:, k]|, AWQ's activation statistic.
  double mean_magnitude(int64_t k) const {
    return rows_ == 0 ? 0 : magnitudes_[static_cast<size_t>(k)] / static_cast<double>(rows_);
  }

  // Adds x [rows, K]. Products are summed in fp32 over 256 rows (bfloat16 on AVX512-BF16: 512),
  // those sums in fp64: the relative error of an element stays near 1e-6 of sqrt(H_ii H_jj),
  // however many rows come. Throws InvalidArgument, and adds nothing, for a wrong width or numbers
  // that are not finite.
  void add(const ConstMatrixView& x, int threads = 0) {
    const int team = useful_threads(threads, x.rows * x.cols, kElementGrain);
    detail::check_input(x, cols_, name_, team);
    if (x.type == FloatType::kBf16 && has_bf16_products()) {
      static_assert(kPanel % linalg::kPairPanel == 0);  // a panel of sums_ holds whole tiles
      linalg::add_gram_bf16(x, [this](int64_t i) { return row(i); }, magnitudes_.data(), threads);
      rows_ += x.rows;
      return;
    }
    std::vector<float> block(static_cast<size_t>(std::min(x.rows, detail::kMomentRows) * cols_));
    for (int64_t first = 0; first < x.rows; first += detail::kMomentRows) {
      const int64_t count = std::min(detail::kMomentRows, x.rows - first);
      parallel_for(cols_, team, [&](int64_t begin, int64_t end) {
        for (int64_t r = 0; r < count; ++r) {
          float* const out = block.data() + r * cols_;
          const char* const in = static_cast<const char*>(x.row(first + r));
          load_floats(in + begin * size_of(x.type), x.type, end - begin, out + begin);
          for (int64_t k = begin; k < end; ++k)
            magnitudes_[static_cast<size_t>(k)] += std::fabs(out[k]);
        }
      });
      const linalg::StridedMatrix<float> inputs{block.data(), cols_, 1};
      linalg::multiply_add(
          cols_, cols_, count, 1.0f, inputs.transposed(), inputs, linalg::Part::kLower,
          [this](int64_t i) { return row(i); }, threads);
    }
    rows_ += x.rows;
  }

  // Adds what `other` has seen, such as another worker's share of the data.
  void merge(const Hessian& other) {
    if (other.cols_ != cols_)
      fail("cannot merge Hessians of ", cols_, " and ", other.cols_, " columns");
    for (size_t i = 0; i < sums_.size(); ++i) sums_[i] += other.sums_[i];
    for (size_t i = 0; i < magnitudes_.size(); ++i) magnitudes_[i] += other.magnitudes_[i];
    rows_ += other.rows_;
  }

  // That of inputs x diag(multipliers), [K]: what a layer sees whose columns were divided by them.
  Hessian scaled(const std::vector<float>& multipliers) const {
    if (static_cast<int64_t>(multipliers.size()) != cols_) {
      fail("the multipliers of '", name_, "' have ", multipliers.size(), " elements, expected ",
           cols_);
    }
    Hessian result = *this;
    for (int64_t i = 0; i < cols_; ++i) {
      const double multiplier = multipliers[static_cast<size_t>(i)];
      if (!std::isfinite(multiplier)) {
        fail("the multipliers of '", name_, "' hold ", multiplier, " at column ", i,
             "; they must be finite");
      }
      for (int64_t j = 0; j <= i; ++j)
        result.row(i)[j] *= multiplier * static_cast<double>(multipliers[static_cast<size_t>(j)]);
      result.magnitudes_[static_cast<size_t>(i)] *= std::fabs(multiplier);
    }
    return result;
  }

  // From H [K, K] (its lower triangle) of `rows` inputs. `magnitudes` [K] are the means of |x|;
  // where there are none, those of normal inputs with H's variances.
  static Hessian from_matrix(const double* h, int64_t cols, int64_t rows,
                             const double* magnitudes = nullptr, std::string name = "layer") {
    Hessian result(cols, std::move(name));
    result.rows_ = std::max<int64_t>(rows, 1);
    const auto count = static_cast<double>(result.rows_);
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const double value = h[i * cols + j];
        if (!std::isfinite(value)) {
          fail("the Hessian of '", result.name_, "' holds ", value, " at row ", i, ", column ", j,
               "; repair the statistics or calibrate again");
        }
        result.row(i)[j] = value * count / 2;
      }
      const double variance = h[i * cols + i] / 2;
      if (variance < 0) {
        fail("the Hessian of '", result.name_, "' has a negative diagonal element (", 2 * variance,
             " at ", i, "); it must be a sum of squares");
      }
      const double mean = magnitudes != nullptr ? magnitudes[i] : std::sqrt(variance * 2 / kPi);
      result.magnitudes_[static_cast<size_t>(i)] = mean * count;
    }
    return result;
  }

 private:
  static constexpr double kPi = 3.14159265358979323846;
  static constexpr int64_t kPanel = 64;

  // The lower triangle, in panels of 64 rows that are as wide as their last row needs: half of a
  // square's memory.
  double* row(int64_t i) { return sums_.data() + offset(i); }
  const double* row(int64_t i) const { return sums_.data() + offset(i); }
  static int64_t offset(int64_t i) {
    const int64_t panel = i / kPanel;
    return kPanel * kPanel * (panel * (panel + 1) / 2) + i % kPanel * (panel + 1) * kPanel;
  }

  std::string name_;
  int64_t cols_ = 0, rows_ = 0;
  std::vector<double> sums_;        // of x_i x_j
  std::vector<double> magnitudes_;  // sums of |x_k|
};

// The mean of x_left^T x_right times two, [K, K]: GPTAQ's (X_fp - X_q)^T X_q. Same accumulation.
class CrossMoment {
 public:
  explicit CrossMoment(int64_t cols, std::string name = "layer")
      : name_(std::move(name)), cols_(cols), sums_(static_cast<size_t>(cols * cols)) {}

  int64_t cols() const { return cols_; }
  int64_t rows() const { return rows_; }
  double at(int64_t i, int64_t j) const {
    return rows_ == 0 ? 0
                      : sums_[static_cast<size_t>(i * cols_ + j)] * 2 / static_cast<double>(rows_);
  }

  // The moment of both inputs multiplied by `multipliers` [K], as Hessian::scaled() has it.
  CrossMoment scaled(const std::vector<float>& multipliers) const {
    if (static_cast<int64_t>(multipliers.size()) != cols_)
      fail("'", name_, "' has ", cols_, " columns and ", multipliers.size(), " multipliers");
    CrossMoment result = *this;
    for (int64_t i = 0; i < cols_; ++i) {
      for (int64_t j = 0; j < cols_; ++j) {
        result.sums_[static_cast<size_t>(i * cols_ + j)] *=
            static_cast<double>(multipliers[static_cast<size_t>(i)]) *
            static_cast<double>(multipliers[static_cast<size_t>(j)]);
      }
    }
    return result;
  }

  // left, right: [rows, K], the full-precision model's inputs and the quantized one's; adds
  // (left - right)^T right.
  void add(const ConstMatrixView& left, const ConstMatrixView& right, int threads = 0) {
    if (left.rows != right.rows) {
      fail("the two inputs of '", name_, "' have ", left.rows, " and ", right.rows,
           " rows; they must be the same tokens");
    }
    const int team = useful_threads(threads, left.rows * cols_, kElementGrain);
    detail::check_input(left, cols_, name_, team);
    detail::check_input(right, cols_, name_, team);
    const auto size = static_cast<size_t>(std::min(left.rows, detail::kMomentRows) * cols_);
    std::vector<float> difference(size), block(size);
    for (int64_t first = 0; first < left.rows; first += detail::kMomentRows) {
      const int64_t count = std::min(detail::kMomentRows, left.rows - first);
      parallel_for(count, team, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          float* const d = difference.data() + r * cols_;
          float* const q = block.data() + r * cols_;
          load_floats(left.row(first + r), left.type, cols_, d);
          load_floats(right.row(first + r), right.type, cols_, q);
          for (int64_t k = 0; k < cols_; ++k) d[k] -= q[k];
        }
      });
      const linalg::StridedMatrix<float> a{difference.data(), cols_, 1}, b{block.data(), cols_, 1};
      linalg::multiply_add(
          cols_, cols_, count, 1.0f, a.transposed(), b, linalg::Part::kAll,
          [this](int64_t i) { return sums_.data() + i * cols_; }, threads);
    }
    rows_ += left.rows;
  }

 private:
  std::string name_;
  int64_t cols_ = 0, rows_ = 0;
  std::vector<double> sums_;
};

}  // namespace woq
