// SPDX-License-Identifier: Apache-2.0
// Products of dense matrices for the quantizers: C += alpha A B. Every element of C is summed in
// the same order whatever the number of threads and the shape of C, so results are the same bit for
// bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "woq/core/parallel.h"
#include "woq/linalg/tile.h"
#include "woq/simd/transpose.h"

namespace woq::linalg {

// A matrix read by strides, so that a transpose is the same thing with its strides exchanged.
template <class T>
struct StridedMatrix {
  const T* data = nullptr;
  int64_t row_stride = 0, col_stride = 1;

  const T* at(int64_t row, int64_t col) const { return data + row * row_stride + col * col_stride; }
  StridedMatrix transposed() const { return {data, col_stride, row_stride}; }
};

// Which elements of C are wanted; tiles that hold none are left out, others are computed whole.
enum class Part : uint8_t { kAll, kLower, kUpper };

namespace detail {

// Elements of the sum that are packed at once: a tile's rows x depth of A (12 KiB of fp32) stay in
// the first-level cache. Sums of one such block are in type T; blocks are added up in C's type.
inline constexpr int64_t kGemmDepth = 256;
// Rows of A that a thread packs at once: with the depth, 96 KiB of fp32; a multiple of every
// tile's rows, and small enough to deal a triangle out evenly.
inline constexpr int64_t kGemmRows = 96;

// Packs a [rows, depth] slice as panels of `tile` rows, each [depth, tile]; missing rows are zero.
template <class T>
void pack_panels(const StridedMatrix<T>& a, int64_t row, int64_t rows, int64_t first, int64_t depth,
                 int64_t tile, T* out) {
  for (int64_t p = 0; p < rows; p += tile, out += depth * tile) {
    const int64_t count = std::min(tile, rows - p);
    if (count < tile) std::fill_n(out, depth * tile, T(0));
    if (a.row_stride == 1) {
      for (int64_t k = 0; k < depth; ++k)
        std::copy_n(a.at(row + p, first + k), count, out + k * tile);
    } else {
      int64_t r = 0;
      if constexpr (std::is_same_v<T, float>) {
        for (; a.col_stride == 1 && r + 4 <= count; r += 4) {
          const T* const from = a.at(row + p + r, first);
          for (int64_t k = simd::transpose_four(from, a.row_stride, depth, tile, out + r);
               k < depth; ++k) {
            for (int64_t i = 0; i < 4; ++i) out[k * tile + r + i] = from[i * a.row_stride + k];
          }
        }
      }
      for (; r < count; ++r) {
        const T* const from = a.at(row + p + r, first);
        for (int64_t k = 0; k < depth; ++k) out[k * tile + r] = from[k * a.col_stride];
      }
    }
  }
}

inline bool wants(Part part, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  if (part == Part::kLower) return col <= row + rows - 1;
  if (part == Part::kUpper) return row <= col + cols - 1;
  return true;
}

}  // namespace detail

// C [m, n] += alpha A [m, k] B [k, n]. row_of(i) points to row i of C, whose element type may be
// wider than T; with kLower (kUpper) elements above (below) the diagonal are left alone.
template <class T, class RowOf>
void multiply_add(int64_t m, int64_t n, int64_t k, T alpha, const StridedMatrix<T>& a,
                  const StridedMatrix<T>& b, Part part, const RowOf& row_of, int threads) {
  using detail::kGemmDepth;
  using detail::kGemmRows;
  if (m < 1 || n < 1 || k < 1) return;
  const TileKernel<T> kernel = tile_kernel<T>();
  const int64_t tile_rows = kernel.rows, tile_cols = kernel.cols;
  const int64_t panels = (n + tile_cols - 1) / tile_cols, blocks = (m + kGemmRows - 1) / kGemmRows;
  std::vector<T> packed_b(static_cast<size_t>(panels * tile_cols * std::min(k, kGemmDepth)));
  constexpr int64_t kGrain = int64_t{1} << 18;  // multiplications that are worth a thread
  threads = static_cast<int>(std::min<int64_t>(useful_threads(threads, m * n * k, kGrain), blocks));
  // Allocated here, because a body with barriers must not throw.
  const int64_t slice = kGemmRows * std::min(k, kGemmDepth);
  std::vector<T> packed_rows(static_cast<size_t>(slice * threads));
  run_team(threads, [&](const TeamMember& member) {
    T* const packed_a = packed_rows.data() + member.index * slice;
    alignas(64) T sums[kMaxTileRows * 128 / sizeof(T)];
    for (int64_t first = 0; first < k; first += kGemmDepth) {
      const int64_t depth = std::min(kGemmDepth, k - first);
      int64_t begin = 0, end = 0;
      member.share(panels, 1, &begin, &end);
      if (begin < end) {
        detail::pack_panels(b.transposed(), begin * tile_cols,
                            std::min(n, end * tile_cols) - begin * tile_cols, first, depth,
                            tile_cols, packed_b.data() + begin * tile_cols * depth);
      }
      member.barrier();
      // Blocks of rows are dealt out in turn: the rows of a triangle differ in length.
      for (int64_t block = member.index; block < blocks; block += member.size) {
        const int64_t row = block * kGemmRows, rows = std::min(kGemmRows, m - row);
        detail::pack_panels(a, row, rows, first, depth, tile_rows, packed_a);
        for (int64_t col = 0; col < n; col += tile_cols) {
          const int64_t cols = std::min(tile_cols, n - col);
          if (!detail::wants(part, row, rows, col, cols)) continue;
          for (int64_t r = 0; r < rows; r += tile_rows) {
            const int64_t count = std::min(tile_rows, rows - r);
            if (!detail::wants(part, row + r, count, col, cols)) continue;
            kernel.multiply(depth, packed_a + r * depth, packed_b.data() + col * depth, sums);
            for (int64_t i = 0; i < count; ++i) {
              const int64_t at = row + r + i;
              const int64_t from = part == Part::kUpper ? std::max<int64_t>(0, at - col) : 0;
              const int64_t to = part == Part::kLower ? std::min(cols, at - col + 1) : cols;
              const T* const sum = sums + i * tile_cols;
              auto* const out = row_of(at) + col;
              if constexpr (std::is_same_v<std::remove_pointer_t<decltype(out + 0)>, T>) {
                // A whole row of a tile, in vectors.
                if (from == 0 && to == tile_cols) {
                  kernel.rank_one(tile_cols, 1, &alpha, sum, out, 0);
                  continue;
                }
              }
              for (int64_t j = from; j < to; ++j) out[j] += alpha * sum[j];
            }
          }
        }
      }
      member.barrier();  // before B is packed anew
    }
  });
}

// C [m, n] in rows of `stride` elements.
template <class T>
void multiply_add(int64_t m, int64_t n, int64_t k, T alpha, const StridedMatrix<T>& a,
                  const StridedMatrix<T>& b, T* c, int64_t stride, int threads,
                  Part part = Part::kAll) {
  multiply_add(m, n, k, alpha, a, b, part, [&](int64_t i) { return c + i * stride; }, threads);
}

}  // namespace woq::linalg
