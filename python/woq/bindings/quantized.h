// SPDX-License-Identifier: Apache-2.0
// Python's QuantizedMatrix: arguments, stored tensors in and out.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "arrays.h"
#include "woq/woq.h"

namespace woq::python {

// A scheme from the names that Python uses. Throws InvalidArgument.
QuantScheme make_scheme(const std::string& dtype, int64_t group_size, bool asym,
                        const std::string& scale_dtype, bool double_quant);

// Adds QuantizedMatrix and the functions on it.
void bind_quantized(py::module_& module);

}  // namespace woq::python
