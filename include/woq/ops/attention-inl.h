// SPDX-License-Identifier: Apache-2.0
// Attention of 16 queries in a target's region, over the vocabulary.
#if WOQ_VECTOR_BITS == 128
#include "woq/ops/attention_ref-inl.h"
#else
namespace woq::WOQ_TARGET_NS {

using linalg::kPairPanel;

WOQ_INLINE F32 exp2_of(F32 x) {
  const F32 whole = nearest_integer(x), part = subtract(x, whole);
  F32 sum = set_f32(kExp2Terms[0]);
  WOQ_UNROLL for (int i = 1; i < 6; ++i) sum = fused_add(sum, part, set_f32(kExp2Terms[i]));
  return scale_by_power(sum, whole);
}

// Packs the transpose of x [rows, head_dim], rows at most 16, as a panel [head_dim / 2, 16, 2];
// missing rows are zero.
inline void pack_transposed(const uint16_t* x, int64_t rows, int64_t head_dim, int64_t stride,
                            uint32_t* out) {
  const I32 places = multiply_i32(lane_numbers(), set_i32(static_cast<int>(stride / 2)));
  for (int64_t p = 0; p < head_dim / 2; ++p)
    store_i32(out + p * kPairPanel, gather_i32(x + 2 * p, places, rows));
}

inline void pack_keys(const uint16_t* x, int64_t stride, int64_t panel, PackedHead* head) {
  const int64_t row = panel * kPairPanel;
  pack_transposed(x + row * stride, std::min(kPairPanel, head->keys - row), head->head_dim, stride,
                  head->key_panel(panel));
}

inline void attend(const AttentionShape& shape, const PackedHead& head, const uint16_t* q,
                   int64_t q_stride, int64_t first, int64_t rows, uint16_t* out, int64_t out_stride,
                   AttentionScratch* scratch) {
  const auto multiply_pairs = &linalg::pairs::WOQ_TARGET::multiply_pairs;
  const int64_t width = head.value_panels * kPairPanel;
  float* const sums = scratch->out.data();  // [16, width]
  float* const scores = scratch->scores.data();
  std::fill_n(sums, kPairPanel * width, 0.0f);
  pack_transposed(q, rows, shape.head_dim, q_stride, scratch->queries.data());
  const F32 scale = set_f32(shape.scale * kLog2E), masked = set_f32(kMaskedScore);
  const I32 query = add_i32(set_i32(static_cast<int>(first)), lane_numbers());
  F32 top = masked, total = zero_f32();
  const int64_t seen = shape.causal ? std::min(shape.keys, first + rows) : shape.keys;
  const int64_t last = shape.causal ? first : shape.keys - 1;  // key that all queries see
  for (int64_t key = 0; key < seen; key += kAttentionKeys) {
    const int64_t panels = (std::min(kAttentionKeys, seen - key) + kPairPanel - 1) / kPairPanel;
    const int64_t count = panels * kPairPanel, panel = key / kPairPanel;
    std::fill_n(scores, count * kPairPanel, 0.0f);
    for (int64_t p = 0; p < panels; ++p) {
      multiply_pairs(shape.head_dim / 2, head.key_panel(panel + p), scratch->queries.data(),
                     scores + p * kPairPanel * kPairPanel, kPairPanel);
    }
    F32 largest = top;
    for (int64_t i = 0; i < count; ++i) {
      F32 score = multiply(load_f32(scores + i * kPairPanel), scale);
      if (key + i >= shape.keys) {
        score = masked;
      } else if (key + i > last) {
        score = where_greater(set_i32(static_cast<int>(key + i)), query, masked, score);
      }
      store_f32(scores + i * kPairPanel, score);
      largest = maximum(largest, score);
    }
    alignas(64) float factors[kPairPanel];
    const F32 factor = exp2_of(subtract(top, largest));
    store_f32(factors, factor);
    top = largest;
    total = multiply(total, factor);
    for (int64_t r = 0; r < kPairPanel; ++r) {
      for (int64_t d = 0; d < width; d += kPairPanel) {
        float* const at = sums + r * width + d;
        store_f32(at, multiply(load_f32(at), set_f32(factors[r])));
      }
    }
    for (int64_t i = 0; i < count; i += 2) {
      const F32 low = exp2_of(subtract(load_f32(scores + i * kPairPanel), top));
      const F32 high = exp2_of(subtract(load_f32(scores + (i + 1) * kPairPanel), top));
      total = add(total, add(low, high));
      store_i32(scratch->weights.data() + i / 2 * kPairPanel, pair_bf16(low, high));
    }
    for (int64_t d = 0; d < head.value_panels; ++d) {
      multiply_pairs(count / 2, scratch->weights.data(), head.value_panel(d, panel),
                     sums + d * kPairPanel, width);
    }
  }
  alignas(64) float totals[kPairPanel];
  store_f32(totals, total);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < shape.head_dim; d += kPairPanel) {
      narrow_bf16(out + r * out_stride + d,
                  divide(load_f32(sums + r * width + d), set_f32(totals[r])),
                  std::min(kPairPanel, shape.head_dim - d));
    }
  }
}

inline constexpr AttentionCode kAttention = {pack_keys, attend};

}  // namespace woq::WOQ_TARGET_NS
#endif
