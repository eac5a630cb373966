// SPDX-License-Identifier: Apache-2.0
// No include guard: closes the region that target_begin.h opened.

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

#undef WOQ_TARGET
#undef WOQ_TARGET_NS
#undef WOQ_TARGET_ID
#undef WOQ_VECTOR_BITS
#undef WOQ_HAS_VNNI
#undef WOQ_HAS_BF16
#undef WOQ_INT8_ROWS
#undef WOQ_INT8_TILES
#undef WOQ_INT8_NAME
#undef WOQ_FLOAT_ROWS
#undef WOQ_FLOAT_TILES
#undef WOQ_FLOAT_NAME
#undef WOQ_REGISTER_SUMS
#undef WOQ_INLINE
#undef WOQ_UNROLL
