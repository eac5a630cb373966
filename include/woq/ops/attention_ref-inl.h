// SPDX-License-Identifier: Apache-2.0
// Attention of 16 queries, one number at a time: the scalar reference, for every machine. The
// operations and their order are those of attention-inl.h.
namespace woq::WOQ_TARGET_NS {

using linalg::kPairPanel;

inline float exp2_of(float x) {
  const float whole = std::nearbyint(x), part = x - whole;
  float sum = kExp2Terms[0];
  for (int i = 1; i < 6; ++i) sum = std::fma(sum, part, kExp2Terms[i]);
  return std::ldexp(sum, static_cast<int>(std::max(whole, -300.0f)));  // 2^-300 is 0 in fp32
}

// x [rows, head_dim], rows at most 16, as a panel [head_dim / 2, 16, 2]; missing rows are zero.
inline void pack_transposed(const uint16_t* x, int64_t rows, int64_t head_dim, int64_t stride,
                            uint32_t* out) {
  for (int64_t p = 0; p < head_dim / 2; ++p) {
    for (int64_t r = 0; r < kPairPanel; ++r) {
      const uint16_t* const pair = x + r * stride + 2 * p;
      out[p * kPairPanel + r] = r < rows ? pair[0] | static_cast<uint32_t>(pair[1]) << 16 : 0;
    }
  }
}

inline void pack_keys(const uint16_t* x, int64_t stride, int64_t panel, PackedHead* head) {
  const int64_t row = panel * kPairPanel;
  pack_transposed(x + row * stride, std::min(kPairPanel, head->keys - row), head->head_dim, stride,
                  head->key_panel(panel));
}

// bfloat16 as AVX512-BF16 rounds to it: subnormals become zeros.
inline uint16_t narrow_bf16(float x) {
  return float_to_bf16(linalg::pairs::WOQ_TARGET::without_subnormals(x));
}

inline void attend(const AttentionShape& shape, const PackedHead& head, const uint16_t* q,
                   int64_t q_stride, int64_t first, int64_t rows, uint16_t* out, int64_t out_stride,
                   AttentionScratch* scratch) {
  const auto multiply_pairs = &linalg::pairs::WOQ_TARGET::multiply_pairs;
  const int64_t width = head.value_panels * kPairPanel;
  float* const sums = scratch->out.data();       // [16, width]
  float* const scores = scratch->scores.data();  // [keys, 16]
  std::fill_n(sums, kPairPanel * width, 0.0f);
  pack_transposed(q, rows, shape.head_dim, q_stride, scratch->queries.data());
  const float scale = shape.scale * kLog2E;
  float top[kPairPanel], total[kPairPanel];
  std::fill_n(top, kPairPanel, kMaskedScore);
  std::fill_n(total, kPairPanel, 0.0f);
  const int64_t seen = shape.causal ? std::min(shape.keys, first + rows) : shape.keys;
  for (int64_t key = 0; key < seen; key += kAttentionKeys) {
    const int64_t panels = (std::min(kAttentionKeys, seen - key) + kPairPanel - 1) / kPairPanel;
    const int64_t count = panels * kPairPanel, panel = key / kPairPanel;
    std::fill_n(scores, count * kPairPanel, 0.0f);
    for (int64_t p = 0; p < panels; ++p) {
      multiply_pairs(shape.head_dim / 2, head.key_panel(panel + p), scratch->queries.data(),
                     scores + p * kPairPanel * kPairPanel, kPairPanel);
    }
    for (int64_t r = 0; r < kPairPanel; ++r) {
      float largest = top[r];
      for (int64_t i = 0; i < count; ++i) {
        float& score = scores[i * kPairPanel + r];
        const bool sees = key + i < shape.keys && (!shape.causal || key + i <= first + r);
        score = sees ? score * scale : kMaskedScore;
        largest = largest > score ? largest : score;  // score, where it is NaN
      }
      const float factor = exp2_of(top[r] - largest);
      top[r] = largest;
      total[r] *= factor;
      for (int64_t d = 0; d < width; ++d) sums[r * width + d] *= factor;
      for (int64_t i = 0; i < count; i += 2) {
        const float low = exp2_of(scores[i * kPairPanel + r] - largest);
        const float high = exp2_of(scores[(i + 1) * kPairPanel + r] - largest);
        total[r] += low + high;
        scratch->weights[static_cast<size_t>(i / 2 * kPairPanel + r)] =
            narrow_bf16(low) | static_cast<uint32_t>(narrow_bf16(high)) << 16;
      }
    }
    for (int64_t d = 0; d < head.value_panels; ++d) {
      multiply_pairs(count / 2, scratch->weights.data(), head.value_panel(d, panel),
                     sums + d * kPairPanel, width);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < shape.head_dim; ++d)
      out[r * out_stride + d] = narrow_bf16(sums[r * width + d] / total[r]);
  }
}

inline constexpr AttentionCode kAttention = {pack_keys, attend};

}  // namespace woq::WOQ_TARGET_NS
