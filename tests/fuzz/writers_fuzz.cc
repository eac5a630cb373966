// SPDX-License-Identifier: Apache-2.0
// Any matrix, written as one of the formats that woq writes: Unsupported, or tensors that are read
// back as the same numbers.
//
// An input is a header of 8 bytes: dtype, kind of zero points and encoding of scales as indices
// into the core's lists; group_size + 1; rows; cols; flags (1: has g_idx, 2: has act_scales, 4: the
// group of a column is a byte of the input, 8: scales are rounded to their written type); the
// format, an index into kFormats, and 16 times the type of written scales. What follows are the
// bytes of the matrix's tensors, in the order of its table; what the input is too short for is 0.
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz_matrix.h"
#include "woq/core/check.h"
#include "woq/io/foreign.h"
#include "woq/io/foreign_writers.h"
#include "woq/io/gguf_matrix.h"
#include "woq/io/gguf_matrix_writer.h"
#include "woq/io/stored_matrix.h"

namespace {

using woq::QuantizedMatrix;
using woq::TensorType;
using woq::TensorView;
using woq::fuzz::Input;
using woq::fuzz::require;
using woq::io::WrittenScales;

constexpr TensorType kScaleTypes[] = {TensorType::kFp32, TensorType::kFp16, TensorType::kBf16};

woq::io::ForeignTensors views(const woq::io::OwnedTensors& tensors) {
  woq::io::ForeignTensors views;
  for (const auto& [name, tensor] : tensors) views[name] = tensor.view();
  return views;
}

QuantizedMatrix through_gptq(const QuantizedMatrix& m, const WrittenScales& scales, bool v2) {
  const woq::io::OwnedTensors tensors = woq::io::write_gptq(m, v2, scales);
  woq::io::GptqOptions options;
  options.bits = m.dtype().bits;
  options.group_size = m.scheme.group_size;
  options.sym = m.scheme.zeros == woq::ZeroKind::kNone;
  options.zeros = v2 ? woq::io::GptqZeros::kV2 : woq::io::GptqZeros::kV1;
  return woq::io::read_gptq(views(tensors), m.rows, m.cols, options);
}

QuantizedMatrix through_gptq_v1(const QuantizedMatrix& m, const WrittenScales& scales) {
  return through_gptq(m, scales, false);
}

QuantizedMatrix through_gptq_v2(const QuantizedMatrix& m, const WrittenScales& scales) {
  return through_gptq(m, scales, true);
}

QuantizedMatrix through_awq(const QuantizedMatrix& m, const WrittenScales& scales) {
  const woq::io::OwnedTensors tensors = woq::io::write_awq(m, scales);
  return woq::io::read_awq(views(tensors), m.rows, m.cols, m.scheme.group_size);
}

QuantizedMatrix through_compressed_packed(const QuantizedMatrix& m, const WrittenScales& scales) {
  const woq::io::OwnedTensors tensors = woq::io::write_compressed_packed(m, scales);
  return woq::io::read_compressed_packed(views(tensors), m.rows, m.cols, m.dtype().bits,
                                         m.scheme.group_size);
}

QuantizedMatrix through_compressed_int(const QuantizedMatrix& m, const WrittenScales& scales) {
  const woq::io::OwnedTensors tensors = woq::io::write_compressed_int(m, scales);
  return woq::io::read_compressed_int(views(tensors), m.rows, m.cols, m.scheme.group_size);
}

QuantizedMatrix through_bitsandbytes(const QuantizedMatrix& m, const WrittenScales&) {
  const woq::io::OwnedTensors tensors = woq::io::write_bitsandbytes4(m);
  const bool nf4 = std::string_view(m.dtype().name) == "nf4";
  const int64_t block = m.scheme.group_size > 0 ? m.scheme.group_size : m.cols;
  return woq::io::read_bitsandbytes4(views(tensors), m.rows, m.cols, {nf4, block, m.scales.offset});
}

template <uint32_t id>
QuantizedMatrix through_gguf(const QuantizedMatrix& m, const WrittenScales&) {
  const woq::io::GgufType& type = *woq::io::gguf_type(id);
  const woq::Buffer bytes = woq::io::write_gguf_matrix(m, type);
  const std::string_view data(reinterpret_cast<const char*>(bytes.data()),
                              static_cast<size_t>(bytes.size()));
  return woq::io::read_gguf_matrix(type, data, m.rows, m.cols, {}, 1);
}

constexpr uint32_t kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8, kIq4Nl = 20, kMxfp4 = 39,
                   kNvfp4 = 40;

constexpr QuantizedMatrix (*kFormats[])(const QuantizedMatrix&, const WrittenScales&) = {
    through_gptq_v1,        through_gptq_v2,      through_awq,         through_compressed_packed,
    through_compressed_int, through_bitsandbytes, through_gguf<kQ4_0>, through_gguf<kQ4_1>,
    through_gguf<kQ8_0>,    through_gguf<kIq4Nl>, through_gguf<kQ5_0>, through_gguf<kQ5_1>,
    through_gguf<kMxfp4>,   through_gguf<kNvfp4>};

// The bytes of the groups of columns are theirs: an index of any 4 bytes is hardly ever one.
std::vector<uint8_t> group_indices(const QuantizedMatrix& measures, Input* input) {
  std::vector<uint8_t> bytes;
  for (int64_t k = 0; k < measures.cols; ++k) {
    const int32_t group = input->byte() % static_cast<int32_t>(measures.groups());
    const auto* const first = reinterpret_cast<const uint8_t*>(&group);
    bytes.insert(bytes.end(), first, first + sizeof group);
  }
  return bytes;
}

QuantizedMatrix read_matrix(Input* input, uint8_t* flags, uint8_t* written) {
  QuantizedMatrix measures;
  woq::QuantScheme& scheme = measures.scheme;
  scheme.dtype = woq::kDtypes[input->byte() % std::size(woq::kDtypes)].dtype;
  scheme.zeros = static_cast<woq::ZeroKind>(input->byte() % std::size(woq::kZeroKindNames));
  scheme.scales = woq::kScaleEncodings[input->byte() % std::size(woq::kScaleEncodings)].encoding;
  scheme.group_size = input->byte() - 1;
  measures.rows = input->byte() & 63;
  measures.cols = input->byte() & 63;
  *flags = input->byte();
  *written = input->byte();
  const bool has_g_idx = (*flags & 1) != 0, has_act_scales = (*flags & 2) != 0;
  std::list<std::vector<uint8_t>> storage;
  std::map<std::string, TensorView> tensors;
  for (const woq::io::TensorSpec& spec :
       woq::io::stored_tensors(scheme, measures.rows, measures.cols, has_g_idx, has_act_scales)) {
    const bool indices = (*flags & 4) != 0 && std::string_view(spec.name) == "g_idx";
    storage.push_back(indices
                          ? group_indices(measures, input)
                          : input->bytes(woq::element_count(spec.shape) * woq::size_of(spec.type)));
    tensors[spec.name] = {spec.type, spec.shape, storage.back().data(),
                          static_cast<int64_t>(storage.back().size())};
  }
  return woq::io::assemble(tensors, scheme, measures.rows, measures.cols, has_g_idx,
                           has_act_scales);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  uint8_t flags = 0, written = 0;
  QuantizedMatrix matrix;
  try {
    matrix = read_matrix(&input, &flags, &written);
  } catch (const woq::InvalidArgument&) {
    return 0;
  }
  const WrittenScales scales{kScaleTypes[(written >> 4) % std::size(kScaleTypes)],
                             (flags & 8) != 0};
  try {
    const QuantizedMatrix again = kFormats[(written & 15) % std::size(kFormats)](matrix, scales);
    // Numbers, not bits: Q4_1 adds where a zero point subtracts, which makes 0 of -0.
    require(scales.round || woq::fuzz::dequantized(again) == woq::fuzz::dequantized(matrix));
  } catch (const woq::Unsupported&) {
    return 0;
  }
  return 0;
}
