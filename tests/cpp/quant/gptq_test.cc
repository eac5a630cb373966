// SPDX-License-Identifier: Apache-2.0
// GPTQ's invariants, and its codes against the paper's algorithm written out with Eigen.
#include "woq/quant/gptq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "support/eigen.h"
#include "support/errors.h"
#include "support/layers.h"
#include "support/schemes.h"
#include "woq/quant/rtn.h"

namespace woq::testing {
namespace {

std::vector<QuantScheme> gptq_schemes(std::initializer_list<int64_t> group_sizes) {
  std::vector<QuantScheme> schemes;
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : made_zero_kinds(dtype)) {
      for (const int64_t group_size : group_sizes)
        schemes.push_back({dtype.dtype, group_size, zeros, ScaleEncoding::kFp32});
    }
  }
  return schemes;
}

// Every combination of options that changes which columns go first or where scales come from.
std::vector<GptqOptions> gptq_variants() {
  std::vector<GptqOptions> variants;
  for (const ActOrder act_order : {ActOrder::kNone, ActOrder::kDesc, ActOrder::kGroupAware}) {
    for (const bool static_groups : {false, true}) {
      for (const bool mse_range : {false, true}) {
        GptqOptions options;
        options.act_order = act_order;
        options.static_groups = static_groups;
        options.mse_range = mse_range;
        variants.push_back(options);
      }
    }
  }
  return variants;
}

std::string variant(const GptqOptions& options) {
  return concat("act_order ", kActOrderNames[static_cast<int>(options.act_order)],
                options.static_groups ? ", static groups" : "",
                options.mse_range ? ", mse search" : "", options.fp64 ? ", fp64" : "");
}

// Nothing to make up for: RTN's codes and scales, to the bit. Also with no inputs at all, and with
// inputs that are all zero.
TEST(Gptq, AnIdentityHessianEqualsRtn) {
  Random random = random_of_test();
  const int64_t cols = 203;
  const std::vector<float> w = normal_weights(random, 11, cols);
  const std::vector<float> zeros(static_cast<size_t>(4 * cols));
  Hessian dead(cols);
  dead.add(view_of(zeros.data(), 4, cols), 1);
  const Hessian hessians[] = {identity_hessian(cols), Hessian(cols), dead};
  for (QuantScheme scheme : gptq_schemes({-1, 16, 128})) {
    for (const ScaleEncoding scales : made_encodings()) {
      scheme.scales = scales;
      for (GptqOptions options : gptq_variants()) {
        // The search weighs errors, here all alike.
        RtnOptions plain;
        if (options.mse_range) plain.importance.assign(static_cast<size_t>(cols), 1.0f);
        const QuantizedMatrix expected =
            quantize_rtn(view_of(w.data(), 11, cols), scheme, plain, 1);
        for (const Hessian& hessian : hessians) {
          QuantizedMatrix matrix =
              quantize_gptq(view_of(w.data(), 11, cols), hessian, scheme, options, 1).matrix;
          matrix.g_idx = Buffer();  // equal diagonal elements leave columns in order
          ASSERT_EQ(difference(matrix, expected), "")
              << describe(scheme) << ", " << variant(options) << ", seed " << random.seed();
        }
      }
    }
  }
}

// The paper's algorithm 1 as it stands there, with the inverse of H that ours does without: U is
// the upper factor of H^-1 = U^T U, and each rounded column corrects the columns behind it by U's
// row. Scales are given. A weight in flight that comes so close to the middle between two codes
// that arithmetic in another order may decide otherwise is a failure: only decided codes are
// compared.
std::vector<int> codes_of_the_paper(const CalibratedLayer& layer, const QuantizedMatrix& scaled,
                                    double damp) {
  const DtypeTraits& dtype = scaled.dtype();
  EigenMatrix h(layer.cols, layer.cols);
  for (int64_t i = 0; i < layer.cols; ++i) {
    for (int64_t j = 0; j < layer.cols; ++j) h(i, j) = layer.hessian.at(i, j);
  }
  h.diagonal().array() += damp * h.diagonal().mean();
  const EigenMatrix inverse =
      Eigen::LLT<EigenMatrix>(h).solve(EigenMatrix::Identity(layer.cols, layer.cols));
  const EigenMatrix u = Eigen::LLT<EigenMatrix>(inverse).matrixU();
  EigenMatrix w = eigen_of(layer.w.data(), layer.rows, layer.cols, layer.cols);
  std::vector<int> codes(static_cast<size_t>(layer.rows * layer.cols));
  // In parts of a scale. Codebooks are searched in fp32: the quotient, at most 1, and the middle of
  // two values are off by 3 * 2^-24, the difference of two distances by twice that, 4e-7. Integers
  // are encoded in fp64, where only the weights in flight differ, by kappa(H) K 2^-53 or less, and
  // kappa < K / damp: 1e-9.
  constexpr double kMargin = 1e-6;
  for (int64_t k = 0; k < layer.cols; ++k) {
    for (int64_t n = 0; n < layer.rows; ++n) {
      const auto scale = static_cast<double>(scaled.scales.at(n, scaled.group_of(k)));
      double nearest = HUGE_VAL, second = HUGE_VAL;
      int best = -1;
      for (int code = 0; code < (1 << dtype.bits); ++code) {
        const double value = scale * static_cast<double>(code_value(dtype, code));
        const double distance = std::fabs(w(n, k) - value);
        if (distance < nearest) {
          second = nearest;
          nearest = distance;
          best = code;
        } else {
          second = std::min(second, distance);
        }
      }
      EXPECT_GT(second - nearest, kMargin * std::fabs(scale))
          << "undecided: row " << n << ", " << k;
      codes[static_cast<size_t>(n * layer.cols + k)] = best;
      const double error =
          (w(n, k) - scale * static_cast<double>(code_value(dtype, best))) / u(k, k);
      for (int64_t j = k; j < layer.cols; ++j) w(n, j) -= error * u(k, j);
    }
  }
  return codes;
}

TEST(Gptq, CodesAreThoseOfThePaper) {
  Random random = random_of_test();
  GptqOptions options;
  options.fp64 = true;
  options.static_groups = true;  // RTN's scales
  for (const int64_t cols : {70, 200}) {
    const CalibratedLayer layer = correlated_layer(random, 6, cols);
    for (const WeightDtype dtype :
         {WeightDtype::kInt4Clip, WeightDtype::kNf4, WeightDtype::kInt8}) {
      for (const int64_t group_size : {-1, 32}) {
        const QuantScheme scheme{dtype, group_size};
        const QuantizedMatrix ours =
            quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix;
        const QuantizedMatrix scaled = quantize_rtn(layer.weight(), scheme, {}, 1);
        const std::vector<int> expected = codes_of_the_paper(layer, scaled, options.damp);
        int64_t corrected = 0;
        for (int64_t n = 0; n < layer.rows; ++n) {
          for (int64_t k = 0; k < cols; ++k) {
            ASSERT_EQ(ours.code(n, k), expected[static_cast<size_t>(n * cols + k)])
                << describe(scheme) << ", row " << n << ", column " << k << ", seed "
                << random.seed();
            corrected += ours.code(n, k) != scaled.code(n, k) ? 1 : 0;
          }
        }
        EXPECT_GT(corrected, layer.rows * cols / 20)
            << describe(scheme);  // not RTN by another name
      }
    }
  }
}

// 20 layers: the mean error of each dtype, and each variant, is below RTN's.
TEST(Gptq, BeatsRtnOnCorrelatedInputs) {
  for (const QuantScheme& scheme : gptq_schemes({32})) {
    for (const GptqOptions& options : gptq_variants()) {
      double gptq = 0, rtn = 0;
      for (uint64_t seed = 0; seed < 20; ++seed) {
        Random random(test_seed() + seed);
        const CalibratedLayer layer = correlated_layer(random, 8, 80);
        gptq +=
            layer.error(quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix);
        rtn += layer.error(quantize_rtn(layer.weight(), scheme, {options.mse_range, "w"}, 1));
      }
      EXPECT_LT(gptq, 0.8 * rtn) << describe(scheme) << ", " << variant(options);
    }
  }
}

TEST(Gptq, IsTheSameForAnyNumberOfThreads) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 400, 260);
  ASSERT_GE(layer.rows * layer.cols, 3 * kElementGrain);  // a team for static scales as well
  for (const GptqOptions& options : gptq_variants()) {
    const QuantScheme scheme{WeightDtype::kInt4Clip, 32, ZeroKind::kInt, ScaleEncoding::kFp16};
    const QuantizedMatrix one =
        quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix;
    for (const int threads : {2, 3}) {
      const QuantizedMatrix many =
          quantize_gptq(layer.weight(), layer.hessian, scheme, options, threads).matrix;
      ASSERT_EQ(difference(one, many), "") << threads << " threads, " << variant(options);
      ASSERT_TRUE(same_bytes(one.g_idx, many.g_idx));
    }
  }
}

// Columns and Hessian permuted alike: act-order takes the same columns in the same order.
TEST(Gptq, ActOrderIsPermutationEquivariant) {
  Random random = random_of_test();
  const int64_t rows = 6, cols = 96, samples = 300;
  const CalibratedLayer layer = correlated_layer(random, rows, cols, samples);
  std::vector<int64_t> permutation(static_cast<size_t>(cols));
  std::iota(permutation.begin(), permutation.end(), 0);
  for (int64_t k = cols - 1; k > 0; --k)
    std::swap(permutation[static_cast<size_t>(k)],
              permutation[static_cast<size_t>(random.below(k + 1))]);
  const auto permuted = [&](const std::vector<float>& values, int64_t count) {
    std::vector<float> result(values.size());
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t k = 0; k < cols; ++k) {
        result[static_cast<size_t>(r * cols + k)] =
            values[static_cast<size_t>(r * cols + permutation[static_cast<size_t>(k)])];
      }
    }
    return result;
  };
  const std::vector<float> w = permuted(layer.w, rows), x = permuted(layer.x, samples);
  Hessian hessian(cols);
  hessian.add(view_of(x.data(), samples, cols), 1);
  GptqOptions options;
  options.act_order = ActOrder::kDesc;
  for (const QuantScheme& scheme : gptq_schemes({-1, 32})) {
    const QuantizedMatrix a =
        quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix;
    const QuantizedMatrix b =
        quantize_gptq(view_of(w.data(), rows, cols), hessian, scheme, options, 1).matrix;
    ASSERT_TRUE(same_bytes(a.scales.values, b.scales.values)) << describe(scheme);
    for (int64_t k = 0; k < cols; ++k) {
      const int64_t source = permutation[static_cast<size_t>(k)];
      ASSERT_EQ(a.group_of(source), b.group_of(k));
      for (int64_t n = 0; n < rows; ++n) ASSERT_EQ(a.code(n, source), b.code(n, k));
    }
  }
}

TEST(Gptq, OnlyActOrderWithScalesInFlightNeedsGIdx) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 3, 70);
  for (const GptqOptions& options : gptq_variants()) {
    for (const int64_t group_size : {-1, 32}) {
      const QuantizedMatrix matrix =
          quantize_gptq(layer.weight(), layer.hessian, {WeightDtype::kNf4, group_size}, options, 1)
              .matrix;
      const bool needed =
          options.act_order == ActOrder::kDesc && !options.static_groups && group_size != -1;
      ASSERT_EQ(matrix.g_idx.size() > 0, needed) << variant(options);
      if (!needed) continue;
      std::vector<int> counts(3);
      for (int64_t k = 0; k < 70; ++k) ++counts[static_cast<size_t>(matrix.group_of(k))];
      EXPECT_EQ(counts, (std::vector<int>{32, 32, 6}));
    }
  }
}

// How many columns one product corrects is a matter of speed only.
TEST(Gptq, BlockSizeMakesNoDifference) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 9, 150);
  GptqOptions options;
  options.fp64 = true;
  for (const int64_t group_size : {-1, 24, 128}) {
    const QuantScheme scheme{WeightDtype::kInt4Clip, group_size};
    const QuantizedMatrix expected =
        quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix;
    for (const int64_t block_size : {1, 20, 64, 1000}) {
      GptqOptions other = options;
      other.block_size = block_size;
      EXPECT_EQ(difference(quantize_gptq(layer.weight(), layer.hessian, scheme, other, 1).matrix,
                           expected),
                "")
          << block_size;
    }
  }
}

// A rank-deficient Hessian without damping fails to factor; damping is raised until it doesn't.
TEST(Gptq, RaisesDampingWhereItMust) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 4, 64, 10);
  GptqOptions options;
  options.damp = 0;
  const GptqResult result = quantize_gptq(layer.weight(), layer.hessian, {}, options, 1);
  EXPECT_EQ(result.damp, 0.01);
  EXPECT_LT(layer.error(result.matrix), layer.error(quantize_rtn(layer.weight(), {}, {}, 1)));
  options.damp_increment = 0;
  EXPECT_MENTIONS(error_of<InvalidArgument>(
                      [&] { quantize_gptq(layer.weight(), layer.hessian, {}, options, 1); }),
                  "not positive definite");
}

// Scales from another matrix's ranges: those of its own are static groups; narrower ones are kept.
TEST(Gptq, TakesRangesFromAnotherMatrix) {
  Random random = random_of_test();
  const CalibratedLayer layer = correlated_layer(random, 8, 96);
  for (const ActOrder order : {ActOrder::kNone, ActOrder::kDesc, ActOrder::kGroupAware}) {
    GptqOptions options;
    options.act_order = order;
    options.static_groups = true;
    const QuantScheme scheme{WeightDtype::kInt4Clip, 32};
    const QuantizedMatrix fixed =
        quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix;
    options.static_groups = false;
    const ConstMatrixView own = layer.weight();
    options.ranges = &own;
    EXPECT_EQ(
        difference(quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix, fixed),
        "");
    std::vector<float> narrow = layer.w;
    for (float& value : narrow) value = std::clamp(value, -1.0f, 1.0f);
    const ConstMatrixView clipped = view_of(narrow.data(), 8, 96);
    options.ranges = &clipped;
    const QuantizedMatrix matrix =
        quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1).matrix;
    const QuantizedMatrix rtn = quantize_rtn(clipped, scheme, {}, 1);
    for (int64_t i = 0; i < 8 * 3; ++i) EXPECT_EQ(matrix.scales.at(i), rtn.scales.at(i));
    EXPECT_EQ(matrix.g_idx.size(), 0);
    const ConstMatrixView short_one = view_of(narrow.data(), 7, 96);
    options.ranges = &short_one;
    EXPECT_MENTIONS(error_of<InvalidArgument>(
                        [&] { quantize_gptq(layer.weight(), layer.hessian, scheme, options, 1); }),
                    "are [7, 96], expected [8, 96]");
  }
}

// Inputs that are multiplied have the scaled moments of the others.
TEST(CrossMoment, ScalesWithItsInputs) {
  Random random = random_of_test();
  const int64_t cols = 40, samples = 90;
  const std::vector<float> x = correlated_inputs(random, samples, cols);
  const std::vector<float> y = correlated_inputs(random, samples, cols);
  std::vector<float> s(static_cast<size_t>(cols)), xs = x, ys = y;
  for (float& value : s) value = std::ldexp(1.0f, static_cast<int>(random.below(5)) - 2);  // exact
  for (size_t i = 0; i < x.size(); ++i) {
    xs[i] *= s[i % s.size()];
    ys[i] *= s[i % s.size()];
  }
  CrossMoment plain(cols), direct(cols);
  plain.add(view_of(x.data(), samples, cols), view_of(y.data(), samples, cols), 1);
  direct.add(view_of(xs.data(), samples, cols), view_of(ys.data(), samples, cols), 1);
  const CrossMoment scaled = plain.scaled(s);
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = 0; j < cols; ++j) EXPECT_EQ(scaled.at(i, j), direct.at(i, j));
  }
  s.pop_back();
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { (void)plain.scaled(s); }), "39 multipliers");
}

// A dead column is rounded to nearest, and the others don't notice it.
TEST(Gptq, DeadColumnsStandApart) {
  Random random = random_of_test();
  const int64_t cols = 64, samples = 200;
  std::vector<float> x = correlated_inputs(random, samples, cols);
  for (int64_t r = 0; r < samples; ++r) x[static_cast<size_t>(r * cols + 5)] = 0;
  Hessian hessian(cols);
  hessian.add(view_of(x.data(), samples, cols), 1);
  EXPECT_EQ(hessian.dead_columns(), 1);
  std::vector<float> w = normal_weights(random, 4, cols);
  for (int64_t n = 0; n < 4; ++n) w[static_cast<size_t>(n * cols + 5)] = 0.003f;  // no scale's
  GptqOptions options;
  options.static_groups = true;
  const QuantScheme scheme{WeightDtype::kInt8, -1};
  const QuantizedMatrix rtn = quantize_rtn(view_of(w.data(), 4, cols), scheme, {}, 1);
  const QuantizedMatrix before =
      quantize_gptq(view_of(w.data(), 4, cols), hessian, scheme, options, 1).matrix;
  for (int64_t n = 0; n < 4; ++n) {
    EXPECT_EQ(before.code(n, 5), rtn.code(n, 5));
    w[static_cast<size_t>(n * cols + 5)] *= 0.5f;
  }
  const QuantizedMatrix after =
      quantize_gptq(view_of(w.data(), 4, cols), hessian, scheme, options, 1).matrix;
  for (int64_t n = 0; n < 4; ++n) {
    for (int64_t k = 0; k < cols; ++k) {
      if (k != 5) {
        EXPECT_EQ(before.code(n, k), after.code(n, k));
      }
    }
  }
}

// Inputs of the quantized prefix differ from those of the full-precision model: GPTAQ's term brings
// the layer's output nearer to W x_float.
TEST(Gptq, GptaqAnswersToTheFullPrecisionInputs) {
  double plain = 0, corrected = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Random random(test_seed() + seed);
    const int64_t rows = 8, cols = 64, samples = 256;
    CalibratedLayer layer = correlated_layer(random, rows, cols, samples);
    // The prefix loses a tenth of each input, and some more at random.
    std::vector<float> x = layer.x;
    for (float& value : x) value = value * 0.9f + 0.1f * random.normal();
    Hessian hessian(cols);
    hessian.add(view_of(x.data(), samples, cols), 1);
    CrossMoment cross(cols);
    cross.add(view_of(layer.x.data(), samples, cols), view_of(x.data(), samples, cols), 1);
    const auto output_error = [&](const QuantizedMatrix& matrix) {
      std::vector<float> q(layer.w.size());
      dequantize(matrix, q.data(), 1);
      double sum = 0;
      for (int64_t r = 0; r < samples; ++r) {
        for (int64_t n = 0; n < rows; ++n) {
          double difference = 0;
          for (int64_t k = 0; k < cols; ++k) {
            const auto at = static_cast<size_t>(n * cols + k),
                       in = static_cast<size_t>(r * cols + k);
            difference +=
                static_cast<double>(layer.w[at]) * layer.x[in] - static_cast<double>(q[at]) * x[in];
          }
          sum += difference * difference;
        }
      }
      return sum;
    };
    GptqOptions options;
    const QuantScheme scheme{WeightDtype::kInt4Clip, 32};
    plain += output_error(quantize_gptq(layer.weight(), hessian, scheme, options, 1).matrix);
    options.cross = &cross;
    options.gptaq_alpha = 1;
    corrected += output_error(quantize_gptq(layer.weight(), hessian, scheme, options, 1).matrix);
  }
  EXPECT_LT(corrected, 0.9 * plain);
}

TEST(Gptq, ErrorsSayWhatToDo) {
  const std::vector<float> w(64, 1.0f);
  const ConstMatrixView weight = view_of(w.data(), 2, 32);
  const Hessian hessian = identity_hessian(32);
  const auto message = [&](const ConstMatrixView& view, const Hessian& h, const QuantScheme& scheme,
                           const GptqOptions& options) {
    return error_of<InvalidArgument>([&] { quantize_gptq(view, h, scheme, options, 1); });
  };
  GptqOptions options;
  options.name = "fc1";
  EXPECT_MENTIONS(message(weight, Hessian(31), {}, options), "'fc1' has 32 columns");
  options.damp = 1;
  EXPECT_MENTIONS(message(weight, hessian, {}, options), "damp_percent is 1");
  options.damp = 0.01;
  options.block_size = 0;
  EXPECT_MENTIONS(message(weight, hessian, {}, options), "block_size is 0");
  options.block_size = 128;
  std::vector<float> bad = w;
  bad[40] = std::nanf("");
  EXPECT_MENTIONS(message(view_of(bad.data(), 2, 32), hessian, {}, options), "row 1, column 8");
  EXPECT_MENTIONS(message(weight, hessian, {WeightDtype::kInt4Clip, 32, ZeroKind::kFloat}, options),
                  "float zero points");
  EXPECT_MENTIONS(error_of<InvalidArgument>([] { parse_act_order("descending"); }), "group_aware");
}

}  // namespace
}  // namespace woq::testing
