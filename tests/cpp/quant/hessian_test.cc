// SPDX-License-Identifier: Apache-2.0
#include "woq/quant/hessian.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/errors.h"
#include "support/layers.h"
#include "support/matrices.h"

namespace woq::testing {
namespace {

void expect_moments(const Hessian& hessian, const std::vector<float>& x, int64_t rows) {
  const int64_t cols = hessian.cols();
  ASSERT_EQ(hessian.rows(), rows);
  const auto element = [&](int64_t r, int64_t k) {
    return static_cast<double>(x[static_cast<size_t>(r * cols + k)]);
  };
  for (int64_t i = 0; i < cols; ++i) {
    double magnitude = 0;
    for (int64_t r = 0; r < rows; ++r) magnitude += std::fabs(element(r, i));
    ASSERT_NEAR(hessian.mean_magnitude(i), magnitude / static_cast<double>(rows),
                1e-12 * magnitude);
    for (int64_t j = 0; j < cols; ++j) {
      double sum = 0, absolute = 0;
      for (int64_t r = 0; r < rows; ++r) {
        sum += element(r, i) * element(r, j);
        absolute += std::fabs(element(r, i) * element(r, j));
      }
      const double scale = 2 / static_cast<double>(rows);
      // At most 512 products are summed in fp32.
      ASSERT_NEAR(hessian.at(i, j), sum * scale, 512 * 0x1p-24 * absolute * scale)
          << i << ", " << j;
    }
  }
}

TEST(Hessian, IsTwiceTheMeanProduct) {
  Random random = random_of_test();
  for (const int64_t cols : {1, 7, 64, 131}) {
    const std::vector<float> x = correlated_inputs(random, 1500, cols);
    Hessian hessian(cols);
    hessian.add(view_of(x.data(), 1, cols), 1);
    hessian.add(view_of(x.data() + cols, 1499, cols), 2);
    expect_moments(hessian, x, 1500);
  }
}

// bfloat16 has a path of its own, where the CPU has products of pairs: 1,037 rows are two whole
// blocks and an odd number.
TEST(Hessian, ReadsEveryTypeAndStride) {
  Random random = random_of_test();
  for (const FloatType type : kFloatTypes) {
    for (const int64_t rows : {1, 9, 1037}) {
      for (const int64_t cols : {1, 16, 70}) {
        FloatMatrix x(type, rows, cols, 5, 1);
        fill_activations(random, &x);
        std::vector<float> plain;
        for (int64_t r = 0; r < rows; ++r) {
          const std::vector<float> row = x.row(r);
          plain.insert(plain.end(), row.begin(), row.end());
        }
        Hessian hessian(cols), single(cols);
        hessian.add(x.view(), 2);
        expect_moments(hessian, plain, rows);
        single.add(x.view(), 1);
        for (int64_t i = 0; i < cols; ++i) {
          ASSERT_EQ(hessian.mean_magnitude(i), single.mean_magnitude(i));
          for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(hessian.at(i, j), single.at(i, j));
        }
      }
    }
  }
}

TEST(Hessian, RefusesBadNumbersOfEveryType) {
  for (const FloatType type : {FloatType::kFp32, FloatType::kBf16}) {
    for (const float bad : {std::nanf(""), -std::numeric_limits<float>::infinity(), 1e18f}) {
      FloatMatrix x(type, 20, 40);
      for (int64_t r = 0; r < 20; ++r) {
        for (int64_t c = 0; c < 40; ++c) x.set(r, c, r == 17 && c == 33 ? bad : -1.5f);
      }
      Hessian hessian(40);
      EXPECT_MENTIONS(error_of<InvalidArgument>([&] { hessian.add(x.view(), 2); }),
                      "row 17, column 33");
      EXPECT_EQ(hessian.rows(), 0);
    }
  }
}

TEST(Hessian, IsTheSameForAnyNumberOfThreads) {
  Random random = random_of_test();
  const std::vector<float> x = correlated_inputs(random, 700, 200);
  Hessian one(200), three(200);
  one.add(view_of(x.data(), 700, 200), 1);
  three.add(view_of(x.data(), 700, 200), 3);
  for (int64_t i = 0; i < 200; ++i) {
    ASSERT_EQ(one.mean_magnitude(i), three.mean_magnitude(i));
    for (int64_t j = 0; j < 200; ++j) ASSERT_EQ(one.at(i, j), three.at(i, j));
  }
}

TEST(Hessian, MergesAndComesBackFromItsMatrix) {
  Random random = random_of_test();
  const std::vector<float> x = correlated_inputs(random, 50, 33);
  Hessian all(33), part(33), rest(33);
  all.add(view_of(x.data(), 50, 33), 1);
  part.add(view_of(x.data(), 20, 33), 1);
  rest.add(view_of(x.data() + 20 * 33, 30, 33), 1);
  part.merge(rest);
  std::vector<double> h(33 * 33), means(33);
  for (int64_t i = 0; i < 33; ++i) {
    means[static_cast<size_t>(i)] = all.mean_magnitude(i);
    for (int64_t j = 0; j < 33; ++j) h[static_cast<size_t>(i * 33 + j)] = all.at(i, j);
  }
  const Hessian back = Hessian::from_matrix(h.data(), 33, all.rows(), means.data());
  for (int64_t i = 0; i < 33; ++i) {
    EXPECT_NEAR(back.mean_magnitude(i), all.mean_magnitude(i), 1e-12);
    for (int64_t j = 0; j < 33; ++j) {
      EXPECT_NEAR(part.at(i, j), all.at(i, j), 1e-5 * std::sqrt(all.at(i, i) * all.at(j, j)));
      EXPECT_NEAR(back.at(i, j), all.at(i, j), 1e-12 * std::sqrt(all.at(i, i) * all.at(j, j)));
    }
  }
}

TEST(Hessian, ScaledIsThatOfScaledInputs) {
  Random random = random_of_test();
  std::vector<float> x = correlated_inputs(random, 40, 70), multipliers(70);
  for (float& m : multipliers) m = random.uniform(-2, 2);
  Hessian before(70), expected(70);
  before.add(view_of(x.data(), 40, 70), 1);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= multipliers[i % 70];
  expected.add(view_of(x.data(), 40, 70), 1);
  const Hessian scaled = before.scaled(multipliers);
  for (int64_t i = 0; i < 70; ++i) {
    EXPECT_NEAR(scaled.mean_magnitude(i), expected.mean_magnitude(i),
                1e-6 * expected.mean_magnitude(i));
    for (int64_t j = 0; j < 70; ++j) {
      EXPECT_NEAR(scaled.at(i, j), expected.at(i, j),
                  1e-5 * std::sqrt(expected.at(i, i) * expected.at(j, j)));
    }
  }
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { before.scaled({1.0f}); }), "1 elements");
}

TEST(Hessian, RefusesWhatIsNotFiniteAndKeepsWhatItHas) {
  Hessian hessian(3, "model.layers.0.q_proj");
  std::vector<float> x = {1, 2, 3, 4, 5, 6};
  hessian.add(view_of(x.data(), 2, 3), 1);
  const double before = hessian.at(1, 1);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), 1e30f}) {
    x[4] = bad;
    const std::string message =
        error_of<InvalidArgument>([&] { hessian.add(view_of(x.data(), 2, 3), 2); });
    EXPECT_MENTIONS(message, "model.layers.0.q_proj");
    EXPECT_MENTIONS(message, "row 1, column 1");
    EXPECT_MENTIONS(message, "overflows");
    EXPECT_EQ(hessian.rows(), 2);
    EXPECT_EQ(hessian.at(1, 1), before);
  }
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { hessian.add(view_of(x.data(), 3, 2), 1); }),
                  "2 columns");
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { hessian.merge(Hessian(4)); }), "3 and 4");
  EXPECT_MENTIONS(error_of<InvalidArgument>([] { Hessian bad(0); }), "at least one column");
}

TEST(Hessian, EmptyInputsChangeNothing) {
  Hessian hessian(5);
  hessian.add({nullptr, FloatType::kFp32, 0, 5, 5}, 2);
  EXPECT_EQ(hessian.rows(), 0);
  EXPECT_EQ(hessian.at(0, 0), 0.0);
  EXPECT_EQ(hessian.dead_columns(), 5);
}

}  // namespace
}  // namespace woq::testing
