// SPDX-License-Identifier: Apache-2.0
// Quantization schemes to iterate over, and hub matrices of random codes. Matrices made by hand
// hold every code and, unlike quantized ones, float zero points.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "support/random.h"
#include "woq/quant/quantized_matrix.h"

namespace woq::testing {

inline const std::vector<ScaleEncoding>& scale_encodings() {
  static const std::vector<ScaleEncoding> all = [] {
    std::vector<ScaleEncoding> list;
    for (const ScaleTraits& traits : kScaleEncodings) list.push_back(traits.encoding);
    return list;
  }();
  return all;
}

inline constexpr int64_t kGroupSizes[] = {-1, 16, 24, 32, 64, 128, 200};

inline std::vector<ZeroKind> zero_kinds_of(const DtypeTraits& dtype) {
  if (!dtype.is_integer()) return {ZeroKind::kNone};
  return {ZeroKind::kNone, ZeroKind::kInt, ZeroKind::kFloat, ZeroKind::kMin};
}

// Those that quantizers make.
inline std::vector<ZeroKind> made_zero_kinds(const DtypeTraits& dtype) {
  if (!dtype.is_integer()) return {ZeroKind::kNone};
  return {ZeroKind::kNone, ZeroKind::kInt};
}
inline const std::vector<ScaleEncoding>& made_encodings() {
  static const std::vector<ScaleEncoding> all = {ScaleEncoding::kFp32, ScaleEncoding::kFp16,
                                                 ScaleEncoding::kBf16, ScaleEncoding::kDouble};
  return all;
}

// Whether validate() takes it: some group sizes, minima and encodings exclude each other.
inline bool is_scheme(const QuantScheme& scheme) {
  try {
    validate(scheme);
  } catch (const InvalidArgument&) {
    return false;
  }
  return true;
}

// Every scheme of a dtype, with the group sizes of the list.
inline std::vector<QuantScheme> schemes_of(const DtypeTraits& dtype) {
  std::vector<QuantScheme> schemes;
  for (const ZeroKind zeros : zero_kinds_of(dtype)) {
    for (const ScaleEncoding scales : scale_encodings()) {
      for (const int64_t group_size : kGroupSizes) {
        const QuantScheme scheme{dtype.dtype, group_size, zeros, scales};
        if (is_scheme(scheme)) schemes.push_back(scheme);
      }
    }
  }
  return schemes;
}

inline std::string describe(const QuantScheme& scheme) {
  const char* const zeros = scheme.zeros == ZeroKind::kNone  ? "sym"
                            : scheme.zeros == ZeroKind::kInt ? "asym"
                            : scheme.zeros == ZeroKind::kMin ? "minima"
                                                             : "float zeros";
  const std::string scales =
      scheme.scales == ScaleEncoding::kDouble ? "double-quantized" : name_of(scheme.scales);
  return std::string(name_of(scheme.dtype)) + " g" + std::to_string(scheme.group_size) + " " +
         zeros + ", " + scales + " scales";
}

inline std::string describe(const QuantizedMatrix& matrix) {
  return describe(matrix.scheme) + ", N=" + std::to_string(matrix.rows) +
         " K=" + std::to_string(matrix.cols);
}

inline void set_code(QuantizedMatrix* matrix, int64_t n, int64_t k, int code) {
  write_code(matrix->row(n), k, matrix->dtype().bits, code);
}

// Every scale is `scale`, zero points or minima are those of a symmetric matrix.
inline QuantizedMatrix uniform_hub(const QuantScheme& scheme, int64_t rows, int64_t cols,
                                   float scale, int code) {
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  matrix.qweight.fill_zero();
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < cols; ++k) set_code(&matrix, n, k, code);
  }
  const std::vector<float> scales(static_cast<size_t>(rows * matrix.groups()), scale);
  matrix.scales = ScaleTable::encode(scales.data(), rows, matrix.groups(), scheme.scales,
                                     has_signed_scales(scheme));
  if (scheme.zeros == ZeroKind::kMin) {
    const std::vector<float> minima(scales.size(),
                                    -scale * static_cast<float>(matrix.dtype().center()));
    matrix.minima = ScaleTable::encode(minima.data(), rows, matrix.groups(), scheme.scales, false);
  }
  for (int64_t i = 0; i < rows * matrix.groups(); ++i) {
    if (scheme.zeros == ZeroKind::kInt) {
      matrix.zero_points.data()[i] = static_cast<uint8_t>(matrix.dtype().center());
    }
    if (scheme.zeros == ZeroKind::kFloat) {
      matrix.zero_points.as<float>()[i] = static_cast<float>(matrix.dtype().center());
    }
  }
  return matrix;
}

// Scales, or minima, of any encoding and of either sign where `negative` says so: about 0.02, one
// in 16 of them zero.
inline ScaleTable random_scales(Random& random, const QuantScheme& scheme, int64_t rows,
                                int64_t groups, bool negative) {
  const ScaleForm form = traits_of(scheme.scales).form;
  if (form == ScaleForm::kEach || form == ScaleForm::kDouble) {
    std::vector<float> scales(static_cast<size_t>(rows * groups));
    for (float& scale : scales) {
      scale = random.below(16) == 0 ? 0.0f : random.uniform(0.001f, 0.05f);
      if (negative && random.coin()) scale = -scale;
    }
    return ScaleTable::encode(scales.data(), rows, groups, scheme.scales,
                              has_signed_scales(scheme));
  }
  ScaleTable table = ScaleTable::allocate(scheme, rows, groups);
  for (int64_t i = 0; i < table.size(); ++i) {
    uint8_t* const value = table.values.data() + i;
    switch (scheme.scales) {
      case ScaleEncoding::kE8M0: *value = static_cast<uint8_t>(118 + random.below(5)); break;
      // Subnormal ones too.
      case ScaleEncoding::kE4M3: *value = static_cast<uint8_t>(random.below(0x7f)); break;
      default: *value = static_cast<uint8_t>(random.below(64)); break;
    }
    if (scheme.scales == ScaleEncoding::kE4M3 && negative && random.coin()) *value |= 0x80;
    if (scheme.scales == ScaleEncoding::kTwoLevel && negative && random.coin())
      *value = static_cast<uint8_t>(-*value);
  }
  for (int64_t i = 0; i < table.supers.size() / 2; ++i)
    table.supers.as<uint16_t>()[i] = float_to_fp16(random.uniform(0.0002f, 0.0008f));
  if (scheme.scales == ScaleEncoding::kE4M3) {
    table.factor = random.coin() ? ScaleFactor{0.0004f, 1.0f} : ScaleFactor{1.0f, 2700.0f};
  }
  return table;
}

// Uniform codes; scales of either sign where the encoding has signed ones, one in 16 of them zero;
// zero points anywhere in the code range.
inline QuantizedMatrix random_hub(Random& random, const QuantScheme& scheme, int64_t rows,
                                  int64_t cols) {
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  const DtypeTraits& dtype = matrix.dtype();
  matrix.qweight.fill_zero();
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < cols; ++k) {
      set_code(&matrix, n, k, static_cast<int>(random.below(dtype.max_code() + 1)));
    }
  }
  // Double quantization keeps signs apart, and only where has_signed_scales() says so.
  const bool negative = has_signed_scales(scheme) || scheme.scales != ScaleEncoding::kDouble;
  matrix.scales = random_scales(random, scheme, rows, matrix.groups(), negative);
  if (scheme.zeros == ZeroKind::kMin)
    matrix.minima = random_scales(random, scheme, rows, matrix.groups(), true);
  for (int64_t i = 0; i < rows * matrix.groups(); ++i) {
    if (scheme.zeros == ZeroKind::kInt) {
      matrix.zero_points.data()[i] = static_cast<uint8_t>(random.below(dtype.max_code() + 1));
    }
    if (scheme.zeros == ZeroKind::kFloat) {
      matrix.zero_points.as<float>()[i] =
          random.uniform(0.0f, static_cast<float>(dtype.max_code()));
    }
  }
  return matrix;
}

// Gives the columns of a hub to its groups at random.
inline void scatter_groups(Random& random, QuantizedMatrix* hub) {
  hub->g_idx = Buffer(hub->cols * 4);
  int32_t* const g_idx = hub->g_idx.as<int32_t>();
  for (int64_t k = 0; k < hub->cols; ++k) g_idx[k] = static_cast<int32_t>(k / hub->group_length());
  for (int64_t k = hub->cols - 1; k > 0; --k) std::swap(g_idx[k], g_idx[random.below(k + 1)]);
}

inline void scale_inputs(Random& random, QuantizedMatrix* hub) {
  hub->act_scales = Buffer(hub->cols * 4);
  for (int64_t k = 0; k < hub->cols; ++k)
    hub->act_scales.as<float>()[k] = random.uniform(0.25f, 4.0f);
}

inline bool same_bytes(const Buffer& a, const Buffer& b) {
  return a.size() == b.size() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size())) == 0);
}

// "" if a and b are the same bit for bit, or the first tensor that differs.
inline std::string difference(const QuantizedMatrix& a, const QuantizedMatrix& b) {
  if (a.rows != b.rows || a.cols != b.cols) return "shape";
  if (a.scheme != b.scheme) return "scheme";
  if (!same_bytes(a.qweight, b.qweight)) return "qweight";
  if (!same_bytes(a.zero_points, b.zero_points)) return "zero_points";
  if (a.scales.encoding != b.scales.encoding || a.scales.rows != b.scales.rows ||
      a.scales.groups != b.scales.groups || !same_bytes(a.scales.values, b.scales.values)) {
    return "scales";
  }
  if (!same_bytes(a.scales.block_absmax, b.scales.block_absmax)) return "block_absmax";
  if (!same_bytes(a.scales.signs, b.scales.signs)) return "signs";
  if (!same_bytes(a.scales.supers, b.scales.supers)) return "scales' factors";
  if (a.scales.factor.multiplier != b.scales.factor.multiplier ||
      a.scales.factor.divisor != b.scales.factor.divisor) {
    return "factor";
  }
  if (!same_bytes(a.minima.values, b.minima.values)) return "minima";
  if (!same_bytes(a.minima.supers, b.minima.supers)) return "minima's factors";
  if (!same_bytes(a.g_idx, b.g_idx)) return "g_idx";
  if (!same_bytes(a.act_scales, b.act_scales)) return "act_scales";
  if (float_bits(a.scales.offset) != float_bits(b.scales.offset)) return "offset";
  return {};
}

}  // namespace woq::testing
