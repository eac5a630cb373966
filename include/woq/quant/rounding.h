// SPDX-License-Identifier: Apache-2.0
// The rounding of one weight as AutoRound tunes it (SignRound, arXiv:2309.05516): an offset V for
// each weight, scales and zero points that the caller derives from what it tunes of the ranges.
//
//   integers   W~ = s * clip(round(W / s + V), -z, top - z)
//   codebooks  W~ = s * table[clip(round(u(W / s) + V), 0, points - 1)]
//
// u maps a value to its place among the ascending code points, linear between two of them, so that
// V in [-0.5, 0.5] chooses between the same neighbours as it does for integers. Both directions in
// one pass over the weight: as separate tensor operations they took longer than the products.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "woq/core/dtype.h"
#include "woq/core/parallel.h"
#include "woq/core/view.h"

namespace woq {

// W [N, K], groups of `group` elements along K (the last one may be shorter), G of them in a row.
struct TunedRounding {
  const float* weight = nullptr;  // [N, K]
  float* offsets = nullptr;       // [N, K]: V
  const float* scales = nullptr;  // [N, G], finite; a stored scale can have rounded to 0
  const float* zeros = nullptr;   // [N, G], in codes (integers)
  const float* table = nullptr;   // [points], ascending (codebooks), else null
  int64_t rows = 0, cols = 0, group = 0;
  int points = 0;
  float top = 0;  // largest code (integers)

  int64_t groups() const { return (cols + group - 1) / group; }
};

// The code points of a dtype, ascending, each once, and the codes that stand for them: where two
// codes have one value, as +0 and -0 have, the lower one.
struct CodePoints {
  std::vector<float> values;
  std::vector<uint8_t> codes;

  explicit CodePoints(const DtypeTraits& dtype) {
    std::vector<int> order(static_cast<size_t>(dtype.max_code() + 1));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return code_value(dtype, a) < code_value(dtype, b); });
    for (const int code : order) {
      const float value = code_value(dtype, code);
      if (!values.empty() && value == values.back()) continue;
      values.push_back(value);
      codes.push_back(static_cast<uint8_t>(code));
    }
  }
};

namespace detail {

// Nearest integer, half to even, for |x| < 2^22: one addition and one subtraction, in any vector.
inline float nearest_integer(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

// Finite numbers only: no test for NaN, so that loops over it become vectors.
inline uint16_t finite_to_bf16(float x) {
  const uint32_t bits = float_bits(x);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct PointInTable {
  float place, width;  // real index; of the gap it lies in
};

inline PointInTable point_in_table(const float* table, int points, float x) {
  int left = 0;
  for (int i = 1; i + 1 < points; ++i) left += x > table[i] ? 1 : 0;
  const float width = table[left + 1] - table[left];
  return {static_cast<float>(left) + (x - table[left]) / width, width};
}

// The place of a real index in a table whose last place is `last`: 0 for NaN, which no conversion
// to an integer has a result for.
inline float place_of(float q, float last) {
  q = q > 0.0f ? q : 0.0f;
  return q > last ? last : q;
}

// Throws InvalidArgument for scales and zero points that no weight can be rounded with.
inline void check_ranges(const TunedRounding& r) {
  const int64_t groups = r.groups();
  const auto place = [&](int64_t i) {
    return concat(" at row ", i / groups, ", group ", i % groups);
  };
  for (int64_t i = 0; i < r.rows * groups; ++i) {
    if (!std::isfinite(r.scales[i]))
      fail("scales hold ", r.scales[i], place(i), "; they must be finite");
    if (r.table != nullptr) continue;
    if (!(r.zeros[i] >= 0 && r.zeros[i] <= r.top) || r.zeros[i] != std::floor(r.zeros[i]))
      fail("zeros hold ", r.zeros[i], place(i), "; they must be codes, 0 to ", r.top);
  }
}

inline void round_group(const TunedRounding& r, const float* w, const float* v, int64_t n, float s,
                        float z, float* out) {
  if (s == 0.0f) {
    std::fill_n(out, n, 0.0f);
    return;
  }
  if (r.table == nullptr) {
    const float low = -z, high = r.top - z;
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      float q = w[k] / s + v[k];
      q = q < low ? low : q;
      q = q > high ? high : q;
      out[k] = s * nearest_integer(q);
    }
    return;
  }
  const float last = static_cast<float>(r.points - 1);
  for (int64_t k = 0; k < n; ++k) {
    const float q = nearest_integer(point_in_table(r.table, r.points, w[k] / s).place + v[k]);
    const float rounded = s * r.table[static_cast<int>(place_of(q, last))];
    out[k] = std::isnan(q) ? q : rounded;
  }
}

struct GroupGradients {
  float scale = 0, zero = 0;
};

// The derivative of round is taken as 1 inside the range and as 0 outside. V takes one step against
// the sign of its gradient.
inline GroupGradients step_group(const TunedRounding& r, const float* w, float* v,
                                 const float* grad, int64_t n, float s, float z, float rate) {
  if (s == 0.0f) return {};  // W~ is 0 whatever V is
  const float step = s < 0 ? -rate : rate;
  float scale = 0, outside = 0;
  if (r.table == nullptr) {
    const float low = -z, high = r.top - z;
#pragma omp simd reduction(+ : scale, outside)
    for (int64_t k = 0; k < n; ++k) {
      const float x = w[k] / s, y = x + v[k];
      float c = y < low ? low : y;
      c = c > high ? high : c;
      c = nearest_integer(c);
      // Outside is what rounds to a code beyond the last: the bounds are integers.
      const float inside = y < low - 0.5f ? 0.0f : y > high + 0.5f ? 0.0f : 1.0f;
      scale += grad[k] * (c - inside * x);
      outside += grad[k] * (1.0f - inside);
      const float sign = grad[k] > 0 ? step : grad[k] < 0 ? -step : 0.0f;
      float moved = v[k] - sign * inside;
      moved = moved < -0.5f ? -0.5f : moved;
      v[k] = moved > 0.5f ? 0.5f : moved;
    }
    return {scale, -outside * s};
  }
  const float last = static_cast<float>(r.points - 1);
  for (int64_t k = 0; k < n; ++k) {
    const float x = w[k] / s;
    const float q = nearest_integer(point_in_table(r.table, r.points, x).place + v[k]);
    const float i = place_of(q, last);
    const float inside = q == i ? 1.0f : 0.0f;
    scale += grad[k] * (r.table[static_cast<int>(i)] - inside * x);
    const float sign = grad[k] > 0 ? step : grad[k] < 0 ? -step : 0.0f;
    v[k] = std::clamp(v[k] - sign * inside, -0.5f, 0.5f);
  }
  return {scale, 0.0f};
}

}  // namespace detail

// Writes W~ [N, K] as fp32 or bf16; NaN where the weight or its offset is NaN. Throws
// InvalidArgument for another type or shape, for scales that are not finite, and for zero points
// that are no code.
inline void rounded_weight(const TunedRounding& r, const MatrixView& out, int threads = 0) {
  if (out.rows != r.rows || out.cols != r.cols || out.type == FloatType::kFp16) {
    fail("the rounded weight is fp32 or bf16, ", r.rows, " x ", r.cols, ", not ", name_of(out.type),
         ", ", out.rows, " x ", out.cols);
  }
  detail::check_ranges(r);
  threads = useful_threads(threads, r.rows * r.cols, kElementGrain);
  parallel_for(r.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(r.cols));
    for (int64_t n = begin; n < end; ++n) {
      float* const floats =
          out.type == FloatType::kFp32 ? static_cast<float*>(out.row(n)) : row.data();
      for (int64_t g = 0; g < r.groups(); ++g) {
        const int64_t k = g * r.group, i = n * r.groups() + g;
        detail::round_group(r, r.weight + n * r.cols + k, r.offsets + n * r.cols + k,
                            std::min(r.group, r.cols - k), r.scales[i],
                            r.zeros == nullptr ? 0.0f : r.zeros[i], floats + k);
      }
      if (out.type == FloatType::kBf16) {
        auto* const halves = static_cast<uint16_t*>(out.row(n));
#pragma omp simd
        for (int64_t k = 0; k < r.cols; ++k) halves[k] = detail::finite_to_bf16(floats[k]);
      }
    }
  });
}

// Writes the code of each element of W~ to out [N, K], one a byte. `points` are those of r.table,
// and are not asked for integers. Throws InvalidArgument for scales and zero points as
// rounded_weight() does, and for a weight or an offset that is not finite.
inline void rounded_codes(const TunedRounding& r, const CodePoints& points, uint8_t* out,
                          int threads = 0) {
  detail::check_ranges(r);
  threads = useful_threads(threads, r.rows * r.cols, kElementGrain);
  parallel_for(r.rows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * r.cols; i < end * r.cols; ++i) {
      const int64_t g = i / r.cols * r.groups() + i % r.cols / r.group;
      const float x = r.scales[g] == 0.0f ? 0.0f : r.weight[i] / r.scales[g];
      const float last = static_cast<float>(r.points - 1);
      if (!std::isfinite(r.weight[i]) || !std::isfinite(r.offsets[i])) {
        fail("the weight at row ", i / r.cols, ", column ", i % r.cols, " is ", r.weight[i],
             " and its offset ", r.offsets[i], "; there is no code for what is not finite");
      }
      if (r.table == nullptr) {
        const float z = r.zeros[g];
        const float q = std::clamp(x + r.offsets[i], -z, r.top - z);
        out[i] = static_cast<uint8_t>(detail::nearest_integer(q) + z);
      } else {
        const float q = detail::nearest_integer(detail::point_in_table(r.table, r.points, x).place +
                                                r.offsets[i]);
        out[i] = points.codes[static_cast<size_t>(detail::place_of(q, last))];
      }
    }
  });
}

// Given the gradient of the loss with respect to W~ [N, K]: moves V by `rate` against the sign of
// its gradient, within [-0.5, 0.5], and writes the gradients of the scales and zero points [N, G]
// (zero_gradients may be null). The same result for any number of threads. Throws InvalidArgument
// for another shape, and for scales and zero points as rounded_weight() does.
inline void rounding_step(const TunedRounding& r, const ConstMatrixView& gradient, float rate,
                          float* scale_gradients, float* zero_gradients, int threads = 0) {
  if (gradient.rows != r.rows || gradient.cols != r.cols) {
    fail("the gradient is ", gradient.rows, " x ", gradient.cols, ", the weight ", r.rows, " x ",
         r.cols);
  }
  detail::check_ranges(r);
  threads = useful_threads(threads, r.rows * r.cols, kElementGrain);
  parallel_for(r.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(r.cols));
    for (int64_t n = begin; n < end; ++n) {
      load_floats(gradient.row(n), gradient.type, r.cols, row.data());
      for (int64_t g = 0; g < r.groups(); ++g) {
        const int64_t k = g * r.group, i = n * r.groups() + g;
        const detail::GroupGradients found =
            detail::step_group(r, r.weight + n * r.cols + k, r.offsets + n * r.cols + k,
                               row.data() + k, std::min(r.group, r.cols - k), r.scales[i],
                               r.zeros == nullptr ? 0.0f : r.zeros[i], rate);
        scale_gradients[i] = found.scale;
        if (zero_gradients != nullptr) zero_gradients[i] = found.zero;
      }
    }
  });
}

}  // namespace woq
