// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 pairs and the Gram matrix made of them, on every target: against fp64, and
// against the reference bit for bit.
#include "woq/linalg/bf16_pairs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "support/machine.h"
#include "support/matrices.h"
#include "support/random.h"
#include "support/widths.h"
#include "woq/linalg/gram_bf16.h"

namespace woq::testing {
namespace {

using namespace linalg;

const Bf16Pairs& reference() {
  const ForcedTarget forced("ref");
  return bf16_pairs();
}

class Bf16PairsOn : public OnTarget {};

INSTANTIATE_TEST_SUITE_P(Targets, Bf16PairsOn, ::testing::ValuesIn(code_targets()),
                         target_test_name);

TEST_P(Bf16PairsOn, PackTwoRowsIntoALane) {
  Random random = random_of_test();
  for (const int64_t rows : {1, 2, 7, 8}) {
    for (const int64_t cols : {1, 5, 16, 40}) {
      FloatMatrix x(FloatType::kBf16, rows, cols, 3, 1);
      fill_activations(random, &x);
      const int64_t pairs = (rows + 1) / 2, used = std::min(cols, kPairPanel);
      std::vector<uint32_t> packed(static_cast<size_t>(pairs * kPairPanel));
      std::vector<double> magnitudes(kPairPanel, 1.0);
      const ConstMatrixView view = x.view();
      bf16_pairs().pack(static_cast<const uint16_t*>(view.data), rows, cols, view.row_stride,
                        packed.data(), magnitudes.data());
      for (int64_t c = 0; c < kPairPanel; ++c) {
        double magnitude = 1;
        for (int64_t p = 0; p < pairs; ++p) {
          const uint32_t lower = c < used ? x.bits(2 * p, c) : 0;
          const uint32_t upper = c < used && 2 * p + 1 < rows ? x.bits(2 * p + 1, c) : 0;
          ASSERT_EQ(packed[static_cast<size_t>(p * kPairPanel + c)], lower | upper << 16)
              << rows << " x " << cols << ", pair " << p << ", column " << c;
        }
        for (int64_t r = 0; c < used && r < rows; ++r)
          magnitude += std::fabs(static_cast<double>(x.get(r, c)));
        ASSERT_NEAR(magnitudes[static_cast<size_t>(c)], magnitude, 0x1p-50 * magnitude);
      }
    }
  }
}

TEST_P(Bf16PairsOn, MultiplyAsTheReference) {
  Random random = random_of_test();
  for (const int64_t pairs : {1, 2, 31, 256}) {
    FloatMatrix a(FloatType::kBf16, 2 * pairs, kPairPanel),
        b(FloatType::kBf16, 2 * pairs, kPairPanel);
    fill_activations(random, &a);
    fill_activations(random, &b);
    std::vector<uint32_t> left(static_cast<size_t>(pairs * kPairPanel)), right(left.size());
    const auto pack = [&](const FloatMatrix& x, std::vector<uint32_t>* out) {
      const ConstMatrixView view = x.view();
      bf16_pairs().pack(static_cast<const uint16_t*>(view.data), 2 * pairs, kPairPanel,
                        view.row_stride, out->data(), nullptr);
    };
    pack(a, &left);
    pack(b, &right);
    constexpr int64_t kStride = kPairPanel + 3;
    std::vector<float> before(kPairPanel * kStride);
    for (float& x : before) x = static_cast<float>(random.normal());
    std::vector<float> got = before, expected = before;
    bf16_pairs().multiply(pairs, left.data(), right.data(), got.data(), kStride);
    reference().multiply(pairs, left.data(), right.data(), expected.data(), kStride);
    ASSERT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
        << pairs << " pairs, seed " << random.seed();
    // 2 * pairs exact products, each added with one rounding to fp32.
    for (int64_t i = 0; i < kPairPanel; ++i) {
      for (int64_t j = 0; j < kPairPanel; ++j) {
        const auto at = static_cast<size_t>(i * kStride + j);
        auto sum = static_cast<double>(before[at]);
        double magnitude = std::fabs(sum);
        for (int64_t r = 0; r < 2 * pairs; ++r) {
          const double product =
              static_cast<double>(a.get(r, i)) * static_cast<double>(b.get(r, j));
          sum += product;
          magnitude += std::fabs(product);
        }
        ASSERT_NEAR(static_cast<double>(got[at]), sum,
                    static_cast<double>(2 * pairs + 1) * 0x1p-24 * magnitude)
            << "element " << i << ", " << j;
      }
    }
  }
}

// With every kind of number: subnormal ones and infinities too. NaN is any NaN.
TEST(Bf16Pairs, TheReferenceIsTheInstruction) {
  if (!has_bf16_products()) GTEST_SKIP() << "the instruction itself: this CPU has no AVX512-BF16";
  Random random = random_of_test();
  const Bf16Pairs& instruction = bf16_pairs();
  for (int i = 0; i < 4000; ++i) {
    std::vector<uint32_t> a(kPairPanel), b(kPairPanel);
    std::vector<float> got(kPairPanel * kPairPanel);
    const auto bits = [&] { return static_cast<uint32_t>(random.below(int64_t{1} << 32)); };
    // Exponents near 0 every other time: sums and products around the smallest normal number.
    const auto number = [&] { return i % 2 == 0 ? bits() : bits() & 0xa1ffa1ffu; };
    for (uint32_t& x : a) x = number();
    for (uint32_t& x : b) x = number() | (i % 4 == 1 ? 0x3f803f80u : 0u);
    for (float& x : got) x = bits_float(i % 2 == 0 ? bits() : bits() & 0x81ffffffu);
    std::vector<float> expected = got;
    instruction.multiply(1, a.data(), b.data(), got.data(), kPairPanel);
    reference().multiply(1, a.data(), b.data(), expected.data(), kPairPanel);
    for (size_t k = 0; k < got.size(); ++k) {
      const bool nan = std::isnan(expected[k]);
      ASSERT_TRUE(nan ? std::isnan(got[k]) : float_bits(got[k]) == float_bits(expected[k]))
          << got[k] << ", expected " << expected[k] << ", seed " << random.seed();
    }
  }
}

// The lower triangle with its diagonal tiles, and the columns' sums of magnitudes.
struct Gram {
  std::vector<double> sums, magnitudes;

  Gram(const FloatMatrix& x, int threads) {
    const int64_t n = (x.cols() + kPairPanel - 1) / kPairPanel * kPairPanel;
    sums.assign(static_cast<size_t>(n * n), 0.0);
    magnitudes.assign(static_cast<size_t>(x.cols()), 0.0);
    add_gram_bf16(
        x.view(), [&](int64_t i) { return sums.data() + i * n; }, magnitudes.data(), threads);
  }
  bool operator==(const Gram& other) const {
    return sums == other.sums && magnitudes == other.magnitudes;
  }
};

TEST_P(Bf16PairsOn, MakeAGramMatrix) {
  Random random = random_of_test();
  for (const int64_t rows : {1, 512, 1037}) {
    for (const int64_t cols : {1, 16, 45}) {
      FloatMatrix x(FloatType::kBf16, rows, cols, 5, 1);
      fill_activations(random, &x);
      const Gram gram(x, one_processor() ? 1 : 2);
      EXPECT_TRUE(gram == Gram(x, 1)) << "one thread gives other bits";
      const int64_t n = (cols + kPairPanel - 1) / kPairPanel * kPairPanel;
      for (int64_t i = 0; i < cols; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          double sum = 0, magnitude = 0;
          for (int64_t r = 0; r < rows; ++r) {
            const double product =
                static_cast<double>(x.get(r, i)) * static_cast<double>(x.get(r, j));
            sum += product;
            magnitude += std::fabs(product);
          }
          // At most 512 products are summed in fp32.
          ASSERT_NEAR(gram.sums[static_cast<size_t>(i * n + j)], sum, 512 * 0x1p-24 * magnitude)
              << rows << " x " << cols << " at " << i << ", " << j;
        }
      }
      const ForcedTarget forced("ref");
      const Gram expected(x, 1);
      EXPECT_EQ(gram.sums, expected.sums) << rows << " x " << cols;
      for (size_t k = 0; k < gram.magnitudes.size(); ++k)
        EXPECT_NEAR(gram.magnitudes[k], expected.magnitudes[k], 0x1p-40 * expected.magnitudes[k]);
    }
  }
}

}  // namespace
}  // namespace woq::testing
