// SPDX-License-Identifier: Apache-2.0
// Arrays from Python, read in place: numpy arrays (float32, float16, ml_dtypes.bfloat16, unsigned
// integers) and torch CPU tensors. Nothing here links torch; a tensor is asked for its address.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "woq/woq.h"

namespace woq::python {

namespace py = pybind11;

enum class ElementType : uint8_t { kFp32, kFp16, kBf16, kUint8, kUint16, kInt32 };
inline constexpr ElementType kElementTypes[] = {ElementType::kFp32,   ElementType::kFp16,
                                                ElementType::kBf16,   ElementType::kUint8,
                                                ElementType::kUint16, ElementType::kInt32};

inline const char* name_of(ElementType type) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "uint8", "uint16", "int32"};
  return kNames[static_cast<int>(type)];
}

inline int64_t size_of(ElementType type) {
  switch (type) {
    case ElementType::kFp32:
    case ElementType::kInt32: return 4;
    case ElementType::kUint8: return 1;
    default: return 2;
  }
}

// What an array is; strides count elements. Valid while the Python object lives.
struct ArrayRef {
  void* data = nullptr;
  ElementType type = ElementType::kFp32;
  std::vector<int64_t> shape, strides;
  bool writable = true;

  int64_t size() const {
    int64_t n = 1;
    for (int64_t extent : shape) n *= extent;
    return n;
  }
  bool contiguous() const;
};

// "[2, 3]"
std::string shape_text(const std::vector<int64_t>& shape);

// Throws InvalidArgument, calling the array `what`, for anything that is not such an array on the
// CPU.
ArrayRef array_ref(py::handle object, const char* what);

// A 2-D floating-point array with unit column stride.
ConstMatrixView input_matrix(py::handle object, const char* what);
MatrixView output_matrix(py::handle object, const char* what);

// A 1-D floating-point array as fp32.
std::vector<float> float_vector(py::handle object, const char* what);

}  // namespace woq::python
