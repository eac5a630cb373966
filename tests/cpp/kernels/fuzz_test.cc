// SPDX-License-Identifier: Apache-2.0
// Random layers on every target against the reference, through WeightOnlyLinear: selection,
// packing, threads and portions take part. Each case has a seed of its own; a failure names the
// case, and WOQ_TEST_SEED=<case> begins with it. The time spent is bounded, not the number of
// cases.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "support/bounds.h"
#include "woq/linear.h"

namespace woq::testing {
namespace {

constexpr auto kBudget = std::chrono::milliseconds(2000);
constexpr int kMostCases = 400;

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

void check_layer(uint64_t seed, int number, const std::string& target) {
  Random random(seed + static_cast<uint64_t>(number));
  const WeightKind kinds[] = {WeightKind::kU4, WeightKind::kT4, WeightKind::kU8};
  const ComputeType computes[] = {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8};
  const ComputeType compute = random.pick(computes);
  QuantScheme scheme = random_scheme(random, random.pick(kinds));
  if (random.coin()) scheme.group_size = 16 + 8 * random.below(40);
  const int64_t m = skewed(random, 64), n = skewed(random, 160), k = skewed(random, 1200);
  const GemmProblem problem =
      random_problem(random, scheme, m, n, k, random.pick(kFloatTypes), random.coin());
  const FloatType type = random.pick(kFloatTypes);
  const int threads = one_processor() ? 1 : 1 + static_cast<int>(random.below(4));
  SCOPED_TRACE(describe(problem) + " -> " + name_of(type) + ", " + name_of(compute) + " compute, " +
               std::to_string(threads) + " threads, target " + target + ", seed " +
               std::to_string(seed) + ", case " + std::to_string(number));

  std::vector<float> bias = problem.bias;
  if (!bias.empty()) bias.resize(static_cast<size_t>(n));
  const WeightOnlyLinear layer(problem.hub, bias, compute, "fuzzed", threads, target);
  EXPECT_TRUE(runs_on(layer.kernel().target, usable_features(target)));
  FloatMatrix c(type, m, n, 2, 1);
  layer.forward(problem.x.view(), c.view(), threads);
  EXPECT_EQ(c.changed_outside(0, m, 0, n), "");
  EXPECT_TRUE(
      agrees(c, run_gemm(reference_of(layer.kernel()), problem, type), problem, layer.kernel()));
}

TEST_P(Fuzz, AgreesWithTheReference) {
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t seed = test_seed();
  int cases = 0;
  for (; cases < kMostCases && !HasFailure(); ++cases) {
    if (std::chrono::steady_clock::now() - begin > kBudget) break;
    check_layer(seed, cases, GetParam().name);
  }
  EXPECT_GT(cases, 0);
  RecordProperty("cases", cases);
}

INSTANTIATE_TEST_SUITE_P(Targets, Fuzz, ::testing::ValuesIn(kTargets),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace woq::testing
