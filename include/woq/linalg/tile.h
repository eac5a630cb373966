// SPDX-License-Identifier: Apache-2.0
// The inner loops of dense linear algebra, for the registers that this CPU has. Sums are fused
// multiply-adds where there are any, so that results differ between widths in the last bits; for
// one width they depend on nothing but the operands.
#pragma once

#include <cstdint>

#include "woq/core/cpu.h"
#include "woq/core/target.h"

// Registers: rows x 2 sums, two of b, and one of a where it can't be an operand from memory. 12 x 2
// of 32, 6 x 2 of 16; the baseline has 16 too but no fused instruction, which takes one more.
#define WOQ_TILE_NS ref
#define WOQ_TILE_TARGET
#define WOQ_TILE_BYTES 16
#define WOQ_TILE_ROWS 4
#include "woq/linalg/tile-inl.h"

#if WOQ_X86
#define WOQ_TILE_NS avx2
#define WOQ_TILE_TARGET __attribute__((target("avx2,fma")))
#define WOQ_TILE_BYTES 32
#define WOQ_TILE_ROWS 6
#include "woq/linalg/tile-inl.h"

#define WOQ_TILE_NS avx512
#define WOQ_TILE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define WOQ_TILE_BYTES 64
#define WOQ_TILE_ROWS 12
#include "woq/linalg/tile-inl.h"
#endif

namespace woq {

// Lengths that are multiples of this suit every rank_one(): the floats of the widest register.
inline constexpr int64_t kRankOneStep = 16;
inline constexpr int kMaxTileRows = 12;

template <class T>
struct TileKernel {
  int rows = 0, cols = 0;
  void (*multiply)(int64_t depth, const T* a, const T* b, T* c) = nullptr;
  void (*rank_one)(int64_t n, int64_t rows, const T* a, const T* x, T* y, int64_t stride) = nullptr;
};

// That of the widest registers; WOQ_FORCE_TARGET caps it, as it caps the kernels.
template <class T>
TileKernel<T> tile_kernel() {
  constexpr int kSize = static_cast<int>(sizeof(T));
#if WOQ_X86
  const CpuFeatureSet usable = usable_features(forced_target());
  if (runs_on(Target::kAvx512, usable))
    return {12, 128 / kSize, avx512::multiply_tile<T>, avx512::rank_one<T>};
  if (runs_on(Target::kAvx2, usable))
    return {6, 64 / kSize, avx2::multiply_tile<T>, avx2::rank_one<T>};
#endif
  return {4, 32 / kSize, ref::multiply_tile<T>, ref::rank_one<T>};
}

}  // namespace woq
