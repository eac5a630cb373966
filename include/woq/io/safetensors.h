// SPDX-License-Identifier: Apache-2.0
// safetensors files: the length of the header (uint64, little-endian), the header in JSON, and the
// tensors' bytes. The header has a member a tensor: its dtype, its shape and its two offsets within
// the bytes; `__metadata__` holds texts. A large model lies in several files ("shards"), and
// model.safetensors.index.json says which tensor is in which. Format:
// huggingface.co/docs/safetensors.
//
// Read as strictly as the reference reader (safetensors 0.8) does: the tensors cover the bytes
// without gap or overlap. Stricter in one thing: a name that comes twice is an error, where the
// reference takes the last one.
//
// The bodies are in src/io/safetensors.cc: these functions need the library woq::woq.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "woq/io/mapped_file.h"

namespace woq::io {

// A type of elements. Those below a byte are packed; a tensor's elements fill whole bytes.
struct SafetensorsType {
  const char* name;
  int bits;
};
inline constexpr SafetensorsType kSafetensorsTypes[] = {
    {"BOOL", 8},        {"U8", 8},          {"I8", 8},   {"I16", 16},    {"U16", 16},
    {"I32", 32},        {"U32", 32},        {"I64", 64}, {"U64", 64},    {"F16", 16},
    {"BF16", 16},       {"F32", 32},        {"F64", 64}, {"C64", 64},    {"F8_E4M3", 8},
    {"F8_E5M2", 8},     {"F8_E8M0", 8},     {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
};

struct SafetensorsTensor {
  const SafetensorsType* type = nullptr;
  std::vector<int64_t> shape;  // empty for a scalar
  std::string_view data;       // need not be aligned to the type
};

struct SafetensorsFile {
  std::map<std::string, SafetensorsTensor, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;
};

// The contents of a file; the views point into `data`. `path` is for messages. Throws
// InvalidArgument for whatever is not as the format has it.
SafetensorsFile parse_safetensors(std::string_view data, const std::string& path);

// The views would point into a string that is gone.
template <class String, class = std::enable_if_t<std::is_same_v<String, std::string>>>
SafetensorsFile parse_safetensors(String&& data, const std::string& path) = delete;

// A model in one file or in shards, mapped.
struct SafetensorsModel {
  std::vector<MappedFile> files;
  std::map<std::string, SafetensorsTensor, std::less<>> tensors;
  std::map<std::string, std::string, std::less<>> metadata;  // of the first file
};

// `path` is a .safetensors file, an index file, or a folder with model.safetensors.index.json or
// model.safetensors. An index may name files of its own folder only, each of its tensors must be in
// the file that it names, and no tensor may be in two files. Throws InvalidArgument.
SafetensorsModel open_safetensors(const std::string& path);

}  // namespace woq::io
