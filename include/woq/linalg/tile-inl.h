// SPDX-License-Identifier: Apache-2.0
// No include guard: the two inner loops of dense linear algebra for one register width. tile.h
// includes this once for each; the attribute, not a -m flag, enables the instructions, so that none
// leaks into code that other widths share.
//   WOQ_TILE_NS      namespace
//   WOQ_TILE_TARGET  attribute of the functions
//   WOQ_TILE_BYTES   bytes of a register
//   WOQ_TILE_ROWS    rows of a tile of sums; its columns are two registers
namespace woq::WOQ_TILE_NS {

// c [kRows, kCols] = the sum over k < depth of a[k, :]^T b[k, :], both packed.
template <class T>
WOQ_TILE_TARGET inline void multiply_tile(int64_t depth, const T* a, const T* b, T* c) {
  constexpr int kRows = WOQ_TILE_ROWS, kLanes = WOQ_TILE_BYTES / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(WOQ_TILE_BYTES)));
  V sums[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V left, right;
    __builtin_memcpy(&left, b, sizeof left);
    __builtin_memcpy(&right, b + kLanes, sizeof right);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] += a[r] * left;
      sums[r][1] += a[r] * right;
    }
    a += kRows;
    b += 2 * kLanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) __builtin_memcpy(c + r * 2 * kLanes, &sums[r], sizeof sums[r]);
}

// y[r, j] += a[r] x[j] for j < n (in whole registers) and r < rows; row stride of y:
// stride.
template <class T>
WOQ_TILE_TARGET inline void rank_one(int64_t n, int64_t rows, const T* a, const T* x, T* y,
                                     int64_t stride) {
  constexpr int kLanes = WOQ_TILE_BYTES / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(WOQ_TILE_BYTES)));
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

}  // namespace woq::WOQ_TILE_NS

#undef WOQ_TILE_NS
#undef WOQ_TILE_TARGET
#undef WOQ_TILE_BYTES
#undef WOQ_TILE_ROWS
