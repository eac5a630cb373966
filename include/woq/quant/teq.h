// SPDX-License-Identifier: Apache-2.0
// TEQ (Cheng et al., arXiv:2310.10944): a trained scale a for each input channel. The layer and the
// objective, the output error of all layers that share the input, are
//     y = (x / a) Q(W a)^T
//     L = tr(D H D^T)
//     D = W - Q(W a) / a
// so that the moments H are all that is kept of the data. The paper's own objective, the loss of
// the model, needs the model in memory.
//
// Gradient, straight through the rounding (equation 5): for X = W diag(a), in a group of scale s,
// Q = s v with v = round(X / s), whose derivative counts as that of X / s. With theta = log a and
// G = D H:
//     dL/dtheta_k = -2 sum_n G_nk D_nk + sum over (n, g) of (dL/ds_ng) (ds_ng / dtheta_k)
//     dL/ds_ng    = -2 sum over k in g of G_nk (v_nk - X_nk / s) / a_k
// s follows the group's extremes: ds/dtheta_k is s at the weight that sets absmax, and the
// extreme's own share of max - min where there are zero points. Without that term the gradient
// would only ever raise scales. Where ranges are searched, each group's is a share of its full one
// that is searched anew every few steps and constant in between.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "woq/quant/shared_input.h"

namespace woq {

struct TeqOptions {
  int steps = 60;               // 0: RTN
  double learning_rate = 0.05;  // of log a; falls linearly to 0
  double beta1 = 0.9, beta2 = 0.99;
  double warmup = 0.05;              // share of the steps in which the rate rises from 0
  bool mse_range = false;            // of ranges, as scaled_error() does
  int64_t max_rows = kSearchedRows;  // of each weight, that training looks at; 0: all
  std::vector<float> start = {};     // [K], such as AWQ's scales; empty: ones
  std::string name = "layer";        // for messages
};

struct TeqResult {
  std::vector<float> scales;  // [K]: multiply the weight's columns; divide the inputs by the same
  // tr(D H D^T) with these scales, and without any; ranges are searched for both or for neither.
  double error = 0, rtn_error = 0;
};

namespace detail {

inline constexpr int kTeqSearchEvery = 10;  // steps

// L and its gradient at one set of scales.
class TeqLoss {
 public:
  TeqLoss(const SharedInputRows& weights, const LayerObjective& objective,
          const SharedSchemes& schemes, int threads)
      : weights_(weights),
        objective_(objective),
        schemes_(schemes),
        threads_(threads),
        d_(weights.w.size()),
        slope_(weights.w.size()),
        g_(weights.w.size()) {
    first_group_.push_back(0);
    for (int64_t n = 0; n < weights.rows; ++n)
      first_group_.push_back(first_group_.back() + group_count(scheme_of(n), weights.cols));
    extremes_.resize(static_cast<size_t>(first_group_.back()));
    ratios_.assign(extremes_.size(), 1.0f);
  }

  // Searches the share of its full range that each group's scale is made of.
  void search_ranges(const std::vector<float>& a) {
    const std::vector<float> importance = objective_.importance(a);
    const int team = useful_threads(threads_, weights_.rows * weights_.cols, kElementGrain);
    parallel_for(weights_.rows, team, [&](int64_t begin, int64_t end) {
      std::vector<float> x(static_cast<size_t>(weights_.cols));
      for (int64_t n = begin; n < end; ++n) {
        const QuantScheme& scheme = scheme_of(n);
        const int64_t length = group_length(scheme, weights_.cols);
        WeightedSearch search(scheme, length);
        scale_row(n, a, x.data());
        for (int64_t g = 0, first = 0; first < weights_.cols; ++g, first += length) {
          const int64_t size = std::min(length, weights_.cols - first);
          const GroupRange range = range_of(x.data() + first, size);
          const float whole = group_parameters(scheme, range, 1.0f).scale;
          const float found =
              search.search(range, x.data() + first, importance.data() + first, size).scale;
          ratio_of(n, g) = whole == 0.0f ? 1.0f : found / whole;
        }
      }
    });
  }

  // gradient [K] with respect to log a.
  double operator()(const std::vector<float>& a, std::vector<double>* gradient) {
    const int64_t cols = weights_.cols, chunks = (weights_.rows + kChunk - 1) / kChunk;
    const int team = useful_threads(threads_, weights_.rows * cols, kElementGrain);
    parallel_for(chunks, team, [&](int64_t begin, int64_t end) {
      std::vector<float> x(static_cast<size_t>(cols));
      std::vector<uint8_t> codes(x.size());
      for (int64_t n = begin * kChunk; n < std::min(weights_.rows, end * kChunk); ++n)
        quantize(n, a, x.data(), codes.data());
    });
    objective_.product(d_.data(), weights_.rows, g_.data(), threads_);
    // Partial sums of chunks that don't depend on the number of threads, added in order.
    std::vector<double> losses(static_cast<size_t>(chunks));
    std::vector<double> parts(static_cast<size_t>(chunks * cols));
    parallel_for(chunks, team, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        for (int64_t n = chunk * kChunk; n < std::min(weights_.rows, (chunk + 1) * kChunk); ++n)
          losses[static_cast<size_t>(chunk)] += add_row(n, parts.data() + chunk * cols);
      }
    });
    gradient->assign(static_cast<size_t>(cols), 0.0);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t k = 0; k < cols; ++k)
        (*gradient)[static_cast<size_t>(k)] += parts[static_cast<size_t>(chunk * cols + k)];
    }
    return std::accumulate(losses.begin(), losses.end(), 0.0);
  }

 private:
  static constexpr int64_t kChunk = 32;

  // Where a group's scale comes from: columns, and ds/dtheta there.
  struct Extremes {
    int64_t first = 0, second = 0;
    float first_slope = 0, second_slope = 0;
  };

  // D, (v - X / s) / a, and the extremes, of row n.
  void quantize(int64_t n, const std::vector<float>& a, float* x, uint8_t* codes) {
    const QuantScheme& scheme = scheme_of(n);
    const DtypeTraits& dtype = traits_of(scheme.dtype);
    const int64_t cols = weights_.cols, length = group_length(scheme, cols);
    const int64_t groups = group_count(scheme, cols);
    const float* const w = weights_.w.data() + n * cols;
    scale_row(n, a, x);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * length, end = std::min(cols, begin + length);
      const float ratio = ratio_of(n, g);
      const GroupParameters found =
          group_parameters(scheme, range_of(x + begin, end - begin), ratio);
      const float scale = stored_scale(scheme.scales, found.scale);
      const float zero = zero_for(scheme, found, scale);
      const GroupCoder coder(dtype, scale, zero);
      encode_group(dtype, x + begin, end - begin, scale, zero, codes + begin);
      for (int64_t k = begin; k < end; ++k) {
        const auto at = static_cast<size_t>(n * cols + k);
        const float value = coder.value(codes[k]), factor = a[static_cast<size_t>(k)];
        d_[at] = w[k] - value / factor;
        slope_[at] = scale == 0.0f ? 0.0f : (value - x[k]) / (scale * factor);
      }
      extremes_[static_cast<size_t>(first_group_[static_cast<size_t>(n)] + g)] =
          extremes_of(scheme, x, begin, end, scale, ratio / static_cast<float>(dtype.max_code()));
    }
  }

  static Extremes extremes_of(const QuantScheme& scheme, const float* x, int64_t begin, int64_t end,
                              float scale, float share) {
    Extremes result{begin, begin};
    if (scheme.zeros != ZeroKind::kNone) {
      for (int64_t k = begin; k < end; ++k) {
        if (x[k] < x[result.first]) result.first = k;
        if (x[k] > x[result.second]) result.second = k;
      }
      // The range always holds 0.
      result.first_slope = -std::min(x[result.first], 0.0f) * share;
      result.second_slope = std::max(x[result.second], 0.0f) * share;
      return result;
    }
    for (int64_t k = begin; k < end; ++k) {
      if (std::fabs(x[k]) > std::fabs(x[result.first])) result.first = k;
    }
    result.first_slope = scale;
    return result;
  }

  // Adds row n's share of the gradient; returns its share of the loss.
  double add_row(int64_t n, double* gradient) const {
    const QuantScheme& scheme = scheme_of(n);
    const int64_t cols = weights_.cols, length = group_length(scheme, cols);
    const int64_t groups = group_count(scheme, cols);
    const double share = weights_.share[static_cast<size_t>(n)];
    double loss = 0;
    for (int64_t g = 0; g < groups; ++g) {
      double scale_slope = 0;
      for (int64_t k = g * length; k < std::min(cols, (g + 1) * length); ++k) {
        const auto at = static_cast<size_t>(n * cols + k);
        const double product = static_cast<double>(g_[at]) * static_cast<double>(d_[at]);
        loss += product;
        gradient[k] -= 2 * share * product;
        scale_slope -= 2 * static_cast<double>(g_[at]) * static_cast<double>(slope_[at]);
      }
      const Extremes& extremes =
          extremes_[static_cast<size_t>(first_group_[static_cast<size_t>(n)] + g)];
      gradient[extremes.first] += share * scale_slope * extremes.first_slope;
      gradient[extremes.second] += share * scale_slope * extremes.second_slope;
    }
    return share * loss;
  }

  const QuantScheme& scheme_of(int64_t n) const {
    return schemes_[weights_.weight[static_cast<size_t>(n)]];
  }

  void scale_row(int64_t n, const std::vector<float>& a, float* x) const {
    const float* const w = weights_.w.data() + n * weights_.cols;
    for (int64_t k = 0; k < weights_.cols; ++k) x[k] = w[k] * a[static_cast<size_t>(k)];
  }

  float& ratio_of(int64_t n, int64_t g) {
    return ratios_[static_cast<size_t>(first_group_[static_cast<size_t>(n)] + g)];
  }

  const SharedInputRows& weights_;
  const LayerObjective& objective_;
  SharedSchemes schemes_;
  int threads_;
  std::vector<float> d_, slope_, g_;  // [rows, K]
  std::vector<int64_t> first_group_;  // [rows + 1]: of each row, among all groups of all rows
  std::vector<Extremes> extremes_;    // of all groups
  std::vector<float> ratios_;         // of all groups: scale / scale of the full range
};

}  // namespace detail

// Trains scales with Adam and returns the best that it met; ones, which is RTN, are always among
// them. Throws InvalidArgument as gather_rows() does, and for a start that doesn't fit.
inline TeqResult search_teq_scales(const std::vector<ConstMatrixView>& weights,
                                   const Hessian& hessian, const SharedSchemes& schemes,
                                   const TeqOptions& options = {}, int threads = 0) {
  schemes.check(weights.size(), options.name);
  if (options.steps < 0) fail("steps is ", options.steps, "; it must not be negative");
  if (!(options.learning_rate > 0))
    fail("the learning rate is ", options.learning_rate, "; it must be positive");
  const SharedInputRows rows = gather_rows(weights, hessian, options.max_rows, options.name);
  const auto cols = static_cast<size_t>(rows.cols);
  if (!options.start.empty() && options.start.size() != cols) {
    fail("the first scales of '", options.name, "' have ", options.start.size(),
         " elements, expected ", cols);
  }
  for (const float value : options.start) {
    if (!(value > 0) || !std::isfinite(value))
      fail("the first scales of '", options.name, "' hold ", value, "; they must be positive");
  }
  const LayerObjective objective(hessian);
  detail::TeqLoss loss(rows, objective, schemes.without_double_quantization(), threads);
  TeqResult best;
  best.scales.assign(cols, 1.0f);
  std::vector<double> gradient;
  if (options.mse_range) loss.search_ranges(best.scales);
  best.rtn_error = best.error = loss(best.scales, &gradient);
  if (best.error <= 0 || (options.steps == 0 && options.start.empty())) return best;

  std::vector<double> theta(cols), mean(cols), square(cols);
  std::vector<float> a(cols, 1.0f);
  if (!options.start.empty()) a = options.start;
  for (size_t k = 0; k < cols; ++k) theta[k] = std::log(static_cast<double>(a[k]));
  const double warmup = std::max(1.0, options.warmup * options.steps);
  for (int step = 0;; ++step) {
    const bool moved = step > 0 || !options.start.empty();  // else searched above
    if (options.mse_range && moved && step % detail::kTeqSearchEvery == 0) loss.search_ranges(a);
    const double error = loss(a, &gradient);
    if (error < best.error) {
      best.error = error;
      best.scales = a;
    }
    if (step == options.steps) return best;
    const double rate = options.learning_rate * std::min((step + 1) / warmup, 1.0) *
                        (1 - static_cast<double>(step) / options.steps);
    const double mean_share = 1 - std::pow(options.beta1, step + 1);
    const double square_share = 1 - std::pow(options.beta2, step + 1);
    for (size_t k = 0; k < cols; ++k) {
      // Relative to the loss: the step sizes don't depend on the inputs' units.
      const double slope = gradient[k] / best.rtn_error;
      mean[k] = options.beta1 * mean[k] + (1 - options.beta1) * slope;
      square[k] = options.beta2 * square[k] + (1 - options.beta2) * slope * slope;
      theta[k] -= rate * (mean[k] / mean_share) / (std::sqrt(square[k] / square_share) + 1e-8);
      a[k] = static_cast<float>(std::exp(theta[k]));
    }
  }
}

}  // namespace woq
