// SPDX-License-Identifier: Apache-2.0
// Target onednn, empty where this build has no oneDNN: for many rows, dequantization and oneDNN's
// dense products in place of avx512's and avx512_bf16's.
#pragma once

#if defined(WOQ_WITH_ONEDNN)
#include "woq/kernels/dense_matmul.h"
#include "woq/kernels/target_includes.h"

#define WOQ_REGION kernels
#define WOQ_TARGET_onednn 1
#include "woq/simd/target_begin.h"
//
#include "woq/kernels/blocks-inl.h"
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

#include "woq/simd/target_end.h"
#undef WOQ_TARGET_onednn
#undef WOQ_REGION

namespace woq::kernels {

// Of the oneDNN in use, such as "2.6.3"; empty where this build has none.
inline std::string version_of_onednn() {
  return dense::version();
}

}  // namespace woq::kernels
#else
#include <string>

#include "woq/kernels/kernel.h"

namespace woq::kernels {

namespace onednn {
inline constexpr KernelTable kTable;
}

inline std::string version_of_onednn() {
  return {};
}

}  // namespace woq::kernels
#endif
