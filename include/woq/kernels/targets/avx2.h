// SPDX-License-Identifier: Apache-2.0
// 256-bit registers, FMA and F16C: every compute type.
#pragma once

#include "woq/kernels/target_includes.h"

#define WOQ_TARGET avx2
#include "woq/kernels/target_begin.h"
//
#include "woq/kernels/simd_256-inl.h"
//
#include "woq/kernels/prepare-inl.h"
//
#include "woq/kernels/gemm-inl.h"

namespace woq::WOQ_TARGET_NS {

inline constexpr Kernel kKernels[] = {
    float_kernel<WeightKind::kU4>(WOQ_FLOAT_KERNEL_NAME("f32", "u4")),
    float_kernel<WeightKind::kT4>(WOQ_FLOAT_KERNEL_NAME("f32", "t4")),
    float_kernel<WeightKind::kU8>(WOQ_FLOAT_KERNEL_NAME("f32", "u8")),
    rounded_float_kernel<WeightKind::kU4>(WOQ_FLOAT_KERNEL_NAME("f32b", "u4")),
    rounded_float_kernel<WeightKind::kT4>(WOQ_FLOAT_KERNEL_NAME("f32b", "t4")),
    rounded_float_kernel<WeightKind::kU8>(WOQ_FLOAT_KERNEL_NAME("f32b", "u8")),
    int8_kernel<WeightKind::kU4>(WOQ_INT8_KERNEL_NAME("s8", "u4")),
    int8_kernel<WeightKind::kT4>(WOQ_INT8_KERNEL_NAME("s8", "t4")),
    int8_kernel<WeightKind::kU8>(WOQ_INT8_KERNEL_NAME("s8", "u8")),
};
inline constexpr KernelTable kTable = {kKernels, static_cast<int>(std::size(kKernels))};

}  // namespace woq::WOQ_TARGET_NS

#include "woq/kernels/target_end.h"
