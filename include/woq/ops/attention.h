// SPDX-License-Identifier: Apache-2.0
// softmax(scale Q K^T) V for many queries, in bfloat16: blocks of keys, one after the other, with a
// running maximum (FlashAttention, arXiv:2205.14135), so that no row of scores is ever whole.
//
// Every target gives the same bits (bf16_pairs.h), but where numbers are subnormal. Only with
// AVX512-BF16 is it faster than a framework's own attention: has_bf16_products() in
// simd/target.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "woq/core/check.h"
#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/linalg/bf16_pairs.h"
#include "woq/simd/region.h"

namespace woq::ops {

// Of q [batch * queries, heads * head_dim], k and v [batch * keys, kv_heads * head_dim]. Groups of
// heads / kv_heads neighbouring heads share one head of k and v (arXiv:2305.13245).
struct AttentionShape {
  int64_t batch = 1, queries = 0, keys = 0, heads = 1, kv_heads = 1, head_dim = 0;
  float scale = 1;
  bool causal = false;  // query i sees keys 0 to i; needs queries == keys
};

inline constexpr int64_t kMaxHeadDim = 256;

inline constexpr int64_t kAttentionKeys = 256;  // scores that are held at a time, for 16 queries
inline constexpr float kMaskedScore = -1e30f;
inline constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0, to 3e-6 of itself: x is rounded to a whole number, the Taylor series of
// exp(part ln 2) is taken of the rest, which lies within 0.5 of 0, and scaled by the power of two
// of the whole number. The series' terms, from part^5 to part^0.
inline constexpr float kExp2Terms[6] = {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f,
                                        2.40226507e-1f, 6.93147181e-1f, 1.0f};

// Keys and values of one head.
struct PackedHead {
  int64_t keys = 0, head_dim = 0, panels = 0, value_panels = 0;
  std::vector<uint32_t> k;  // [panels of 16 keys][head_dim / 2, 16]
  std::vector<uint32_t> v;  // [panels of 16 dimensions][panels * 8 pairs of keys, 16]

  PackedHead(int64_t key_count, int64_t dim)
      : keys(key_count),
        head_dim(dim),
        panels((keys + linalg::kPairPanel - 1) / linalg::kPairPanel),
        value_panels((head_dim + linalg::kPairPanel - 1) / linalg::kPairPanel),
        k(static_cast<size_t>(panels * linalg::kPairPanel * head_dim / 2)),
        v(static_cast<size_t>(value_panels * panels * kValueBlock)) {}

  uint32_t* key_panel(int64_t panel) {
    return k.data() + panel * linalg::kPairPanel * head_dim / 2;
  }
  const uint32_t* key_panel(int64_t panel) const {
    return k.data() + panel * linalg::kPairPanel * head_dim / 2;
  }
  // From the pair of keys that `panel` starts with.
  const uint32_t* value_panel(int64_t dims, int64_t panel) const {
    return v.data() + (dims * panels + panel) * kValueBlock;
  }

  // Pairs beyond the last key stay zero.
  void pack_values(const linalg::Bf16Pairs& pairs, const uint16_t* x, int64_t stride,
                   int64_t dims) {
    pairs.pack(x + dims * linalg::kPairPanel, keys, head_dim - dims * linalg::kPairPanel, stride,
               v.data() + dims * panels * kValueBlock, nullptr);
  }

 private:
  static constexpr int64_t kValueBlock = linalg::kPairPanel * linalg::kPairPanel / 2;
};

// What a thread needs for 16 queries. Scores and weights are [key, query], so that a query is a
// lane and its maximum and sum need no reduction.
struct AttentionScratch {
  std::vector<uint32_t> queries, weights;
  std::vector<float> scores, out;

  explicit AttentionScratch(int64_t head_dim)
      : queries(static_cast<size_t>(linalg::kPairPanel * head_dim / 2)),
        weights(static_cast<size_t>(kAttentionKeys / 2 * linalg::kPairPanel)),
        scores(static_cast<size_t>(kAttentionKeys * linalg::kPairPanel)),
        out(static_cast<size_t>(linalg::kPairPanel * (head_dim + linalg::kPairPanel))) {}
};

struct AttentionCode {
  // Packs panel `panel` of the keys x.
  void (*pack_keys)(const uint16_t* x, int64_t stride, int64_t panel, PackedHead* head);
  // Queries [first, first + rows), rows at most 16; q and out point to the first one's.
  void (*attend)(const AttentionShape& shape, const PackedHead& head, const uint16_t* q,
                 int64_t q_stride, int64_t first, int64_t rows, uint16_t* out, int64_t out_stride,
                 AttentionScratch* scratch);
};

}  // namespace woq::ops

#define WOQ_REGION ops
#define WOQ_REGION_CODE "woq/ops/attention-inl.h"
#include "woq/simd/for_each_target.h"

namespace woq::ops {

inline const AttentionCode& attention_code() {
#define WOQ_ROW(name, enumerator)        \
  {                                      \
    Target::enumerator, name::kAttention \
  }
  static constexpr simd::Choice<AttentionCode> kChoices[] = {WOQ_CODE_TARGETS(WOQ_ROW)};
#undef WOQ_ROW
  return simd::select(kChoices).code;
}

// out [batch * queries, heads * head_dim]; all matrices bfloat16. The weights of the values are
// rounded to bfloat16; scores and sums are fp32. The same bit for bit for any number of threads.
// Throws InvalidArgument for shapes that do not fit.
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
  const auto at = [dim](const ConstMatrixView& x, int64_t row, int64_t head) {
    return static_cast<const uint16_t*>(x.row(row)) + head * dim;
  };
  const AttentionCode& code = attention_code();
  const linalg::Bf16Pairs& pairs = linalg::bf16_pairs();
  PackedHead head(shape.keys, dim);
  const int64_t panels = (shape.queries + linalg::kPairPanel - 1) / linalg::kPairPanel;
  const int64_t together = shape.heads / shape.kv_heads;
  threads = useful_threads(threads, shape.queries * shape.keys * together, kElementGrain);
  std::vector<AttentionScratch> scratch(static_cast<size_t>(threads), AttentionScratch(dim));
  run_team(threads, [&](const TeamMember& member) {
    for (int64_t item = 0; item < shape.batch * shape.kv_heads; ++item) {
      const int64_t batch = item / shape.kv_heads, kv_head = item % shape.kv_heads;
      const uint16_t* const keys = at(k, batch * shape.keys, kv_head);
      const uint16_t* const values = at(v, batch * shape.keys, kv_head);
      for (int64_t p = member.index; p < head.panels; p += member.size)
        code.pack_keys(keys, k.row_stride, p, &head);
      for (int64_t d = member.index; d < head.value_panels; d += member.size)
        head.pack_values(pairs, values, v.row_stride, d);
      member.barrier();
      // Dealt out in turn: with a causal mask, later queries see more keys.
      for (int64_t i = member.index; i < together * panels; i += member.size) {
        const int64_t first = i / together * linalg::kPairPanel;
        const int64_t query_head = kv_head * together + i % together;
        const int64_t row = batch * shape.queries + first;
        code.attend(shape, head, at(q, row, query_head), q.row_stride, first,
                    std::min(linalg::kPairPanel, shape.queries - first),
                    static_cast<uint16_t*>(out.row(row)) + query_head * dim, out.row_stride,
                    &scratch[static_cast<size_t>(member.index)]);
      }
      member.barrier();  // before keys and values are packed anew
    }
  });
}

}  // namespace woq::ops
