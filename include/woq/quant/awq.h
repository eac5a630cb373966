// SPDX-License-Identifier: Apache-2.0
// AWQ (Lin et al., arXiv:2306.00978): scaling the weights of salient input channels up before they
// are rounded, and their inputs down (section 3.2); and clipping the range of each group (section
// 3.3's auto_clip). Objectives are output errors through the Hessian, so that no data needs to be
// kept, and weights that share an input need nothing but that in common.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "woq/quant/shared_input.h"

namespace woq {

// Whether scales are x^alpha, or x^alpha / w^(1 - alpha) (AutoAWQ's duo_scaling), or whichever is
// better; x and w are the mean magnitudes of a channel's inputs and of its weights relative to
// their group's largest.
enum class DuoScaling : uint8_t { kOff, kOn, kBoth };
inline constexpr const char* kDuoScalingNames[] = {"off", "on", "both"};

inline DuoScaling parse_duo_scaling(std::string_view text) {
  for (int i = 0; i < 3; ++i) {
    if (text == kDuoScalingNames[i]) return static_cast<DuoScaling>(i);
  }
  fail("unknown duo_scaling '", text, "'; known: off, on, both");
}

struct AwqOptions {
  int n_grid = 20;  // alpha = 0, 1 / n_grid, ... (n_grid - 1) / n_grid
  DuoScaling duo_scaling = DuoScaling::kBoth;
  bool mse_range = false;  // of ranges, by scaled_error(): as the rounding that follows does
  int64_t max_rows = kSearchedRows;  // of each weight, that the search looks at; 0: all
  std::string name = "layer";        // for messages
};

struct AwqResult {
  std::vector<float> scales;  // [K]: multiply the weight's columns; divide the inputs by the same
  double alpha = 0;
  bool duo = false;
  double error = 0, rtn_error = 0;  // tr(D H D^T) with these scales, and without any
};

namespace detail {

// [K]: mean over rows of |w| relative to the largest of its group.
inline std::vector<double> mean_relative_magnitude(const SharedInputRows& weights,
                                                   const SharedSchemes& schemes) {
  std::vector<double> mean(static_cast<size_t>(weights.cols));
  double rows = 0;
  for (int64_t n = 0; n < weights.rows; ++n) {
    const double share = weights.share[static_cast<size_t>(n)];
    const int64_t length =
        group_length(schemes[weights.weight[static_cast<size_t>(n)]], weights.cols);
    rows += share;
    for (int64_t begin = 0; begin < weights.cols; begin += length) {
      const int64_t end = std::min(weights.cols, begin + length);
      const float* const row = weights.w.data() + n * weights.cols;
      float largest = 0;
      for (int64_t k = begin; k < end; ++k) largest = std::max(largest, std::fabs(row[k]));
      if (largest == 0) continue;
      for (int64_t k = begin; k < end; ++k)
        mean[static_cast<size_t>(k)] += share * std::fabs(row[k]) / largest;
    }
  }
  for (double& value : mean) value /= rows;
  return mean;
}

// [K]: mean |x|; a channel without inputs gets the mean of the others, or 1.
inline std::vector<double> input_magnitudes(const Hessian& hessian) {
  std::vector<double> x(static_cast<size_t>(hessian.cols()));
  double sum = 0;
  int64_t live = 0;
  for (int64_t k = 0; k < hessian.cols(); ++k) {
    x[static_cast<size_t>(k)] = hessian.mean_magnitude(k);
    sum += x[static_cast<size_t>(k)];
    live += x[static_cast<size_t>(k)] > 0 ? 1 : 0;
  }
  for (double& value : x) {
    if (value == 0) value = live > 0 ? sum / static_cast<double>(live) : 1;
  }
  return x;
}

// Divided by sqrt(largest * smallest), so that weights keep their magnitude.
inline std::vector<float> normalised(std::vector<double> s) {
  constexpr double kSmallest = 1e-4;
  for (double& value : s) value = std::max(value, kSmallest);
  const auto [low, high] = std::minmax_element(s.begin(), s.end());
  const double divisor = std::sqrt(*low * *high);
  std::vector<float> result;
  for (const double value : s) result.push_back(static_cast<float>(value / divisor));
  return result;
}

}  // namespace detail

// The best scales of the grid; all ones, which is RTN, is always among the candidates. Throws
// InvalidArgument as gather_rows() does.
inline AwqResult search_awq_scales(const std::vector<ConstMatrixView>& weights,
                                   const Hessian& hessian, const SharedSchemes& schemes,
                                   const AwqOptions& options = {}, int threads = 0) {
  schemes.check(weights.size(), options.name);
  if (options.n_grid < 1) fail("n_grid is ", options.n_grid, "; it must be positive");
  const SharedInputRows rows = gather_rows(weights, hessian, options.max_rows, options.name);
  const LayerObjective objective(hessian);
  AwqResult best;
  best.scales.assign(static_cast<size_t>(rows.cols), 1.0f);
  best.rtn_error = scaled_error(rows, objective, schemes, options.mse_range, best.scales, threads);
  best.error = best.rtn_error;
  if (hessian.dead_columns() == hessian.cols()) return best;

  const std::vector<double> x = detail::input_magnitudes(hessian);
  const std::vector<double> w = detail::mean_relative_magnitude(rows, schemes);
  for (const bool duo : {false, true}) {
    if (options.duo_scaling == (duo ? DuoScaling::kOff : DuoScaling::kOn)) continue;
    for (int i = duo ? 0 : 1; i < options.n_grid; ++i) {
      const double alpha = static_cast<double>(i) / options.n_grid;
      std::vector<double> s(x.size());
      for (size_t k = 0; k < s.size(); ++k)
        s[k] = std::pow(x[k], alpha) / (duo ? std::pow(w[k], 1 - alpha) + 1e-4 : 1.0);
      std::vector<float> scales = detail::normalised(std::move(s));
      const double error =
          scaled_error(rows, objective, schemes, options.mse_range, scales, threads);
      if (error < best.error) best = {std::move(scales), alpha, duo, error, best.rtn_error};
    }
  }
  return best;
}

struct AwqClipOptions {
  int n_grid = 20;              // steps from the whole range down to nothing
  double max_shrink = 0.5;      // of which only those above this share of the range are tried
  std::string name = "weight";  // for messages
};

// The weight [N, K] with each group of each row clipped to the range, 1 - i / n_grid of the whole
// one, that has the least output error of that group's inputs alone: d H_gg d^T. Quantizing the
// result as usual then uses that range. A group whose errors all overflow is not clipped.
inline std::vector<float> clip_awq(const ConstMatrixView& weight, const Hessian& hessian,
                                   const QuantScheme& scheme, const AwqClipOptions& options = {},
                                   int threads = 0) {
  validate(scheme);
  if (options.n_grid < 1) fail("n_grid is ", options.n_grid, "; it must be positive");
  if (!(options.max_shrink >= 0 && options.max_shrink < 1))
    fail("max_shrink is ", options.max_shrink, "; it must lie in [0, 1)");
  detail::check_widths(weight, hessian, options.name);
  std::vector<float> w = detail::load_weight(weight, options.name, threads);
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  const int64_t rows = weight.rows, cols = weight.cols, length = group_length(scheme, cols);
  const int steps = static_cast<int>(options.max_shrink * options.n_grid);
  constexpr int64_t kChunk = 96;
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  for (int64_t begin = 0; begin < cols; begin += length) {
    const int64_t size = std::min(length, cols - begin);
    std::vector<float> h(static_cast<size_t>(size * size));
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j)
        h[static_cast<size_t>(i * size + j)] = static_cast<float>(hessian.at(begin + i, begin + j));
    }
    const int team = useful_threads(threads, rows * size * size, kElementGrain);
    parallel_for(chunks, team, [&](int64_t first_chunk, int64_t last_chunk) {
      std::vector<float> clipped(static_cast<size_t>(kChunk * size)), d(clipped.size()),
          product(clipped.size()), best(clipped.size());
      std::vector<uint8_t> codes(static_cast<size_t>(size));
      for (int64_t chunk = first_chunk; chunk < last_chunk; ++chunk) {
        const int64_t row = chunk * kChunk, count = std::min(kChunk, rows - row);
        // A row without a finite error at any step stays as it is.
        for (int64_t i = 0; i < count; ++i)
          std::copy_n(w.data() + (row + i) * cols + begin, size, best.data() + i * size);
        std::vector<double> least(static_cast<size_t>(count),
                                  std::numeric_limits<double>::infinity());
        for (int step = 0; step <= steps; ++step) {
          const float ratio = 1.0f - static_cast<float>(step) / static_cast<float>(options.n_grid);
          for (int64_t i = 0; i < count; ++i) {
            const float* const source = w.data() + (row + i) * cols + begin;
            float* const out = clipped.data() + i * size;
            const detail::GroupRange whole = detail::range_of(source, size);
            const float absmax = std::max(std::fabs(whole.min), std::fabs(whole.max));
            const bool asymmetric = scheme.zeros != ZeroKind::kNone;
            const float low = ratio * (asymmetric ? std::min(whole.min, 0.0f) : -absmax);
            const float high = ratio * (asymmetric ? std::max(whole.max, 0.0f) : absmax);
            for (int64_t k = 0; k < size; ++k) out[k] = std::clamp(source[k], low, high);
            const detail::GroupParameters found =
                detail::group_parameters(scheme, detail::range_of(out, size), 1.0f);
            const float scale = stored_scale(scheme.scales, found.scale);
            const float zero = detail::zero_for(scheme, found, scale);
            const detail::GroupCoder coder(dtype, scale, zero);
            detail::encode_group(dtype, out, size, scale, zero, codes.data());
            for (int64_t k = 0; k < size; ++k)
              d[static_cast<size_t>(i * size + k)] =
                  source[k] - coder.value(codes[static_cast<size_t>(k)]);
          }
          std::fill(product.begin(), product.end(), 0.0f);
          linalg::multiply_add(
              count, size, size, 1.0f, linalg::StridedMatrix<float>{d.data(), size, 1},
              linalg::StridedMatrix<float>{h.data(), size, 1}, product.data(), size, 1);
          for (int64_t i = 0; i < count; ++i) {
            double error = 0;
            for (int64_t k = 0; k < size; ++k) {
              const auto at = static_cast<size_t>(i * size + k);
              error += static_cast<double>(d[at]) * static_cast<double>(product[at]);
            }
            if (!(error < least[static_cast<size_t>(i)])) continue;
            least[static_cast<size_t>(i)] = error;
            std::copy_n(clipped.data() + i * size, size, best.data() + i * size);
          }
        }
        for (int64_t i = 0; i < count; ++i)
          std::copy_n(best.data() + i * size, size, w.data() + (row + i) * cols + begin);
      }
    });
  }
  return w;
}

}  // namespace woq
