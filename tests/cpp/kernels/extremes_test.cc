// SPDX-License-Identifier: Apache-2.0
// Inputs at the ends of their ranges: saturation, overflow, underflow, NaN.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "support/bounds.h"

namespace woq::testing {
namespace {

using KernelExtremes = KernelTest;
using KernelExtremesIntegers = KernelTest;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

GemmProblem uniform_problem(const QuantScheme& scheme, int64_t m, int64_t n, int64_t k, float scale,
                            int code, float activation) {
  FloatMatrix x(FloatType::kFp32, m, k);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < k; ++c) x.set(r, c, activation);
  }
  return {uniform_hub(scheme, n, k, scale, code), std::move(x)};
}

// K of 512 of the largest products: 512 * 128 * 127 < 2^24, so the sum is exact in every compute
// type, whose operands are exact too.
TEST_P(KernelExtremesIntegers, LargestProductsNeitherSaturateNorOverflow) {
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    const DtypeTraits& traits = traits_of(dtype);
    for (const int64_t group_size : {-1, 16, 128, 200}) {
      for (const ZeroKind zeros : zero_kinds_of(traits)) {
        for (const int code : {0, traits.max_code()}) {
          for (const float a : {127.0f, -127.0f}) {
            const GemmProblem problem =
                uniform_problem({dtype, group_size, zeros, {}}, 9, 33, 512, 1.0f, code, a);
            SCOPED_TRACE(describe(problem) + ", code " + std::to_string(code));
            const float expected = 512.0f * a * static_cast<float>(code - traits.center());
            const FloatMatrix c = run_gemm(kernel(), problem);
            for (int64_t m = 0; m < 9; ++m) {
              for (int64_t n = 0; n < 33; ++n) ASSERT_EQ(c.get(m, n), expected);
            }
          }
        }
      }
    }
  }
}

// Zero points at the far end double the distance: 255 for int8.
TEST_P(KernelExtremesIntegers, FarthestZeroPoints) {
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    const int max_code = traits_of(dtype).max_code();
    for (const int code : {0, max_code}) {
      GemmProblem problem =
          uniform_problem({dtype, 64, ZeroKind::kInt, {}}, 3, 17, 256, 1.0f, code, 127.0f);
      for (int64_t i = 0; i < problem.hub.zero_points.size(); ++i) {
        problem.hub.zero_points.data()[i] = static_cast<uint8_t>(max_code - code);
      }
      problem.weights = pack(problem.hub, 1);
      const float expected = 256.0f * 127.0f * static_cast<float>(2 * code - max_code);
      const FloatMatrix c = run_gemm(kernel(), problem);
      for (int64_t n = 0; n < 17; ++n) EXPECT_EQ(c.get(2, n), expected);
    }
  }
}

// Every code of a byte or nibble with either sign of the largest activation, so that neighbours in
// a dot product add up and cancel in all combinations.
TEST_P(KernelExtremes, AllCodesWithLargestActivationsOfEitherSign) {
  Random random = random_of_test();
  for (int repetition = 0; repetition < 8; ++repetition) {
    GemmProblem problem =
        random_problem(random, random_scheme(random, kernel().weights), 5, 40, 392);
    for (int64_t m = 0; m < 5; ++m) {
      for (int64_t k = 0; k < 392; ++k) problem.x.set(m, k, random.coin() ? 3e4f : -3e4f);
    }
    SCOPED_TRACE(describe(problem) + ", seed " + std::to_string(random.seed()));
    ASSERT_TRUE(
        agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem, kernel()));
  }
}

TEST_P(KernelExtremes, SmallAndSubnormalActivations) {
  Random random = random_of_test();
  for (const float unit : {1e-30f, 1e-35f, 1e-36f, 9.9e-37f, 1e-38f, 1e-40f, 1e-44f}) {
    GemmProblem problem =
        random_problem(random, random_scheme(random, kernel().weights), 3, 20, 150);
    for (int64_t m = 0; m < 3; ++m) {
      for (int64_t k = 0; k < 150; ++k) problem.x.set(m, k, random.uniform(-unit, unit));
    }
    SCOPED_TRACE(describe(problem) + ", unit " + std::to_string(unit));
    ASSERT_TRUE(
        agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem, kernel()));
  }
}

TEST_P(KernelExtremes, ZerosOfEitherSignGiveTheBias) {
  Random random = random_of_test();
  for (const float zero : {0.0f, -0.0f}) {
    GemmProblem problem = random_problem(random, random_scheme(random, kernel().weights), 3, 20, 50,
                                         FloatType::kFp32, true);
    for (int64_t m = 0; m < 3; ++m) {
      for (int64_t k = 0; k < 50; ++k) problem.x.set(m, k, zero);
    }
    const FloatMatrix c = run_gemm(kernel(), problem);
    for (int64_t m = 0; m < 3; ++m) {
      for (int64_t n = 0; n < 20; ++n) ASSERT_EQ(c.get(m, n), problem.bias[static_cast<size_t>(n)]);
    }
  }
}

TEST_P(KernelExtremes, HugeAndTinyScales) {
  Random random = random_of_test();
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    for (const float scale : {1e30f, 1e-30f, 1e-38f, 1e-42f, 0.0f}) {
      GemmProblem problem = random_problem(random, {dtype, 32, {}, {}}, 3, 18, 100);
      for (int64_t i = 0; i < problem.hub.scales.size(); ++i) {
        problem.hub.scales.values.as<float>()[i] = scale * random.uniform(0.5f, 1.0f);
      }
      problem.weights = pack(problem.hub, 1);
      SCOPED_TRACE(describe(problem) + ", scales about " + std::to_string(scale));
      ASSERT_TRUE(
          agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem, kernel()));
    }
  }
}

TEST_P(KernelExtremes, OverflowIsInfinityNotANumber) {
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    const DtypeTraits& traits = traits_of(dtype);
    int code = 0;  // of the largest value
    for (int c = 0; c <= traits.max_code(); ++c) {
      if (code_value(traits, c) > code_value(traits, code)) code = c;
    }
    const QuantScheme scheme{dtype, 32, {}, {}};
    for (const float sign : {1.0f, -1.0f}) {
      const FloatMatrix c =
          run_gemm(kernel(), uniform_problem(scheme, 3, 18, 64, 1e37f, code, sign * 100.0f));
      for (int64_t n = 0; n < 18; ++n) EXPECT_EQ(c.get(1, n), sign * kInfinity) << traits.name;
      const FloatMatrix halves = run_gemm(
          kernel(), uniform_problem(scheme, 3, 18, 64, 1e4f, code, sign * 1e3f), FloatType::kFp16);
      for (int64_t n = 0; n < 18; ++n) EXPECT_EQ(halves.get(1, n), sign * kInfinity) << traits.name;
    }
  }
}

// int8 marks the whole row; the others at least make it not finite. Few rows have other loops than
// many, and so has the last row of an odd number.
TEST_P(KernelExtremes, NanAndInfinityStayInTheirRow) {
  Random random = random_of_test();
  for (const float poison : {kNan, kInfinity, -kInfinity}) {
    for (const int64_t k : {0, 7, 8, 99, 130}) {
      for (const FloatType type : kFloatTypes) {
        constexpr int64_t kRows[] = {1, 2, 5, 7, 9, 17};
        const int64_t rows = random.pick(kRows), row = random.below(rows);
        QuantScheme scheme = random_scheme(random, kernel().weights);
        scheme.scales = ScaleEncoding::kFp32;
        GemmProblem problem = random_problem(random, scheme, rows, 35, 131, type);
        for (int64_t i = 0; i < problem.hub.scales.size(); ++i) {
          problem.hub.scales.values.as<float>()[i] = random.uniform(0.5f, 1.0f);
        }
        problem.weights = pack(problem.hub, 1);
        const FloatMatrix clean = run_gemm(kernel(), problem);
        problem.x.set(row, k, poison);
        const FloatMatrix c = run_gemm(kernel(), problem);
        SCOPED_TRACE(describe(problem) + ", poison " + std::to_string(poison) + " at k " +
                     std::to_string(k) + ", row " + std::to_string(row) + ", seed " +
                     std::to_string(random.seed()));
        ASSERT_TRUE(identical(c, clean, 0, row, 0, 35));
        ASSERT_TRUE(identical(c, clean, row + 1, rows, 0, 35));
        for (int64_t n = 0; n < 35; ++n) {
          if (kernel().compute == ComputeType::kInt8 || std::isnan(poison)) {
            ASSERT_TRUE(std::isnan(c.get(row, n))) << n;
          } else {
            ASSERT_FALSE(std::isfinite(c.get(row, n))) << n;
          }
        }
      }
    }
  }
}

// The largest floats as activations: int8 must quantize them like any others.
TEST_P(KernelExtremes, LargestFloatsAsActivations) {
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    const GemmProblem problem = uniform_problem({dtype, 16, {}, {}}, 2, 17, 32, 1e-20f,
                                                traits_of(dtype).max_code(), kMax / 8);
    ASSERT_TRUE(
        agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem, kernel()));
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelExtremes, ::testing::ValuesIn(all_kernels()), kernel_test_name);
INSTANTIATE_TEST_SUITE_P(All, KernelExtremesIntegers, ::testing::ValuesIn(integer_kernels()),
                         kernel_test_name);

}  // namespace
}  // namespace woq::testing
