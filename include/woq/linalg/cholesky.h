// SPDX-License-Identifier: Apache-2.0
// The Cholesky factor that GPTQ needs, and solving with it. GPTQ's paper takes the upper factor U
// of the inverse, H^-1 = U^T U. U is the inverse of the upper R with H = R R^T, so factoring from
// the last row to the first gives all that is needed for a third of the operations and none of the
// error of inverting H.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "woq/linalg/gemm.h"

namespace woq::linalg {

namespace detail {

inline constexpr int64_t kCholeskyBlock = 128;  // a multiple of kRankOneStep

// One diagonal block of R, transposed, so that its columns are contiguous.
template <class T>
struct TriangularBlock {
  int64_t size = 0;
  std::vector<T> values = std::vector<T>(kCholeskyBlock * kCholeskyBlock);  // lower

  T* row(int64_t i) { return values.data() + i * kCholeskyBlock; }

  // From the upper triangle of a [size, size].
  void load(const T* a, int64_t stride, int64_t n) {
    size = n;
    std::fill(values.begin(), values.end(), T(0));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) row(j)[i] = a[i * stride + j];
    }
  }

  void store(T* a, int64_t stride) {
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = i; j < size; ++j) a[i * stride + j] = row(j)[i];
    }
  }

  // In place; the index of a pivot that is not above `least`, or -1.
  int64_t factor(const TileKernel<T>& kernel, T least) {
    std::vector<T> factors(static_cast<size_t>(size));
    for (int64_t j = size - 1; j >= 0; --j) {
      T* const column = row(j);
      if (!(column[j] > least) || !std::isfinite(column[j])) return j;
      const T pivot = std::sqrt(column[j]);
      column[j] = pivot;
      for (int64_t i = 0; i < j; ++i) {
        column[i] /= pivot;
        factors[static_cast<size_t>(i)] = -column[i];
      }
      // Rounded up: what it changes beside the triangle is not read.
      const int64_t width = (j + kRankOneStep - 1) / kRankOneStep * kRankOneStep;
      kernel.rank_one(width, j, factors.data(), column, row(0), kCholeskyBlock);
    }
    return -1;
  }

  // The inverse of the lower triangle, [size, kCholeskyBlock].
  std::vector<T> inverse(const TileKernel<T>& kernel) {
    std::vector<T> result(kCholeskyBlock * kCholeskyBlock);
    for (int64_t j = 0; j < size; ++j) {
      T* const out = result.data() + j * kCholeskyBlock;
      out[j] = T(1);
      for (int64_t i = 0; i < j; ++i) {
        const T factor = -row(j)[i];
        const int64_t width = (i + kRankOneStep) / kRankOneStep * kRankOneStep;
        kernel.rank_one(width, 1, &factor, result.data() + i * kCholeskyBlock, out, kCholeskyBlock);
      }
      for (int64_t i = 0; i <= j; ++i) out[i] /= row(j)[j];
    }
    return result;
  }
};

// Copies rows [0, rows) x columns [col, col + cols) and leaves zeros in their place.
template <class T>
std::vector<T> take_columns(T* a, int64_t stride, int64_t rows, int64_t col, int64_t cols) {
  std::vector<T> taken(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows; ++i) {
    T* const from = a + i * stride + col;
    std::copy_n(from, cols, taken.data() + i * cols);
    std::fill_n(from, cols, T(0));
  }
  return taken;
}

}  // namespace detail

// a [n, n], symmetric, its upper triangle given, becomes the upper R with A = R R^T; what is below
// the diagonal is not touched. Returns -1, or the row of a pivot that is not above `least`: A is
// not positive definite then, and its contents are lost.
template <class T>
int64_t factor_upper(T* a, int64_t n, int64_t stride, T least, int threads) {
  using detail::kCholeskyBlock;
  const TileKernel<T> kernel = tile_kernel<T>();
  detail::TriangularBlock<T> block;
  for (int64_t end = n; end > 0;) {
    const int64_t begin = std::max<int64_t>(0, end - kCholeskyBlock), width = end - begin;
    block.load(a + begin * stride + begin, stride, width);
    const int64_t bad = block.factor(kernel, least);
    if (bad >= 0) return begin + bad;
    block.store(a + begin * stride + begin, stride);
    if (begin > 0) {
      const std::vector<T> inverse = block.inverse(kernel);
      const std::vector<T> rest = detail::take_columns(a, stride, begin, begin, width);
      const StridedMatrix<T> column{a + begin, stride, 1};
      multiply_add(begin, width, width, T(1), StridedMatrix<T>{rest.data(), width, 1},
                   StridedMatrix<T>{inverse.data(), kCholeskyBlock, 1}, a + begin, stride, threads);
      multiply_add(begin, begin, width, T(-1), column, column.transposed(), a, stride, threads,
                   Part::kUpper);
    }
    end = begin;
  }
  return -1;
}

// b [rows, n] becomes the X with X R^T = B, for the upper r [n, n].
template <class T>
void solve_transposed(const T* r, int64_t n, int64_t r_stride, T* b, int64_t rows, int64_t stride,
                      int threads) {
  using detail::kCholeskyBlock;
  const TileKernel<T> kernel = tile_kernel<T>();
  detail::TriangularBlock<T> block;
  for (int64_t end = n; end > 0;) {
    const int64_t begin = std::max<int64_t>(0, end - kCholeskyBlock), width = end - begin;
    block.load(r + begin * r_stride + begin, r_stride, width);
    const std::vector<T> inverse = block.inverse(kernel);
    // B's columns of this block, less what the columns behind it, solved already, account for.
    multiply_add(rows, width, n - end, T(-1), StridedMatrix<T>{b + end, stride, 1},
                 StridedMatrix<T>{r + begin * r_stride + end, r_stride, 1}.transposed(), b + begin,
                 stride, threads);
    const std::vector<T> rest = detail::take_columns(b, stride, rows, begin, width);
    multiply_add(rows, width, width, T(1), StridedMatrix<T>{rest.data(), width, 1},
                 StridedMatrix<T>{inverse.data(), kCholeskyBlock, 1}, b + begin, stride, threads);
    end = begin;
  }
}

}  // namespace woq::linalg
