// SPDX-License-Identifier: Apache-2.0
// The rounding that AutoRound tunes, beside the formulas at the head of its header in double
// precision, without a vector in sight.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/errors.h"
#include "support/matrices.h"
#include "support/random.h"
#include "woq/core/float16.h"
#include "woq/quant/rounding.h"

namespace woq::testing {
namespace {

// A weight with offsets, and what the core writes for it.
struct Tuned {
  std::vector<float> weight, offsets, scales, zeros, table;
  TunedRounding view() {
    TunedRounding r = shape;
    r.weight = weight.data();
    r.offsets = offsets.data();
    r.scales = scales.data();
    r.zeros = zeros.empty() ? nullptr : zeros.data();
    r.table = table.empty() ? nullptr : table.data();
    return r;
  }
  TunedRounding shape;
};

Tuned random_tuned(Random& random, bool codebook, int64_t rows = 0, int64_t cols = 0) {
  Tuned t;
  t.shape.rows = rows > 0 ? rows : 1 + random.below(9);
  t.shape.cols = cols > 0 ? cols : 1 + random.below(150);
  t.shape.group = 1 + random.below(t.shape.cols + 8);
  const auto elements = static_cast<size_t>(t.shape.rows * t.shape.cols);
  const auto groups = static_cast<size_t>(t.shape.rows * t.shape.groups());
  if (codebook) {
    t.shape.points = static_cast<int>(2 + random.below(15));
    float point = -1.0f;
    for (int i = 0; i < t.shape.points; ++i)
      t.table.push_back(point += random.uniform(0.05f, 0.3f));
  } else {
    t.shape.top = random.coin() ? 15.0f : 255.0f;
    for (size_t i = 0; i < groups; ++i)
      t.zeros.push_back(static_cast<float>(random.below(static_cast<int64_t>(t.shape.top) + 1)));
  }
  for (size_t i = 0; i < groups; ++i)
    t.scales.push_back(random.uniform(0.02f, 0.2f) * (random.coin() ? 1.0f : -1.0f));
  for (size_t i = 0; i < elements; ++i) {
    t.weight.push_back(random.normal() * (codebook ? 0.1f : 0.8f));  // some beyond the last code
    t.offsets.push_back(random.uniform(-0.5f, 0.5f));
  }
  return t;
}

// What the formulas say of one weight. Exact but for W / s + V and u, which round as the core's do:
// the same expressions in float.
struct Expected {
  double value = 0, over_scale = 0;  // W~, the derivative by s
  double magnitude = 0;              // of the derivative's two terms
  bool inside = true;
  bool near_tie = false;  // too near to the middle of two codes for the last bit to be certain
};

Expected expected(const TunedRounding& r, int64_t n, int64_t k) {
  const int64_t i = n * r.groups() + k / r.group;
  const double s = r.scales[i], x = static_cast<double>(r.weight[n * r.cols + k]) / s;
  const double v = r.offsets[n * r.cols + k];
  Expected e;
  const auto is_near_tie = [](double q) { return std::fabs(q - std::floor(q) - 0.5) < 1e-3; };
  if (r.table == nullptr) {
    const double low = -r.zeros[i], high = r.top - r.zeros[i], q = std::nearbyint(x + v);
    const double c = std::clamp(q, low, high);
    e.inside = q == c;
    e.near_tie = is_near_tie(x + v);
    e.value = s * c;
    e.over_scale = c - (e.inside ? x : 0);
    e.magnitude = std::fabs(c) + std::fabs(x);
    return e;
  }
  int left = 0;  // of the two points around x, or of the outermost two
  while (left + 2 < r.points && x > r.table[left + 1]) ++left;
  const double width = static_cast<double>(r.table[left + 1]) - r.table[left];
  const double place = left + (x - r.table[left]) / width;
  const double q = std::nearbyint(place + v), c = std::clamp(q, 0.0, r.points - 1.0);
  e.inside = q == c;
  e.near_tie = is_near_tie(place + v);
  e.value = s * r.table[static_cast<int>(c)];
  e.over_scale = r.table[static_cast<int>(c)] - (e.inside ? x : 0);
  e.magnitude = std::fabs(r.table[static_cast<int>(c)]) + std::fabs(x);
  return e;
}

class Rounding : public ::testing::TestWithParam<bool> {};

TEST_P(Rounding, IsTheFormula) {
  Random random = random_of_test();
  int64_t compared = 0;
  for (int round = 0; round < 50; ++round) {
    Tuned tuned = random_tuned(random, GetParam());
    const TunedRounding r = tuned.view();
    FloatMatrix out(FloatType::kFp32, r.rows, r.cols, 3), half(FloatType::kBf16, r.rows, r.cols, 1);
    rounded_weight(r, out.view(), 1);
    rounded_weight(r, half.view(), 1);
    for (int64_t n = 0; n < r.rows; ++n) {
      for (int64_t k = 0; k < r.cols; ++k) {
        const float got = out.get(n, k);
        ASSERT_EQ(half.bits(n, k), float_to_bf16(got));
        const Expected want = expected(r, n, k);
        if (want.near_tie) continue;
        ASSERT_FLOAT_EQ(got, static_cast<float>(want.value)) << "row " << n << ", column " << k;
        ++compared;
      }
    }
    EXPECT_EQ(out.changed_outside(0, r.rows, 0, r.cols), "");
    EXPECT_EQ(half.changed_outside(0, r.rows, 0, r.cols), "");
  }
  EXPECT_GT(compared, 5000);
}

TEST_P(Rounding, StepsAgainstTheSignAndGivesTheGradients) {
  Random random = random_of_test();
  constexpr float kRate = 0.3f;
  for (int round = 0; round < 50; ++round) {
    Tuned tuned = random_tuned(random, GetParam());
    const Tuned before = tuned;
    TunedRounding old = tuned.view();
    std::vector<float> kept = before.offsets;
    old.offsets = kept.data();
    std::vector<float> gradient(tuned.weight.size());
    for (float& g : gradient) g = random.below(5) == 0 ? 0.0f : random.normal();
    const int64_t rows = old.rows, cols = old.cols, groups = old.groups();
    std::vector<float> of_scales(static_cast<size_t>(rows * groups)), of_zeros = of_scales;
    rounding_step(tuned.view(), view_of(std::as_const(gradient).data(), rows, cols), kRate,
                  of_scales.data(), of_zeros.data(), 1);
    std::vector<double> scale(of_scales.size()), zero = scale, bound = scale;
    std::vector<bool> uncertain(of_scales.size(), false);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const int64_t n = i / cols, k = i % cols;
      const auto group = static_cast<size_t>(n * groups + k / old.group);
      const Expected want = expected(old, n, k);
      const double g = gradient[static_cast<size_t>(i)];
      const double s = old.scales[group];
      scale[group] += g * want.over_scale;
      bound[group] += std::fabs(g) * std::max(want.magnitude, std::fabs(s));
      if (!GetParam() && !want.inside) zero[group] -= g * s;
      uncertain[group] = uncertain[group] || want.near_tie;
      // Of codes outside nothing moves; V's derivative has the sign of s.
      const double sign = g == 0 || !want.inside ? 0 : g * s > 0 ? 1 : -1;
      const double moved = std::clamp(old.offsets[i] - kRate * sign, -0.5, 0.5);
      if (!want.near_tie) {
        ASSERT_NEAR(tuned.offsets[static_cast<size_t>(i)], moved, 1e-6);
      }
      ASSERT_LE(std::fabs(tuned.offsets[static_cast<size_t>(i)]), 0.5f);
    }
    for (size_t i = 0; i < scale.size(); ++i) {
      if (uncertain[i]) continue;
      // gamma(K + 4) of the terms' magnitudes: a quotient, a difference, a product, the sum.
      const double error = static_cast<double>(cols + 4) * 0x1p-24 * bound[i];
      ASSERT_NEAR(of_scales[i], scale[i], error);
      ASSERT_NEAR(of_zeros[i], zero[i], error);
    }
  }
}

TEST_P(Rounding, IsTheSameForAnyNumberOfThreads) {
  Random random = random_of_test();
  constexpr int64_t kRows = 199, kCols = 523;
  static_assert(kRows * kCols >= 3 * kElementGrain);
  for (int round = 0; round < 2; ++round) {
    Tuned one = random_tuned(random, GetParam(), kRows, kCols);
    Tuned several = one;
    const TunedRounding r = one.view();
    const std::vector<float> gradient = one.weight;
    std::vector<float> scales[2], zeros[2], values[2];
    Tuned* const both[2] = {&one, &several};
    for (int i = 0; i < 2; ++i) {
      const int threads = i == 0 ? 1 : 3;
      scales[i].resize(one.scales.size());
      zeros[i].resize(one.scales.size());
      values[i].resize(one.weight.size());
      rounding_step(both[i]->view(), view_of(gradient.data(), r.rows, r.cols), 0.1f,
                    scales[i].data(), zeros[i].data(), threads);
      rounded_weight(both[i]->view(), view_of(values[i].data(), r.rows, r.cols), threads);
    }
    EXPECT_EQ(one.offsets, several.offsets);
    EXPECT_EQ(scales[0], scales[1]);
    EXPECT_EQ(zeros[0], zeros[1]);
    EXPECT_EQ(values[0], values[1]);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Rounding, ::testing::Bool(), [](const auto& test) {
  return std::string(test.param ? "Codebook" : "Integers");
});

// A stored scale can round to 0; nothing is divided by it.
TEST_P(Rounding, AScaleOfZeroMakesZeros) {
  Random random = random_of_test();
  Tuned tuned = random_tuned(random, GetParam(), 3, 40);
  std::fill(tuned.scales.begin(), tuned.scales.end(), 0.0f);
  const std::vector<float> offsets = tuned.offsets, gradient(tuned.weight.size(), 1.0f);
  std::vector<float> values(tuned.weight.size(), -1.0f), of_scales(tuned.scales.size(), -1.0f),
      of_zeros = of_scales;
  rounded_weight(tuned.view(), view_of(values.data(), 3, 40), 1);
  rounding_step(tuned.view(), view_of(gradient.data(), 3, 40), 0.1f, of_scales.data(),
                of_zeros.data(), 1);
  EXPECT_EQ(values, std::vector<float>(values.size()));
  EXPECT_EQ(of_scales, std::vector<float>(of_scales.size()));
  EXPECT_EQ(of_zeros, std::vector<float>(of_zeros.size()));
  EXPECT_EQ(tuned.offsets, offsets);
}

// The other weights are what they are without it.
TEST_P(Rounding, NanStaysWhereItIs) {
  Random random = random_of_test();
  for (const bool in_offset : {false, true}) {
    Tuned tuned = random_tuned(random, GetParam(), 3, 40);
    std::vector<float> clean(tuned.weight.size()), values(clean.size());
    rounded_weight(tuned.view(), view_of(clean.data(), 3, 40), 1);
    const std::vector<float> gradient(clean.size(), 1.0f);
    std::vector<float> of_scales(tuned.scales.size()), of_zeros(of_scales.size());
    (in_offset ? tuned.offsets : tuned.weight)[57] = std::numeric_limits<float>::quiet_NaN();
    rounded_weight(tuned.view(), view_of(values.data(), 3, 40), 1);
    for (size_t i = 0; i < values.size(); ++i) {
      if (i == 57) {
        EXPECT_TRUE(std::isnan(values[i])) << values[i];
      } else {
        ASSERT_EQ(values[i], clean[i]) << i;
      }
    }
    rounding_step(tuned.view(), view_of(gradient.data(), 3, 40), 0.1f, of_scales.data(),
                  of_zeros.data(), 1);
  }
}

TEST(RoundingErrors, NumbersThatAreNone) {
  Random random = random_of_test();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const bool codebook : {false, true}) {
    const Tuned good = random_tuned(random, codebook, 3, 40);
    const CodePoints points(traits_of(codebook ? WeightDtype::kNf4 : WeightDtype::kInt4Clip));
    std::vector<float> values(good.weight.size()), of_scales(good.scales.size());
    std::vector<uint8_t> codes(values.size());
    const auto refused = [&](const Tuned& bad) {
      Tuned copy = bad;
      const TunedRounding r = copy.view();
      const std::string weight =
          error_of<InvalidArgument>([&] { rounded_weight(r, view_of(values.data(), 3, 40), 1); });
      EXPECT_EQ(weight,
                error_of<InvalidArgument>([&] { rounded_codes(r, points, codes.data(), 1); }));
      EXPECT_EQ(weight, error_of<InvalidArgument>([&] {
                  rounding_step(r, view_of(values.data(), 3, 40), 0.1f, of_scales.data(), nullptr,
                                1);
                }));
      return weight;
    };
    for (const float scale : {kNan, kInfinity, -kInfinity}) {
      Tuned bad = good;
      bad.scales.back() = scale;
      EXPECT_MENTIONS(refused(bad), concat("scales hold ", scale, " at row 2, group "));
    }
    for (const float zero : {kNan, -1.0f, 1.5f, 1e9f}) {
      if (codebook) break;
      Tuned bad = good;
      bad.zeros.front() = zero;
      EXPECT_MENTIONS(refused(bad), concat("zeros hold ", zero, " at row 0, group 0"));
    }
    for (const bool in_offset : {false, true}) {
      Tuned bad = good;
      (in_offset ? bad.offsets : bad.weight)[57] = kNan;
      const std::string error =
          error_of<InvalidArgument>([&] { rounded_codes(bad.view(), points, codes.data(), 1); });
      EXPECT_MENTIONS(error, "row 1, column 17");
    }
  }
}

TEST(RoundingErrors, WrongShapesAndTypes) {
  Random random(1);
  Tuned tuned = random_tuned(random, false);
  const TunedRounding r = tuned.view();
  FloatMatrix wide(FloatType::kFp32, r.rows, r.cols + 1), half(FloatType::kFp16, r.rows, r.cols);
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { rounded_weight(r, wide.view()); }),
                  "the rounded weight is fp32 or bf16");
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { rounded_weight(r, half.view()); }), "not fp16");
  const FloatMatrix& gradient = wide;
  EXPECT_MENTIONS(
      error_of<InvalidArgument>([&] { rounding_step(r, gradient.view(), 0.1f, nullptr, nullptr); }),
      "the gradient is ");
}

}  // namespace
}  // namespace woq::testing
