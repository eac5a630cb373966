// SPDX-License-Identifier: Apache-2.0
// The sums of a fit against rounding one by one in fp64, on every register width.
#include "woq/quant/fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "support/random.h"
#include "support/widths.h"
#include "woq/core/codes.h"

namespace woq::testing {
namespace {

using quant::fit_kernel;
using quant::FitKernel;
using quant::FitSums;

struct Sample {
  std::vector<float> x, weights;
};

Sample sample_of(Random& random, int64_t n) {
  Sample sample;
  for (int64_t i = 0; i < n; ++i) {
    sample.x.push_back(static_cast<float>(random.normal()));
    sample.weights.push_back(static_cast<float>(std::exp(random.normal())));
  }
  return sample;
}

// n products of three floats, each rounded twice, and n additions.
void expect_near(const FitSums& sums, const Sample& sample, const std::vector<double>& values) {
  double product = 0, square = 0, size = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    product += static_cast<double>(sample.weights[i]) * sample.x[i] * values[i];
    square += static_cast<double>(sample.weights[i]) * values[i] * values[i];
    size += std::fabs(static_cast<double>(sample.weights[i]) * sample.x[i] * values[i]);
  }
  const double rounding = static_cast<double>(values.size() + 2) * 0x1p-24;
  EXPECT_NEAR(sums.product, product, rounding * size);
  EXPECT_NEAR(sums.square, square, rounding * square);
}

TEST(Fit, IntegersAreRoundedAndClamped) {
  Random random = random_of_test();
  for (const char* width : widths()) {
    const ForcedTarget forced(width);
    const FitKernel kernel = fit_kernel();
    for (const int64_t n : {16, 32, 160}) {
      for (const float inverse : {2.5f, -3.0f, 9.0f, 1e-20f}) {
        const Sample sample = sample_of(random, n);
        std::vector<double> values;
        for (const float x : sample.x)
          values.push_back(std::clamp(std::nearbyint(x * inverse), -5.0f, 10.0f));
        SCOPED_TRACE(::testing::Message() << width << " n " << n << " inverse " << inverse);
        expect_near(kernel.integers(n, sample.x.data(), sample.weights.data(), inverse, -5, 10),
                    sample, values);
      }
    }
  }
}

TEST(Fit, TablesTakeTheNearestValue) {
  Random random = random_of_test();
  const Codebook& book = kNf4Codebook;
  for (const char* width : widths()) {
    const ForcedTarget forced(width);
    const FitKernel kernel = fit_kernel();
    for (const int64_t n : {16, 48, 128}) {
      for (const float inverse : {0.4f, -0.6f, 3.0f}) {
        const Sample sample = sample_of(random, n);
        std::vector<double> values;
        for (const float x : sample.x) values.push_back(book.values[encode(book, x * inverse)]);
        SCOPED_TRACE(::testing::Message() << width << " n " << n << " inverse " << inverse);
        expect_near(kernel.table(n, sample.x.data(), sample.weights.data(), inverse, book.values,
                                 book.thresholds),
                    sample, values);
      }
    }
  }
}

TEST(Fit, PaddingOfWeightZeroCountsForNothing) {
  Random random = random_of_test();
  Sample sample = sample_of(random, 32);
  const FitSums all = fit_kernel().integers(16, sample.x.data(), sample.weights.data(), 3, -8, 7);
  std::fill(sample.weights.begin() + 16, sample.weights.end(), 0.0f);
  const FitSums padded =
      fit_kernel().integers(32, sample.x.data(), sample.weights.data(), 3, -8, 7);
  EXPECT_FLOAT_EQ(all.product, padded.product);
  EXPECT_FLOAT_EQ(all.square, padded.square);
}

}  // namespace
}  // namespace woq::testing
