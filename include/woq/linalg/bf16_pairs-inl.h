// SPDX-License-Identifier: Apache-2.0
// bf16_pairs.h's functions in a target's region, over the vocabulary.
#if WOQ_VECTOR_BITS == 128
#include "woq/linalg/bf16_pairs_ref-inl.h"
#else
namespace woq::WOQ_TARGET_NS {

inline void pack_pairs(const uint16_t* x, int64_t rows, int64_t cols, int64_t stride, uint32_t* out,
                       double* magnitudes) {
  const int64_t lanes = std::min(cols, kPairPanel);
  F64 sums = zero_f64();
  for (int64_t r = 0; r < rows; r += 2, out += kPairPanel) {
    const I32 first = load_u16(x + r * stride, lanes);
    const I32 second = r + 1 < rows ? load_u16(x + (r + 1) * stride, lanes) : zero_i32();
    const I32 right = shift_left<16>(second);
    store_i32(out, or_i32(first, right));
    if (magnitudes == nullptr) continue;
    sums = add(sums, to_f64(magnitude(as_f32(shift_left<16>(first)))));
    sums = add(sums, to_f64(magnitude(as_f32(right))));
  }
  if (magnitudes != nullptr) store_f64(magnitudes, add(load_f64(magnitudes), sums));
}

inline void multiply_pairs(int64_t pairs, const uint32_t* a, const uint32_t* b, float* c,
                           int64_t stride) {
  F32 sums[kPairPanel];
  WOQ_UNROLL for (int r = 0; r < kPairPanel; ++r) sums[r] = load_f32(c + r * stride);
  for (int64_t p = 0; p < pairs; ++p, a += kPairPanel, b += kPairPanel) {
    const I32 right = load_i32(b);
    WOQ_UNROLL for (int r = 0; r < kPairPanel; ++r) sums[r] =
        dot_bf16(sums[r], right, set_i32(static_cast<int>(a[r])));
  }
  WOQ_UNROLL for (int r = 0; r < kPairPanel; ++r) store_f32(c + r * stride, sums[r]);
}

inline void add_tile(const float* tile, double* const* rows) {
  for (int r = 0; r < kPairPanel; ++r, tile += kPairPanel)
    store_f64(rows[r], add(load_f64(rows[r]), to_f64(load_f32(tile))));
}

inline constexpr Bf16Pairs kPairs = {pack_pairs, multiply_pairs, add_tile};

}  // namespace woq::WOQ_TARGET_NS
#endif
