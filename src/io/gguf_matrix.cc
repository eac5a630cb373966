// SPDX-License-Identifier: Apache-2.0
#include "woq/io/gguf_matrix.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "gguf_blocks.h"
#include "woq/core/code_row.h"
#include "woq/core/parallel.h"
#include "woq/quant/scales.h"
#include "woq/quant/validate.h"

namespace woq::io {

namespace {

void check_order(const std::vector<int64_t>& order, int64_t rows) {
  if (order.empty()) return;
  if (static_cast<int64_t>(order.size()) != rows)
    fail("an order of ", order.size(), " rows for a matrix of ", rows);
  for (const int64_t row : order) {
    if (row < 0 || row >= rows) fail("row ", row, " is none of the matrix's ", rows);
  }
}

// Fills row n of the matrix from the blocks of one row. `codes` [K] is room for its codes.
void read_row(const GgufForm& form, const GgufType& type, const uint8_t* in, int64_t n,
              uint8_t* codes, QuantizedMatrix* matrix) {
  const int64_t blocks = matrix->cols / type.block_elements;
  const int64_t groups = type.block_elements / form.group_size;  // of a block
  const int64_t bytes = groups * stored_scale_bytes(form.scales);
  const int64_t at = n * blocks * bytes;
  for (int64_t b = 0; b < blocks; ++b) {
    GgufBlock block;
    form.decode(in + b * type.block_bytes, &block);
    std::memcpy(codes + b * type.block_elements, block.codes,
                static_cast<size_t>(type.block_elements));
    std::memcpy(matrix->scales.values.data() + at + b * bytes, block.scales,
                static_cast<size_t>(bytes));
    if (form.zeros == ZeroKind::kMin) {
      std::memcpy(matrix->minima.values.data() + at + b * bytes, block.minima,
                  static_cast<size_t>(bytes));
    }
    if (form.scales != ScaleEncoding::kTwoLevel) continue;
    const int64_t super = (n * blocks + b) * 2;
    std::memcpy(matrix->scales.supers.data() + super, block.super, 2);
    if (form.zeros == ZeroKind::kMin)
      std::memcpy(matrix->minima.supers.data() + super, block.minimum_super, 2);
  }
  write_codes(codes, matrix->cols, matrix->dtype().bits, matrix->row(n));
}

}  // namespace

bool is_gguf_matrix(const GgufType& type) {
  return gguf_form(type) != nullptr;
}

QuantizedMatrix read_gguf_matrix(const GgufType& type, std::string_view data, int64_t rows,
                                 int64_t cols, const std::vector<int64_t>& row_order, int threads) {
  const GgufForm* const form = gguf_form(type);
  if (form == nullptr) {
    std::string known;
    for (const GgufForm& each : kGgufForms) known += concat(known.empty() ? "" : ", ", each.name);
    fail<Unsupported>("GGUF's type ", type.name, " cannot run packed; those that can: ", known,
                      ". Load the model with a quantization_config, which dequantizes it and "
                      "quantizes again");
  }
  check_extents(rows, cols);
  if (cols % type.block_elements != 0) {
    fail("rows of ", cols, " weights are not whole blocks of ", type.name, ", which have ",
         type.block_elements);
  }
  const int64_t row_bytes = cols / type.block_elements * type.block_bytes;
  if (static_cast<int64_t>(data.size()) / row_bytes != rows ||
      static_cast<int64_t>(data.size()) % row_bytes != 0) {
    fail("a matrix of ", rows, " x ", cols, " weights in ", type.name, " takes ", rows, " x ",
         row_bytes, " bytes, got ", data.size());
  }
  check_order(row_order, rows);
  const QuantScheme scheme{form->dtype, form->group_size, form->zeros, form->scales};
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  matrix.scales = ScaleTable::allocate(scheme, rows, matrix.groups());
  if (form->zeros == ZeroKind::kMin)
    matrix.minima = ScaleTable::allocate(scheme, rows, matrix.groups());
  if (form->zeros == ZeroKind::kInt)
    std::memset(matrix.zero_points.data(), kTernaryZero,
                static_cast<size_t>(matrix.zero_points.size()));
  const auto* const bytes = reinterpret_cast<const uint8_t*>(data.data());
  parallel_for(rows, useful_threads(threads, rows * cols, kElementGrain),
               [&](int64_t begin, int64_t end) {
                 Buffer codes(cols);
                 for (int64_t n = begin; n < end; ++n) {
                   const int64_t from = row_order.empty() ? n : row_order[static_cast<size_t>(n)];
                   read_row(*form, type, bytes + from * row_bytes, n, codes.data(), &matrix);
                 }
               });
  validate(matrix);
  return matrix;
}

}  // namespace woq::io
