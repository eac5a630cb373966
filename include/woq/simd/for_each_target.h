// SPDX-License-Identifier: Apache-2.0
// No include guard: includes the file WOQ_REGION_CODE in the region of each target for which linear
// algebra and ops have code of their own; the other targets run that of the target below them.
// WOQ_REGION names the layer, as for target_begin.h. WOQ_CODE_TARGETS lists the same targets, for
// the tables that simd::select() takes.

#ifndef WOQ_CODE_TARGETS
#if WOQ_X86
#define WOQ_CODE_TARGETS(X) \
  X(ref, kRef), X(avx2, kAvx2), X(avx512, kAvx512), X(avx512_bf16, kAvx512Bf16)
#else
#define WOQ_CODE_TARGETS(X) X(ref, kRef)
#endif
#endif

#define WOQ_TARGET_ref 1
#include "woq/simd/target_begin.h"
//
#include WOQ_REGION_CODE
//
#include "woq/simd/target_end.h"
#undef WOQ_TARGET_ref

#if WOQ_X86
#define WOQ_TARGET_avx2 1
#include "woq/simd/target_begin.h"
//
#include WOQ_REGION_CODE
//
#include "woq/simd/target_end.h"
#undef WOQ_TARGET_avx2

#define WOQ_TARGET_avx512 1
#include "woq/simd/target_begin.h"
//
#include WOQ_REGION_CODE
//
#include "woq/simd/target_end.h"
#undef WOQ_TARGET_avx512

#define WOQ_TARGET_avx512_bf16 1
#include "woq/simd/target_begin.h"
//
#include WOQ_REGION_CODE
//
#include "woq/simd/target_end.h"
#undef WOQ_TARGET_avx512_bf16
#endif

#undef WOQ_REGION_CODE
#undef WOQ_REGION
