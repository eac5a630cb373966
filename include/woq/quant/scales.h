// SPDX-License-Identifier: Apache-2.0
// The scales [N, G] of a matrix in their stored form, encoded and decoded here and nowhere else.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

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

// Scale number i of an array in an encoding's type; the array need not be aligned. For double
// quantization the value of the code: decode_double() makes a scale of it.
inline float decode_scale(ScaleEncoding encoding, const uint8_t* scales, int64_t i) {
  switch (encoding) {
    case ScaleEncoding::kFp32: return detail::load_element<float>(scales, i);
    case ScaleEncoding::kFp16: return fp16_to_float(detail::load_element<uint16_t>(scales, i));
    case ScaleEncoding::kBf16: return bf16_to_float(detail::load_element<uint16_t>(scales, i));
    case ScaleEncoding::kDouble: break;
  }
  return dynamic_map()[scales[i]];
}

// The inverse: rounds to the nearest, and for double quantization to the code of the nearest value.
inline void encode_scale(ScaleEncoding encoding, float scale, uint8_t* scales, int64_t i) {
  switch (encoding) {
    case ScaleEncoding::kFp32: return detail::store_element(scale, scales, i);
    case ScaleEncoding::kFp16: return detail::store_element(float_to_fp16(scale), scales, i);
    case ScaleEncoding::kBf16: return detail::store_element(float_to_bf16(scale), scales, i);
    case ScaleEncoding::kDouble: break;
  }
  scales[i] = encode_dynamic(scale);
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

// Stored scales. Plain data: the values, and what double quantization adds.
struct ScaleTable {
  ScaleEncoding encoding = ScaleEncoding::kFp32;
  int64_t rows = 0, groups = 0;  // N, G
  Buffer values;                 // [N, G] of the encoding's type
  Buffer block_absmax;           // double: fp32 [ceil(N * G / 256)]
  Buffer signs;         // double and signed: one bit a scale, [ceil(N * G / 8)], 1 = negative
  float offset = 0.0f;  // double

  int64_t size() const { return rows * groups; }
  int64_t blocks() const { return (size() + kDoubleQuantBlock - 1) / kDoubleQuantBlock; }
  int64_t bytes() const {
    return values.size() + block_absmax.size() + signs.size() +
           (encoding == ScaleEncoding::kDouble ? static_cast<int64_t>(sizeof offset) : 0);
  }

  // Scale number i in row-major order.
  float at(int64_t i) const {
    const float value = decode_scale(encoding, values.data(), i);
    if (traits_of(encoding).is_separate()) return value;
    const bool negative = signs.size() > 0 && (signs.data()[i / 8] >> (i % 8) & 1);
    return decode_double(value, block_absmax.as<float>()[i / kDoubleQuantBlock], offset, negative);
  }
  float at(int64_t row, int64_t group) const { return at(row * groups + group); }

  // Allocates for [rows, groups] scales, contents unset.
  static ScaleTable allocate(ScaleEncoding encoding, int64_t rows, int64_t groups,
                             bool signed_scales) {
    ScaleTable table;
    table.encoding = encoding;
    table.rows = rows;
    table.groups = groups;
    table.values = Buffer(table.size() * stored_scale_bytes(encoding));
    if (encoding == ScaleEncoding::kDouble) {
      table.block_absmax = Buffer(table.blocks() * 4);
      if (signed_scales) table.signs = Buffer((table.size() + 7) / 8);
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
