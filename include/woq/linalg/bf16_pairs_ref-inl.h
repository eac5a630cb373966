// SPDX-License-Identifier: Apache-2.0
// bf16_pairs.h's functions, one element at a time: the scalar reference, for every machine.
namespace woq::WOQ_TARGET_NS {

// Subnormal numbers become zeros of their sign.
inline float without_subnormals(float x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x;
}

inline float multiply_add(uint16_t a, uint16_t b, float sum) {
  return without_subnormals(std::fma(without_subnormals(bf16_to_float(a)),
                                     without_subnormals(bf16_to_float(b)),
                                     without_subnormals(sum)));
}

// VDPBF16PS on one lane: the upper halves of a and b first.
inline float add_pair(float sum, uint32_t a, uint32_t b) {
  sum = multiply_add(static_cast<uint16_t>(a >> 16), static_cast<uint16_t>(b >> 16), sum);
  return multiply_add(static_cast<uint16_t>(a), static_cast<uint16_t>(b), sum);
}

inline void pack_pairs(const uint16_t* x, int64_t rows, int64_t cols, int64_t stride, uint32_t* out,
                       double* magnitudes) {
  for (int64_t r = 0; r < rows; r += 2, out += kPairPanel) {
    for (int64_t c = 0; c < kPairPanel; ++c) {
      const uint16_t lower = c < cols ? x[r * stride + c] : uint16_t{0};
      const uint16_t upper = c < cols && r + 1 < rows ? x[(r + 1) * stride + c] : uint16_t{0};
      out[c] = lower | static_cast<uint32_t>(upper) << 16;
    }
  }
  for (int64_t c = 0; magnitudes != nullptr && c < std::min(cols, kPairPanel); ++c) {
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r)
      sum += static_cast<double>(std::fabs(bf16_to_float(x[r * stride + c])));
    magnitudes[c] += sum;
  }
}

inline void multiply_pairs(int64_t pairs, const uint32_t* a, const uint32_t* b, float* c,
                           int64_t stride) {
  for (int64_t r = 0; r < kPairPanel; ++r) {
    for (int64_t col = 0; col < kPairPanel; ++col) {
      float sum = c[r * stride + col];
      for (int64_t p = 0; p < pairs; ++p)
        sum = add_pair(sum, a[p * kPairPanel + r], b[p * kPairPanel + col]);
      c[r * stride + col] = sum;
    }
  }
}

inline void add_tile(const float* tile, double* const* rows) {
  for (int64_t r = 0; r < kPairPanel; ++r) {
    for (int64_t col = 0; col < kPairPanel; ++col)
      rows[r][col] += static_cast<double>(tile[r * kPairPanel + col]);
  }
}

inline constexpr Bf16Pairs kPairs = {pack_pairs, multiply_pairs, add_tile};

}  // namespace woq::WOQ_TARGET_NS
