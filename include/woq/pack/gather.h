// SPDX-License-Identifier: Apache-2.0
// Rows of W by number, dequantized from the kernel layout: one packed weight is an output embedding
// and the input embedding that is tied to it.
//
// A row lies strided in its tile, 4 of each 64 bytes, so that reading one touches the cache lines
// of 16. For a vocabulary of 50,000 that is still less than 1/3,000 of what the product with the
// same weight reads for the same token.
#pragma once

#include <algorithm>
#include <cstdint>

#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/pack/pack.h"
#include "woq/quant/dequantize.h"

namespace woq {

namespace detail {

// The zero point of a row in group g; `lane` is the row's in tile t.
inline float packed_zero_point(const PackedMatrix& packed, int64_t t, int64_t g, int64_t lane) {
  switch (packed.scheme.zeros) {
    case ZeroKind::kInt: return packed.zeros(t, g)[lane];
    case ZeroKind::kFloat: return load_element<float>(packed.zeros(t, g), lane);
    case ZeroKind::kMin: return 0.0f;
    case ZeroKind::kNone: break;
  }
  return static_cast<float>(packed.dtype().center());
}

// Row n of W, in the order in which columns are stored. `codes` is room for one group's.
inline void gather_stored_row(const PackedMatrix& packed, int64_t n, uint8_t* codes, float* out) {
  const DtypeTraits& dtype = packed.dtype();
  const int64_t t = n / kTileRows, lane = n % kTileRows, length = packed.group_length();
  const int64_t row_bytes = code_row_bytes(packed.cols, packed.code_bits());
  for (int64_t g = 0; g < packed.groups(); ++g) {
    const int64_t begin = g * length, count = std::min(length, packed.cols - begin);
    unpack_codes(packed.codes(t, g), packed.code_bits(), lane,
                 group_bytes(packed, row_bytes, g).size, codes);
    const float scale = packed.scale(packed.scales(t, g), n, g);
    const float zero = packed_zero_point(packed, t, g, lane);
    if (dtype.is_integer()) {
      for_each_code(codes, 0, count, packed.code_bits(), [&](int64_t k, int code) {
        out[begin + k] = scale * (static_cast<float>(code) - zero);
      });
    } else {
      for_each_code(codes, 0, count, packed.code_bits(), [&](int64_t k, int code) {
        out[begin + k] = scale * dtype.codebook->values[code];
      });
    }
    if (packed.scheme.zeros == ZeroKind::kMin)
      add_minimum(packed.minimum(packed.zeros(t, g), n, g), begin, begin + count, out);
  }
}

}  // namespace detail

// Writes row ids[i] of W to row i of out [n, K]; in fp32 the values of dequantize_row(), bit for
// bit, in other types those rounded. Throws InvalidArgument, before anything is written, for an id
// that W has no row for, or an `out` of another width.
inline void gather_rows(const PackedMatrix& packed, const int64_t* ids, const MatrixView& out,
                        int threads = 0) {
  if (out.cols != packed.cols) {
    fail("rows of ", packed.cols, " numbers do not fit an output of ", out.cols, " columns");
  }
  for (int64_t i = 0; i < out.rows; ++i) {
    if (ids[i] < 0 || ids[i] >= packed.rows)
      fail("id ", ids[i], " at position ", i, " is none of the ", packed.rows, " rows");
  }
  const int32_t* const order =
      packed.input_order.size() > 0 ? packed.input_order.as<int32_t>() : nullptr;
  const float* const act_scales =
      packed.act_scales.size() > 0 ? packed.act_scales.as<float>() : nullptr;
  threads = useful_threads(threads, out.rows * packed.cols, kElementGrain);
  parallel_for(out.rows, threads, [&](int64_t first, int64_t last) {
    Buffer codes(round_up(packed.group_length(), kStep)), stored(packed.cols * 4);
    Buffer ordered(order == nullptr ? 0 : packed.cols * 4);
    for (int64_t i = first; i < last; ++i) {
      float* row = stored.as<float>();
      detail::gather_stored_row(packed, ids[i], codes.data(), row);
      if (act_scales != nullptr) {
        for (int64_t k = 0; k < packed.cols; ++k) row[k] *= act_scales[k];
      }
      if (order != nullptr) {
        for (int64_t k = 0; k < packed.cols; ++k) ordered.as<float>()[order[k]] = row[k];
        row = ordered.as<float>();
      }
      store_floats(row, out.type, packed.cols, out.row(i));
    }
  });
}

}  // namespace woq
