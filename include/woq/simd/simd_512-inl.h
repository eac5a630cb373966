// SPDX-License-Identifier: Apache-2.0
// The ISA vocabulary on 512-bit registers: 16 lanes of 32 bits are one register. simd_256-inl.h has
// the same names.
namespace woq::WOQ_TARGET_NS {

using F32 = __m512;   // 16 floats
using I32 = __m512i;  // 16 dwords, or 64 bytes

// Arithmetic.
WOQ_INLINE F32 zero_f32() {
  return _mm512_setzero_ps();
}
WOQ_INLINE I32 zero_i32() {
  return _mm512_setzero_si512();
}
WOQ_INLINE F32 set_f32(float x) {
  return _mm512_set1_ps(x);
}
WOQ_INLINE I32 set_i32(int32_t x) {
  return _mm512_set1_epi32(x);
}
WOQ_INLINE F32 add(F32 a, F32 b) {
  return _mm512_add_ps(a, b);
}
WOQ_INLINE F32 subtract(F32 a, F32 b) {
  return _mm512_sub_ps(a, b);
}
WOQ_INLINE F32 multiply(F32 a, F32 b) {
  return _mm512_mul_ps(a, b);
}
WOQ_INLINE F32 divide(F32 a, F32 b) {
  return _mm512_div_ps(a, b);
}
WOQ_INLINE F32 minimum(F32 a, F32 b) {  // b where one is NaN
  return _mm512_min_ps(a, b);
}
WOQ_INLINE F32 maximum(F32 a, F32 b) {  // b where one is NaN
  return _mm512_max_ps(a, b);
}
WOQ_INLINE F32 power_of_two(I32 n) {  // -126..127
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
WOQ_INLINE F32 fused_add(F32 a, F32 b, F32 c) {
  return _mm512_fmadd_ps(a, b, c);
}  // a b + c
WOQ_INLINE F32 fused_subtract(F32 a, F32 b, F32 c) {
  return _mm512_fnmadd_ps(a, b, c);
}  // c - a b
WOQ_INLINE I32 add_i32(I32 a, I32 b) {
  return _mm512_add_epi32(a, b);
}
WOQ_INLINE I32 max_i32(I32 a, I32 b) {
  return _mm512_max_epi32(a, b);
}
WOQ_INLINE F32 to_f32(I32 a) {
  return _mm512_cvtepi32_ps(a);
}
WOQ_INLINE I32 round_i32(F32 a) {
  return _mm512_cvtps_epi32(a);
}  // nearest even
WOQ_INLINE I32 magnitude_bits(F32 a) {
  return _mm512_and_si512(_mm512_castps_si512(a), set_i32(0x7fffffff));
}
WOQ_INLINE int32_t reduce_max(I32 a) {
  return _mm512_reduce_max_epi32(a);
}
WOQ_INLINE int32_t reduce_add(I32 a) {
  return _mm512_reduce_add_epi32(a);
}
WOQ_INLINE float reduce_add(F32 a) {
  return _mm512_reduce_add_ps(a);
}

// Rounds to what bfloat16 holds; NaN stays NaN.
WOQ_INLINE F32 round_to_bf16(F32 a) {
  const I32 bits = _mm512_castps_si512(a);
  const I32 odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), set_i32(1));
  const I32 up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, set_i32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const I32 quiet = _mm512_or_si512(bits, set_i32(0x400000));
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_mask_mov_epi32(up, nan, quiet),
                                              set_i32(static_cast<int32_t>(0xffff0000u))));
}

// Memory: 16 elements.
WOQ_INLINE F32 load_f32(const void* p) {
  return _mm512_loadu_ps(p);
}
WOQ_INLINE F32 load_bf16(const void* p) {
  const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
WOQ_INLINE F32 load_fp16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
WOQ_INLINE F32 load_u8(const void* p) {
  return to_f32(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
WOQ_INLINE F32 load_s8(const void* p) {
  return to_f32(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
WOQ_INLINE I32 load_bytes(const void* p) {  // unsigned, as dwords
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
WOQ_INLINE void store_f32(void* p, F32 a) {
  _mm512_storeu_ps(p, a);
}
WOQ_INLINE void store_bf16(void* p, F32 a) {
  const I32 halves = _mm512_srli_epi32(_mm512_castps_si512(round_to_bf16(a)), 16);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(halves));
}
WOQ_INLINE void store_fp16(void* p, F32 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
WOQ_INLINE void store_s8(void* p, I32 a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}

// Integers and bits.
WOQ_INLINE I32 lane_numbers() {  // 0 to 15
  return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}
WOQ_INLINE I32 multiply_i32(I32 a, I32 b) {
  return _mm512_mullo_epi32(a, b);
}
WOQ_INLINE I32 and_i32(I32 a, I32 b) {
  return _mm512_and_si512(a, b);
}
WOQ_INLINE I32 or_i32(I32 a, I32 b) {
  return _mm512_or_si512(a, b);
}
template <int kBits>
WOQ_INLINE I32 shift_left(I32 a) {
  return _mm512_slli_epi32(a, kBits);
}
template <int kBits>
WOQ_INLINE I32 shift_right(I32 a) {
  return _mm512_srli_epi32(a, kBits);
}
WOQ_INLINE F32 as_f32(I32 a) {
  return _mm512_castsi512_ps(a);
}
WOQ_INLINE I32 as_i32(F32 a) {
  return _mm512_castps_si512(a);
}
WOQ_INLINE I32 load_i32(const void* p) {
  return _mm512_loadu_si512(p);
}
WOQ_INLINE void store_i32(void* p, I32 a) {
  _mm512_storeu_si512(p, a);
}
WOQ_INLINE __mmask16 first_lanes(int64_t lanes) {
  return static_cast<__mmask16>((1u << lanes) - 1);
}
// The first `lanes` words at p; 0 in the other lanes.
WOQ_INLINE I32 load_u16(const void* p, int64_t lanes) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(lanes), p));
}
// The dwords that lie `places` dwords behind p, in the first `lanes` lanes; 0 in the others.
WOQ_INLINE I32 gather_i32(const void* p, I32 places, int64_t lanes) {
  return _mm512_mask_i32gather_epi32(zero_i32(), first_lanes(lanes), places, p, 4);
}
// x in the lanes where a > b, y in the others.
WOQ_INLINE F32 where_greater(I32 a, I32 b, F32 x, F32 y) {
  return _mm512_mask_mov_ps(y, _mm512_cmpgt_epi32_mask(a, b), x);
}

WOQ_INLINE F32 magnitude(F32 a) {
  return _mm512_abs_ps(a);
}
WOQ_INLINE F32 nearest_integer(F32 a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
WOQ_INLINE F32 scale_by_power(F32 a, F32 n) {  // a 2^n, for whole n up to 0
  return _mm512_scalef_ps(a, n);
}

struct F64 {  // 16 doubles
  __m512d lo, hi;
};
WOQ_INLINE F64 zero_f64() {
  return {_mm512_setzero_pd(), _mm512_setzero_pd()};
}
WOQ_INLINE F64 add(const F64& a, const F64& b) {
  return {_mm512_add_pd(a.lo, b.lo), _mm512_add_pd(a.hi, b.hi)};
}
WOQ_INLINE F64 to_f64(F32 a) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(a)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))};
}
WOQ_INLINE F64 load_f64(const double* p) {
  return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)};
}
WOQ_INLINE void store_f64(double* p, const F64& a) {
  _mm512_storeu_pd(p, a.lo);
  _mm512_storeu_pd(p + 8, a.hi);
}

// Packed codes: 64 bytes. They are used twice, for low and high nibbles, and GCC would load them
// twice: half of them cross a cache line, which takes two cycles.
WOQ_INLINE I32 load_codes(const uint8_t* p) {
  I32 codes = _mm512_loadu_si512(p);
  __asm__("" : "+v"(codes));
  return codes;
}
WOQ_INLINE I32 broadcast_bytes(const uint8_t* p) {  // 4 bytes in every lane
  int32_t x;
  std::memcpy(&x, p, sizeof x);
  return _mm512_set1_epi32(x);
}
WOQ_INLINE I32 low_nibbles(I32 codes) {
  return _mm512_and_si512(codes, _mm512_set1_epi8(15));
}
WOQ_INLINE I32 high_nibbles(I32 codes) {
  return _mm512_and_si512(_mm512_srli_epi16(codes, 4), _mm512_set1_epi8(15));
}
WOQ_INLINE I32 flip_sign_bits(I32 codes) {
  return _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
}

WOQ_INLINE I32 set_bytes(int x) {
  return _mm512_set1_epi8(static_cast<char>(x));
}
// Adds x to the bytes whose bit is set in the 64 bits at `plane`; bit i is byte i's.
WOQ_INLINE I32 add_where(I32 bytes, const uint8_t* plane, int x) {
  uint64_t bits;
  std::memcpy(&bits, plane, sizeof bits);
  return _mm512_mask_add_epi8(bytes, _cvtu64_mask64(bits), bytes, set_bytes(x));
}

// Bytes looked up in a table of 16.
struct ByteTable {
  I32 v;
  explicit ByteTable(const uint8_t* p)
      : v(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))) {}
};
WOQ_INLINE I32 look_up(const ByteTable& table, I32 nibbles) {
  return _mm512_shuffle_epi8(table.v, nibbles);
}

// Element kElement (0..7) of a 4-bit step as floats from a table of 16: vpermps reads the low four
// bits of each lane.
struct FloatTable {
  F32 v;
  explicit FloatTable(const float* p) : v(_mm512_loadu_ps(p)) {}
};
template <int kElement>
WOQ_INLINE F32 look_up(const FloatTable& table, I32 codes) {
  constexpr int kShift = 8 * (kElement % 4) + 4 * (kElement / 4);
  return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, kShift), table.v);
}

// Bits [kBit, kBit + kBits) of each lane as a number, minus 2^(kBits - 1). With the exponent of
// 2^(23 - kBit) above them, the bits are an integer part: no conversion, and one shift for all
// fields that lie too high.
template <int kBit, int kBits>
WOQ_INLINE F32 centred_field(I32 codes) {
  if constexpr (kBit + kBits > 23) {
    constexpr int kShift = kBits == 8 ? 16 : 12;
    return centred_field<kBit - kShift, kBits>(_mm512_srli_epi32(codes, kShift));
  } else {
    constexpr int kMask = ((1 << kBits) - 1) << kBit, kExponent = (127 + 23 - kBit) << 23;
    constexpr int kAndOr = 0xea;  // (codes & mask) | exponent
    const I32 bits = _mm512_ternarylogic_epi32(codes, set_i32(kMask), set_i32(kExponent), kAndOr);
    return subtract(_mm512_castsi512_ps(bits),
                    set_f32(static_cast<float>((1 << (23 - kBit)) + (1 << (kBits - 1)))));
  }
}
// The same of 4-bit integers. Arithmetic as in centred_field would be as fast, but for its
// constants.
template <int kElement>
WOQ_INLINE F32 integer_nibble(const FloatTable& table, I32 codes) {
  return look_up<kElement>(table, codes);
}
// Byte kByte (0..3) of each lane.
template <int kByte>
WOQ_INLINE F32 centred_byte(I32 codes) {
  return centred_field<8 * kByte, 8>(codes);
}

// 4-way dot products of bytes into dwords, weights x activations. Weights come as their code plus
// an excess that the caller has subtracted from the accumulator as excess * sum(activations).
// Nibbles may come as pairs (elements 0-3 and 4-7) with both halves of the activations.
struct NibblePair {
  I32 lo, hi;
};
struct BroadcastPair {
  I32 lo, hi;
};
#if WOQ_HAS_VNNI
inline constexpr int kByteExcess = 128;
struct ByteOperand {
  I32 v;
};
WOQ_INLINE ByteOperand byte_operand(I32 excess128) {
  return {excess128};
}
WOQ_INLINE I32 dot(I32 acc, const ByteOperand& w, I32 a) {
  return _mm512_dpbusd_epi32(acc, w.v, a);
}
#else
// vpmaddubsw saturates at 32767, which sums of two products do not reach: those of nibbles are at
// most 2 * 15 * 127 = 3810, and those of a signed byte's magnitude (at most 128) with an activation
// that carries its sign are at most 2 * 128 * 127 = 32512.
inline constexpr int kByteExcess = 0;
struct ByteOperand {
  I32 magnitude;
  __mmask64 negative;
};
WOQ_INLINE ByteOperand byte_operand(I32 excess128) {
  const I32 value = flip_sign_bits(excess128);
  return {_mm512_abs_epi8(value), _mm512_movepi8_mask(value)};
}
WOQ_INLINE I32 add_pairs(I32 acc, I32 pairs) {
  return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
WOQ_INLINE I32 dot(I32 acc, const ByteOperand& w, I32 a) {
  const I32 signed_a = _mm512_mask_sub_epi8(a, w.negative, zero_i32(), a);
  return add_pairs(acc, _mm512_maddubs_epi16(w.magnitude, signed_a));
}
WOQ_INLINE I32 dot(I32 acc, const NibblePair& w, const BroadcastPair& a) {
  return add_pairs(
      acc, _mm512_add_epi16(_mm512_maddubs_epi16(w.lo, a.lo), _mm512_maddubs_epi16(w.hi, a.hi)));
}
#endif

#if WOQ_HAS_BF16
// bfloat16 pairs: word 0 and word 1 of a lane are elements k and k + 2 of a step, see
// ActFormat::kBf16.
struct Bf16Table {
  I32 v;  // 16 values twice: vpermw reads five index bits, the fifth of which belongs to a
          // neighbour
  explicit Bf16Table(const uint16_t* p)
      : v(_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))) {}
};
// Pair kPair (0: k, k + 2; 1: k + 4, k + 6; 2: k + 1, k + 3; 3: k + 5, k + 7) of a 4-bit step.
template <int kPair>
WOQ_INLINE I32 look_up_pair(const Bf16Table& table, I32 codes) {
  return _mm512_permutexvar_epi16(_mm512_srli_epi32(codes, 4 * kPair), table.v);
}
// Bytes kByte and kByte + 2 of each lane, centred, as bfloat16: integers of 8 bits are exact, so
// the upper halves of their fp32 forms are all there is.
template <int kByte>
WOQ_INLINE I32 centred_byte_pair(I32 codes) {
  const I32 first = _mm512_castps_si512(centred_byte<kByte>(codes));
  const I32 second = _mm512_castps_si512(centred_byte<kByte + 2>(codes));
  return _mm512_mask_mov_epi16(_mm512_srli_epi32(first, 16), 0xaaaaaaaau, second);
}
WOQ_INLINE F32 dot_bf16(F32 acc, I32 w, I32 a) {
#if defined(__clang__)
  // clang 16 crashes where it would fold a 32-bit broadcast into vdpbf16ps: keep it in a register.
  __asm__("" : "+v"(a));
#endif
  // GCC and Clang name the operand type differently; both are 512 bits of bfloat16.
  __m512bh wh, ah;
  std::memcpy(&wh, &w, sizeof wh);
  std::memcpy(&ah, &a, sizeof ah);
  return _mm512_dpbf16_ps(acc, wh, ah);
}
// Lanes whose lower half is low's element in bfloat16, the upper half high's; subnormals become 0.
WOQ_INLINE I32 pair_bf16(F32 low, F32 high) {
  const __m256bh first = _mm512_cvtneps_pbh(low), second = _mm512_cvtneps_pbh(high);
  __m256i lower, upper;
  std::memcpy(&lower, &first, sizeof lower);
  std::memcpy(&upper, &second, sizeof upper);
  return or_i32(_mm512_cvtepu16_epi32(lower), shift_left<16>(_mm512_cvtepu16_epi32(upper)));
}
// Stores the first `lanes` elements, rounded to bfloat16; subnormals become 0.
WOQ_INLINE void narrow_bf16(void* p, F32 a, int64_t lanes) {
  const __m256bh halves = _mm512_cvtneps_pbh(a);
  __m256i bits;
  std::memcpy(&bits, &halves, sizeof bits);
  if (lanes == 16) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), bits);
  } else {
    _mm256_mask_storeu_epi16(p, first_lanes(lanes), bits);
  }
}
// 16 elements, in the order of ActFormat::kBf16.
WOQ_INLINE void store_bf16_pairs(void* p, F32 a) {
  const I32 order = _mm512_set_epi32(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0);
  store_bf16(p, _mm512_permutexvar_ps(order, a));
}
#endif

}  // namespace woq::WOQ_TARGET_NS
