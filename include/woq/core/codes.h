// SPDX-License-Identifier: Apache-2.0
// Codebooks of the 4-bit table dtypes: values, rounding rule and the 8-bit image that int8 compute
// multiplies with.
#pragma once

#include <cstdint>

namespace woq {

// A code's value is values[code]; the code of x is code_of_rank[number of thresholds t with x > t].
// Thresholds are the midpoints of neighbouring values; a midpoint itself therefore goes to the
// lower value, unless the table moves the threshold one representable number down, which sends it
// up.
struct Codebook {
  float values[16];
  float thresholds[15];
  uint8_t code_of_rank[16];
  // int8 compute uses image[code] * image_unit in place of values[code].
  int8_t image[16];
  float image_unit;
  // How x is brought to the table's range: bitsandbytes multiplies by the rounded reciprocal of the
  // scale, which decides some near-ties differently from a division.
  bool multiply_by_reciprocal;
};

constexpr uint8_t encode(const Codebook& book, float x) {
  int rank = 0;
  for (float threshold : book.thresholds) rank += x > threshold ? 1 : 0;
  return book.code_of_rank[rank];
}

// NormalFloat4: QLoRA, arXiv:2305.14314, appendix E; the constants and the code order are
// bitsandbytes'. The image rounds 127 * value: the largest error is 0.0037 of absmax, and the mean
// squared error of Gaussian weights grows by 0.1 to 0.5 %.
inline constexpr float kNf4Values[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

constexpr Codebook make_nf4() {
  Codebook book{};
  constexpr int8_t image[16] = {-127, -88, -67, -50, -36, -23, -12, 0,
                                10,   20,  31,  43,  56,  71,  92,  127};
  for (int i = 0; i < 16; ++i) {
    book.values[i] = kNf4Values[i];
    book.code_of_rank[i] = static_cast<uint8_t>(i);
    book.image[i] = image[i];
    if (i > 0) book.thresholds[i - 1] = (kNf4Values[i - 1] + kNf4Values[i]) / 2;
  }
  book.image_unit = 1.0f / 127.0f;
  book.multiply_by_reciprocal = true;
  return book;
}
inline constexpr Codebook kNf4Codebook = make_nf4();

// OCP Microscaling Formats (MX) v1.0, section 5.3.3: sign | 2-bit exponent | 1-bit mantissa,
// subnormal 0.5. Ties go to the even mantissa, in magnitude; code 8 (minus zero) is read but never
// written. The image, twice the value, is exact. (ITREX's table of this name has 0.0625 in place of
// 0.5, which costs 24 to 66 % more squared error on Gaussians.)
inline constexpr Codebook kFp4E2m1Codebook = {
    {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f,
     -4.0f, -6.0f},
    // One unit in the last place below the midpoint where the upper neighbour has the even
    // mantissa.
    {-5.0f - 0x1p-21f, -3.5f, -2.5f - 0x1p-22f, -1.75f, -1.25f - 0x1p-23f, -0.75f,
     -0.25f - 0x1p-25f, 0.25f, 0.75f - 0x1p-24f, 1.25f, 1.75f - 0x1p-23f, 2.5f, 3.5f - 0x1p-22f,
     5.0f,
     // Fifteen values have fourteen midpoints; the last rank is never reached.
     3.402823466e+38f},
    {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7},
    {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
    0.5f,
    false,
};

// bitsandbytes' FP4: its code order, normalised to 1, so that the scale is absmax and
// dequantization equals bitsandbytes' bit for bit. Two codes stand for zero: 0 for what rounds to
// zero from below or is zero, 8 for what rounds to it from above. The image is 96 * value but for
// 1/192, where 0.5 becomes 1 (off by 0.0052 of absmax, towards the mean of the weights that this
// code stands for).
constexpr Codebook make_fp4_bnb() {
  Codebook book{};
  constexpr float magnitude[8] = {0.0f, 0.005208333333f, 0.66666667f, 1.0f, 0.33333333f,
                                  0.5f, 0.16666667f,     0.25f};
  constexpr int8_t image[8] = {0, 1, 64, 96, 32, 48, 16, 24};
  constexpr uint8_t sorted[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
  for (int i = 0; i < 8; ++i) {
    book.values[i] = magnitude[i];
    book.values[i + 8] = i == 0 ? 0.0f : -magnitude[i];
    book.image[i] = image[i];
    book.image[i + 8] = static_cast<int8_t>(-image[i]);
  }
  for (int i = 0; i < 16; ++i) book.code_of_rank[i] = sorted[i];
  for (int i = 0; i < 15; ++i)
    book.thresholds[i] = (book.values[sorted[i]] + book.values[sorted[i + 1]]) / 2;
  book.image_unit = 1.0f / 96.0f;
  book.multiply_by_reciprocal = true;
  return book;
}
inline constexpr Codebook kFp4BnbCodebook = make_fp4_bnb();

// IQ4_NL, the table of GGUF's types IQ4_NL and IQ4_XS: whole numbers from -127 to 113, closer
// together near 0, where weights are. The image is exact. 0 is no entry: it becomes 1.
constexpr Codebook make_iq4_nl() {
  Codebook book{};
  constexpr int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};
  for (int i = 0; i < 16; ++i) {
    book.values[i] = values[i];
    book.image[i] = values[i];
    book.code_of_rank[i] = static_cast<uint8_t>(i);
    if (i > 0) book.thresholds[i - 1] = static_cast<float>(values[i - 1] + values[i]) / 2;
  }
  book.image_unit = 1.0f;
  book.multiply_by_reciprocal = false;
  return book;
}
inline constexpr Codebook kIq4NlCodebook = make_iq4_nl();

}  // namespace woq
