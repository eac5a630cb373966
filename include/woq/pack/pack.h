// SPDX-License-Identifier: Apache-2.0
// pack(): hub to kernel layout. unpack(): back, for saving.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "woq/core/parallel.h"
#include "woq/pack/packed_matrix.h"
#include "woq/quant/quantized_matrix.h"

namespace woq {

namespace detail {

// Bytes j of the result hold nibbles j of the low 16 bits.
inline uint32_t spread_nibbles(uint32_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0fu;
}

// The inverse, for bytes below 16.
inline uint32_t gather_nibbles(uint32_t x) {
  x = (x | x >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0x0000ffffu;
}

// One row of a 4-bit step: the hub has nibble k at bit 4 k.
inline uint32_t pack_step4(uint32_t hub) {
  return spread_nibbles(hub & 0xffffu) | spread_nibbles(hub >> 16) << 4;
}

inline uint32_t unpack_step4(uint32_t packed) {
  return gather_nibbles(packed & 0x0f0f0f0fu) | gather_nibbles(packed >> 4 & 0x0f0f0f0fu) << 16;
}

// Copies `lane` of a tile's codes from or to a row of the hub.
inline void pack_row_codes(const uint8_t* row, int64_t row_bytes, int bits, int lane,
                           uint8_t* tile) {
  const int64_t unit = bits == 4 ? 4 : 8;  // bytes of a row in a step
  for (int64_t byte = 0; byte < row_bytes; byte += unit, tile += kStepBytes4 * bits / 4) {
    uint32_t words[2] = {0, 0};
    std::memcpy(words, row + byte, static_cast<size_t>(std::min(unit, row_bytes - byte)));
    if (bits == 4) words[0] = pack_step4(words[0]);
    std::memcpy(tile + 4 * lane, &words[0], 4);
    if (bits == 8) std::memcpy(tile + kStepBytes4 + 4 * lane, &words[1], 4);
  }
}

inline void unpack_row_codes(const uint8_t* tile, int bits, int lane, int64_t row_bytes,
                             uint8_t* row) {
  const int64_t unit = bits == 4 ? 4 : 8;
  for (int64_t byte = 0; byte < row_bytes; byte += unit, tile += kStepBytes4 * bits / 4) {
    uint32_t words[2] = {0, 0};
    std::memcpy(&words[0], tile + 4 * lane, 4);
    if (bits == 8) std::memcpy(&words[1], tile + kStepBytes4 + 4 * lane, 4);
    if (bits == 4) words[0] = unpack_step4(words[0]);
    std::memcpy(row + byte, words, static_cast<size_t>(std::min(unit, row_bytes - byte)));
  }
}

}  // namespace detail

// The destination is first touched by the threads that kernels will read it with (the same static
// shares).
inline PackedMatrix pack(const QuantizedMatrix& matrix, int threads = 0) {
  PackedMatrix packed;
  packed.scheme = matrix.scheme;
  packed.rows = matrix.rows;
  packed.cols = matrix.cols;
  packed.data = Buffer(packed.tiles() * packed.tile_bytes());
  packed.block_absmax = matrix.scales.block_absmax;
  packed.scale_offset = matrix.scales.offset;
  const int64_t groups = matrix.groups(), scale_size = stored_scale_bytes(matrix.scheme.scales);
  const int64_t zero_size = packed.zero_bytes() / kTileRows;
  threads = useful_threads(threads, matrix.rows * matrix.cols, kElementGrain);
  parallel_for(packed.tiles(), threads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      uint8_t* const tile = packed.tile(t);
      const int lanes = static_cast<int>(std::min<int64_t>(kTileRows, matrix.rows - t * kTileRows));
      const bool full = lanes == kTileRows;
      std::memset(tile + (full ? packed.scales_offset() : 0), 0,
                  static_cast<size_t>(packed.tile_bytes() - (full ? packed.scales_offset() : 0)));
      for (int lane = 0; lane < lanes; ++lane) {
        const int64_t n = t * kTileRows + lane;
        detail::pack_row_codes(matrix.row(n), matrix.row_bytes(), matrix.dtype().bits, lane, tile);
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t i = n * groups + g;
          uint8_t* const scales = tile + packed.scales_offset() + g * packed.scale_bytes();
          std::memcpy(scales + lane * scale_size, matrix.scales.values.data() + i * scale_size,
                      static_cast<size_t>(scale_size));
          if (packed.signed_double_scales() &&
              (matrix.scales.signs.data()[i / 8] >> (i % 8) & 1) != 0) {
            scales[kTileRows + lane / 8] |= static_cast<uint8_t>(1 << (lane % 8));
          }
          if (zero_size > 0) {
            std::memcpy(tile + packed.zeros_offset() + g * packed.zero_bytes() + lane * zero_size,
                        matrix.zero_points.data() + i * zero_size, static_cast<size_t>(zero_size));
          }
        }
      }
    }
  });
  return packed;
}

inline QuantizedMatrix unpack(const PackedMatrix& packed, int threads = 0) {
  QuantizedMatrix matrix = QuantizedMatrix::allocate(packed.scheme, packed.rows, packed.cols);
  const int64_t groups = matrix.groups(), scale_size = stored_scale_bytes(packed.scheme.scales);
  const int64_t zero_size = packed.zero_bytes() / kTileRows;
  matrix.scales = ScaleTable::allocate(packed.scheme.scales, packed.rows, groups,
                                       has_signed_scales(packed.scheme));
  matrix.scales.block_absmax = packed.block_absmax;
  matrix.scales.offset = packed.scale_offset;
  threads = useful_threads(threads, packed.rows * packed.cols, kElementGrain);
  parallel_for(packed.rows, threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const uint8_t* const tile = packed.tile(n / kTileRows);
      const int lane = static_cast<int>(n % kTileRows);
      detail::unpack_row_codes(tile, packed.dtype().bits, lane, matrix.row_bytes(), matrix.row(n));
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t i = n * groups + g;
        std::memcpy(matrix.scales.values.data() + i * scale_size,
                    tile + packed.scales_offset() + g * packed.scale_bytes() + lane * scale_size,
                    static_cast<size_t>(scale_size));
        if (zero_size > 0) {
          std::memcpy(matrix.zero_points.data() + i * zero_size,
                      tile + packed.zeros_offset() + g * packed.zero_bytes() + lane * zero_size,
                      static_cast<size_t>(zero_size));
        }
      }
    }
  });
  if (packed.signed_double_scales()) {
    // Rows share bytes of the bitmap, so this part is not split over threads.
    matrix.scales.signs.fill_zero();
    for (int64_t i = 0; i < matrix.scales.size(); ++i) {
      const int64_t n = i / groups, g = i % groups, lane = n % kTileRows;
      const uint8_t* const signs = packed.tile(n / kTileRows) + packed.scales_offset() +
                                   g * packed.scale_bytes() + kTileRows;
      if (signs[lane / 8] >> (lane % 8) & 1)
        matrix.scales.signs.data()[i / 8] |= static_cast<uint8_t>(1 << (i % 8));
    }
  }
  return matrix;
}

}  // namespace woq
