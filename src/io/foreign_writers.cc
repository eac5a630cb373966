// SPDX-License-Identifier: Apache-2.0
#include "woq/io/foreign_writers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "woq/core/check.h"
#include "woq/core/code_row.h"
#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/io/packed_words.h"
#include "woq/quant/validate.h"

namespace woq::io {
namespace {

constexpr int64_t kWordBytes = 4;

OwnedTensor make_tensor(TensorType type, std::vector<int64_t> shape) {
  OwnedTensor tensor{type, std::move(shape), {}};
  tensor.data = Buffer(element_count(tensor.shape) * size_of(type));
  return tensor;
}

int threads_for(const QuantizedMatrix& matrix) {
  return useful_threads(0, matrix.rows * matrix.cols, kElementGrain);
}

// -- What a format has no place for ------------------------------------------

void check_inputs(const QuantizedMatrix& matrix, const char* format) {
  if (matrix.act_scales.size() > 0) {
    fail<Unsupported>("its input is multiplied by act_scales (AWQ, TEQ), for which ", format,
                      " has no place: quantize with GPTQ, AutoRound or round to nearest");
  }
}

void check_group_order(const QuantizedMatrix& matrix, const char* format) {
  if (has_act_order(matrix)) {
    fail<Unsupported>("its columns are in act-order (g_idx), for which ", format,
                      " has no place: write gptq, or quantize with desc_act=False");
  }
}

// Codes that mean scale * (code - zero point), of a width that the format has.
void check_integers(const QuantizedMatrix& matrix, const char* format,
                    std::initializer_list<int> widths) {
  check_inputs(matrix, format);
  const DtypeTraits& dtype = matrix.dtype();
  if (!dtype.is_integer()) {
    fail<Unsupported>("its dtype is ", dtype.name, ", and ", format,
                      " has integers: write nf4 and fp4_e2m1_bnb as bitsandbytes, or quantize to "
                      "int4 or int8");
  }
  if (std::find(widths.begin(), widths.end(), dtype.bits) == widths.end()) {
    std::string known;
    for (const int bits : widths) known += concat(known.empty() ? "" : ", ", bits);
    fail<Unsupported>("its codes have ", dtype.bits, " bits; ", format, " has ", known);
  }
  const ZeroKind zeros = matrix.scheme.zeros;
  if (zeros != ZeroKind::kNone && zeros != ZeroKind::kInt) {
    fail<Unsupported>("beside its scales it has numbers of the kind '", name_of(zeros), "' (",
                      zeros == ZeroKind::kFloat ? "HQQ's zero points" : "GGUF's minima",
                      "), and the zero points of ", format,
                      " are codes: quantize the float model, with another algorithm than HQQ");
  }
}

// -- Parts that several formats have -----------------------------------------

int zero_code(const QuantizedMatrix& matrix, int64_t n, int64_t g) {
  return matrix.scheme.zeros == ZeroKind::kInt ? matrix.zero_points.data()[n * matrix.groups() + g]
                                               : matrix.dtype().center();
}

FloatType float_type(TensorType type) {
  switch (type) {
    case TensorType::kFp32: return FloatType::kFp32;
    case TensorType::kFp16: return FloatType::kFp16;
    case TensorType::kBf16: return FloatType::kBf16;
    default: fail("scales cannot be written as ", name_of(type));
  }
}

// Scales [N, G], or [G, N] where they are transposed.
OwnedTensor scale_tensor(const QuantizedMatrix& matrix, const WrittenScales& written,
                         bool transposed) {
  const int64_t rows = matrix.rows, groups = matrix.groups(), count = rows * groups;
  const FloatType type = float_type(written.type);
  std::vector<float> values(static_cast<size_t>(count)), stored(values.size());
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t g = 0; g < groups; ++g)
      values[static_cast<size_t>(transposed ? g * rows + n : n * groups + g)] =
          matrix.scales.at(n, g);
  }
  OwnedTensor tensor = make_tensor(written.type, transposed ? std::vector<int64_t>{groups, rows}
                                                            : std::vector<int64_t>{rows, groups});
  store_floats(values.data(), type, count, tensor.data.data());
  load_floats(tensor.data.data(), type, count, stored.data());
  const woq::detail::WrongElements wrong = woq::detail::wrong_elements(count, [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    return written.round ? !std::isfinite(stored[at]) : stored[at] != values[at];
  });
  if (wrong.count > 0) {
    const float scale = values[static_cast<size_t>(wrong.first)];
    if (written.round)
      fail<Unsupported>("its scale ", scale, wrong.others(), " is too large for ",
                        name_of(written.type));
    fail<Unsupported>("its scale ", scale, wrong.others(), " is not exact in ",
                      name_of(written.type),
                      ", the type that the format's readers keep: quantize with that scale_dtype, "
                      "or have scales rounded (round_scales)");
  }
  return tensor;
}

// The rows of the hub are the words of a stream already, but for the bytes that fill up the last
// one. Word w of row n becomes word n * row_step + w * word_step.
OwnedTensor code_words(const QuantizedMatrix& matrix, std::vector<int64_t> shape, int64_t row_step,
                       int64_t word_step) {
  OwnedTensor tensor = make_tensor(TensorType::kInt32, std::move(shape));
  const int64_t words = packed_words(matrix.cols, matrix.dtype().bits), bytes = matrix.row_bytes();
  parallel_for(matrix.rows, threads_for(matrix), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t w = 0; w < words; ++w) {
        uint32_t word = 0;
        const int64_t first = w * kWordBytes, count = std::min(kWordBytes, bytes - first);
        std::memcpy(&word, matrix.row(n) + first, static_cast<size_t>(count));
        tensor.data.as<uint32_t>()[n * row_step + w * word_step] = word;
      }
    }
  });
  return tensor;
}

// Zero points, less `less`, as a stream of words along N for each group. Word w of group g becomes
// word g * group_step + w * word_step.
OwnedTensor zero_words(const QuantizedMatrix& matrix, int less, std::vector<int64_t> shape,
                       int64_t group_step, int64_t word_step) {
  OwnedTensor tensor = make_tensor(TensorType::kInt32, std::move(shape));
  const int64_t rows = matrix.rows, words = packed_words(rows, matrix.dtype().bits);
  std::vector<uint8_t> zeros(static_cast<size_t>(rows));
  std::vector<uint32_t> packed(static_cast<size_t>(words));
  for (int64_t g = 0; g < matrix.groups(); ++g) {
    for (int64_t n = 0; n < rows; ++n)
      zeros[static_cast<size_t>(n)] = static_cast<uint8_t>(zero_code(matrix, n, g) - less);
    std::fill(packed.begin(), packed.end(), 0u);
    write_codes(zeros.data(), rows, matrix.dtype().bits, reinterpret_cast<uint8_t*>(packed.data()));
    for (int64_t w = 0; w < words; ++w)
      tensor.data.as<uint32_t>()[g * group_step + w * word_step] = packed[static_cast<size_t>(w)];
  }
  return tensor;
}

}  // namespace

bool has_act_order(const QuantizedMatrix& matrix) {
  if (matrix.g_idx.size() == 0) return false;
  const int64_t length = matrix.group_length();
  for (int64_t k = 0; k < matrix.cols; ++k) {
    if (matrix.group_of(k) != k / length) return true;
  }
  return false;
}

// -- GPTQ --------------------------------------------------------------------

OwnedTensors write_gptq(const QuantizedMatrix& matrix, bool v2, const WrittenScales& scales) {
  const char* const format = v2 ? "gptq_v2" : "gptq";
  // GPTQModel packs 5, 6 and 7 bits in planes and AutoRound as a stream: no one layout is GPTQ's.
  check_integers(matrix, format, {2, 3, 4, 8});
  const int64_t rows = matrix.rows, groups = matrix.groups();
  const int bits = matrix.dtype().bits;
  for (int64_t i = 0; !v2 && i < rows * groups; ++i) {
    if (zero_code(matrix, i / groups, i % groups) == 0)
      fail<Unsupported>("the zero point of row ", i / groups, ", group ", i % groups,
                        " is 0, which gptq, storing it less one, has no number for: write gptq_v2");
  }
  OwnedTensors tensors;
  tensors["qweight"] = code_words(matrix, {packed_words(matrix.cols, bits), rows}, 1, rows);
  const int64_t words = packed_words(rows, bits);
  tensors["qzeros"] = zero_words(matrix, v2 ? 0 : 1, {groups, words}, words, 1);
  tensors["scales"] = scale_tensor(matrix, scales, true);
  OwnedTensor g_idx = make_tensor(TensorType::kInt32, {matrix.cols});
  for (int64_t k = 0; k < matrix.cols; ++k)
    g_idx.data.as<int32_t>()[k] = static_cast<int32_t>(matrix.group_of(k));
  tensors["g_idx"] = std::move(g_idx);
  return tensors;
}

// -- AWQ ---------------------------------------------------------------------

namespace {

// Nibble i of a word is number kAwqOrder[i] of its eight.
constexpr int kAwqOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};

// The word of eight codes that lie `step` bytes apart.
uint32_t awq_word(const uint8_t* codes, int64_t step) {
  uint32_t word = 0;
  for (int i = 0; i < 8; ++i) word |= static_cast<uint32_t>(codes[kAwqOrder[i] * step]) << (4 * i);
  return word;
}

}  // namespace

OwnedTensors write_awq(const QuantizedMatrix& matrix, const WrittenScales& scales) {
  check_integers(matrix, "awq", {4});
  check_group_order(matrix, "awq");
  const int64_t rows = matrix.rows, cols = matrix.cols, groups = matrix.groups(), words = rows / 8;
  if (rows % 8 != 0) {
    fail<Unsupported>("it has ", rows,
                      " rows, and awq packs 8 into a word: write gptq or "
                      "compressed-tensors");
  }
  OwnedTensors tensors;
  OwnedTensor qweight = make_tensor(TensorType::kInt32, {cols, words});
  parallel_for(words, threads_for(matrix), [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> codes(static_cast<size_t>(8 * cols));
    for (int64_t w = begin; w < end; ++w) {
      for (int64_t i = 0; i < 8; ++i)
        read_codes(matrix.row(w * 8 + i), 0, cols, 4, codes.data() + i * cols);
      for (int64_t k = 0; k < cols; ++k)
        qweight.data.as<uint32_t>()[k * words + w] = awq_word(codes.data() + k, cols);
    }
  });
  OwnedTensor qzeros = make_tensor(TensorType::kInt32, {groups, words});
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t w = 0; w < words; ++w) {
      uint8_t zeros[8];
      for (int64_t i = 0; i < 8; ++i)
        zeros[i] = static_cast<uint8_t>(zero_code(matrix, w * 8 + i, g));
      qzeros.data.as<uint32_t>()[g * words + w] = awq_word(zeros, 1);
    }
  }
  tensors["qweight"] = std::move(qweight);
  tensors["qzeros"] = std::move(qzeros);
  tensors["scales"] = scale_tensor(matrix, scales, true);
  return tensors;
}

// -- compressed-tensors ------------------------------------------------------

OwnedTensors write_compressed_packed(const QuantizedMatrix& matrix, const WrittenScales& scales) {
  const char* const format = "compressed-tensors (pack-quantized)";
  check_integers(matrix, format, {2, 3, 4, 5, 6, 7, 8});
  check_group_order(matrix, format);
  const int bits = matrix.dtype().bits;
  const int64_t groups = matrix.groups(), words = packed_words(matrix.cols, bits);
  OwnedTensors tensors;
  tensors["weight_packed"] = code_words(matrix, {matrix.rows, words}, words, 1);
  tensors["weight_scale"] = scale_tensor(matrix, scales, false);
  OwnedTensor shape = make_tensor(TensorType::kInt64, {2});
  shape.data.as<int64_t>()[0] = matrix.rows;
  shape.data.as<int64_t>()[1] = matrix.cols;
  tensors["weight_shape"] = std::move(shape);
  if (matrix.scheme.zeros == ZeroKind::kInt)
    tensors["weight_zero_point"] =
        zero_words(matrix, 0, {packed_words(matrix.rows, bits), groups}, 1, groups);
  return tensors;
}

OwnedTensors write_compressed_int(const QuantizedMatrix& matrix, const WrittenScales& scales) {
  const char* const format = "compressed-tensors (int-quantized)";
  check_integers(matrix, format, {8});
  check_group_order(matrix, format);
  const auto less_128 = [](const Buffer& codes, OwnedTensor* tensor) {
    for (int64_t i = 0; i < codes.size(); ++i)
      tensor->data.data()[i] = static_cast<uint8_t>(codes.data()[i] ^ 0x80);
  };
  OwnedTensors tensors;
  OwnedTensor weight = make_tensor(TensorType::kInt8, {matrix.rows, matrix.cols});
  less_128(matrix.qweight, &weight);
  tensors["weight"] = std::move(weight);
  tensors["weight_scale"] = scale_tensor(matrix, scales, false);
  if (matrix.scheme.zeros == ZeroKind::kInt) {
    OwnedTensor zeros = make_tensor(TensorType::kInt8, {matrix.rows, matrix.groups()});
    less_128(matrix.zero_points, &zeros);
    tensors["weight_zero_point"] = std::move(zeros);
  }
  return tensors;
}

// -- bitsandbytes ------------------------------------------------------------

namespace {

OwnedTensor copied(TensorType type, std::vector<int64_t> shape, const void* data) {
  OwnedTensor tensor = make_tensor(type, std::move(shape));
  if (tensor.data.size() > 0)
    std::memcpy(tensor.data.data(), data, static_cast<size_t>(tensor.data.size()));
  return tensor;
}

}  // namespace

OwnedTensors write_bitsandbytes4(const QuantizedMatrix& matrix) {
  const char* const format = "bitsandbytes";
  check_inputs(matrix, format);
  check_group_order(matrix, format);
  const WeightDtype dtype = matrix.scheme.dtype;
  if (dtype != WeightDtype::kNf4 && dtype != WeightDtype::kFp4E2m1Bnb) {
    fail<Unsupported>("its dtype is ", matrix.dtype().name,
                      "; bitsandbytes has nf4 and fp4 "
                      "(fp4_e2m1_bnb): write integers as gptq, awq or compressed-tensors");
  }
  const int64_t length = matrix.group_length(), count = matrix.rows * matrix.groups();
  if (matrix.cols % length != 0) {
    fail<Unsupported>("groups of ", length, " do not divide its rows of ", matrix.cols,
                      ", and bitsandbytes' blocks go on into the next row");
  }
  // A row that is one group may be of any length; a block is a group_size.
  if (length < kMinGroupSize || length % kGroupSizeStep != 0) {
    fail<Unsupported>("its groups have ", length, " columns, and bitsandbytes' blocks at least ",
                      kMinGroupSize, ", a multiple of ", kGroupSizeStep,
                      ": quantize with group_size=64");
  }
  OwnedTensors tensors;
  OwnedTensor weight = make_tensor(TensorType::kUint8, {matrix.qweight.size(), 1});
  for (int64_t i = 0; i < matrix.qweight.size(); ++i) {
    const int byte = matrix.qweight.data()[i];
    weight.data.data()[i] = static_cast<uint8_t>(byte >> 4 | byte << 4);
  }
  tensors["weight"] = std::move(weight);
  tensors["quant_map"] = copied(TensorType::kFp32, {16}, matrix.dtype().codebook->values);
  const ScaleTable& scales = matrix.scales;
  if (scales.encoding == ScaleEncoding::kDouble && scales.signs.size() == 0) {
    tensors["absmax"] = copied(TensorType::kUint8, {count}, scales.values.data());
    tensors["nested_absmax"] =
        copied(TensorType::kFp32, {scales.blocks()}, scales.block_absmax.data());
    tensors["nested_quant_map"] = copied(TensorType::kFp32, {256}, dynamic_map().data());
    return tensors;
  }
  OwnedTensor absmax = make_tensor(TensorType::kFp32, {count});
  for (int64_t i = 0; i < count; ++i) absmax.data.as<float>()[i] = scales.at(i);
  tensors["absmax"] = std::move(absmax);
  return tensors;
}

}  // namespace woq::io
