// SPDX-License-Identifier: Apache-2.0
// What BF16 adds to avx512_vnni: bfloat16 dot products.
#pragma once

#include "woq/kernels/target_includes.h"

#define WOQ_REGION kernels
#define WOQ_TARGET_avx512_bf16 1
#include "woq/simd/target_begin.h"
//
#include "woq/kernels/blocks-inl.h"
//
#include "woq/kernels/prepare-inl.h"
//
#include "woq/kernels/gemm-inl.h"

namespace woq::WOQ_TARGET_NS {

inline constexpr Kernel kKernels[] = {
    bf16_kernel<WeightKind::kU4>(WOQ_FLOAT_KERNEL_NAME("bf16", "u4")),
    bf16_kernel<WeightKind::kT4>(WOQ_FLOAT_KERNEL_NAME("bf16", "t4")),
    bf16_kernel<WeightKind::kU8>(WOQ_FLOAT_KERNEL_NAME("bf16", "u8")),
};
inline constexpr KernelTable kTable = {kKernels, static_cast<int>(std::size(kKernels))};

}  // namespace woq::WOQ_TARGET_NS

#include "woq/simd/target_end.h"
#undef WOQ_TARGET_avx512_bf16
#undef WOQ_REGION
