// SPDX-License-Identifier: Apache-2.0
// No include guard: opens a region, whose functions are compiled for one target of WOQ_TARGETS
// (target.h); target_end.h closes it. No -m flags are needed, so no instruction of a target can
// leak into code that other targets share. All other headers must be included before.
//
// Before including it, define WOQ_REGION as the layer, such as kernels, and WOQ_TARGET_avx2 (or
// another row's name) as 1; undefine both behind target_end.h. The region's code then lives in
// namespace woq::WOQ_TARGET_NS, which is woq::kernels::avx2.
//
// In a region, predefined macros such as __AVX512F__ do not tell the target: the code branches on
//   WOQ_VECTOR_BITS  512 or 256; 128 is baseline code, for which there is no vocabulary
//   WOQ_HAS_VNNI     1 if 8-bit dot products are one instruction
//   WOQ_HAS_BF16     1 if bfloat16 dot products are
// and WOQ_TARGET is the target's name. This file ends by including the vocabulary, simd_256-inl.h
// or simd_512-inl.h: every layer has its own copy, in its own namespace.

// These pick the row of WOQ_TARGETS whose WOQ_TARGET_<name> is 1. In an #if an undefined name is 0,
// so a sum over all rows is that row's number. Elsewhere WOQ_IF(flag, text) is the text if the flag
// is 1: pasted to WOQ_PROBE_, a 1 gives one argument more, which makes the text the second one.
#define WOQ_CONCAT_(a, b) a##b
#define WOQ_CONCAT(a, b) WOQ_CONCAT_(a, b)
#define WOQ_STRING_(a) #a
#define WOQ_STRING(a) WOQ_STRING_(a)
#define WOQ_PROBE_1 ~,
#define WOQ_SECOND_(a, b, ...) b
#define WOQ_SECOND(...) WOQ_SECOND_(__VA_ARGS__)
#define WOQ_IF(flag, text) WOQ_SECOND(WOQ_CONCAT(WOQ_PROBE_, flag) text, , ~)
#define WOQ_ROW_NAME(name, ...) WOQ_IF(WOQ_TARGET_##name, name)
#define WOQ_ROW_ENUM(name, enumerator, ...) WOQ_IF(WOQ_TARGET_##name, enumerator)
#define WOQ_ROW_BITS(name, enumerator, bits, ...) +(WOQ_TARGET_##name * bits)
#define WOQ_ROW_VNNI(name, enumerator, bits, vnni, ...) +(WOQ_TARGET_##name * vnni)
#define WOQ_ROW_BF16(name, enumerator, bits, vnni, bf16, ...) +(WOQ_TARGET_##name * bf16)
#define WOQ_ROW_OPTIONS(name, enumerator, bits, vnni, bf16, options, ...) \
  WOQ_IF(WOQ_TARGET_##name, options)

#define WOQ_TARGET WOQ_TARGETS(WOQ_ROW_NAME)
#define WOQ_TARGET_NS WOQ_REGION::WOQ_TARGET
#define WOQ_THIS_TARGET Target::WOQ_TARGETS(WOQ_ROW_ENUM)

#if (0 WOQ_TARGETS(WOQ_ROW_BITS)) == 512
#define WOQ_VECTOR_BITS 512
#elif (0 WOQ_TARGETS(WOQ_ROW_BITS)) == 256
#define WOQ_VECTOR_BITS 256
#elif (0 WOQ_TARGETS(WOQ_ROW_BITS)) == 128
#define WOQ_VECTOR_BITS 128
#else
#error "of the macros WOQ_TARGET_<name>, exactly one must be 1, for a row of WOQ_TARGETS"
#endif
#if (0 WOQ_TARGETS(WOQ_ROW_VNNI)) != 0
#define WOQ_HAS_VNNI 1
#else
#define WOQ_HAS_VNNI 0
#endif
#if (0 WOQ_TARGETS(WOQ_ROW_BF16)) != 0
#define WOQ_HAS_BF16 1
#else
#define WOQ_HAS_BF16 0
#endif

#define WOQ_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define WOQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define WOQ_UNROLL _Pragma("GCC unroll 16")
#endif

#define WOQ_PRAGMA_(...) _Pragma(#__VA_ARGS__)
#define WOQ_PRAGMA(...) WOQ_PRAGMA_(__VA_ARGS__)

// GCC 12 warns of uninitialised variables in its own AVX-512 headers (their undefined values), and
// that a vector type as a template argument loses attributes that it does not need.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#endif

#if WOQ_VECTOR_BITS > 128
#if defined(__clang__)
WOQ_PRAGMA(clang attribute push(__attribute__((target(WOQ_TARGETS(WOQ_ROW_OPTIONS)))),
                                apply_to = function))
#else
WOQ_PRAGMA(GCC target(WOQ_TARGETS(WOQ_ROW_OPTIONS)))
#endif
#endif

#if WOQ_VECTOR_BITS == 512
#include "woq/simd/simd_512-inl.h"
#elif WOQ_VECTOR_BITS == 256
#include "woq/simd/simd_256-inl.h"
#endif
#if WOQ_VECTOR_BITS > 128 && !WOQ_HAS_BF16
#include "woq/simd/bf16-inl.h"
#endif
