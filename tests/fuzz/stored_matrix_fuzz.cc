// SPDX-License-Identifier: Apache-2.0
// Any bytes as the tensors of a quantized matrix: an error, or a matrix that may be used: it
// dequantizes, and comes back unchanged when it is packed and unpacked, or taken apart and put
// together again.
//
// An input is a header of 8 bytes: dtype, kind of zero points and encoding of scales as indices
// into the core's lists; group_size + 1; rows; cols; flags (1: has g_idx, 2: has act_scales);
// shifts (low and high half: rows and cols times 16^shift, for sizes that overflow). Then for every
// tensor that the matrix must have, in the order of the table, a byte: 0, and then the tensor's
// bytes; 1: the tensor is missing; else another tensor in its place: type, rank, extents, number of
// bytes, bytes. What the input is too short for is 0.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "fuzz_matrix.h"
#include "woq/core/check.h"
#include "woq/io/stored_matrix.h"

namespace {

using woq::QuantizedMatrix;
using woq::TensorView;
using woq::fuzz::Input;
using woq::fuzz::require;

// More than a matrix that is computed with has in a tensor.
constexpr int64_t kMaxBytes = 4 * woq::fuzz::kMostElements + 4;

struct Tensors {
  std::list<std::vector<uint8_t>> storage;
  std::map<std::string, TensorView> views;

  void add(const char* name, TensorView view, std::vector<uint8_t> bytes) {
    storage.push_back(std::move(bytes));
    view.data = storage.back().data();
    view.bytes = static_cast<int64_t>(storage.back().size());
    views[name] = std::move(view);
  }
};

Tensors read_tensors(const std::vector<woq::io::TensorSpec>& specs, Input* input) {
  Tensors tensors;
  for (const woq::io::TensorSpec& spec : specs) {
    const uint8_t kind = input->byte();
    if (kind == 1) continue;
    TensorView view{spec.type, spec.shape, nullptr, 0};
    int64_t count = woq::element_count(spec.shape) * woq::size_of(spec.type);
    if (kind > 1) {
      view.type = woq::kTensorTypes[input->byte() % std::size(woq::kTensorTypes)];
      view.shape.resize(input->byte() % 4);
      for (int64_t& extent : view.shape) extent = static_cast<int8_t>(input->byte());
      count = input->byte();
    }
    tensors.add(spec.name, view, input->bytes(std::min(count, kMaxBytes)));
  }
  return tensors;
}

bool same(const QuantizedMatrix& a, const QuantizedMatrix& b) {
  return a.scheme == b.scheme && a.rows == b.rows && a.cols == b.cols && a.qweight == b.qweight &&
         a.scales.values == b.scales.values && a.scales.block_absmax == b.scales.block_absmax &&
         a.scales.signs == b.scales.signs &&
         std::memcmp(&a.scales.offset, &b.scales.offset, sizeof a.scales.offset) == 0 &&
         a.zero_points == b.zero_points && a.g_idx == b.g_idx && a.act_scales == b.act_scales;
}

void check(QuantizedMatrix& matrix) {
  woq::validate(matrix);
  if (!woq::fuzz::is_small(matrix)) return;
  woq::fuzz::dequantized(matrix);
  require(same(woq::fuzz::packed_and_unpacked(matrix), matrix));
  std::map<std::string, TensorView> views;
  for (const woq::io::StoredTensor& tensor : woq::io::stored_tensors(matrix)) {
    const int64_t bytes = woq::element_count(tensor.spec.shape) * woq::size_of(tensor.spec.type);
    views[tensor.spec.name] = {tensor.spec.type, tensor.spec.shape, tensor.data, bytes};
  }
  require(same(woq::io::assemble(views, matrix.scheme, matrix.rows, matrix.cols,
                                 matrix.g_idx.size() > 0, matrix.act_scales.size() > 0),
               matrix));
}

int64_t scaled(uint8_t extent, int shift) {
  return static_cast<int64_t>(uint64_t{extent} << (4 * shift));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  woq::QuantScheme scheme;
  scheme.dtype = woq::kDtypes[input.byte() % std::size(woq::kDtypes)].dtype;
  scheme.zeros = static_cast<woq::ZeroKind>(input.byte() % std::size(woq::kZeroKindNames));
  scheme.scales = woq::kScaleEncodings[input.byte() % std::size(woq::kScaleEncodings)].encoding;
  scheme.group_size = input.byte() - 1;
  const uint8_t rows_byte = input.byte(), cols_byte = input.byte(), flags = input.byte();
  const uint8_t shifts = input.byte();
  const int64_t rows = scaled(rows_byte, shifts & 15), cols = scaled(cols_byte, shifts >> 4);
  const bool has_g_idx = (flags & 1) != 0, has_act_scales = (flags & 2) != 0;
  QuantizedMatrix matrix;
  try {
    const Tensors tensors = read_tensors(
        woq::io::stored_tensors(scheme, rows, cols, has_g_idx, has_act_scales), &input);
    matrix = woq::io::assemble(tensors.views, scheme, rows, cols, has_g_idx, has_act_scales);
  } catch (const woq::InvalidArgument&) {
    return 0;
  }
  check(matrix);
  return 0;
}
