// SPDX-License-Identifier: Apache-2.0
// Many rows by a dense product of oneDNN: a panel of W is dequantized once, and all rows of the
// activations are multiplied with it (formula: kernel.h, "kernels of target onednn"). Calls of few
// rows run the code of target avx512_bf16.
//
// A panel is 128 columns (8 tiles) x 1024 elements of K: 512 KiB in fp32, half of a second-level
// cache of 1 MiB; the other half is for the copies of A and B that oneDNN packs for itself. Its
// results for 256 rows are 128 KiB more. Dense products of this shape ran at 114 of 117 GFLOP/s in
// fp32 and at 207 of 233 in bf16 (Zen 4, one thread, 256 rows); half the columns, twice the columns
// or a quarter of K were up to a tenth slower.
//
// int8 is not offered: its sums are scaled once a block of 32 to 128 elements, by a scale of the
// row of A and one of the column of B, and a dense product ends with the sum over all of K. One
// product a block would write and read C as often.
namespace woq::WOQ_TARGET_NS {

inline constexpr int64_t kDenseTiles = 8, kDenseColumns = kDenseTiles * kTileRows;
inline constexpr int64_t kDenseDepth = 1024, kDenseRows = 256;
inline constexpr int64_t kDensePanelBytes = kDenseDepth * kDenseColumns * 4;
inline constexpr int64_t kDenseSumBytes = kDenseRows * kDenseColumns * 4;

// Where element j of 8 lies in the activations, and so in the panel: ActFormat::kBf16's order.
template <ActFormat kFormat>
constexpr int64_t position_of(int64_t element) {
  return kFormat == ActFormat::kBf16 ? element / 2 + element % 2 * 4 : element;
}

// Elements kElement and up of a step: w = (t - z) s, plus the minimum if there is one.
template <class Policy, ActFormat kFormat, int kElement>
WOQ_INLINE void dequantize_step(const typename Policy::Table& table, const StepCodes& codes,
                                const GroupNumbers<1>& group, bool has_minima, int64_t row_bytes,
                                uint8_t* out) {
  const F32 t = Policy::template operand<kElement>(table, codes);
  F32 w = multiply(subtract(t, group.zero[0]), group.scale[0]);
  if (has_minima) w = add(w, group.minimum[0]);
  uint8_t* const p = out + position_of<kFormat>(kElement) * row_bytes;
  if constexpr (kFormat == ActFormat::kBf16) {
    narrow_bf16(p, w, kTileRows);
  } else {
    store_f32(p, w);
  }
  if constexpr (kElement + 1 < kStep)
    dequantize_step<Policy, kFormat, kElement + 1>(table, codes, group, has_minima, row_bytes, out);
}

// Columns of `tiles` tiles from `tile` on, K [k, k1), as out [k1 - k, tiles * 16]. Elements past K
// meet activations of 0, but infinite ones would make NaN of them: they are 0 too.
template <class Policy, ActFormat kFormat>
void dequantize_panel(const Gemm<Policy>& gemm, int64_t tile, int64_t tiles, int64_t k, int64_t k1,
                      uint8_t* out) {
  const PackedMatrix& w = gemm.w;
  const int bits = w.code_bits();
  const int64_t step_bytes = w.step_bytes();
  const BlockGeometry& geometry = gemm.geometry;
  const typename Policy::Table table(gemm.policy);
  const int64_t lane_bytes = kTileRows * element_bytes(kFormat), row_bytes = tiles * lane_bytes;
  const bool has_minima = w.scheme.zeros == ZeroKind::kMin;
  GroupNumbers<1> numbers[kDenseTiles];
  const uint8_t* codes[kDenseTiles];
  for (int64_t group = k / geometry.group_length; k < k1; ++group) {
    const int64_t end = std::min(k1, geometry.group_end(group));
    for (int64_t t = 0; t < tiles; ++t) {
      load_group<AnyForm, 1>(w, w.scales(tile + t, group), w.zeros(tile + t, group), tile + t,
                             group, load_supers<AnyForm>(w, w.super_offset(tile + t, group)), 0,
                             &numbers[t]);
      codes[t] =
          w.codes(tile + t, group) + (k - group * geometry.group_length) / kStep * step_bytes;
    }
    for (; k < end; k += kStep, out += kStep * row_bytes) {
      for (int64_t t = 0; t < tiles; ++t) {
        dequantize_step<Policy, kFormat, 0>(table, load_step<Policy::kKind>(codes[t], bits),
                                            numbers[t], has_minima, row_bytes,
                                            out + t * lane_bytes);
        codes[t] += step_bytes;
      }
    }
  }
  if (k1 < geometry.padded_cols) return;
  uint8_t* const last_step = out - kStep * row_bytes;
  for (int64_t element = kStep - (geometry.padded_cols - geometry.cols); element < kStep; ++element)
    std::memset(last_step + position_of<kFormat>(element) * row_bytes, 0,
                static_cast<size_t>(row_bytes));
}

template <class Policy, ActFormat kFormat>
void multiply_dense(const Gemm<Policy>& gemm) {
  const GemmTask& task = gemm.task;
  uint8_t* const panel = dense::scratch(kDensePanelBytes + kDenseSumBytes);
  float* const sums = reinterpret_cast<float*>(panel + kDensePanelBytes);
  for (int64_t tile = task.t0; tile < task.t1; tile += kDenseTiles) {
    const int64_t tiles = std::min(kDenseTiles, task.t1 - tile), columns = tiles * kTileRows;
    for (int64_t m0 = task.m0; m0 < task.m1; m0 += kDenseRows) {
      const int64_t rows = std::min(kDenseRows, task.m1 - m0);
      for (int64_t k = 0; k < gemm.geometry.padded_cols; k += kDenseDepth) {
        const int64_t k1 = std::min(gemm.geometry.padded_cols, k + kDenseDepth);
        dequantize_panel<Policy, kFormat>(gemm, tile, tiles, k, k1, panel);
        dense::multiply({kFormat == ActFormat::kBf16, k > 0, rows, columns, k1 - k,
                         task.a.row_bytes / element_bytes(kFormat)},
                        task.a.data + m0 * task.a.row_bytes + k * element_bytes(kFormat), panel,
                        sums);
      }
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t t = 0; t < tiles; ++t)
          store_row(task, m0 + m, tile + t, load_f32(sums + m * columns + t * kTileRows));
      }
    }
  }
}

// Own: the policy of avx512_bf16's kernel. Dequantization is that of fp32 whatever the compute
// type.
template <class Own, ActFormat kFormat>
void gemm_dense(const GemmTask& task) {
  if (task.c.rows < kDequantizedRows) return gemm<Own>(task);
  using Policy = FloatPolicy<Own::kKind, ActFormat::kF32>;
  if (task.m0 < task.m1) multiply_dense<Policy, kFormat>(Gemm<Policy>(task));
}

template <WeightKind kWeights>
constexpr Kernel dense_float_kernel(const char* name) {
  Kernel kernel = float_kernel<kWeights>(name);
  kernel.run = &gemm_dense<FloatPolicy<kWeights, ActFormat::kF32>, ActFormat::kF32>;
  return kernel;
}
template <WeightKind kWeights>
constexpr Kernel dense_bf16_kernel(const char* name) {
  Kernel kernel = bf16_kernel<kWeights>(name);
  kernel.run = &gemm_dense<Bf16Policy<kWeights>, ActFormat::kBf16>;
  return kernel;
}
#define WOQ_DENSE_NAME(act, weights) WOQ_KERNEL_NAME(act, weights, "256x128")

}  // namespace woq::WOQ_TARGET_NS
