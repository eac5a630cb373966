// SPDX-License-Identifier: Apache-2.0
#include "woq/io/gguf.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <type_traits>
#include <unordered_set>
#include <utility>

#include "woq/core/check.h"
#include "woq/io/bytes.h"

namespace woq::io {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr const char* kMend = "the file is damaged or of another kind; download it again";
constexpr uint64_t kAlignment = 32;
constexpr uint32_t kMaxDims = 4;
constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max();

std::string_view read_text(ByteReader& source, const std::string& what) {
  return source.text(source.number<uint64_t>("the length of " + what), what);
}

template <class T>
GgufValue read_number(ByteReader& source, const std::string& what) {
  const T value = source.number<T>(what);
  if constexpr (std::is_floating_point_v<T>) {
    return {static_cast<double>(value)};
  } else if constexpr (std::is_same_v<T, uint64_t>) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return {value};
  }
  if constexpr (!std::is_floating_point_v<T>) return {static_cast<int64_t>(value)};
}

// Bytes of a number; 0 for the types that have no fixed size.
uint64_t size_of(GgufValueType type) {
  constexpr uint64_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kSizes[static_cast<uint32_t>(type)];
}

GgufValueType read_type(ByteReader& source, const std::string& what) {
  const auto type = source.number<uint32_t>("the type of " + what);
  if (type > static_cast<uint32_t>(GgufValueType::kF64))
    source.fail(what, " is of the unknown type ", type);
  return static_cast<GgufValueType>(type);
}

GgufValue read_array(ByteReader& source, const std::string& what) {
  GgufArray array;
  array.type = read_type(source, what);
  const auto count = source.number<uint64_t>("the length of " + what);
  if (array.type == GgufValueType::kArray)
    source.fail(what, " is a list of lists, which no known software writes");
  if (array.type == GgufValueType::kString) {
    // Each takes 8 bytes at least, so this many cannot run away with the memory.
    for (uint64_t i = 0; i < count; ++i) array.texts.push_back(read_text(source, what));
  } else {
    array.bytes = source.take_elements(count, size_of(array.type), what);
  }
  array.count = static_cast<int64_t>(count);
  return {std::move(array)};
}

GgufValue read_value(ByteReader& source, const std::string& what) {
  switch (read_type(source, what)) {
    case GgufValueType::kU8: return read_number<uint8_t>(source, what);
    case GgufValueType::kI8: return read_number<int8_t>(source, what);
    case GgufValueType::kU16: return read_number<uint16_t>(source, what);
    case GgufValueType::kI16: return read_number<int16_t>(source, what);
    case GgufValueType::kU32: return read_number<uint32_t>(source, what);
    case GgufValueType::kI32: return read_number<int32_t>(source, what);
    case GgufValueType::kF32: return read_number<float>(source, what);
    case GgufValueType::kU64: return read_number<uint64_t>(source, what);
    case GgufValueType::kI64: return read_number<int64_t>(source, what);
    case GgufValueType::kF64: return read_number<double>(source, what);
    case GgufValueType::kBool: {
      const auto value = source.number<uint8_t>(what);
      if (value > 1) source.fail(what, " is ", static_cast<int>(value), ", expected 0 or 1");
      return {value == 1};
    }
    case GgufValueType::kString: return {read_text(source, what)};
    case GgufValueType::kArray: return read_array(source, what);
  }
  source.fail(what, " is of an unknown type");
}

uint64_t read_alignment(const ByteReader& source, const GgufMetadata& metadata) {
  const auto found = metadata.find("general.alignment");
  if (found == metadata.end()) return kAlignment;
  const auto* const value = found->second.as<int64_t>();
  // A multiple of 8 is what ggml itself writes; above 2^20 nothing is aligned, but padded away.
  if (value == nullptr || *value < 1 || *value > (1 << 20) || (*value & (*value - 1)) != 0)
    source.fail("general.alignment is ", value == nullptr ? "no whole number" : concat(*value),
                ", expected a power of two up to 2^20");
  return static_cast<uint64_t>(*value);
}

// A tensor as the list has it, before its bytes are looked for.
struct Listed {
  GgufTensor tensor;
  uint64_t offset = 0, bytes = 0;
};

// Elements of a tensor; a product that overflows is an error.
uint64_t count_elements(const ByteReader& source, const GgufTensor& tensor,
                        const std::string& what) {
  int64_t count = 1;
  for (const int64_t extent : tensor.shape) {
    if (extent != 0 && count > kMaxElements / extent)
      source.fail(what, " has more than 2^63 elements");
    count *= extent;
  }
  return static_cast<uint64_t>(count);
}

Listed read_listed(ByteReader& source, const std::string& what) {
  Listed listed;
  GgufTensor& tensor = listed.tensor;
  const auto dims = source.number<uint32_t>("the number of dimensions of " + what);
  if (dims < 1 || dims > kMaxDims)
    source.fail(what, " has ", dims, " dimensions, expected 1 to ", kMaxDims);
  for (uint32_t i = 0; i < dims; ++i) {
    const auto extent = source.number<uint64_t>("the shape of " + what);
    if (extent > static_cast<uint64_t>(kMaxElements))
      source.fail(what, " has more than 2^63 elements");
    tensor.shape.push_back(static_cast<int64_t>(extent));
  }
  tensor.type_id = source.number<uint32_t>("the type of " + what);
  tensor.type = gguf_type(tensor.type_id);
  listed.offset = source.number<uint64_t>("the offset of " + what);
  const uint64_t elements = count_elements(source, tensor, what);
  if (tensor.type != nullptr) {
    const int64_t cols = tensor.shape.front();
    if (cols % tensor.type->block_elements != 0)
      source.fail(what, " is of type ", tensor.type->name, ", whose rows are multiples of ",
                  tensor.type->block_elements, " elements, and has rows of ", cols);
    const uint64_t blocks = elements / static_cast<uint64_t>(tensor.type->block_elements);
    const auto block_bytes = static_cast<uint64_t>(tensor.type->block_bytes);
    if (blocks > source.size() / block_bytes)
      source.fail(what, " has more elements than the file has room for");
    listed.bytes = blocks * block_bytes;
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  return listed;
}

// Gives each tensor its bytes: within `data`, aligned, and not on another one's.
void place(const ByteReader& source, std::string_view data, uint64_t alignment,
           std::vector<std::pair<std::string_view, Listed>>* listed, GgufFile* file) {
  std::stable_sort(listed->begin(), listed->end(),
                   [](const auto& a, const auto& b) { return a.second.offset < b.second.offset; });
  uint64_t end = 0;
  for (auto& [name, item] : *listed) {
    const std::string what = "tensor " + io::quoted(name);
    if (item.offset > data.size() || item.bytes > data.size() - item.offset)
      source.fail(what, " of ", item.bytes, " bytes at offset ", item.offset,
                  " does not lie in the file's ", data.size(), " bytes of tensors");
    if (item.offset % alignment != 0)
      source.fail(what, " is at offset ", item.offset, ", which is no multiple of ", alignment);
    if (item.bytes > 0 && item.offset < end) source.fail(what, " overlaps the tensor before it");
    end = std::max(end, item.offset + item.bytes);
    item.tensor.data =
        data.substr(static_cast<size_t>(item.offset), static_cast<size_t>(item.bytes));
    file->tensors.emplace(name, std::move(item.tensor));
  }
}

// A whole number of metadata; `otherwise` where the key is missing.
int64_t number_of(const GgufMetadata& metadata, const char* key, int64_t otherwise,
                  const std::string& path) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return otherwise;
  const auto* const value = found->second.as<int64_t>();
  if (value == nullptr) fail("GGUF file ", path, ": ", key, " is no whole number: ", kMend);
  return *value;
}

}  // namespace

const GgufType* gguf_type(uint32_t id) {
  const auto* const found = std::find_if(std::begin(kGgufTypes), std::end(kGgufTypes),
                                         [&](const GgufType& type) { return type.id == id; });
  return found == std::end(kGgufTypes) ? nullptr : found;
}

GgufFile parse_gguf(std::string_view data, const std::string& path, const std::string& kind) {
  ByteReader source(data, kind, path, kMend);
  if (source.take(kMagic.size(), "the magic number") != kMagic)
    source.fail("it does not begin with 'GGUF'");
  GgufFile file;
  file.version = source.number<uint32_t>("the version");
  if (file.version != 2 && file.version != 3)
    source.fail("GGUF version ", file.version, "; known: 2 and 3, little-endian");
  const auto tensor_count = source.number<uint64_t>("the number of tensors");
  const auto metadata_count = source.number<uint64_t>("the number of metadata");
  for (uint64_t i = 0; i < metadata_count; ++i) {
    const std::string_view key = read_text(source, concat("the name of metadata ", i));
    const std::string what = "metadata " + io::quoted(key);
    const uint64_t begin = source.at();
    GgufValue value = read_value(source, what);
    value.stored = data.substr(begin, source.at() - begin);
    if (!file.metadata.emplace(key, std::move(value)).second) source.fail(what, " comes twice");
  }
  std::vector<std::pair<std::string_view, Listed>> listed;
  std::unordered_set<std::string_view> names;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    const std::string_view name = read_text(source, concat("the name of tensor ", i));
    const std::string what = "tensor " + io::quoted(name);
    if (!names.insert(name).second) source.fail(what, " comes twice");
    listed.emplace_back(name, read_listed(source, what));
    file.order.push_back(name);
  }
  const uint64_t alignment = read_alignment(source, file.metadata);
  const uint64_t padding = (alignment - source.at() % alignment) % alignment;
  // A file without tensors may end before the padding does.
  source.take(std::min<uint64_t>(padding, source.left()), "the padding");
  place(source, data.substr(source.at()), alignment, &listed, &file);
  return file;
}

GgufModel open_gguf(const std::string& path) {
  GgufModel model;
  model.files.emplace_back(path);
  GgufFile first = parse_gguf(model.files.back().bytes(), path);
  const int64_t count = number_of(first.metadata, "split.count", 1, path);
  const int64_t number = number_of(first.metadata, "split.no", 0, path);
  model.metadata = std::move(first.metadata);
  model.tensors = std::move(first.tensors);
  if (count <= 1) return model;
  char ending[64];
  const auto ending_of = [&](int64_t i) {
    std::snprintf(ending, sizeof ending, "-%05d-of-%05d.gguf", static_cast<int>(i + 1),
                  static_cast<int>(count));
    return std::string(ending);
  };
  if (count > 99999) fail("GGUF file ", path, ": split.count is ", count, ": ", kMend);
  const std::string expected = ending_of(0);
  if (number != 0 || path.size() < expected.size() ||
      path.compare(path.size() - expected.size(), expected.size(), expected) != 0)
    fail("GGUF file ", path, ": it is one of ", count,
         " files of a split model; name the first one, which ends in ", expected);
  for (int64_t i = 1; i < count; ++i) {
    const std::string name = path.substr(0, path.size() - expected.size()) + ending_of(i);
    model.files.emplace_back(name);
    GgufFile file = parse_gguf(model.files.back().bytes(), name);
    if (number_of(file.metadata, "split.no", -1, name) != i ||
        number_of(file.metadata, "split.count", -1, name) != count)
      fail("GGUF file ", name, ": it is not file ", i + 1, " of the ", count,
           " that its name says; download the model again");
    for (auto& [tensor_name, tensor] : file.tensors) {
      if (!model.tensors.emplace(tensor_name, std::move(tensor)).second)
        fail("GGUF file ", name, ": tensor ", io::quoted(tensor_name),
             " is in another file of the model, too; download the model again");
    }
  }
  const int64_t all = number_of(model.metadata, "split.tensors.count", -1, path);
  if (all >= 0 && static_cast<uint64_t>(all) != model.tensors.size())
    fail("GGUF file ", path, ": the model has ", model.tensors.size(), " tensors in ", count,
         " files, split.tensors.count says ", all, "; download the model again");
  return model;
}

}  // namespace woq::io
