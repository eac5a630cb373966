// SPDX-License-Identifier: Apache-2.0
// A row of codes of 1 to 8 bits, as every quantized matrix stores it: one stream of bits, the
// lowest first. Code k is the number
//     c(k) = bits [k * bits, (k + 1) * bits) of the row
// where bit i of the row is bit i % 8 of byte i / 8. At 4 bits the even k therefore lies in the low
// nibble, at 8 bits a code is a byte; codes of 3, 5, 6 and 7 bits cross bytes. The last byte is
// filled up with zeros.
//
// Whatever reads or writes stored codes does it here. Widths of 4 and 8 bits have loops of their
// own, which compilers turn into vectors.
#pragma once

#include <algorithm>
#include <cstdint>

namespace woq {

// Bytes of a row of n codes.
constexpr int64_t code_row_bytes(int64_t n, int bits) {
  return (n * bits + 7) / 8;
}

constexpr int read_code(const uint8_t* row, int64_t k, int bits) {
  if (bits == 8) return row[k];
  if (bits == 4) return row[k / 2] >> (k % 2 * 4) & 15;
  const int64_t first = k * bits, byte = first / 8;
  const int shift = static_cast<int>(first % 8);
  int word = row[byte];
  if (shift + bits > 8) word |= row[byte + 1] << 8;
  return word >> shift & ((1 << bits) - 1);
}

// Replaces code k; the others stay.
constexpr void write_code(uint8_t* row, int64_t k, int bits, int code) {
  const int64_t first = k * bits, byte = first / 8;
  const int shift = static_cast<int>(first % 8), mask = (1 << bits) - 1;
  row[byte] = static_cast<uint8_t>((row[byte] & ~(mask << shift)) | (code & mask) << shift);
  if (shift + bits <= 8) return;
  const int kept = 8 - shift;  // bits of the code that the first byte holds
  row[byte + 1] = static_cast<uint8_t>((row[byte + 1] & ~(mask >> kept)) | (code & mask) >> kept);
}

// Clears what fills up the last byte of a row of n codes. Files may hold anything there.
constexpr void clear_filling(uint8_t* row, int64_t n, int bits) {
  const int used = static_cast<int>(n * bits % 8);
  if (used > 0) row[n * bits / 8] = static_cast<uint8_t>(row[n * bits / 8] & ((1 << used) - 1));
}

// Calls body(k, code) for the codes [begin, end) of a row, in order.
template <class Body>
void for_each_code(const uint8_t* row, int64_t begin, int64_t end, int bits, const Body& body) {
  if (bits == 8) {
    for (int64_t k = begin; k < end; ++k) body(k, static_cast<int>(row[k]));
  } else if (bits == 4) {
    int64_t k = begin;
    if (k % 2 != 0 && k < end) {
      body(k, row[k / 2] >> 4);
      ++k;
    }
    for (; k + 1 < end; k += 2) {
      body(k, row[k / 2] & 15);
      body(k + 1, row[k / 2] >> 4);
    }
    if (k < end) body(k, row[k / 2] & 15);
  } else {
    for (int64_t k = begin; k < end; ++k) body(k, read_code(row, k, bits));
  }
}

// Codes [begin, end) of a row, one a byte.
inline void read_codes(const uint8_t* row, int64_t begin, int64_t end, int bits, uint8_t* codes) {
  for_each_code(row, begin, end, bits,
                [&](int64_t k, int code) { codes[k - begin] = static_cast<uint8_t>(code); });
}

// Writes a whole row of n codes, given one a byte and below 2^bits.
inline void write_codes(const uint8_t* codes, int64_t n, int bits, uint8_t* row) {
  if (bits == 8) {
    std::copy_n(codes, n, row);
  } else if (bits == 4) {
    for (int64_t i = 0; i + 1 < n; i += 2)
      row[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
    if (n % 2 != 0) row[n / 2] = codes[n - 1];
  } else {
    std::fill_n(row, code_row_bytes(n, bits), uint8_t{0});
    for (int64_t k = 0; k < n; ++k) write_code(row, k, bits, codes[k]);
  }
}

}  // namespace woq
