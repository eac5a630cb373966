// SPDX-License-Identifier: Apache-2.0
// Python's QuantizedMatrix: stored tensors in and out, round to nearest.
#pragma once

#include <pybind11/pybind11.h>

namespace woq::python {

// Adds QuantizedMatrix and the functions on it.
void bind_quantized(pybind11::module_& module);

}  // namespace woq::python
