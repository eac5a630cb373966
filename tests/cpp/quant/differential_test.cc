// SPDX-License-Identifier: Apache-2.0
// Every quantizer on random weights, also subnormal ones and such as reach the end of fp32, beside
// what its formulas say in double precision. The time is bounded, not the number of cases.
// WOQ_TEST_SEED=<case> begins with a case that failed.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "support/eigen.h"
#include "support/layers.h"
#include "support/schemes.h"
#include "woq/quant/awq.h"
#include "woq/quant/gptq.h"
#include "woq/quant/hqq.h"
#include "woq/quant/make.h"
#include "woq/quant/teq.h"

namespace woq::testing {
namespace {

constexpr double kUnit = 0x1p-24;  // the rounding of an operation in fp32

// Runs check(random) for cases 0, 1, ... until the time is over or one fails.
template <class Check>
void for_cases(const Check& check) {
  const auto begin = std::chrono::steady_clock::now();
  const double seconds = test_seconds(0.5);
  const uint64_t seed = test_seed();
  int cases = 0;
  for (; !::testing::Test::HasFailure(); ++cases) {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    if (cases > 0 && spent.count() > seconds) break;
    SCOPED_TRACE("seed " + std::to_string(seed) + ", case " + std::to_string(cases));
    Random random(seed + static_cast<uint64_t>(cases));
    check(random);
  }
  ::testing::Test::RecordProperty("cases", cases);
}

struct Weights {
  int64_t rows, cols;
  std::vector<float> w;
  float largest = 0;

  ConstMatrixView view() const { return view_of(w.data(), rows, cols); }
};

// Normal weights, each row of a magnitude of its own; some rows hold zeros, equal numbers or
// outliers.
Weights random_weights(Random& random, int64_t rows, int64_t cols) {
  constexpr float kMagnitudes[] = {0.02f,  0.02f,  1.0f,  1e-3f, 300.0f, 1e-20f,
                                   1e-37f, 1e-41f, 1e20f, 1e30f, 1e37f,  1e38f};
  Weights result{rows, cols, normal_weights(random, rows, cols, 1.0f)};
  const float common = random.pick(kMagnitudes);
  for (int64_t n = 0; n < rows; ++n) {
    float* const row = result.w.data() + n * cols;
    const float magnitude = random.below(4) == 0 ? random.pick(kMagnitudes) : common;
    const int64_t kind = random.below(12);
    for (int64_t k = 0; k < cols; ++k) {
      float value = std::clamp(row[k], -3.4f, 3.4f) * magnitude;
      if (kind == 0 && k > cols / 2) value = 0.0f;
      if (kind == 1) value = magnitude;
      if (kind == 2 && random.below(20) == 0) value *= 50;
      if (kind == 3) value = std::fabs(value);
      row[k] = std::clamp(value, -3.4028235e38f, 3.4028235e38f);
      result.largest = std::max(result.largest, std::fabs(row[k]));
    }
  }
  return result;
}

QuantScheme random_quantizer_scheme(Random& random, bool float_zeros = false) {
  QuantScheme scheme;
  do {
    scheme.dtype = random.pick(kDtypes).dtype;
  } while (float_zeros && !traits_of(scheme.dtype).is_integer());
  scheme.group_size = random.pick(kGroupSizes);
  if (traits_of(scheme.dtype).is_integer() && random.coin()) scheme.zeros = ZeroKind::kInt;
  if (float_zeros) scheme.zeros = ZeroKind::kFloat;
  scheme.scales = random.pick(made_encodings());
  return scheme;
}

// What quantizes, or is refused where numbers are too large for their types: true if quantized.
template <class Quantize>
bool quantized(const Weights& weights, const QuantScheme& scheme, double limit,
               const Quantize& quantize) {
  try {
    quantize();
    return true;
  } catch (const InvalidArgument& error) {
    const double fits = scheme.scales == ScaleEncoding::kFp16 ? 65504 : 3e38;
    EXPECT_GT(weights.largest, fits * limit) << describe(scheme) << ": " << error.what();
    return false;
  }
}

// No code stands for a number nearer to `value` than `code` does, but for the rounding of the
// quotient, of the middle between two codes, and of the zero point's addition: a few units of the
// value and of the range. Scales below 1e-38 count as 1e-38 where codebooks multiply by
// reciprocals.
void expect_nearest(const QuantizedMatrix& matrix, int64_t n, int64_t k, double value) {
  const DtypeTraits& dtype = matrix.dtype();
  const int64_t g = matrix.group_of(k);
  const double scale = matrix.scales.at(n, g);
  const double zero = dtype.is_integer() ? matrix.zero_point(n, g) : 0;
  const auto level = [&](int code) {
    return dtype.is_integer() ? code - zero : static_cast<double>(dtype.codebook->values[code]);
  };
  double nearest = HUGE_VAL, range = std::fabs(zero);
  for (int code = 0; code <= dtype.max_code(); ++code) {
    nearest = std::min(nearest, std::fabs(value - scale * level(code)));
    range = std::max(range, std::fabs(level(code)));
  }
  const double error = std::fabs(value - scale * level(matrix.code(n, k)));
  double slack = 8 * kUnit * (std::fabs(value) + std::fabs(scale) * range) + 0x1p-148;
  if (std::fabs(scale) < 1e-38 && !dtype.is_integer()) slack += 4e-38;
  ASSERT_LE(error, nearest + slack)
      << describe(matrix) << ", row " << n << ", column " << k << ": " << value << " with scale "
      << scale << " became code " << matrix.code(n, k);
}

void expect_finite(const QuantizedMatrix& matrix) {
  std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, values.data(), 1);
  for (const float value : values) ASSERT_TRUE(std::isfinite(value)) << describe(matrix);
}

// Round to nearest's scale of a group, before it is stored.
double ideal_scale(const QuantScheme& scheme, const float* w, int64_t n) {
  const DtypeTraits& dtype = traits_of(scheme.dtype);
  const auto [low, high] = std::minmax_element(w, w + n);
  if (scheme.zeros != ZeroKind::kNone) {
    const double min = std::min(static_cast<double>(*low), 0.0);
    const double max = std::max(static_cast<double>(*high), 0.0);
    return (min == 0 && max == 0 ? 2 : max - min) / dtype.max_code();
  }
  const double absmax =
      std::max(std::fabs(static_cast<double>(*low)), std::fabs(static_cast<double>(*high)));
  return (absmax == 0 && dtype.is_integer() ? 1 : absmax) /
         static_cast<double>(dtype.scale_divisor);
}

// Half of the widest gap of double quantization's map.
double half_gap() {
  double gap = 0;
  for (size_t i = 1; i < dynamic_map().size(); ++i)
    gap = std::max(
        gap, static_cast<double>(dynamic_map()[i]) - static_cast<double>(dynamic_map()[i - 1]));
  return gap / 2;
}

void expect_scales(const QuantizedMatrix& matrix, const Weights& weights) {
  const ScaleTable& scales = matrix.scales;
  for (int64_t i = 0; i < scales.size(); ++i) {
    const int64_t n = i / matrix.groups(), begin = i % matrix.groups() * matrix.group_length();
    const int64_t size = std::min(matrix.group_length(), matrix.cols - begin);
    const double ideal =
        ideal_scale(matrix.scheme, weights.w.data() + n * matrix.cols + begin, size);
    double bound = 0;
    switch (scales.encoding) {
      case ScaleEncoding::kFp32: bound = 4 * kUnit * ideal + 0x1p-148; break;
      case ScaleEncoding::kFp16: bound = (0x1p-11 + 4 * kUnit) * ideal + 0x1p-25; break;
      case ScaleEncoding::kBf16: bound = (0x1p-8 + 4 * kUnit) * ideal + 0x1p-133; break;
      case ScaleEncoding::kDouble: {
        const double absmax = scales.block_absmax.as<float>()[i / kDoubleQuantBlock];
        const double offset = static_cast<double>(scales.offset);
        bound = (half_gap() + 8 * kUnit) * absmax + 8 * kUnit * (ideal + offset) + 1e-37;
        break;
      }
      default: FAIL() << "no quantizer writes scales in " << name_of(scales.encoding);
    }
    const double stored = scales.at(i);
    const bool is_signed = has_signed_scales(matrix.scheme);
    ASSERT_NEAR(is_signed ? std::fabs(stored) : stored, ideal,
                // A magnitude that rounded below zero comes back with the other sign.
                is_signed && scales.encoding == ScaleEncoding::kDouble ? 2 * bound : bound)
        << describe(matrix) << ", scale " << i;
  }
}

TEST(Differential, RoundToNearest) {
  for_cases([](Random& random) {
    const bool large = random.below(16) == 0;
    const int64_t rows = large ? 199 : 1 + random.below(12),
                  cols = large ? 523 : 1 + random.below(300);
    const Weights weights = random_weights(random, rows, cols);
    const QuantScheme scheme = random_quantizer_scheme(random);
    QuantizedMatrix matrix;
    if (!quantized(weights, scheme, 0.4,
                   [&] { matrix = quantize_rtn(weights.view(), scheme, {}, 1); }))
      return;
    expect_finite(matrix);
    expect_scales(matrix, weights);
    for (int64_t i = 0; i < rows * cols && !::testing::Test::HasFatalFailure(); i += large ? 7 : 1)
      expect_nearest(matrix, i / cols, i % cols, weights.w[static_cast<size_t>(i)]);
    if (!large) return;
    ASSERT_EQ(difference(quantize_rtn(weights.view(), scheme, {}, 3), matrix), "");
  });
}

// The searches: never worse than without, as far as fp32 can tell.
TEST(Differential, SearchedRoundToNearest) {
  for_cases([](Random& random) {
    const int64_t rows = 1 + random.below(6), cols = 1 + random.below(200);
    const Weights weights = random_weights(random, rows, cols);
    QuantScheme scheme = random_quantizer_scheme(random);
    RtnOptions options;
    options.mse_range = true;
    if (random.coin()) {
      for (int64_t k = 0; k < cols; ++k)
        options.importance.push_back(random.below(8) == 0 ? 0.0f : random.uniform(0.1f, 30.0f));
    }
    QuantizedMatrix plain, searched;
    if (!quantized(weights, scheme, 0.3, [&] {
          plain = quantize_rtn(weights.view(), scheme, {}, 1);
          searched = quantize_rtn(weights.view(), scheme, options, 1);
        }))
      return;
    expect_finite(searched);
    for (int64_t i = 0; i < rows * cols && !::testing::Test::HasFatalFailure(); ++i)
      expect_nearest(searched, i / cols, i % cols, weights.w[static_cast<size_t>(i)]);
    if (scheme.scales != ScaleEncoding::kFp32) return;  // rounding a scale can cost either side
    std::vector<float> before(weights.w.size()), after(before.size());
    dequantize(plain, before.data(), 1);
    dequantize(searched, after.data(), 1);
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t begin = 0; begin < cols; begin += plain.group_length()) {
        double a = 0, b = 0, all = 0;
        for (int64_t k = begin; k < std::min(cols, begin + plain.group_length()); ++k) {
          const auto i = static_cast<size_t>(n * cols + k);
          const double weight =
              options.importance.empty() ? 1 : options.importance[static_cast<size_t>(k)];
          const double w = weights.w[i];
          a += weight * (w - before[i]) * (w - before[i]);
          b += weight * (w - after[i]) * (w - after[i]);
          all += weight * w * w;
        }
        if (!(all > 1e-25 && all < 1e36)) continue;  // squares that fp32 has no numbers for
        const auto roundings = static_cast<double>(2 * cols + 8);
        ASSERT_LE(b, a + roundings * 2 * kUnit * all) << describe(plain) << ", row " << n;
      }
    }
  });
}

TEST(Differential, Hqq) {
  for_cases([](Random& random) {
    const bool large = random.below(16) == 0;
    const int64_t rows = large ? 199 : 1 + random.below(8),
                  cols = large ? 200 : 1 + random.below(200);
    const Weights weights = random_weights(random, rows, cols);
    const QuantScheme scheme = random_quantizer_scheme(random, true);
    QuantScheme whole = scheme;
    whole.zeros = ZeroKind::kInt;
    HqqOptions options;
    options.steps = static_cast<int>(random.below(25));
    QuantizedMatrix start, matrix;
    if (!quantized(weights, scheme, 0.3, [&] {
          start = quantize_rtn(weights.view(), whole, {}, 1);
          matrix = quantize_hqq(weights.view(), scheme, options, 1);
        }))
      return;
    expect_finite(matrix);
    std::vector<float> before(weights.w.size()), after(before.size());
    dequantize(start, before.data(), 1);
    dequantize(matrix, after.data(), 1);
    for (int64_t n = 0; n < rows && !::testing::Test::HasFatalFailure(); ++n) {
      for (int64_t g = 0; g < matrix.groups(); ++g) {
        double a = 0, b = 0, largest = 0;
        const int64_t begin = g * matrix.group_length();
        const int64_t end = std::min(cols, begin + matrix.group_length());
        for (int64_t k = begin; k < end; ++k) {
          const auto i = static_cast<size_t>(n * cols + k);
          expect_nearest(matrix, n, k, weights.w[i]);
          a += std::fabs(static_cast<double>(weights.w[i]) - before[i]);
          b += std::fabs(static_cast<double>(weights.w[i]) - after[i]);
          largest = std::max(largest, std::fabs(static_cast<double>(weights.w[i])));
        }
        // The core's residuals have three roundings each of numbers up to twice the largest weight.
        ASSERT_LE(b, a + static_cast<double>(end - begin) * (12 * kUnit * largest + 0x1p-147))
            << describe(matrix) << ", row " << n << ", group " << g;
      }
    }
    if (!large) return;
    ASSERT_EQ(difference(quantize_hqq(weights.view(), scheme, options, 3), matrix), "");
  });
}

// Weights in flight against the recurrence of gptq.h in double precision, with the codes that were
// chosen, so that one code that a rounding decided otherwise does not change what follows; and
// codes against the weights in flight.
TEST(Differential, Gptq) {
  for_cases([](Random& random) {
    const int64_t rows = 1 + random.below(10), cols = 1 + random.below(90);
    Weights weights = random_weights(random, rows, cols);
    const std::vector<float> x = correlated_inputs(random, 2 * cols + 1, cols);
    Hessian hessian(cols);
    hessian.add(view_of(x.data(), 2 * cols + 1, cols), 1);
    const QuantScheme scheme = random_quantizer_scheme(random);
    constexpr ActOrder kOrders[] = {ActOrder::kNone, ActOrder::kDesc, ActOrder::kGroupAware};
    GptqOptions options;
    options.act_order = random.pick(kOrders);
    options.static_groups = random.coin();
    options.mse_range = random.coin();
    options.fp64 = random.coin();
    options.block_size = 1 + random.below(140);
    std::vector<float> in_flight(weights.w.size());
    options.in_flight = in_flight.data();
    GptqResult result;
    if (!quantized(weights, scheme, 0.01, [&] {
          result = quantize_gptq(weights.view(), hessian, scheme, options,
                                 1 + static_cast<int>(random.below(3)));
        }))
      return;
    const QuantizedMatrix& matrix = result.matrix;
    expect_finite(matrix);
    for (int64_t i = 0; i < rows * cols && !::testing::Test::HasFatalFailure(); ++i)
      expect_nearest(matrix, i / cols, i % cols, in_flight[static_cast<size_t>(i)]);

    std::vector<double> diagonal(static_cast<size_t>(cols));
    for (int64_t k = 0; k < cols; ++k) diagonal[static_cast<size_t>(k)] = hessian.at(k, k);
    const std::vector<int64_t> column =
        woq::detail::make_gptq_order(diagonal, scheme, options).column;
    EigenMatrix h(cols, cols);
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j < cols; ++j)
        h(i, j) = hessian.at(column[static_cast<size_t>(i)], column[static_cast<size_t>(j)]);
    }
    h.diagonal().array() += result.damp * h.diagonal().mean();
    const EigenMatrix reversed = h.reverse();
    const EigenMatrix lower = Eigen::LLT<EigenMatrix>(reversed).matrixL();
    const EigenMatrix r = lower.reverse();  // H = R R^T, R upper
    std::vector<float> values(weights.w.size());
    dequantize(matrix, values.data(), 1);
    // fp32: R, d and each product and addition are rounded, the result is once more.
    const double relative = (options.fp64 ? 4 : static_cast<double>(cols) + 8) * kUnit;
    for (int64_t n = 0; n < rows; ++n) {
      std::vector<double> d(static_cast<size_t>(cols));
      for (int64_t j = 0; j < cols; ++j) {
        const auto at = static_cast<size_t>(n * cols + column[static_cast<size_t>(j)]);
        const double w = weights.w[at];
        double sum = 0, magnitude = 0;
        for (int64_t i = 0; i < j; ++i) {
          sum += d[static_cast<size_t>(i)] * r(i, j) / r(j, j);
          magnitude += std::fabs(d[static_cast<size_t>(i)] * r(i, j) / r(j, j));
        }
        d[static_cast<size_t>(j)] = w - static_cast<double>(values[at]);
        // A difference of equal numbers is exact, that of others is off by a unit of the larger.
        const double bound = relative * (magnitude + std::fabs(w)) + 1e-43;
        ASSERT_NEAR(in_flight[at], w + sum, bound + 1e-9 * magnitude)
            << describe(matrix) << ", row " << n << ", position " << j;
      }
    }
  });
}

TEST(Differential, AwqAndTeq) {
  for_cases([](Random& random) {
    const int64_t rows = 1 + random.below(10), cols = 1 + random.below(90);
    Weights weights = random_weights(random, rows, cols);
    const std::vector<float> x = correlated_inputs(random, cols + 1, cols);
    Hessian hessian(cols);
    hessian.add(view_of(x.data(), cols + 1, cols), 1);
    QuantScheme scheme = random_quantizer_scheme(random);
    std::vector<float> clipped;
    if (quantized(weights, scheme, 0.01, [&] {
          clipped =
              clip_awq(weights.view(), hessian, scheme, {}, 1 + static_cast<int>(random.below(3)));
        })) {
      // Each group is the group itself, cut off at two ends.
      const int64_t length = group_length(scheme, cols);
      for (int64_t i = 0; i < rows * cols; ++i) {
        const int64_t begin = i / cols * cols + i % cols / length * length;
        const int64_t end = std::min(begin + length, (i / cols + 1) * cols);
        const auto [low, high] =
            std::minmax_element(clipped.begin() + begin, clipped.begin() + end);
        const float w = weights.w[static_cast<size_t>(i)];
        ASSERT_EQ(clipped[static_cast<size_t>(i)], std::clamp(w, *low, *high)) << describe(scheme);
      }
    }
    AwqOptions awq;
    awq.n_grid = 4;
    awq.mse_range = random.coin();
    TeqOptions teq;
    teq.steps = 3;
    teq.mse_range = awq.mse_range;
    AwqResult a;
    TeqResult t;
    if (!quantized(weights, scheme, 1e-8, [&] {
          a = search_awq_scales({weights.view()}, hessian, scheme, awq, 1);
          t = search_teq_scales({weights.view()}, hessian, scheme, teq, 1);
        }))
      return;
    for (const std::vector<float>& scales : {a.scales, t.scales}) {
      for (const float scale : scales) ASSERT_TRUE(scale > 0 && std::isfinite(scale)) << scale;
    }
    // An error that overflows is no number; ones are what is left then.
    ASSERT_TRUE(!std::isfinite(a.rtn_error) || a.error <= a.rtn_error) << describe(scheme);
    ASSERT_TRUE(!std::isfinite(t.rtn_error) || t.error <= t.rtn_error) << describe(scheme);
  });
}

// Codes with scales and zero points as files have them.
TEST(Differential, FromCodes) {
  for_cases([](Random& random) {
    const int64_t rows = 1 + random.below(6), cols = 1 + random.below(80);
    QuantScheme scheme = random_quantizer_scheme(random);
    if (traits_of(scheme.dtype).is_integer() && random.coin()) scheme.zeros = ZeroKind::kFloat;
    const DtypeTraits& dtype = traits_of(scheme.dtype);
    const int64_t groups = group_count(scheme, cols);
    const Weights scales = random_weights(random, rows, groups),
                  zeros = random_weights(random, rows, groups);
    std::vector<uint8_t> codes(static_cast<size_t>(rows * cols));
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random.below(dtype.max_code() + 1));
    std::vector<float> whole(zeros.w.size());
    for (float& zero : whole) zero = static_cast<float>(random.below(dtype.max_code() + 1));
    const float* const given = scheme.zeros == ZeroKind::kNone  ? nullptr
                               : scheme.zeros == ZeroKind::kInt ? whole.data()
                                                                : zeros.w.data();
    QuantizedMatrix matrix;
    // A zero point that is any number can be as large as a weight.
    const double limit = scheme.zeros == ZeroKind::kFloat ? 0 : 0.003;
    if (!quantized(scales, scheme, limit, [&] {
          matrix = from_codes(codes.data(), scales.w.data(), given, scheme, rows, cols);
        }))
      return;
    expect_finite(matrix);
    std::vector<float> factors(static_cast<size_t>(cols));
    for (float& factor : factors) factor = random.uniform(0.5f, 1e3f);
    QuantizedMatrix scaled;
    if (quantized(scales, scheme, limit * 1e-3,
                  [&] { scaled = with_act_scales(matrix, factors.data()); }))
      expect_finite(scaled);
  });
}

}  // namespace
}  // namespace woq::testing
