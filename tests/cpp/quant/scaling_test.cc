// SPDX-License-Identifier: Apache-2.0
// AWQ and TEQ: scales of input channels that weights share.
#include <gtest/gtest.h>

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
    for (const ZeroKind zeros : zero_kinds_of(dtype)) {
      if (zeros != ZeroKind::kFloat)
        schemes.push_back({dtype.dtype, group_size, zeros, ScaleEncoding::kFp32});
    }
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
  const CalibratedLayer layer = correlated_layer(random, 150, 250);
  TeqOptions teq;
  teq.steps = 5;
  const AwqResult awq1 = search_awq_scales({layer.weight()}, layer.hessian, {}, {}, 1);
  const TeqResult teq1 = search_teq_scales({layer.weight()}, layer.hessian, {}, teq, 1);
  const std::vector<float> clip1 = clip_awq(layer.weight(), layer.hessian, {}, {}, 1);
  for (const int threads : {2, 3, 5}) {
    EXPECT_EQ(search_awq_scales({layer.weight()}, layer.hessian, {}, {}, threads).scales,
              awq1.scales);
    EXPECT_EQ(search_teq_scales({layer.weight()}, layer.hessian, {}, teq, threads).scales,
              teq1.scales);
    EXPECT_EQ(clip_awq(layer.weight(), layer.hessian, {}, {}, threads), clip1);
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
