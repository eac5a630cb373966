// SPDX-License-Identifier: Apache-2.0
// Prepared activations: the numbers are defined, not approximated, so all formats are compared bit
// for bit with what the definition says, and int8 with the reference as well.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "support/bounds.h"

namespace woq::testing {
namespace {

using KernelPrepare = KernelTest;
using KernelPrepareInt8 = KernelTest;

PackedMatrix empty_weights(WeightDtype dtype, int64_t group_size, int64_t k) {
  PackedMatrix weights;
  weights.scheme = {dtype, group_size, {}, {}};
  weights.rows = 1;
  weights.cols = k;
  return weights;
}

// Begin and end of every block, ends clipped to K.
std::vector<std::pair<int64_t, int64_t>> blocks_of(const PackedMatrix& weights) {
  std::vector<std::pair<int64_t, int64_t>> blocks;
  for (int64_t group = 0; group < weights.cols; group += weights.group_length()) {
    const int64_t end = std::min(weights.cols, group + weights.group_length());
    for (int64_t k = group; k < end; k += 128) blocks.emplace_back(k, std::min(end, k + 128));
  }
  return blocks;
}

// Element k of a prepared row as a number.
float prepared_value(ActFormat format, const uint8_t* row, int64_t k) {
  if (format == ActFormat::kS8) return static_cast<float>(reinterpret_cast<const int8_t*>(row)[k]);
  if (format == ActFormat::kBf16) {
    constexpr int kPosition[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // element j lies at kPosition[j]
    uint16_t half;
    std::memcpy(&half, row + 2 * (k / 8 * 8 + kPosition[k % 8]), sizeof half);
    return bf16_to_float(half);
  }
  float value;
  std::memcpy(&value, row + 4 * k, sizeof value);
  return value;
}

void check_row(const Kernel& kernel, const PackedMatrix& weights, const FloatMatrix& x, int64_t m,
               const Prepared& prepared) {
  const std::vector<float> row = x.row(m);
  const auto blocks = blocks_of(weights);
  ASSERT_EQ(prepared.view.blocks, static_cast<int64_t>(blocks.size()));
  for (size_t b = 0; b < blocks.size(); ++b) {
    const auto [begin, end] = blocks[b];
    float absmax = 0;
    for (int64_t k = begin; k < end; ++k) {
      absmax = std::max(absmax, std::fabs(row[static_cast<size_t>(k)]));
    }
    double sum = 0, magnitude = 0;
    for (int64_t k = begin; k < end; ++k) {
      const float value = row[static_cast<size_t>(k)];
      const float expected = kernel.format == ActFormat::kS8
                                 ? std::nearbyint(value * (127.0f / absmax))
                             : kernel.format == ActFormat::kF32 ? value
                                                                : round_to_bf16(value);
      const float actual = prepared_value(kernel.format, prepared.row(m), k);
      ASSERT_EQ(actual, expected) << "row " << m << ", k " << k << ", from " << value;
      sum += static_cast<double>(expected);
      magnitude += std::fabs(static_cast<double>(expected));
    }
    const size_t i = static_cast<size_t>(m) * blocks.size() + b;
    if (kernel.format == ActFormat::kS8) {
      const DtypeTraits& dtype = weights.dtype();
      const float unit = dtype.is_integer() ? 1.0f : dtype.codebook->image_unit;
      ASSERT_EQ(prepared.scales[i], absmax / 127.0f * unit);
      ASSERT_EQ(static_cast<double>(prepared.sums[i]), sum);
      // Each kernel has one excess: none, a nibble's or a byte's centre.
      const auto excess = [&](int centre) { return prepared.starts[i] == -centre * sum; };
      ASSERT_TRUE(excess(0) || excess(8) || excess(128)) << prepared.starts[i] << " of " << sum;
    } else {
      ASSERT_NEAR(static_cast<double>(prepared.sums[i]), sum, gamma(end - begin) * magnitude);
    }
  }
  for (int64_t k = weights.cols; k < weights.padded_cols(); ++k) {
    ASSERT_EQ(prepared_value(kernel.format, prepared.row(m), k), 0.0f) << "padding " << k;
  }
}

TEST_P(KernelPrepare, FollowsTheDefinition) {
  Random random = random_of_test();
  for (const int64_t k : {1, 5, 8, 13, 16, 31, 100, 127, 128, 129, 136, 300, 512}) {
    for (const int64_t group_size : kGroupSizes) {
      const FloatType type = random.pick(kFloatTypes);
      const PackedMatrix weights =
          empty_weights(dtypes_of(kernel().weights).front(), group_size, k);
      FloatMatrix x(type, 3, k, random.below(3), random.below(3));
      fill_activations(random, &x);
      SCOPED_TRACE(std::string(name_of(type)) + ", K=" + std::to_string(k) + " g" +
                   std::to_string(group_size) + ", seed " + std::to_string(random.seed()));
      const Prepared prepared(kernel(), weights, x.view());
      for (int64_t m = 0; m < x.rows(); ++m) check_row(kernel(), weights, x, m, prepared);
      if (HasFailure()) return;
    }
  }
}

TEST_P(KernelPrepare, OnlyTheRowsOfThePortionAreWritten) {
  Random random = random_of_test();
  const PackedMatrix weights = empty_weights(dtypes_of(kernel().weights).front(), 32, 77);
  FloatMatrix x(FloatType::kFp32, 5, 77);
  fill_activations(random, &x);
  const Prepared prepared(kernel(), weights, x.view(), 1, 3);
  for (int64_t m = 0; m < 5; ++m) {
    if (m == 1 || m == 2) {
      check_row(kernel(), weights, x, m, prepared);
      continue;
    }
    for (int64_t i = 0; i < prepared.view.row_bytes; ++i) ASSERT_EQ(prepared.row(m)[i], kCanary);
    for (int64_t b = 0; b < prepared.view.blocks; ++b) {
      const auto i = static_cast<size_t>(m * prepared.view.blocks + b);
      ASSERT_EQ(prepared.sums[i], Prepared::kUnset);
      if (!prepared.scales.empty()) {
        ASSERT_EQ(prepared.scales[i], Prepared::kUnset);
        ASSERT_EQ(prepared.starts[i], static_cast<int32_t>(Prepared::kUnset));
      }
    }
  }
}

bool same_bits(float a, float b) {
  return float_bits(a) == float_bits(b) || (std::isnan(a) && std::isnan(b));
}

// Everything that floats can be, with ties of the rounding among them.
TEST_P(KernelPrepareInt8, IsBitIdenticalToTheReference) {
  Random random = random_of_test();
  const PackedMatrix weights = empty_weights(dtypes_of(kernel().weights).front(), 16, 16 * 24 + 3);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int repetition = 0; repetition < 200; ++repetition) {
    FloatMatrix x(FloatType::kFp32, 1, weights.cols);
    for (int64_t block = 0; block * 16 < weights.cols; ++block) {
      // One exponent per block; a block in 8 holds arbitrary bit patterns.
      const float unit = std::ldexp(1.0f, static_cast<int>(random.below(262)) - 145);
      const bool wild = random.below(8) == 0;
      for (int64_t k = block * 16; k < std::min(weights.cols, block * 16 + 16); ++k) {
        float value = static_cast<float>(random.below(255) - 127) * 0.5f * unit;
        if (wild) value = bits_float(static_cast<uint32_t>(random.bits()));
        if (random.below(400) == 0) value = random.coin() ? kInfinity : -kInfinity;
        x.set(0, k, value);
      }
    }
    const Prepared actual(kernel(), weights, x.view()), expected(reference(), weights, x.view());
    SCOPED_TRACE("seed " + std::to_string(random.seed()) + ", repetition " +
                 std::to_string(repetition));
    ASSERT_EQ(
        std::memcmp(actual.row(0), expected.row(0), static_cast<size_t>(weights.padded_cols())), 0);
    for (size_t b = 0; b < expected.scales.size(); ++b) {
      ASSERT_PRED2(same_bits, actual.scales[b], expected.scales[b]) << "block " << b;
      ASSERT_PRED2(same_bits, actual.sums[b], expected.sums[b]) << "block " << b;
    }
  }
}

TEST_P(KernelPrepareInt8, CodesStayInRangeAtTheLargestFloat) {
  const PackedMatrix weights = empty_weights(dtypes_of(kernel().weights).front(), 16, 16);
  FloatMatrix x(FloatType::kFp32, 1, 16);
  for (int64_t k = 0; k < 16; ++k) {
    x.set(0, k, (k % 2 != 0 ? -1.0f : 1.0f) * std::numeric_limits<float>::max());
  }
  const Prepared prepared(kernel(), weights, x.view());
  for (int64_t k = 0; k < 16; ++k) {
    EXPECT_EQ(prepared_value(ActFormat::kS8, prepared.row(0), k), k % 2 != 0 ? -127.0f : 127.0f);
  }
}

INSTANTIATE_TEST_SUITE_P(All, KernelPrepare, ::testing::ValuesIn(all_kernels()), kernel_test_name);
INSTANTIATE_TEST_SUITE_P(All, KernelPrepareInt8, ::testing::ValuesIn(int8_kernels()),
                         kernel_test_name);

}  // namespace
}  // namespace woq::testing
