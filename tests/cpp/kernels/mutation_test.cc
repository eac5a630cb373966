// SPDX-License-Identifier: Apache-2.0
// The comparisons can fail: each wrong result here must be told from the right one. And the derived
// bounds are not so wide that everything passes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

#include "support/bounds.h"
#include "support/oracle.h"

namespace woq::testing {
namespace {

class KernelMutations : public KernelTest {
 protected:
  // Of few rows, and of many for every kernel. Scales differ from zero, so that every code matters.
  std::vector<GemmProblem> problems(ZeroKind zeros = ZeroKind::kNone) {
    Random random = random_of_test();
    std::vector<GemmProblem> list;
    for (const int64_t rows : {3, 17}) {
      const QuantScheme scheme{dtypes_of(kernel().weights).front(), 32, zeros, {}};
      GemmProblem problem = random_problem(random, scheme, rows, 40, 200);
      for (int64_t i = 0; i < problem.hub.scales.size(); ++i) {
        problem.hub.scales.values.as<float>()[i] = random.uniform(0.01f, 0.05f);
      }
      problem.weights = pack(problem.hub, 1);
      list.push_back(std::move(problem));
    }
    return list;
  }

  // The kernel's result for `wrong` against the reference's for `right`.
  ::testing::AssertionResult compare(const GemmProblem& wrong, const GemmProblem& right) {
    return agrees(run_gemm(kernel(), wrong), run_gemm(reference(), right), right, kernel());
  }

  void expect_noticed(const GemmProblem& right, GemmProblem wrong) {
    EXPECT_TRUE(compare(right, right));
    EXPECT_FALSE(compare(wrong, right));
  }
};
using KernelMutationsIntegers = KernelMutations;

TEST_P(KernelMutations, AFlippedBitOfOneCodeIsNoticed) {
  for (const GemmProblem& right : problems()) {
    for (const int64_t k : {0, 5, 100, 199}) {
      GemmProblem wrong = right;
      set_code(&wrong.hub, 17, k, wrong.hub.code(17, k) ^ 4);
      wrong.weights = pack(wrong.hub, 1);
      expect_noticed(right, wrong);
    }
  }
}

TEST_P(KernelMutations, ASwappedNibbleOrderIsNoticed) {
  for (const GemmProblem& right : problems()) {
    GemmProblem wrong = right;
    uint8_t* byte = wrong.weights.data.data() + wrong.weights.header_bytes();
    while (std::abs((*byte >> 4) - (*byte & 15)) < 8) ++byte;  // halves that are far apart
    *byte = static_cast<uint8_t>(*byte << 4 | *byte >> 4);
    expect_noticed(right, wrong);
  }
}

TEST_P(KernelMutations, TwoSwappedRowsAreNoticed) {
  for (const GemmProblem& right : problems()) {
    GemmProblem wrong = right;
    std::swap_ranges(wrong.hub.row(2), wrong.hub.row(3), wrong.hub.row(3));
    wrong.weights = pack(wrong.hub, 1);
    expect_noticed(right, wrong);
  }
}

TEST_P(KernelMutations, AMissingLastElementIsNoticed) {
  for (const GemmProblem& right : problems()) {
    GemmProblem wrong = right;
    for (int64_t m = 0; m < wrong.rows(); ++m) wrong.x.set(m, 199, 0.0f);
    expect_noticed(right, wrong);
  }
}

TEST_P(KernelMutations, AWrongScaleIsNoticed) {
  for (const GemmProblem& right : problems()) {
    GemmProblem wrong = right;
    wrong.hub.scales.values.as<float>()[40] *= 1.01f;
    wrong.weights = pack(wrong.hub, 1);
    expect_noticed(right, wrong);
  }
}

TEST_P(KernelMutationsIntegers, AZeroPointOffByOneIsNoticed) {
  for (const GemmProblem& right : problems(ZeroKind::kInt)) {
    GemmProblem wrong = right;
    uint8_t& zero = wrong.hub.zero_points.data()[7];
    zero = static_cast<uint8_t>(zero ^ 1);
    wrong.weights = pack(wrong.hub, 1);
    expect_noticed(right, wrong);
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelMutations, ::testing::ValuesIn(all_kernels()),
                         kernel_test_name);
INSTANTIATE_TEST_SUITE_P(All, KernelMutationsIntegers, ::testing::ValuesIn(integer_kernels()),
                         kernel_test_name);

// The size of bounds beside the numbers they are for, so that no bound grows until it allows all.
// T, the sum of the terms' magnitudes, is about sqrt(K) (E|w| / rms w) (E|a| / rms a) times the rms
// of the results: 31.6 * 0.73 * 0.39 = 9 for random_hub() and fill_activations(). Expected are
//     fp32  gamma(1009) = 6e-5 of T, 0.0005 rms
//     bf16  2^-8 of T, 0.035 rms
//     int8  half a step, absmax / 254, of each activation. absmax of 32 of them averages 8, the sum
//           of a row's |w| is 96 and rms is 11: 0.27 rms
// Each limit is above that by what the largest of 128 elements may have more than the mean one.
TEST(Bounds, AreTight) {
  Random random = random_of_test();
  const GemmProblem problem =
      random_problem(random, {WeightDtype::kInt4Clip, 32, {}, {}}, 4, 32, 1000);
  const DoubleMatrix exact = exact_product(problem);
  double squares = 0;
  for (const double value : exact.values) squares += value * value;
  const double rms = std::sqrt(squares / static_cast<double>(exact.values.size()));
  const Bounds fp32 = accumulation_bounds(problem, ComputeType::kFp32);
  const Bounds bf16 = operand_bounds(problem, ComputeType::kBf16);
  const Bounds int8 = operand_bounds(problem, ComputeType::kInt8);
  EXPECT_LT(*std::max_element(fp32.begin(), fp32.end()), 0.001 * rms);
  EXPECT_LT(*std::max_element(bf16.begin(), bf16.end()), 0.05 * rms);
  EXPECT_LT(*std::max_element(int8.begin(), int8.end()), 0.6 * rms);
}

TEST(Bounds, GammaIsTheSumOfRoundings) {
  EXPECT_DOUBLE_EQ(gamma(1), 0x1p-24 / (1 - 0x1p-24));
  EXPECT_NEAR(gamma(1000), 1000 * 0x1p-24, 1e-8);
}

// The bound of a product by hand: one group of two terms, 2 * 3 * 0.5 and (-1) * 4 * 0.5.
TEST(Bounds, ByHand) {
  QuantizedMatrix hub =
      uniform_hub({WeightDtype::kInt4Clip, -1, {}, {}}, 1, 2, 0.5f, /*code=*/8 + 3);
  set_code(&hub, 0, 1, 8 + 4);
  FloatMatrix x(FloatType::kFp32, 1, 2);
  x.set(0, 0, 2.0f);
  x.set(0, 1, -1.0f);
  const GemmProblem problem(std::move(hub), std::move(x));
  EXPECT_EQ(exact_product(problem).get(0, 0), 1.0);
  EXPECT_NEAR(accumulation_bounds(problem, ComputeType::kFp32)[0], gamma(11) * 5, 1e-40);
  EXPECT_NEAR(operand_bounds(problem, ComputeType::kBf16)[0], 0x1p-8 * 5, 1e-15);
  // Half a step of 2 / 127, twice.
  EXPECT_NEAR(operand_bounds(problem, ComputeType::kInt8)[0], 0.5 * 7 * 0.5 * 2 / 127, 1e-5);
}

TEST(Compare, SpecialValues) {
  const float infinity = std::numeric_limits<float>::infinity();
  FloatMatrix a(FloatType::kFp32, 1, 1), b(FloatType::kFp32, 1, 1);
  const auto compare = [&](float x, float y) {
    a.set(0, 0, x);
    b.set(0, 0, y);
    return std::pair{static_cast<bool>(identical(a, b)), static_cast<bool>(within(a, b, {0.5}))};
  };
  EXPECT_EQ(compare(1.0f, 1.0f), std::pair(true, true));
  EXPECT_EQ(compare(1.0f, 1.5f), std::pair(false, true));
  EXPECT_EQ(compare(1.0f, 1.51f), std::pair(false, false));
  EXPECT_EQ(compare(0.0f, -0.0f), std::pair(false, true));
  EXPECT_EQ(compare(NAN, NAN), std::pair(true, true));
  EXPECT_EQ(compare(NAN, 1.0f), std::pair(false, false));
  EXPECT_EQ(compare(1.0f, NAN), std::pair(false, false));
  EXPECT_EQ(compare(infinity, infinity), std::pair(true, true));
  EXPECT_EQ(compare(infinity, -infinity), std::pair(false, false));
  EXPECT_EQ(compare(infinity, 1.0f), std::pair(false, false));
}

}  // namespace
}  // namespace woq::testing
