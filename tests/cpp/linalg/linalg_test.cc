// SPDX-License-Identifier: Apache-2.0
// Products, Cholesky factors and solutions against Eigen in fp64, on every register width.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "support/eigen.h"
#include "support/random.h"
#include "support/widths.h"
#include "woq/linalg/cholesky.h"
#include "woq/linalg/gemm.h"

namespace woq::testing {
namespace {

using namespace linalg;

template <class T>
std::vector<T> random_values(Random& random, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(random.normal());
  return values;
}

// The bound. A sum of k products goes through at most k + 1 roundings, blocks of it are added to C
// after one more each, and C itself is rounded where it is added: gamma(k + 4 + k / 256) of the sum
// of the magnitudes that were added. Eigen's own sum is off by as much in fp64.
template <class T>
void check_product(Random& random, int64_t m, int64_t n, int64_t k, Part part) {
  const std::vector<T> a = random_values<T>(random, m * k), b = random_values<T>(random, k * n);
  const std::vector<T> before = random_values<T>(random, m * n);
  const int64_t roundings = k + 4 + k / 256;
  const double relative = gamma_of<T>(roundings) + gamma_of<double>(roundings);
  for (const bool transposed : {false, true}) {
    // The same numbers, read as [m, k], or as the transpose of what lies there as [k, m].
    const StridedMatrix<T> left =
        transposed ? StridedMatrix<T>{a.data(), 1, m} : StridedMatrix<T>{a.data(), k, 1};
    const StridedMatrix<T> right{b.data(), n, 1};
    std::vector<T> c = before;
    multiply_add(m, n, k, T(-2), left, right, c.data(), n, 2, part);
    const EigenMatrix x = eigen_of(left.data, m, k, left.row_stride, left.col_stride);
    const EigenMatrix y = eigen_of(b.data(), k, n, n);
    const EigenMatrix old = eigen_of(before.data(), m, n, n);
    const EigenMatrix expected = old - 2 * x * y;
    const EigenMatrix magnitude = old.cwiseAbs() + 2 * x.cwiseAbs() * y.cwiseAbs();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        const bool wanted = part == Part::kAll || (part == Part::kUpper ? j >= i : j <= i);
        ASSERT_NEAR(c[static_cast<size_t>(i * n + j)], wanted ? expected(i, j) : old(i, j),
                    wanted ? relative * magnitude(i, j) : 0.0)
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

// Largest row sum of |R^-1| |R|: what multiplying by the inverse of a diagonal block, where others
// solve with the block, can add to the error. The inverse of R's block is the block of R's inverse,
// so the number of the whole of R covers every block.
double skeel_condition(const EigenMatrix& r) {
  const EigenMatrix inverse =
      r.triangularView<Eigen::Upper>().solve(EigenMatrix::Identity(r.rows(), r.cols()));
  return (inverse.cwiseAbs() * r.cwiseAbs()).rowwise().sum().maxCoeff();
}

// R against Eigen's factor of the same matrix, rows and columns reversed: Eigen factors from the
// first row on, A = L L^T with a lower L. Two bounds:
// - what R R^T misses of A is at most gamma(2 n + 4) (1 + condition) |R| |R^T|;
// - factors of A + E and A + E' are apart by at most kappa(A) (|E| + |E'|) |L| / (sqrt(2) |A|), to
//   first order (Sun 1991; Higham 10.3). E and E' are measured; 2 instead of 1 / sqrt(2) covers the
//   higher orders, since kappa(A) |E| / |A| stays below 1e-6 here.
TEST(Linalg, UpperFactor) {
  Random random = random_of_test();
  for (const char* const width : widths()) {
    const ForcedTarget forced(width);
    for (const int64_t n : {1, 2, 16, 127, 128, 129, 300}) {
      const std::vector<double> values = positive_definite(random, n);
      std::vector<double> factored = values;
      ASSERT_EQ(factor_upper(factored.data(), n, n, 0.0, 2), -1);
      const EigenMatrix a = eigen_of(values.data(), n, n, n);
      const EigenMatrix r = eigen_of(factored.data(), n, n, n).triangularView<Eigen::Upper>();
      const EigenMatrix missing = r * r.transpose() - a;
      const EigenMatrix magnitude = r.cwiseAbs() * r.cwiseAbs().transpose();
      const double relative = gamma_of<double>(2 * n + 4) * (1 + skeel_condition(r));
      ASSERT_LE((missing.cwiseAbs() - relative * magnitude).maxCoeff(), 0)
          << width << ", n = " << n << ", seed " << random.seed();

      const EigenMatrix reversed = a.reverse();
      const Eigen::LLT<EigenMatrix> llt(reversed);
      ASSERT_EQ(llt.info(), Eigen::Success);
      const EigenMatrix l = llt.matrixL();
      const double residuals = missing.norm() + (l * l.transpose() - reversed).norm();
      const auto spectrum = Eigen::SelfAdjointEigenSolver<EigenMatrix>(a).eigenvalues();
      const double kappa = spectrum.maxCoeff() / spectrum.minCoeff();
      ASSERT_LT(kappa * residuals / spectrum.maxCoeff(), 1e-6);
      ASSERT_LE((r - EigenMatrix(l.reverse())).norm(),
                2 * kappa * residuals * l.norm() / spectrum.maxCoeff())
          << width << ", n = " << n << ", seed " << random.seed();
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

// X R^T = B against Eigen's triangular solve. What X R^T misses of B is at most
// gamma(2 n + 4) (1 + condition) |X| |R^T| (see UpperFactor), and for Eigen's X' without the
// condition; X - X' is the difference of the two times R^-T.
TEST(Linalg, SolveTransposed) {
  Random random = random_of_test();
  for (const int64_t n : {1, 40, 128, 290}) {
    std::vector<double> factored = positive_definite(random, n);
    ASSERT_EQ(factor_upper(factored.data(), n, n, 0.0, 1), -1);
    const std::vector<double> b = random_values<double>(random, 7 * n);
    std::vector<double> solved = b;
    solve_transposed(factored.data(), n, n, solved.data(), 7, n, 2);
    const EigenMatrix r = eigen_of(factored.data(), n, n, n).triangularView<Eigen::Upper>();
    const EigenMatrix x = eigen_of(solved.data(), 7, n, n);
    const EigenMatrix expected =
        r.triangularView<Eigen::Upper>().solve(eigen_of(b.data(), 7, n, n).transpose()).transpose();
    const EigenMatrix inverse = r.triangularView<Eigen::Upper>().solve(EigenMatrix::Identity(n, n));
    const double relative = gamma_of<double>(2 * n + 4) * (2 + skeel_condition(r));
    const EigenMatrix bound =
        relative * (x.cwiseAbs().cwiseMax(expected.cwiseAbs()) * r.cwiseAbs().transpose() *
                    inverse.cwiseAbs().transpose());
    ASSERT_LE(((x - expected).cwiseAbs() - bound).maxCoeff(), 0) << n;
  }
}

}  // namespace
}  // namespace woq::testing
