// SPDX-License-Identifier: Apache-2.0
// 512-bit registers (F, BW, VL, DQ): every compute type.
#pragma once

#include "woq/kernels/target_includes.h"

#define WOQ_REGION kernels
#define WOQ_TARGET_avx512 1
#include "woq/simd/target_begin.h"
//
#include "woq/kernels/blocks-inl.h"
//
#include "woq/kernels/prepare-inl.h"
//
#include "woq/kernels/gemm-inl.h"

namespace woq::WOQ_TARGET_NS {

inline constexpr Kernel kKernels[] = {WOQ_FLOAT_KERNELS, WOQ_INT8_KERNELS};
inline constexpr KernelTable kTable = {kKernels, static_cast<int>(std::size(kKernels))};

}  // namespace woq::WOQ_TARGET_NS

#include "woq/simd/target_end.h"
#undef WOQ_TARGET_avx512
#undef WOQ_REGION
