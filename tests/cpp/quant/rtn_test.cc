// SPDX-License-Identifier: Apache-2.0
// Properties of round to nearest that hold for every scheme and shape.
#include "woq/quant/rtn.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/errors.h"
#include "support/matrices.h"
#include "support/schemes.h"
#include "woq/quant/dequantize.h"

namespace woq::testing {
namespace {

// What quantizers produce.
std::vector<QuantScheme> quantizer_schemes(std::initializer_list<int64_t> group_sizes) {
  std::vector<QuantScheme> schemes;
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : made_zero_kinds(dtype)) {
      for (const ScaleEncoding scales : made_encodings()) {
        for (const int64_t group_size : group_sizes) {
          schemes.push_back({dtype.dtype, group_size, zeros, scales});
        }
      }
    }
  }
  return schemes;
}

// Squared errors of row n, group by group.
std::vector<double> group_errors(const std::vector<float>& w, const QuantizedMatrix& matrix,
                                 int64_t n) {
  std::vector<float> back(static_cast<size_t>(matrix.cols));
  dequantize_row(matrix, n, back.data());
  std::vector<double> errors(static_cast<size_t>(matrix.groups()));
  for (int64_t k = 0; k < matrix.cols; ++k) {
    const double error = static_cast<double>(w[static_cast<size_t>(n * matrix.cols + k)]) -
                         static_cast<double>(back[static_cast<size_t>(k)]);
    errors[static_cast<size_t>(k / matrix.group_length())] += error * error;
  }
  return errors;
}

// The codes are chosen for the scale and zero point as they are stored: no other code is nearer.
// Half an ulp of the quotient is what a division may be off at a midpoint.
void expect_nearest(const std::vector<float>& w, const QuantizedMatrix& matrix) {
  const DtypeTraits& dtype = matrix.dtype();
  for (int64_t n = 0; n < matrix.rows; ++n) {
    for (int64_t k = 0; k < matrix.cols; ++k) {
      const int64_t g = k / matrix.group_length();
      const double scale = matrix.scales.at(n, g), zero = matrix.zero_point(n, g);
      const auto error = [&](int code) {
        const double value =
            dtype.is_integer() ? code - zero : static_cast<double>(dtype.codebook->values[code]);
        return std::fabs(static_cast<double>(w[static_cast<size_t>(n * matrix.cols + k)]) -
                         scale * value);
      };
      double best = error(0);
      for (int code = 1; code <= dtype.max_code(); ++code) best = std::min(best, error(code));
      const double chosen = error(matrix.code(n, k));
      const double slack = std::fabs(scale) * dtype.max_code() * 0x1p-22;
      ASSERT_LE(chosen, best + slack)
          << "[" << n << ", " << k << "]: weight " << w[static_cast<size_t>(n * matrix.cols + k)]
          << ", code " << matrix.code(n, k) << ", stored scale " << scale;
    }
  }
}

TEST(Rtn, EveryCodeIsTheNearestForTheStoredScale) {
  Random random = random_of_test();
  for (const QuantScheme& scheme : quantizer_schemes({-1, 16, 200})) {
    for (const int64_t cols : {1, 7, 41, 203}) {
      const std::vector<float> w = normal_weights(random, 5, cols);
      const QuantizedMatrix matrix = quantize_rtn(view_of(w.data(), 5, cols), scheme, {}, 1);
      SCOPED_TRACE(describe(matrix) + ", seed " + std::to_string(random.seed()));
      expect_nearest(w, matrix);
      if (HasFatalFailure()) return;
    }
  }
}

// Groups of very different sizes in one matrix: double quantization stores the small ones' scales
// badly, and the codes must make the best of it.
TEST(Rtn, EveryCodeIsTheNearestWhenGroupsDiffer) {
  Random random = random_of_test();
  for (const QuantScheme& scheme : quantizer_schemes({16})) {
    std::vector<float> w = normal_weights(random, 6, 64);
    for (size_t i = 0; i < w.size(); ++i)
      w[i] *= i / 16 % 3 == 0 ? 30.0f : i / 16 % 3 == 1 ? 1e-3f : 1.0f;
    const QuantizedMatrix matrix = quantize_rtn(view_of(w.data(), 6, 64), scheme, {}, 1);
    SCOPED_TRACE(describe(matrix) + ", seed " + std::to_string(random.seed()));
    expect_nearest(w, matrix);
    if (HasFatalFailure()) return;
  }
}

TEST(Rtn, ScalesAreThoseOfAWholeGroup) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 3, 72);
  for (const QuantScheme& scheme : quantizer_schemes({32})) {
    if (scheme.scales != ScaleEncoding::kFp32) continue;
    const DtypeTraits& dtype = traits_of(scheme.dtype);
    const QuantizedMatrix matrix = quantize_rtn(view_of(w.data(), 3, 72), scheme, {}, 1);
    ASSERT_EQ(matrix.groups(), 3);
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t g = 0; g < 3; ++g) {
        float low = 0, high = 0;
        for (int64_t k = g * 32; k < std::min<int64_t>(72, g * 32 + 32); ++k) {
          low = std::min(low, w[static_cast<size_t>(n * 72 + k)]);
          high = std::max(high, w[static_cast<size_t>(n * 72 + k)]);
        }
        const float expected = scheme.zeros == ZeroKind::kInt
                                   ? (high - low) / static_cast<float>(dtype.max_code())
                                   : std::max(high, -low) / dtype.scale_divisor;
        EXPECT_EQ(std::fabs(matrix.scales.at(n, g)), expected) << describe(scheme);
      }
    }
  }
}

TEST(Rtn, HalfScalesAreTheRoundedOnes) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 4, 128);
  for (const DtypeTraits& dtype : kDtypes) {
    const auto quantize = [&](ScaleEncoding encoding) {
      return quantize_rtn(view_of(w.data(), 4, 128), {dtype.dtype, 32, {}, encoding}, {}, 1);
    };
    const QuantizedMatrix full = quantize(ScaleEncoding::kFp32);
    const QuantizedMatrix fp16 = quantize(ScaleEncoding::kFp16),
                          bf16 = quantize(ScaleEncoding::kBf16);
    for (int64_t i = 0; i < full.scales.size(); ++i) {
      EXPECT_EQ(fp16.scales.at(i), fp16_to_float(float_to_fp16(full.scales.at(i))));
      EXPECT_EQ(bf16.scales.at(i), bf16_to_float(float_to_bf16(full.scales.at(i))));
    }
  }
}

// fp16 has no scale for such small weights: they become zeros, not NaN.
TEST(Rtn, ScalesThatUnderflowGiveZeros) {
  const std::vector<float> w = {1e-9f, -2e-9f, 3e-9f, 0.0f};
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : made_zero_kinds(dtype)) {
      const QuantizedMatrix matrix = quantize_rtn(
          view_of(w.data(), 1, 4), {dtype.dtype, -1, zeros, ScaleEncoding::kFp16}, {}, 1);
      EXPECT_EQ(matrix.scales.at(0), 0.0f);
      float back[4];
      dequantize(matrix, back, 1);
      for (const float value : back) EXPECT_EQ(value, 0.0f) << describe(matrix);
    }
  }
}

TEST(Rtn, ScalesThatFp16CannotHoldAreRefused) {
  const std::vector<float> w = {1.0f, 1.0f, 1e6f, 0.0f};
  const std::string error = error_of<InvalidArgument>([&] {
    quantize_rtn(view_of(w.data(), 2, 2), {WeightDtype::kNf4, -1, {}, ScaleEncoding::kFp16}, {}, 1);
  });
  EXPECT_MENTIONS(error, "row 1, group 0");
  EXPECT_MENTIONS(error, "fp16");
}

// Finite weights must never make a matrix of NaN or infinities, whatever the encoding: they are
// either represented or refused.
TEST(Rtn, LargestWeightsAreRepresentedOrRefused) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::vector<float> w = {kMax, -kMax, kMax / 2, 0.0f};
  for (const QuantScheme& scheme : quantizer_schemes({-1})) {
    std::vector<float> back(4);
    try {
      dequantize(quantize_rtn(view_of(w.data(), 1, 4), scheme, {}, 1), back.data(), 1);
    } catch (const InvalidArgument&) {
      continue;
    }
    EXPECT_TRUE(std::isfinite(back[2]) && std::isfinite(back[3])) << describe(scheme);
  }
}

TEST(Rtn, InputTypesAreRoundedOnlyOnce) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 3, 50);
  for (const FloatType type : kFloatTypes) {
    FloatMatrix typed(type, 3, 50, 5, 1), widened(FloatType::kFp32, 3, 50);
    for (int64_t n = 0; n < 3; ++n) {
      for (int64_t k = 0; k < 50; ++k) {
        typed.set(n, k, w[static_cast<size_t>(n * 50 + k)]);
        widened.set(n, k, typed.get(n, k));
      }
    }
    for (const QuantScheme& scheme : quantizer_schemes({16})) {
      EXPECT_EQ(difference(quantize_rtn(typed.view(), scheme, {}, 1),
                           quantize_rtn(widened.view(), scheme, {}, 1)),
                "")
          << describe(scheme);
    }
  }
}

TEST(Rtn, ResultsDoNotDependOnTheNumberOfThreads) {
  Random random = random_of_test();
  constexpr int64_t kRows = 199, kCols = 523;  // odd, and worth three threads
  static_assert(kRows * kCols >= 3 * kElementGrain);
  const std::vector<float> w = normal_weights(random, kRows, kCols);
  for (const QuantScheme& scheme : quantizer_schemes({32})) {
    for (const bool search : {false, true}) {
      if (search && scheme.scales != ScaleEncoding::kFp32) continue;
      const RtnOptions options{search, "weight"};
      const ConstMatrixView view = view_of(w.data(), kRows, kCols);
      const QuantizedMatrix one = quantize_rtn(view, scheme, options, 1);
      for (int threads = 2; threads <= 3; ++threads) {
        ASSERT_EQ(difference(quantize_rtn(view, scheme, options, threads), one), "")
            << describe(one) << ", " << threads << " threads";
      }
    }
  }
}

// For the scale as it is computed; rounding it to a stored form afterwards can cost either side.
TEST(Rtn, MseSearchIsNeverWorseInAnyGroup) {
  Random random = random_of_test();
  for (const QuantScheme& scheme : quantizer_schemes({-1, 32})) {
    if (scheme.scales != ScaleEncoding::kFp32) continue;
    std::vector<float> w = normal_weights(random, 16, 200);
    for (int i = 0; i < 40; ++i) w[static_cast<size_t>(random.below(3200))] *= 8;
    const ConstMatrixView view = view_of(w.data(), 16, 200);
    const QuantizedMatrix plain = quantize_rtn(view, scheme, {}, 1);
    const QuantizedMatrix searched = quantize_rtn(view, scheme, {true, "weight"}, 1);
    double before = 0, after = 0;
    for (int64_t n = 0; n < 16; ++n) {
      const std::vector<double> a = group_errors(w, plain, n), b = group_errors(w, searched, n);
      for (size_t g = 0; g < a.size(); ++g) {
        // The search adds up in fp32: 200 roundings.
        ASSERT_LE(b[g], a[g] * (1 + 400 * 0x1p-24))
            << describe(plain) << " row " << n << " group " << g;
        before += a[g];
        after += b[g];
      }
    }
    EXPECT_LT(after, before) << describe(plain) << ": with outliers there is something to gain";
  }
}

TEST(Rtn, NanAndInfinityAreNamedWithTheirPlace) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    for (const FloatType type : kFloatTypes) {
      FloatMatrix w(type, 6, 75);
      for (int64_t n = 0; n < 6; ++n) {
        for (int64_t k = 0; k < 75; ++k) w.set(n, k, 0.5f);
      }
      w.set(4, 71, bad);
      for (const QuantScheme& scheme : quantizer_schemes({32})) {
        const std::string error = error_of<InvalidArgument>([&] {
          quantize_rtn(w.view(), scheme, {false, "model.layers.3.mlp.up_proj.weight"}, 1);
        });
        EXPECT_MENTIONS(error, "'model.layers.3.mlp.up_proj.weight'");
        EXPECT_MENTIONS(error, "row 4, column 71");
        EXPECT_MENTIONS(error, std::isnan(bad) ? "NaN" : "infinite");
      }
    }
    // Found by the last of a team.
    constexpr int64_t kRows = 199, kCols = 523;
    static_assert(kRows * kCols >= 3 * kElementGrain);
    std::vector<float> w(static_cast<size_t>(kRows * kCols), 0.5f);
    w[static_cast<size_t>(190 * kCols + 71)] = bad;
    EXPECT_MENTIONS(error_of<InvalidArgument>(
                        [&] { quantize_rtn(view_of(w.data(), kRows, kCols), {}, {}, 3); }),
                    "row 190, column 71");
  }
}

TEST(Rtn, EmptyMatricesAreRefused) {
  const float w = 1.0f;
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 4}, {4, 0}, {0, 0}}) {
    const std::string error = error_of<InvalidArgument>([&, rows = rows, cols = cols] {
      quantize_rtn(view_of(&w, rows, cols), {}, {false, "w"}, 1);
    });
    EXPECT_MENTIONS(error, "'w' is empty");
  }
}

TEST(Rtn, ImpossibleSchemesAreRefused) {
  const std::vector<float> w(64, 1.0f);
  const auto quantize = [&](const QuantScheme& scheme) {
    quantize_rtn(view_of(w.data(), 2, 32), scheme, {}, 1);
  };
  EXPECT_THROW(quantize({WeightDtype::kInt8, 12, {}, {}}), InvalidArgument);
  EXPECT_THROW(quantize({WeightDtype::kNf4, 32, ZeroKind::kInt, {}}), InvalidArgument);
  EXPECT_THROW(quantize({WeightDtype::kInt8, 32, ZeroKind::kFloat, {}}), InvalidArgument);
}

TEST(Rtn, OneElement) {
  for (const QuantScheme& scheme : quantizer_schemes({-1, 32})) {
    for (const float w : {0.75f, -0.75f}) {
      const QuantizedMatrix matrix = quantize_rtn(view_of(&w, 1, 1), scheme, {}, 1);
      EXPECT_EQ(matrix.qweight.size(), 1);
      float back = 0;
      dequantize(matrix, &back, 1);
      // The extreme is a level of every table, half scales are off by 2^-9, and double quantization
      // has an offset equal to the one scale. But dtypes whose extreme level is negative keep a
      // positive scale where the largest and the smallest weight are as far from 0, so that 8
      // becomes 7, and 127 of iq4_nl 113.
      const bool clipped = has_signed_scales(scheme) && w > 0;
      const float level = scheme.dtype == WeightDtype::kIq4Nl ? 113.0f / 127 : 7.0f / 8;
      EXPECT_NEAR(back, clipped ? w * level : w, 0.75f * 0x1p-8f) << describe(matrix);
    }
  }
}

}  // namespace
}  // namespace woq::testing
