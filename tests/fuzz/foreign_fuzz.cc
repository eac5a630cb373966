// SPDX-License-Identifier: Apache-2.0
// Any bytes as the tensors of a layer that another library quantized: an error, or a matrix that
// may be used: it dequantizes to finite numbers, the same after it was packed and unpacked.
//
// An input is a header of 8 bytes: the format, an index into kFormats; bits; group_size + 1; rows;
// cols; flags (1: the optional tensors are there, 2: the option of the format); shifts (low and
// high half: rows and cols times 16^shift, for sizes that overflow); a byte of the formats' own.
// Then for every tensor of the format, in its order, a byte: 0, and then the bytes that a
// well-formed tensor has; 1: the tensor is missing; else another one in its place: type, rank,
// extents, number of bytes, bytes. What the input is too short for is 0.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <utility>
#include <vector>

#include "fuzz_matrix.h"
#include "woq/core/check.h"
#include "woq/io/foreign.h"

namespace {

using woq::QuantizedMatrix;
using woq::TensorType;
using woq::TensorView;
using woq::fuzz::Input;

// More than a matrix that is computed with has in a tensor.
constexpr int64_t kMaxBytes = 4 * woq::fuzz::kMostElements + 4;

// A layer as an input describes it.
struct Layer {
  int bits;
  int64_t group_size, rows, cols, groups;
  bool more, option;
  uint8_t own;
  Input* input;
  std::list<std::vector<uint8_t>> storage;
  woq::io::ForeignTensors tensors;

  int64_t words(int64_t n) const { return woq::io::packed_words(n, std::clamp(bits, 1, 32)); }

  // The tensor of that name, which has that type and shape if the format is kept to.
  void add(const char* name, TensorType type, std::vector<int64_t> shape) {
    const uint8_t kind = input->byte();
    if (kind == 1) return;
    int64_t count = woq::size_of(type);
    for (const int64_t extent : shape)
      count = extent > 0 && count <= kMaxBytes ? count * std::min(extent, kMaxBytes) : 0;
    TensorView view{type, std::move(shape), nullptr, 0};
    if (kind > 1) {
      view.type = woq::kTensorTypes[input->byte() % std::size(woq::kTensorTypes)];
      view.shape.resize(input->byte() % 4);
      for (int64_t& extent : view.shape) extent = static_cast<int8_t>(input->byte());
      count = input->byte();
    }
    storage.push_back(input->bytes(std::min(count, kMaxBytes)));
    view.data = storage.back().data();
    view.bytes = static_cast<int64_t>(storage.back().size());
    tensors[name] = std::move(view);
  }
};

QuantizedMatrix gptq(Layer* l) {
  l->add("qweight", TensorType::kInt32, {l->words(l->cols), l->rows});
  l->add("qzeros", TensorType::kInt32, {l->groups, l->words(l->rows)});
  l->add("scales", TensorType::kFp16, {l->groups, l->rows});
  if (l->more) l->add("g_idx", TensorType::kInt32, {l->cols});
  woq::io::GptqOptions options;
  options.bits = l->bits;
  options.group_size = l->group_size;
  options.sym = l->option;
  options.zeros = static_cast<woq::io::GptqZeros>(l->own % 3);
  options.layout = l->own & 128 ? woq::io::WordLayout::kPlanes : woq::io::WordLayout::kStream;
  return woq::io::read_gptq(l->tensors, l->rows, l->cols, options);
}

QuantizedMatrix awq(Layer* l) {
  l->add("qweight", TensorType::kInt32, {l->cols, l->words(l->rows)});
  l->add("scales", TensorType::kFp16, {l->groups, l->rows});
  if (l->more) l->add("qzeros", TensorType::kInt32, {l->groups, l->words(l->rows)});
  return woq::io::read_awq(l->tensors, l->rows, l->cols, l->group_size, l->bits);
}

QuantizedMatrix compressed_packed(Layer* l) {
  l->add("weight_packed", TensorType::kInt32, {l->rows, l->words(l->cols)});
  l->add("weight_scale", TensorType::kBf16, {l->rows, l->groups});
  if (l->more && l->option) {
    l->add("weight_zero_point", TensorType::kInt8, {l->rows, l->groups});
  } else if (l->more) {
    l->add("weight_zero_point", TensorType::kInt32, {l->words(l->rows), l->groups});
    l->add("weight_g_idx", TensorType::kInt32, {l->cols});
  }
  return woq::io::read_compressed_packed(l->tensors, l->rows, l->cols, l->bits, l->group_size);
}

QuantizedMatrix compressed_int(Layer* l) {
  const std::vector<int64_t> shape =
      l->option ? std::vector<int64_t>{1} : std::vector<int64_t>{l->rows, l->groups};
  l->add("weight", TensorType::kInt8, {l->rows, l->cols});
  l->add("weight_scale", TensorType::kFp32, shape);
  if (l->more) l->add("weight_zero_point", TensorType::kInt8, shape);
  return woq::io::read_compressed_int(l->tensors, l->rows, l->cols, l->group_size);
}

QuantizedMatrix fp4(Layer* l) {
  l->add("weight", TensorType::kUint8, {l->rows, l->cols / 2});
  l->add("weight_scale", TensorType::kUint8, {l->rows, l->groups});
  woq::io::Fp4Options options;
  options.scales = woq::kScaleEncodings[l->own % std::size(woq::kScaleEncodings)].encoding;
  options.group_size = l->group_size;
  options.factor.divisor = l->option ? 0.0f : 3.0f;
  return woq::io::read_fp4(l->tensors, l->rows, l->cols, options);
}

QuantizedMatrix bitsandbytes4(Layer* l) {
  const int64_t scales = l->rows * std::max<int64_t>(l->groups, 0);
  l->add("weight", TensorType::kUint8, {l->rows * l->cols / 2, 1});
  l->add("absmax", l->more ? TensorType::kUint8 : TensorType::kFp32, {scales});
  if (l->more) {
    l->add("nested_absmax", TensorType::kFp32, {(scales + 255) / 256});
    l->add("nested_quant_map", TensorType::kFp32, {256});
  }
  const woq::io::BitsandbytesOptions options{l->option, l->group_size,
                                             static_cast<float>(l->own) / 256};
  return woq::io::read_bitsandbytes4(l->tensors, l->rows, l->cols, options);
}

QuantizedMatrix bitsandbytes8(Layer* l) {
  l->add("weight", TensorType::kInt8, {l->rows, l->cols});
  l->add("SCB", TensorType::kFp32, {l->rows});
  return woq::io::read_bitsandbytes8(l->tensors, l->rows, l->cols);
}

QuantizedMatrix hqq(Layer* l) {
  const int64_t groups = l->rows * std::max<int64_t>(l->groups, 0);
  const int64_t parts = l->bits == 2 ? 4 : l->bits == 3 ? 10 : l->bits == 4 ? 2 : 1;
  l->add("W_q", l->bits == 3 ? TensorType::kInt32 : TensorType::kUint8,
         {(groups + parts - 1) / parts, l->group_size});
  l->add("scale", TensorType::kFp16, {groups, 1});
  l->add("zero", TensorType::kFp16, {groups, 1});
  return woq::io::read_hqq(l->tensors, l->rows, l->cols, l->bits, l->group_size);
}

constexpr QuantizedMatrix (*kFormats[])(Layer*) = {
    gptq, awq, compressed_packed, compressed_int, fp4, bitsandbytes4, bitsandbytes8, hqq};

// At most 2^32 rows, more than a matrix may have, and 2^28 columns: their product fits.
int64_t scaled(uint8_t extent, int shift, int most) {
  return static_cast<int64_t>(uint64_t{extent} << (4 * std::min(shift, most)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const auto read = kFormats[input.byte() % std::size(kFormats)];
  Layer layer{};
  layer.bits = input.byte();
  layer.group_size = input.byte() - 1;
  const uint8_t rows = input.byte(), cols = input.byte(), flags = input.byte();
  const uint8_t shifts = input.byte();
  layer.rows = scaled(rows, shifts & 15, 6);
  layer.cols = scaled(cols, shifts >> 4, 5);
  layer.groups = layer.group_size > 0 ? (layer.cols + layer.group_size - 1) / layer.group_size : 1;
  layer.more = (flags & 1) != 0;
  layer.option = (flags & 2) != 0;
  layer.own = input.byte();
  layer.input = &input;
  QuantizedMatrix matrix;
  try {
    matrix = read(&layer);
  } catch (const woq::InvalidArgument&) {
    return 0;
  } catch (const woq::Unsupported&) {
    return 0;
  }
  woq::fuzz::require_usable(matrix);
  return 0;
}
