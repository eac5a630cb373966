// SPDX-License-Identifier: Apache-2.0
// What the kernels of target onednn are compared with: kernel.h's formula for dequantized weights,
// one element at a time. The weights are rounded as defined, so that the two differ by the order of
// additions alone, in bf16 too.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "woq/core/float16.h"
#include "woq/kernels/targets/ref.h"

namespace woq::testing {

using namespace kernels;

inline bool dequantizes(const Kernel& kernel) {
  return kernel.target == Target::kOneDnn;
}

namespace detail {

template <ComputeType kCompute>
void dequantizing_gemm(const GemmTask& task) {
  if (task.c.rows < kDequantizedRows) return ref::gemm<kCompute>(task);
  const PackedMatrix& w = *task.weights;
  const bool has_zeros = w.scheme.zeros != ZeroKind::kNone;
  std::vector<float> row(static_cast<size_t>(w.cols));  // of W
  for (int64_t n = task.t0 * kTileRows; n < std::min(w.rows, task.t1 * kTileRows); ++n) {
    for (int64_t k = 0; k < w.cols; ++k) {
      const int64_t g = k / w.group_length();
      const float t = code_value(w.dtype(), ref::packed_code(w, n, k));
      const float centred = has_zeros ? t - ref::packed_zero(w, n, g) : t;
      float value = centred * ref::packed_scale(w, n, g);
      if (w.scheme.zeros == ZeroKind::kMin)
        value = rounded(value) + w.minimum(w.zeros(n / kTileRows, g), n, g);
      row[static_cast<size_t>(k)] = kCompute == ComputeType::kBf16 ? round_to_bf16(value) : value;
    }
    for (int64_t m = task.m0; m < task.m1; ++m) {
      const auto* const a = reinterpret_cast<const float*>(task.a.data + m * task.a.row_bytes);
      float c = 0;
      for (int64_t k = 0; k < w.cols; ++k) c = std::fma(a[k], row[static_cast<size_t>(k)], c);
      ref::store_output(task, m, n, c);
    }
  }
}

template <ComputeType kCompute>
Kernel dequantizing_kernel(WeightKind weights) {
  constexpr ActFormat kFormat = kCompute == ComputeType::kBf16 ? ActFormat::kF32B : ActFormat::kF32;
  return {"dequantizing reference",
          Target::kRef,
          kCompute,
          weights,
          kFormat,
          &ref::prepare_float<kFormat>,
          &dequantizing_gemm<kCompute>};
}

}  // namespace detail

// fp32 and bf16 only: int8 compute has no such kernels.
inline const Kernel& dequantizing_reference(WeightKind weights, ComputeType compute) {
  using detail::dequantizing_kernel;
  static const Kernel kFp32[] = {dequantizing_kernel<ComputeType::kFp32>(WeightKind::kU4),
                                 dequantizing_kernel<ComputeType::kFp32>(WeightKind::kT4),
                                 dequantizing_kernel<ComputeType::kFp32>(WeightKind::kU8)};
  static const Kernel kBf16[] = {dequantizing_kernel<ComputeType::kBf16>(WeightKind::kU4),
                                 dequantizing_kernel<ComputeType::kBf16>(WeightKind::kT4),
                                 dequantizing_kernel<ComputeType::kBf16>(WeightKind::kU8)};
  return (compute == ComputeType::kBf16 ? kBf16 : kFp32)[static_cast<int>(weights)];
}

}  // namespace woq::testing
