// SPDX-License-Identifier: Apache-2.0
// pack(): hub to kernel layout. unpack(): back, for saving.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "woq/core/parallel.h"
#include "woq/pack/packed_matrix.h"
#include "woq/pack/step.h"
#include "woq/quant/quantized_matrix.h"
#include "woq/quant/validate.h"

namespace woq {

namespace detail {

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

// A row of the hub with its columns in `order`. `codes` [K] is room for one row.
inline void load_ordered_row(const QuantizedMatrix& matrix, int64_t n, const int32_t* order,
                             uint8_t* codes, uint8_t* row) {
  for (int64_t i = 0; i < matrix.cols; ++i)
    codes[i] = static_cast<uint8_t>(matrix.code(n, order[i]));
  write_codes(codes, matrix.cols, matrix.dtype().bits, row);
}

// The inverse: fills row n of the hub.
inline void store_ordered_row(const uint8_t* row, const int32_t* order, int64_t n, uint8_t* codes,
                              QuantizedMatrix* matrix) {
  const int bits = matrix->dtype().bits;
  for_each_code(row, 0, matrix->cols, bits,
                [&](int64_t i, int code) { codes[order[i]] = static_cast<uint8_t>(code); });
  write_codes(codes, matrix->cols, bits, matrix->row(n));
}

// Calls body with the places, in bytes, of each factor of two-level scales or minima: in the hub's
// [N, S] and in [tiles][S][16].
template <class Body>
void for_each_super(const PackedMatrix& packed, const Body& body) {
  const int64_t blocks = super_blocks(packed.scheme, packed.groups());
  for (int64_t n = 0; n < packed.rows; ++n) {
    for (int64_t s = 0; s < blocks; ++s) {
      body((n * blocks + s) * 2, ((n / kTileRows * blocks + s) * kTileRows + n % kTileRows) * 2);
    }
  }
}

inline Buffer packed_supers(const PackedMatrix& packed, const Buffer& hub) {
  Buffer tiles(packed.tiles() * super_blocks(packed.scheme, packed.groups()) * kTileRows * 2);
  tiles.fill_zero();
  for_each_super(packed, [&](int64_t in_hub, int64_t in_tiles) {
    std::memcpy(tiles.data() + in_tiles, hub.data() + in_hub, 2);
  });
  return tiles;
}

inline void unpack_supers(const PackedMatrix& packed, const Buffer& tiles, Buffer* hub) {
  for_each_super(packed, [&](int64_t in_hub, int64_t in_tiles) {
    std::memcpy(hub->data() + in_hub, tiles.data() + in_tiles, 2);
  });
}

// The bytes of a row that hold one group's codes: groups start at whole steps.
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
  const bool rewritten = order != nullptr;
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
          detail::load_ordered_row(matrix, t * kTileRows + lane, order, codes.data(),
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
          detail::pack_codes(rows + lane * row_bytes + bytes.begin, bytes.size, packed.code_bits(),
                             lane, scales + packed.header_bytes());
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
  const bool rewritten = order != nullptr;
  threads = useful_threads(threads, packed.rows * packed.cols, kElementGrain);
  parallel_for(packed.rows, threads, [&](int64_t begin, int64_t end) {
    Buffer written(rewritten ? row_bytes : 0), codes(rewritten ? packed.cols : 0);
    for (int64_t n = begin; n < end; ++n) {
      const int64_t t = n / kTileRows, lane = n % kTileRows;
      uint8_t* const row = rewritten ? written.data() : matrix.row(n);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t i = n * groups + g;
        const detail::GroupBytes bytes = detail::group_bytes(packed, row_bytes, g);
        detail::unpack_codes(packed.codes(t, g), packed.code_bits(), lane, bytes.size,
                             row + bytes.begin);
        std::memcpy(matrix.scales.values.data() + i * scale_size,
                    packed.scales(t, g) + lane * scale_size, static_cast<size_t>(scale_size));
        if (zero_size > 0) {
          std::memcpy(zero_values.data() + i * zero_size, packed.zeros(t, g) + lane * zero_size,
                      static_cast<size_t>(zero_size));
        }
      }
      if (rewritten) detail::store_ordered_row(row, order, n, codes.data(), &matrix);
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
