// SPDX-License-Identifier: Apache-2.0
// What AVX512-BF16 does in an instruction, on targets without it, by fp32 arithmetic: the same
// results, but that subnormal numbers are kept.
namespace woq::WOQ_TARGET_NS {

// acc + the product of the upper halves, and then + that of the lower halves.
WOQ_INLINE F32 dot_bf16(F32 acc, I32 w, I32 a) {
  const I32 upper = set_i32(static_cast<int32_t>(0xffff0000u));
  acc = fused_add(as_f32(and_i32(w, upper)), as_f32(and_i32(a, upper)), acc);
  return fused_add(as_f32(shift_left<16>(w)), as_f32(shift_left<16>(a)), acc);
}
// Lanes whose lower half is low's element in bfloat16, the upper half high's.
WOQ_INLINE I32 pair_bf16(F32 low, F32 high) {
  return or_i32(shift_right<16>(as_i32(round_to_bf16(low))), as_i32(round_to_bf16(high)));
}
// Stores the first `lanes` elements, rounded to bfloat16.
WOQ_INLINE void narrow_bf16(void* p, F32 a, int64_t lanes) {
  uint16_t halves[16];
  store_bf16(halves, a);
  std::memcpy(p, halves, static_cast<size_t>(lanes) * sizeof halves[0]);
}

}  // namespace woq::WOQ_TARGET_NS
