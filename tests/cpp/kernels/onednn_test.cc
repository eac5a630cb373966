// SPDX-License-Identifier: Apache-2.0
// Target onednn: whether it is here, when it is chosen, its panels' edges, memory and threads.
// Where it is built in, its kernels also go through every test of kernels.
#include <gtest/gtest.h>
#include <malloc.h>
#include <omp.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "support/bounds.h"
#include "support/errors.h"
#include "woq/linear.h"

#if defined(__SANITIZE_ADDRESS__)
// Of sanitizer/allocator_interface.h, which GCC does not install.
extern "C" size_t __sanitizer_get_current_allocated_bytes();
#endif

namespace woq::testing {
namespace {

constexpr CpuFeatureSet kEverything = (CpuFeatureSet{1} << kCpuFeatureCount) - 1;

TEST(OneDnn, IsInThisBuildIfItWasConfigured) {
  EXPECT_EQ(is_built(Target::kOneDnn), WOQ_EXPECTS_ONEDNN != 0);
  EXPECT_EQ(onednn_version().empty(), WOQ_EXPECTS_ONEDNN == 0);
}

TEST(OneDnn, IsChosenOnlyWhenAskedFor) {
  const KernelChoice unasked = select_kernel(WeightKind::kU4, ComputeType::kFp32, "", kEverything);
  ASSERT_EQ(unasked.considered.front().target, Target::kOneDnn);
  EXPECT_EQ(unasked.kernel->target, Target::kAvx512);
  EXPECT_MENTIONS(unasked.considered.front().why, is_built(Target::kOneDnn)
                                                      ? "only when asked for (WOQ_FORCE_TARGET="
                                                        "onednn): measured slower or hardly faster"
                                                      : "not in this build");
  const auto forced = [](ComputeType compute) {
    return select_kernel(WeightKind::kU4, compute, "onednn", kEverything);
  };
  if (!is_built(Target::kOneDnn)) {
    const std::string error = error_of<Unsupported>([&] { forced(ComputeType::kFp32); });
    EXPECT_MENTIONS(error, "'onednn' was forced, but this build has no kernels for it");
    return;
  }
  EXPECT_EQ(forced(ComputeType::kFp32).kernel->target, Target::kOneDnn);
  EXPECT_EQ(forced(ComputeType::kBf16).kernel->target, Target::kOneDnn);
}

TEST(OneDnn, ForcedItLeavesInt8ToTheBestOtherTarget) {
  if (!is_built(Target::kOneDnn)) GTEST_SKIP() << "this build has no target onednn";
  const KernelChoice choice =
      select_kernel(WeightKind::kU4, ComputeType::kInt8, "onednn", kEverything);
  EXPECT_EQ(choice.kernel->target, Target::kAmx);
  EXPECT_EQ(choice.forced, "onednn");
  EXPECT_MENTIONS(choice.considered.front().why, "no kernel of its own for int8 compute");
}

class OneDnnKernel : public KernelTest {
 protected:
  // Rows, columns, K: around panels of 128 columns and 1024 elements, 256 rows, and the fewest
  // rows.
  void compare(int64_t m, int64_t n, int64_t k, const QuantScheme& scheme) {
    Random random = random_of_test();
    const GemmProblem problem =
        random_problem(random, scheme, m, n, k, random.pick(kFloatTypes), random.coin());
    SCOPED_TRACE(describe(problem) + ", seed " + std::to_string(random.seed()));
    const FloatMatrix c = run_gemm(kernel(), problem);
    EXPECT_TRUE(agrees(c, run_gemm(reference(), problem), problem, kernel()));
    EXPECT_EQ(c.changed_outside(0, m, 0, n), "");
  }
  QuantScheme scheme(int64_t group_size) const {
    return {dtypes_of(kernel().weights).front(), group_size, {}, {}};
  }
};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(OneDnnKernel);

TEST_P(OneDnnKernel, EdgesOfPanels) {
  for (const int64_t m : {16, 17}) {
    for (const int64_t n : {1, 16, 127, 128, 129, 260}) compare(m, n, 72, scheme(32));
    for (const int64_t k : {1, 7, 1016, 1023, 1024, 1025, 2048, 2055}) {
      for (const int64_t group_size : {-1, 96, 128}) compare(m, 33, k, scheme(group_size));
    }
  }
  for (const int64_t m : {255, 256, 257, 513}) compare(m, 130, 40, scheme(16));
}

// Below kDequantizedRows the results are those of the kernels that would be chosen, bit for bit.
TEST_P(OneDnnKernel, FewRowsAreLeftToTheOwnKernels) {
  const KernelTable own =
      kernels_of(kernel().compute == ComputeType::kFp32 ? Target::kAvx512 : Target::kAvx512Bf16);
  Random random = random_of_test();
  for (int i = 0; i < own.size; ++i) {
    if (own.begin[i].weights != kernel().weights || own.begin[i].compute != kernel().compute)
      continue;
    for (const int64_t m : {int64_t{1}, kDequantizedRows - 1}) {
      const GemmProblem problem = random_problem(random, scheme(32), m, 50, 200);
      EXPECT_TRUE(identical(run_gemm(kernel(), problem), run_gemm(own.begin[i], problem)));
    }
    return;
  }
  FAIL() << "no own kernel";
}

// Bytes that are allocated now.
size_t allocated_bytes() {
#if defined(__SANITIZE_ADDRESS__)
  return __sanitizer_get_current_allocated_bytes();
#else
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
#endif
}

// Scratch memory and products are made at the first call of a shape, and kept.
TEST_P(OneDnnKernel, LaterCallsLeaveNothingBehind) {
  Random random = random_of_test();
  const GemmProblem problem = random_problem(random, scheme(32), 21, 150, 1100);
  const Prepared prepared(kernel(), problem.weights, problem.x.view());
  FloatMatrix c(FloatType::kFp32, 21, 150);
  size_t before = 0, after = 0;
  // A thread of its own, whose first call this is.
  std::thread([&] {
    const size_t none = allocated_bytes();
    run_gemm(kernel(), problem, prepared, whole(problem), &c);
    EXPECT_GT(allocated_bytes(), none + (512 << 10)) << "the panel is not seen: what is measured?";
    // What glibc keeps for a thread's next small requests counts as allocated, until it has enough.
    for (int i = 0; i < 20; ++i) run_gemm(kernel(), problem, prepared, whole(problem), &c);
    before = allocated_bytes();
    for (int i = 0; i < 50; ++i) run_gemm(kernel(), problem, prepared, whole(problem), &c);
    after = allocated_bytes();
  }).join();
  EXPECT_EQ(after, before);
}

// More shapes than a thread keeps products for.
TEST_P(OneDnnKernel, ManyShapesOneAfterTheOther) {
  Random random = random_of_test();
  for (int round = 0; round < 2; ++round) {
    for (int64_t m = 16; m < 100; ++m) {
      const GemmProblem problem = random_problem(random, scheme(-1), m, 5, 16);
      ASSERT_TRUE(
          agrees(run_gemm(kernel(), problem), run_gemm(reference(), problem), problem, kernel()));
    }
  }
}

int64_t threads_of_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

// Outside a parallel region oneDNN would start a team of its own.
TEST_P(OneDnnKernel, StartsNoThreads) {
  Random random = random_of_test();
  const GemmProblem problem = random_problem(random, scheme(32), 64, 256, 512);
  int64_t before = 0, after = 0;
  int threads = 0;
  std::thread([&] {
    omp_set_num_threads(4);
    before = threads_of_process();
    run_gemm(kernel(), problem);
    after = threads_of_process();
    threads = omp_get_max_threads();
  }).join();
  EXPECT_EQ(after, before);
  EXPECT_EQ(threads, 4) << "the caller's setting";
}

TEST_P(OneDnnKernel, FourThreadsAtOnce) {
  Random random = random_of_test();
  std::vector<GemmProblem> problems;
  std::vector<FloatMatrix> expected;
  for (const int64_t m : {16, 40, 65}) {
    problems.push_back(random_problem(random, scheme(32), m, 150, 1100));
    expected.push_back(run_gemm(kernel(), problems.back()));
    ASSERT_TRUE(
        agrees(expected.back(), run_gemm(reference(), problems.back()), problems.back(), kernel()));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (size_t caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (size_t i = 0; i < 30; ++i) {
        const size_t which = (caller + i) % problems.size();
        if (!identical(run_gemm(kernel(), problems[which]), expected[which])) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

// A team's members multiply at once, each a portion, and no more threads than the team's exist.
TEST_P(OneDnnKernel, InsideATeam) {
  Random random = random_of_test();
  const GemmProblem problem = random_problem(random, scheme(32), 48, 600, 1100);
  const WeightOnlyLinear layer(problem.hub, {}, kernel().compute, "layer", 3, "onednn");
  ASSERT_EQ(layer.kernel().target, Target::kOneDnn);
  FloatMatrix c(FloatType::kFp32, 48, 600);
  parallel_for(3, 3, [](int64_t, int64_t) {});  // the pool exists now
  const int64_t before = threads_of_process();
  layer.forward(problem.x.view(), c.view(), 3);
  EXPECT_LE(threads_of_process(), before);  // fewer on a busy machine
  EXPECT_TRUE(agrees(c, run_gemm(reference(), problem), problem, kernel()));
}

INSTANTIATE_TEST_SUITE_P(All, OneDnnKernel, ::testing::ValuesIn(kernels_with([](const Kernel& k) {
                           return k.target == Target::kOneDnn;
                         })),
                         kernel_test_name);

// oneDNN's OpenMP runtime and ours are one.
TEST(OneDnn, OneThreadPool) {
  if (!is_built(Target::kOneDnn)) GTEST_SKIP() << "this build has no target onednn";
  std::set<std::string> runtimes;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    for (const char* name : {"/libgomp", "/libomp", "/libiomp"}) {
      const size_t at = line.find(name);
      if (at != std::string::npos) runtimes.insert(line.substr(line.find('/')));
    }
  }
  EXPECT_EQ(runtimes.size(), 1u);
}

}  // namespace
}  // namespace woq::testing
