// SPDX-License-Identifier: Apache-2.0
// Quantized weights for other libraries' checkpoints (woq/io/foreign_writers.h).
#pragma once

#include <pybind11/pybind11.h>

namespace woq::python {

void bind_foreign_writers(pybind11::module_& module);

}  // namespace woq::python
