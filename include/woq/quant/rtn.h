// SPDX-License-Identifier: Apache-2.0
// Round to nearest: every weight takes the closest code of its group's scale.
// - Symmetric integers: scale = absmax / (127 | 8 | 7). int4_fullrange negates it when the largest
//   weight exceeds the smallest in magnitude, so that the extreme becomes code -8; when both signs
//   reach it, or all weights are equal, the scale stays positive.
// - Asymmetric integers: the range [min, max] is forced to contain 0,
//   scale = (max - min) / (2^bits - 1), and the zero point is an integer.
// - Codebooks: scale = absmax / largest code value.
// - A group of zeros: as if absmax were 1 (integers; asymmetric: min -1, max 1) or 0 (codebooks).
// Rounding is half to even; these are neural-compressor 2.6's rules for the integers and
// bitsandbytes' for nf4 and fp4. The scale is rounded to its stored form first, and codes are
// chosen for the stored scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/quant/quantized_matrix.h"
#include "woq/quant/scale_search.h"
#include "woq/quant/validate.h"

namespace woq {

struct RtnOptions {
  // Searches each group's scale for the least squared error over shrunken ranges (neural-compressor
  // has one ratio for a whole layer; one per group is never worse).
  bool mse_range = false;
  std::string name = "weight";  // for messages
  // [K], not negative, such as the mean squares of the layer's inputs (llama.cpp's imatrix). Scales
  // are then searched for the least sum over k of importance[k] (w - quantized)^2; mse_range makes
  // no difference. Empty: all alike.
  std::vector<float> importance = {};
};

namespace detail {

[[noreturn]] inline void fail_not_finite(const std::string& name, const float* row, int64_t n,
                                         int64_t cols) {
  int64_t k = 0;
  while (k < cols && (float_bits(row[k]) & 0x7fffffffu) < 0x7f800000u) ++k;
  fail("tensor '", name, "' holds ", row[k] != row[k] ? "NaN" : "an infinite value", " at row ", n,
       ", column ", k,
       "; quantization needs finite weights: repair the checkpoint or exclude the module");
}

inline void check_importance(const std::vector<float>& importance, int64_t cols,
                             const std::string& name) {
  if (importance.empty()) return;
  if (static_cast<int64_t>(importance.size()) != cols) {
    fail("the importance of tensor '", name, "' has ", importance.size(), " elements, expected ",
         cols, ", one for each column");
  }
  for (size_t k = 0; k < importance.size(); ++k) {
    if (importance[k] >= 0 && std::isfinite(importance[k])) continue;
    fail("the importance of tensor '", name, "' is ", importance[k], " at column ", k,
         "; it must be finite and not negative: repair the statistics or leave them out");
  }
}

}  // namespace detail

// Quantizes weight [N, K]. Throws InvalidArgument for an unsupported scheme, an empty matrix, a NaN
// or infinite weight (naming tensor, row and column), or weights so large that quantized ones would
// be infinite.
inline QuantizedMatrix quantize_rtn(const ConstMatrixView& weight, const QuantScheme& scheme,
                                    const RtnOptions& options = {}, int threads = 0) {
  if (weight.rows < 1 || weight.cols < 1) {
    fail("tensor '", options.name, "' is empty (", weight.rows, " x ", weight.cols,
         "); nothing to quantize");
  }
  if (scheme.zeros == ZeroKind::kFloat)
    fail("round to nearest has no float zero points; use integer ones");
  check_written(scheme, "round to nearest");
  detail::check_importance(options.importance, weight.cols, options.name);
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, weight.rows, weight.cols);
  const DtypeTraits& dtype = matrix.dtype();
  const int64_t length = matrix.group_length(), groups = matrix.groups();
  const auto cols = static_cast<size_t>(weight.cols);
  threads = useful_threads(threads, weight.rows * weight.cols, kElementGrain);

  // Pass 1: ideal parameters. Two passes, because double quantization looks at all scales of the
  // matrix.
  std::vector<detail::GroupParameters> parameters(static_cast<size_t>(weight.rows * groups));
  parallel_for(weight.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> row(cols);
    std::vector<uint8_t> scratch(cols);
    detail::WeightedSearch weighted(scheme, length);
    for (int64_t n = begin; n < end; ++n) {
      load_floats(weight.row(n), weight.type, weight.cols, row.data());
      for (int64_t g = 0; g < groups; ++g) {
        const float* w = row.data() + g * length;
        const int64_t size = std::min(length, weight.cols - g * length);
        const detail::GroupRange range = detail::range_of(w, size);
        if (!range.finite) detail::fail_not_finite(options.name, row.data(), n, weight.cols);
        detail::GroupParameters& found = parameters[static_cast<size_t>(n * groups + g)];
        if (!options.importance.empty()) {
          found = weighted.search(range, w, options.importance.data() + g * length, size);
        } else if (options.mse_range) {
          found = detail::search_parameters(scheme, range, w, size, scratch.data());
        } else {
          found = detail::group_parameters(scheme, range, 1.0f);
        }
      }
    }
  });

  std::vector<float> ideal(parameters.size());
  for (size_t i = 0; i < ideal.size(); ++i) ideal[i] = parameters[i].scale;
  matrix.scales = ScaleTable::encode(ideal.data(), weight.rows, groups, scheme.scales,
                                     has_signed_scales(scheme));

  // Pass 2: codes for the stored scales.
  parallel_for(weight.rows, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> row(cols);
    std::vector<uint8_t> codes(cols);
    for (int64_t n = begin; n < end; ++n) {
      load_floats(weight.row(n), weight.type, weight.cols, row.data());
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t index = n * groups + g, size = std::min(length, weight.cols - g * length);
        const float scale = matrix.scales.at(index);
        const float zero = detail::zero_for(scheme, parameters[static_cast<size_t>(index)], scale);
        detail::encode_group(dtype, row.data() + g * length, size, scale, zero,
                             codes.data() + g * length);
        if (scheme.zeros == ZeroKind::kInt)
          matrix.zero_points.data()[index] = static_cast<uint8_t>(zero);
      }
      write_codes(codes.data(), weight.cols, dtype.bits, matrix.row(n));
    }
  });
  check_overflow(matrix);
  return matrix;
}

}  // namespace woq
