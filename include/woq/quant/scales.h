// SPDX-License-Identifier: Apache-2.0
// The scales [N, G] of a matrix in their stored form, encoded and decoded here and nowhere else.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "woq/core/buffer.h"
#include "woq/core/check.h"
#include "woq/core/float16.h"
#include "woq/quant/scheme.h"

namespace woq {

// Double quantization (QLoRA, arXiv:2305.14314, section 3; the map and the block layout are
// bitsandbytes'): scales in row-major order in blocks of 256; |s| - offset, divided by its block's
// absolute maximum, becomes the nearest of 256 fixed values; offset is the mean of |s|. A signed
// scale keeps its sign as one bit.
inline constexpr int64_t kDoubleQuantBlock = 256;

// Two-level scales (GGUF's K types): int8 numbers, times a fp16 number that the groups of 256
// columns share. The product has at most 18 significant bits, so that fp32 holds it exactly.
//
// E8M0 (OCP Microscaling Formats v1.0, section 5.4.1): 2^(code - 127); code 255 is NaN. E4M3 (OCP
// 8-bit Floating Point v1.0, section 5.1): sign | 4-bit exponent | 3-bit mantissa, no infinities;
// codes 127 and 255 are NaN. A matrix has one more factor and one more divisor for all of them, of
// which files use one: s = code's value * factor / divisor, each rounded to fp32.
inline float decode_e8m0(uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return bits_float(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

inline float decode_e4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const int significand = exponent == 0 ? mantissa : mantissa + 8;
  const float power = bits_float(static_cast<uint32_t>((exponent == 0 ? 1 : exponent) + 117) << 23);
  const float magnitude = static_cast<float>(significand) * power;
  return code >> 7 != 0 ? -magnitude : magnitude;
}

namespace detail {

// bitsandbytes' signed dynamic map, `create_dynamic_map(signed=True)`: for each decade 10^(i-6),
// 2^i midpoints of a linear division of [0.1, 1], both signs, and 0 and 1. Ascending. Single
// precision with fused steps, as torch.linspace computes there: all 256 entries are equal bit for
// bit.
inline std::array<float, 256> make_dynamic_map() {
  std::array<float, 256> map{};
  size_t size = 0;
  for (int i = 0; i < 7; ++i) {
    const int steps = (1 << i) + 1;
    const float step = (1.0f - 0.1f) / static_cast<float>(steps - 1);
    const auto boundary = [&](int j) {
      return j < steps / 2 ? std::fma(step, static_cast<float>(j), 0.1f)
                           : std::fma(-step, static_cast<float>(steps - 1 - j), 1.0f);
    };
    const auto decade = static_cast<float>(std::pow(10.0, i - 6));
    for (int j = 0; j + 1 < steps; ++j) {
      const float mean = (boundary(j) + boundary(j + 1)) / 2.0f;
      map[size++] = decade * mean;
      map[size++] = -(decade * mean);
    }
  }
  map[size++] = 0.0f;
  map[size++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

}  // namespace detail

inline const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> map = detail::make_dynamic_map();
  return map;
}

// The nearest entry's index; a midpoint goes down.
inline uint8_t encode_dynamic(float x) {
  static const std::array<float, 255> bounds = [] {
    std::array<float, 255> b{};
    for (size_t i = 0; i < b.size(); ++i) b[i] = (dynamic_map()[i] + dynamic_map()[i + 1]) / 2.0f;
    return b;
  }();
  return static_cast<uint8_t>(std::lower_bound(bounds.begin(), bounds.end(), x) - bounds.begin());
}

inline int64_t stored_scale_bytes(ScaleEncoding encoding) {
  return size_of(traits_of(encoding).stored);
}

namespace detail {

template <class T>
T load_element(const uint8_t* array, int64_t i) {
  T value;
  std::memcpy(&value, array + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void store_element(T value, uint8_t* array, int64_t i) {
  std::memcpy(array + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

}  // namespace detail

// Scale number i of an array in an encoding's type; the array need not be aligned. Where scales
// depend on each other, the value of the code, of which ScaleTable::at() makes a scale.
inline float decode_scale(ScaleEncoding encoding, const uint8_t* scales, int64_t i) {
  switch (encoding) {
    case ScaleEncoding::kFp32: return detail::load_element<float>(scales, i);
    case ScaleEncoding::kFp16: return fp16_to_float(detail::load_element<uint16_t>(scales, i));
    case ScaleEncoding::kBf16: return bf16_to_float(detail::load_element<uint16_t>(scales, i));
    case ScaleEncoding::kTwoLevel: return static_cast<float>(static_cast<int8_t>(scales[i]));
    case ScaleEncoding::kE8M0: return decode_e8m0(scales[i]);
    case ScaleEncoding::kE4M3: return decode_e4m3(scales[i]);
    case ScaleEncoding::kDouble: break;
  }
  return dynamic_map()[scales[i]];
}

// The inverse: rounds to the nearest, and for double quantization to the code of the nearest value.
// For encodings that quantizers write.
inline void encode_scale(ScaleEncoding encoding, float scale, uint8_t* scales, int64_t i) {
  switch (encoding) {
    case ScaleEncoding::kFp32: return detail::store_element(scale, scales, i);
    case ScaleEncoding::kFp16: return detail::store_element(float_to_fp16(scale), scales, i);
    case ScaleEncoding::kBf16: return detail::store_element(float_to_bf16(scale), scales, i);
    case ScaleEncoding::kDouble: scales[i] = encode_dynamic(scale); return;
    case ScaleEncoding::kTwoLevel:
    case ScaleEncoding::kE8M0:
    case ScaleEncoding::kE4M3: break;
  }
  fail("scales in '", name_of(encoding), "' are read from files, and not written");
}

// A doubly quantized scale from the value of its code, its block's maximum and the offset.
inline float decode_double(float value, float block_absmax, float offset, bool negative) {
  const float magnitude = rounded(value * block_absmax) + offset;
  return negative ? -magnitude : magnitude;
}

// A scale as its own stored form has it; double quantization, which depends on all scales of a
// matrix, leaves it as it is.
inline float stored_scale(ScaleEncoding encoding, float scale) {
  if (!traits_of(encoding).is_separate()) return scale;
  uint8_t stored[4];
  encode_scale(encoding, scale, stored, 0);
  return decode_scale(encoding, stored, 0);
}

// What all E8M0 or E4M3 scales of a matrix are multiplied by, and then divided by.
struct ScaleFactor {
  float multiplier = 1.0f, divisor = 1.0f;

  float times(float value) const { return rounded(value * multiplier) / divisor; }
};

// Stored scales. Plain data: the values, and what scales that depend on each other add.
struct ScaleTable {
  ScaleEncoding encoding = ScaleEncoding::kFp32;
  int64_t rows = 0, groups = 0;  // N, G
  Buffer values;                 // [N, G] of the encoding's type
  Buffer block_absmax;           // double: fp32 [ceil(N * G / 256)]
  Buffer signs;         // double and signed: one bit a scale, [ceil(N * G / 8)], 1 = negative
  float offset = 0.0f;  // double
  Buffer supers;        // two-level: fp16 [N, S], the factor of each 256 columns
  int64_t groups_in_super = 1;
  ScaleFactor factor;  // e8m0, e4m3

  int64_t size() const { return rows * groups; }
  int64_t blocks() const { return (size() + kDoubleQuantBlock - 1) / kDoubleQuantBlock; }
  int64_t super_groups() const { return (groups + groups_in_super - 1) / groups_in_super; }
  int64_t bytes() const {
    const ScaleForm form = traits_of(encoding).form;
    return values.size() + block_absmax.size() + signs.size() + supers.size() +
           (form == ScaleForm::kDouble     ? static_cast<int64_t>(sizeof offset)
            : form == ScaleForm::kFactored ? static_cast<int64_t>(sizeof factor)
                                           : 0);
  }

  // Scale number i in row-major order.
  float at(int64_t i) const {
    const float value = decode_scale(encoding, values.data(), i);
    switch (traits_of(encoding).form) {
      case ScaleForm::kEach: break;
      case ScaleForm::kTwoLevel:
        return value *
               fp16_to_float(detail::load_element<uint16_t>(
                   supers.data(), i / groups * super_groups() + i % groups / groups_in_super));
      case ScaleForm::kFactored: return factor.times(value);
      case ScaleForm::kDouble: {
        const bool negative = signs.size() > 0 && (signs.data()[i / 8] >> (i % 8) & 1);
        return decode_double(value, block_absmax.as<float>()[i / kDoubleQuantBlock], offset,
                             negative);
      }
    }
    return value;
  }
  float at(int64_t row, int64_t group) const { return at(row * groups + group); }

  // Allocates for [rows, groups] scales of a matrix, contents unset.
  static ScaleTable allocate(const QuantScheme& scheme, int64_t rows, int64_t groups) {
    const bool two_level = traits_of(scheme.scales).form == ScaleForm::kTwoLevel;
    return allocate(scheme.scales, rows, groups, has_signed_scales(scheme),
                    two_level ? groups_in_super_block(scheme) : 1);
  }
  static ScaleTable allocate(ScaleEncoding encoding, int64_t rows, int64_t groups,
                             bool signed_scales, int64_t groups_in_super = 1) {
    ScaleTable table;
    table.groups_in_super = groups_in_super;
    table.encoding = encoding;
    table.rows = rows;
    table.groups = groups;
    table.values = Buffer(table.size() * stored_scale_bytes(encoding));
    if (encoding == ScaleEncoding::kDouble) {
      table.block_absmax = Buffer(table.blocks() * 4);
      if (signed_scales) table.signs = Buffer((table.size() + 7) / 8);
    } else if (encoding == ScaleEncoding::kTwoLevel) {
      table.supers = Buffer(rows * table.super_groups() * 2);
    }
    return table;
  }

  // Encodes fp32 scales [rows, groups]. Throws InvalidArgument when the encoding cannot hold one as
  // a finite number.
  static ScaleTable encode(const float* scales, int64_t rows, int64_t groups,
                           ScaleEncoding encoding, bool signed_scales) {
    ScaleTable table = allocate(encoding, rows, groups, signed_scales);
    if (encoding == ScaleEncoding::kDouble) {
      table.encode_double(scales, signed_scales);
    } else {
      for (int64_t i = 0; i < table.size(); ++i)
        encode_scale(encoding, scales[i], table.values.data(), i);
    }
    for (int64_t i = 0; i < table.size(); ++i) {
      if (std::isfinite(table.at(i))) continue;
      fail("the scale of row ", i / groups, ", group ", i % groups, " (", scales[i],
           ") does not fit ",
           traits_of(encoding).when_too_large != nullptr
               ? traits_of(encoding).when_too_large
               : "its type; the weights reach the end of fp32's range: rescale them");
    }
    return table;
  }

 private:
  void encode_double(const float* scales, bool signed_scales) {
    double sum = 0;
    for (int64_t i = 0; i < size(); ++i) sum += std::fabs(scales[i]);
    offset = size() > 0 ? static_cast<float>(sum / static_cast<double>(size())) : 0.0f;
    if (signed_scales) signs.fill_zero();
    for (int64_t b = 0; b < blocks(); ++b) {
      const int64_t begin = b * kDoubleQuantBlock,
                    end = std::min(size(), begin + kDoubleQuantBlock);
      float absmax = 0;
      for (int64_t i = begin; i < end; ++i)
        absmax = std::max(absmax, std::fabs(std::fabs(scales[i]) - offset));
      block_absmax.as<float>()[b] = absmax;
      const float inverse = 1.0f / std::max(absmax, 1e-38f);
      for (int64_t i = begin; i < end; ++i) {
        const float x = std::clamp((std::fabs(scales[i]) - offset) * inverse, -1.0f, 1.0f);
        encode_scale(encoding, x, values.data(), i);
        if (signed_scales && scales[i] < 0)
          signs.data()[i / 8] |= static_cast<uint8_t>(1 << (i % 8));
      }
    }
  }
};

}  // namespace woq
