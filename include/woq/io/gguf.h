// SPDX-License-Identifier: Apache-2.0
// GGUF files (docs/gguf.md of ggml), versions 2 and 3, little-endian: a header, metadata (keys and
// values of 13 types), a list of tensors (name, shape, type, offset), and from the next multiple of
// the alignment on their bytes. A large model may be split into files `...-00001-of-00003.gguf`.
//
// The bodies are in src/io/gguf.cc: these functions need the library woq::woq.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "woq/io/mapped_file.h"

namespace woq::io {

// A type of tensor: elements lie in blocks, a row of K elements in K / block_elements of them.
struct GgufType {
  uint32_t id;
  const char* name;
  int64_t block_elements;
  int64_t block_bytes;
};

// The types of ggml.h that files hold. Not listed are its types for computing only and those whose
// support it removed.
inline constexpr GgufType kGgufTypes[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},    {42, "Q2_0", 64, 18},
};

// The row of an id, or nullptr for one that the table does not have.
const GgufType* gguf_type(uint32_t id);

// Types of metadata, by ggml's numbers.
enum class GgufValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// A list of values of one type. Texts are looked up; numbers stay bytes of the file, since a list
// of a million small ones would be many times as large as objects.
struct GgufArray {
  GgufValueType type = GgufValueType::kU8;
  int64_t count = 0;
  std::vector<std::string_view> texts;  // of kString
  std::string_view bytes;               // of the others: count values, little-endian, unaligned
};

// A value of metadata. Integers of all widths are int64 or, where they exceed it, uint64; both
// floating-point types are double.
struct GgufValue {
  std::variant<bool, int64_t, uint64_t, double, std::string_view, GgufArray> value;
  std::string_view stored = {};  // the bytes of the file, its type's number first

  template <class T>
  const T* as() const {
    return std::get_if<T>(&value);
  }
};

struct GgufTensor {
  const GgufType* type = nullptr;  // nullptr where the id is unknown: then there are no bytes
  uint32_t type_id = 0;
  std::vector<int64_t> shape;  // as torch has it, the contiguous dimension last: [N, K] of a weight
  std::string_view data;
};

// Keys, names and texts point into the bytes that were parsed.
using GgufMetadata = std::map<std::string_view, GgufValue>;
using GgufTensors = std::map<std::string_view, GgufTensor>;

struct GgufFile {
  uint32_t version = 0;
  GgufMetadata metadata;
  GgufTensors tensors;
  std::vector<std::string_view> order;  // the tensors' names as the file lists them
};

// The contents of a file. Nothing about `data` is trusted: lengths are compared with the bytes that
// are left, tensors lie within the file and not on each other, and memory is bounded by a constant
// times the size of the header. `kind` and `path` are for messages. Throws InvalidArgument.
GgufFile parse_gguf(std::string_view data, const std::string& path,
                    const std::string& kind = "GGUF file");

// Keys, names and data would point into a string that is gone.
template <class String, class = std::enable_if_t<std::is_same_v<String, std::string>>>
GgufFile parse_gguf(String&& data, const std::string& path,
                    const std::string& kind = "GGUF file") = delete;

// A model in one file or in splits, mapped.
struct GgufModel {
  std::vector<MappedFile> files;
  GgufMetadata metadata;  // of the first file
  GgufTensors tensors;    // of all files
};

// `path` is the file, or the first one of a split model. Throws InvalidArgument, also where a split
// is missing or belongs to another model.
GgufModel open_gguf(const std::string& path);

}  // namespace woq::io
