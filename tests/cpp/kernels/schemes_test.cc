// SPDX-License-Identifier: Apache-2.0
// Every kernel against the reference over all schemes, and over all types of X and C.
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "support/bounds.h"

namespace woq::testing {
namespace {

using KernelSchemes = KernelTest;
using KernelTypes = KernelTest;

// One row, a few, and enough for a panel or two tile registers. K is 7 more than a multiple of 8,
// and makes a short last group of every size in the list.
TEST_P(KernelSchemes, All) {
  constexpr int64_t kRows[] = {1, 3, 18};
  Random random = random_of_test();
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    for (const QuantScheme& scheme : schemes_of(traits_of(dtype))) {
      const GemmProblem problem = random_problem(random, scheme, random.pick(kRows), 19, 239);
      SCOPED_TRACE(describe(problem) + ", seed " + std::to_string(random.seed()));
      ASSERT_TRUE(
          agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem, kernel()));
    }
  }
}

// The product of a row and a matrix has code of its own, and zero points enter it separately: all
// of them, down to a K of one element.
TEST_P(KernelSchemes, OneRow) {
  Random random = random_of_test();
  for (const WeightDtype dtype : dtypes_of(kernel().weights)) {
    for (const ZeroKind zeros : zero_kinds_of(traits_of(dtype))) {
      for (const int64_t group_size : kGroupSizes) {
        for (const int64_t k : {1, 8, 9, 130, 239}) {
          const GemmProblem problem =
              random_problem(random, {dtype, group_size, zeros, ScaleEncoding::kFp16}, 1, 35, k);
          SCOPED_TRACE(describe(problem) + ", seed " + std::to_string(random.seed()));
          ASSERT_TRUE(agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem,
                             kernel()));
        }
      }
    }
  }
}

TEST_P(KernelTypes, AllOfXAndC) {
  Random random = random_of_test();
  for (const FloatType in : kFloatTypes) {
    for (const FloatType out : kFloatTypes) {
      for (const bool bias : {false, true}) {
        const GemmProblem problem =
            random_problem(random, random_scheme(random, kernel().weights), 5, 37, 75, in, bias);
        SCOPED_TRACE(describe(problem) + " -> " + name_of(out) + ", seed " +
                     std::to_string(random.seed()));
        ASSERT_TRUE(agrees(run_gemm(kernel(), problem, out), run_gemm(reference(), problem, out),
                           problem, kernel()));
      }
    }
  }
}

// Act-order and multipliers of the input give, bit for bit, what the same columns in the order of
// their groups give for an input that was reordered and multiplied beforehand.
TEST_P(KernelTypes, OrderAndScalesOfTheInput) {
  Random random = random_of_test();
  for (const FloatType type : kFloatTypes) {
    for (const int64_t rows : {1, 5, 19}) {
      const int64_t cols = 107;
      GemmProblem given =
          random_problem(random, random_scheme(random, kernel().weights), rows, 37, cols, type);
      scatter_groups(random, &given.hub);
      scale_inputs(random, &given.hub);
      given.weights = pack(given.hub, 1);
      QuantizedMatrix hub = given.hub;
      hub.g_idx = Buffer();
      hub.act_scales = Buffer();
      FloatMatrix x(FloatType::kFp32, rows, cols);
      int64_t place = 0;
      for (int64_t g = 0; g < hub.groups(); ++g) {
        for (int64_t k = 0; k < cols; ++k) {
          if (given.hub.g_idx.as<int32_t>()[k] != g) continue;
          for (int64_t n = 0; n < hub.rows; ++n) set_code(&hub, n, place, given.hub.code(n, k));
          for (int64_t m = 0; m < rows; ++m)
            x.set(m, place, given.x.get(m, k) * given.hub.act_scales.as<float>()[k]);
          ++place;
        }
      }
      const GemmProblem plain(std::move(hub), std::move(x));
      SCOPED_TRACE(describe(given) + ", seed " + std::to_string(random.seed()));
      ASSERT_TRUE(identical(run_gemm(kernel(), given), run_gemm(kernel(), plain)));
      ASSERT_TRUE(agrees(run_gemm(kernel(), given), run_gemm(reference(), given), plain, kernel()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelSchemes, ::testing::ValuesIn(all_kernels()), kernel_test_name);
INSTANTIATE_TEST_SUITE_P(All, KernelTypes, ::testing::ValuesIn(all_kernels()), kernel_test_name);

}  // namespace
}  // namespace woq::testing
