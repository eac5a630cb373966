// SPDX-License-Identifier: Apache-2.0
// The Gram matrix X^T X of bfloat16 inputs, on every target.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/linalg/bf16_pairs.h"

namespace woq::linalg {

// C += X^T X, its lower triangle, for X [rows, n] in bfloat16. row_of(i) points
// to row i of C in doubles, for i up to n rounded up to 16, and may be written up to the end of the
// 16 x 16 tile on the diagonal. magnitudes [n] get the sum of |x| of each column added. Products
// are summed in fp32 over 512 rows; the same bit for bit for any number of threads.
template <class RowOf>
void add_gram_bf16(const ConstMatrixView& x, const RowOf& row_of, double* magnitudes, int threads) {
  const Bf16Pairs& code = bf16_pairs();
  constexpr int64_t kRows = 512;                // packed at once
  constexpr int64_t kGrain = int64_t{1} << 18;  // multiplications that are worth a thread
  const int64_t panels = (x.cols + kPairPanel - 1) / kPairPanel;
  const int64_t panel_size = (std::min(kRows, x.rows) + 1) / 2 * kPairPanel;
  std::vector<uint32_t> packed(static_cast<size_t>(panels * panel_size));
  std::vector<double> sums(static_cast<size_t>(panels * kPairPanel));
  threads = static_cast<int>(
      std::min<int64_t>(useful_threads(threads, x.rows * x.cols * x.cols, kGrain), panels));
  run_team(threads, [&](const TeamMember& member) {
    int64_t begin = 0, end = 0;
    member.share(panels, 1, &begin, &end);
    for (int64_t first = 0; first < x.rows; first += kRows) {
      const int64_t count = std::min(kRows, x.rows - first);
      for (int64_t p = begin; p < end; ++p) {
        const int64_t col = p * kPairPanel;
        code.pack(static_cast<const uint16_t*>(x.row(first)) + col, count, x.cols - col,
                  x.row_stride, packed.data() + p * panel_size, sums.data() + col);
      }
      member.barrier();
      // Dealt out in turn: the rows of a triangle differ in length.
      for (int64_t i = member.index; i < panels; i += member.size) {
        for (int64_t j = 0; j <= i; ++j) {
          alignas(64) float tile[kPairPanel * kPairPanel] = {};
          code.multiply((count + 1) / 2, packed.data() + i * panel_size,
                        packed.data() + j * panel_size, tile, kPairPanel);
          double* rows[kPairPanel];
          for (int64_t r = 0; r < kPairPanel; ++r)
            rows[r] = row_of(i * kPairPanel + r) + j * kPairPanel;
          code.add_tile(tile, rows);
        }
      }
      member.barrier();  // before the panels are packed anew
    }
  });
  for (int64_t k = 0; k < x.cols; ++k) magnitudes[k] += sums[static_cast<size_t>(k)];
}

}  // namespace woq::linalg
