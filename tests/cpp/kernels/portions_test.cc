// SPDX-License-Identifier: Apache-2.0
// A kernel writes its portion of C, all of it and nothing else, and changes none of its inputs.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "support/bounds.h"

namespace woq::testing {
namespace {

using KernelPortions = KernelTest;
using KernelPortionsInt8 = KernelTest;

void check_portion(const Kernel& kernel, const GemmProblem& problem, const Prepared& prepared,
                   const FloatMatrix& expected, const Portion& portion) {
  SCOPED_TRACE("rows " + std::to_string(portion.m0) + ":" + std::to_string(portion.m1) +
               ", tiles " + std::to_string(portion.t0) + ":" + std::to_string(portion.t1));
  FloatMatrix c(expected.type(), problem.rows(), problem.cols(), 2, 1);
  run_gemm(kernel, problem, prepared, portion, &c);
  const int64_t n0 = std::min(problem.cols(), portion.t0 * kTileRows);
  const int64_t n1 = std::min(problem.cols(), portion.t1 * kTileRows);
  EXPECT_EQ(c.changed_outside(portion.m0, portion.m1, n0, n1), "");
  if (kernel.compute == ComputeType::kInt8) {
    EXPECT_TRUE(identical(c, expected, portion.m0, portion.m1, n0, n1));
  } else {
    const Bounds bounds = times(2, accumulation_bounds(problem, kernel));
    EXPECT_TRUE(within(c, expected, bounds, portion.m0, portion.m1, n0, n1));
  }
}

TEST_P(KernelPortions, AreWrittenAndNothingElse) {
  Random random = random_of_test();
  constexpr int64_t kRows[] = {0, 1, 2, 7, 8, 19}, kTiles[] = {0, 1, 2, 5, 6};
  for (const FloatType type : kFloatTypes) {
    const GemmProblem problem = random_problem(random, random_scheme(random, kernel().weights), 19,
                                               85, 40, FloatType::kFp32, random.coin());
    SCOPED_TRACE(describe(problem) + " -> " + name_of(type) + ", seed " +
                 std::to_string(random.seed()));
    const Prepared prepared(kernel(), problem.weights, problem.x.view());
    const FloatMatrix expected = run_gemm(reference(), problem, type);
    for (const int64_t m0 : kRows) {
      for (const int64_t m1 : kRows) {
        for (const int64_t t0 : kTiles) {
          for (const int64_t t1 : kTiles) {
            // A portion without rows or tiles is allowed too.
            if (m0 > m1 || t0 > t1) continue;
            check_portion(kernel(), problem, prepared, expected, {m0, m1, t0, t1});
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_P(KernelPortions, InputsStayUnchanged) {
  Random random = random_of_test();
  const GemmProblem problem = random_problem(random, random_scheme(random, kernel().weights), 9, 50,
                                             70, FloatType::kBf16, true);
  const GemmProblem before = problem;
  const Prepared prepared(kernel(), problem.weights, problem.x.view());
  const Buffer data = prepared.data;
  const std::vector<float> scales = prepared.scales, sums = prepared.sums;
  const std::vector<int32_t> starts = prepared.starts;
  FloatMatrix c(FloatType::kFp32, 9, 50);
  run_gemm(kernel(), problem, prepared, whole(problem), &c);
  EXPECT_EQ(problem.x.bytes(), before.x.bytes());
  EXPECT_EQ(problem.bias, before.bias);
  EXPECT_TRUE(same_bytes(problem.weights.data, before.weights.data));
  EXPECT_TRUE(same_bytes(prepared.data, data));
  EXPECT_EQ(prepared.scales, scales);
  EXPECT_EQ(prepared.sums, sums);
  EXPECT_EQ(prepared.starts, starts);
}

// A copy whose end is that of a page, behind which nothing can be read.
class AtTheEndOfAPage {
 public:
  explicit AtTheEndOfAPage(const Buffer& buffer)
      : page_(sysconf(_SC_PAGESIZE)), mapped_(round_up(buffer.size(), page_) + page_) {
    void* const p =
        mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return;
    base_ = static_cast<uint8_t*>(p);
    data_ = base_ + mapped_ - page_ - buffer.size();
    std::memcpy(data_, buffer.data(), static_cast<size_t>(buffer.size()));
    mprotect(base_ + mapped_ - page_, static_cast<size_t>(page_), PROT_NONE);
  }
  AtTheEndOfAPage(const AtTheEndOfAPage&) = delete;
  AtTheEndOfAPage& operator=(const AtTheEndOfAPage&) = delete;
  ~AtTheEndOfAPage() {
    if (base_ != nullptr) munmap(base_, size());
  }

  uint8_t* data() const { return data_; }

 private:
  size_t size() const { return static_cast<size_t>(mapped_); }

  int64_t page_, mapped_;
  uint8_t *base_ = nullptr, *data_ = nullptr;
};

// Sanitizers do not see what tile registers load.
TEST_P(KernelPortions, NoActivationsAreReadBehindTheLastRow) {
  Random random = random_of_test();
  for (const int64_t m : {1, 3, 8, 19, 33, 50}) {
    const GemmProblem problem =
        random_problem(random, random_scheme(random, kernel().weights), m, 40, 250);
    Prepared prepared(kernel(), problem.weights, problem.x.view());
    const AtTheEndOfAPage activations(prepared.data);
    ASSERT_NE(activations.data(), nullptr);
    prepared.view.data = activations.data();
    SCOPED_TRACE(describe(problem) + ", seed " + std::to_string(random.seed()));
    FloatMatrix c(FloatType::kFp32, m, 40);
    run_gemm(kernel(), problem, prepared, whole(problem), &c);
    ASSERT_TRUE(agrees(c, run_gemm(reference(), problem), problem, kernel()));
  }
}

// C's row of a portion must not depend on which other rows are computed with it.
TEST_P(KernelPortionsInt8, RowsAreIndependent) {
  Random random = random_of_test();
  const GemmProblem problem =
      random_problem(random, random_scheme(random, kernel().weights), 11, 40, 300);
  const FloatMatrix all = run_gemm(kernel(), problem);
  const Prepared prepared(kernel(), problem.weights, problem.x.view());
  FloatMatrix single(FloatType::kFp32, 11, 40);
  for (int64_t m = 0; m < 11; ++m) {
    run_gemm(kernel(), problem, prepared, {m, m + 1, 0, problem.weights.tiles()}, &single);
  }
  EXPECT_TRUE(identical(single, all));
}

INSTANTIATE_TEST_SUITE_P(All, KernelPortions, ::testing::ValuesIn(all_kernels()), kernel_test_name);
INSTANTIATE_TEST_SUITE_P(All, KernelPortionsInt8, ::testing::ValuesIn(int8_kernels()),
                         kernel_test_name);

}  // namespace
}  // namespace woq::testing
