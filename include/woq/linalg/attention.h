// SPDX-License-Identifier: Apache-2.0
// softmax(scale Q K^T) V for many queries, in bfloat16: blocks of keys, one after the other, with a
// running maximum (FlashAttention, arXiv:2205.14135), so that no row of scores is ever whole. Only
// where has_pairs(): elsewhere the framework's own attention is as fast.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "woq/core/check.h"
#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/linalg/pairs.h"

namespace woq {

// q is [batch * queries, heads * head_dim], k and v are [batch * keys, kv_heads * head_dim]. Each
// (heads / kv_heads) neighbouring heads of q share one head of k and v (arXiv:2305.13245).
struct AttentionShape {
  int64_t batch = 1, queries = 0, keys = 0, heads = 1, kv_heads = 1, head_dim = 0;
  float scale = 1;
  bool causal = false;  // query i sees keys 0 to i; needs queries == keys
};

inline constexpr int64_t kMaxHeadDim = 256;

#if WOQ_X86

// GCC's own headers leave the unused source of a masked operation uninitialized.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace avx512_bf16 {

inline constexpr int64_t kAttentionKeys = 256;  // scores that are held at a time, for 16 queries
inline constexpr float kMaskedScore = -1e30f;

// 2^x for x <= 0, to 3e-6 of itself; 0 where it underflows.
WOQ_PAIRS_TARGET inline __m512 exp2_of(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(x, whole);  // within 0.5 of 0
  // The Taylor series of exp(x ln 2).
  __m512 sum = _mm512_set1_ps(1.33335581e-3f);
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(9.61812911e-3f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.55041087e-2f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(2.40226507e-1f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(6.93147181e-1f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(sum, whole);
}

// Lanes of 32 bits whose lower half is low's elements in bfloat16, the upper half high's.
WOQ_PAIRS_TARGET inline __m512i pair_of(__m512 low, __m512 high) {
  const __m256bh first = _mm512_cvtneps_pbh(low), second = _mm512_cvtneps_pbh(high);
  __m256i lower, upper;
  __builtin_memcpy(&lower, &first, sizeof lower);
  __builtin_memcpy(&upper, &second, sizeof upper);
  return _mm512_or_si512(_mm512_cvtepu16_epi32(lower),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}

// Packs the transpose of x [rows, head_dim], rows at most 16, as a panel [head_dim / 2, 16, 2];
// missing rows are zero.
WOQ_PAIRS_TARGET inline void pack_transposed(const uint16_t* x, int64_t rows, int64_t head_dim,
                                             int64_t stride, uint32_t* out) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const auto there = static_cast<__mmask16>((1u << rows) - 1);
  const __m512i places = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(stride / 2)));
  for (int64_t p = 0; p < head_dim / 2; ++p) {
    const __m512i pair =
        _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, places, x + 2 * p, 4);
    _mm512_storeu_si512(out + p * kPairPanel, pair);
  }
}

// Keys and values of one head.
struct PackedHead {
  int64_t keys = 0, head_dim = 0, panels = 0, value_panels = 0;
  std::vector<uint32_t> k;  // [panels of 16 keys][head_dim / 2, 16]
  std::vector<uint32_t> v;  // [panels of 16 dimensions][panels * 8 pairs of keys, 16]

  PackedHead(int64_t key_count, int64_t dim)
      : keys(key_count),
        head_dim(dim),
        panels((keys + kPairPanel - 1) / kPairPanel),
        value_panels((head_dim + kPairPanel - 1) / kPairPanel),
        k(static_cast<size_t>(panels * kPairPanel * head_dim / 2)),
        v(static_cast<size_t>(value_panels * panels * kPairPanel * kPairPanel / 2)) {}

  const uint32_t* key_panel(int64_t panel) const {
    return k.data() + panel * kPairPanel * head_dim / 2;
  }
  // From the pair of keys that `panel` starts with.
  const uint32_t* value_panel(int64_t dims, int64_t panel) const {
    return v.data() + (dims * panels + panel) * kPairPanel * kPairPanel / 2;
  }

  WOQ_PAIRS_TARGET void pack_keys(const uint16_t* x, int64_t stride, int64_t panel) {
    const int64_t row = panel * kPairPanel;
    pack_transposed(x + row * stride, std::min(kPairPanel, keys - row), head_dim, stride,
                    k.data() + panel * kPairPanel * head_dim / 2);
  }
  // Pairs beyond the last key stay zero.
  WOQ_PAIRS_TARGET void pack_values(const uint16_t* x, int64_t stride, int64_t dims) {
    pack_pairs(x + dims * kPairPanel, keys, head_dim - dims * kPairPanel, stride,
               v.data() + dims * panels * kPairPanel * kPairPanel / 2, nullptr);
  }
};

// What a thread needs for 16 queries. Scores and weights are [key, query], so that a query is a
// lane and its maximum and sum need no reduction.
struct AttentionScratch {
  std::vector<uint32_t> queries, weights;
  std::vector<float> scores, out;

  explicit AttentionScratch(int64_t head_dim)
      : queries(static_cast<size_t>(kPairPanel * head_dim / 2)),
        weights(static_cast<size_t>(kAttentionKeys / 2 * kPairPanel)),
        scores(static_cast<size_t>(kAttentionKeys * kPairPanel)),
        out(static_cast<size_t>(kPairPanel * (head_dim + kPairPanel))) {}
};

// Queries [first, first + rows), rows at most 16; q and out point to the first one's.
WOQ_PAIRS_TARGET inline void attend(const AttentionShape& shape, const PackedHead& head,
                                    const uint16_t* q, int64_t q_stride, int64_t first,
                                    int64_t rows, uint16_t* out, int64_t out_stride,
                                    AttentionScratch* scratch) {
  constexpr float kLog2E = 1.44269504f;
  const int64_t width = head.value_panels * kPairPanel;
  float* const sums = scratch->out.data();  // [16, width]
  float* const scores = scratch->scores.data();
  std::fill_n(sums, kPairPanel * width, 0.0f);
  pack_transposed(q, rows, shape.head_dim, q_stride, scratch->queries.data());
  const __m512 scale = _mm512_set1_ps(shape.scale * kLog2E);
  const __m512i query =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                       _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  __m512 top = _mm512_set1_ps(kMaskedScore), total = _mm512_setzero_ps();
  const int64_t seen = shape.causal ? std::min(shape.keys, first + rows) : shape.keys;
  for (int64_t key = 0; key < seen; key += kAttentionKeys) {
    const int64_t panels = (std::min(kAttentionKeys, seen - key) + kPairPanel - 1) / kPairPanel;
    const int64_t count = panels * kPairPanel, panel = key / kPairPanel;
    std::fill_n(scores, count * kPairPanel, 0.0f);
    for (int64_t p = 0; p < panels; ++p) {
      multiply_pairs(shape.head_dim / 2, head.key_panel(panel + p), scratch->queries.data(),
                     scores + p * kPairPanel * kPairPanel, kPairPanel);
    }
    __m512 largest = top;
    for (int64_t i = 0; i < count; ++i) {
      __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + i * kPairPanel), scale);
      const int64_t last = shape.causal ? first : shape.keys - 1;  // key that all queries see
      if (key + i > last) {
        const __m512i at = _mm512_set1_epi32(static_cast<int>(key + i));
        const __mmask16 masked =
            key + i >= shape.keys ? __mmask16{0xffff} : _mm512_cmpgt_epi32_mask(at, query);
        score = _mm512_mask_mov_ps(score, masked, _mm512_set1_ps(kMaskedScore));
      }
      _mm512_storeu_ps(scores + i * kPairPanel, score);
      largest = _mm512_max_ps(largest, score);
    }
    alignas(64) float factors[kPairPanel];
    const __m512 factor = exp2_of(_mm512_sub_ps(top, largest));
    _mm512_store_ps(factors, factor);
    top = largest;
    total = _mm512_mul_ps(total, factor);
    for (int64_t r = 0; r < kPairPanel; ++r) {
      for (int64_t d = 0; d < width; d += kPairPanel) {
        float* const at = sums + r * width + d;
        _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), _mm512_set1_ps(factors[r])));
      }
    }
    for (int64_t i = 0; i < count; i += 2) {
      const __m512 low = exp2_of(_mm512_sub_ps(_mm512_loadu_ps(scores + i * kPairPanel), top));
      const __m512 high =
          exp2_of(_mm512_sub_ps(_mm512_loadu_ps(scores + (i + 1) * kPairPanel), top));
      total = _mm512_add_ps(total, _mm512_add_ps(low, high));
      _mm512_storeu_si512(scratch->weights.data() + i / 2 * kPairPanel, pair_of(low, high));
    }
    for (int64_t d = 0; d < head.value_panels; ++d) {
      multiply_pairs(count / 2, scratch->weights.data(), head.value_panel(d, panel),
                     sums + d * kPairPanel, width);
    }
  }
  alignas(64) float totals[kPairPanel];
  _mm512_store_ps(totals, total);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < shape.head_dim; d += kPairPanel) {
      const int64_t cols = std::min(kPairPanel, shape.head_dim - d);
      const __m512 sum = _mm512_loadu_ps(sums + r * width + d);
      const __m256bh value = _mm512_cvtneps_pbh(_mm512_div_ps(sum, _mm512_set1_ps(totals[r])));
      __m256i bits;
      __builtin_memcpy(&bits, &value, sizeof bits);
      _mm256_mask_storeu_epi16(out + r * out_stride + d, static_cast<__mmask16>((1u << cols) - 1),
                               bits);
    }
  }
}

}  // namespace avx512_bf16

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

// out [batch * queries, heads * head_dim]; all matrices bfloat16. The weights of the values are
// rounded to bfloat16; scores and sums are fp32. The same bit for bit for any number of threads.
// Throws InvalidArgument for shapes that do not fit, Unsupported where has_pairs() is false.
inline void attention(const AttentionShape& shape, const ConstMatrixView& q,
                      const ConstMatrixView& k, const ConstMatrixView& v, const MatrixView& out,
                      int threads = 0) {
  const int64_t dim = shape.head_dim;
  if (shape.batch < 1 || shape.queries < 1 || shape.keys < 1 || shape.kv_heads < 1 ||
      shape.heads < 1 || shape.heads % shape.kv_heads != 0) {
    fail("attention of ", shape.batch, " x ", shape.queries, " queries, ", shape.keys, " keys, ",
         shape.heads, " heads and ", shape.kv_heads,
         " of keys and values: all must be positive, and heads a multiple of kv_heads");
  }
  if (dim < 2 || dim > kMaxHeadDim || dim % 2 != 0)
    fail("attention: head_dim must be even and at most ", kMaxHeadDim, ", got ", dim);
  if (shape.causal && shape.queries != shape.keys)
    fail("causal attention needs as many keys as queries, got ", shape.keys, " and ",
         shape.queries);
  const auto check = [&](const ConstMatrixView& x, const char* name, int64_t rows, int64_t heads) {
    if (x.type != FloatType::kBf16)
      fail("attention: ", name, " must be bf16, not ", name_of(x.type));
    if (x.rows != shape.batch * rows || x.cols != heads * dim) {
      fail("attention: ", name, " is [", x.rows, ", ", x.cols, "], expected [", shape.batch * rows,
           ", ", heads * dim, "]");
    }
    if (x.row_stride % 2 != 0)
      fail("attention: rows of ", name, " must be an even number of elements apart");
  };
  check(q, "q", shape.queries, shape.heads);
  check(k, "k", shape.keys, shape.kv_heads);
  check(v, "v", shape.keys, shape.kv_heads);
  check(out, "the output", shape.queries, shape.heads);
  if (!has_pairs()) fail<Unsupported>("attention in bf16 needs AVX512-BF16");
#if WOQ_X86
  const auto at = [dim](const ConstMatrixView& x, int64_t row, int64_t head) {
    return static_cast<const uint16_t*>(x.row(row)) + head * dim;
  };
  avx512_bf16::PackedHead head(shape.keys, dim);
  const int64_t panels = (shape.queries + kPairPanel - 1) / kPairPanel;
  const int64_t together = shape.heads / shape.kv_heads;
  threads = useful_threads(threads, shape.queries * shape.keys * together, kElementGrain);
  std::vector<avx512_bf16::AttentionScratch> scratch(static_cast<size_t>(threads),
                                                     avx512_bf16::AttentionScratch(dim));
  run_team(threads, [&](const TeamMember& member) {
    for (int64_t item = 0; item < shape.batch * shape.kv_heads; ++item) {
      const int64_t batch = item / shape.kv_heads, kv_head = item % shape.kv_heads;
      const uint16_t* const keys = at(k, batch * shape.keys, kv_head);
      const uint16_t* const values = at(v, batch * shape.keys, kv_head);
      for (int64_t p = member.index; p < head.panels; p += member.size)
        head.pack_keys(keys, k.row_stride, p);
      for (int64_t d = member.index; d < head.value_panels; d += member.size)
        head.pack_values(values, v.row_stride, d);
      member.barrier();
      // Dealt out in turn: with a causal mask, later queries see more keys.
      for (int64_t i = member.index; i < together * panels; i += member.size) {
        const int64_t first = i / together * kPairPanel;
        const int64_t query_head = kv_head * together + i % together;
        const int64_t row = batch * shape.queries + first;
        avx512_bf16::attend(shape, head, at(q, row, query_head), q.row_stride, first,
                            std::min(kPairPanel, shape.queries - first),
                            static_cast<uint16_t*>(out.row(row)) + query_head * dim, out.row_stride,
                            &scratch[static_cast<size_t>(member.index)]);
      }
      member.barrier();  // before keys and values are packed anew
    }
  });
#else
  static_cast<void>(threads);
#endif
}

}  // namespace woq
