// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 matrices on AVX512-BF16, which sums two of them per lane: C += A^T B for A
// and B packed as panels of 16 columns. A panel is [pairs, 16, 2]: two rows next to each other.
// Products are exact; sums are fp32 in the order of the rows, with subnormals taken as zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "woq/core/check.h"
#include "woq/core/cpu.h"
#include "woq/core/parallel.h"
#include "woq/core/target.h"
#include "woq/core/view.h"

#if WOQ_X86
#include <immintrin.h>
#endif

namespace woq {

inline constexpr int64_t kPairPanel = 16;

// Whether the functions of avx512_bf16 run here; WOQ_FORCE_TARGET caps it, as it caps the
// kernels.
inline bool has_pairs() {
#if WOQ_X86
  return runs_on(Target::kAvx512Bf16, usable_features(forced_target()));
#else
  return false;
#endif
}

#if WOQ_X86
#define WOQ_PAIRS_TARGET \
  __attribute__((target("avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))

// GCC's own headers leave the unused source of a masked operation uninitialized.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace avx512_bf16 {

// One pair of rows of a panel, and one element of A in each lane.
WOQ_PAIRS_TARGET inline __m512 add_products(__m512 sum, __m512i a, __m512i b) {
  __m512bh left, right;
  __builtin_memcpy(&left, &a, sizeof left);
  __builtin_memcpy(&right, &b, sizeof right);
  return _mm512_dpbf16_ps(sum, left, right);
}

// c [16, 16], rows of `stride` floats, += the sum over pairs of a[pair, :]^T b[pair, :].
WOQ_PAIRS_TARGET inline void multiply_pairs(int64_t pairs, const uint32_t* a, const uint32_t* b,
                                            float* c, int64_t stride) {
  __m512 sums[kPairPanel];
#pragma GCC unroll 16
  for (int r = 0; r < kPairPanel; ++r) sums[r] = _mm512_loadu_ps(c + r * stride);
  for (int64_t p = 0; p < pairs; ++p, a += kPairPanel, b += kPairPanel) {
    const __m512i right = _mm512_loadu_si512(b);
#pragma GCC unroll 16
    for (int r = 0; r < kPairPanel; ++r)
      sums[r] = add_products(sums[r], _mm512_set1_epi32(static_cast<int>(a[r])), right);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kPairPanel; ++r) _mm512_storeu_ps(c + r * stride, sums[r]);
}

// Packs columns [0, cols), at most 16, of x [rows, >= cols] with `stride` elements a row as one
// panel of (rows + 1) / 2 pairs; what is missing is zero. magnitudes [16], where given, get the sum
// of |x| of each column added.
WOQ_PAIRS_TARGET inline void pack_pairs(const uint16_t* x, int64_t rows, int64_t cols,
                                        int64_t stride, uint32_t* out, double* magnitudes) {
  const auto there = static_cast<__mmask16>((1u << std::min(cols, kPairPanel)) - 1);
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  for (int64_t r = 0; r < rows; r += 2, out += kPairPanel) {
    const __m256i first = _mm256_maskz_loadu_epi16(there, x + r * stride);
    const __m256i second =
        r + 1 < rows ? _mm256_maskz_loadu_epi16(there, x + (r + 1) * stride) : __m256i{};
    const __m512i left = _mm512_cvtepu16_epi32(first);
    const __m512i right = _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16);
    _mm512_storeu_si512(out, _mm512_or_si512(left, right));
    if (magnitudes == nullptr) continue;
    for (const __m512i values : {_mm512_slli_epi32(left, 16), right}) {
      const __m512 absolute = _mm512_abs_ps(_mm512_castsi512_ps(values));
      low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(absolute)));
      high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(absolute, 1)));
    }
  }
  if (magnitudes == nullptr) return;
  _mm512_storeu_pd(magnitudes, _mm512_add_pd(_mm512_loadu_pd(magnitudes), low));
  _mm512_storeu_pd(magnitudes + 8, _mm512_add_pd(_mm512_loadu_pd(magnitudes + 8), high));
}

// Adds a row of 16 sums to wider ones.
WOQ_PAIRS_TARGET inline void add_sums(const float* sums, double* out) {
  for (int i = 0; i < kPairPanel; i += 8) {
    const __m512d wide = _mm512_cvtps_pd(_mm256_loadu_ps(sums + i));
    _mm512_storeu_pd(out + i, _mm512_add_pd(_mm512_loadu_pd(out + i), wide));
  }
}

}  // namespace avx512_bf16

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

// C += X^T X, its lower triangle, for X [rows, n] in bfloat16, where has_pairs(). row_of(i) points
// to row i of C in doubles, for i up to n rounded up to 16, and may be written up to the end of the
// 16 x 16 tile on the diagonal. magnitudes [n] get the sum of |x| of each column added. Products
// are summed in fp32 over 512 rows; the same bit for bit for any number of threads.
template <class RowOf>
void add_pair_products(const ConstMatrixView& x, const RowOf& row_of, double* magnitudes,
                       int threads) {
#if WOQ_X86
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
        avx512_bf16::pack_pairs(static_cast<const uint16_t*>(x.row(first)) + col, count,
                                x.cols - col, x.row_stride, packed.data() + p * panel_size,
                                sums.data() + col);
      }
      member.barrier();
      // Dealt out in turn: the rows of a triangle differ in length.
      for (int64_t i = member.index; i < panels; i += member.size) {
        for (int64_t j = 0; j <= i; ++j) {
          alignas(64) float tile[kPairPanel * kPairPanel] = {};
          avx512_bf16::multiply_pairs((count + 1) / 2, packed.data() + i * panel_size,
                                      packed.data() + j * panel_size, tile, kPairPanel);
          for (int64_t r = 0; r < kPairPanel; ++r) {
            avx512_bf16::add_sums(tile + r * kPairPanel,
                                  row_of(i * kPairPanel + r) + j * kPairPanel);
          }
        }
      }
      member.barrier();  // before the panels are packed anew
    }
  });
  for (int64_t k = 0; k < x.cols; ++k) magnitudes[k] += sums[static_cast<size_t>(k)];
#else
  static_cast<void>(x), static_cast<void>(row_of), static_cast<void>(magnitudes);
  static_cast<void>(threads);
  fail<Unsupported>("products of bfloat16 pairs need AVX512-BF16");
#endif
}

}  // namespace woq
