// SPDX-License-Identifier: Apache-2.0
// What has to be true of a quantized matrix whoever made it: files and callers are not trusted.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "woq/core/problems.h"
#include "woq/quant/quantized_matrix.h"

namespace woq {

namespace detail {

// Elements of a tensor that are wrong: the first of them, and how many there are.
struct WrongElements {
  int64_t first = -1, count = 0;

  void add(int64_t i) {
    if (count++ == 0) first = i;
  }
  // " (and at 3 more places)", or nothing.
  std::string others() const {
    return count > 1 ? concat(" (and at ", count - 1, count == 2 ? " more place)" : " more places)")
                     : std::string();
  }
};

template <class IsWrong>
WrongElements wrong_elements(int64_t n, const IsWrong& is_wrong) {
  WrongElements wrong;
  for (int64_t i = 0; i < n; ++i) {
    if (is_wrong(i)) wrong.add(i);
  }
  return wrong;
}

inline void check_bytes(const char* name, const Buffer& buffer, int64_t expected,
                        Problems* problems) {
  if (buffer.size() == expected) return;
  problems->add("tensor '", name, "' has ", buffer.size(), " bytes, expected ", expected);
}

}  // namespace detail

// Adds a problem for every way in which g_idx [K] is not one of group numbers that gives each group
// its number of columns: group_length, and to the last one what is left.
inline void find_g_idx_problems(const QuantizedMatrix& matrix, Problems* problems) {
  const int64_t length = matrix.group_length(), groups = matrix.groups();
  const int32_t* const g_idx = matrix.g_idx.as<int32_t>();
  const detail::WrongElements outside = detail::wrong_elements(
      matrix.cols, [&](int64_t k) { return g_idx[k] < 0 || g_idx[k] >= groups; });
  if (outside.count > 0) {
    problems->add("g_idx[", outside.first, "] is ", g_idx[outside.first], ", but there are ",
                  groups, " groups", outside.others());
  }
  std::vector<int64_t> columns(static_cast<size_t>(groups));
  for (int64_t k = 0; k < matrix.cols; ++k) {
    if (g_idx[k] >= 0 && g_idx[k] < groups) ++columns[static_cast<size_t>(g_idx[k])];
  }
  const detail::WrongElements crowded = detail::wrong_elements(groups, [&](int64_t g) {
    return columns[static_cast<size_t>(g)] > std::min(length, matrix.cols - g * length);
  });
  if (crowded.count > 0) {
    problems->add("g_idx puts more than ", std::min(length, matrix.cols - crowded.first * length),
                  " columns into group ", crowded.first, ", which holds no more", crowded.others());
  }
}

namespace detail {

// The largest magnitude that code - zero point, or a codebook's value, can have.
inline float largest_code_value(const DtypeTraits& dtype, float zero) {
  if (dtype.is_integer())
    return std::max(std::fabs(zero), std::fabs(static_cast<float>(dtype.max_code()) - zero));
  float largest = 0;
  for (const float value : dtype.codebook->values) largest = std::max(largest, std::fabs(value));
  return largest;
}

}  // namespace detail

// Adds a problem where a scale fits its type but its product with a code does not fit fp32, so that
// a weight would be infinite. Every code counts, whether a weight has it or not.
inline void find_overflow(const QuantizedMatrix& matrix, Problems* problems) {
  const int64_t groups = matrix.groups();
  std::vector<float> largest(static_cast<size_t>(groups));  // |weight| of each group of columns
  const detail::WrongElements wrong = detail::wrong_elements(matrix.rows * groups, [&](int64_t i) {
    const float code =
        detail::largest_code_value(matrix.dtype(), matrix.zero_point(i / groups, i % groups));
    const float minimum =
        matrix.scheme.zeros == ZeroKind::kMin ? std::fabs(matrix.minima.at(i)) : 0.0f;
    const float weight = std::fabs(matrix.scales.at(i)) * code + minimum;
    float& of_group = largest[static_cast<size_t>(i % groups)];
    of_group = std::max(of_group, weight);
    return !std::isfinite(weight);
  });
  if (wrong.count > 0) {
    const int64_t n = wrong.first / groups, g = wrong.first % groups;
    problems->add("the scale of row ", n, ", group ", g, " is ", matrix.scales.at(wrong.first),
                  ", whose product with the largest code (",
                  detail::largest_code_value(matrix.dtype(), matrix.zero_point(n, g)),
                  ") does not fit fp32", wrong.others(),
                  "; the weights reach the end of fp32's range: rescale them");
    return;
  }
  const float* const act_scales = matrix.act_scales.as<float>();
  const detail::WrongElements scaled =
      detail::wrong_elements(matrix.act_scales.size() / 4, [&](int64_t k) {
        return !std::isfinite(largest[static_cast<size_t>(matrix.group_of(k))] * act_scales[k]);
      });
  if (scaled.count > 0) {
    problems->add("tensor 'act_scales' holds ", act_scales[scaled.first], " at column ",
                  scaled.first, scaled.others(), ", whose product with weights of up to ",
                  largest[static_cast<size_t>(matrix.group_of(scaled.first))],
                  " does not fit fp32: rescale the weights");
  }
}

// Throws InvalidArgument where find_overflow() finds a problem. Every quantizer ends with it.
inline void check_overflow(const QuantizedMatrix& matrix) {
  Problems problems;
  find_overflow(matrix, &problems);
  problems.check();
}

// Adds a problem for each tensor of the matrix that does not hold what it must: sizes; scales, zero
// points and act_scales that are not finite; zero points above the largest code; g_idx; weights
// that would be infinite.
inline void find_problems(const QuantizedMatrix& matrix, Problems* problems) {
  const int64_t rows = matrix.rows, cols = matrix.cols, groups = matrix.groups();
  const int64_t count = rows * groups;
  const ScaleTable& scales = matrix.scales;
  const QuantScheme& scheme = matrix.scheme;
  const int64_t before = problems->count();
  if (scales.encoding != scheme.scales || scales.rows != rows || scales.groups != groups) {
    problems->add("the scales are ", scales.rows, " x ", scales.groups, " in ",
                  name_of(scales.encoding), ", expected ", rows, " x ", groups, " in ",
                  name_of(scheme.scales));
  }
  const ScaleTable sized = ScaleTable::allocate(scheme, rows, groups);
  detail::check_bytes("qweight", matrix.qweight, rows * matrix.row_bytes(), problems);
  detail::check_bytes("scales", scales.values, sized.values.size(), problems);
  detail::check_bytes("scales_absmax", scales.block_absmax, sized.block_absmax.size(), problems);
  detail::check_bytes("scales_sign", scales.signs, sized.signs.size(), problems);
  detail::check_bytes("scales_super", scales.supers, sized.supers.size(), problems);
  const bool has_minima = scheme.zeros == ZeroKind::kMin;
  detail::check_bytes("minima", matrix.minima.values, has_minima ? sized.values.size() : 0,
                      problems);
  detail::check_bytes("minima_super", matrix.minima.supers, has_minima ? sized.supers.size() : 0,
                      problems);
  detail::check_bytes("zero_points", matrix.zero_points, count * zero_point_bytes(scheme.zeros),
                      problems);
  if (matrix.g_idx.size() > 0) detail::check_bytes("g_idx", matrix.g_idx, cols * 4, problems);
  if (matrix.act_scales.size() > 0)
    detail::check_bytes("act_scales", matrix.act_scales, cols * 4, problems);
  if (problems->count() > before) return;  // what follows reads the tensors

  const auto place = [&](int64_t i) {
    return concat(" at row ", i / groups, ", group ", i % groups);
  };
  const detail::WrongElements infinite =
      detail::wrong_elements(count, [&](int64_t i) { return !std::isfinite(scales.at(i)); });
  if (infinite.count > 0) {
    problems->add("tensor 'scales' decodes to ", scales.at(infinite.first), place(infinite.first),
                  infinite.others(), "; the checkpoint is corrupt");
  }
  if (has_minima) {
    const detail::WrongElements wrong = detail::wrong_elements(
        count, [&](int64_t i) { return !std::isfinite(matrix.minima.at(i)); });
    if (wrong.count > 0) {
      problems->add("tensor 'minima' decodes to ", matrix.minima.at(wrong.first),
                    place(wrong.first), wrong.others(), "; the checkpoint is corrupt");
    }
  }
  if (scheme.zeros == ZeroKind::kFloat) {
    const float* const zeros = matrix.zero_points.as<float>();
    const detail::WrongElements wrong =
        detail::wrong_elements(count, [&](int64_t i) { return !std::isfinite(zeros[i]); });
    if (wrong.count > 0) {
      problems->add("tensor 'zero_points' holds ", zeros[wrong.first], place(wrong.first),
                    wrong.others(), "; the checkpoint is corrupt");
    }
  }
  if (scheme.zeros == ZeroKind::kInt) {
    const uint8_t* const zeros = matrix.zero_points.data();
    const int largest = matrix.dtype().max_code();
    const detail::WrongElements wrong =
        detail::wrong_elements(count, [&](int64_t i) { return zeros[i] > largest; });
    if (wrong.count > 0) {
      problems->add("tensor 'zero_points' holds ", static_cast<int>(zeros[wrong.first]),
                    place(wrong.first), wrong.others(), "; the largest code of ",
                    matrix.dtype().name, " is ", largest);
    }
  }
  if (matrix.g_idx.size() > 0) find_g_idx_problems(matrix, problems);
  const float* const act_scales = matrix.act_scales.as<float>();
  const detail::WrongElements wrong = detail::wrong_elements(
      matrix.act_scales.size() / 4,
      [&](int64_t k) { return !std::isfinite(act_scales[k]) || act_scales[k] == 0; });
  if (wrong.count > 0) {
    problems->add("tensor 'act_scales' holds ", act_scales[wrong.first], " at column ", wrong.first,
                  wrong.others(), "; multipliers are finite and not 0");
  }
  if (problems->count() == before) find_overflow(matrix, problems);
}

// Throws InvalidArgument that names everything that is wrong with the matrix.
inline void validate(const QuantizedMatrix& matrix) {
  validate(matrix.scheme);
  Problems problems;
  find_problems(matrix, &problems);
  problems.check();
}

}  // namespace woq
