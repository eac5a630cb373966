// SPDX-License-Identifier: Apache-2.0
// The two inner loops of dense linear algebra, in a target's region. Vectors are the compiler's
// own, because floats and doubles share the code and the reference runs on any CPU.
namespace woq::WOQ_TARGET_NS {

// A tile of sums is kSumRows rows x two registers. Registers: rows x 2 sums, two of b, and one of a
// where it can't be an operand from memory. 12 x 2 of 32, 6 x 2 of 16; the baseline has 16 too but
// no fused instruction, which takes one more.
inline constexpr int kBytes = WOQ_VECTOR_BITS / 8;
inline constexpr int kSumRows = kBytes == 64 ? 12 : kBytes == 32 ? 6 : 4;

// c [kRows, kCols] = the sum over k < depth of a[k, :]^T b[k, :], both packed.
template <class T>
inline void multiply_tile(int64_t depth, const T* a, const T* b, T* c) {
  constexpr int kRows = kSumRows, kLanes = kBytes / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(kBytes)));
  V sums[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V left, right;
    __builtin_memcpy(&left, b, sizeof left);
    __builtin_memcpy(&right, b + kLanes, sizeof right);
    WOQ_UNROLL for (int r = 0; r < kRows; ++r) {
      sums[r][0] += a[r] * left;
      sums[r][1] += a[r] * right;
    }
    a += kRows;
    b += 2 * kLanes;
  }
  WOQ_UNROLL for (int r = 0; r < kRows; ++r)
      __builtin_memcpy(c + r * 2 * kLanes, &sums[r], sizeof sums[r]);
}

// y[r, j] += a[r] x[j] for j < n (in whole registers) and r < rows; row stride of y:
// stride.
template <class T>
inline void rank_one(int64_t n, int64_t rows, const T* a, const T* x, T* y, int64_t stride) {
  constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(kBytes)));
  for (int64_t r = 0; r < rows; ++r) {
    const T factor = a[r];
    T* const out = y + r * stride;
    for (int64_t j = 0; j < n; j += kLanes) {
      V in, sum;
      __builtin_memcpy(&in, x + j, sizeof in);
      __builtin_memcpy(&sum, out + j, sizeof sum);
      sum += factor * in;
      __builtin_memcpy(out + j, &sum, sizeof sum);
    }
  }
}

template <class T>
constexpr TileKernel<T> tile() {
  return {kSumRows, 2 * kBytes / static_cast<int>(sizeof(T)), multiply_tile<T>, rank_one<T>};
}

}  // namespace woq::WOQ_TARGET_NS
