// SPDX-License-Identifier: Apache-2.0
// A quantized matrix as named tensors, the way woq's checkpoints keep it. The one list of names,
// types and shapes: readers, writers and Python ask it. A matrix has N = out_features rows,
// K = in_features columns and G groups in a row.
//
//   qweight        uint8 [N, ceil(K * bits / 8)]   rows of codes, see core/code_row.h
//   scales         [N, G], in the type of the scheme's encoding
//   zero_points    [N, G]: uint8 codes, or float32; where the scheme has zero points
//   g_idx          int32 [K]: the group of each column; act-order only
//   act_scales     float32 [K]: what the input is multiplied by; AWQ and TEQ only
//   scales_absmax  float32 [ceil(N * G / 256)]: block maxima; double quantization only, as are
//   scales_offset  float32 [1]: the mean of |scale|
//   scales_sign    uint8 [ceil(N * G / 8)]: a bit a scale, 1 = negative; signed scales only
//   scales_super   float16 [N, S]: what the scales of 256 columns are multiplied by; two-level only
//   scales_factor  float32 [2]: what all scales are multiplied by, and then divided by; e8m0, e4m3
//   minima         [N, G], in the type of the scales: what is added after scaling, where the scheme
//                  has minima
//   minima_super   float16 [N, S]: as scales_super
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "woq/core/problems.h"
#include "woq/core/tensor.h"
#include "woq/quant/validate.h"

namespace woq::io {

struct TensorSpec {
  const char* name;
  TensorType type;
  std::vector<int64_t> shape;
};

// A tensor of a matrix, and where the matrix keeps it.
struct StoredTensor {
  TensorSpec spec;
  uint8_t* data;
};

// Room for the tensors of a [rows, cols] matrix, contents unset.
inline QuantizedMatrix allocate_stored(const QuantScheme& scheme, int64_t rows, int64_t cols,
                                       bool has_g_idx, bool has_act_scales) {
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  matrix.scales = ScaleTable::allocate(scheme, rows, matrix.groups());
  if (scheme.zeros == ZeroKind::kMin)
    matrix.minima = ScaleTable::allocate(scheme, rows, matrix.groups());
  if (has_g_idx) matrix.g_idx = Buffer(cols * 4);
  if (has_act_scales) matrix.act_scales = Buffer(cols * 4);
  return matrix;
}

namespace detail {

// The table. `visit(spec, data)` is called for each tensor; data(buffer) says where it lies.
template <class Matrix, class Visit>
void visit_stored_tensors(Matrix& matrix, bool has_g_idx, bool has_act_scales, const Visit& visit) {
  const QuantScheme& scheme = matrix.scheme;
  const int64_t n = matrix.rows, g = matrix.groups();
  visit({"qweight", TensorType::kUint8, {n, matrix.row_bytes()}}, matrix.qweight.data());
  visit({"scales", traits_of(scheme.scales).stored, {n, g}}, matrix.scales.values.data());
  if (zero_point_bytes(scheme.zeros) > 0) {
    const bool real = scheme.zeros == ZeroKind::kFloat;
    visit({"zero_points", real ? TensorType::kFp32 : TensorType::kUint8, {n, g}},
          matrix.zero_points.data());
  }
  if (has_g_idx) visit({"g_idx", TensorType::kInt32, {matrix.cols}}, matrix.g_idx.data());
  if (has_act_scales)
    visit({"act_scales", TensorType::kFp32, {matrix.cols}}, matrix.act_scales.data());
  if (scheme.zeros == ZeroKind::kMin)
    visit({"minima", traits_of(scheme.scales).stored, {n, g}}, matrix.minima.values.data());
  const ScaleForm form = traits_of(scheme.scales).form;
  if (form == ScaleForm::kTwoLevel) {
    const int64_t supers = super_blocks(scheme, g);
    visit({"scales_super", TensorType::kFp16, {n, supers}}, matrix.scales.supers.data());
    if (scheme.zeros == ZeroKind::kMin)
      visit({"minima_super", TensorType::kFp16, {n, supers}}, matrix.minima.supers.data());
  }
  if (form == ScaleForm::kFactored) {
    visit({"scales_factor", TensorType::kFp32, {2}},
          reinterpret_cast<decltype(matrix.qweight.data())>(&matrix.scales.factor));
  }
  if (form != ScaleForm::kDouble) return;
  const int64_t blocks = (n * g + kDoubleQuantBlock - 1) / kDoubleQuantBlock;
  visit({"scales_absmax", TensorType::kFp32, {blocks}}, matrix.scales.block_absmax.data());
  visit({"scales_offset", TensorType::kFp32, {1}},
        reinterpret_cast<decltype(matrix.qweight.data())>(&matrix.scales.offset));
  if (has_signed_scales(scheme))
    visit({"scales_sign", TensorType::kUint8, {(n * g + 7) / 8}}, matrix.scales.signs.data());
}

}  // namespace detail

// Names, types and shapes of the tensors of a [rows, cols] matrix. Throws InvalidArgument for a
// scheme that is none, and a matrix that is empty or too large.
inline std::vector<TensorSpec> stored_tensors(const QuantScheme& scheme, int64_t rows, int64_t cols,
                                              bool has_g_idx, bool has_act_scales) {
  validate(scheme);
  check_extents(rows, cols);
  QuantizedMatrix matrix;  // without tensors: only its measures are asked
  matrix.scheme = scheme;
  matrix.rows = rows;
  matrix.cols = cols;
  std::vector<TensorSpec> specs;
  detail::visit_stored_tensors(matrix, has_g_idx, has_act_scales,
                               [&](TensorSpec spec, const uint8_t*) { specs.push_back(spec); });
  return specs;
}

// The tensors of a matrix, in place.
inline std::vector<StoredTensor> stored_tensors(QuantizedMatrix& matrix) {
  std::vector<StoredTensor> tensors;
  detail::visit_stored_tensors(
      matrix, matrix.g_idx.size() > 0, matrix.act_scales.size() > 0,
      [&](TensorSpec spec, uint8_t* data) { tensors.push_back({std::move(spec), data}); });
  return tensors;
}

// The matrix that stored_tensors() took apart, from tensors by name; others than its own are left
// alone. bfloat16 scales may come as their bits (uint16): numpy has no type for them. Throws
// InvalidArgument that names every tensor that is missing, or has another type or shape, and
// everything that validate() finds.
inline QuantizedMatrix assemble(const std::map<std::string, TensorView>& tensors,
                                const QuantScheme& scheme, int64_t rows, int64_t cols,
                                bool has_g_idx, bool has_act_scales) {
  Problems problems;
  // Before anything of that size is allocated.
  for (const TensorSpec& spec : stored_tensors(scheme, rows, cols, has_g_idx, has_act_scales)) {
    const auto found = tensors.find(spec.name);
    if (found == tensors.end()) {
      problems.add("tensor '", spec.name, "' is missing from the quantized weight");
      continue;
    }
    const TensorView& given = found->second;
    const bool bits = spec.type == TensorType::kBf16 && given.type == TensorType::kUint16;
    const int64_t bytes = element_count(spec.shape) * size_of(spec.type);
    if (given.type != spec.type && !bits) {
      problems.add("tensor '", spec.name, "' is ", name_of(given.type), ", expected ",
                   name_of(spec.type));
    } else if (given.shape != spec.shape) {
      problems.add("tensor '", spec.name, "' has shape ", shape_text(given.shape), ", expected ",
                   shape_text(spec.shape));
    } else if (given.bytes != bytes) {
      problems.add("tensor '", spec.name, "' has ", given.bytes, " bytes, expected ", bytes);
    }
  }
  problems.check();
  QuantizedMatrix matrix = allocate_stored(scheme, rows, cols, has_g_idx, has_act_scales);
  for (const StoredTensor& tensor : stored_tensors(matrix)) {
    const TensorView& given = tensors.at(tensor.spec.name);
    if (given.bytes > 0) std::memcpy(tensor.data, given.data, static_cast<size_t>(given.bytes));
  }
  // Bits that stand for nothing: without them equal matrices have equal tensors, and packed padding
  // is 0.
  for (int64_t n = 0; n < rows; ++n) clear_filling(matrix.row(n), cols, matrix.dtype().bits);
  if (matrix.scales.signs.size() > 0)
    clear_filling(matrix.scales.signs.data(), matrix.scales.size(), 1);
  validate(matrix);
  return matrix;
}

}  // namespace woq::io
