// SPDX-License-Identifier: Apache-2.0
// Every kernel, the reference included, against dequantize() and a product in double precision.
#include "support/oracle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "support/bounds.h"

namespace woq::testing {
namespace {

using KernelOracle = KernelTest;
using KernelOracleInt8 = KernelTest;
using KernelOracleBf16 = KernelTest;

TEST_P(KernelOracle, ErrorIsThatOfRoundingTheOperandsAndTheSum) {
  constexpr int64_t kRows[] = {3, 17};  // few, and many for every kernel
  Random random = random_of_test();
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    for (const ZeroKind zeros : zero_kinds_of(traits_of(dtype))) {
      for (const int64_t group_size : kGroupSizes) {
        QuantScheme scheme{dtype, group_size, zeros, random.pick(scale_encodings())};
        if (!is_scheme(scheme)) scheme.scales = ScaleEncoding::kFp16;
        const GemmProblem problem = random_problem(random, scheme, random.pick(kRows), 35, 261,
                                                   random.pick(kFloatTypes), random.coin());
        SCOPED_TRACE(describe(problem) + ", seed " + std::to_string(random.seed()));
        const Bounds bounds =
            plus(accumulation_bounds(problem, kernel()), operand_bounds(problem, kernel()));
        ASSERT_TRUE(within(run_gemm(kernel(), problem), exact_product(problem), bounds));
      }
    }
  }
}

// The lower bound: int8's error is the noise of rounding, uniform and independent, of variance
// step^2 / 12. Much less would mean that activations are not quantized, more that they are badly.
TEST_P(KernelOracleInt8, NoiseHasTheVarianceOfRounding) {
  Random random = random_of_test();
  const WeightDtype dtype = dtypes_of(kernel().weights).front();
  const GemmProblem problem = random_problem(random, {dtype, 64, {}, {}}, 33, 64, 512);
  const FloatMatrix c = run_gemm(kernel(), problem);
  const DoubleMatrix exact = exact_product(problem);
  double noise = 0, predicted = 0;
  for (int64_t m = 0; m < problem.rows(); ++m) {
    const std::vector<float> x = problem.x.row(m);
    for (int64_t n = 0; n < problem.cols(); ++n) {
      const double error = static_cast<double>(c.get(m, n)) - exact.get(m, n);
      noise += error * error;
      for (int64_t begin = 0; begin < 512; begin += 64) {
        double absmax = 0, weights = 0;
        for (int64_t k = begin; k < begin + 64; ++k) {
          absmax = std::fmax(absmax, std::fabs(x[static_cast<size_t>(k)]));
          const double w = static_cast<double>(problem.hub.scales.at(n, begin / 64)) *
                           (problem.hub.code(n, k) - problem.hub.dtype().center());
          weights += w * w;
        }
        predicted += weights * (absmax / 127) * (absmax / 127) / 12;
      }
    }
  }
  // The errors of a row share its activations: some 33 * 512 independent ones, 2 % of spread.
  EXPECT_GT(noise, 0.85 * predicted);
  EXPECT_LT(noise, 1.15 * predicted);
}

// Likewise bf16 compute must round: its error exceeds what fp32 accumulation could explain.
TEST_P(KernelOracleBf16, RoundsTheActivations) {
  Random random = random_of_test();
  const WeightDtype dtype = dtypes_of(kernel().weights).front();
  const GemmProblem problem = random_problem(random, {dtype, 32, {}, {}}, 17, 32, 256);
  EXPECT_FALSE(within(run_gemm(kernel(), problem), exact_product(problem),
                      accumulation_bounds(problem, kernel())));
}

INSTANTIATE_TEST_SUITE_P(All, KernelOracle, ::testing::ValuesIn(all_kernels()), kernel_test_name);
// Not of tables, which add the error of their image.
INSTANTIATE_TEST_SUITE_P(All, KernelOracleInt8,
                         ::testing::ValuesIn(kernels_with([](const Kernel& k) {
                           return k.compute == ComputeType::kInt8 && k.weights != WeightKind::kT4;
                         })),
                         kernel_test_name);
INSTANTIATE_TEST_SUITE_P(All, KernelOracleBf16,
                         ::testing::ValuesIn(kernels_with([](const Kernel& k) {
                           return k.compute == ComputeType::kBf16;
                         })),
                         kernel_test_name);

}  // namespace
}  // namespace woq::testing
