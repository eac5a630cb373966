// SPDX-License-Identifier: Apache-2.0
// AWQ and TEQ: scales of input channels that weights share.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "support/errors.h"
#include "support/layers.h"
#include "support/schemes.h"
#include "woq/quant/awq.h"
#include "woq/quant/teq.h"

namespace woq::testing {
namespace {

std::vector<QuantScheme> scaling_schemes(int64_t group_size) {
  std::vector<QuantScheme> schemes;
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : made_zero_kinds(dtype))
      schemes.push_back({dtype.dtype, group_size, zeros, ScaleEncoding::kFp32});
  }
  return schemes;
}

// W with its columns multiplied by s, rounded to nearest and divided by s again.
std::vector<float> rounded_with_scales(const CalibratedLayer& layer, const std::vector<float>& s,
                                       const QuantScheme& scheme) {
  std::vector<float> w = layer.w;
  for (size_t i = 0; i < w.size(); ++i) w[i] *= s[i % s.size()];
  dequantize(quantize_rtn(view_of(w.data(), layer.rows, layer.cols), scheme, {}, 1), w.data(), 1);
  for (size_t i = 0; i < w.size(); ++i) w[i] /= s[i % s.size()];
  return w;
}

const std::vector<float> kOnes80(80, 1.0f);

TEST(Awq, AlphaZeroEqualsRtn) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 8, 80);
  AwqOptions options;
  options.n_grid = 1;
  options.duo_scaling = DuoScaling::kOff;
  const AwqResult result = search_awq_scales({layer.weight()}, layer.hessian, {}, options, 1);
  EXPECT_EQ(result.scales, kOnes80);
  EXPECT_EQ(result.error, result.rtn_error);
}

TEST(Teq, NoStepsEqualRtn) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 8, 80);
  TeqOptions options;
  options.steps = 0;
  EXPECT_EQ(search_teq_scales({layer.weight()}, layer.hessian, {}, options, 1).scales, kOnes80);
}

TEST(Awq, BeatsRtnOnCorrelatedInputs) {
  for (const QuantScheme& scheme : scaling_schemes(32)) {
    double awq = 0, rtn = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Random random(test_seed() + seed);
      const CalibratedLayer layer = correlated_layer(random, 8, 80);
      const AwqResult result = search_awq_scales({layer.weight()}, layer.hessian, scheme, {}, 1);
      const double error = layer.error(rounded_with_scales(layer, result.scales, scheme));
      // What the search promises is what comes out, and never worse than RTN.
      const double before = layer.error(quantize_rtn(layer.weight(), scheme, {}, 1));
      ASSERT_NEAR(result.error / result.rtn_error, error / before, 1e-3 * error / before);
      ASSERT_LE(error, before * 1.0001);
      awq += error;
      rtn += before;
    }
    EXPECT_LT(awq, 0.9 * rtn) << describe(scheme);
  }
}

TEST(Teq, BeatsRtnOnCorrelatedInputs) {
  for (const QuantScheme& scheme : scaling_schemes(32)) {
    double teq = 0, rtn = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Random random(test_seed() + seed);
      const CalibratedLayer layer = correlated_layer(random, 8, 80);
      const TeqResult result = search_teq_scales({layer.weight()}, layer.hessian, scheme, {}, 1);
      const double error = layer.error(rounded_with_scales(layer, result.scales, scheme));
      const double before = layer.error(quantize_rtn(layer.weight(), scheme, {}, 1));
      ASSERT_NEAR(result.error / result.rtn_error, error / before, 1e-3 * error / before);
      ASSERT_LE(error, before * 1.0001);
      teq += error;
      rtn += before;
    }
    EXPECT_LT(teq, 0.8 * rtn) << describe(scheme);
  }
}

// W with its columns multiplied by s, ranges searched with errors weighted by the scaled inputs'
// mean squares, rounded and divided by s again.
std::vector<float> searched_with_scales(const CalibratedLayer& layer, const std::vector<float>& s,
                                        const QuantScheme& scheme) {
  std::vector<float> w = layer.w;
  for (size_t i = 0; i < w.size(); ++i) w[i] *= s[i % s.size()];
  RtnOptions options;
  for (size_t k = 0; k < s.size(); ++k) {
    const auto at = static_cast<int64_t>(k);
    options.importance.push_back(static_cast<float>(layer.hessian.at(at, at)) / (s[k] * s[k]));
  }
  dequantize(quantize_rtn(view_of(w.data(), layer.rows, layer.cols), scheme, options, 1), w.data(),
             1);
  for (size_t i = 0; i < w.size(); ++i) w[i] /= s[i % s.size()];
  return w;
}

TEST(Scaling, LowersTheErrorThatIsLeftAfterAWeightedSearch) {
  for (const QuantScheme& scheme : scaling_schemes(32)) {
    double awq_error = 0, teq_error = 0, plain = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Random random(test_seed() + seed);
      const CalibratedLayer layer = correlated_layer(random, 8, 80);
      AwqOptions awq_options;
      awq_options.mse_range = true;
      TeqOptions teq_options;
      teq_options.mse_range = true;
      const AwqResult awq =
          search_awq_scales({layer.weight()}, layer.hessian, scheme, awq_options, 1);
      const TeqResult teq =
          search_teq_scales({layer.weight()}, layer.hessian, scheme, teq_options, 1);
      const double before = layer.error(searched_with_scales(layer, kOnes80, scheme));
      const double with_awq = layer.error(searched_with_scales(layer, awq.scales, scheme));
      // What AWQ's search promises is what comes out; TEQ's holds ranges for some steps.
      ASSERT_NEAR(awq.error / awq.rtn_error, with_awq / before, 1e-3 * with_awq / before);
      ASSERT_LE(with_awq, before * 1.0001);
      awq_error += with_awq;
      teq_error += layer.error(searched_with_scales(layer, teq.scales, scheme));
      plain += before;
    }
    EXPECT_LT(awq_error, 0.95 * plain) << describe(scheme);
    EXPECT_LT(teq_error, 0.95 * plain) << describe(scheme);
  }
}

// Scaling all channels alike changes nothing, so the gradient in log a sums to zero: the
// straight-through terms sum to -2 L, and the terms of the groups' scales make up for it. Exactly
// for symmetric groups; rounded zero points leave a rest.
TEST(Teq, TheGradientSumsToZero) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 4, 64);
  const LayerObjective objective(layer.hessian);
  for (const ZeroKind zeros : {ZeroKind::kNone, ZeroKind::kInt}) {
    const QuantScheme scheme{WeightDtype::kInt8, 32, zeros};
    const SharedInputRows rows = gather_rows({layer.weight()}, layer.hessian, 0, "layer");
    detail::TeqLoss loss(rows, objective, scheme, 1);
    std::vector<double> gradient;
    std::vector<float> a(64, 1.0f);
    const double at_one = loss(a, &gradient);
    EXPECT_GT(at_one, 0);
    double norm = 0;
    for (const double g : gradient) norm += g * g;
    ASSERT_GT(norm, 0);
    double sum = 0;
    for (const double g : gradient) sum += g;
    if (zeros == ZeroKind::kNone) {
      EXPECT_NEAR(sum, 0, 1e-3 * at_one);
    } else {
      EXPECT_LT(std::fabs(sum), 0.5 * at_one);
    }
  }
}

// With the rounding errors r = v - X / s held, which is what straight-through means, D = -s r / a
// is a smooth function of a: its loss by finite differences, in fp64 and by other code.
TEST(Teq, TheGradientIsThatOfFiniteDifferences) {
  constexpr int64_t kRows = 6, kCols = 48, kGroup = 16;
  struct Case {
    WeightDtype dtype;
    ZeroKind zeros;
    double divisor;  // of absmax, or of the range
  };
  for (const Case& c :
       {Case{WeightDtype::kInt4Clip, ZeroKind::kNone, 7},
        Case{WeightDtype::kInt8, ZeroKind::kNone, 127}, Case{WeightDtype::kNf4, ZeroKind::kNone, 1},
        Case{WeightDtype::kInt4Clip, ZeroKind::kInt, 15}}) {
    Random random(test_seed() + static_cast<uint64_t>(c.divisor));
    const CalibratedLayer layer = correlated_layer(random, kRows, kCols);
    const QuantScheme scheme{c.dtype, kGroup, c.zeros};
    std::vector<float> a(kCols), x = layer.w, q(layer.w.size());
    for (float& value : a) value = random.uniform(0.6f, 1.6f);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= a[i % a.size()];
    dequantize(quantize_rtn(view_of(x.data(), kRows, kCols), scheme, {}, 1), q.data(), 1);

    const auto scale_of = [&](const std::vector<double>& factors, int64_t n, int64_t g) {
      double low = 0, high = 0;
      for (int64_t k = g * kGroup; k < (g + 1) * kGroup; ++k) {
        const double value = static_cast<double>(layer.w[static_cast<size_t>(n * kCols + k)]) *
                             factors[static_cast<size_t>(k)];
        low = std::min(low, value);
        high = std::max(high, value);
      }
      return (c.zeros == ZeroKind::kNone ? std::max(high, -low) : high - low) / c.divisor;
    };
    const std::vector<double> here(a.begin(), a.end());
    const auto loss_at = [&](const std::vector<double>& factors) {
      std::vector<double> d(layer.w.size());
      for (int64_t n = 0; n < kRows; ++n) {
        for (int64_t k = 0; k < kCols; ++k) {
          const auto i = static_cast<size_t>(n * kCols + k);
          const double r = (static_cast<double>(q[i]) - static_cast<double>(x[i])) /
                           scale_of(here, n, k / kGroup);
          d[i] = -scale_of(factors, n, k / kGroup) * r / factors[static_cast<size_t>(k)];
        }
      }
      double loss = 0;
      for (int64_t n = 0; n < kRows; ++n) {
        for (int64_t i = 0; i < kCols; ++i) {
          for (int64_t j = 0; j < kCols; ++j) {
            loss += d[static_cast<size_t>(n * kCols + i)] * layer.hessian.at(i, j) *
                    d[static_cast<size_t>(n * kCols + j)];
          }
        }
      }
      return loss;
    };

    const SharedInputRows rows = gather_rows({layer.weight()}, layer.hessian, 0, "layer");
    const LayerObjective objective(layer.hessian);
    detail::TeqLoss loss(rows, objective, scheme, 1);
    std::vector<double> gradient;
    const double value = loss(a, &gradient);
    EXPECT_NEAR(value, loss_at(here), 1e-4 * value);
    double norm = 0;
    for (const double g : gradient) norm = std::max(norm, std::fabs(g));
    ASSERT_GT(norm, 0);
    for (size_t k = 0; k < a.size(); ++k) {
      constexpr double kStep = 1e-5;  // in log a; the error is kStep^2, and 1e-16 / kStep
      std::vector<double> up = here, down = here;
      up[k] *= std::exp(kStep);
      down[k] *= std::exp(-kStep);
      const double expected = (loss_at(up) - loss_at(down)) / (2 * kStep);
      EXPECT_NEAR(gradient[k], expected, 1e-3 * norm) << describe(scheme) << " column " << k;
    }
  }
}

TEST(Teq, StartsWhereItIsTold) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 8, 80);
  const AwqResult awq = search_awq_scales({layer.weight()}, layer.hessian, {}, {}, 1);
  TeqOptions options;
  options.start = awq.scales;
  options.steps = 0;
  EXPECT_EQ(search_teq_scales({layer.weight()}, layer.hessian, {}, options, 1).scales, awq.scales);
  options.steps = 50;
  const TeqResult result = search_teq_scales({layer.weight()}, layer.hessian, {}, options, 1);
  EXPECT_LE(result.error, awq.error * 1.0001);
}

TEST(Scaling, IsTheSameForAnyNumberOfThreads) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 400, 250);
  ASSERT_GE(layer.rows * layer.cols, 3 * kElementGrain);
  TeqOptions teq;
  teq.steps = 5;
  AwqOptions awq;
  awq.n_grid = 5;
  awq.max_rows = teq.max_rows = 0;  // a sample of rows would be worth one thread
  const AwqResult awq1 = search_awq_scales({layer.weight()}, layer.hessian, {}, awq, 1);
  const TeqResult teq1 = search_teq_scales({layer.weight()}, layer.hessian, {}, teq, 1);
  const std::vector<float> clip1 = clip_awq(layer.weight(), layer.hessian, {}, {}, 1);
  for (const int threads : {2, 3}) {
    EXPECT_EQ(search_awq_scales({layer.weight()}, layer.hessian, {}, awq, threads).scales,
              awq1.scales);
    EXPECT_EQ(search_teq_scales({layer.weight()}, layer.hessian, {}, teq, threads).scales,
              teq1.scales);
    EXPECT_EQ(clip_awq(layer.weight(), layer.hessian, {}, {}, threads), clip1);
  }
}

// Weights so large that no step's error is finite: such a row was replaced by the one 96 rows above
// it, which the same thread had clipped before.
TEST(AwqClip, ARowWhoseErrorsOverflowStaysAsItIs) {
  Random random = random_of_test();
  const int64_t rows = 300, cols = 64, samples = 200, huge = 150;
  std::vector<float> w = normal_weights(random, rows, cols), x(static_cast<size_t>(samples * cols));
  for (float& value : x) value = random.normal() * 1e4f;
  for (int64_t k = 0; k < cols; ++k)
    w[static_cast<size_t>(huge * cols + k)] = random.normal() * 1e33f;
  Hessian hessian(cols);
  hessian.add(view_of(x.data(), samples, cols), 1);
  const QuantScheme scheme{WeightDtype::kInt4Clip, 32};
  for (const int threads : {1, 2}) {
    const std::vector<float> clipped =
        clip_awq(view_of(w.data(), rows, cols), hessian, scheme, {}, threads);
    int64_t changed = 0;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t k = 0; k < cols; ++k) {
        const auto at = static_cast<size_t>(n * cols + k);
        ASSERT_LE(std::fabs(clipped[at]), std::fabs(w[at]));
        ASSERT_GE(clipped[at] * w[at], 0.0f) << "a weight changed its sign";
        if (n == huge) {
          ASSERT_EQ(clipped[at], w[at]) << k;
        }
        changed += clipped[at] != w[at] ? 1 : 0;
      }
    }
    EXPECT_GT(changed, rows) << "nothing was clipped";
  }
}

// Several weights on one input count like one tall weight; a sample of rows stands for all.
TEST(Scaling, WeightsThatShareAnInputAreStacked) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 40, 80);
  const ConstMatrixView whole = layer.weight();
  const ConstMatrixView top = {whole.row(0), whole.type, 15, 80, 80};
  const ConstMatrixView bottom = {whole.row(15), whole.type, 25, 80, 80};
  EXPECT_EQ(search_awq_scales({top, bottom}, layer.hessian, {}, {}, 1).scales,
            search_awq_scales({whole}, layer.hessian, {}, {}, 1).scales);
  AwqOptions options;
  options.max_rows = 10;
  const AwqResult sample = search_awq_scales({top, bottom}, layer.hessian, {}, options, 1);
  EXPECT_LT(layer.error(rounded_with_scales(layer, sample.scales, {})),
            layer.error(quantize_rtn(whole, {}, {}, 1)));
}

// Weights in schemes of their own count as each does by itself.
TEST(Scaling, EveryWeightHasItsScheme) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 40, 80);
  const ConstMatrixView whole = layer.weight();
  const std::vector<ConstMatrixView> weights = {{whole.row(0), whole.type, 15, 80, 80},
                                                {whole.row(15), whole.type, 25, 80, 80}};
  const std::vector<QuantScheme> each = {
      {WeightDtype::kInt4Clip, 16},
      {WeightDtype::kNf4, -1, ZeroKind::kNone, ScaleEncoding::kDouble}};
  const LayerObjective objective(layer.hessian);
  std::vector<float> a(80);
  for (float& value : a) value = random.uniform(0.5f, 2.0f);
  std::vector<double> gradient, sum(80), part;
  double error = 0, loss = 0;
  for (size_t i = 0; i < 2; ++i) {
    const SharedInputRows rows = gather_rows({weights[i]}, layer.hessian, 0, "layer");
    error += scaled_error(rows, objective, each[i], false, a, 1);
    const SharedSchemes plain = SharedSchemes(each[i]).without_double_quantization();
    loss += detail::TeqLoss(rows, objective, plain, 1)(a, &part);
    for (size_t k = 0; k < 80; ++k) sum[k] += part[k];
  }
  const SharedInputRows rows = gather_rows(weights, layer.hessian, 0, "layer");
  const SharedSchemes schemes{std::vector<QuantScheme>(each)};
  EXPECT_NEAR(scaled_error(rows, objective, schemes, false, a, 1), error, 1e-9 * error);
  detail::TeqLoss together(rows, objective, schemes.without_double_quantization(), 1);
  EXPECT_NEAR(together(a, &gradient), loss, 1e-5 * loss);
  for (size_t k = 0; k < 80; ++k) EXPECT_NEAR(gradient[k], sum[k], 1e-5 * loss);
  EXPECT_NE(search_awq_scales(weights, layer.hessian, schemes, {}, 1).scales,
            search_awq_scales(weights, layer.hessian, each[0], {}, 1).scales);
  const SharedSchemes three(std::vector<QuantScheme>(3));
  EXPECT_MENTIONS(
      error_of<InvalidArgument>([&] { search_awq_scales(weights, layer.hessian, three, {}, 1); }),
      "2 weights and 3 schemes");
}

TEST(Scaling, InputsThatAreAllZeroEqualRtn) {
  Random random = random_of_test();
  const std::vector<float> w = normal_weights(random, 4, 80);
  const ConstMatrixView weight = view_of(w.data(), 4, 80);
  const Hessian dead(80);
  EXPECT_EQ(search_awq_scales({weight}, dead, {}, {}, 1).scales, kOnes80);
  EXPECT_EQ(search_teq_scales({weight}, dead, {}, {}, 1).scales, kOnes80);
  EXPECT_EQ(clip_awq(weight, dead, {}, {}, 1), w);
}

TEST(AwqClip, LowersTheErrorOfRounding) {
  for (const QuantScheme& scheme : scaling_schemes(32)) {
    double clipped = 0, rtn = 0;
    for (uint64_t seed = 0; seed < 20; ++seed) {
      Random random(test_seed() + seed);
      const CalibratedLayer layer = correlated_layer(random, 8, 80);
      const std::vector<float> w = clip_awq(layer.weight(), layer.hessian, scheme, {}, 1);
      std::vector<float> back(w.size());
      dequantize(quantize_rtn(view_of(w.data(), 8, 80), scheme, {}, 1), back.data(), 1);
      clipped += layer.error(back);
      rtn += layer.error(quantize_rtn(layer.weight(), scheme, {}, 1));
    }
    EXPECT_LT(clipped, rtn) << describe(scheme);
  }
}

TEST(AwqClip, NoShrinkingChangesNothing) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 5, 70);
  AwqClipOptions options;
  options.max_shrink = 0;
  for (const QuantScheme& scheme : scaling_schemes(-1))
    EXPECT_EQ(clip_awq(layer.weight(), layer.hessian, scheme, options, 1), layer.w);
}

TEST(Scaling, ErrorsSayWhatToDo) {
  std::vector<float> w(64, 1.0f);
  const ConstMatrixView weight = view_of(w.data(), 2, 32);
  const Hessian hessian = identity_hessian(32);
  const auto awq = [&](const std::vector<ConstMatrixView>& weights, const Hessian& h,
                       const AwqOptions& options) {
    return error_of<InvalidArgument>([&] { search_awq_scales(weights, h, {}, options, 1); });
  };
  AwqOptions options;
  options.name = "mlp";
  EXPECT_MENTIONS(awq({}, hessian, options), "no weights to scale for 'mlp'");
  EXPECT_MENTIONS(awq({weight}, Hessian(31), options), "'mlp' has 32 columns");
  options.n_grid = 0;
  EXPECT_MENTIONS(awq({weight}, hessian, options), "n_grid is 0");
  TeqOptions teq;
  teq.start = {1.0f, 2.0f};
  EXPECT_MENTIONS(
      error_of<InvalidArgument>([&] { search_teq_scales({weight}, hessian, {}, teq, 1); }),
      "2 elements, expected 32");
  teq.start.assign(32, -1.0f);
  EXPECT_MENTIONS(
      error_of<InvalidArgument>([&] { search_teq_scales({weight}, hessian, {}, teq, 1); }),
      "must be positive");
  EXPECT_MENTIONS(error_of<InvalidArgument>([] { parse_duo_scaling("yes"); }), "off, on, both");
  w[33] = std::nanf("");
  options.n_grid = 20;
  EXPECT_MENTIONS(awq({weight}, hessian, options), "row 1, column 1");
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { clip_awq(weight, hessian, {}, {}, 1); }),
                  "row 1, column 1");
}

}  // namespace
}  // namespace woq::testing
