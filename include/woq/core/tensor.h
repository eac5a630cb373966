// SPDX-License-Identifier: Apache-2.0
// Tensors as files and callers hand them over: a type, a shape and bytes that somebody else owns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "woq/core/check.h"

namespace woq {

enum class TensorType : uint8_t { kFp32, kFp16, kBf16, kUint8, kUint16, kInt32, kInt8, kInt64 };

// The one list of types, in the order of the enumeration.
inline constexpr TensorType kTensorTypes[] = {
    TensorType::kFp32,   TensorType::kFp16,  TensorType::kBf16, TensorType::kUint8,
    TensorType::kUint16, TensorType::kInt32, TensorType::kInt8, TensorType::kInt64};

// As numpy and torch spell it.
inline const char* name_of(TensorType type) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "uint8",
                                    "uint16",  "int32",   "int8",     "int64"};
  return kNames[static_cast<int>(type)];
}

constexpr int64_t size_of(TensorType type) {
  constexpr int64_t kSizes[] = {4, 2, 2, 1, 2, 4, 1, 8};
  return kSizes[static_cast<int>(type)];
}

// "[2, 3]"
inline std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

inline int64_t element_count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

// A contiguous tensor that somebody else owns. `data` need not be aligned.
struct TensorView {
  TensorType type = TensorType::kFp32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  int64_t bytes = 0;  // that may be read from `data`
};

}  // namespace woq
