// SPDX-License-Identifier: Apache-2.0
// No include guard: opens a region whose functions are compiled for the target that WOQ_TARGET
// names, in the target's own namespace name WOQ_TARGET_NS; target_end.h closes it. No -m flags are
// needed, so no instruction of a target can leak into code that other targets share. All other
// headers must be included before.
//
// In a region, predefined macros such as __AVX512F__ do not tell the target: the code branches on
//   WOQ_VECTOR_BITS  512 or 256
//   WOQ_HAS_VNNI     1 if 8-bit dot products are one instruction
//   WOQ_HAS_BF16     1 if bfloat16 dot products are
//   WOQ_INT8_ROWS    rows of the register tile that int8 arithmetic has for many rows,
//   WOQ_INT8_TILES   its tiles of 16 columns, and
//   WOQ_INT8_NAME    how kernel names show the two
//   WOQ_FLOAT_ROWS, WOQ_FLOAT_TILES, WOQ_FLOAT_NAME
//                    the same for fp32 and bf16 arithmetic
//   WOQ_REGISTER_SUMS
//                    outputs (rows x tiles) whose results fit registers beside a block's sums

#define WOQ_TARGET_ID_avx2 1
#define WOQ_TARGET_ID_avx_vnni 2
#define WOQ_TARGET_ID_avx512 3
#define WOQ_TARGET_ID_avx512_vnni 4
#define WOQ_TARGET_ID_avx512_bf16 5
#define WOQ_TARGET_ID_amx 6
#define WOQ_TARGET_ID_onednn 7
#define WOQ_CONCAT_(a, b) a##b
#define WOQ_CONCAT(a, b) WOQ_CONCAT_(a, b)
#define WOQ_STRING_(a) #a
#define WOQ_STRING(a) WOQ_STRING_(a)
#define WOQ_TARGET_ID WOQ_CONCAT(WOQ_TARGET_ID_, WOQ_TARGET)
#define WOQ_TARGET_NS WOQ_TARGET

#define WOQ_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define WOQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define WOQ_UNROLL _Pragma("GCC unroll 16")
#endif

// GCC 12 warns of uninitialised variables in its own AVX-512 headers (_mm512_undefined_ps and the
// like), and that a vector type as a template argument loses attributes that it does not need.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#endif

#if WOQ_TARGET_ID == WOQ_TARGET_ID_avx2
#define WOQ_VECTOR_BITS 256
#define WOQ_HAS_VNNI 0
#define WOQ_HAS_BF16 0
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#elif WOQ_TARGET_ID == WOQ_TARGET_ID_avx_vnni
#define WOQ_VECTOR_BITS 256
#define WOQ_HAS_VNNI 1
#define WOQ_HAS_BF16 0
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#elif WOQ_TARGET_ID == WOQ_TARGET_ID_avx512
#define WOQ_VECTOR_BITS 512
#define WOQ_HAS_VNNI 0
#define WOQ_HAS_BF16 0
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#elif WOQ_TARGET_ID == WOQ_TARGET_ID_avx512_vnni
#define WOQ_VECTOR_BITS 512
#define WOQ_HAS_VNNI 1
#define WOQ_HAS_BF16 0
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#endif
#elif WOQ_TARGET_ID == WOQ_TARGET_ID_avx512_bf16 || WOQ_TARGET_ID == WOQ_TARGET_ID_onednn
#define WOQ_VECTOR_BITS 512
#define WOQ_HAS_VNNI 1
#define WOQ_HAS_BF16 1
#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((                                                                         \
        target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#endif
#elif WOQ_TARGET_ID == WOQ_TARGET_ID_amx
#define WOQ_VECTOR_BITS 512
#define WOQ_HAS_VNNI 1
#define WOQ_HAS_BF16 1
#if defined(__clang__)
#pragma clang attribute push(                                                                  \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma," \
                          "f16c,amx-tile,amx-int8,amx-bf16"))),                                \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c", \
                   "amx-tile,amx-int8,amx-bf16")
#endif
#else
#error "WOQ_TARGET names no known target"
#endif

// Register budgets. 512 bits, 32 registers, a tile of 16 columns is one. Floats: 8 x 2 = 16 sums
// and a few operands; results go through memory once a block. int8 multiplies four times as fast,
// so that a block of 32 is over after 8 instructions for each sum: 4 x 3 = 12 sums, and their 12
// results stay in registers. 256 bits, 16 registers, a tile is two: 4 x 1 = 8 sums where a weight
// takes two registers and more, 6 x 1 = 12 where it takes one.
#if WOQ_VECTOR_BITS == 512
#define WOQ_INT8_ROWS 4
#define WOQ_INT8_TILES 3
#define WOQ_INT8_NAME "4x48"
#define WOQ_FLOAT_ROWS 8
#define WOQ_FLOAT_TILES 2
#define WOQ_FLOAT_NAME "8x32"
#define WOQ_REGISTER_SUMS 12
#else
#define WOQ_INT8_ROWS 4
#define WOQ_INT8_TILES 1
#define WOQ_INT8_NAME "4x16"
#define WOQ_FLOAT_ROWS 6
#define WOQ_FLOAT_TILES 1
#define WOQ_FLOAT_NAME "6x16"
#define WOQ_REGISTER_SUMS 2
#endif
