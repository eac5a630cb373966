// SPDX-License-Identifier: Apache-2.0
// What AMX adds to avx512_bf16: int8 and bf16 tiles, for many rows.
#pragma once

#include "woq/kernels/target_includes.h"

#define WOQ_REGION kernels
#define WOQ_TARGET_amx 1
#include "woq/simd/target_begin.h"
//
#include "woq/kernels/blocks-inl.h"
//
#include "woq/kernels/prepare-inl.h"
//
#include "woq/kernels/gemm-inl.h"
//
#include "woq/kernels/amx-inl.h"

namespace woq::WOQ_TARGET_NS {

inline constexpr Kernel kKernels[] = {
    with_amx<Int8Policy<WeightKind::kU4>>(int8_kernel<WeightKind::kU4>(WOQ_AMX_NAME("s8", "u4"))),
    with_amx<Int8Policy<WeightKind::kT4>>(int8_kernel<WeightKind::kT4>(WOQ_AMX_NAME("s8", "t4"))),
    with_amx<Int8Policy<WeightKind::kU8>>(int8_kernel<WeightKind::kU8>(WOQ_AMX_NAME("s8", "u8"))),
    with_amx<Bf16Policy<WeightKind::kU4>>(bf16_kernel<WeightKind::kU4>(WOQ_AMX_NAME("bf16", "u4"))),
    with_amx<Bf16Policy<WeightKind::kT4>>(bf16_kernel<WeightKind::kT4>(WOQ_AMX_NAME("bf16", "t4"))),
    with_amx<Bf16Policy<WeightKind::kU8>>(bf16_kernel<WeightKind::kU8>(WOQ_AMX_NAME("bf16", "u8"))),
};
inline constexpr KernelTable kTable = {kKernels, static_cast<int>(std::size(kKernels))};

}  // namespace woq::WOQ_TARGET_NS

#include "woq/simd/target_end.h"
#undef WOQ_TARGET_amx
#undef WOQ_REGION
