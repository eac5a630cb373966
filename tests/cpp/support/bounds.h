// SPDX-License-Identifier: Apache-2.0
// How far two results may be apart, derived from what was computed.
//
// Accumulation. kernel.h's result is a sum of terms s t a, - s z a and bias. However it is ordered,
// if at most n roundings lie between a term and the result, then the error is at most
//     gamma(n) T,   gamma(n) = n u / (1 - n u),   u = 2^-24,   T = sum of the terms' magnitudes
// (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1). A term meets at most
// K + 1 roundings of additions (its block's and those of the blocks behind it, each of which has a
// term), and 8 others: t - z, s (t - z) and s (t - z) + m in dequantize(), the zero point's, the
// scale's and the activation scale's multiplication, the bias, the store. Two evaluations of the
// same terms differ by twice that.
// Underflow adds an absolute error to each operation: 2^-149, or 2^-126 (1 + |t|) where bfloat16
// dot products flush subnormal operands and results to zero. Where scales are part of the weights,
// that error is of weights and products as they are, not before scaling.
//
// Quantization of the operands, against the exact product of dequantized weights and activations:
//     bf16: each rounding has a relative error of at most 2^-8 (activations; table values too)
//           dequantized weights are rounded after scaling, whatever their dtype
//     int8: activations are off by half a step of absmax / 127 of their block, a table's values by
//           the largest error of its 8-bit image
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "support/gemm.h"

namespace woq::testing {

// What a kernel's rounding errors depend on.
struct Arithmetic {
  ComputeType compute;
  bool dequantized = false;  // weights are scaled before they are multiplied

  Arithmetic(ComputeType type) : compute(type) {}
  Arithmetic(const Kernel& kernel) : compute(kernel.compute), dequantized(dequantizes(kernel)) {}
};

// [M, N] of non-negative numbers.
using Bounds = std::vector<double>;

namespace detail {

// Per row and block, what bounds are made of.
struct BlockSums {
  double magnitude = 0;  // sum of |a|
  double largest = 0;    // max of |a|
};

inline double largest_image_error(const DtypeTraits& dtype) {
  double worst = 0;
  if (dtype.is_integer()) return worst;
  const Codebook& book = *dtype.codebook;
  for (int c = 0; c < 16; ++c) {
    const double image = static_cast<double>(book.image[c]) * static_cast<double>(book.image_unit);
    worst = std::max(worst, std::fabs(image - static_cast<double>(book.values[c])));
  }
  return worst;
}

// What a group of weights has beside its codes, as magnitudes.
struct GroupMagnitudes {
  double scale, zero, minimum;
};

// Calls body(m, n, group, sum of |t||a|, sum of |t|, sums of the block, its length) for every
// output and block of K, and begin(m, n) before its first block.
template <class Begin, class Body>
void for_each_term_block(const GemmProblem& problem, const Begin& begin, const Body& body) {
  const QuantizedMatrix& hub = problem.hub;
  const DtypeTraits& dtype = hub.dtype();
  const int64_t length = hub.group_length();
  std::vector<std::vector<double>> magnitudes;
  for (int64_t m = 0; m < problem.rows(); ++m) {
    const std::vector<float> row = problem.x.row(m);
    magnitudes.emplace_back(row.begin(), row.end());
    for (double& a : magnitudes.back()) a = std::fabs(a);
  }
  std::vector<double> t(static_cast<size_t>(hub.cols));
  for (int64_t n = 0; n < hub.rows; ++n) {
    for (int64_t k = 0; k < hub.cols; ++k) {
      t[static_cast<size_t>(k)] = std::fabs(static_cast<double>(code_value(dtype, hub.code(n, k))));
    }
    for (int64_t m = 0; m < problem.rows(); ++m) {
      begin(m, n);
      for (int64_t g = 0; g < hub.groups(); ++g) {
        GroupMagnitudes group{std::fabs(static_cast<double>(hub.scales.at(n, g))), 0.0, 0.0};
        if (hub.scheme.zeros != ZeroKind::kNone)
          group.zero = std::fabs(static_cast<double>(hub.zero_point(n, g)) - dtype.center());
        if (hub.scheme.zeros == ZeroKind::kMin)
          group.minimum = std::fabs(static_cast<double>(hub.minima.at(n, g)));
        const int64_t group_end = std::min(hub.cols, (g + 1) * length);
        for (int64_t k = g * length; k < group_end;) {
          const int64_t end = std::min(group_end, k + kBlock), start = k;
          BlockSums a;
          double products = 0, values = 0;
          for (; k < end; ++k) {
            const double magnitude = magnitudes[static_cast<size_t>(m)][static_cast<size_t>(k)];
            products += t[static_cast<size_t>(k)] * magnitude;
            values += t[static_cast<size_t>(k)];
            a.magnitude += magnitude;
            a.largest = std::max(a.largest, magnitude);
          }
          body(m, n, group, products, values, a, end - start);
        }
      }
    }
  }
}

}  // namespace detail

inline double gamma(int64_t roundings) {
  const double nu = static_cast<double>(roundings) * 0x1p-24;
  return nu / (1 - nu);
}

// Of one evaluation in fp32 from the true sum of the terms.
inline Bounds accumulation_bounds(const GemmProblem& problem, const Arithmetic& arithmetic) {
  const ComputeType compute = arithmetic.compute;
  Bounds bounds(static_cast<size_t>(problem.rows() * problem.cols()));
  const double relative = gamma(problem.hub.cols + 9);
  const double largest_code = problem.hub.dtype().is_integer() ? 128 : 6;
  const double tiny = compute == ComputeType::kBf16 ? 0x1p-126 * (1 + largest_code) : 0x1p-149;
  // bfloat16 operands may be 2^-8 larger than the numbers they stand for, each of the two.
  const double operands = compute == ComputeType::kBf16 ? 1.01 : 1.0;
  double* bound = nullptr;
  detail::for_each_term_block(
      problem,
      [&](int64_t m, int64_t n) {
        bound = &bounds[static_cast<size_t>(m * problem.cols() + n)];
        const double bias =
            problem.bias.empty() ? 0.0 : static_cast<double>(problem.bias[static_cast<size_t>(n)]);
        *bound = relative * std::fabs(bias) + 3 * 0x1p-149;
      },
      [&](int64_t, int64_t, const detail::GroupMagnitudes& group, double products, double,
          const detail::BlockSums& a, int64_t length) {
        const auto [scale, zero, minimum] = group;
        *bound += relative * operands *
                      (scale * (products + zero * a.magnitude) + minimum * a.magnitude) +
                  (scale * (1 + zero) + minimum) * (2.0 * static_cast<double>(length) + 2) * tiny +
                  0x1p-149;
        if (!arithmetic.dequantized) return;
        const bool flushes = compute == ComputeType::kBf16;
        const double product = flushes ? 0x1p-126 : 0x1p-149;
        const double weight = flushes ? 0x1p-126 : 0;
        *bound += 2 * static_cast<double>(length) * product + operands * a.magnitude * weight;
      });
  return bounds;
}

// Of a kernel's operands, rounded for its compute type, from the ones it was given.
inline Bounds operand_bounds(const GemmProblem& problem, const Arithmetic& arithmetic) {
  const ComputeType compute = arithmetic.compute;
  Bounds bounds(static_cast<size_t>(problem.rows() * problem.cols()));
  if (compute == ComputeType::kFp32) return bounds;
  const bool integer = problem.hub.dtype().is_integer();
  const double bf16 = 0x1p-8, image = detail::largest_image_error(problem.hub.dtype());
  double* bound = nullptr;
  detail::for_each_term_block(
      problem,
      [&](int64_t m, int64_t n) { bound = &bounds[static_cast<size_t>(m * problem.cols() + n)]; },
      [&](int64_t, int64_t, const detail::GroupMagnitudes& group, double products, double values,
          const detail::BlockSums& a, int64_t length) {
        const auto [scale, zero, minimum] = group;
        if (compute == ComputeType::kBf16) {
          const double both = 2 * bf16 + bf16 * bf16;
          const double product = integer && !arithmetic.dequantized ? bf16 : both;
          const double correction = arithmetic.dequantized ? both : bf16;
          *bound += scale * (product * products + correction * zero * a.magnitude) +
                    correction * minimum * a.magnitude;
          return;
        }
        // x * (127 / absmax) and absmax / 127 are rounded too: 4 u of up to 127 steps.
        const double step = (0.5 + 127 * 4 * 0x1p-24) * a.largest / 127;
        const double off = a.largest < 1e-36 ? a.largest : step;
        const double images = values + image * static_cast<double>(length);
        *bound += scale * (image * a.magnitude + off * images +
                           off * zero * static_cast<double>(length)) +
                  minimum * off * static_cast<double>(length);
      });
  return bounds;
}

// Two roundings of numbers about `magnitude` to the type of the output.
inline double store_bound(FloatType type, double magnitude) {
  switch (type) {
    case FloatType::kFp32: return 0;
    case FloatType::kBf16: return 2 * 0x1p-8 * magnitude + 0x1p-133;
    case FloatType::kFp16: return 2 * 0x1p-11 * magnitude + 0x1p-24;
  }
  return 0;
}

inline Bounds plus(Bounds a, const Bounds& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

inline Bounds times(double factor, Bounds a) {
  for (double& value : a) value *= factor;
  return a;
}

// Elements [m0, m1) x [n0, n1) are equal bit for bit, or both NaN.
inline ::testing::AssertionResult identical(const FloatMatrix& actual, const FloatMatrix& expected,
                                            int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  for (int64_t m = m0; m < m1; ++m) {
    for (int64_t n = n0; n < n1; ++n) {
      const float a = actual.get(m, n), e = expected.get(m, n);
      if (actual.bits(m, n) == expected.bits(m, n) || (std::isnan(a) && std::isnan(e))) continue;
      return ::testing::AssertionFailure()
             << "[" << m << ", " << n << "] is " << a << " instead of " << e;
    }
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult identical(const FloatMatrix& actual,
                                            const FloatMatrix& expected) {
  return identical(actual, expected, 0, expected.rows(), 0, expected.cols());
}

// |actual - expected| is within the bound, which is [M, N] of the whole matrix; infinities must be
// the same ones and NaN be NaN. The failure shows the element that is farthest out of its bound.
template <class Expected>
::testing::AssertionResult within(const FloatMatrix& actual, const Expected& expected,
                                  const Bounds& bounds, int64_t m0, int64_t m1, int64_t n0,
                                  int64_t n1) {
  double worst = 1;
  int64_t worst_m = -1, worst_n = -1;
  for (int64_t m = m0; m < m1; ++m) {
    for (int64_t n = n0; n < n1; ++n) {
      const double a = actual.get(m, n), e = expected.get(m, n);
      if (a == e || (std::isnan(a) && std::isnan(e))) continue;
      const double bound = bounds[static_cast<size_t>(m * actual.cols() + n)];
      const double allowed = bound + store_bound(actual.type(), std::fabs(e) + bound);
      const double excess = std::fabs(a - e) / allowed;
      if (excess <= worst) continue;
      worst = std::isnan(excess) ? HUGE_VAL : excess;
      worst_m = m;
      worst_n = n;
    }
  }
  if (worst_m < 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "[" << worst_m << ", " << worst_n << "] is " << actual.get(worst_m, worst_n)
         << " instead of " << expected.get(worst_m, worst_n) << ": " << worst
         << " times the derived bound";
}

template <class Expected>
::testing::AssertionResult within(const FloatMatrix& actual, const Expected& expected,
                                  const Bounds& bounds) {
  return within(actual, expected, bounds, 0, actual.rows(), 0, actual.cols());
}

// int8 results are bit-identical on every target; the others differ by the order of additions.
inline ::testing::AssertionResult agrees(const FloatMatrix& actual, const FloatMatrix& expected,
                                         const GemmProblem& problem, const Arithmetic& arithmetic) {
  if (arithmetic.compute == ComputeType::kInt8) return identical(actual, expected);
  return within(actual, expected, times(2, accumulation_bounds(problem, arithmetic)));
}

}  // namespace woq::testing
