// SPDX-License-Identifier: Apache-2.0
// The ISA vocabulary on 256-bit registers: 16 lanes of 32 bits are two registers. simd_512-inl.h
// has the same names.
namespace woq::WOQ_TARGET_NS {

struct F32 {  // 16 floats
  __m256 lo, hi;
};
struct I32 {  // 16 dwords, or 64 bytes
  __m256i lo, hi;
};

// Arithmetic.
WOQ_INLINE F32 set_f32(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
WOQ_INLINE I32 set_i32(int32_t x) {
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
WOQ_INLINE F32 zero_f32() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
WOQ_INLINE I32 zero_i32() {
  return {_mm256_setzero_si256(), _mm256_setzero_si256()};
}
WOQ_INLINE F32 add(F32 a, F32 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
WOQ_INLINE F32 subtract(F32 a, F32 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
WOQ_INLINE F32 multiply(F32 a, F32 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
WOQ_INLINE F32 divide(F32 a, F32 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
WOQ_INLINE F32 minimum(F32 a, F32 b) {  // b where one is NaN
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
WOQ_INLINE F32 maximum(F32 a, F32 b) {  // b where one is NaN
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
WOQ_INLINE __m256 power_of_two(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
WOQ_INLINE F32 power_of_two(I32 n) {  // -126..127
  return {power_of_two(n.lo), power_of_two(n.hi)};
}
WOQ_INLINE F32 fused_add(F32 a, F32 b, F32 c) {  // a b + c
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
WOQ_INLINE F32 fused_subtract(F32 a, F32 b, F32 c) {  // c - a b
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
WOQ_INLINE I32 add_i32(I32 a, I32 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
WOQ_INLINE I32 max_i32(I32 a, I32 b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
WOQ_INLINE I32 and_i32(I32 a, I32 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
WOQ_INLINE F32 to_f32(I32 a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
WOQ_INLINE I32 round_i32(F32 a) {
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}  // nearest even
WOQ_INLINE I32 magnitude_bits(F32 a) {
  return and_i32({_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}, set_i32(0x7fffffff));
}
WOQ_INLINE int32_t reduce_max(I32 a) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(a.lo, a.hi));
  int32_t largest = lanes[0];
  for (int i = 1; i < 8; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}
WOQ_INLINE int32_t reduce_add(I32 a) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi32(a.lo, a.hi));
  int32_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  return sum;
}
WOQ_INLINE float reduce_add(F32 a) {
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, _mm256_add_ps(a.lo, a.hi));
  float sum = 0;
  for (float lane : lanes) sum += lane;
  return sum;
}

// Rounds to what bfloat16 holds; NaN stays NaN.
WOQ_INLINE __m256 round_to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  const __m256 quiet = _mm256_or_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int32_t>(0xffff0000u)));
  return _mm256_and_ps(_mm256_blendv_ps(_mm256_castsi256_ps(up), quiet, nan), mask);
}
WOQ_INLINE F32 round_to_bf16(F32 a) {
  return {round_to_bf16(a.lo), round_to_bf16(a.hi)};
}

// Memory: 16 elements.
WOQ_INLINE F32 load_f32(const void* p) {
  const float* const f = static_cast<const float*>(p);
  return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
}
WOQ_INLINE __m256 widen_bf16(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
WOQ_INLINE F32 load_bf16(const void* p) {
  const __m128i* const halves = static_cast<const __m128i*>(p);
  return {widen_bf16(_mm_loadu_si128(halves)), widen_bf16(_mm_loadu_si128(halves + 1))};
}
WOQ_INLINE F32 load_fp16(const void* p) {
  const __m128i* const halves = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
WOQ_INLINE F32 load_u8(const void* p) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return to_f32({_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))});
}
WOQ_INLINE F32 load_s8(const void* p) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return to_f32({_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))});
}
WOQ_INLINE I32 load_bytes(const void* p) {  // unsigned, as dwords
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
WOQ_INLINE void store_f32(void* p, F32 a) {
  _mm256_storeu_ps(static_cast<float*>(p), a.lo);
  _mm256_storeu_ps(static_cast<float*>(p) + 8, a.hi);
}
// Narrows dwords to words, in order. They must be in [0, 2^16), or where is_signed in the range of
// int16.
WOQ_INLINE __m256i pack_words(__m256i lo, __m256i hi, bool is_signed) {
  const __m256i words = is_signed ? _mm256_packs_epi32(lo, hi) : _mm256_packus_epi32(lo, hi);
  return _mm256_permute4x64_epi64(words, 0xd8);  // packs works within 128-bit halves
}
WOQ_INLINE void store_bf16(void* p, F32 a) {
  const F32 r = round_to_bf16(a);
  const __m256i lo = _mm256_srli_epi32(_mm256_castps_si256(r.lo), 16);
  const __m256i hi = _mm256_srli_epi32(_mm256_castps_si256(r.hi), 16);
  _mm256_storeu_si256(static_cast<__m256i*>(p), pack_words(lo, hi, false));
}
WOQ_INLINE void store_fp16(void* p, F32 a) {
  constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, kRounding));
  _mm_storeu_si128(static_cast<__m128i*>(p) + 1, _mm256_cvtps_ph(a.hi, kRounding));
}
WOQ_INLINE void store_s8(void* p, I32 a) {
  const __m256i words = pack_words(a.lo, a.hi, true);
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(words),
                                                             _mm256_extracti128_si256(words, 1)));
}

// Integers and bits.
WOQ_INLINE I32 lane_numbers() {  // 0 to 15
  return {_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set_epi32(15, 14, 13, 12, 11, 10, 9, 8)};
}
WOQ_INLINE I32 multiply_i32(I32 a, I32 b) {
  return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
WOQ_INLINE I32 or_i32(I32 a, I32 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
template <int kBits>
WOQ_INLINE I32 shift_left(I32 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
WOQ_INLINE I32 shift_right(I32 a) {
  return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
}
WOQ_INLINE F32 as_f32(I32 a) {
  return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
WOQ_INLINE I32 as_i32(F32 a) {
  return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
WOQ_INLINE I32 load_i32(const void* p) {
  const __m256i* const v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
WOQ_INLINE void store_i32(void* p, I32 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.hi);
}
// The first `lanes` words at p; 0 in the other lanes.
WOQ_INLINE I32 load_u16(const void* p, int64_t lanes) {
  __m128i halves[2] = {_mm_setzero_si128(), _mm_setzero_si128()};
  std::memcpy(halves, p, static_cast<size_t>(lanes) * 2);
  return {_mm256_cvtepu16_epi32(halves[0]), _mm256_cvtepu16_epi32(halves[1])};
}
// The dwords that lie `places` dwords behind p, in the first `lanes` lanes; 0 in the others.
WOQ_INLINE I32 gather_i32(const void* p, I32 places, int64_t lanes) {
  alignas(32) int32_t at[16], found[16] = {};
  store_i32(at, places);
  for (int64_t i = 0; i < lanes; ++i)
    std::memcpy(found + i, static_cast<const char*>(p) + int64_t{4} * at[i], sizeof found[i]);
  return load_i32(found);
}
// x in the lanes where a > b, y in the others.
WOQ_INLINE F32 where_greater(I32 a, I32 b, F32 x, F32 y) {
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.lo, b.lo))),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_castsi256_ps(_mm256_cmpgt_epi32(a.hi, b.hi)))};
}

WOQ_INLINE F32 magnitude(F32 a) {
  return as_f32(magnitude_bits(a));
}
WOQ_INLINE F32 nearest_integer(F32 a) {
  constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kRounding), _mm256_round_ps(a.hi, kRounding)};
}
// a 2^n, for whole n up to 0. 2^-127 and less are no normal numbers, so in two steps; 2^-252 brings
// every finite a to 0.
WOQ_INLINE F32 scale_by_power(F32 a, F32 n) {
  const I32 whole = round_i32(maximum(n, set_f32(-252.0f)));
  const I32 half = {_mm256_srai_epi32(whole.lo, 1), _mm256_srai_epi32(whole.hi, 1)};
  const I32 rest = {_mm256_sub_epi32(whole.lo, half.lo), _mm256_sub_epi32(whole.hi, half.hi)};
  return multiply(multiply(a, power_of_two(half)), power_of_two(rest));
}

struct F64 {  // 16 doubles
  __m256d v[4];
};
WOQ_INLINE F64 zero_f64() {
  const __m256d zero = _mm256_setzero_pd();
  return {{zero, zero, zero, zero}};
}
WOQ_INLINE F64 add(const F64& a, const F64& b) {
  return {{_mm256_add_pd(a.v[0], b.v[0]), _mm256_add_pd(a.v[1], b.v[1]),
           _mm256_add_pd(a.v[2], b.v[2]), _mm256_add_pd(a.v[3], b.v[3])}};
}
WOQ_INLINE F64 to_f64(F32 a) {
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(a.lo)),
           _mm256_cvtps_pd(_mm256_extractf128_ps(a.lo, 1)),
           _mm256_cvtps_pd(_mm256_castps256_ps128(a.hi)),
           _mm256_cvtps_pd(_mm256_extractf128_ps(a.hi, 1))}};
}
WOQ_INLINE F64 load_f64(const double* p) {
  return {{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8),
           _mm256_loadu_pd(p + 12)}};
}
WOQ_INLINE void store_f64(double* p, const F64& a) {
  WOQ_UNROLL for (int i = 0; i < 4; ++i) _mm256_storeu_pd(p + 4 * i, a.v[i]);
}

// Packed codes: 64 bytes.
WOQ_INLINE I32 load_codes(const uint8_t* p) {
  const __m256i* const v = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
WOQ_INLINE I32 broadcast_bytes(const uint8_t* p) {  // 4 bytes in every lane
  int32_t x;
  std::memcpy(&x, p, sizeof x);
  return set_i32(x);
}
WOQ_INLINE I32 low_nibbles(I32 codes) {
  const __m256i mask = _mm256_set1_epi8(15);
  return and_i32(codes, {mask, mask});
}
WOQ_INLINE I32 high_nibbles(I32 codes) {
  return low_nibbles({_mm256_srli_epi16(codes.lo, 4), _mm256_srli_epi16(codes.hi, 4)});
}
WOQ_INLINE I32 flip_sign_bits(I32 codes) {
  const __m256i mask = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(codes.lo, mask), _mm256_xor_si256(codes.hi, mask)};
}

WOQ_INLINE I32 set_bytes(int x) {
  const __m256i bytes = _mm256_set1_epi8(static_cast<char>(x));
  return {bytes, bytes};
}
WOQ_INLINE __m256i add_where(__m256i bytes, const uint8_t* plane, int x) {
  int32_t bits;
  std::memcpy(&bits, plane, sizeof bits);
  const __m256i own_byte = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                             0x0101010101010101, 0x0000000000000000);
  const __m256i own_bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), own_byte);
  const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, own_bit), own_bit);
  return _mm256_add_epi8(bytes, _mm256_and_si256(is_set, _mm256_set1_epi8(static_cast<char>(x))));
}
// Adds x to the bytes whose bit is set in the 64 bits at `plane`; bit i is byte i's.
WOQ_INLINE I32 add_where(I32 bytes, const uint8_t* plane, int x) {
  return {add_where(bytes.lo, plane, x), add_where(bytes.hi, plane + 4, x)};
}

// Bytes looked up in a table of 16.
struct ByteTable {
  __m256i v;
  explicit ByteTable(const uint8_t* p)
      : v(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))) {}
};
WOQ_INLINE I32 look_up(const ByteTable& table, I32 nibbles) {
  return {_mm256_shuffle_epi8(table.v, nibbles.lo), _mm256_shuffle_epi8(table.v, nibbles.hi)};
}

// Element kElement (0..7) of a 4-bit step as floats from a table of 16: vpermps reads three index
// bits, so two look-ups are blended by the fourth.
struct FloatTable {
  __m256 first, second;
  explicit FloatTable(const float* p) : first(_mm256_loadu_ps(p)), second(_mm256_loadu_ps(p + 8)) {}
};
template <int kShift>
WOQ_INLINE __m256 look_up_at(const FloatTable& table, __m256i codes) {
  const __m256i index = _mm256_srli_epi32(codes, kShift);
  const __m256 fourth_bit = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - kShift));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.first, index),
                          _mm256_permutevar8x32_ps(table.second, index), fourth_bit);
}
template <int kElement>
WOQ_INLINE F32 look_up(const FloatTable& table, I32 codes) {
  constexpr int kShift = 8 * (kElement % 4) + 4 * (kElement / 4);
  return {look_up_at<kShift>(table, codes.lo), look_up_at<kShift>(table, codes.hi)};
}

// Bits [kBit, kBit + kBits) of each lane as a number, minus 2^(kBits - 1). With the exponent of
// 2^(23 - kBit) above them, the bits are an integer part: no conversion, and one shift for all
// fields that lie too high.
template <int kBit, int kBits>
WOQ_INLINE __m256 centred_field_half(__m256i codes) {
  if constexpr (kBit + kBits > 23) {
    constexpr int kShift = kBits == 8 ? 16 : 12;
    return centred_field_half<kBit - kShift, kBits>(_mm256_srli_epi32(codes, kShift));
  } else {
    const __m256i mask = _mm256_set1_epi32(((1 << kBits) - 1) << kBit);
    const __m256i exponent = _mm256_set1_epi32((127 + 23 - kBit) << 23);
    return _mm256_sub_ps(
        _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(codes, mask), exponent)),
        _mm256_set1_ps(static_cast<float>((1 << (23 - kBit)) + (1 << (kBits - 1)))));
  }
}
template <int kBit, int kBits>
WOQ_INLINE F32 centred_field(I32 codes) {
  return {centred_field_half<kBit, kBits>(codes.lo), centred_field_half<kBit, kBits>(codes.hi)};
}
// Element kElement (0..7) of a step of 4-bit integers: arithmetic is faster than the look-up here.
template <int kElement>
WOQ_INLINE F32 integer_nibble(const FloatTable&, I32 codes) {
  return centred_field<8 * (kElement % 4) + 4 * (kElement / 4), 4>(codes);
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
  return {_mm256_dpbusd_avx_epi32(acc.lo, w.v.lo, a.lo),
          _mm256_dpbusd_avx_epi32(acc.hi, w.v.hi, a.hi)};
}
#else
// vpmaddubsw saturates at 32767, which sums of two products do not reach: those of nibbles are at
// most 2 * 15 * 127 = 3810, and those of a signed byte's magnitude (at most 128) with an activation
// that carries its sign are at most 2 * 128 * 127 = 32512.
inline constexpr int kByteExcess = 0;
struct ByteOperand {
  I32 magnitude, value;
};
WOQ_INLINE ByteOperand byte_operand(I32 excess128) {
  const I32 value = flip_sign_bits(excess128);
  return {{_mm256_abs_epi8(value.lo), _mm256_abs_epi8(value.hi)}, value};
}
WOQ_INLINE __m256i add_pairs(__m256i acc, __m256i pairs) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
WOQ_INLINE I32 dot(I32 acc, const ByteOperand& w, I32 a) {
  return {
      add_pairs(acc.lo, _mm256_maddubs_epi16(w.magnitude.lo, _mm256_sign_epi8(a.lo, w.value.lo))),
      add_pairs(acc.hi, _mm256_maddubs_epi16(w.magnitude.hi, _mm256_sign_epi8(a.hi, w.value.hi)))};
}
WOQ_INLINE I32 dot(I32 acc, const NibblePair& w, const BroadcastPair& a) {
  return {add_pairs(acc.lo, _mm256_add_epi16(_mm256_maddubs_epi16(w.lo.lo, a.lo.lo),
                                             _mm256_maddubs_epi16(w.hi.lo, a.hi.lo))),
          add_pairs(acc.hi, _mm256_add_epi16(_mm256_maddubs_epi16(w.lo.hi, a.lo.hi),
                                             _mm256_maddubs_epi16(w.hi.hi, a.hi.hi)))};
}
#endif

}  // namespace woq::WOQ_TARGET_NS
