// SPDX-License-Identifier: Apache-2.0
#include "woq/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/bounds.h"
#include "support/errors.h"
#include "woq/kernels/silu.h"

namespace woq::testing {
namespace {

constexpr ComputeType kComputes[] = {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8};

// One layer of every kind, of each compute type, on one target.
class LinearTargets : public ::testing::TestWithParam<TargetTraits> {
 protected:
  void SetUp() override {
    const std::string why_not = why_not_here(GetParam());
    if (!why_not.empty()) GTEST_SKIP() << why_not;
  }

  bool has_own_kernel(WeightKind kind, ComputeType compute) const {
    const KernelTable table = kernels_of(GetParam().target);
    return std::any_of(table.begin, table.begin + table.size, [&](const Kernel& kernel) {
      return kernel.weights == kind && kernel.compute == compute;
    });
  }
};

TEST_P(LinearTargets, TheForcedTargetRunsAndAgreesWithTheReference) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ComputeType compute : kComputes) {
      const QuantScheme scheme{dtype.dtype, 32, {}, random.pick(scale_encodings())};
      const GemmProblem problem = random_problem(random, scheme, 6, 43, 107, FloatType::kBf16);
      SCOPED_TRACE(describe(problem) + ", " + name_of(compute) + " compute");
      const WeightOnlyLinear layer(problem.hub, {}, compute, "layer", 1, GetParam().name);
      EXPECT_TRUE(runs_on(layer.kernel().target, usable_features(GetParam().name)));
      if (has_own_kernel(kind_of(dtype), compute)) {
        EXPECT_EQ(layer.kernel().target, GetParam().target) << layer.kernel().name;
      }
      EXPECT_EQ(layer.choice().forced, GetParam().name);
      FloatMatrix c(FloatType::kBf16, 6, 43);
      layer.forward(problem.x.view(), c.view(), 1);
      const FloatMatrix expected =
          run_gemm(reference_of(layer.kernel()), problem, FloatType::kBf16);
      EXPECT_TRUE(agrees(c, expected, problem, layer.kernel()));
    }
  }
}

// 300 rows are two blocks of rows inside forward().
TEST_P(LinearTargets, ManyRows) {
  Random random = random_of_test();
  const GemmProblem problem = random_problem(random, {WeightDtype::kNf4, 16, {}, {}}, 300, 17, 24);
  for (const ComputeType compute : kComputes) {
    const WeightOnlyLinear layer(problem.hub, {}, compute, "layer", 1, GetParam().name);
    FloatMatrix c(FloatType::kFp32, 300, 17, 1);
    layer.forward(problem.x.view(), c.view(), 1);
    EXPECT_TRUE(
        agrees(c, run_gemm(reference_of(layer.kernel()), problem), problem, layer.kernel()));
  }
}

INSTANTIATE_TEST_SUITE_P(All, LinearTargets, ::testing::ValuesIn(kTargets),
                         [](const auto& test) { return std::string(test.param.name); });

// A layer of 40 x 70 with its input.
struct Fixture {
  Random random = random_of_test();
  GemmProblem problem = random_problem(random, {WeightDtype::kInt4Clip, 32, {}, {}}, 3, 40, 70);

  WeightOnlyLinear layer(const std::vector<float>& bias = {}) const {
    return {problem.hub, bias, ComputeType::kInt8, "model.q_proj", 1};
  }
};

TEST(Linear, DescribesItself) {
  const Fixture fixture;
  const WeightOnlyLinear plain = fixture.layer();
  EXPECT_EQ(plain.in_features(), 70);
  EXPECT_EQ(plain.out_features(), 40);
  EXPECT_EQ(plain.name(), "model.q_proj");
  EXPECT_FALSE(plain.has_bias());
  EXPECT_TRUE(fixture.layer(std::vector<float>(40)).has_bias());
}

TEST(Linear, WrongShapesAreNamed) {
  const Fixture fixture;
  const WeightOnlyLinear layer = fixture.layer();
  const auto error = [&](int64_t x_rows, int64_t x_cols, int64_t y_rows, int64_t y_cols) {
    const FloatMatrix x(FloatType::kFp32, x_rows, x_cols);
    FloatMatrix y(FloatType::kFp32, y_rows, y_cols);
    const std::string message =
        error_of<InvalidArgument>([&] { layer.forward(x.view(), y.view()); });
    EXPECT_EQ(y.changed_outside(0, 0, 0, 0), "");
    EXPECT_MENTIONS(message, "'model.q_proj'");
    return message;
  };
  EXPECT_MENTIONS(error(3, 69, 3, 40), "69 features, but in_features is 70");
  EXPECT_MENTIONS(error(3, 70, 3, 41), "3 x 41, expected 3 x 40");
  EXPECT_MENTIONS(error(3, 70, 2, 40), "2 x 40, expected 3 x 40");
  EXPECT_MENTIONS(error(0, 71, 0, 40), "71 features");
}

TEST(Linear, ABiasOfTheWrongLengthIsNamed) {
  const Fixture fixture;
  for (const size_t length : {1u, 39u, 41u, 48u}) {
    const std::string error =
        error_of<InvalidArgument>([&] { fixture.layer(std::vector<float>(length)); });
    EXPECT_MENTIONS(error, "'model.q_proj'");
    EXPECT_MENTIONS(error, std::to_string(length) + " elements");
    EXPECT_MENTIONS(error, "40 rows");
  }
}

TEST(Linear, BiasIsAdded) {
  const Fixture fixture;
  std::vector<float> bias(40);
  for (size_t n = 0; n < 40; ++n) bias[n] = static_cast<float>(n);
  FloatMatrix with(FloatType::kFp32, 3, 40), without(FloatType::kFp32, 3, 40);
  fixture.layer(bias).forward(fixture.problem.x.view(), with.view(), 1);
  fixture.layer().forward(fixture.problem.x.view(), without.view(), 1);
  for (int64_t m = 0; m < 3; ++m) {
    for (int64_t n = 0; n < 40; ++n) {
      EXPECT_EQ(with.get(m, n), without.get(m, n) + static_cast<float>(n));
    }
  }
}

TEST(Linear, NoRowsIsNoWork) {
  const Fixture fixture;
  fixture.layer().forward({nullptr, FloatType::kBf16, 0, 70, 70},
                          {nullptr, FloatType::kFp32, 0, 40, 40});
}

TEST(Linear, StridesAreFollowedAndGapsLeftAlone) {
  const Fixture fixture;
  const WeightOnlyLinear layer = fixture.layer();
  FloatMatrix dense(FloatType::kFp32, 3, 40);
  layer.forward(fixture.problem.x.view(), dense.view(), 1);
  for (const int64_t gap : {1, 16, 100}) {
    FloatMatrix x(FloatType::kFp32, 3, 70, gap, 3), y(FloatType::kFp32, 3, 40, gap + 1, 1);
    for (int64_t m = 0; m < 3; ++m) {
      for (int64_t k = 0; k < 70; ++k) x.set(m, k, fixture.problem.x.get(m, k));
    }
    layer.forward(x.view(), y.view(), 1);
    EXPECT_TRUE(identical(y, dense));
    EXPECT_EQ(y.changed_outside(0, 3, 0, 40), "");
  }
}

TEST(Linear, UnpacksUnchangedAfterUse) {
  const Fixture fixture;
  const WeightOnlyLinear layer = fixture.layer();
  FloatMatrix y(FloatType::kFp32, 3, 40);
  for (int i = 0; i < 3; ++i) layer.forward(fixture.problem.x.view(), y.view());
  EXPECT_EQ(difference(unpack(layer.weight(), 1), fixture.problem.hub), "");
}

TEST(Linear, RepeatedCallsGiveTheSameBits) {
  const Fixture fixture;
  for (const ComputeType compute : kComputes) {
    const WeightOnlyLinear layer(fixture.problem.hub, {}, compute);
    FloatMatrix first(FloatType::kFp32, 3, 40), again(FloatType::kFp32, 3, 40);
    layer.forward(fixture.problem.x.view(), first.view(), 1);
    layer.forward(fixture.problem.x.view(), again.view(), 1);
    EXPECT_TRUE(identical(again, first));
  }
}

// Layers that share activations and layers that do not, in one call.
TEST_P(LinearTargets, SharedCallsGiveWhatSingleCallsGive) {
  Random random = random_of_test();
  for (const ComputeType compute : kComputes) {
    for (const int64_t rows : {1, 5, 17, 300}) {
      const GemmProblem problem =
          random_problem(random, {WeightDtype::kInt4Clip, 32, {}, {}}, rows, 70, 104);
      std::vector<std::unique_ptr<WeightOnlyLinear>> layers;
      const auto add = [&](WeightDtype dtype, int group_size, int64_t n) {
        const QuantizedMatrix hub = random_hub(random, {dtype, group_size, {}, {}}, n, 104);
        layers.push_back(std::make_unique<WeightOnlyLinear>(
            hub, std::vector<float>(static_cast<size_t>(n), 0.5f), compute, "", 1,
            GetParam().name));
      };
      add(WeightDtype::kInt4Clip, 32, 70);
      add(WeightDtype::kInt4Fullrange, 32, 16);
      add(WeightDtype::kInt4Clip, 64, 33);
      add(WeightDtype::kNf4, 32, 1);
      add(WeightDtype::kInt8, 32, 40);
      EXPECT_TRUE(layers[0]->shares_activations_with(*layers[1]));
      EXPECT_FALSE(layers[0]->shares_activations_with(*layers[2]));
      for (const int threads : {1, one_processor() ? 1 : 3}) {
        std::vector<FloatMatrix> single, shared;
        std::vector<LinearOutput> outputs;
        for (const auto& layer : layers) {
          single.emplace_back(FloatType::kFp32, rows, layer->out_features(), 2);
          shared.emplace_back(FloatType::kFp32, rows, layer->out_features(), 2);
        }
        for (size_t i = 0; i < layers.size(); ++i) {
          layers[i]->forward(problem.x.view(), single[i].view(), threads);
          outputs.push_back({layers[i].get(), shared[i].view(), {}});
        }
        forward_shared(problem.x.view(), outputs, threads);
        for (size_t i = 0; i < layers.size(); ++i) {
          EXPECT_TRUE(identical(shared[i], single[i])) << "layer " << i << ", M=" << rows;
          EXPECT_EQ(shared[i].changed_outside(0, rows, 0, single[i].cols()), "");
        }
      }
    }
  }
}

TEST_P(LinearTargets, ResidualsAreAdded) {
  Random random = random_of_test();
  for (const FloatType type : kFloatTypes) {
    for (const int64_t rows : {1, 9, 260}) {
      const GemmProblem problem =
          random_problem(random, {WeightDtype::kInt8, 32, {}, {}}, rows, 43, 64);
      const WeightOnlyLinear layer(problem.hub, std::vector<float>(43, 1.0f), ComputeType::kInt8,
                                   "", 1, GetParam().name);
      FloatMatrix plain(FloatType::kFp32, rows, 43), residual(type, rows, 43, 3, 1),
          y(FloatType::kFp32, rows, 43, 1);
      fill_activations(random, &residual);
      layer.forward(problem.x.view(), plain.view(), 1);
      forward_shared(problem.x.view(), {{&layer, y.view(), residual.view()}}, 2);
      // In place: the residual stream of a model.
      FloatMatrix in_place(type, rows, 43, 2);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < 43; ++n) in_place.set(m, n, residual.get(m, n));
      }
      forward_shared(problem.x.view(), {{&layer, in_place.view(), in_place.view()}}, 2);
      FloatMatrix rounded(type, 1, 1);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < 43; ++n) {
          const float sum = plain.get(m, n) + residual.get(m, n);
          ASSERT_EQ(y.get(m, n), sum) << m << ", " << n;
          rounded.set(0, 0, sum);
          ASSERT_EQ(in_place.get(m, n), rounded.get(0, 0)) << m << ", " << n;
        }
      }
    }
  }
}

// silu in double precision within 4 units in the last place; the ends exactly.
TEST(Silu, IsAccurate) {
  Random random = random_of_test();
  for (int i = 0; i < 20000; ++i) {
    const float x = random.uniform(-88.0f, 100.0f);
    const double exact = x / (1 + std::exp(-static_cast<double>(x)));
    ASSERT_NEAR(silu(x), exact, 4 * 0x1p-24 * std::fabs(exact)) << x;
  }
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(silu(0.0f), 0.0f);
  EXPECT_EQ(silu(1e30f), 1e30f);
  EXPECT_EQ(silu(kInfinity), kInfinity);
  EXPECT_NEAR(silu(-1e30f), 0, 1e-36);
  EXPECT_NEAR(silu(-kInfinity), 0, 1e-36);
  EXPECT_TRUE(std::isnan(silu(std::numeric_limits<float>::quiet_NaN())));
}

// Bit for bit what the two products and the scalar silu give, whatever the type between them.
TEST_P(LinearTargets, GatedPairs) {
  Random random = random_of_test();
  for (const FloatType type : kFloatTypes) {
    for (const int64_t rows : {1, 4, 9, 260}) {
      const GemmProblem problem =
          random_problem(random, {WeightDtype::kInt4Clip, 32, {}, {}}, rows, 43, 64);
      const auto layer_of = [&](const QuantizedMatrix& hub) {
        return WeightOnlyLinear(hub, std::vector<float>(43, 0.25f), ComputeType::kInt8, "", 1,
                                GetParam().name);
      };
      const WeightOnlyLinear gate = layer_of(problem.hub);
      const WeightOnlyLinear up = layer_of(random_hub(random, problem.hub.scheme, 43, 64));
      FloatMatrix gates(FloatType::kFp32, rows, 43), ups(type, rows, 43), y(type, rows, 43, 2, 1);
      gate.forward(problem.x.view(), gates.view(), 1);
      up.forward(problem.x.view(), ups.view(), 1);
      for (const int threads : {1, one_processor() ? 1 : 3}) {
        forward_gated(problem.x.view(), gate, up, y.view(), threads);
        FloatMatrix expected(type, 1, 1);
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < 43; ++n) {
            expected.set(0, 0, silu(gates.get(m, n)) * ups.get(m, n));
            ASSERT_EQ(y.get(m, n), expected.get(0, 0)) << m << ", " << n;
          }
        }
        EXPECT_EQ(y.changed_outside(0, rows, 0, 43), "");
      }
    }
  }
}

// Large, infinite and NaN gates pass silu's ends on every target.
TEST_P(LinearTargets, GatesAtTheEndsOfSilu) {
  const QuantizedMatrix one = uniform_hub({WeightDtype::kInt8, -1, {}, {}}, 1, 1, 1.0f, 128 + 1);
  const WeightOnlyLinear layer(one, {}, ComputeType::kFp32, "", 1, GetParam().name);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> ends = {0.0f,      -0.0f,
                                   1e-40f,    87.0f,
                                   -87.0f,    -88.0f,
                                   -89.0f,    100.0f,
                                   -1e30f,    1e30f,
                                   kInfinity, -kInfinity,
                                   12.5f,     std::numeric_limits<float>::quiet_NaN()};
  const auto rows = static_cast<int64_t>(ends.size());
  FloatMatrix x(FloatType::kFp32, rows, 1), ones(FloatType::kFp32, rows, 1),
      y(FloatType::kFp32, rows, 1);
  for (int64_t m = 0; m < rows; ++m) {
    x.set(m, 0, ends[static_cast<size_t>(m)]);
    ones.set(m, 0, 1.0f);
  }
  forward_shared(x.view(), {{&layer, y.view(), {}, ones.view()}}, 1);
  for (int64_t m = 0; m < rows; ++m) {
    const float expected = silu(ends[static_cast<size_t>(m)]);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(y.get(m, 0)));
    } else {
      EXPECT_EQ(y.get(m, 0), expected) << ends[static_cast<size_t>(m)];
    }
  }
}

TEST(Linear, SharedCallsNameTheLayerOfAWrongShape) {
  const Fixture fixture;
  const WeightOnlyLinear layer = fixture.layer();
  FloatMatrix y(FloatType::kFp32, 3, 40), wrong(FloatType::kFp32, 3, 41);
  const std::string output = error_of<InvalidArgument>([&] {
    forward_shared(fixture.problem.x.view(), {{&layer, y.view(), {}}, {&layer, wrong.view(), {}}});
  });
  EXPECT_MENTIONS(output, "'model.q_proj': the output is 3 x 41");
  const std::string residual = error_of<InvalidArgument>(
      [&] { forward_shared(fixture.problem.x.view(), {{&layer, y.view(), wrong.view()}}); });
  EXPECT_MENTIONS(residual, "the residual is 3 x 41, expected 3 x 40");
  const std::string factor = error_of<InvalidArgument>(
      [&] { forward_shared(fixture.problem.x.view(), {{&layer, y.view(), {}, wrong.view()}}); });
  EXPECT_MENTIONS(factor, "the factor up is 3 x 41, expected 3 x 40");
  EXPECT_EQ(y.changed_outside(0, 0, 0, 0), "");
  forward_shared(fixture.problem.x.view(), {});
}

TEST(Linear, AForcedTargetThatTheCpuLacksIsUnsupported) {
  const Fixture fixture;
  for (const TargetTraits& target : kTargets) {
    if (runs_on(target.target, cpu_features())) continue;
    const std::string error = error_of<Unsupported>([&] {
      const WeightOnlyLinear layer(fixture.problem.hub, {}, ComputeType::kInt8, "", 1, target.name);
    });
    EXPECT_MENTIONS(error, target.name);
  }
}

}  // namespace
}  // namespace woq::testing
