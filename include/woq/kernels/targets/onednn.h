// SPDX-License-Identifier: Apache-2.0
// Dequantization and oneDNN's dense products in place of avx512's and avx512_bf16's for many rows.
#pragma once

#include "woq/kernels/dense_matmul.h"
#include "woq/kernels/target_includes.h"

#define WOQ_TARGET onednn
#include "woq/kernels/target_begin.h"
//
#include "woq/kernels/simd_512-inl.h"
//
#include "woq/kernels/prepare-inl.h"
//
#include "woq/kernels/gemm-inl.h"
//
#include "woq/kernels/onednn-inl.h"

namespace woq::WOQ_TARGET_NS {

inline constexpr Kernel kKernels[] = {
    dense_float_kernel<WeightKind::kU4>(WOQ_DENSE_NAME("f32", "u4")),
    dense_float_kernel<WeightKind::kT4>(WOQ_DENSE_NAME("f32", "t4")),
    dense_float_kernel<WeightKind::kU8>(WOQ_DENSE_NAME("f32", "u8")),
    dense_bf16_kernel<WeightKind::kU4>(WOQ_DENSE_NAME("bf16", "u4")),
    dense_bf16_kernel<WeightKind::kT4>(WOQ_DENSE_NAME("bf16", "t4")),
    dense_bf16_kernel<WeightKind::kU8>(WOQ_DENSE_NAME("bf16", "u8")),
};
inline constexpr KernelTable kTable = {kKernels, static_cast<int>(std::size(kKernels))};

}  // namespace woq::WOQ_TARGET_NS

#include "woq/kernels/target_end.h"
