// SPDX-License-Identifier: Apache-2.0
// Codes in 32-bit words, as GPTQ, AutoRound and compressed-tensors keep them. All have one layout:
// a stream of bits, the lowest first, whose bits [32 w, 32 w + 32) are word w, and code i is bits
// [i * bits, (i + 1) * bits). GPTQ's "special" layout of 3 bits is no other.
//
// GPTQModel's `gptq_p` differs: each 32 codes are `bits` words, of which every one holds a part
// ("plane") of the codes: the low planes first, of 4, 2 or 1 bits: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2,
// 7 = 4 + 2 + 1. In a plane of p bits, word i holds codes [i * 32 / p, (i + 1) * 32 / p).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace woq::io {

enum class WordLayout : uint8_t { kStream, kPlanes };

// Words of n codes.
constexpr int64_t packed_words(int64_t n, int bits) {
  return (n * bits + 31) / 32;
}

namespace detail {

// Word number i of a tensor of int32, which need not be aligned.
inline uint32_t load_word(const void* words, int64_t i) {
  uint32_t word;
  std::memcpy(&word, static_cast<const char*>(words) + i * 4, sizeof word);
  return word;
}

// A block of 32 codes, or the `count` of them that a row ends with, from `bits` words.
inline void unpack_stream(const uint32_t* words, int bits, int64_t count, uint8_t* codes) {
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = i * bits, word = first / 32;
    const int shift = static_cast<int>(first % 32);
    uint32_t code = words[word] >> shift;
    if (shift + bits > 32) code |= words[word + 1] << (32 - shift);
    codes[i] = static_cast<uint8_t>(code & mask);
  }
}

inline void unpack_planes(const uint32_t* words, int bits, int64_t count, uint8_t* codes) {
  std::fill_n(codes, count, uint8_t{0});
  int below = 0;
  for (const int width : {8, 4, 2, 1}) {
    if ((bits & width) == 0) continue;
    const int64_t per_word = 32 / width;
    const uint32_t mask = (1u << width) - 1;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t part = words[i / per_word] >> (i % per_word * width) & mask;
      codes[i] = static_cast<uint8_t>(codes[i] | part << below);
    }
    words += width;
    below += width;
  }
}

}  // namespace detail

// The n codes, one a byte, of words that lie `stride` words apart, the first at `start`.
inline void unpack_words(const void* words, int64_t start, int64_t stride, int64_t n, int bits,
                         WordLayout layout, uint8_t* codes) {
  const int64_t all = packed_words(n, bits);
  for (int64_t block = 0; block * 32 < n; ++block) {
    uint32_t part[8] = {};
    const int64_t first = block * bits;
    for (int64_t i = 0; i < std::min<int64_t>(bits, all - first); ++i)
      part[i] = detail::load_word(words, start + (first + i) * stride);
    const int64_t count = std::min<int64_t>(32, n - block * 32);
    if (layout == WordLayout::kPlanes) {
      detail::unpack_planes(part, bits, count, codes + block * 32);
    } else {
      detail::unpack_stream(part, bits, count, codes + block * 32);
    }
  }
}

}  // namespace woq::io
