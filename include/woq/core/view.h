// SPDX-License-Identifier: Apache-2.0
// Non-owning 2-D views of floating-point data: how matrices enter and leave the library.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "woq/core/float16.h"

namespace woq {

enum class FloatType : uint8_t { kFp32, kBf16, kFp16 };

inline const char* name_of(FloatType type) {
  return type == FloatType::kFp32 ? "fp32" : type == FloatType::kBf16 ? "bf16" : "fp16";
}

inline int64_t size_of(FloatType type) {
  return type == FloatType::kFp32 ? 4 : 2;
}

// [rows, cols] with unit column stride; row_stride counts elements.
template <class Pointer>
struct BasicMatrixView {
  Pointer data = nullptr;
  FloatType type = FloatType::kFp32;
  int64_t rows = 0, cols = 0, row_stride = 0;

  auto row(int64_t r) const {
    using Byte =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
    return static_cast<Pointer>(static_cast<Byte*>(data) + r * row_stride * size_of(type));
  }

  operator BasicMatrixView<const void*>() const { return {data, type, rows, cols, row_stride}; }
};

using MatrixView = BasicMatrixView<void*>;
using ConstMatrixView = BasicMatrixView<const void*>;

inline ConstMatrixView view_of(const float* data, int64_t rows, int64_t cols) {
  return {data, FloatType::kFp32, rows, cols, cols};
}

inline MatrixView view_of(float* data, int64_t rows, int64_t cols) {
  return {data, FloatType::kFp32, rows, cols, cols};
}

// Converts n elements to fp32.
inline void load_floats(const void* source, FloatType type, int64_t n, float* out) {
  if (type == FloatType::kFp32) {
    std::memcpy(out, source, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(source);
  if (type == FloatType::kBf16) {
    for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(halves[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = fp16_to_float(halves[i]);
  }
}

// Rounds n fp32 elements to `type`.
inline void store_floats(const float* source, FloatType type, int64_t n, void* out) {
  if (type == FloatType::kFp32) {
    std::memcpy(out, source, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  auto* halves = static_cast<uint16_t*>(out);
  if (type == FloatType::kBf16) {
    for (int64_t i = 0; i < n; ++i) halves[i] = float_to_bf16(source[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) halves[i] = float_to_fp16(source[i]);
  }
}

}  // namespace woq
