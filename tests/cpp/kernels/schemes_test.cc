// SPDX-License-Identifier: Apache-2.0
// Every kernel against the reference over all schemes, and over all types of X and C.
#include <gtest/gtest.h>

#include <cstdint>

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
    for (const ZeroKind zeros : zero_kinds_of(traits_of(dtype))) {
      for (const ScaleEncoding scales : kScaleEncodings) {
        for (const int64_t group_size : kGroupSizes) {
          const GemmProblem problem = random_problem(random, {dtype, group_size, zeros, scales},
                                                     random.pick(kRows), 19, 239);
          SCOPED_TRACE(describe(problem) + ", seed " + std::to_string(random.seed()));
          ASSERT_TRUE(agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem,
                             kernel().compute));
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
                           problem, kernel().compute));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelSchemes, ::testing::ValuesIn(all_kernels()), kernel_test_name);
INSTANTIATE_TEST_SUITE_P(All, KernelTypes, ::testing::ValuesIn(all_kernels()), kernel_test_name);

}  // namespace
}  // namespace woq::testing
