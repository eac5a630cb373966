// SPDX-License-Identifier: Apache-2.0
// One row of a step of the kernel layout: its 8 codes, between the hub's stream of bits and their
// places in the step, which packed_matrix.h describes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "woq/pack/packed_matrix.h"

namespace woq::detail {

inline constexpr uint64_t kLowestBits = 0x0101010101010101u;  // of each byte

// A code a byte, from 8 codes of `bits` bits one after the other.
inline uint64_t codes_to_bytes(uint64_t codes, int bits) {
  if (bits == 4) {
    codes = (codes | codes << 16) & 0x0000ffff0000ffffu;
    codes = (codes | codes << 8) & 0x00ff00ff00ff00ffu;
    return (codes | codes << 4) & 0x0f0f0f0f0f0f0f0fu;
  }
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  uint64_t bytes = 0;
  for (int j = 0; j < 8; ++j) bytes |= (codes >> (bits * j) & mask) << (8 * j);
  return bytes;
}

inline uint64_t bytes_to_codes(uint64_t bytes, int bits) {
  if (bits == 4) {
    bytes = (bytes | bytes >> 4) & 0x00ff00ff00ff00ffu;
    bytes = (bytes | bytes >> 8) & 0x0000ffff0000ffffu;
    return (bytes | bytes >> 16) & 0xffffffffu;
  }
  uint64_t codes = 0;
  for (int j = 0; j < 8; ++j) codes |= (bytes >> (8 * j) & 0xff) << (bits * j);
  return codes;
}

// Bit j of the result is the lowest bit of byte j. The factor moves that bit to place 56 + j, and
// no other bit above place 55.
inline uint32_t lowest_bits(uint64_t bytes) {
  return static_cast<uint32_t>((bytes & kLowestBits) * 0x0102040810204080u >> 56);
}

// The inverse: byte j is bit j of `bits`. Bit j stays alone in byte j, whose addend carries it to
// the byte's highest bit.
inline uint64_t bits_to_bytes(uint32_t bits) {
  const uint64_t apart = bits * kLowestBits & 0x8040201008040201u;
  return (apart + 0x00406070787c7e7fu) >> 7 & kLowestBits;
}

inline uint32_t load_word(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// Stores the codes of row `lane` of a step that is all zeros in that row.
inline void store_in_step(uint64_t codes, int bits, int64_t lane, uint8_t* step) {
  const uint64_t bytes = bits == 8 ? codes : codes_to_bytes(codes, bits);
  if (bits == 8) {
    const uint32_t halves[2] = {static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes >> 32)};
    std::memcpy(step + 4 * lane, &halves[0], 4);
    std::memcpy(step + kStepBytes4 + 4 * lane, &halves[1], 4);
    return;
  }
  int bit = 0;
  if (has_nibbles(bits)) {
    const uint64_t low = bytes & 0x0f * kLowestBits;
    const auto nibbles = static_cast<uint32_t>(low | low >> 28);
    std::memcpy(step + 4 * lane, &nibbles, 4);
    step += kStepBytes4;
    bit = 4;
  }
  for (; bit < bits; ++bit, step += kPlaneBytes) {
    const uint32_t plane = lowest_bits(bytes >> bit);
    const int shift = static_cast<int>(lane % 2 * 4);
    step[lane / 2] |= static_cast<uint8_t>((plane & 15) << shift);
    step[kPlaneBytes / 2 + lane / 2] |= static_cast<uint8_t>(plane >> 4 << shift);
  }
}

inline uint64_t load_from_step(const uint8_t* step, int bits, int64_t lane) {
  if (bits == 8) {
    return load_word(step + 4 * lane) |
           static_cast<uint64_t>(load_word(step + kStepBytes4 + 4 * lane)) << 32;
  }
  uint64_t bytes = 0;
  int bit = 0;
  if (has_nibbles(bits)) {
    const uint64_t nibbles = load_word(step + 4 * lane);
    bytes = (nibbles | nibbles << 28) & 0x0f * kLowestBits;
    step += kStepBytes4;
    bit = 4;
  }
  for (; bit < bits; ++bit, step += kPlaneBytes) {
    const int shift = static_cast<int>(lane % 2 * 4);
    const uint32_t plane =
        (step[lane / 2] >> shift & 15) | (step[kPlaneBytes / 2 + lane / 2] >> shift & 15) << 4;
    bytes |= bits_to_bytes(plane) << bit;
  }
  return bytes_to_codes(bytes, bits);
}

// Moves `bytes` bytes of a row of the hub, which start at a whole step, into the steps at `steps`.
inline void pack_codes(const uint8_t* hub, int64_t bytes, int bits, int64_t lane, uint8_t* steps) {
  for (int64_t byte = 0; byte < bytes; byte += bits, steps += kPlaneBytes * bits) {
    uint64_t codes = 0;
    std::memcpy(&codes, hub + byte, static_cast<size_t>(std::min<int64_t>(bits, bytes - byte)));
    store_in_step(codes, bits, lane, steps);
  }
}

inline void unpack_codes(const uint8_t* steps, int bits, int64_t lane, int64_t bytes,
                         uint8_t* hub) {
  for (int64_t byte = 0; byte < bytes; byte += bits, steps += kPlaneBytes * bits) {
    const uint64_t codes = load_from_step(steps, bits, lane);
    std::memcpy(hub + byte, &codes, static_cast<size_t>(std::min<int64_t>(bits, bytes - byte)));
  }
}

}  // namespace woq::detail
