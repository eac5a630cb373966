// SPDX-License-Identifier: Apache-2.0
// pack(): hub to kernel layout. unpack(): back, for saving.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "woq/core/parallel.h"
#include "woq/pack/packed_matrix.h"
#include "woq/quant/quantized_matrix.h"
#include "woq/quant/validate.h"

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

// Copies `lane` of a group's codes from or to `bytes` bytes of a row in the packed width.
inline void pack_group_codes(const uint8_t* hub, int64_t bytes, int bits, int64_t lane,
                             uint8_t* codes) {
  const int64_t unit = bits == 4 ? 4 : 8;  // bytes of a row in a step
  for (int64_t byte = 0; byte < bytes; byte += unit, codes += kStepBytes4 * bits / 4) {
    uint32_t words[2] = {0, 0};
    std::memcpy(words, hub + byte, static_cast<size_t>(std::min(unit, bytes - byte)));
    if (bits == 4) words[0] = pack_step4(words[0]);
    std::memcpy(codes + 4 * lane, &words[0], 4);
    if (bits == 8) std::memcpy(codes + kStepBytes4 + 4 * lane, &words[1], 4);
  }
}

inline void unpack_group_codes(const uint8_t* codes, int bits, int64_t lane, int64_t bytes,
                               uint8_t* hub) {
  const int64_t unit = bits == 4 ? 4 : 8;
  for (int64_t byte = 0; byte < bytes; byte += unit, codes += kStepBytes4 * bits / 4) {
    uint32_t words[2] = {0, 0};
    std::memcpy(&words[0], codes + 4 * lane, 4);
    if (bits == 8) std::memcpy(&words[1], codes + kStepBytes4 + 4 * lane, 4);
    if (bits == 4) words[0] = unpack_step4(words[0]);
    std::memcpy(hub + byte, words, static_cast<size_t>(std::min(unit, bytes - byte)));
  }
}

// Columns by group, in their order within each. Throws InvalidArgument unless each group has its
// number of columns.
inline Buffer columns_by_group(const QuantizedMatrix& matrix) {
  Problems problems;
  find_g_idx_problems(matrix, &problems);
  problems.check();
  const int64_t length = matrix.group_length(), groups = matrix.groups();
  const int32_t* const g_idx = matrix.g_idx.as<int32_t>();
  Buffer order(matrix.cols * 4);
  std::vector<int64_t> next(static_cast<size_t>(groups));
  for (int64_t g = 0; g < groups; ++g) next[static_cast<size_t>(g)] = g * length;
  for (int64_t k = 0; k < matrix.cols; ++k)
    order.as<int32_t>()[next[static_cast<size_t>(g_idx[k])]++] = static_cast<int32_t>(k);
  return order;
}

// A row of the hub as the packed matrix has it, before codes are put into steps: its columns in
// `order` (nullptr: the hub's), its codes in the packed width and with the packed centre. `codes`
// [K] is room for one row.
inline void load_packed_row(const QuantizedMatrix& matrix, const PackedMatrix& packed, int64_t n,
                            const int32_t* order, uint8_t* codes, uint8_t* row) {
  const int excess = packed.code_excess();
  for (int64_t i = 0; i < matrix.cols; ++i) {
    const int64_t k = order == nullptr ? i : order[i];
    codes[i] = static_cast<uint8_t>(matrix.code(n, k) + excess);
  }
  write_codes(codes, matrix.cols, packed.code_bits(), row);
}

// The inverse: fills row n of the hub.
inline void store_packed_row(const PackedMatrix& packed, const uint8_t* row, const int32_t* order,
                             int64_t n, uint8_t* codes, QuantizedMatrix* matrix) {
  const int excess = packed.code_excess();
  for_each_code(row, 0, matrix->cols, packed.code_bits(), [&](int64_t i, int code) {
    codes[order == nullptr ? i : order[i]] = static_cast<uint8_t>(code - excess);
  });
  write_codes(codes, matrix->cols, matrix->dtype().bits, matrix->row(n));
}

// Factors of two-level scales or minima, from the hub's [N, S] to [tiles][S][16] or back.
template <bool kPack>
void move_supers(const PackedMatrix& packed, Buffer* hub, Buffer* tiles) {
  const int64_t blocks = super_blocks(packed.scheme, packed.groups());
  for (int64_t n = 0; n < packed.rows; ++n) {
    for (int64_t s = 0; s < blocks; ++s) {
      uint8_t* const in_hub = hub->data() + (n * blocks + s) * 2;
      uint8_t* const in_tile =
          tiles->data() + ((n / kTileRows * blocks + s) * kTileRows + n % kTileRows) * 2;
      std::memcpy(kPack ? in_tile : in_hub, kPack ? in_hub : in_tile, 2);
    }
  }
}

inline Buffer packed_supers(const PackedMatrix& packed, const Buffer& hub) {
  Buffer tiles(packed.tiles() * super_blocks(packed.scheme, packed.groups()) * kTileRows * 2);
  tiles.fill_zero();
  Buffer source = hub;
  move_supers<true>(packed, &source, &tiles);
  return tiles;
}

inline void unpack_supers(const PackedMatrix& packed, const Buffer& tiles, Buffer* hub) {
  Buffer source = tiles;
  move_supers<false>(packed, hub, &source);
}

// The bytes of a row in the packed width that hold one group's codes: groups start at whole bytes.
struct GroupBytes {
  int64_t begin, size;
};
inline GroupBytes group_bytes(const PackedMatrix& packed, int64_t row_bytes, int64_t g) {
  const int64_t size = packed.group_length() * packed.code_bits() / 8;
  if (packed.groups() == 1) return {0, row_bytes};
  return {g * size, std::min(size, row_bytes - g * size)};
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
  packed.scale_factor = matrix.scales.factor;
  const bool has_minima = matrix.scheme.zeros == ZeroKind::kMin;
  if (matrix.scheme.scales == ScaleEncoding::kTwoLevel) {
    packed.scale_supers = detail::packed_supers(packed, matrix.scales.supers);
    if (has_minima) packed.minimum_supers = detail::packed_supers(packed, matrix.minima.supers);
  }
  packed.act_scales = matrix.act_scales;
  const int32_t* order = nullptr;
  if (matrix.g_idx.size() > 0) {
    packed.input_order = detail::columns_by_group(matrix);
    order = packed.input_order.as<int32_t>();
    for (int64_t i = 0; i < matrix.cols && matrix.act_scales.size() > 0; ++i)
      packed.act_scales.as<float>()[i] = matrix.act_scales.as<float>()[order[i]];
  }
  const int64_t groups = matrix.groups(), scale_size = stored_scale_bytes(matrix.scheme.scales);
  const int64_t zero_size = packed.zero_bytes() / kTileRows;
  const Buffer& zero_values = has_minima ? matrix.minima.values : matrix.zero_points;
  const int64_t row_bytes = code_row_bytes(matrix.cols, packed.code_bits());
  const bool rewritten = order != nullptr || packed.code_bits() != matrix.dtype().bits;
  threads = useful_threads(threads, matrix.rows * matrix.cols, kElementGrain);
  parallel_for(packed.tiles(), threads, [&](int64_t begin, int64_t end) {
    Buffer written(rewritten ? kTileRows * row_bytes : 0), codes(rewritten ? matrix.cols : 0);
    for (int64_t t = begin; t < end; ++t) {
      uint8_t* const tile = packed.tile(t);
      const int64_t lanes = std::min<int64_t>(kTileRows, matrix.rows - t * kTileRows);
      std::memset(tile, 0, static_cast<size_t>(packed.tile_bytes()));
      const uint8_t* rows = matrix.row(t * kTileRows);
      if (rewritten) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          detail::load_packed_row(matrix, packed, t * kTileRows + lane, order, codes.data(),
                                  written.data() + lane * row_bytes);
        }
        rows = written.data();
      }
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t* const scales = tile + packed.group_offset(g);
        uint8_t* const zeros = scales + packed.scale_bytes();
        const detail::GroupBytes bytes = detail::group_bytes(packed, row_bytes, g);
        for (int64_t lane = 0; lane < lanes; ++lane) {
          const int64_t n = t * kTileRows + lane, i = n * groups + g;
          detail::pack_group_codes(rows + lane * row_bytes + bytes.begin, bytes.size,
                                   packed.code_bits(), lane, scales + packed.header_bytes());
          std::memcpy(scales + lane * scale_size, matrix.scales.values.data() + i * scale_size,
                      static_cast<size_t>(scale_size));
          if (packed.signed_double_scales() &&
              (matrix.scales.signs.data()[i / 8] >> (i % 8) & 1) != 0) {
            scales[kTileRows + lane / 8] |= static_cast<uint8_t>(1 << (lane % 8));
          }
          if (zero_size > 0) {
            std::memcpy(zeros + lane * zero_size, zero_values.data() + i * zero_size,
                        static_cast<size_t>(zero_size));
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
  matrix.scales = ScaleTable::allocate(packed.scheme, packed.rows, groups);
  matrix.scales.block_absmax = packed.block_absmax;
  matrix.scales.offset = packed.scale_offset;
  matrix.scales.factor = packed.scale_factor;
  const bool has_minima = packed.scheme.zeros == ZeroKind::kMin;
  if (has_minima) matrix.minima = ScaleTable::allocate(packed.scheme, packed.rows, groups);
  if (packed.scheme.scales == ScaleEncoding::kTwoLevel) {
    detail::unpack_supers(packed, packed.scale_supers, &matrix.scales.supers);
    if (has_minima) detail::unpack_supers(packed, packed.minimum_supers, &matrix.minima.supers);
  }
  Buffer& zero_values = has_minima ? matrix.minima.values : matrix.zero_points;
  matrix.act_scales = packed.act_scales;
  const int32_t* order = nullptr;
  if (packed.input_order.size() > 0) {
    order = packed.input_order.as<int32_t>();
    matrix.g_idx = Buffer(packed.cols * 4);
    for (int64_t i = 0; i < packed.cols; ++i) {
      matrix.g_idx.as<int32_t>()[order[i]] = static_cast<int32_t>(i / packed.group_length());
      if (matrix.act_scales.size() > 0)
        matrix.act_scales.as<float>()[order[i]] = packed.act_scales.as<float>()[i];
    }
  }
  const int64_t row_bytes = code_row_bytes(packed.cols, packed.code_bits());
  const bool rewritten = order != nullptr || packed.code_bits() != packed.dtype().bits;
  threads = useful_threads(threads, packed.rows * packed.cols, kElementGrain);
  parallel_for(packed.rows, threads, [&](int64_t begin, int64_t end) {
    Buffer written(rewritten ? row_bytes : 0), codes(rewritten ? packed.cols : 0);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t t = n / kTileRows, lane = n % kTileRows;
      uint8_t* const row = rewritten ? written.data() : matrix.row(n);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t i = n * groups + g;
        const detail::GroupBytes bytes = detail::group_bytes(packed, row_bytes, g);
        detail::unpack_group_codes(packed.codes(t, g), packed.code_bits(), lane, bytes.size,
                                   row + bytes.begin);
        std::memcpy(matrix.scales.values.data() + i * scale_size,
                    packed.scales(t, g) + lane * scale_size, static_cast<size_t>(scale_size));
        if (zero_size > 0) {
          std::memcpy(zero_values.data() + i * zero_size, packed.zeros(t, g) + lane * zero_size,
                      static_cast<size_t>(zero_size));
        }
      }
      if (rewritten) detail::store_packed_row(packed, row, order, n, codes.data(), &matrix);
    }
  });
  if (packed.signed_double_scales()) {
    // Rows share bytes of the bitmap, so this part is not split over threads.
    matrix.scales.signs.fill_zero();
    for (int64_t i = 0; i < matrix.scales.size(); ++i) {
      const int64_t n = i / groups, g = i % groups, lane = n % kTileRows;
      const uint8_t* const signs = packed.scales(n / kTileRows, g) + kTileRows;
      if (signs[lane / 8] >> (lane % 8) & 1)
        matrix.scales.signs.data()[i / 8] |= static_cast<uint8_t>(1 << (i % 8));
    }
  }
  return matrix;
}

}  // namespace woq
