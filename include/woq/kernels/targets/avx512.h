// SPDX-License-Identifier: Apache-2.0
// 512-bit registers (F, BW, VL, DQ): every compute type.
#pragma once

#include "woq/kernels/target_includes.h"

#define WOQ_TARGET avx512
#include "woq/kernels/target_begin.h"
//
#include "woq/kernels/simd_512-inl.h"
//
#include "woq/kernels/prepare-inl.h"
//
#include "woq/kernels/gemm-inl.h"

namespace woq::WOQ_TARGET_NS {

inline constexpr Kernel kKernels[] = {WOQ_FLOAT_KERNELS, WOQ_INT8_KERNELS};
inline constexpr KernelTable kTable = {kKernels, static_cast<int>(std::size(kKernels))};

}  // namespace woq::WOQ_TARGET_NS

#include "woq/kernels/target_end.h"
