// SPDX-License-Identifier: Apache-2.0
#include "gguf_blocks.h"

#include <cstring>
#include <string_view>

#include "woq/core/code_row.h"

namespace woq::io {

namespace {

// Blocks of 32 (and 16, of NVFP4) have their first half in the low nibbles, the second in the high
// ones.
void split_nibbles(const uint8_t* in, int64_t half, uint8_t* codes) {
  for (int64_t i = 0; i < half; ++i) {
    codes[i] = in[i] & 15;
    codes[half + i] = in[i] >> 4;
  }
}

void join_nibbles(const uint8_t* codes, int64_t half, uint8_t* out) {
  for (int64_t i = 0; i < half; ++i)
    out[i] = static_cast<uint8_t>((codes[i] & 15) | codes[half + i] << 4);
}

// Q5_0 and Q5_1: the fifth bits are those of a little-endian word.
void add_fifth_bits(const uint8_t* word, uint8_t* codes) {
  for (int64_t i = 0; i < 32; ++i)
    codes[i] = static_cast<uint8_t>(codes[i] | (word[i / 8] >> (i % 8) & 1) << 4);
}

void store_fifth_bits(const uint8_t* codes, uint8_t* word) {
  for (int64_t i = 0; i < 32; i += 8) {
    int byte = 0;
    for (int64_t j = 0; j < 8; ++j) byte |= (codes[i + j] >> 4) << j;
    word[i / 8] = static_cast<uint8_t>(byte);
  }
}

void decode_q4_0(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->scales, in, 2);
  split_nibbles(in + 2, 16, out->codes);
}

void encode_q4_0(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 2);
  join_nibbles(in.codes, 16, out + 2);
}

void decode_q4_1(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->scales, in, 2);
  std::memcpy(out->minima, in + 2, 2);
  split_nibbles(in + 4, 16, out->codes);
}

void encode_q4_1(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 2);
  std::memcpy(out + 2, in.minima, 2);
  join_nibbles(in.codes, 16, out + 4);
}

void decode_q5_0(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->scales, in, 2);
  split_nibbles(in + 6, 16, out->codes);
  add_fifth_bits(in + 2, out->codes);
}

void encode_q5_0(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 2);
  store_fifth_bits(in.codes, out + 2);
  join_nibbles(in.codes, 16, out + 6);
}

void decode_q5_1(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->scales, in, 2);
  std::memcpy(out->minima, in + 2, 2);
  split_nibbles(in + 8, 16, out->codes);
  add_fifth_bits(in + 4, out->codes);
}

void encode_q5_1(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 2);
  std::memcpy(out + 2, in.minima, 2);
  store_fifth_bits(in.codes, out + 4);
  join_nibbles(in.codes, 16, out + 8);
}

// Signed bytes become codes around 128.
void decode_q8_0(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->scales, in, 2);
  for (int64_t i = 0; i < 32; ++i) out->codes[i] = in[2 + i] ^ 128;
}

void encode_q8_0(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 2);
  for (int64_t i = 0; i < 32; ++i) out[2 + i] = in.codes[i] ^ 128;
}

// Element 128 h + 32 j + l of Q2_K, Q3_K and TQ2_0 has bits 2 j and 2 j + 1 of byte 32 h + l.
void split_pairs(const uint8_t* in, uint8_t* codes) {
  for (int64_t i = 0; i < 256; ++i) codes[i] = in[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

void join_pairs(const uint8_t* codes, uint8_t* out) {
  std::memset(out, 0, 64);
  for (int64_t i = 0; i < 256; ++i) {
    uint8_t& byte = out[i / 128 * 32 + i % 32];
    byte = static_cast<uint8_t>(byte | (codes[i] & 3) << (i % 128 / 32 * 2));
  }
}

// Bit `from` of code i becomes bit i / 32 of byte i % 32.
void store_high_bits(const uint8_t* codes, int from, uint8_t* out) {
  std::memset(out, 0, 32);
  for (int64_t i = 0; i < 256; ++i)
    out[i % 32] = static_cast<uint8_t>(out[i % 32] | (codes[i] >> from & 1) << (i / 32));
}

// fp16 with the other sign: what is subtracted in the file is added in the hub.
void store_negated(const uint8_t* fp16, uint8_t* out) {
  out[0] = fp16[0];
  out[1] = fp16[1] ^ 128;
}

void decode_q2_k(const uint8_t* in, GgufBlock* out) {
  for (int64_t j = 0; j < 16; ++j) {
    out->scales[j] = in[j] & 15;
    out->minima[j] = in[j] >> 4;
  }
  split_pairs(in + 16, out->codes);
  std::memcpy(out->super, in + 80, 2);
  store_negated(in + 82, out->minimum_super);
}

void encode_q2_k(const GgufBlock& in, uint8_t* out) {
  for (int64_t j = 0; j < 16; ++j) out[j] = static_cast<uint8_t>(in.scales[j] | in.minima[j] << 4);
  join_pairs(in.codes, out + 16);
  std::memcpy(out + 80, in.super, 2);
  store_negated(in.minimum_super, out + 82);
}

// Sub-scales of 6 bits: the low nibbles of 16 in 8 bytes, then their upper 2 bits in 4 bytes.
void decode_q3_k(const uint8_t* in, GgufBlock* out) {
  const uint8_t* const high_bits = in;
  const uint8_t* const low_nibbles = in + 96;
  const uint8_t* const upper_pairs = in + 104;
  split_pairs(in + 32, out->codes);
  for (int64_t i = 0; i < 256; ++i) {
    const int high = high_bits[i % 32] >> (i / 32) & 1;
    out->codes[i] = static_cast<uint8_t>(out->codes[i] | high << 2);
  }
  for (int64_t j = 0; j < 16; ++j) {
    const int low = j < 8 ? low_nibbles[j] & 15 : low_nibbles[j - 8] >> 4;
    const int high = upper_pairs[j % 4] >> (j / 4 * 2) & 3;
    out->scales[j] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  std::memcpy(out->super, in + 108, 2);
}

void encode_q3_k(const GgufBlock& in, uint8_t* out) {
  store_high_bits(in.codes, 2, out);
  join_pairs(in.codes, out + 32);
  std::memset(out + 96, 0, 12);
  for (int64_t j = 0; j < 16; ++j) {
    const int sub = static_cast<uint8_t>(in.scales[j] + 32);
    uint8_t& low = out[96 + j % 8];
    uint8_t& high = out[104 + j % 4];
    low = static_cast<uint8_t>(low | (sub & 15) << (j / 8 * 4));
    high = static_cast<uint8_t>(high | sub >> 4 << (j / 4 * 2));
  }
  std::memcpy(out + 108, in.super, 2);
}

// Q4_K and Q5_K: 8 sub-scales and 8 sub-minima of 6 bits in 12 bytes. Those of the first four
// groups lie in the low 6 bits of bytes 0 to 7; bytes 8 to 11 have the low nibbles of the others,
// whose upper 2 bits are those of bytes 0 to 7.
void split_k_scales(const uint8_t* in, GgufBlock* out) {
  for (int64_t j = 0; j < 4; ++j) {
    out->scales[j] = in[j] & 63;
    out->minima[j] = in[j + 4] & 63;
    out->scales[j + 4] = static_cast<uint8_t>((in[j + 8] & 15) | in[j] >> 6 << 4);
    out->minima[j + 4] = static_cast<uint8_t>(in[j + 8] >> 4 | in[j + 4] >> 6 << 4);
  }
}

void join_k_scales(const GgufBlock& in, uint8_t* out) {
  for (int64_t j = 0; j < 4; ++j) {
    out[j] = static_cast<uint8_t>(in.scales[j] | in.scales[j + 4] >> 4 << 6);
    out[j + 4] = static_cast<uint8_t>(in.minima[j] | in.minima[j + 4] >> 4 << 6);
    out[j + 8] = static_cast<uint8_t>((in.scales[j + 4] & 15) | in.minima[j + 4] << 4);
  }
}

// Each 32 bytes hold two groups of 32: the first in the low nibbles.
void decode_q4_k(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->super, in, 2);
  store_negated(in + 2, out->minimum_super);
  split_k_scales(in + 4, out);
  for (int64_t i = 0; i < 4; ++i) split_nibbles(in + 16 + 32 * i, 32, out->codes + 64 * i);
}

void encode_q4_k(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.super, 2);
  store_negated(in.minimum_super, out + 2);
  join_k_scales(in, out + 4);
  for (int64_t i = 0; i < 4; ++i) join_nibbles(in.codes + 64 * i, 32, out + 16 + 32 * i);
}

void decode_q5_k(const uint8_t* in, GgufBlock* out) {
  const uint8_t* const high_bits = in + 16;
  std::memcpy(out->super, in, 2);
  store_negated(in + 2, out->minimum_super);
  split_k_scales(in + 4, out);
  for (int64_t i = 0; i < 4; ++i) split_nibbles(in + 48 + 32 * i, 32, out->codes + 64 * i);
  for (int64_t i = 0; i < 256; ++i) {
    const int high = high_bits[i % 32] >> (i / 32) & 1;
    out->codes[i] = static_cast<uint8_t>(out->codes[i] | high << 4);
  }
}

void encode_q5_k(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.super, 2);
  store_negated(in.minimum_super, out + 2);
  join_k_scales(in, out + 4);
  store_high_bits(in.codes, 4, out + 16);
  for (int64_t i = 0; i < 4; ++i) join_nibbles(in.codes + 64 * i, 32, out + 48 + 32 * i);
}

// Element 128 h + 32 j + l: nibble j / 2 of byte 64 h + 32 (j % 2) + l, and above it bits 2 j and
// 2 j + 1 of byte 32 h + l of the upper bits.
void decode_q6_k(const uint8_t* in, GgufBlock* out) {
  const uint8_t* const upper = in + 128;
  for (int64_t i = 0; i < 256; ++i) {
    const int64_t h = i / 128, j = i % 128 / 32, l = i % 32;
    const int low = in[64 * h + 32 * (j % 2) + l] >> (j / 2 * 4) & 15;
    const int high = upper[32 * h + l] >> (2 * j) & 3;
    out->codes[i] = static_cast<uint8_t>(low | high << 4);
  }
  std::memcpy(out->scales, in + 192, 16);
  std::memcpy(out->super, in + 208, 2);
}

void encode_q6_k(const GgufBlock& in, uint8_t* out) {
  uint8_t* const upper = out + 128;
  std::memset(out, 0, 192);
  for (int64_t i = 0; i < 256; ++i) {
    const int64_t h = i / 128, j = i % 128 / 32, l = i % 32;
    uint8_t& low = out[64 * h + 32 * (j % 2) + l];
    uint8_t& high = upper[32 * h + l];
    low = static_cast<uint8_t>(low | (in.codes[i] & 15) << (j / 2 * 4));
    high = static_cast<uint8_t>(high | in.codes[i] >> 4 << (2 * j));
  }
  std::memcpy(out + 192, in.scales, 16);
  std::memcpy(out + 208, in.super, 2);
}

// Sub-scales of 6 bits around 32: low nibbles in 4 bytes, upper pairs in a word of 16 bits.
void decode_iq4_xs(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->super, in, 2);
  for (int64_t j = 0; j < 8; ++j) {
    const int low = in[4 + j / 2] >> (j % 2 * 4) & 15;
    const int high = in[2 + j / 4] >> (j % 4 * 2) & 3;
    out->scales[j] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  for (int64_t j = 0; j < 8; ++j) split_nibbles(in + 8 + 16 * j, 16, out->codes + 32 * j);
}

void encode_iq4_xs(const GgufBlock& in, uint8_t* out) {
  std::memset(out, 0, 8);
  std::memcpy(out, in.super, 2);
  for (int64_t j = 0; j < 8; ++j) {
    const int sub = static_cast<uint8_t>(in.scales[j] + 32);
    uint8_t& low = out[4 + j / 2];
    uint8_t& high = out[2 + j / 4];
    low = static_cast<uint8_t>(low | (sub & 15) << (j % 2 * 4));
    high = static_cast<uint8_t>(high | sub >> 4 << (j % 4 * 2));
  }
  for (int64_t j = 0; j < 8; ++j) join_nibbles(in.codes + 32 * j, 16, out + 8 + 16 * j);
}

// ggml's table for both FP4 types consists of integers, in which code 8 is no minus zero.
void drop_minus_zeros(uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (codes[i] == 8) codes[i] = 0;
  }
}

void decode_mxfp4(const uint8_t* in, GgufBlock* out) {
  out->scales[0] = in[0];
  split_nibbles(in + 1, 16, out->codes);
  drop_minus_zeros(out->codes, 32);
}

void encode_mxfp4(const GgufBlock& in, uint8_t* out) {
  out[0] = in.scales[0];
  join_nibbles(in.codes, 16, out + 1);
}

// Scales are E4M3 without a sign, whose NaN stands for 0. (Its sign bit is not looked at.)
void decode_nvfp4(const uint8_t* in, GgufBlock* out) {
  for (int64_t j = 0; j < 4; ++j) {
    out->scales[j] = in[j] == 127 ? 0 : in[j] & 127;
    split_nibbles(in + 4 + 8 * j, 8, out->codes + 16 * j);
  }
  drop_minus_zeros(out->codes, 64);
}

void encode_nvfp4(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 4);
  for (int64_t j = 0; j < 4; ++j) join_nibbles(in.codes + 16 * j, 8, out + 4 + 8 * j);
}

// Ternary types have the values -1, 0, 1 (TQ2_0, too, 2: code 3). TQ1_0 and Q1_0 lie around the
// centre of int2, which is 2; TQ2_0 and Q2_0 need all four codes, and have a zero point of 1.
//
// TQ1_0: a byte b stands for the number b / 256 in base 3. Digit n of it is the integer part of
// 3 frac(3^n b / 256). 32 bytes have 5 digits each, then 16 bytes 5, then 4 bytes 4; digit n of all
// bytes of such a run comes before their digit n + 1.
constexpr int kRuns[][2] = {{32, 5}, {16, 5}, {4, 4}};  // bytes, digits

void decode_tq1_0(const uint8_t* in, GgufBlock* out) {
  uint8_t* code = out->codes;
  for (const auto& [bytes, digits] : kRuns) {
    int power = 1;
    for (int n = 0; n < digits; ++n, power *= 3) {
      for (int i = 0; i < bytes; ++i)
        *code++ = static_cast<uint8_t>((in[i] * power % 256 * 3 >> 8) + 1);
    }
    in += bytes;
  }
  std::memcpy(out->scales, in, 2);
}

// The smallest byte whose first digits are these; those that a run of 4 lacks are 0.
void encode_tq1_0(const GgufBlock& in, uint8_t* out) {
  const uint8_t* code = in.codes;
  for (const auto& [bytes, digits] : kRuns) {
    for (int i = 0; i < bytes; ++i) {
      int number = 0;
      for (int n = 0; n < 5; ++n) number = 3 * number + (n < digits ? code[n * bytes + i] - 1 : 0);
      out[i] = static_cast<uint8_t>((number * 256 + 242) / 243);
    }
    code += bytes * digits;
    out += bytes;
  }
  std::memcpy(out, in.scales, 2);
}

void decode_tq2_0(const uint8_t* in, GgufBlock* out) {
  split_pairs(in, out->codes);
  std::memcpy(out->scales, in + 64, 2);
}

void encode_tq2_0(const GgufBlock& in, uint8_t* out) {
  join_pairs(in.codes, out);
  std::memcpy(out + 64, in.scales, 2);
}

void decode_q2_0(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->scales, in, 2);
  read_codes(in + 2, 0, 64, 2, out->codes);
}

void encode_q2_0(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 2);
  write_codes(in.codes, 64, 2, out + 2);
}

void decode_q1_0(const uint8_t* in, GgufBlock* out) {
  std::memcpy(out->scales, in, 2);
  for (int64_t i = 0; i < 128; ++i)
    out->codes[i] = static_cast<uint8_t>(1 + 2 * (in[2 + i / 8] >> (i % 8) & 1));
}

void encode_q1_0(const GgufBlock& in, uint8_t* out) {
  std::memcpy(out, in.scales, 2);
  std::memset(out + 2, 0, 16);
  for (int64_t i = 0; i < 128; ++i)
    out[2 + i / 8] = static_cast<uint8_t>(out[2 + i / 8] | in.codes[i] >> 1 << (i % 8));
}

constexpr auto kSym = ZeroKind::kNone, kInt = ZeroKind::kInt, kMin = ZeroKind::kMin;
constexpr auto kFp16 = ScaleEncoding::kFp16, kTwoLevel = ScaleEncoding::kTwoLevel;

}  // namespace

const GgufForm kGgufForms[18] = {
    {"Q4_0", WeightDtype::kInt4Clip, 32, kSym, kFp16, decode_q4_0, encode_q4_0},
    {"Q4_1", WeightDtype::kInt4Clip, 32, kMin, kFp16, decode_q4_1, encode_q4_1},
    {"Q5_0", WeightDtype::kInt5, 32, kSym, kFp16, decode_q5_0, encode_q5_0},
    {"Q5_1", WeightDtype::kInt5, 32, kMin, kFp16, decode_q5_1, encode_q5_1},
    {"Q8_0", WeightDtype::kInt8, 32, kSym, kFp16, decode_q8_0, encode_q8_0},
    {"Q2_K", WeightDtype::kInt2, 16, kMin, kTwoLevel, decode_q2_k, encode_q2_k, 0, 15},
    {"Q3_K", WeightDtype::kInt3, 16, kSym, kTwoLevel, decode_q3_k, encode_q3_k, -32, 31},
    {"Q4_K", WeightDtype::kInt4Clip, 32, kMin, kTwoLevel, decode_q4_k, encode_q4_k, 0, 63},
    {"Q5_K", WeightDtype::kInt5, 32, kMin, kTwoLevel, decode_q5_k, encode_q5_k, 0, 63},
    {"Q6_K", WeightDtype::kInt6, 16, kSym, kTwoLevel, decode_q6_k, encode_q6_k},
    // Q4_0's blocks, with a table.
    {"IQ4_NL", WeightDtype::kIq4Nl, 32, kSym, kFp16, decode_q4_0, encode_q4_0},
    {"IQ4_XS", WeightDtype::kIq4Nl, 32, kSym, kTwoLevel, decode_iq4_xs, encode_iq4_xs, -32, 31},
    {"MXFP4", WeightDtype::kFp4E2m1, 32, kSym, ScaleEncoding::kE8M0, decode_mxfp4, encode_mxfp4},
    {"NVFP4", WeightDtype::kFp4E2m1, 16, kSym, ScaleEncoding::kE4M3, decode_nvfp4, encode_nvfp4},
    {"TQ1_0", WeightDtype::kInt2, 256, kSym, kFp16, decode_tq1_0, encode_tq1_0, -128, 127, 1},
    {"TQ2_0", WeightDtype::kInt2, 256, kInt, kFp16, decode_tq2_0, encode_tq2_0},
    {"Q1_0", WeightDtype::kInt2, 128, kSym, kFp16, decode_q1_0, encode_q1_0, -128, 127, 1, 2},
    {"Q2_0", WeightDtype::kInt2, 64, kInt, kFp16, decode_q2_0, encode_q2_0},
};

const GgufForm* gguf_form(const GgufType& type) {
  for (const GgufForm& form : kGgufForms) {
    if (std::string_view(form.name) == type.name) return &form;
  }
  return nullptr;
}

}  // namespace woq::io
