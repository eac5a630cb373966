// SPDX-License-Identifier: Apache-2.0
// PackedMatrix: the one layout that every kernel reads, whatever its instruction set or compute
// type. Rebuildable from the hub and back, bit for bit; never an exchange format.
//
// Rows of W are taken in tiles of 16 (one 32-bit lane of a 512-bit register each), K in steps of 8.
// docs/concepts.md has a picture. A step of codes is
//   4 bits: 64 bytes; byte 4 n + j holds W[n][k + j] in its low nibble and W[n][k + 4 + j] in its
//           high one (n = 0..15, j = 0..3)
//   8 bits: two blocks of 64 bytes; byte 4 n + j of block b holds W[n][k + 4 b + j]
// so that one 64-byte load, after at most an AND and a shift, serves every kind of product: it is
// an operand of a 4-way byte dot product (vpdpbusd), its 16-bit halves are indices into a table of
// bfloat16 pairs (vpermw), and its 32-bit lanes are indices into a table of floats (vpermps).
//
// Other widths have planes of one bit, 16 bytes each, the lowest bit first: bit 4 n + j of the
// first half of a plane is that of W[n][k + j], of the second half that of W[n][k + 4 + j].
//   5 to 7 bits: the step of the low 4 bits, then a plane for each further bit
//   2 or 3 bits: 2 or 3 planes
// A step takes 16 bytes for each bit of a code, whatever the width. Kernels add planes to what they
// load (load_step in gemm-inl.h) and then see a step of 4 or of 8 bits, in which integers of other
// widths lie around the centre of the wider one, 8 or 128.
//
// A tile lies in one piece, group after group. A group of a tile is
//   scales       16, in their stored encoding
//   zero points  16, if the scheme has any; or 16 minima, in the encoding of the scales
//   codes        the steps of the group, one after the other
// A thread that computes a range of tiles thus reads one stream of bytes, each once and in order,
// which hardware prefetchers follow best. Keeping scales and zero points behind the codes of a
// tile, as second and third streams, cost a quarter of the bandwidth. Codes need not be aligned.
//
// Rows past N and elements past K are stored as code 0 with scale 0; prepared activations are 0
// past K.
#pragma once

#include <cstdint>

#include "woq/core/buffer.h"
#include "woq/quant/quantized_matrix.h"

namespace woq {

inline constexpr int kTileRows = 16;
inline constexpr int64_t kStep = 8;                            // elements of K
inline constexpr int64_t kPlaneBytes = kTileRows * kStep / 8;  // a bit of each code of a step
inline constexpr int64_t kSuperBytes = kTileRows * 2;          // a tile's factors of a super block
inline constexpr int64_t kStepBytes4 = 4 * kPlaneBytes;
inline constexpr const char* kLayoutName = "n16k8";
inline constexpr int kLayoutVersion = 3;

// Codes of `bits` bits may have a step of 4 bits, and planes behind it.
constexpr bool has_nibbles(int bits) {
  return bits >= 4;
}

constexpr int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

struct PackedMatrix {
  int layout_version = kLayoutVersion;
  QuantScheme scheme;
  int64_t rows = 0, cols = 0;  // N, K
  Buffer data;                 // [tiles] of tile_bytes()
  // Double quantization's block maxima stay in the hub's row-major order.
  Buffer block_absmax;
  float scale_offset = 0.0f;
  // Two-level scales' and minima's factors: fp16 [tiles][super blocks][16].
  Buffer scale_supers, minimum_supers;
  ScaleFactor scale_factor;  // e8m0, e4m3
  // Columns are stored group by group. Preparation of activations brings these into that order and
  // multiplies them, so that kernels know of neither.
  Buffer input_order;  // [K] int32: the hub's column of each stored one; empty: the same order
  Buffer act_scales;   // [K] fp32, in stored order; empty: ones

  const DtypeTraits& dtype() const { return traits_of(scheme.dtype); }
  int code_bits() const { return dtype().bits; }
  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t padded_cols() const { return round_up(cols, kStep); }
  int64_t group_length() const { return woq::group_length(scheme, cols); }
  int64_t groups() const { return group_count(scheme, cols); }
  bool signed_double_scales() const {
    return scheme.scales == ScaleEncoding::kDouble && has_signed_scales(scheme);
  }

  // Bytes of one group's 16 scales, signs (a bit each) behind them.
  int64_t scale_bytes() const {
    return kTileRows * stored_scale_bytes(scheme.scales) +
           (signed_double_scales() ? kTileRows / 8 : 0);
  }
  // Bytes of one group's 16 zero points or minima.
  int64_t zero_bytes() const {
    return kTileRows * (scheme.zeros == ZeroKind::kMin ? stored_scale_bytes(scheme.scales)
                                                       : zero_point_bytes(scheme.zeros));
  }
  int64_t step_bytes() const { return kPlaneBytes * code_bits(); }
  // Bytes of a group in front of its codes.
  int64_t header_bytes() const { return scale_bytes() + zero_bytes(); }
  // Where a group starts within a tile. Groups but the last are whole steps.
  int64_t group_offset(int64_t g) const {
    return g * (header_bytes() + group_length() / kStep * step_bytes());
  }
  int64_t tile_bytes() const {
    return round_up(groups() * header_bytes() + padded_cols() / kStep * step_bytes(),
                    Buffer::kAlignment);
  }
  int64_t bytes() const {
    return data.size() + block_absmax.size() + scale_supers.size() + minimum_supers.size() +
           input_order.size() + act_scales.size();
  }

  const uint8_t* tile(int64_t t) const { return data.data() + t * tile_bytes(); }
  uint8_t* tile(int64_t t) { return data.data() + t * tile_bytes(); }
  // The parts of group g of tile t.
  const uint8_t* scales(int64_t t, int64_t g) const { return tile(t) + group_offset(g); }
  const uint8_t* zeros(int64_t t, int64_t g) const { return scales(t, g) + scale_bytes(); }
  const uint8_t* codes(int64_t t, int64_t g) const { return scales(t, g) + header_bytes(); }

  // Where the 16 factors of group g of tile t lie in the two buffers above.
  int64_t super_offset(int64_t t, int64_t g) const {
    if (scheme.scales != ScaleEncoding::kTwoLevel) return 0;
    return (t * super_blocks(scheme, groups()) + g / groups_in_super_block(scheme)) * kSuperBytes;
  }

  // The scale of row n in group g; `packed` are those of its tile and group.
  float scale(const uint8_t* packed, int64_t n, int64_t g) const {
    const int64_t lane = n % kTileRows;
    const float value = decode_scale(scheme.scales, packed, lane);
    switch (traits_of(scheme.scales).form) {
      case ScaleForm::kEach: break;
      case ScaleForm::kTwoLevel: return value * super(scale_supers, n, g);
      case ScaleForm::kFactored: return scale_factor.times(value);
      case ScaleForm::kDouble: {
        const bool negative =
            signed_double_scales() && (packed[kTileRows + lane / 8] >> (lane % 8) & 1) != 0;
        return decode_double(value,
                             block_absmax.as<float>()[(n * groups() + g) / kDoubleQuantBlock],
                             scale_offset, negative);
      }
    }
    return value;
  }
  // Its minimum; `packed` are those of its tile and group.
  float minimum(const uint8_t* packed, int64_t n, int64_t g) const {
    const float value = decode_scale(scheme.scales, packed, n % kTileRows);
    return scheme.scales == ScaleEncoding::kTwoLevel ? value * super(minimum_supers, n, g) : value;
  }

 private:
  float super(const Buffer& buffer, int64_t n, int64_t g) const {
    return fp16_to_float(detail::load_element<uint16_t>(
        buffer.data() + super_offset(n / kTileRows, g), n % kTileRows));
  }
};

}  // namespace woq
