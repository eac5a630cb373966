// SPDX-License-Identifier: Apache-2.0
// How well rounded values fit, in a target's region. Vectors are the compiler's own, because the
// reference runs on any CPU.
namespace woq::WOQ_TARGET_NS {

typedef float FitFloats __attribute__((vector_size(WOQ_VECTOR_BITS / 8)));
inline constexpr int kFitLanes = WOQ_VECTOR_BITS / 32;

inline FitSums add_lanes(const FitFloats& product, const FitFloats& square) {
  FitSums sums;
  for (int i = 0; i < kFitLanes; ++i) {
    sums.product += product[i];
    sums.square += square[i];
  }
  return sums;
}

// Values are the integers from `low` to `high`.
inline FitSums fit_integers(int64_t n, const float* x, const float* weights, float inverse,
                            float low, float high) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23, as in round_half_even()
  const FitFloats lows = FitFloats{} + low, highs = FitFloats{} + high;
  FitFloats product{}, square{};
  for (int64_t i = 0; i < n; i += kFitLanes) {
    FitFloats in, weight;
    __builtin_memcpy(&in, x + i, sizeof in);
    __builtin_memcpy(&weight, weights + i, sizeof weight);
    FitFloats value = in * inverse;
    value = value < lows ? lows : value;
    value = value > highs ? highs : value;
    value = (value + kMagic) - kMagic;
    const FitFloats weighted = weight * value;
    product += weighted * in;
    square += weighted * value;
  }
  return add_lanes(product, square);
}

// Values are values[0 .. 15], ascending; thresholds[r] lies between values[r] and values[r + 1].
inline FitSums fit_table(int64_t n, const float* x, const float* weights, float inverse,
                         const float* values, const float* thresholds) {
  FitFloats product{}, square{};
  for (int64_t i = 0; i < n; i += kFitLanes) {
    FitFloats in, weight;
    __builtin_memcpy(&in, x + i, sizeof in);
    __builtin_memcpy(&weight, weights + i, sizeof weight);
    const FitFloats scaled = in * inverse;
    FitFloats value = FitFloats{} + values[0];
    WOQ_UNROLL for (int r = 0; r < 15; ++r) value =
        scaled > FitFloats{} + thresholds[r] ? FitFloats{} + values[r + 1] : value;
    const FitFloats weighted = weight * value;
    product += weighted * in;
    square += weighted * value;
  }
  return add_lanes(product, square);
}

}  // namespace woq::WOQ_TARGET_NS
