// SPDX-License-Identifier: Apache-2.0
// The reference: every compute type, on every machine.
#pragma once

#include <cmath>

#include "woq/kernels/target_includes.h"
#include "woq/pack/pack.h"

#define WOQ_REGION kernels
#define WOQ_TARGET_ref 1
#include "woq/simd/target_begin.h"
//
#include "woq/kernels/blocks-inl.h"
//
#include "woq/kernels/ref-inl.h"

namespace woq::WOQ_TARGET_NS {

inline constexpr Kernel kKernels[] = {
    {"gemm_f32_u4_1x1_ref", Target::kRef, ComputeType::kFp32, WeightKind::kU4, ActFormat::kF32,
     &prepare_float<ActFormat::kF32>, &gemm<ComputeType::kFp32>},
    {"gemm_f32_t4_1x1_ref", Target::kRef, ComputeType::kFp32, WeightKind::kT4, ActFormat::kF32,
     &prepare_float<ActFormat::kF32>, &gemm<ComputeType::kFp32>},
    {"gemm_f32_u8_1x1_ref", Target::kRef, ComputeType::kFp32, WeightKind::kU8, ActFormat::kF32,
     &prepare_float<ActFormat::kF32>, &gemm<ComputeType::kFp32>},
    {"gemm_f32b_u4_1x1_ref", Target::kRef, ComputeType::kBf16, WeightKind::kU4, ActFormat::kF32B,
     &prepare_float<ActFormat::kF32B>, &gemm<ComputeType::kBf16>},
    {"gemm_f32b_t4_1x1_ref", Target::kRef, ComputeType::kBf16, WeightKind::kT4, ActFormat::kF32B,
     &prepare_float<ActFormat::kF32B>, &gemm<ComputeType::kBf16>},
    {"gemm_f32b_u8_1x1_ref", Target::kRef, ComputeType::kBf16, WeightKind::kU8, ActFormat::kF32B,
     &prepare_float<ActFormat::kF32B>, &gemm<ComputeType::kBf16>},
    {"gemm_s8_u4_1x1_ref", Target::kRef, ComputeType::kInt8, WeightKind::kU4, ActFormat::kS8,
     &prepare_s8, &gemm<ComputeType::kInt8>},
    {"gemm_s8_t4_1x1_ref", Target::kRef, ComputeType::kInt8, WeightKind::kT4, ActFormat::kS8,
     &prepare_s8, &gemm<ComputeType::kInt8>},
    {"gemm_s8_u8_1x1_ref", Target::kRef, ComputeType::kInt8, WeightKind::kU8, ActFormat::kS8,
     &prepare_s8, &gemm<ComputeType::kInt8>},
};
inline constexpr KernelTable kTable = {kKernels, static_cast<int>(std::size(kKernels))};

}  // namespace woq::WOQ_TARGET_NS

#include "woq/simd/target_end.h"
#undef WOQ_TARGET_ref
#undef WOQ_REGION
