// SPDX-License-Identifier: Apache-2.0
// Layers with several threads, from several threads, and after fork. These tests carry no target in
// their names: an emulated CPU has one thread.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/bounds.h"
#include "support/child.h"
#include "woq/linear.h"

namespace woq::testing {
namespace {

constexpr ComputeType kComputes[] = {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8};

std::vector<TargetTraits> available_targets() {
  std::vector<TargetTraits> targets;
  for (const TargetTraits& target : kTargets) {
    if (why_not_here(target).empty()) targets.push_back(target);
  }
  return targets;
}

// M and N such that threads share columns, rows, or have nothing to do; K such that the work is
// enough for four of them.
TEST(LinearThreads, AnyNumberAgreesWithTheReference) {
  Random random = random_of_test();
  constexpr int64_t kShapes[][3] = {
      {1, 700, 1024}, {33, 16, 1024}, {40, 40, 512}, {2, 17, 16384}, {130, 33, 200}};
  for (const auto& [m, n, k] : kShapes) {
    const GemmProblem problem =
        random_problem(random, {WeightDtype::kInt4Clip, 128, {}, {}}, m, n, k);
    for (const ComputeType compute : kComputes) {
      for (const TargetTraits& target : available_targets()) {
        const WeightOnlyLinear layer(problem.hub, {}, compute, "", 2, target.name);
        ASSERT_GE(m * n * k, 4 * woq::detail::kMultiplyGrain);
        const FloatMatrix expected = run_gemm(reference_of(layer.kernel()), problem);
        for (int threads = 1; threads <= 4; ++threads) {
          SCOPED_TRACE(describe(problem) + ", " + layer.kernel().name + ", " +
                       std::to_string(threads) + " threads");
          FloatMatrix c(FloatType::kFp32, m, n, 1);
          team_limit().reset();  // or a busy machine would have fewer threads
          layer.forward(problem.x.view(), c.view(), threads);
          ASSERT_EQ(c.changed_outside(0, m, 0, n), "");
          ASSERT_TRUE(agrees(c, expected, problem, layer.kernel()));
        }
      }
    }
  }
}

// To the bit, whatever a thread's share: pairs of tiles, a tile without a partner, few rows and
// many. oneDNN orders its sums by shapes of its own choice.
TEST(LinearThreads, AnyNumberGivesTheSameBits) {
  Random random = random_of_test();
  for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 12, 17, 40}) {
    const int64_t n = 300, k = 8 * (woq::detail::kMultiplyGrain / (50 * m) / 8 + 8);
    ASSERT_GE(m * n * k, 6 * woq::detail::kMultiplyGrain);
    for (const WeightDtype dtype :
         {WeightDtype::kInt4Clip, WeightDtype::kNf4, WeightDtype::kInt8}) {
      const GemmProblem problem = random_problem(random, {dtype, 128, {}, {}}, m, n, k);
      for (const ComputeType compute : kComputes) {
        for (const TargetTraits& target : available_targets()) {
          if (target.target == Target::kOneDnn || target.target == Target::kRef) continue;
          const WeightOnlyLinear layer(problem.hub, {}, compute, "", 2, target.name);
          FloatMatrix one(FloatType::kFp32, m, n);
          layer.forward(problem.x.view(), one.view(), 1);
          for (int threads = 2; threads <= 6; ++threads) {
            FloatMatrix c(FloatType::kFp32, m, n);
            layer.forward(problem.x.view(), c.view(), threads);
            ASSERT_TRUE(identical(c, one)) << describe(problem) << ", " << layer.kernel().name
                                           << ", " << threads << " threads";
          }
        }
      }
    }
  }
}

TEST(LinearThreads, FourConcurrentCallersShareLayers) {
  Random random = random_of_test();
  const GemmProblem wide = random_problem(random, {WeightDtype::kNf4, 64, {}, {}}, 4, 300, 512);
  const GemmProblem narrow = random_problem(random, {WeightDtype::kInt8, 32, {}, {}}, 9, 20, 96);
  const WeightOnlyLinear layers[] = {{wide.hub, {}, ComputeType::kInt8},
                                     {narrow.hub, {}, ComputeType::kInt8}};
  const GemmProblem* const problems[] = {&wide, &narrow};
  const FloatMatrix expected[] = {run_gemm(reference_of(layers[0].kernel()), wide),
                                  run_gemm(reference_of(layers[1].kernel()), narrow)};
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 40; ++i) {
        const int which = (caller + i) % 2;
        const FloatMatrix& right = expected[which];
        FloatMatrix c(FloatType::kFp32, right.rows(), right.cols());
        layers[which].forward(problems[which]->x.view(), c.view(), 1 + i % 3);
        if (!identical(c, right)) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

// 0 if the child's forward gives `expected`.
int run_child(const WeightOnlyLinear& layer, const GemmProblem& problem,
              const FloatMatrix& expected) {
  FloatMatrix c(FloatType::kFp32, expected.rows(), expected.cols());
  layer.forward(problem.x.view(), c.view(), 4);
  if (usable_threads(4) != 1) return 2;
  return identical(c, expected) ? 0 : 1;
}

TEST(LinearThreads, AChildForkedAfterAParallelRegionStillComputes) {
  Random random = random_of_test();
  const GemmProblem problem =
      random_problem(random, {WeightDtype::kInt4Clip, 32, {}, {}}, 4, 300, 512);
  const WeightOnlyLinear layer(problem.hub, {}, ComputeType::kInt8);
  FloatMatrix expected(FloatType::kFp32, 4, 300);
  layer.forward(problem.x.view(), expected.view(), 4);  // the pool exists now
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(run_child(layer, problem, expected));
  EXPECT_EQ(outcome_of(child), "0");
  EXPECT_FALSE(in_forked_child());
  FloatMatrix again(FloatType::kFp32, 4, 300);
  layer.forward(problem.x.view(), again.view(), 4);
  EXPECT_TRUE(identical(again, expected)) << "the parent's pool must survive";
}

}  // namespace
}  // namespace woq::testing
