// SPDX-License-Identifier: Apache-2.0
// No include guard: closes the region that target_begin.h opened.

#if defined(__clang__)
#if WOQ_VECTOR_BITS > 128
#pragma clang attribute pop
#endif
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

#undef WOQ_TARGET
#undef WOQ_TARGET_NS
#undef WOQ_THIS_TARGET
#undef WOQ_VECTOR_BITS
#undef WOQ_HAS_VNNI
#undef WOQ_HAS_BF16
#undef WOQ_INLINE
#undef WOQ_UNROLL
