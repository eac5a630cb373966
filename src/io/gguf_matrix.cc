// SPDX-License-Identifier: Apache-2.0
#include "woq/io/gguf_matrix.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "woq/core/code_row.h"
#include "woq/core/parallel.h"
#include "woq/quant/scales.h"
#include "woq/quant/validate.h"

namespace woq::io {

namespace {

constexpr int64_t kMostElements = 256;  // of a block
constexpr int64_t kMostGroups = 16;

// A block, taken apart. Scales and minima are bytes in the encoding that the hub stores.
struct Block {
  uint8_t codes[kMostElements];
  uint8_t scales[kMostGroups * 2], minima[kMostGroups * 2];
  uint8_t super[2], minimum_super[2];  // fp16, what they are multiplied by
};

using Decode = void (*)(const uint8_t* in, Block* out);

// How the hub holds a type, and how a block of it is taken apart.
struct Form {
  const char* name;  // kGgufTypes has its sizes
  WeightDtype dtype;
  int64_t group_size;
  ZeroKind zeros;
  ScaleEncoding scales;
  Decode decode;
};

// Blocks of 32 (and 16, of NVFP4) have their first half in the low nibbles, the second in the high
// ones.
void split_nibbles(const uint8_t* in, int64_t half, uint8_t* codes) {
  for (int64_t i = 0; i < half; ++i) {
    codes[i] = in[i] & 15;
    codes[half + i] = in[i] >> 4;
  }
}

// Q5_0 and Q5_1: the fifth bits are those of a little-endian word.
void add_fifth_bits(const uint8_t* word, uint8_t* codes) {
  for (int64_t i = 0; i < 32; ++i)
    codes[i] = static_cast<uint8_t>(codes[i] | (word[i / 8] >> (i % 8) & 1) << 4);
}

void decode_q4_0(const uint8_t* in, Block* out) {
  std::memcpy(out->scales, in, 2);
  split_nibbles(in + 2, 16, out->codes);
}

void decode_q4_1(const uint8_t* in, Block* out) {
  std::memcpy(out->scales, in, 2);
  std::memcpy(out->minima, in + 2, 2);
  split_nibbles(in + 4, 16, out->codes);
}

void decode_q5_0(const uint8_t* in, Block* out) {
  std::memcpy(out->scales, in, 2);
  split_nibbles(in + 6, 16, out->codes);
  add_fifth_bits(in + 2, out->codes);
}

void decode_q5_1(const uint8_t* in, Block* out) {
  std::memcpy(out->scales, in, 2);
  std::memcpy(out->minima, in + 2, 2);
  split_nibbles(in + 8, 16, out->codes);
  add_fifth_bits(in + 4, out->codes);
}

// Signed bytes become codes around 128.
void decode_q8_0(const uint8_t* in, Block* out) {
  std::memcpy(out->scales, in, 2);
  for (int64_t i = 0; i < 32; ++i) out->codes[i] = in[2 + i] ^ 128;
}

// Element 128 h + 32 j + l of Q2_K, Q3_K and TQ2_0 has bits 2 j and 2 j + 1 of byte 32 h + l.
void split_pairs(const uint8_t* in, uint8_t* codes) {
  for (int64_t i = 0; i < 256; ++i) codes[i] = in[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
}

// fp16 with the other sign: what is subtracted in the file is added in the hub.
void store_negated(const uint8_t* fp16, uint8_t* out) {
  out[0] = fp16[0];
  out[1] = fp16[1] ^ 128;
}

void decode_q2_k(const uint8_t* in, Block* out) {
  for (int64_t j = 0; j < 16; ++j) {
    out->scales[j] = in[j] & 15;
    out->minima[j] = in[j] >> 4;
  }
  split_pairs(in + 16, out->codes);
  std::memcpy(out->super, in + 80, 2);
  store_negated(in + 82, out->minimum_super);
}

// Sub-scales of 6 bits: the low nibbles of 16 in 8 bytes, then their upper 2 bits in 4 bytes.
void decode_q3_k(const uint8_t* in, Block* out) {
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

// Q4_K and Q5_K: 8 sub-scales and 8 sub-minima of 6 bits in 12 bytes. Those of the first four
// groups lie in the low 6 bits of bytes 0 to 7; bytes 8 to 11 have the low nibbles of the others,
// whose upper 2 bits are those of bytes 0 to 7.
void split_k_scales(const uint8_t* in, Block* out) {
  for (int64_t j = 0; j < 4; ++j) {
    out->scales[j] = in[j] & 63;
    out->minima[j] = in[j + 4] & 63;
    out->scales[j + 4] = static_cast<uint8_t>((in[j + 8] & 15) | in[j] >> 6 << 4);
    out->minima[j + 4] = static_cast<uint8_t>(in[j + 8] >> 4 | in[j + 4] >> 6 << 4);
  }
}

// Each 32 bytes hold two groups of 32: the first in the low nibbles.
void decode_q4_k(const uint8_t* in, Block* out) {
  std::memcpy(out->super, in, 2);
  store_negated(in + 2, out->minimum_super);
  split_k_scales(in + 4, out);
  for (int64_t i = 0; i < 4; ++i) split_nibbles(in + 16 + 32 * i, 32, out->codes + 64 * i);
}

void decode_q5_k(const uint8_t* in, Block* out) {
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

// Element 128 h + 32 j + l: nibble j / 2 of byte 64 h + 32 (j % 2) + l, and above it bits 2 j and
// 2 j + 1 of byte 32 h + l of the upper bits.
void decode_q6_k(const uint8_t* in, Block* out) {
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

// Sub-scales of 6 bits around 32: low nibbles in 4 bytes, upper pairs in a word of 16 bits.
void decode_iq4_xs(const uint8_t* in, Block* out) {
  std::memcpy(out->super, in, 2);
  for (int64_t j = 0; j < 8; ++j) {
    const int low = in[4 + j / 2] >> (j % 2 * 4) & 15;
    const int high = in[2 + j / 4] >> (j % 4 * 2) & 3;
    out->scales[j] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  for (int64_t j = 0; j < 8; ++j) split_nibbles(in + 8 + 16 * j, 16, out->codes + 32 * j);
}

// ggml's table for both FP4 types consists of integers, in which code 8 is no minus zero.
void drop_minus_zeros(uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (codes[i] == 8) codes[i] = 0;
  }
}

void decode_mxfp4(const uint8_t* in, Block* out) {
  out->scales[0] = in[0];
  split_nibbles(in + 1, 16, out->codes);
  drop_minus_zeros(out->codes, 32);
}

// Scales are E4M3 without a sign, whose NaN stands for 0. (Its sign bit is not looked at.)
void decode_nvfp4(const uint8_t* in, Block* out) {
  for (int64_t j = 0; j < 4; ++j) {
    out->scales[j] = in[j] == 127 ? 0 : in[j] & 127;
    split_nibbles(in + 4 + 8 * j, 8, out->codes + 16 * j);
  }
  drop_minus_zeros(out->codes, 64);
}

// Ternary types have the values -1, 0, 1 (TQ2_0, too, 2: code 3). TQ1_0 and Q1_0 lie around the
// centre of int2, which is 2; TQ2_0 and Q2_0 need all four codes, and have a zero point of 1.
//
// TQ1_0: a byte b stands for the number b / 256 in base 3. Digit n of it is the integer part of
// 3 frac(3^n b / 256). 32 bytes have 5 digits each, then 16 bytes 5, then 4 bytes 4; digit n of all
// bytes of such a run comes before their digit n + 1.
void decode_tq1_0(const uint8_t* in, Block* out) {
  constexpr int kRuns[][2] = {{32, 5}, {16, 5}, {4, 4}};  // bytes, digits
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

void decode_tq2_0(const uint8_t* in, Block* out) {
  split_pairs(in, out->codes);
  std::memcpy(out->scales, in + 64, 2);
}

void decode_q2_0(const uint8_t* in, Block* out) {
  std::memcpy(out->scales, in, 2);
  read_codes(in + 2, 0, 64, 2, out->codes);
}

void decode_q1_0(const uint8_t* in, Block* out) {
  std::memcpy(out->scales, in, 2);
  for (int64_t i = 0; i < 128; ++i)
    out->codes[i] = static_cast<uint8_t>(1 + 2 * (in[2 + i / 8] >> (i % 8) & 1));
}

constexpr auto kSym = ZeroKind::kNone, kInt = ZeroKind::kInt, kMin = ZeroKind::kMin;
constexpr auto kFp16 = ScaleEncoding::kFp16, kTwoLevel = ScaleEncoding::kTwoLevel;

constexpr Form kForms[] = {
    {"Q4_0", WeightDtype::kInt4Clip, 32, kSym, kFp16, decode_q4_0},
    {"Q4_1", WeightDtype::kInt4Clip, 32, kMin, kFp16, decode_q4_1},
    {"Q5_0", WeightDtype::kInt5, 32, kSym, kFp16, decode_q5_0},
    {"Q5_1", WeightDtype::kInt5, 32, kMin, kFp16, decode_q5_1},
    {"Q8_0", WeightDtype::kInt8, 32, kSym, kFp16, decode_q8_0},
    {"Q2_K", WeightDtype::kInt2, 16, kMin, kTwoLevel, decode_q2_k},
    {"Q3_K", WeightDtype::kInt3, 16, kSym, kTwoLevel, decode_q3_k},
    {"Q4_K", WeightDtype::kInt4Clip, 32, kMin, kTwoLevel, decode_q4_k},
    {"Q5_K", WeightDtype::kInt5, 32, kMin, kTwoLevel, decode_q5_k},
    {"Q6_K", WeightDtype::kInt6, 16, kSym, kTwoLevel, decode_q6_k},
    {"IQ4_NL", WeightDtype::kIq4Nl, 32, kSym, kFp16, decode_q4_0},  // but for the table
    {"IQ4_XS", WeightDtype::kIq4Nl, 32, kSym, kTwoLevel, decode_iq4_xs},
    {"MXFP4", WeightDtype::kFp4E2m1, 32, kSym, ScaleEncoding::kE8M0, decode_mxfp4},
    {"NVFP4", WeightDtype::kFp4E2m1, 16, kSym, ScaleEncoding::kE4M3, decode_nvfp4},
    {"TQ1_0", WeightDtype::kInt2, 256, kSym, kFp16, decode_tq1_0},
    {"TQ2_0", WeightDtype::kInt2, 256, kInt, kFp16, decode_tq2_0},
    {"Q1_0", WeightDtype::kInt2, 128, kSym, kFp16, decode_q1_0},
    {"Q2_0", WeightDtype::kInt2, 64, kInt, kFp16, decode_q2_0},
};
constexpr uint8_t kTernaryZero = 1;  // of those with kInt

const Form* form_of(const GgufType& type) {
  for (const Form& form : kForms) {
    if (std::string_view(form.name) == type.name) return &form;
  }
  return nullptr;
}

void check_order(const std::vector<int64_t>& order, int64_t rows) {
  if (order.empty()) return;
  if (static_cast<int64_t>(order.size()) != rows)
    fail("an order of ", order.size(), " rows for a matrix of ", rows);
  for (const int64_t row : order) {
    if (row < 0 || row >= rows) fail("row ", row, " is none of the matrix's ", rows);
  }
}

// Fills row n of the matrix from the blocks of one row. `codes` [K] is room for its codes.
void read_row(const Form& form, const GgufType& type, const uint8_t* in, int64_t n, uint8_t* codes,
              QuantizedMatrix* matrix) {
  const int64_t blocks = matrix->cols / type.block_elements;
  const int64_t groups = type.block_elements / form.group_size;  // of a block
  const int64_t bytes = groups * stored_scale_bytes(form.scales);
  const int64_t at = n * blocks * bytes;
  for (int64_t b = 0; b < blocks; ++b) {
    Block block;
    form.decode(in + b * type.block_bytes, &block);
    std::memcpy(codes + b * type.block_elements, block.codes,
                static_cast<size_t>(type.block_elements));
    std::memcpy(matrix->scales.values.data() + at + b * bytes, block.scales,
                static_cast<size_t>(bytes));
    if (form.zeros == kMin) {
      std::memcpy(matrix->minima.values.data() + at + b * bytes, block.minima,
                  static_cast<size_t>(bytes));
    }
    if (form.scales != kTwoLevel) continue;
    const int64_t super = (n * blocks + b) * 2;
    std::memcpy(matrix->scales.supers.data() + super, block.super, 2);
    if (form.zeros == kMin)
      std::memcpy(matrix->minima.supers.data() + super, block.minimum_super, 2);
  }
  write_codes(codes, matrix->cols, matrix->dtype().bits, matrix->row(n));
}

}  // namespace

bool is_gguf_matrix(const GgufType& type) {
  return form_of(type) != nullptr;
}

QuantizedMatrix read_gguf_matrix(const GgufType& type, std::string_view data, int64_t rows,
                                 int64_t cols, const std::vector<int64_t>& row_order, int threads) {
  const Form* const form = form_of(type);
  if (form == nullptr) {
    std::string known;
    for (const Form& each : kForms) known += concat(known.empty() ? "" : ", ", each.name);
    fail<Unsupported>("GGUF's type ", type.name, " cannot run packed; those that can: ", known,
                      ". Load the model with a quantization_config, which dequantizes it and "
                      "quantizes again");
  }
  check_extents(rows, cols);
  if (cols % type.block_elements != 0) {
    fail("rows of ", cols, " weights are not whole blocks of ", type.name, ", which have ",
         type.block_elements);
  }
  const int64_t row_bytes = cols / type.block_elements * type.block_bytes;
  if (static_cast<int64_t>(data.size()) / row_bytes != rows ||
      static_cast<int64_t>(data.size()) % row_bytes != 0) {
    fail("a matrix of ", rows, " x ", cols, " weights in ", type.name, " takes ", rows, " x ",
         row_bytes, " bytes, got ", data.size());
  }
  check_order(row_order, rows);
  const QuantScheme scheme{form->dtype, form->group_size, form->zeros, form->scales};
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  matrix.scales = ScaleTable::allocate(scheme, rows, matrix.groups());
  if (form->zeros == kMin) matrix.minima = ScaleTable::allocate(scheme, rows, matrix.groups());
  if (form->zeros == kInt)
    std::memset(matrix.zero_points.data(), kTernaryZero,
                static_cast<size_t>(matrix.zero_points.size()));
  const auto* const bytes = reinterpret_cast<const uint8_t*>(data.data());
  parallel_for(rows, useful_threads(threads, rows * cols, kElementGrain),
               [&](int64_t begin, int64_t end) {
                 Buffer codes(cols);
                 for (int64_t n = begin; n < end; ++n) {
                   const int64_t from = row_order.empty() ? n : row_order[static_cast<size_t>(n)];
                   read_row(*form, type, bytes + from * row_bytes, n, codes.data(), &matrix);
                 }
               });
  validate(matrix);
  return matrix;
}

}  // namespace woq::io
