// SPDX-License-Identifier: Apache-2.0
// Every kernel against the reference over shapes: rows around register tiles, columns around tiles
// of 16 and 32, K around steps of 8 and blocks of 128. The scheme, the types and the bias of a case
// are drawn, so that all of them meet odd shapes; schemes_test.cc goes through them one by one.
// Full* tests are large; under an emulator leave them out: --gtest_filter=*avx512*:-*Full*
#include <gtest/gtest.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "support/bounds.h"

namespace woq::testing {
namespace {

using KernelShapes = KernelTest;
using Shapes = std::vector<std::pair<int64_t, int64_t>>;  // N, K

void compare(const Kernel& kernel, Random& random, const QuantScheme& scheme, int64_t m, int64_t n,
             int64_t k) {
  const GemmProblem problem =
      random_problem(random, scheme, m, n, k, random.pick(kFloatTypes), random.coin());
  const FloatType type = random.pick(kFloatTypes);
  SCOPED_TRACE(describe(problem) + " -> " + name_of(type));
  const FloatMatrix c = run_gemm(kernel, problem, type);
  EXPECT_TRUE(agrees(c, run_gemm(reference_of(kernel), problem, type), problem, kernel));
  EXPECT_EQ(c.changed_outside(0, m, 0, n), "");
}

void compare_all(const Kernel& kernel, const std::vector<int64_t>& rows, const Shapes& shapes) {
  Random random = random_of_test();
  SCOPED_TRACE("seed " + std::to_string(random.seed()));
  for (const auto& [n, k] : shapes) {
    for (const int64_t m : rows) {
      compare(kernel, random, random_scheme(random, kernel.weights), m, n, k);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_P(KernelShapes, SmallOnes) {
  compare_all(kernel(), {1, 2, 3, 5, 9},
              {{1, 1}, {1, 8}, {3, 7}, {5, 17}, {15, 9}, {16, 16}, {17, 33}, {33, 129}, {47, 40}});
}

// Rows around tile registers and pairs of them, and more than the rows of a panel.
TEST_P(KernelShapes, ManyRows) {
  compare_all(kernel(), {7, 8, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 257}, {{16, 24}, {33, 72}});
}

// Blocks of every length, with a whole or a short last step, for many rows.
TEST_P(KernelShapes, EveryBlockLength) {
  Random random = random_of_test();
  SCOPED_TRACE("seed " + std::to_string(random.seed()));
  for (int64_t length = 8; length <= kBlock + 8 && !HasFailure(); length += 8) {
    for (const int64_t groups : {1, 3}) {
      QuantScheme scheme = random_scheme(random, kernel().weights);
      scheme.group_size = groups == 1 || length < kMinGroupSize ? -1 : length;
      if (!is_scheme(scheme)) scheme.scales = ScaleEncoding::kFp16;
      compare(kernel(), random, scheme, 8 + random.below(32), 1 + random.below(50),
              length * groups - random.below(8));
    }
  }
}

TEST_P(KernelShapes, FullGrid) {
  Shapes shapes = {{1, 1000}, {16, 1024}, {31, 100}, {32, 136},
                   {48, 200}, {64, 256},  {65, 520}, {100, 127}};
  for (int64_t k = 1; k <= 24; ++k) shapes.emplace_back(1 + (k * 7) % 40, k);
  for (int64_t n = 1; n <= 33; ++n) shapes.emplace_back(n, 1 + (n * 11) % 60);
  compare_all(kernel(), {1, 2, 3, 5, 16, 17, 33, 128}, shapes);
}

// As wide as a real layer's rows, and with many blocks behind each other.
TEST_P(KernelShapes, FullLong) {
  compare_all(kernel(), {1, 4}, {{49, 4104}, {19, 11008}});
}

INSTANTIATE_TEST_SUITE_P(All, KernelShapes, ::testing::ValuesIn(all_kernels()), kernel_test_name);

}  // namespace
}  // namespace woq::testing
