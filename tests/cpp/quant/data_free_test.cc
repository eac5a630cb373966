// SPDX-License-Identifier: Apache-2.0
// Quantizers that see no more of the data than one number a column: importance-weighted round to
// nearest, and HQQ.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "support/errors.h"
#include "support/layers.h"
#include "support/schemes.h"
#include "woq/quant/hqq.h"
#include "woq/quant/rtn.h"

namespace woq::testing {
namespace {

double weighted_error(const std::vector<float>& w, const QuantizedMatrix& matrix,
                      const std::vector<float>& importance) {
  std::vector<float> back(w.size());
  dequantize(matrix, back.data(), 1);
  double sum = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double d = static_cast<double>(w[i]) - static_cast<double>(back[i]);
    sum += d * d * static_cast<double>(importance[i % importance.size()]);
  }
  return sum;
}

std::vector<float> random_importance(Random& random, int64_t cols) {
  std::vector<float> importance(static_cast<size_t>(cols));
  for (float& value : importance) value = std::exp(2 * random.normal());
  return importance;
}

TEST(ImportanceRtn, LowersTheWeightedErrorOfEveryScheme) {
  Random random = random_of_test();
  const int64_t rows = 20, cols = 203;
  const std::vector<float> w = normal_weights(random, rows, cols);
  const ConstMatrixView weight = view_of(w.data(), rows, cols);
  RtnOptions options, searched;
  options.importance = random_importance(random, cols);
  searched.mse_range = true;
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : made_zero_kinds(dtype)) {
      for (const int64_t group_size : {-1, 32}) {
        const QuantScheme scheme{dtype.dtype, group_size, zeros};
        const double error =
            weighted_error(w, quantize_rtn(weight, scheme, options, 1), options.importance);
        const double plain =
            weighted_error(w, quantize_rtn(weight, scheme, {}, 1), options.importance);
        const double mse =
            weighted_error(w, quantize_rtn(weight, scheme, searched, 1), options.importance);
        EXPECT_LT(error, 0.95 * std::min(plain, mse)) << describe(scheme);
      }
    }
  }
}

// With all columns alike the search still beats the grid of mse_range, or ties with it: at 5 to 7
// bits, where a level is a smaller step of the scale than the search's candidates are apart, to
// 1.5 %.
TEST(ImportanceRtn, EqualImportanceIsLeastSquares) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 40, 128), ones(128, 1.0f), tens(128, 10.0f);
  const ConstMatrixView weight = view_of(w.data(), 40, 128);
  RtnOptions options, scaled, searched;
  options.importance = ones;
  scaled.importance.assign(128, 16.0f);
  searched.mse_range = true;
  for (const DtypeTraits& dtype : kDtypes) {
    const QuantScheme scheme{dtype.dtype, 32};
    const QuantizedMatrix matrix = quantize_rtn(weight, scheme, options, 1);
    EXPECT_LT(weighted_error(w, matrix, ones),
              (dtype.bits > 4 && dtype.bits < 8 ? 1.015 : 1.001) *
                  weighted_error(w, quantize_rtn(weight, scheme, searched, 1), ones))
        << describe(scheme);
    EXPECT_EQ(difference(matrix, quantize_rtn(weight, scheme, scaled, 1)), "");
  }
}

// Groups that are nf4's table upside down: exact with a negative scale, and only with one. Double
// quantization has no signs for nf4.
TEST(ImportanceRtn, TurnsAsymmetricTablesAround) {
  std::vector<float> w(64), importance(64, 1.0f);
  for (size_t k = 0; k < 64; ++k) w[k] = -0.25f * kNf4Codebook.values[k % 16];
  RtnOptions options;
  options.importance = importance;
  const ConstMatrixView weight = view_of(w.data(), 1, 64);
  const QuantizedMatrix matrix = quantize_rtn(weight, {WeightDtype::kNf4, 32}, options, 1);
  EXPECT_FLOAT_EQ(matrix.scales.at(0), -0.25f);
  EXPECT_LT(weighted_error(w, matrix, importance), 1e-10);
  const QuantScheme doubled{WeightDtype::kNf4, 32, ZeroKind::kNone, ScaleEncoding::kDouble};
  const QuantizedMatrix positive = quantize_rtn(weight, doubled, options, 1);
  EXPECT_GT(positive.scales.at(0), 0.0f);
  EXPECT_GT(weighted_error(w, positive, importance), 1e-4);
}

TEST(ImportanceRtn, ZeroImportanceEqualsRtn) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 4, 70);
  RtnOptions options;
  options.importance.assign(70, 0.0f);
  for (const DtypeTraits& dtype : kDtypes) {
    const QuantScheme scheme{dtype.dtype, 32};
    EXPECT_EQ(difference(quantize_rtn(view_of(w.data(), 4, 70), scheme, options, 1),
                         quantize_rtn(view_of(w.data(), 4, 70), scheme, {}, 1)),
              "");
  }
}

TEST(ImportanceRtn, BeatsRtnOnCorrelatedInputs) {
  for (const DtypeTraits& dtype : kDtypes) {
    const QuantScheme scheme{dtype.dtype, 32};
    double weighted = 0, rtn = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Random random(test_seed() + seed);
      const CalibratedLayer layer = correlated_layer(random, 8, 80);
      RtnOptions options;
      for (int64_t k = 0; k < 80; ++k)
        options.importance.push_back(static_cast<float>(layer.hessian.at(k, k)));
      weighted += layer.error(quantize_rtn(layer.weight(), scheme, options, 1));
      rtn += layer.error(quantize_rtn(layer.weight(), scheme, {}, 1));
    }
    EXPECT_LT(weighted, rtn) << describe(scheme);
  }
}

TEST(ImportanceRtn, RefusesBadStatistics) {
  const std::vector<float> w(64, 1.0f);
  RtnOptions options;
  options.name = "fc2";
  options.importance = {1.0f};
  const auto message = [&] {
    return error_of<InvalidArgument>(
        [&] { quantize_rtn(view_of(w.data(), 2, 32), {}, options, 1); });
  };
  EXPECT_MENTIONS(message(), "importance of tensor 'fc2' has 1 elements, expected 32");
  options.importance.assign(32, 1.0f);
  options.importance[7] = -1;
  EXPECT_MENTIONS(message(), "is -1 at column 7");
  options.importance[7] = std::nanf("");
  EXPECT_MENTIONS(message(), "at column 7");
}

TEST(Hqq, NoStepsEqualRtn) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 9, 150);
  const ConstMatrixView weight = view_of(w.data(), 9, 150);
  HqqOptions options;
  options.steps = 0;
  for (const WeightDtype dtype : {WeightDtype::kInt8, WeightDtype::kInt4Clip}) {
    for (const int64_t group_size : {-1, 32, 64}) {
      for (const ScaleEncoding scales : made_encodings()) {
        const QuantizedMatrix hqq =
            quantize_hqq(weight, {dtype, group_size, ZeroKind::kFloat, scales}, options, 1);
        const QuantizedMatrix rtn =
            quantize_rtn(weight, {dtype, group_size, ZeroKind::kInt, scales}, {}, 1);
        EXPECT_TRUE(same_bytes(hqq.qweight, rtn.qweight));
        EXPECT_TRUE(same_bytes(hqq.scales.values, rtn.scales.values));
        for (int64_t n = 0; n < 9; ++n) {
          for (int64_t g = 0; g < hqq.groups(); ++g)
            ASSERT_EQ(hqq.zero_point(n, g), rtn.zero_point(n, g));
        }
      }
    }
  }
}

TEST(Hqq, LowersTheErrorOfEveryGroup) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 50, 128);
  const ConstMatrixView weight = view_of(w.data(), 50, 128);
  const QuantizedMatrix hqq =
      quantize_hqq(weight, {WeightDtype::kInt4Clip, 64, ZeroKind::kFloat}, {}, 1);
  const QuantizedMatrix rtn =
      quantize_rtn(weight, {WeightDtype::kInt4Clip, 64, ZeroKind::kInt}, {}, 1);
  std::vector<float> a(w.size()), b(w.size());
  dequantize(hqq, a.data(), 1);
  dequantize(rtn, b.data(), 1);
  double after = 0, before = 0;
  for (size_t i = 0; i < w.size(); i += 64) {
    double group_after = 0, group_before = 0;
    for (size_t k = i; k < i + 64; ++k) {
      group_after += std::fabs(w[k] - a[k]);
      group_before += std::fabs(w[k] - b[k]);
    }
    EXPECT_LE(group_after, group_before * 1.000001) << i;
    after += group_after;
    before += group_before;
  }
  EXPECT_LT(after, 0.99 * before);
}

TEST(Hqq, BeatsRtnOnCorrelatedInputs) {
  double hqq = 0, rtn = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Random random(test_seed() + seed);
    const CalibratedLayer layer = correlated_layer(random, 8, 160);
    hqq += layer.error(
        quantize_hqq(layer.weight(), {WeightDtype::kInt4Clip, 32, ZeroKind::kFloat}, {}, 1));
    rtn += layer.error(
        quantize_rtn(layer.weight(), {WeightDtype::kInt4Clip, 32, ZeroKind::kInt}, {}, 1));
  }
  EXPECT_LT(hqq, rtn);
}

TEST(Hqq, IsTheSameForAnyNumberOfThreads) {
  Random random = random_of_test();
  constexpr int64_t kRows = 401, kCols = 250;
  static_assert(kRows * kCols >= 3 * kElementGrain);
  const std::vector<float> w = normal_weights(random, kRows, kCols);
  const ConstMatrixView view = view_of(w.data(), kRows, kCols);
  const QuantScheme scheme{WeightDtype::kInt4Clip, 32, ZeroKind::kFloat};
  const QuantizedMatrix one = quantize_hqq(view, scheme, {}, 1);
  RtnOptions options;
  options.importance = random_importance(random, kCols);
  const QuantizedMatrix weighted = quantize_rtn(view, {}, options, 1);
  for (const int threads : {2, 3}) {
    EXPECT_EQ(difference(quantize_hqq(view, scheme, {}, threads), one), "");
    EXPECT_EQ(difference(quantize_rtn(view, {}, options, threads), weighted), "");
  }
}

TEST(Hqq, HandlesGroupsOfZerosAndConstants) {
  std::vector<float> w(96, 0.0f);
  std::fill(w.begin() + 32, w.begin() + 64, 3.0f);
  const QuantizedMatrix matrix =
      quantize_hqq(view_of(w.data(), 1, 96), {WeightDtype::kInt4Clip, 32, ZeroKind::kFloat}, {}, 1);
  std::vector<float> back(96);
  dequantize(matrix, back.data(), 1);
  for (size_t k = 0; k < 96; ++k) EXPECT_NEAR(back[k], w[k], 1e-6);
}

TEST(Hqq, ErrorsSayWhatToDo) {
  std::vector<float> w(64, 1.0f);
  const auto message = [&](const QuantScheme& scheme, const HqqOptions& options) {
    return error_of<InvalidArgument>(
        [&] { quantize_hqq(view_of(w.data(), 2, 32), scheme, options, 1); });
  };
  const QuantScheme good{WeightDtype::kInt4Clip, 32, ZeroKind::kFloat};
  EXPECT_MENTIONS(message({WeightDtype::kNf4, 32}, {}), "integer dtype");
  EXPECT_MENTIONS(message({WeightDtype::kInt4Clip, 32}, {}), "without float zeros");
  HqqOptions options;
  options.lp_norm = 2;
  EXPECT_MENTIONS(message(good, options), "lp_norm is 2");
  w[40] = std::nanf("");
  EXPECT_MENTIONS(message(good, {}), "row 1, column 8");
}

}  // namespace
}  // namespace woq::testing
