// SPDX-License-Identifier: Apache-2.0
#include "woq/io/foreign.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "woq/core/check.h"
#include "woq/core/float16.h"
#include "woq/core/parallel.h"
#include "woq/core/problems.h"
#include "woq/core/view.h"
#include "woq/quant/make.h"

namespace woq::io {
namespace {

using Shape = std::vector<int64_t>;

bool is_float(TensorType type) {
  return type == TensorType::kFp32 || type == TensorType::kFp16 || type == TensorType::kBf16;
}

// The tensors of a layer, with what has been found wrong with them. A tensor is looked at after its
// type and shape are known to be right: check() is called in between.
class Layer {
 public:
  Layer(const ForeignTensors& tensors, int64_t rows, int64_t cols) : tensors_(tensors) {
    check_extents(rows, cols);
  }

  bool has(const char* name) const { return tensors_.count(name) > 0; }

  // A tensor of that type and shape; one that is missing or different is noted.
  const TensorView* integers(const char* name, TensorType type, const Shape& shape) {
    const TensorView* const tensor = find(name);
    if (tensor == nullptr) return nullptr;
    if (tensor->type != type)
      problems_.add("tensor '", name, "' is ", name_of(tensor->type), ", expected ", name_of(type));
    check_shape(name, *tensor, shape);
    return tensor;
  }

  // A tensor of floating-point numbers.
  const TensorView* floats(const char* name, const Shape& shape) {
    const TensorView* const tensor = find(name);
    if (tensor == nullptr) return nullptr;
    if (!is_float(tensor->type))
      problems_.add("tensor '", name, "' is ", name_of(tensor->type),
                    ", expected float32, float16 or bfloat16");
    check_shape(name, *tensor, shape);
    return tensor;
  }

  Problems& problems() { return problems_; }
  void check() const { problems_.check(); }

 private:
  const TensorView* find(const char* name) {
    const auto found = tensors_.find(name);
    if (found != tensors_.end()) return &found->second;
    problems_.add("tensor '", name, "' is missing");
    return nullptr;
  }

  void check_shape(const char* name, const TensorView& tensor, const Shape& shape) {
    if (tensor.shape != shape) {
      problems_.add("tensor '", name, "' has shape ", shape_text(tensor.shape), ", expected ",
                    shape_text(shape));
    } else if (tensor.bytes != element_count(shape) * size_of(tensor.type)) {
      problems_.add("tensor '", name, "' has ", tensor.bytes, " bytes, expected ",
                    element_count(shape) * size_of(tensor.type));
    }
  }

  const ForeignTensors& tensors_;
  Problems problems_;
};

// The integer dtype of a width. Its name says nothing about how a weight was rounded: read codes
// mean scale * (code - zero point), whoever made them.
WeightDtype integer_dtype(int bits) {
  for (const DtypeTraits& traits : kDtypes) {
    if (traits.is_integer() && traits.bits == bits && !traits.signed_scale) return traits.dtype;
  }
  std::string known;
  for (const DtypeTraits& traits : kDtypes) {
    if (traits.is_integer() && !traits.signed_scale)
      known += concat(known.empty() ? "" : ", ", traits.bits);
  }
  fail<Unsupported>("weights of ", bits, " bits have no dtype here; known widths: ", known);
}

ScaleEncoding encoding_of(const TensorView& scales) {
  for (const ScaleTraits& traits : kScaleEncodings) {
    if (traits.is_separate() && traits.stored == scales.type) return traits.encoding;
  }
  fail("scales of type ", name_of(scales.type), " are not supported");
}

FloatType float_type(TensorType type) {
  return type == TensorType::kFp32   ? FloatType::kFp32
         : type == TensorType::kFp16 ? FloatType::kFp16
                                     : FloatType::kBf16;
}

std::vector<float> floats_of(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(element_count(tensor.shape)));
  load_floats(tensor.data, float_type(tensor.type), static_cast<int64_t>(values.size()),
              values.data());
  return values;
}

// [rows, cols] of a [cols, rows] matrix.
template <class T>
std::vector<T> transposed(const std::vector<T>& values, int64_t rows, int64_t cols) {
  std::vector<T> result(values.size());
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t g = 0; g < cols; ++g)
      result[static_cast<size_t>(n * cols + g)] = values[static_cast<size_t>(g * rows + n)];
  }
  return result;
}

std::vector<float> as_floats(const std::vector<uint8_t>& codes) {
  return {codes.begin(), codes.end()};
}

// Bytes of codes [rows, cols], one a code. Not a vector: those would be zeroed first.
Buffer code_matrix(int64_t rows, int64_t cols) {
  return Buffer(rows * cols);
}

int code_threads(int64_t rows, int64_t cols) {
  return useful_threads(0, rows * cols, kElementGrain);
}

QuantScheme integer_scheme(int bits, int64_t group_size, ZeroKind zeros, const TensorView& scales) {
  QuantScheme scheme;
  scheme.dtype = integer_dtype(bits);
  scheme.group_size = group_size;
  scheme.zeros = zeros;
  scheme.scales = encoding_of(scales);
  return scheme;
}

int64_t groups_of(int64_t group_size, int64_t cols) {
  QuantScheme scheme;
  scheme.group_size = group_size;
  validate(scheme);
  return group_count(scheme, cols);
}

// g_idx as the format has it; nothing is added where it says what is so without one.
QuantizedMatrix with_foreign_g_idx(QuantizedMatrix matrix, const TensorView& g_idx) {
  std::vector<int32_t> groups(static_cast<size_t>(matrix.cols));
  std::memcpy(groups.data(), g_idx.data, groups.size() * sizeof(int32_t));
  const int64_t length = matrix.group_length();
  for (size_t k = 0; k < groups.size(); ++k) {
    if (groups[k] != static_cast<int64_t>(k) / length)
      return with_g_idx(std::move(matrix), groups.data());
  }
  return matrix;
}

void check_bits(int bits) {
  if (bits < 2 || bits > 8) fail("bits is ", bits, ", expected 2 to 8");
}

// -- GPTQ --------------------------------------------------------------------

// The stored fields [G, N] of GPTQ's zero points.
std::vector<uint8_t> zero_fields(const TensorView& qzeros, int64_t groups, int64_t rows,
                                 const GptqOptions& options) {
  std::vector<uint8_t> fields(static_cast<size_t>(groups * rows));
  const int64_t words = packed_words(rows, options.bits);
  for (int64_t g = 0; g < groups; ++g)
    unpack_words(qzeros.data, g * words, 1, rows, options.bits, options.layout,
                 fields.data() + g * rows);
  return fields;
}

// Adds 1 to each field of a word at once, which undoes a writer that subtracted so.
std::vector<uint32_t> unborrowed(const TensorView& qzeros, int bits) {
  uint32_t ones = 0;
  for (int shift = 0; shift < 32; shift += bits) ones |= 1u << shift;
  std::vector<uint32_t> words(static_cast<size_t>(element_count(qzeros.shape)));
  for (size_t i = 0; i < words.size(); ++i)
    words[i] = detail::load_word(qzeros.data, static_cast<int64_t>(i)) + ones;
  return words;
}

// Zero points [G, N], or none for a symmetric matrix.
std::vector<uint8_t> gptq_zeros(const TensorView& qzeros, int64_t groups, int64_t rows,
                                const GptqOptions& options, std::string* rule) {
  const auto explain = [&](const auto&... what) {
    if (rule != nullptr) *rule = concat(what...);
  };
  std::vector<uint8_t> fields = zero_fields(qzeros, groups, rows, options);
  const int center = 1 << (options.bits - 1), mask = (1 << options.bits) - 1;
  if (options.sym) {
    const auto all = [&](int value) {
      return std::all_of(fields.begin(), fields.end(), [&](uint8_t f) { return f == value; });
    };
    for (const int value : {center, center - 1}) {
      if (!all(value)) continue;
      explain("symmetric: every stored zero point is ", value, ", as ",
              value == center ? "gptq_v2" : "gptq", " has it");
      return {};
    }
  }
  switch (options.zeros) {
    case GptqZeros::kV2: explain("zero points as stored (gptq_v2)"); break;
    case GptqZeros::kV1:
      explain("zero points are the stored ones plus 1 (gptq)");
      for (uint8_t& field : fields) field = static_cast<uint8_t>((field + 1) & mask);
      break;
    case GptqZeros::kV1Borrowed: {
      explain("zero points are the stored ones plus 1, added a word at a time (gptq by GPTQModel)");
      const std::vector<uint32_t> words = unborrowed(qzeros, options.bits);
      TensorView view = qzeros;
      view.data = words.data();
      fields = zero_fields(view, groups, rows, options);
      break;
    }
  }
  return fields;
}

}  // namespace

QuantizedMatrix read_gptq(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                          const GptqOptions& options, std::string* rule) {
  const int bits = options.bits;
  check_bits(bits);
  if (options.layout == WordLayout::kPlanes && (rows % 32 != 0 || cols % 32 != 0))
    fail("gptq_p packs multiples of 32 rows and columns, got ", rows, " x ", cols);
  if (options.zeros == GptqZeros::kV1Borrowed && 32 % bits != 0)
    fail("zero points of ", bits, " bits cross words: a word at a time cannot be added to");
  Layer layer(tensors, rows, cols);
  const int64_t groups = groups_of(options.group_size, cols);
  const TensorView* const qweight =
      layer.integers("qweight", TensorType::kInt32, {packed_words(cols, bits), rows});
  const TensorView* const qzeros =
      layer.integers("qzeros", TensorType::kInt32, {groups, packed_words(rows, bits)});
  const TensorView* const scales = layer.floats("scales", {groups, rows});
  const TensorView* const g_idx =
      layer.has("g_idx") ? layer.integers("g_idx", TensorType::kInt32, {cols}) : nullptr;
  layer.check();
  const std::vector<uint8_t> zeros = gptq_zeros(*qzeros, groups, rows, options, rule);
  Buffer codes = code_matrix(rows, cols);
  parallel_for(rows, code_threads(rows, cols), [&](int64_t begin, int64_t end) {
    // 32 codes of each row before the next 32: neighbours in a word's row lie beside each other.
    for (int64_t k = 0; k < cols; k += 32) {
      const int64_t count = std::min<int64_t>(32, cols - k);
      for (int64_t n = begin; n < end; ++n)
        unpack_words(qweight->data, k / 32 * bits * rows + n, rows, count, bits, options.layout,
                     codes.data() + n * cols + k);
    }
  });
  const QuantScheme scheme = integer_scheme(
      bits, options.group_size, zeros.empty() ? ZeroKind::kNone : ZeroKind::kInt, *scales);
  const std::vector<float> zero_values =
      as_floats(transposed(zeros, zeros.empty() ? 0 : rows, groups));
  QuantizedMatrix matrix =
      from_codes(codes.data(), transposed(floats_of(*scales), rows, groups).data(),
                 zeros.empty() ? nullptr : zero_values.data(), scheme, rows, cols);
  return g_idx == nullptr ? matrix : with_foreign_g_idx(std::move(matrix), *g_idx);
}

// -- AWQ ---------------------------------------------------------------------

namespace {

// Code i of eight is that of row kAwqOrder[i] of its eight.
constexpr int kAwqOrder[] = {0, 2, 4, 6, 1, 3, 5, 7};

// Codes [lines, rows], each line a stream of bits; code (line, n) goes to element
// line * line_step + n * step of out.
void unpack_awq(const TensorView& words, int64_t begin, int64_t end, int64_t rows, int bits,
                uint8_t* out, int64_t line_step, int64_t step) {
  std::vector<uint8_t> codes(static_cast<size_t>(rows));
  for (int64_t line = begin; line < end; ++line) {
    unpack_words(words.data, line * packed_words(rows, bits), 1, rows, bits, WordLayout::kStream,
                 codes.data());
    for (int64_t n = 0; n < rows; ++n) {
      const int64_t row = n / 8 * 8 + kAwqOrder[n % 8];
      out[line * line_step + row * step] = codes[static_cast<size_t>(n)];
    }
  }
}

}  // namespace

QuantizedMatrix read_awq(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                         int64_t group_size, int bits) {
  check_bits(bits);
  if (rows % 8 != 0) fail("AWQ packs 8 rows at a time, and ", rows, " is no multiple of 8");
  Layer layer(tensors, rows, cols);
  const int64_t groups = groups_of(group_size, cols), words = packed_words(rows, bits);
  const TensorView* const qweight = layer.integers("qweight", TensorType::kInt32, {cols, words});
  const TensorView* const scales = layer.floats("scales", {groups, rows});
  const TensorView* const qzeros =
      layer.has("qzeros") ? layer.integers("qzeros", TensorType::kInt32, {groups, words}) : nullptr;
  layer.check();
  Buffer codes = code_matrix(rows, cols);
  parallel_for(cols, code_threads(rows, cols), [&](int64_t begin, int64_t end) {
    unpack_awq(*qweight, begin, end, rows, bits, codes.data(), 1, cols);
  });
  std::vector<uint8_t> zeros(qzeros == nullptr ? 0 : static_cast<size_t>(rows * groups));
  if (qzeros != nullptr) unpack_awq(*qzeros, 0, groups, rows, bits, zeros.data(), 1, groups);
  // The centre everywhere is a symmetric matrix, which kernels multiply faster with.
  const int center = 1 << (bits - 1);
  if (std::all_of(zeros.begin(), zeros.end(), [&](uint8_t zero) { return zero == center; }))
    zeros.clear();
  const std::vector<float> zero_values = as_floats(zeros);
  return from_codes(
      codes.data(), transposed(floats_of(*scales), rows, groups).data(),
      zeros.empty() ? nullptr : zero_values.data(),
      integer_scheme(bits, group_size, zeros.empty() ? ZeroKind::kNone : ZeroKind::kInt, *scales),
      rows, cols);
}

// -- compressed-tensors ------------------------------------------------------

namespace {

// Zero points [N, G], plus 2^(bits - 1), as codes.
std::vector<float> compressed_zeros(const TensorView& tensor, int64_t rows, int64_t groups,
                                    int bits) {
  if (tensor.type == TensorType::kInt8) {
    std::vector<float> zeros(static_cast<size_t>(rows * groups));
    const auto* const values = static_cast<const int8_t*>(tensor.data);
    for (size_t i = 0; i < zeros.size(); ++i)
      zeros[i] = static_cast<float>(values[i] + (1 << (bits - 1)));
    return zeros;
  }
  std::vector<uint8_t> codes(static_cast<size_t>(rows * groups)), column(static_cast<size_t>(rows));
  for (int64_t g = 0; g < groups; ++g) {
    unpack_words(tensor.data, g, groups, rows, bits, WordLayout::kStream, column.data());
    for (int64_t n = 0; n < rows; ++n)
      codes[static_cast<size_t>(n * groups + g)] = column[static_cast<size_t>(n)];
  }
  return as_floats(codes);
}

}  // namespace

QuantizedMatrix read_compressed_packed(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                                       int bits, int64_t group_size) {
  check_bits(bits);
  Layer layer(tensors, rows, cols);
  const int64_t groups = groups_of(group_size, cols), words = packed_words(cols, bits);
  const TensorView* const packed =
      layer.integers("weight_packed", TensorType::kInt32, {rows, words});
  const TensorView* const scales = layer.floats("weight_scale", {rows, groups});
  const TensorView* zeros = nullptr;
  if (layer.has("weight_zero_point")) {
    const bool plain = tensors.at("weight_zero_point").type == TensorType::kInt8;
    zeros = layer.integers("weight_zero_point", plain ? TensorType::kInt8 : TensorType::kInt32,
                           {plain ? rows : packed_words(rows, bits), groups});
  }
  const TensorView* const g_idx = layer.has("weight_g_idx")
                                      ? layer.integers("weight_g_idx", TensorType::kInt32, {cols})
                                      : nullptr;
  layer.check();
  Buffer codes = code_matrix(rows, cols);
  parallel_for(rows, code_threads(rows, cols), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      unpack_words(packed->data, n * words, 1, cols, bits, WordLayout::kStream,
                   codes.data() + n * cols);
  });
  std::vector<float> zero_values;
  if (zeros != nullptr) zero_values = compressed_zeros(*zeros, rows, groups, bits);
  QuantizedMatrix matrix = from_codes(
      codes.data(), floats_of(*scales).data(), zeros == nullptr ? nullptr : zero_values.data(),
      integer_scheme(bits, group_size, zeros == nullptr ? ZeroKind::kNone : ZeroKind::kInt,
                     *scales),
      rows, cols);
  return g_idx == nullptr ? matrix : with_foreign_g_idx(std::move(matrix), *g_idx);
}

QuantizedMatrix read_compressed_int(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                                    int64_t group_size) {
  Layer layer(tensors, rows, cols);
  const int64_t groups = groups_of(group_size, cols);
  const auto given = tensors.find("weight_scale");
  const bool single = given != tensors.end() && given->second.shape == Shape{1};
  const Shape shape = single ? Shape{1} : Shape{rows, groups};
  if (single && groups != 1) fail("one weight_scale for the matrix, but ", groups, " groups a row");
  const TensorView* const weight = layer.integers("weight", TensorType::kInt8, {rows, cols});
  const TensorView* const scales = layer.floats("weight_scale", shape);
  const TensorView* const zeros =
      layer.has("weight_zero_point") ? layer.integers("weight_zero_point", TensorType::kInt8, shape)
                                     : nullptr;
  layer.check();
  Buffer codes = code_matrix(rows, cols);
  const auto* const values = static_cast<const uint8_t*>(weight->data);
  for (int64_t i = 0; i < rows * cols; ++i) codes.data()[i] = values[i] ^ 0x80;  // + 128
  std::vector<float> scale_values = floats_of(*scales), zero_values;
  if (zeros != nullptr)
    zero_values = compressed_zeros(*zeros, single ? 1 : rows, single ? 1 : groups, 8);
  if (single) {
    scale_values.resize(static_cast<size_t>(rows), scale_values[0]);
    if (zeros != nullptr) zero_values.resize(static_cast<size_t>(rows), zero_values[0]);
  }
  return from_codes(
      codes.data(), scale_values.data(), zeros == nullptr ? nullptr : zero_values.data(),
      integer_scheme(8, group_size, zeros == nullptr ? ZeroKind::kNone : ZeroKind::kInt, *scales),
      rows, cols);
}

// -- 4-bit floats ------------------------------------------------------------

QuantizedMatrix read_fp4(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                         const Fp4Options& options) {
  if (traits_of(options.scales).form != ScaleForm::kFactored)
    fail("scales of 4-bit floats are 'e8m0' or 'e4m3', got '", name_of(options.scales), "'");
  if (cols % 2 != 0) fail("two codes share a byte, and rows have ", cols, " of them");
  Layer layer(tensors, rows, cols);
  const int64_t groups = groups_of(options.group_size, cols);
  const TensorView* const weight = layer.integers("weight", TensorType::kUint8, {rows, cols / 2});
  const TensorView* const scales =
      layer.integers("weight_scale", TensorType::kUint8, {rows, groups});
  layer.check();
  QuantScheme scheme;
  scheme.dtype = WeightDtype::kFp4E2m1;
  scheme.group_size = options.group_size;
  scheme.scales = options.scales;
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  // The hub's own order of codes.
  std::memcpy(matrix.qweight.data(), weight->data, static_cast<size_t>(matrix.qweight.size()));
  matrix.scales = ScaleTable::allocate(scheme, rows, groups);
  matrix.scales.factor = options.factor;
  std::memcpy(matrix.scales.values.data(), scales->data, static_cast<size_t>(rows * groups));
  validate(matrix);
  return matrix;
}

// -- bitsandbytes ------------------------------------------------------------

QuantizedMatrix read_bitsandbytes4(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                                   const BitsandbytesOptions& options) {
  const int64_t block = options.block_size;
  if (block < 2 || block % 2 != 0) fail("blocks of ", block, " weights, expected an even number");
  if (cols % block != 0) {
    fail<Unsupported>("blocks of ", block, " weights do not divide rows of ", cols,
                      ", so that a block has weights of two rows: dequantize this layer and "
                      "quantize it again");
  }
  Layer layer(tensors, rows, cols);
  const int64_t groups = groups_of(block, cols), count = rows * groups;
  const bool nested = layer.has("nested_absmax");
  const TensorView* const weight =
      layer.integers("weight", TensorType::kUint8, {rows * cols / 2, 1});
  const TensorView* const absmax =
      layer.integers("absmax", nested ? TensorType::kUint8 : TensorType::kFp32, {count});
  const int64_t blocks = (count + kDoubleQuantBlock - 1) / kDoubleQuantBlock;
  const TensorView* const nested_absmax =
      nested ? layer.integers("nested_absmax", TensorType::kFp32, {blocks}) : nullptr;
  const TensorView* const nested_map =
      nested ? layer.integers("nested_quant_map", TensorType::kFp32, {256}) : nullptr;
  layer.check();
  QuantScheme scheme;
  scheme.dtype = options.nf4 ? WeightDtype::kNf4 : WeightDtype::kFp4E2m1Bnb;
  scheme.group_size = block;
  const bool same_map =
      nested && std::memcmp(nested_map->data, dynamic_map().data(), 256 * sizeof(float)) == 0;
  scheme.scales = same_map ? ScaleEncoding::kDouble : ScaleEncoding::kFp32;
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, rows, cols);
  const auto* const bytes = static_cast<const uint8_t*>(weight->data);
  // A row is whole bytes, since blocks are even.
  for (int64_t i = 0; i < matrix.qweight.size(); ++i)
    matrix.qweight.data()[i] = static_cast<uint8_t>(bytes[i] >> 4 | bytes[i] << 4);
  matrix.scales = ScaleTable::allocate(scheme.scales, rows, groups, has_signed_scales(scheme));
  if (same_map) {
    std::memcpy(matrix.scales.values.data(), absmax->data, static_cast<size_t>(count));
    std::memcpy(matrix.scales.block_absmax.data(), nested_absmax->data,
                static_cast<size_t>(blocks * 4));
    matrix.scales.offset = options.nested_offset;
  } else if (!nested) {
    std::memcpy(matrix.scales.values.data(), absmax->data, static_cast<size_t>(count * 4));
  } else {
    // Another map than ours: the scales as numbers, rounded as bitsandbytes rounds them.
    const std::vector<float> map = floats_of(*nested_map), maxima = floats_of(*nested_absmax);
    const auto* const codes = static_cast<const uint8_t*>(absmax->data);
    for (int64_t i = 0; i < count; ++i)
      matrix.scales.values.as<float>()[i] =
          decode_double(map[codes[i]], maxima[static_cast<size_t>(i / kDoubleQuantBlock)],
                        options.nested_offset, false);
  }
  validate(matrix);
  return matrix;
}

QuantizedMatrix read_bitsandbytes8(const ForeignTensors& tensors, int64_t rows, int64_t cols) {
  Layer layer(tensors, rows, cols);
  const TensorView* const weight = layer.integers("weight", TensorType::kInt8, {rows, cols});
  const TensorView* const absmax = layer.floats("SCB", {rows});
  layer.check();
  Buffer codes = code_matrix(rows, cols);
  const auto* const values = static_cast<const uint8_t*>(weight->data);
  for (int64_t i = 0; i < rows * cols; ++i) codes.data()[i] = values[i] ^ 0x80;  // + 128
  std::vector<float> scales = floats_of(*absmax);
  constexpr float kInverse127 = 7.874015718698502e-3f;  // bitsandbytes' own constant
  for (float& scale : scales) scale *= kInverse127;
  QuantScheme scheme;
  scheme.dtype = integer_dtype(8);
  scheme.group_size = -1;
  return from_codes(codes.data(), scales.data(), nullptr, scheme, rows, cols);
}

// -- HQQ ---------------------------------------------------------------------

namespace {

// How an element of W_q holds codes.
struct HqqPacking {
  int parts;
  TensorType type;
  int top;   // where the code of the first part begins
  int step;  // bits from one code of an element to the next
};

HqqPacking hqq_packing(int bits) {
  switch (bits) {
    case 2: return {4, TensorType::kUint8, 6, 2};
    case 3: return {10, TensorType::kInt32, 27, 3};
    case 4: return {2, TensorType::kUint8, 4, 4};
    default: return {1, TensorType::kUint8, 0, 0};
  }
}

}  // namespace

QuantizedMatrix read_hqq(const ForeignTensors& tensors, int64_t rows, int64_t cols, int bits,
                         int64_t group_size) {
  check_bits(bits);
  Layer layer(tensors, rows, cols);
  if (group_size < 1) fail("group_size is ", group_size, ", expected at least 1");
  if (cols % group_size != 0) {
    fail<Unsupported>("groups of ", group_size, " weights do not divide rows of ", cols,
                      ", so that a group has weights of two rows: dequantize this layer and "
                      "quantize it again");
  }
  const HqqPacking packing = hqq_packing(bits);
  const int64_t groups = rows * (cols / group_size);
  const int64_t lines = (groups + packing.parts - 1) / packing.parts;
  const TensorView* const packed = layer.integers("W_q", packing.type, {lines, group_size});
  const TensorView* const scales = layer.floats("scale", {groups, 1});
  const TensorView* const zeros = layer.floats("zero", {groups, 1});
  layer.check();
  const uint32_t mask = (1u << bits) - 1;
  Buffer codes = code_matrix(rows, cols);
  parallel_for(groups, code_threads(rows, cols), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t line = g % lines;
      const int shift = packing.top - static_cast<int>(g / lines) * packing.step;
      for (int64_t k = 0; k < group_size; ++k) {
        const int64_t i = line * group_size + k;
        const uint32_t element = packing.type == TensorType::kInt32
                                     ? detail::load_word(packed->data, i)
                                     : static_cast<const uint8_t*>(packed->data)[i];
        codes.data()[g * group_size + k] = static_cast<uint8_t>(element >> shift & mask);
      }
    }
  });
  return from_codes(codes.data(), floats_of(*scales).data(), floats_of(*zeros).data(),
                    integer_scheme(bits, group_size, ZeroKind::kFloat, *scales), rows, cols);
}

}  // namespace woq::io
