// SPDX-License-Identifier: Apache-2.0
// Layers with several threads, from several threads, and after fork. These tests carry no target in
// their names: an emulated CPU has one thread.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/bounds.h"
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

// The exit status, or "did not end" after half a minute.
std::string outcome_of(pid_t child) {
  for (int i = 0; i < 3000; ++i) {
    int status = 0;
    if (waitpid(child, &status, WNOHANG) == child) {
      return WIFEXITED(status) ? std::to_string(WEXITSTATUS(status))
                               : "signal " + std::to_string(WTERMSIG(status));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return "did not end";
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
