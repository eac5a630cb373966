// SPDX-License-Identifier: Apache-2.0
// Python's calibrated quantizers: statistics of inputs, and the functions that use them.
#pragma once

#include <pybind11/pybind11.h>

namespace woq::python {

// Adds Hessian, CrossMoment and the quantizers that take them.
void bind_quantizers(pybind11::module_& module);

}  // namespace woq::python
