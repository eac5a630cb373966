// SPDX-License-Identifier: Apache-2.0
// Random layers on every target, through WeightOnlyLinear, so that selection, packing, threads and
// portions take part: int8 against the reference kernel, all against the product in double
// precision, and against themselves with other numbers of threads. Inputs are as a transformer has
// them, or subnormal, near the end of fp32, zero, NaN and infinite. Each case has a seed of its
// own; a failure names the case, and WOQ_TEST_SEED=<case> begins with it. The time spent is
// bounded, not the number of cases.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/bounds.h"
#include "support/oracle.h"
#include "woq/linear.h"

namespace woq::testing {
namespace {

constexpr double kMax = std::numeric_limits<float>::max();

class Fuzz : public ::testing::TestWithParam<TargetTraits> {
 protected:
  void SetUp() override {
    const std::string why_not = why_not_here(GetParam());
    if (!why_not.empty()) GTEST_SKIP() << why_not;
  }
};

// Small numbers are as likely as large ones.
int64_t skewed(Random& random, int64_t most) {
  return 1 + random.below(1 + random.below(1 + random.below(most)));
}

// Numbers of the last columns of some rows.
void fill_with(Random& random, FloatMatrix* x, float low, float high) {
  for (int64_t m = 0; m < x->rows(); ++m) {
    if (random.coin()) continue;
    for (int64_t k = random.below(x->cols()); k < x->cols(); ++k)
      x->set(m, k, random.uniform(low, high));
  }
}

void make_hard(Random& random, FloatMatrix* x) {
  switch (random.below(8)) {
    case 0: return fill_with(random, x, -1e-40f, 1e-40f);
    case 1: return fill_with(random, x, -1e-36f, 1e-36f);
    case 2: return fill_with(random, x, 0.0f, 0.0f);
    case 3: return fill_with(random, x, -3e38f, 3e38f);
    case 4: return fill_with(random, x, 1e30f, 1e33f);
    case 5: return fill_with(random, x, -6e4f, 6e4f);
    default: return;
  }
}

// NaN or an infinity in one element of some rows.
void poison(Random& random, FloatMatrix* x) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kPoisons[] = {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity};
  for (int64_t m = 0; m < x->rows(); ++m) {
    if (random.below(3) == 0) x->set(m, random.below(x->cols()), random.pick(kPoisons));
  }
}

// The same product without g_idx and act_scales: columns in the order of their groups, inputs
// multiplied. Bit for bit the same (KernelTypes.OrderAndScalesOfTheInput).
GemmProblem plain_of(const GemmProblem& given) {
  QuantizedMatrix hub = given.hub;
  hub.g_idx = Buffer();
  hub.act_scales = Buffer();
  FloatMatrix x(FloatType::kFp32, given.rows(), hub.cols);
  int64_t place = 0;
  for (int64_t g = 0; g < hub.groups(); ++g) {
    for (int64_t k = 0; k < hub.cols; ++k) {
      if (given.hub.group_of(k) != g) continue;
      for (int64_t n = 0; n < hub.rows; ++n) set_code(&hub, n, place, given.hub.code(n, k));
      for (int64_t m = 0; m < given.rows(); ++m) {
        const float value = given.x.get(m, k);
        x.set(
            m, place,
            given.hub.act_scales.size() > 0 ? value * given.hub.act_scales.as<float>()[k] : value);
      }
      ++place;
    }
  }
  GemmProblem plain(std::move(hub), std::move(x));
  plain.bias = given.bias;
  return plain;
}

// The largest sum of magnitudes on the way to each output, before and after scaling.
Bounds largest_sums(const GemmProblem& problem) {
  Bounds largest(static_cast<size_t>(problem.rows() * problem.cols()));
  double *here = nullptr, scaled = 0;
  woq::testing::detail::for_each_term_block(
      problem,
      [&](int64_t m, int64_t n) {
        here = &largest[static_cast<size_t>(m * problem.cols() + n)];
        scaled = problem.bias.empty() ? 0 : std::fabs(problem.bias[static_cast<size_t>(n)]);
      },
      [&](int64_t, int64_t, const woq::testing::detail::GroupMagnitudes& group, double products,
          double, const woq::testing::detail::BlockSums& a, int64_t) {
        const double sum = products + group.zero * a.magnitude;
        scaled += group.scale * sum + group.minimum * a.magnitude;
        *here = std::max({*here, sum, scaled});
      });
  return largest;
}

// Element by element against the product in double precision; a row with a NaN or infinity is none
// of numbers. Left out is what can pass the end of fp32 (or of the output's type) on the way.
void compare_with_double(const FloatMatrix& c, const GemmProblem& plain, const Kernel& kernel,
                         int64_t* compared) {
  const DoubleMatrix exact = exact_product(plain);
  const Bounds bounds = plus(accumulation_bounds(plain, kernel), operand_bounds(plain, kernel));
  const Bounds largest = largest_sums(plain);
  const double end = c.type() == FloatType::kFp16 ? 6e4 : kMax / 2;
  for (int64_t m = 0; m < plain.rows(); ++m) {
    const std::vector<float> x = plain.x.row(m);
    const bool poisoned =
        !std::all_of(x.begin(), x.end(), [](float value) { return std::isfinite(value); });
    for (int64_t n = 0; n < plain.cols(); ++n) {
      const auto i = static_cast<size_t>(m * plain.cols() + n);
      const float value = c.get(m, n);
      if (poisoned) {
        ASSERT_FALSE(std::isfinite(value)) << "[" << m << ", " << n << "] of a row without numbers";
        if (kernel.compute == ComputeType::kInt8) {
          ASSERT_TRUE(std::isnan(value)) << "[" << m << ", " << n << "]";
        }
        continue;
      }
      if (!(largest[i] < kMax / 2) || std::fabs(exact.get(m, n)) + bounds[i] > end) continue;
      const double allowed =
          bounds[i] + store_bound(c.type(), std::fabs(exact.get(m, n)) + bounds[i]);
      ASSERT_LE(std::fabs(static_cast<double>(value) - exact.get(m, n)), allowed)
          << "[" << m << ", " << n << "] is " << value << " instead of " << exact.get(m, n);
      ++*compared;
    }
  }
}

struct Counts {
  int cases = 0, teams = 0;
  int64_t compared = 0;
};

void check_layer(uint64_t seed, int number, const std::string& target, Counts* counts) {
  Random random(seed + static_cast<uint64_t>(number));
  const WeightKind kinds[] = {WeightKind::kU4, WeightKind::kT4, WeightKind::kU8};
  const ComputeType computes[] = {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8};
  const ComputeType compute = random.pick(computes);
  QuantScheme scheme = random_scheme(random, random.pick(kinds));
  if (random.coin() && scheme.scales != ScaleEncoding::kTwoLevel)
    scheme.group_size = 16 + 8 * random.below(40);
  // One case in four is worth four threads.
  const bool large = random.below(4) == 0;
  const int64_t m = skewed(random, 64), n = large ? 64 + random.below(200) : skewed(random, 160);
  const int64_t worth = 4 * woq::detail::kMultiplyGrain / (m * n) + 1;
  const int64_t k = large ? worth + random.below(64) : skewed(random, 1200);
  GemmProblem problem =
      random_problem(random, scheme, m, n, k, random.pick(kFloatTypes), random.coin());
  if (random.below(4) == 0) scatter_groups(random, &problem.hub);
  if (random.below(4) == 0) scale_inputs(random, &problem.hub);
  make_hard(random, &problem.x);
  if (random.below(4) == 0) poison(random, &problem.x);
  const FloatType type = random.pick(kFloatTypes);
  const int threads = one_processor() ? 1 : 1 + static_cast<int>(random.below(4));
  SCOPED_TRACE(describe(problem) + " -> " + name_of(type) + ", " + name_of(compute) + " compute, " +
               std::to_string(threads) + " threads, target " + target + ", seed " +
               std::to_string(seed) + ", case " + std::to_string(number));

  std::vector<float> bias = problem.bias;
  if (!bias.empty()) bias.resize(static_cast<size_t>(n));
  const WeightOnlyLinear layer(problem.hub, bias, compute, "fuzzed", threads, target);
  const Kernel& kernel = layer.kernel();
  ASSERT_TRUE(runs_on(kernel.target, usable_features(target)));
  FloatMatrix c(type, m, n, 2, 1);
  layer.forward(problem.x.view(), c.view(), threads);
  ASSERT_EQ(c.changed_outside(0, m, 0, n), "");
  const GemmProblem plain = plain_of(problem);
  if (kernel.compute == ComputeType::kInt8) {
    ASSERT_TRUE(identical(c, run_gemm(reference_of(kernel), plain, type)));
  }
  compare_with_double(c, plain, kernel, &counts->compared);
  if (::testing::Test::HasFatalFailure()) return;
  ++counts->cases;
  if (dequantizes(kernel) || useful_threads(4, m * n * k, woq::detail::kMultiplyGrain) < 2) return;
  FloatMatrix other(type, m, n, 2, 1);
  layer.forward(problem.x.view(), other.view(), threads == 1 ? 3 : 1);
  ASSERT_TRUE(identical(other, c)) << "with another number of threads";
  ++counts->teams;
}

TEST_P(Fuzz, AgreesWithTheReferenceAndWithDouble) {
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t seed = test_seed();
  const double seconds = test_seconds(2);
  Counts counts;
  for (int number = 0; !HasFailure(); ++number) {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    if (number > 0 && spent.count() > seconds) break;
    check_layer(seed, number, GetParam().name, &counts);
  }
  EXPECT_GT(counts.compared, 0);
  RecordProperty("cases", counts.cases);
  RecordProperty("cases with teams", counts.teams);
  RecordProperty("elements", std::to_string(counts.compared));
}

INSTANTIATE_TEST_SUITE_P(Targets, Fuzz, ::testing::ValuesIn(kTargets),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace woq::testing
