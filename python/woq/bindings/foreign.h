// SPDX-License-Identifier: Apache-2.0
// Quantized weights as other libraries' checkpoints keep them (woq/io/foreign.h).
#pragma once

#include <pybind11/pybind11.h>

namespace woq::python {

void bind_foreign(pybind11::module_& module);

}  // namespace woq::python
