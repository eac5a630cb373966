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

using ElementType = TensorType;

// What an array is; strides count elements. Valid while the Python object lives.
struct ArrayRef {
  void* data = nullptr;
  ElementType type = ElementType::kFp32;
  std::vector<int64_t> shape, strides;
  bool writable = true;

  int64_t size() const { return element_count(shape); }
  bool contiguous() const;
};

// Throws InvalidArgument, calling the array `what`, for anything that is not such an array on the
// CPU.
ArrayRef array_ref(py::handle object, const char* what);

// A 2-D floating-point array with unit column stride.
ConstMatrixView input_matrix(py::handle object, const char* what);
MatrixView output_matrix(py::handle object, const char* what);

// A 1-D floating-point array as fp32.
std::vector<float> float_vector(py::handle object, const char* what);

// A 2-D floating-point array of a shape, as contiguous fp32.
std::vector<float> float_matrix(py::handle object, const char* what, int64_t rows, int64_t cols);

}  // namespace woq::python
