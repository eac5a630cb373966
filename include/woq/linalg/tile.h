// SPDX-License-Identifier: Apache-2.0
// The inner loops of dense linear algebra, for the registers that this CPU has. Sums are fused
// multiply-adds where there are any, so that results differ between widths in the last bits; for
// one width they depend on nothing but the operands.
#pragma once

#include <cstdint>

#include "woq/simd/region.h"

namespace woq::linalg {

// Lengths that are multiples of this suit every rank_one(): the floats of the widest register.
inline constexpr int64_t kRankOneStep = 16;
inline constexpr int kMaxTileRows = 12;

template <class T>
struct TileKernel {
  int rows = 0, cols = 0;
  void (*multiply)(int64_t depth, const T* a, const T* b, T* c) = nullptr;
  void (*rank_one)(int64_t n, int64_t rows, const T* a, const T* x, T* y, int64_t stride) = nullptr;
};

}  // namespace woq::linalg

#define WOQ_REGION linalg::tiles
#define WOQ_REGION_CODE "woq/linalg/tile-inl.h"
#include "woq/simd/for_each_target.h"

namespace woq::linalg {

// That of the widest registers.
template <class T>
TileKernel<T> tile_kernel() {
#define WOQ_ROW(name, enumerator)              \
  {                                            \
    Target::enumerator, tiles::name::tile<T>() \
  }
  static constexpr simd::Choice<TileKernel<T>> kChoices[] = {WOQ_CODE_TARGETS(WOQ_ROW)};
#undef WOQ_ROW
  return simd::select(kChoices).code;
}

}  // namespace woq::linalg
