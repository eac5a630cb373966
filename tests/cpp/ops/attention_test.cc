// SPDX-License-Identifier: Apache-2.0
// Attention on every target, against plain loops in fp64 and the reference.
#include "woq/ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "support/errors.h"
#include "support/matrices.h"
#include "support/random.h"
#include "support/widths.h"

namespace woq::testing {
namespace {

using ops::attention;
using ops::AttentionShape;

struct Attention {
  AttentionShape shape;
  FloatMatrix q, k, v, out;

  // Rows lie `gap` elements apart, which is even, and start where only an element is aligned.
  explicit Attention(const AttentionShape& s, int64_t gap = 0)
      : shape(s),
        q(FloatType::kBf16, s.batch * s.queries, s.heads * s.head_dim, gap, 1),
        k(FloatType::kBf16, s.batch * s.keys, s.kv_heads * s.head_dim, gap, 1),
        v(FloatType::kBf16, s.batch * s.keys, s.kv_heads * s.head_dim, gap, 1),
        out(FloatType::kBf16, s.batch * s.queries, s.heads * s.head_dim, gap, 1) {}

  void fill(Random& random) {
    fill_activations(random, &q);
    fill_activations(random, &k);
    fill_activations(random, &v);
  }
  void run(int threads) { attention(shape, q.view(), k.view(), v.view(), out.view(), threads); }

  void check() const {
    const AttentionShape& s = shape;
    std::vector<double> weights(static_cast<size_t>(s.keys));
    for (int64_t row = 0; row < s.batch * s.queries; ++row) {
      const int64_t query = row % s.queries, first_key = row / s.queries * s.keys;
      const int64_t seen = s.causal ? query + 1 : s.keys;
      for (int64_t head = 0; head < s.heads; ++head) {
        const int64_t col = head * s.head_dim;
        const int64_t kv_col = head / (s.heads / s.kv_heads) * s.head_dim;
        double top = -INFINITY, total = 0, score_error = 0;
        for (int64_t key = 0; key < seen; ++key) {
          double score = 0, magnitude = 0;
          for (int64_t d = 0; d < s.head_dim; ++d) {
            const double product = static_cast<double>(q.get(row, col + d)) *
                                   static_cast<double>(k.get(first_key + key, kv_col + d));
            score += product;
            magnitude += std::fabs(product);
          }
          const auto scale = static_cast<double>(s.scale);
          weights[static_cast<size_t>(key)] = score * scale;
          top = std::max(top, score * scale);
          // The sum of products, and the scale times log2(e), each rounded to fp32.
          const double count = static_cast<double>(s.head_dim) + 8;
          score_error = std::max(score_error, count * 0x1p-24 * magnitude * scale);
        }
        for (int64_t key = 0; key < seen; ++key) {
          double& weight = weights[static_cast<size_t>(key)];
          weight = std::exp(weight - top);
          total += weight;
        }
        // A weight and the result are rounded to bfloat16, 2^-8 of themselves; scores that are off
        // by e change weights and their sum by a factor of up to exp(2 e).
        const double relative = 2.25 * 0x1p-8 + 2 * std::expm1(2 * score_error);
        for (int64_t d = 0; d < s.head_dim; ++d) {
          double sum = 0, magnitude = 0;
          for (int64_t key = 0; key < seen; ++key) {
            const double value = static_cast<double>(v.get(first_key + key, kv_col + d));
            sum += weights[static_cast<size_t>(key)] / total * value;
            magnitude += weights[static_cast<size_t>(key)] / total * std::fabs(value);
          }
          ASSERT_NEAR(static_cast<double>(out.get(row, col + d)), sum, relative * magnitude)
              << "row " << row << ", head " << head << ", dimension " << d;
        }
      }
    }
    EXPECT_EQ(out.changed_outside(0, out.rows(), 0, out.cols()), "");
  }
};

AttentionShape shape_of(int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                        int64_t kv_heads, int64_t head_dim, bool causal) {
  AttentionShape shape;
  shape.batch = batch;
  shape.queries = queries;
  shape.keys = keys;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.scale = 1 / std::sqrt(static_cast<float>(head_dim));
  shape.causal = causal;
  return shape;
}

class Attentions : public OnTarget {};

INSTANTIATE_TEST_SUITE_P(Targets, Attentions, ::testing::ValuesIn(code_targets()),
                         target_test_name);

TEST_P(Attentions, EveryShape) {
  Random random = random_of_test();
  for (const int64_t tokens : {1, 2, 15, 16, 17, 33, 255, 256, 257, 530}) {
    for (const int64_t head_dim : {2, 16, 30, 64, 66}) {
      for (const bool causal : {false, true}) {
        const int64_t keys = causal ? tokens : tokens + 3;
        const int64_t kv_heads = 1 + random.below(2);
        Attention one(shape_of(1 + random.below(2), tokens, keys, kv_heads * (1 + random.below(3)),
                               kv_heads, head_dim, causal),
                      2 * random.below(3));
        one.fill(random);
        one.run(1 + static_cast<int>(random.below(3)));
        one.check();
        if (HasFatalFailure()) FAIL() << tokens << " tokens, head_dim " << head_dim;
      }
    }
  }
}

// The operations and their order are the same on all targets. Scores that differ by a hundred and
// more make some weights subnormal, and 0.
TEST_P(Attentions, GiveTheReferencesBits) {
  Random random = random_of_test();
  for (const int64_t tokens : {7, 300}) {
    for (const int64_t head_dim : {8, 50}) {
      for (const float scale : {0.1f, 1.0f, 4.0f}) {
        Attention one(shape_of(1, tokens, tokens, 4, 2, head_dim, head_dim == 8));
        one.shape.scale = scale;
        one.fill(random);
        Attention reference = one;
        one.run(1);
        const ForcedTarget forced("ref");
        reference.run(1);
        EXPECT_EQ(one.out.bytes(), reference.out.bytes())
            << tokens << " tokens, head_dim " << head_dim << ", scale " << scale;
      }
    }
  }
}

TEST_P(Attentions, AreTheSameForAnyNumberOfThreads) {
  Random random = random_of_test();
  Attention one(shape_of(2, 300, 300, 6, 2, 64, true));
  one.fill(random);
  one.run(1);
  Attention three = one;
  three.run(3);
  EXPECT_EQ(one.out.bytes(), three.out.bytes());
}

TEST(Attention, RefusesWhatDoesNotFit) {
  const auto refused = [](const AttentionShape& shape) {
    Attention one(shape_of(1, 4, 4, 2, 1, 8, false));
    one.shape = shape;
    return error_of<InvalidArgument>([&] { one.run(1); });
  };
  AttentionShape shape = shape_of(1, 4, 4, 2, 1, 8, false);
  shape.heads = 3;
  shape.kv_heads = 2;
  EXPECT_MENTIONS(refused(shape), "heads a multiple of kv_heads");
  EXPECT_MENTIONS(refused(shape_of(1, 0, 4, 2, 1, 8, false)), "must be positive");
  EXPECT_MENTIONS(refused(shape_of(1, 4, 4, 2, 1, 7, false)), "head_dim must be even");
  EXPECT_MENTIONS(refused(shape_of(1, 4, 4, 2, 1, 258, false)), "at most 256");
  EXPECT_MENTIONS(refused(shape_of(1, 4, 5, 2, 1, 8, true)), "as many keys as queries");
  EXPECT_MENTIONS(refused(shape_of(1, 4, 5, 2, 1, 8, false)), "k is [4, 8], expected [5, 8]");
  EXPECT_MENTIONS(refused(shape_of(2, 4, 4, 2, 1, 8, false)), "q is [4, 16], expected [8, 16]");
  Attention odd(shape_of(1, 4, 4, 2, 1, 8, false), 1);
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { odd.run(1); }),
                  "an even number of elements apart");
  FloatMatrix floats(FloatType::kFp32, 4, 16);
  Attention one(shape_of(1, 4, 4, 2, 1, 8, false));
  const std::string message = error_of<InvalidArgument>(
      [&] { attention(one.shape, floats.view(), one.k.view(), one.v.view(), one.out.view(), 1); });
  EXPECT_MENTIONS(message, "q must be bf16, not fp32");
}

}  // namespace
}  // namespace woq::testing
