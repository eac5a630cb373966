// SPDX-License-Identifier: Apache-2.0
// Products, Cholesky factors and solutions against plain loops in fp64, on every register width.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "support/random.h"
#include "support/widths.h"
#include "woq/linalg/cholesky.h"
#include "woq/linalg/gemm.h"

namespace woq::testing {
namespace {

template <class T>
std::vector<T> random_values(Random& random, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(random.normal());
  return values;
}

template <class T>
void check_product(Random& random, int64_t m, int64_t n, int64_t k, Part part) {
  const std::vector<T> a = random_values<T>(random, m * k), b = random_values<T>(random, k * n);
  const std::vector<T> before = random_values<T>(random, m * n);
  for (const bool transposed : {false, true}) {
    // The same numbers, read as [m, k], or as the transpose of what lies there as [k, m].
    const StridedMatrix<T> left =
        transposed ? StridedMatrix<T>{a.data(), 1, m} : StridedMatrix<T>{a.data(), k, 1};
    const StridedMatrix<T> right{b.data(), n, 1};
    std::vector<T> c = before;
    multiply_add(m, n, k, T(-2), left, right, c.data(), n, 2, part);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const bool wanted = part == Part::kAll || (part == Part::kUpper ? j >= i : j <= i);
        double sum = 0, magnitude = 0;
        for (int64_t p = 0; p < k; ++p) {
          const double product = static_cast<double>(*left.at(i, p)) * *right.at(p, j);
          sum += product;
          magnitude += std::fabs(product);
        }
        const auto at = static_cast<size_t>(i * n + j);
        const double expected = wanted ? before[at] - 2 * sum : static_cast<double>(before[at]);
        const double eps = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
        ASSERT_NEAR(c[at], expected,
                    wanted ? eps * static_cast<double>(k + 2) * (magnitude + 1) : 0.0)
            << m << " x " << n << " x " << k << " at " << i << ", " << j << ", seed "
            << random.seed();
      }
    }
  }
}

TEST(Linalg, Products) {
  Random random = random_of_test();
  for (const char* const width : widths()) {
    const ForcedTarget forced(width);
    SCOPED_TRACE(width);
    for (const int64_t k : {1, 5, 256, 300}) {
      check_product<float>(random, 100, 37, k, Part::kAll);
      check_product<double>(random, 13, 65, k, Part::kAll);
    }
    check_product<float>(random, 130, 130, 20, Part::kLower);
    check_product<float>(random, 130, 130, 20, Part::kUpper);
    check_product<double>(random, 1, 1, 3, Part::kUpper);
  }
}

// The order of each sum doesn't depend on who computes it.
TEST(Linalg, ProductsAreTheSameForAnyNumberOfThreads) {
  Random random = random_of_test();
  const std::vector<float> a = random_values<float>(random, 300 * 517);
  std::vector<float> expected;
  for (const int threads : {1, 2, 3, 7}) {
    std::vector<float> c(300 * 300);
    multiply_add(300, 300, 517, 1.0f, StridedMatrix<float>{a.data(), 517, 1},
                 StridedMatrix<float>{a.data(), 1, 517}, c.data(), 300, threads);
    if (expected.empty()) expected = c;
    ASSERT_EQ(c, expected) << threads;
  }
}

// A random symmetric positive definite matrix.
std::vector<double> positive_definite(Random& random, int64_t n) {
  const std::vector<double> x = random_values<double>(random, n * (n + 4));
  std::vector<double> a(static_cast<size_t>(n * n));
  multiply_add(n, n, n + 4, 1.0, StridedMatrix<double>{x.data(), n + 4, 1},
               StridedMatrix<double>{x.data(), 1, n + 4}, a.data(), n, 1);
  return a;
}

TEST(Linalg, UpperFactor) {
  Random random = random_of_test();
  for (const char* const width : widths()) {
    const ForcedTarget forced(width);
    for (const int64_t n : {1, 2, 16, 127, 128, 129, 300}) {
      const std::vector<double> a = positive_definite(random, n);
      std::vector<double> r = a;
      ASSERT_EQ(factor_upper(r.data(), n, n, 0.0, 2), -1);
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = i; j < n; ++j) {
          double sum = 0;
          for (int64_t k = j; k < n; ++k)
            sum += r[static_cast<size_t>(i * n + k)] * r[static_cast<size_t>(j * n + k)];
          ASSERT_NEAR(sum, a[static_cast<size_t>(i * n + j)], 0x1p-50 * static_cast<double>(n * n))
              << width << ", n = " << n << ", seed " << random.seed();
        }
      }
    }
  }
}

TEST(Linalg, UpperFactorNamesTheBadPivot) {
  std::vector<double> a(200 * 200);
  for (size_t i = 0; i < 200; ++i) a[i * 200 + i] = i == 33 ? -1.0 : 1.0;
  EXPECT_EQ(factor_upper(a.data(), 200, 200, 0.0, 1), 33);
  a.assign(4, 1.0);  // singular
  EXPECT_EQ(factor_upper(a.data(), 2, 2, 1e-12, 1), 0);
  a[3] = std::nan("");
  EXPECT_EQ(factor_upper(a.data(), 2, 2, 0.0, 1), 1);
}

TEST(Linalg, SolveTransposed) {
  Random random = random_of_test();
  for (const int64_t n : {1, 40, 128, 290}) {
    std::vector<double> r = positive_definite(random, n);
    ASSERT_EQ(factor_upper(r.data(), n, n, 0.0, 1), -1);
    const std::vector<double> b = random_values<double>(random, 7 * n);
    std::vector<double> x = b;
    solve_transposed(r.data(), n, n, x.data(), 7, n, 2);
    for (int64_t i = 0; i < 7; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0, magnitude = 0;
        for (int64_t k = j; k < n; ++k) {
          const double product =
              x[static_cast<size_t>(i * n + k)] * r[static_cast<size_t>(j * n + k)];
          sum += product;
          magnitude += std::fabs(product);
        }
        ASSERT_NEAR(sum, b[static_cast<size_t>(i * n + j)], 1e-11 * (magnitude + 1)) << n;
      }
    }
  }
}

}  // namespace
}  // namespace woq::testing
